/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/classify.c - which way an instruction is translated, and
 * which arithmetic flags it reads and certainly overwrites. What is not
 * known to be harmless when run natively does not get through: groups that
 * touch privileged or per-process host state either have a C op or raise #UD.
 * Ordinary C.
 */
#include "cpu_model.h"
#include "trans.h"

#define M(x) ZYDIS_MNEMONIC_##x

static const uint8_t op_kinds[BT_OP_COUNT] = {
#define NEXT KIND_NEXT
#define END KIND_END
#define JUMP KIND_JUMP
#define X(name, kind) [BT_OP_##name] = kind,
    BT_OPS(X)
#undef X
#undef NEXT
#undef END
#undef JUMP
};

static void set_op(struct insn *x, unsigned id)
{
    x->kind = K_OP;
    x->op_id = (uint16_t)id;
    x->op_kind = op_kinds[id];
    x->f_read = ALL_FLAGS;
    x->f_write = ALL_FLAGS;
    x->f_kill = 0;
}

/* x87 1, MMX 2, SSE 3, AVX 4, AVX-512 5, none 0 */
static unsigned fp_class(const struct insn *x)
{
    const ZydisDecodedInstruction *d = &x->d;
    if (d->meta.isa_ext == ZYDIS_ISA_EXT_X87 || d->mnemonic == M(FWAIT))
        return 1;
    if (d->mnemonic == M(EMMS))
        return 2;
    if (d->mnemonic == M(LDMXCSR) || d->mnemonic == M(STMXCSR))
        return 3;
    if (d->mnemonic == M(VLDMXCSR) || d->mnemonic == M(VSTMXCSR) || d->mnemonic == M(VZEROALL) ||
        d->mnemonic == M(VZEROUPPER))
        return 4;
    unsigned best = 0;
    for (unsigned i = 0; i < d->operand_count; i++) {
        if (x->op[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        switch (ZydisRegisterGetClass(x->op[i].reg.value)) {
        case ZYDIS_REGCLASS_MMX:
            if (best < 2)
                best = 2;
            break;
        case ZYDIS_REGCLASS_XMM:
        case ZYDIS_REGCLASS_YMM:
        case ZYDIS_REGCLASS_ZMM:
            if (best < 3)
                best = 3;
            break;
        case ZYDIS_REGCLASS_MASK:
            best = 5;
            break;
        default:
            break;
        }
    }
    if (best >= 3 && d->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
        return best == 5 ? 5 : 4;
    if (best >= 3 && d->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX)
        return 5;
    return best;
}

static bool fp_allowed(struct trans *t, struct insn *x)
{
    switch (fp_class(x)) {
    case 0:
        return true;
    case 1:
        if (x->d.mnemonic == M(FWAIT)) {
            if (t->mode & BT_MODE_MPTS)
                set_op(x, BT_OP_nm);
            return !(t->mode & BT_MODE_MPTS);
        }
        if (t->mode & BT_MODE_NOFPU) {
            set_op(x, BT_OP_nm);
            return false;
        }
        return true;
    case 2:
    case 3:
        if ((t->mode & BT_MODE_EM) || (fp_class(x) == 3 && (t->mode & BT_MODE_NOSSE))) {
            set_op(x, BT_OP_ud);
            return false;
        }
        break;
    case 4:
        if (t->mode & BT_MODE_NOAVX) {
            set_op(x, BT_OP_ud);
            return false;
        }
        break;
    default:
        if (t->mode & (BT_MODE_NOAVX | BT_MODE_NOAVX512)) {
            set_op(x, BT_OP_ud);
            return false;
        }
    }
    if (t->mode & BT_MODE_NOFPU) {
        set_op(x, BT_OP_nm);
        return false;
    }
    return true;
}

static bool is_reg_class(const ZydisDecodedOperand *o, ZydisRegisterClass k)
{
    return o->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(o->reg.value) == k;
}

static bool classify_mov(struct insn *x)
{
    if (is_reg_class(&x->op[0], ZYDIS_REGCLASS_SEGMENT))
        set_op(x, BT_OP_mov_sreg_rm);
    else if (is_reg_class(&x->op[1], ZYDIS_REGCLASS_SEGMENT))
        x->kind = K_MOV_FROM_SREG;
    else if (is_reg_class(&x->op[0], ZYDIS_REGCLASS_CONTROL))
        set_op(x, BT_OP_mov_cr_r);
    else if (is_reg_class(&x->op[1], ZYDIS_REGCLASS_CONTROL))
        set_op(x, BT_OP_mov_r_cr);
    else if (is_reg_class(&x->op[0], ZYDIS_REGCLASS_DEBUG))
        set_op(x, BT_OP_mov_dr_r);
    else if (is_reg_class(&x->op[1], ZYDIS_REGCLASS_DEBUG))
        set_op(x, BT_OP_mov_r_dr);
    else if (x->d.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && x->d.opcode >= 0xa0 && x->d.opcode <= 0xa3)
        x->kind = K_MOFFS;
    else
        x->kind = K_GENERIC;
    return true;
}

static bool classify_control(struct insn *x)
{
    const ZydisDecodedInstruction *d = &x->d;
    bool far = d->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
    switch (d->mnemonic) {
    case M(JMP):
        if (far)
            set_op(x, x->op[0].type == ZYDIS_OPERAND_TYPE_POINTER ? BT_OP_jmp_far_imm : BT_OP_jmp_far_mem);
        else
            x->kind = x->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? K_JMP : K_JMP_IND;
        return true;
    case M(CALL):
        if (far)
            set_op(x, x->op[0].type == ZYDIS_OPERAND_TYPE_POINTER ? BT_OP_call_far_imm : BT_OP_call_far_mem);
        else
            x->kind = x->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? K_CALL : K_CALL_IND;
        return true;
    case M(RET):
        if (far)
            set_op(x, BT_OP_ret_far);
        else
            x->kind = K_RET;
        return true;
    case M(JCXZ): case M(JECXZ): case M(JRCXZ): case M(LOOP): case M(LOOPE): case M(LOOPNE):
        x->kind = K_LOOP;
        return true;
    default:
        if (d->meta.category == ZYDIS_CATEGORY_COND_BR) {
            x->kind = K_JCC;
            return true;
        }
        return false;
    }
}

/* C op + 1 by mnemonic */
static const uint8_t simple_ops[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
    [M(LDS)] = BT_OP_load_far + 1, [M(LES)] = BT_OP_load_far + 1, [M(LSS)] = BT_OP_load_far + 1,
    [M(LFS)] = BT_OP_load_far + 1, [M(LGS)] = BT_OP_load_far + 1, [M(SLDT)] = BT_OP_sldt + 1, [M(STR)] = BT_OP_str + 1,
    [M(LLDT)] = BT_OP_lldt + 1, [M(LTR)] = BT_OP_ltr + 1, [M(VERR)] = BT_OP_verr + 1, [M(VERW)] = BT_OP_verw + 1,
    [M(LAR)] = BT_OP_lar + 1, [M(LSL)] = BT_OP_lsl + 1, [M(ARPL)] = BT_OP_arpl + 1, [M(SGDT)] = BT_OP_sgdt + 1,
    [M(SIDT)] = BT_OP_sidt + 1, [M(LGDT)] = BT_OP_lgdt + 1, [M(LIDT)] = BT_OP_lidt + 1, [M(SMSW)] = BT_OP_smsw + 1,
    [M(LMSW)] = BT_OP_lmsw + 1, [M(INT)] = BT_OP_int_n + 1, [M(INT3)] = BT_OP_int3 + 1, [M(INTO)] = BT_OP_into + 1,
    [M(INT1)] = BT_OP_int1 + 1, [M(IRET)] = BT_OP_iret + 1, [M(IRETD)] = BT_OP_iret + 1, [M(IRETQ)] = BT_OP_iret + 1,
    [M(HLT)] = BT_OP_hlt + 1, [M(UD0)] = BT_OP_ud + 1, [M(UD1)] = BT_OP_ud + 1, [M(UD2)] = BT_OP_ud + 1,
    [M(BOUND)] = BT_OP_bound + 1, [M(PUSHF)] = BT_OP_pushf + 1, [M(PUSHFD)] = BT_OP_pushf + 1,
    [M(PUSHFQ)] = BT_OP_pushf + 1, [M(POPF)] = BT_OP_popf + 1, [M(POPFD)] = BT_OP_popf + 1, [M(POPFQ)] = BT_OP_popf + 1,
    [M(CLTS)] = BT_OP_clts + 1, [M(SYSCALL)] = BT_OP_syscall + 1, [M(SYSRET)] = BT_OP_sysret + 1,
    [M(SYSENTER)] = BT_OP_sysenter + 1, [M(SYSEXIT)] = BT_OP_sysexit + 1, [M(SWAPGS)] = BT_OP_swapgs + 1,
    [M(RDFSBASE)] = BT_OP_rdfsbase + 1, [M(RDGSBASE)] = BT_OP_rdgsbase + 1, [M(WRFSBASE)] = BT_OP_wrfsbase + 1,
    [M(WRGSBASE)] = BT_OP_wrgsbase + 1, [M(INVLPG)] = BT_OP_invlpg + 1, [M(INVPCID)] = BT_OP_invpcid + 1,
    [M(INVD)] = BT_OP_invd + 1, [M(WBINVD)] = BT_OP_wbinvd + 1, [M(RDMSR)] = BT_OP_rdmsr + 1,
    [M(WRMSR)] = BT_OP_wrmsr + 1, [M(RDPMC)] = BT_OP_rdpmc + 1, [M(RDTSC)] = BT_OP_rdtsc + 1,
    [M(RDTSCP)] = BT_OP_rdtscp + 1, [M(RDPID)] = BT_OP_rdpid + 1, [M(CPUID)] = BT_OP_cpuid + 1,
    [M(XGETBV)] = BT_OP_xgetbv + 1, [M(XSETBV)] = BT_OP_xsetbv + 1, [M(CLAC)] = BT_OP_clac + 1,
    [M(STAC)] = BT_OP_stac + 1, [M(MONITOR)] = BT_OP_monitor + 1, [M(MWAIT)] = BT_OP_mwait + 1,
    [M(VMCALL)] = BT_OP_vmcall + 1, [M(VMMCALL)] = BT_OP_vmcall + 1, [M(FXSAVE)] = BT_OP_fxsave + 1,
    [M(FXSAVE64)] = BT_OP_fxsave + 1, [M(FXRSTOR)] = BT_OP_fxrstor + 1, [M(FXRSTOR64)] = BT_OP_fxrstor + 1,
    [M(XSAVE)] = BT_OP_xsave + 1, [M(XSAVE64)] = BT_OP_xsave + 1, [M(XSAVEOPT)] = BT_OP_xsaveopt + 1,
    [M(XSAVEOPT64)] = BT_OP_xsaveopt + 1, [M(XSAVEC)] = BT_OP_xsavec + 1, [M(XSAVEC64)] = BT_OP_xsavec + 1,
    [M(XSAVES)] = BT_OP_xsaves + 1, [M(XSAVES64)] = BT_OP_xsaves + 1, [M(XRSTOR)] = BT_OP_xrstor + 1,
    [M(XRSTOR64)] = BT_OP_xrstor + 1, [M(XRSTORS)] = BT_OP_xrstors + 1, [M(XRSTORS64)] = BT_OP_xrstors + 1,
    [M(FNSAVE)] = BT_OP_fnsave + 1, [M(FRSTOR)] = BT_OP_frstor + 1, [M(FNSTENV)] = BT_OP_fnstenv + 1,
    [M(FLDENV)] = BT_OP_fldenv + 1, [M(IN)] = BT_OP_in + 1, [M(OUT)] = BT_OP_out + 1, [M(INSB)] = BT_OP_ins + 1,
    [M(INSW)] = BT_OP_ins + 1, [M(INSD)] = BT_OP_ins + 1, [M(OUTSB)] = BT_OP_outs + 1, [M(OUTSW)] = BT_OP_outs + 1,
    [M(OUTSD)] = BT_OP_outs + 1, [M(PUSHA)] = BT_OP_pusha + 1, [M(PUSHAD)] = BT_OP_pusha + 1,
    [M(POPA)] = BT_OP_popa + 1, [M(POPAD)] = BT_OP_popa + 1, [M(ENTER)] = BT_OP_enter + 1,
    [M(MASKMOVDQU)] = BT_OP_maskmovdqu + 1, [M(VMASKMOVDQU)] = BT_OP_maskmovdqu + 1, [M(MASKMOVQ)] = BT_OP_maskmovq + 1,
    [M(XLAT)] = BT_OP_xlat + 1, [M(AAA)] = BT_OP_aaa + 1, [M(AAS)] = BT_OP_aas + 1, [M(AAM)] = BT_OP_aam + 1,
    [M(AAD)] = BT_OP_aad + 1, [M(DAA)] = BT_OP_daa + 1, [M(DAS)] = BT_OP_das + 1, [M(SALC)] = BT_OP_salc + 1,
    [M(MOVDIR64B)] = BT_OP_movdir64b + 1,
};

static void set_flags(struct insn *x)
{
    const ZydisAccessedFlags *f = x->d.cpu_flags;
    if (!f)
        return;
    x->f_read = f->tested & ALL_FLAGS;
    x->f_write = (f->modified | f->set_0 | f->set_1 | f->undefined) & ALL_FLAGS;
    x->f_kill = x->f_write;
    switch (x->d.mnemonic) {
    case M(SHL): case M(SHR): case M(SAR): case M(ROL): case M(ROR): case M(RCL): case M(RCR): {
        /* a count of zero leaves the flags alone */
        const ZydisDecodedOperand *o = &x->op[1];
        if (o->type == ZYDIS_OPERAND_TYPE_REGISTER || !(o->imm.value.u & (x->d.operand_width == 64 ? 63 : 31)))
            x->f_kill = 0;
        /* rotates by more than a multiple of the width are left to the host too */
        if (x->d.mnemonic == M(RCL) || x->d.mnemonic == M(RCR))
            x->f_kill = 0;
        break;
    }
    case M(SHLD): case M(SHRD):
        if (x->op[2].type == ZYDIS_OPERAND_TYPE_REGISTER ||
            !(x->op[2].imm.value.u & (x->d.operand_width == 64 ? 63 : 31)))
            x->f_kill = 0;
        break;
    default:
        break;
    }
    /* Undefined results may be "unchanged" on real processors: do not count on them; but AF after logic is not. */
    x->f_kill &= ~f->undefined | (f->modified | f->set_0 | f->set_1);
    if (x->d.mnemonic == M(AND) || x->d.mnemonic == M(OR) || x->d.mnemonic == M(XOR) || x->d.mnemonic == M(TEST))
        x->f_kill |= BT_AF;
    if (x->d.mnemonic == M(BSF) || x->d.mnemonic == M(BSR))
        x->f_kill &= BT_ZF;
    switch (x->d.mnemonic) { /* may fault on the host: the flags before are needed then */
    case M(PTEST): case M(VPTEST): case M(VTESTPS): case M(VTESTPD): case M(COMISS): case M(COMISD): case M(UCOMISS):
    case M(UCOMISD): case M(VCOMISS): case M(VCOMISD): case M(VUCOMISS): case M(VUCOMISD): case M(VCOMISH):
    case M(VUCOMISH): x->f_kill = 0; break;
    default: break;
    }
}

static void set_writes(struct insn *x)
{
    bool high;
    x->gpr_wr = 0;
    for (unsigned i = 0; i < x->d.operand_count; i++)
        if (x->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && is_gpr(x->op[i].reg.value) &&
            (x->op[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)) {
            unsigned n = reg_number(x->op[i].reg.value, &high);
            x->gpr_wr |= 1u << n % (high ? 4 : 16);
        }
}

/* What set_op() has made C's, but for a careful block: it is translated, and writes no flags. */
static bool translated(const struct trans *t, struct insn *x, unsigned kind)
{
    if (t->careful)
        return false;
    x->kind = (uint8_t)kind;
    x->f_write = 0;
    return true;
}

void trans_classify(struct trans *t, struct insn *x)
{
    const ZydisDecodedInstruction *d = &x->d;
    x->f_read = x->f_write = x->f_kill = 0;
    x->kind = K_GENERIC;
    set_flags(x);
    set_writes(x);
    if (t->c->vm->cpuid->restricted && trans_isa_hidden(t, x)) {
        set_op(x, BT_OP_ud);
        return;
    }
    if (d->meta.category == ZYDIS_CATEGORY_STRINGOP) {
        switch (d->opcode & 0xfe) {
        case 0xa4: set_op(x, BT_OP_movs); break;
        case 0xa6: set_op(x, BT_OP_cmps); break;
        case 0xaa: set_op(x, BT_OP_stos); break;
        case 0xac: set_op(x, BT_OP_lods); break;
        default: set_op(x, BT_OP_scas); break;
        }
        if (d->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) {
            bool fs_gs = d->attributes & (ZYDIS_ATTRIB_HAS_SEGMENT_FS | ZYDIS_ATTRIB_HAS_SEGMENT_GS);
            if ((x->op_id == BT_OP_movs || x->op_id == BT_OP_stos) && t->code64 && d->address_width == 64 && !fs_gs &&
                !(t->mode & BT_MODE_TF))
                translated(t, x, K_REP);
            return;
        }
        x->op_kind = KIND_NEXT; /* cannot stop in the middle */
        if ((x->op_id == BT_OP_movs || x->op_id == BT_OP_stos || x->op_id == BT_OP_lods) && translated(t, x, K_STRING))
            x->f_read = 0;
        return;
    }
    if (d->mnemonic == M(PUSHFQ)) {
        set_op(x, BT_OP_pushf);
        translated(t, x, K_PUSHF);
        return;
    }
    if ((d->mnemonic == M(RDTSC) || d->mnemonic == M(RDTSCP)) && !(t->mode & (BT_MODE_TSD | BT_MODE_VM86)) &&
        !t->c->vm->tsc_ratio) {
        x->kind = K_RDTSC;
        return;
    }
    if (d->mnemonic == M(SWAPGS) && t->code64 && (t->mode & BT_MODE_CPL) == 0) {
        x->kind = K_SWAPGS;
        return;
    }
    if (simple_ops[d->mnemonic]) {
            set_op(x, simple_ops[d->mnemonic] - 1u);
            if (x->op_id >= BT_OP_fxsave && x->op_id <= BT_OP_fldenv) {
                if (x->op_id <= BT_OP_fxrstor || x->op_id >= BT_OP_fnsave) {
                    if (t->mode & BT_MODE_NOFPU)
                        set_op(x, BT_OP_nm);
                } else if (t->mode & BT_MODE_NOFPU & ~BT_MODE_EM) {
                    set_op(x, BT_OP_nm);
                }
            }
            return;
        }
    if (classify_control(x))
        return;
    switch (d->mnemonic) {
    case M(MOV):
        classify_mov(x);
        return;
    case M(PUSH):
    case M(POP): {
        bool push = d->mnemonic == M(PUSH);
        if (is_reg_class(&x->op[0], ZYDIS_REGCLASS_SEGMENT))
            set_op(x, push ? BT_OP_push_sreg : BT_OP_pop_sreg);
        else
            x->kind = push ? K_PUSH : K_POP;
        return;
    }
    case M(LEAVE): x->kind = K_LEAVE; return;
    case M(LEA): x->kind = K_LEA; return;
    case M(STI):
        if ((t->mode & BT_MODE_CPL) == 0 && !(t->mode & (BT_MODE_VM86 | BT_MODE_TF)))
            x->kind = K_STI;
        else
            set_op(x, BT_OP_sti);
        return;
    case M(CLI):
        if ((t->mode & BT_MODE_CPL) == 0 && !(t->mode & BT_MODE_VM86))
            x->kind = K_CLI;
        else
            set_op(x, BT_OP_cli);
        return;
    case M(STD): x->kind = K_STD; return;
    case M(CLD): x->kind = K_CLD; return;
    case M(BT): case M(BTS): case M(BTR): case M(BTC):
        if (x->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY && x->op[1].type == ZYDIS_OPERAND_TYPE_REGISTER)
            x->kind = K_BT;
        return;
    case M(NOP): case M(ENDBR32): case M(ENDBR64): case M(CLDEMOTE): case M(CLFLUSH): case M(CLFLUSHOPT): case M(CLWB):
    case M(RDSSPD): case M(RDSSPQ):
        x->kind = K_NOP;
        return;
    default:
        break;
    }
    switch (d->meta.category) {
    case ZYDIS_CATEGORY_PREFETCH: case ZYDIS_CATEGORY_PREFETCHWT1: case ZYDIS_CATEGORY_NOP: case ZYDIS_CATEGORY_WIDENOP:
        x->kind = d->mnemonic == M(PAUSE) ? K_GENERIC : K_NOP;
        return;
    case ZYDIS_CATEGORY_AVX2GATHER: case ZYDIS_CATEGORY_GATHER:
        if (fp_allowed(t, x))
            set_op(x, BT_OP_gather);
        return;
    case ZYDIS_CATEGORY_SCATTER:
        if (fp_allowed(t, x))
            set_op(x, BT_OP_scatter);
        return;
    case ZYDIS_CATEGORY_INVALID: case ZYDIS_CATEGORY_AMD3DNOW: case ZYDIS_CATEGORY_AMX_TILE: case ZYDIS_CATEGORY_CET:
    case ZYDIS_CATEGORY_CLZERO: case ZYDIS_CATEGORY_ENQCMD: case ZYDIS_CATEGORY_HRESET: case ZYDIS_CATEGORY_INTERRUPT:
    case ZYDIS_CATEGORY_IO: case ZYDIS_CATEGORY_IOSTRINGOP: case ZYDIS_CATEGORY_KEYLOCKER:
    case ZYDIS_CATEGORY_KEYLOCKER_WIDE: case ZYDIS_CATEGORY_KNC: case ZYDIS_CATEGORY_KNCMASK:
    case ZYDIS_CATEGORY_KNCSCALAR: case ZYDIS_CATEGORY_MPX: case ZYDIS_CATEGORY_PADLOCK: case ZYDIS_CATEGORY_PCONFIG:
    case ZYDIS_CATEGORY_PKU: case ZYDIS_CATEGORY_PT: case ZYDIS_CATEGORY_RDPRU: case ZYDIS_CATEGORY_RDWRFSGS:
    case ZYDIS_CATEGORY_SEGOP: case ZYDIS_CATEGORY_SGX: case ZYDIS_CATEGORY_SMAP: case ZYDIS_CATEGORY_SYSCALL:
    case ZYDIS_CATEGORY_SYSRET: case ZYDIS_CATEGORY_SYSTEM: case ZYDIS_CATEGORY_TSX_LDTRK: case ZYDIS_CATEGORY_UINTR:
    case ZYDIS_CATEGORY_VTX: case ZYDIS_CATEGORY_WAITPKG: case ZYDIS_CATEGORY_XSAVE: case ZYDIS_CATEGORY_XSAVEOPT:
        set_op(x, BT_OP_ud);
        return;
    default:
        break;
    }
    if (d->meta.isa_ext == ZYDIS_ISA_EXT_RTM || d->meta.isa_ext == ZYDIS_ISA_EXT_MONITORX ||
        d->meta.isa_ext == ZYDIS_ISA_EXT_MCOMMIT || d->meta.isa_ext == ZYDIS_ISA_EXT_XOP) {
        set_op(x, BT_OP_ud);
        return;
    }
    fp_allowed(t, x);
}
