/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_sysops_machine.c - control registers, system calls,
 * flags, ports, odds and ends.
 */
#include "test_sysops.h"

#define C (&B.c)

static void set_cr(unsigned n, uint64_t v)
{
    B.op.reg = (uint8_t)n;
    B.op.rm = BT_RAX;
    C->gpr[BT_RAX] = v;
    bt_op_mov_cr_r(C, &B.op);
}

static void wrmsr(uint32_t index, uint64_t v)
{
    C->gpr[BT_RCX] = index;
    C->gpr[BT_RAX] = (uint32_t)v;
    C->gpr[BT_RDX] = v >> 32;
    bt_op_wrmsr(C, &B.op);
}

#define CR0_BASE (BT_CR0_PE | BT_CR0_NE | 0x10)

static void the_way_into_long_mode(void **s)
{
    (void)s;
    bench_prot(0);
    RAISES(BT_EX_GP, 0, set_cr(0, BT_CR0_PG)); /* PG without PE */
    RAISES(BT_EX_GP, 0, set_cr(0, CR0_BASE | 0x20000000)); /* NW without CD */
    OK(wrmsr(0xc0000080, BT_EFER_LME | BT_EFER_NXE));
    assert_int_equal(C->efer, BT_EFER_LME | BT_EFER_NXE);
    assert_int_equal(B.flush_all, 1);
    RAISES(BT_EX_GP, 0, wrmsr(0xc0000080, 1 << 20));
    RAISES(BT_EX_GP, 0, set_cr(0, CR0_BASE | BT_CR0_PG)); /* LME without PAE */
    OK(set_cr(4, C->cr4 | BT_CR4_PAE));
    OK(set_cr(0, CR0_BASE | BT_CR0_PG));
    assert_true(bt_long_mode(C));
    assert_false(bt_code64(C));
    RAISES(BT_EX_GP, 0, set_cr(4, C->cr4 & ~BT_CR4_PAE));
    RAISES(BT_EX_GP, 0, wrmsr(0xc0000080, 0)); /* LME under paging */
    B.op.imm = 0x1234;
    B.op.imm2 = S_CODE64;
    OK(bt_op_jmp_far_imm(C, &B.op));
    assert_true(bt_code64(C));
    RAISES(BT_EX_GP, 0, set_cr(0, CR0_BASE)); /* not from 64-bit code */
    RAISES(BT_EX_GP, 0, set_cr(0, CR0_BASE | BT_CR0_PG | 1ull << 32));
    RAISES(BT_EX_UD, 0, set_cr(1, 0));
    bench_prot(3);
    RAISES(BT_EX_GP, 0, set_cr(0, CR0_BASE));
    RAISES(BT_EX_UD, 0, set_cr(5, 0));
}

static void cr3_and_pcid(void **s)
{
    (void)s;
    bench_long(0);
    OK(set_cr(3, 0x5000));
    assert_int_equal(B.flush_nonglobal, 1);
    RAISES(BT_EX_GP, 0, set_cr(3, 1ull << 63 | 0x5000)); /* no PCID yet */
    RAISES(BT_EX_GP, 0, set_cr(3, 1ull << 45)); /* beyond the address width */
    OK(set_cr(3, 0x5018));
    RAISES(BT_EX_GP, 0, set_cr(4, C->cr4 | BT_CR4_PCIDE)); /* low bits of CR3 */
    OK(set_cr(3, 0x5000));
    OK(set_cr(4, C->cr4 | BT_CR4_PCIDE));
    B.flush_nonglobal = 0;
    OK(set_cr(3, 1ull << 63 | 0x5000));
    assert_int_equal(B.switches_kept, 1);
    assert_int_equal(C->cr3, 0x5000);
    OK(set_cr(3, 0x6001));
    assert_int_equal(B.switches, 2);
    assert_int_equal(B.switches_kept, 1);
    assert_int_equal(B.flush_nonglobal, 0);
    RAISES(BT_EX_GP, 0, set_cr(4, C->cr4 | 1ull << 40));
    OK(set_cr(8, 3));
    assert_int_equal(B.port_value, 3);
    RAISES(BT_EX_GP, 0, set_cr(8, 16));
}

static void cr4_flushes(void **s)
{
    (void)s;
    bench_prot(0);
    unsigned n = B.flush_all;
    OK(set_cr(4, C->cr4 | BT_CR4_PGE));
    assert_int_equal(B.flush_all, n + 1);
    OK(set_cr(4, C->cr4 | BT_CR4_TSD));
    assert_int_equal(B.flush_all, n + 1);
}

static void machine_status_word(void **s)
{
    (void)s;
    bench_real();
    B.op.rm = BT_RAX;
    C->gpr[BT_RAX] = 0xff01;
    OK(bt_op_lmsw(C, &B.op));
    assert_true(bt_pe(C));
    C->gpr[BT_RAX] = 0;
    OK(bt_op_lmsw(C, &B.op)); /* cannot clear PE */
    assert_true(bt_pe(C));
    C->cr0 |= BT_CR0_TS;
    OK(bt_op_clts(C, &B.op));
    assert_false(C->cr0 & BT_CR0_TS);
}

static void debug_registers(void **s)
{
    (void)s;
    bench_long(0);
    B.op.rm = BT_RAX;
    B.op.reg = 7;
    C->gpr[BT_RAX] = 1ull << 32;
    RAISES(BT_EX_GP, 0, bt_op_mov_dr_r(C, &B.op));
    C->gpr[BT_RAX] = 0xf3ff;
    OK(bt_op_mov_dr_r(C, &B.op));
    assert_int_equal(C->dr[7], 0x27ff); /* GD set; 10 reads as one, 11 12 14 15 as zero */
    B.op.reg = 0;
    RAISES(BT_EX_DB, 0, bt_op_mov_r_dr(C, &B.op));
    assert_int_equal(C->dr[6] & 0x2000, 0x2000);
    idt64(1, S_CODE64, 0x9000, SYS_INT32, 0, 0);
    OK(bt_deliver(C, 1, false, false, 0));
    assert_int_equal(C->dr[7], 0x7ff & ~0u);
    B.op.reg = 6;
    C->gpr[BT_RAX] = 0;
    OK(bt_op_mov_dr_r(C, &B.op));
    OK(bt_op_mov_r_dr(C, &B.op));
    assert_int_equal(C->gpr[BT_RAX], 0xffff0ff0);
    B.op.reg = 4; /* alias of DR6 */
    OK(bt_op_mov_r_dr(C, &B.op));
    C->cr4 |= BT_CR4_DE;
    RAISES(BT_EX_UD, 0, bt_op_mov_r_dr(C, &B.op));
}

static void hardware_breakpoints(void **s)
{
    (void)s;
    bench_long(0);
    assert_false(C->mode & BT_MODE_TF);
    C->dr[0] = 0x1000; /* fetch */
    C->dr[1] = DATA + 6; /* write, four bytes: aligned down */
    C->dr[2] = DATA + 16; /* read or write, eight bytes */
    B.op.rm = BT_RAX;
    B.op.reg = 7;
    C->gpr[BT_RAX] = 0x400 | 1 | 1 << 2 | 1 << 4 | 0xdu << 20 | 0xbu << 24;
    OK(bt_op_mov_dr_r(C, &B.op));
    assert_true(C->mode & BT_MODE_TF); /* one instruction at a time */
    assert_int_equal(bt_debug_exec(C, 0x1000), 1);
    assert_int_equal(bt_debug_exec(C, 0x1001), 0);
    bt_debug_data(C, DATA + 4, 1, false); /* a write is wanted */
    bt_debug_data(C, DATA + 3, 1, true);
    bt_debug_data(C, DATA + 8, 8, true);
    assert_int_equal(C->bp_hit, 0);
    bt_debug_data(C, DATA + 1, 4, true);
    assert_int_equal(C->bp_hit, 2);
    bt_debug_data(C, DATA + 23, 8, false);
    assert_int_equal(C->bp_hit, 6);
    C->gpr[BT_RAX] = 0x400;
    OK(bt_op_mov_dr_r(C, &B.op));
    assert_false(C->mode & BT_MODE_TF);
}

static void syscall_and_sysret(void **s)
{
    (void)s;
    bench_long(3);
    C->star = 0x0048ull << 48 | (uint64_t)S_CODE64 << 32;
    C->lstar = 0xffffffff81000000;
    C->sfmask = BT_IF | BT_TF | BT_DF;
    C->iflag = 1;
    sys_set_flags(C, BT_CF, BT_CF);
    OK(bt_op_syscall(C, &B.op));
    assert_int_equal(C->cpl, 0);
    assert_int_equal(C->rip, 0xffffffff81000000);
    assert_int_equal(C->gpr[BT_RCX], 0x1002);
    assert_int_equal(C->gpr[11], BT_IF | BT_CF | 2);
    assert_int_equal(bt_rflags(C), BT_CF | 2);
    assert_int_equal(C->seg[BT_SS].selector, S_CODE64 + 8);
    OK(bt_op_sysret(C, &B.op));
    assert_int_equal(C->cpl, 3);
    assert_int_equal(C->rip, 0x1002);
    assert_int_equal(C->seg[BT_CS].selector, 0x58 | 3);
    assert_int_equal(C->seg[BT_SS].selector, 0x50 | 3);
    assert_int_equal(C->iflag, 1);
    RAISES(BT_EX_GP, 0, bt_op_sysret(C, &B.op));
    bench_long(0);
    C->gpr[BT_RCX] = 0x800000000000;
    RAISES(BT_EX_GP, 0, bt_op_sysret(C, &B.op));
    B.op.opsize = 4;
    C->gpr[BT_RCX] = 0x100001234;
    C->gpr[11] = BT_IF;
    OK(bt_op_sysret(C, &B.op));
    assert_int_equal(C->rip, 0x1234);
    assert_int_equal(C->mode & BT_MODE_CODE, BT_MODE_CODE32);
    RAISES(BT_EX_UD, 0, bt_op_syscall(C, &B.op)); /* compatibility mode */
}

/* The trap goes by TF as SYSRET leaves it. */
static void sysret_and_tf(void **s)
{
    (void)s;
    for (unsigned before = 0; before < 2; before++)
        for (unsigned after = 0; after < 2; after++) {
            bench_long(0);
            C->star = 0x0048ull << 48;
            B.op.opsize = 8;
            C->sysflags |= before ? BT_TF : 0;
            C->gpr[BT_RCX] = 0x1234;
            C->gpr[11] = after ? BT_TF : 0;
            OK(bt_op_sysret(C, &B.op));
            assert_int_equal(C->int_done, after ? 2 : 1);
        }
}

/* With a processor of AMD's in CPUID programs expect its ways. */
static void fast_calls_of_amd(void **s)
{
    (void)s;
    bench_long(0);
    B.vm.amd = true;
    C->star = 0x0048ull << 48 | (uint64_t)S_CODE64 << 32 | 0x12345678;
    C->lstar = 0xffffffff81000000;
    C->cstar = 0xffffffff82000000;
    B.op.opsize = 4;
    C->gpr[BT_RCX] = 0x1234;
    C->gpr[11] = BT_IF;
    OK(bt_op_sysret(C, &B.op));
    OK(bt_op_syscall(C, &B.op)); /* from compatibility mode */
    assert_int_equal(C->rip, 0xffffffff82000000);
    assert_int_equal(C->mode & BT_MODE_CODE, BT_MODE_CODE64);
    C->sysenter_cs = S_CODE0;
    RAISES(BT_EX_UD, 0, bt_op_sysenter(C, &B.op));
    B.op.opsize = 8;
    C->gpr[BT_RCX] = 0x800000000000; /* faults at the target */
    OK(bt_op_sysret(C, &B.op));
    bench_prot(3);
    B.vm.amd = true;
    C->efer = BT_EFER_SCE;
    C->star = 0x001bull << 48 | (uint64_t)S_CODE0 << 32 | 0x12345678;
    C->iflag = 1;
    OK(bt_op_syscall(C, &B.op)); /* no long mode at all */
    assert_int_equal(C->rip, 0x12345678);
    assert_int_equal(C->cpl, 0);
    assert_int_equal(C->iflag, 0);
    OK(bt_op_sysret(C, &B.op));
    assert_int_equal(C->cpl, 3);
    assert_int_equal(C->iflag, 1);
    assert_int_equal(C->seg[BT_CS].selector, 0x1b);
    B.vm.amd = false;
    RAISES(BT_EX_UD, 0, bt_op_syscall(C, &B.op));
}

static void hypercalls(void **s)
{
    (void)s;
    bench_long(0);
    RAISES(BT_EX_UD, 0, bt_op_vmcall(C, &B.op));
    B.vm.hypercalls = true;
    C->gpr[BT_RAX] = 1ull << 40 | 1;
    C->gpr[BT_RBX] = 1ull << 41;
    OK(bt_op_vmcall(C, &B.op));
    assert_int_equal(C->gpr[BT_RAX], 3ull << 40 | 1);
    bench_prot(0);
    B.vm.hypercalls = true;
    C->gpr[BT_RAX] = 1ull << 40 | 1;
    C->gpr[BT_RBX] = 1ull << 41 | 2;
    OK(bt_op_vmcall(C, &B.op)); /* 32 bits of each */
    assert_int_equal(C->gpr[BT_RAX], 3);
    B.vm.hypercalls = false;
}

static void sysenter_and_sysexit(void **s)
{
    (void)s;
    bench_prot(3);
    RAISES(BT_EX_GP, 0, bt_op_sysenter(C, &B.op));
    C->sysenter_cs = S_CODE0;
    C->sysenter_esp = 0x11111111;
    C->sysenter_eip = 0x22222222;
    C->iflag = 1;
    OK(bt_op_sysenter(C, &B.op));
    assert_int_equal(C->cpl, 0);
    assert_int_equal(C->iflag, 0);
    assert_int_equal(C->gpr[BT_RSP], 0x11111111);
    assert_int_equal(C->rip, 0x22222222);
    C->gpr[BT_RCX] = STACK3;
    C->gpr[BT_RDX] = 0x3333;
    OK(bt_op_sysexit(C, &B.op));
    assert_int_equal(C->cpl, 3);
    assert_int_equal(C->seg[BT_CS].selector, S_CODE0 + 16 + 3);
    assert_int_equal(C->gpr[BT_RSP], STACK3);
    RAISES(BT_EX_GP, 0, bt_op_sysexit(C, &B.op));
}

static void bases_and_swapgs(void **s)
{
    (void)s;
    bench_long(0);
    OK(wrmsr(0xc0000101, 0xffff888000001000));
    OK(wrmsr(0xc0000102, 0x7000));
    assert_int_equal(C->seg_base[BT_GS], 0xffff888000001000);
    OK(bt_op_swapgs(C, &B.op));
    assert_int_equal(C->seg_base[BT_GS], 0x7000);
    assert_int_equal(C->kernel_gs_base, 0xffff888000001000);
    RAISES(BT_EX_GP, 0, wrmsr(0xc0000100, 0x800000000000));
    RAISES(BT_EX_GP, 0, wrmsr(0x12345, 0));
    B.op.rm = BT_RBX;
    C->gpr[BT_RBX] = 0x5000;
    RAISES(BT_EX_UD, 0, bt_op_wrfsbase(C, &B.op));
    C->cr4 |= BT_CR4_FSGSBASE;
    OK(bt_op_wrfsbase(C, &B.op));
    assert_int_equal(C->seg_base[BT_FS], 0x5000);
}

static void flags_obey_privilege(void **s)
{
    (void)s;
    bench_prot(3);
    C->iflag = 1;
    RAISES(BT_EX_GP, 0, bt_op_cli(C, &B.op));
    C->gpr[BT_RSP] -= 4;
    put(C->gpr[BT_RSP], 4, BT_IOPL | BT_CF | BT_ID | BT_VM | BT_VIP);
    OK(bt_op_popf(C, &B.op));
    assert_int_equal(bt_rflags(C), BT_CF | BT_ID | BT_IF | 2);
    C->sysflags |= BT_IOPL | BT_RF;
    OK(bt_op_cli(C, &B.op));
    OK(bt_op_pushf(C, &B.op));
    assert_int_equal(stack(0, 4), BT_CF | BT_ID | BT_IOPL | 2);
    OK(bt_op_sti(C, &B.op));
    assert_int_equal(C->shadow, 1);
    C->shadow = 0;
    OK(bt_op_sti(C, &B.op)); /* already set: no shadow */
    assert_int_equal(C->shadow, 0);
    bench_prot(0);
    C->gpr[BT_RSP] -= 4;
    put(C->gpr[BT_RSP], 4, BT_IOPL | BT_TF | BT_NT | BT_IF);
    OK(bt_op_popf(C, &B.op));
    assert_int_equal(bt_rflags(C), BT_IOPL | BT_TF | BT_NT | BT_IF | 2);
    assert_true(C->mode & BT_MODE_TF);
    RAISES(BT_EX_GP, 0, (C->cpl = 3, bt_op_hlt(C, &B.op)));
}

static void port(bool in, uint16_t p, unsigned size)
{
    B.op.reg = 1;
    B.op.opsize = (uint8_t)size;
    C->gpr[BT_RDX] = p;
    if (in)
        bt_op_in(C, &B.op);
    else
        bt_op_out(C, &B.op);
}

static void ports_and_their_bitmap(void **s)
{
    (void)s;
    bench_prot(3);
    memset(B.ram + TSS + 104, 0xff, 0x2000);
    put(TSS + 104 + 0x3f8 / 8, 1, 0x0f); /* 0x3fc..0x3ff free */
    RAISES(BT_EX_GP, 0, port(true, 0x3f8, 1));
    OK(port(true, 0x3fc, 4));
    assert_int_equal(C->gpr[BT_RAX], 0x11223345);
    assert_int_equal(B.port, 0x3fc);
    assert_int_equal(B.port_size, 4);
    assert_int_equal(C->fp_live, 0); /* state was saved before the host was called */
    RAISES(BT_EX_GP, 0, port(true, 0x3fd, 4));
    RAISES(BT_EX_GP, 0, port(false, 0xffff, 1));
    C->tr.limit = 104 + 0x3fc / 8;
    RAISES(BT_EX_GP, 0, port(true, 0x3fc, 1)); /* the second byte read lies outside */
    C->sysflags |= BT_IOPL;
    C->gpr[BT_RAX] = 0xaabbccdd;
    OK(port(false, 0x80, 2));
    assert_int_equal(B.port_value, 0xccdd);
    OK(port(true, 0x20, 1));
    assert_int_equal(C->gpr[BT_RAX], 0xaabbcc77);
    /* v86: the bitmap counts even with IOPL 3 */
    bench_v86();
    memset(B.ram + TSS + 104, 0xff, 0x2000);
    C->sysflags |= BT_IOPL;
    RAISES(BT_EX_GP, 0, port(true, 0x60, 1));
}

static void string_io(void **s)
{
    (void)s;
    bench_prot(0);
    B.op.rep = 0xf3;
    B.op.opsize = 2;
    C->gpr[BT_RDX] = 0x1f0;
    C->gpr[BT_RCX] = 3;
    C->gpr[BT_RDI] = DATA;
    OK(bt_op_ins(C, &B.op));
    assert_int_equal(C->gpr[BT_RCX], 0);
    assert_int_equal(C->gpr[BT_RDI], DATA + 6);
    assert_int_equal(get(DATA + 2, 2), 0x3346);
    /* A fault in the middle: no port is read for the element that cannot be stored */
    C->gpr[BT_RDI] = DATA + 0x1000 - 4;
    C->gpr[BT_RCX] = 4;
    B.pf_page = DATA + 0x1000;
    B.ports = 0;
    RAISES(BT_EX_PF, 2, bt_op_ins(C, &B.op));
    assert_int_equal(B.ports, 2);
    assert_int_equal(C->gpr[BT_RCX], 2);
    assert_int_equal(C->gpr[BT_RDI], DATA + 0x1000);
    B.pf_page = ~0ull;
    C->dflag = 1;
    C->gpr[BT_RSI] = DATA + 2;
    C->gpr[BT_RCX] = 2;
    OK(bt_op_outs(C, &B.op));
    assert_int_equal(B.port_value, get(DATA, 2));
    assert_int_equal((uint32_t)C->gpr[BT_RSI], DATA - 2);
    /* Interruptible */
    C->dflag = 0;
    C->gpr[BT_RCX] = 5000;
    C->gpr[BT_RSI] = DATA;
    atomic_store(&C->pending, BT_PEND_IRQ);
    RUN(bt_op_outs(C, &B.op));
    assert_int_equal(B.vector, -2);
    assert_int_equal(C->gpr[BT_RCX], 5000 - 1024);
}

static void extended_control(void **s)
{
    (void)s;
    bench_long(0);
    C->gpr[BT_RCX] = 0;
    OK(bt_op_xgetbv(C, &B.op));
    assert_int_equal(C->gpr[BT_RAX], B.vm.host_xcr0);
#define XSETBV(v) (C->gpr[BT_RCX] = 0, C->gpr[BT_RAX] = (v), C->gpr[BT_RDX] = 0, bt_op_xsetbv(C, &B.op))
    RAISES(BT_EX_GP, 0, XSETBV(2));      /* x87 cannot go */
    RAISES(BT_EX_GP, 0, XSETBV(5));      /* AVX without SSE */
    RAISES(BT_EX_GP, 0, XSETBV(0x27));   /* half of AVX-512 */
    RAISES(BT_EX_GP, 0, XSETBV(1 << 8)); /* unknown */
    OK(XSETBV(3));
    assert_true(C->mode & BT_MODE_NOAVX);
    OK(XSETBV(7));
    assert_false(C->mode & BT_MODE_NOAVX);
    C->cr4 &= ~BT_CR4_OSXSAVE;
    RAISES(BT_EX_UD, 0, XSETBV(3));
}

static void invalidations(void **s)
{
    (void)s;
    bench_long(0);
    B.op.is_mem = 1;
    C->op_ea = 0x5000;
    OK(bt_op_invlpg(C, &B.op));
    assert_int_equal(B.invlpg, 1);
    C->op_ea = DATA;
    B.op.reg = BT_RAX;
    C->gpr[BT_RAX] = 4;
    RAISES(BT_EX_GP, 0, bt_op_invpcid(C, &B.op));
    C->gpr[BT_RAX] = 0;
    put(DATA, 8, 1);
    RAISES(BT_EX_GP, 0, bt_op_invpcid(C, &B.op)); /* PCID without PCIDE */
    put(DATA, 8, 0);
    OK(bt_op_invpcid(C, &B.op));
    C->gpr[BT_RAX] = 2;
    OK(bt_op_invpcid(C, &B.op));
    assert_int_equal(B.flush_all, 1);
    C->cr4 |= BT_CR4_PCIDE;
    put(DATA, 8, 7);
    C->gpr[BT_RAX] = 0;
    OK(bt_op_invpcid(C, &B.op));
    C->gpr[BT_RAX] = 1;
    OK(bt_op_invpcid(C, &B.op));
    C->gpr[BT_RAX] = 3;
    OK(bt_op_invpcid(C, &B.op));
    assert_int_equal(B.pcid, 7);
    assert_int_equal(B.invlpg_pcid, 2);
    assert_int_equal(B.flush_pcid, 1);
    assert_int_equal(B.flush_pcids, 1);
    assert_int_equal(B.flush_all, 1);
    C->cr4 |= BT_CR4_TSD;
    OK(bt_op_rdtsc(C, &B.op));
    C->cpl = 3;
    RAISES(BT_EX_GP, 0, bt_op_rdtsc(C, &B.op));
}

int test_machine(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_way_into_long_mode),
        cmocka_unit_test(cr3_and_pcid),
        cmocka_unit_test(cr4_flushes),
        cmocka_unit_test(machine_status_word),
        cmocka_unit_test(debug_registers),
        cmocka_unit_test(hardware_breakpoints),
        cmocka_unit_test(syscall_and_sysret),
        cmocka_unit_test(sysenter_and_sysexit),
        cmocka_unit_test(bases_and_swapgs),
        cmocka_unit_test(fast_calls_of_amd),
        cmocka_unit_test(hypercalls),
        cmocka_unit_test(sysret_and_tf),
        cmocka_unit_test(flags_obey_privilege),
        cmocka_unit_test(ports_and_their_bitmap),
        cmocka_unit_test(string_io),
        cmocka_unit_test(extended_control),
        cmocka_unit_test(invalidations),
    };
    return cmocka_run_group_tests_name("machine state", tests, NULL, NULL);
}
