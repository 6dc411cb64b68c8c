/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_sysops.c - bench and main program of the C ops' tests.
 */
#include "test_sysops.h"

struct bench B;

/* --- what the rest of the engine would give ----------------------------------------- */
_Noreturn static void raise_it(int vector, bool has_error, uint32_t error)
{
    B.vector = vector;
    B.has_error = has_error;
    B.error = error;
    longjmp(B.jump, 1);
}

void bt_raise(struct bt_vcpu *c, unsigned vector)
{
    (void)c;
    raise_it((int)vector, false, 0);
}

void bt_raise_err(struct bt_vcpu *c, unsigned vector, uint32_t error)
{
    (void)c;
    raise_it((int)vector, true, error);
}

void bt_restart(struct bt_vcpu *c)
{
    (void)c;
    raise_it(-2, false, 0);
}

static uint8_t *at(uint64_t lin, size_t n, unsigned acc)
{
    for (uint64_t p = lin & ~0xfffull; p < lin + n; p += 4096)
        if (p == B.pf_page || p >= RAM_SIZE) {
            B.c.cr2 = p < lin ? lin : p;
            raise_it(BT_EX_PF, true, (acc & BT_ACC_WRITE ? 2 : 0) | (acc & BT_ACC_USER ? 4 : 0));
        }
    return B.ram + lin;
}

uint64_t bt_read(struct bt_vcpu *c, uint64_t lin, unsigned size, unsigned acc)
{
    const uint8_t *p = at(lin, size, acc);
    (void)c;
    return size == 8 ? sys_get64(p) : size == 4 ? sys_get32(p) : size == 2 ? sys_get16(p) : *p;
}

void bt_write(struct bt_vcpu *c, uint64_t lin, unsigned size, uint64_t v, unsigned acc)
{
    (void)c;
    sys_copy(at(lin, size, acc | BT_ACC_WRITE), &v, size);
}

void bt_read_bytes(struct bt_vcpu *c, uint64_t lin, void *buf, size_t n, unsigned acc)
{
    (void)c;
    sys_copy(buf, at(lin, n, acc), n);
}

void bt_write_bytes(struct bt_vcpu *c, uint64_t lin, const void *buf, size_t n, unsigned acc)
{
    (void)c;
    sys_copy(at(lin, n, acc | BT_ACC_WRITE), buf, n);
}

void bt_probe(struct bt_vcpu *c, uint64_t lin, size_t n, unsigned acc)
{
    (void)c;
    at(lin, n, acc);
}

void *bt_host_ptr(struct bt_vcpu *c, uint64_t lin, size_t n, unsigned acc)
{
    (void)c;
    assert_true((lin & 0xfff) + n <= 4096);
    uint8_t *p = at(lin, n, acc);
    return (lin & ~0xfffull) == B.no_ptr_page ? NULL : p;
}

void bt_tlb_flush_all(struct bt_vcpu *c)
{
    (void)c;
    B.flush_all++;
}

void bt_tlb_flush_nonglobal(struct bt_vcpu *c)
{
    (void)c;
    B.flush_nonglobal++;
}

void bt_tlb_invlpg(struct bt_vcpu *c, uint64_t lin)
{
    (void)c;
    (void)lin;
    B.invlpg++;
}

void bt_tlb_switch(struct bt_vcpu *c, bool keep)
{
    (void)c;
    B.switches++;
    B.switches_kept += keep;
}

void bt_tlb_flush_pcid(struct bt_vcpu *c, unsigned pcid)
{
    (void)c;
    B.pcid = pcid;
    B.flush_pcid++;
}

void bt_tlb_invlpg_pcid(struct bt_vcpu *c, unsigned pcid, uint64_t lin)
{
    (void)c;
    (void)lin;
    B.pcid = pcid;
    B.invlpg_pcid++;
}

void bt_tlb_flush_pcids(struct bt_vcpu *c)
{
    (void)c;
    B.flush_pcids++;
}

void bt_quiescent_enter(struct bt_vcpu *c) { (void)c; }
void bt_quiescent_leave(struct bt_vcpu *c) { (void)c; }

void bt_fp_save(struct bt_vcpu *c)
{
    if (!c->fp_live)
        return;
    __asm__ volatile("xsave64 (%0)" ::"r"(c->xsave), "a"((uint32_t)c->vm->host_xcr0), "d"(0) : "memory");
    c->fp_live = 0;
}

uint64_t bt_pv_hypercall(struct bt_vcpu *c, uint64_t nr, const uint64_t a[4])
{
    (void)c;
    return nr + a[0];
}
void bt_cpuid(struct bt_vcpu *c, uint32_t leaf, uint32_t sub, uint32_t out[4])
{
    (void)c;
    __asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(sub));
    if (leaf == 7)
        out[1] &= ~(1u << 20);
    if (leaf == 0xd && sub == 0) {
        out[0] &= (uint32_t)B.vm.host_xcr0;
        out[3] = 0;
    }
    if (leaf == 1)
        out[2] |= 1u << 17 | 1u << 26;
    if (leaf == 0x80000008)
        out[0] = (out[0] & ~0xffu) | 40;
}

bool bt_rdmsr(struct bt_vcpu *c, uint32_t index, uint64_t *value)
{
    (void)c;
    *value = index;
    return index < 0x1000;
}

bool bt_wrmsr(struct bt_vcpu *c, uint32_t index, uint64_t value)
{
    (void)c;
    (void)value;
    return index < 0x1000;
}

uint64_t bt_apic_get_tpr(struct bt_vcpu *c)
{
    (void)c;
    return 5;
}

void bt_apic_set_tpr(struct bt_vcpu *c, uint64_t cr8)
{
    (void)c;
    B.port_value = (uint32_t)cr8;
}

bool bt_irqchip_pio(struct bt_vcpu *c, uint16_t port, unsigned size, bool write, uint32_t *value)
{
    (void)c;
    (void)size;
    if (port != 0x20)
        return false;
    if (!write)
        *value = 0x77;
    return true;
}

static void io_read(struct hvx_vm *vm, enum hvx_space space, uint64_t addr, unsigned size, void *value)
{
    (void)vm;
    (void)space;
    B.port = (uint16_t)addr;
    B.port_size = size;
    B.ports++;
    uint32_t v = 0x11223344 + B.ports;
    sys_copy(value, &v, size);
}

static void io_write(struct hvx_vm *vm, enum hvx_space space, uint64_t addr, unsigned size, const void *value)
{
    (void)vm;
    (void)space;
    B.port = (uint16_t)addr;
    B.port_size = size;
    B.port_value = 0;
    B.ports++;
    sys_copy(&B.port_value, value, size);
}

/* --- tables --------------------------------------------------------------------------------- */
uint64_t desc(uint32_t base, uint32_t limit, uint32_t attr)
{
    if (attr & SYS_G)
        limit >>= 12;
    return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)(attr & 0xf0ff) << 40 |
           (uint64_t)(limit >> 16 & 15) << 48 | (uint64_t)(base >> 24) << 56;
}

uint64_t gate(uint32_t sel, uint32_t off, unsigned type, unsigned dpl)
{
    return (off & 0xffff) | (uint64_t)sel << 16 | (uint64_t)(0x80 | dpl << 5 | type) << 40 |
           (uint64_t)(off >> 16) << 48;
}

void put(uint64_t addr, unsigned size, uint64_t v) { sys_copy(B.ram + addr, &v, size); }

uint64_t get(uint64_t addr, unsigned size)
{
    uint64_t v = 0;
    sys_copy(&v, B.ram + addr, size);
    return v;
}

void idt32(unsigned vector, uint64_t g) { put(IDT + vector * 8, 8, g); }

void idt64(unsigned vector, uint32_t sel, uint64_t off, unsigned type, unsigned dpl, unsigned ist)
{
    put(IDT + vector * 16, 8, gate(sel, (uint32_t)off, type, dpl) | (uint64_t)ist << 32);
    put(IDT + vector * 16 + 8, 8, off >> 32);
}

static void bench_gdt(void)
{
    static const struct {
        uint32_t sel, base, limit, attr;
    } t[] = {
        {S_CODE0, 0, 0xffffffff, 0xc09a},  {S_DATA0, 0, 0xffffffff, 0xc092}, {S_CODE3, 0, 0xffffffff, 0xc0fa},
        {S_DATA3, 0, 0xffffffff, 0xc0f2},  {S_TSS, TSS, 0x2080, 0x008b},     {S_CODE64, 0, 0xffffffff, 0xa09a},
        {S_DATA64, 0, 0xffffffff, 0xc092}, {S_CODE64_3, 0, 0xffffffff, 0xa0fa}, {S_CONFORM, 0, 0xffffffff, 0xc09e},
        {S_TSS2, TSS2, 0x67, 0x0089},      {S_RODATA, DATA, 0xff, 0x40f0},   {S_XONLY, 0, 0xffff, 0x4098},
        {S_ABSENT, 0, 0xffff, 0x4012},     {S_LDT, LDT, 0xff, 0x0082},       {S_CODE16, CODE, 0xffff, 0x009a},
        {S_DATA16, DATA, 0xffff, 0x0092},  {S_DOWN, DATA, 0x1fff, 0x4096},   {S_CODE32C_3, 0, 0xffffffff, 0xc0fa},
    };
    for (unsigned i = 0; i < sizeof(t) / sizeof(t[0]); i++)
        put(GDT + (t[i].sel & ~7u), 8, desc(t[i].base, t[i].limit, t[i].attr));
}

static void bench_reset(void)
{
    memset(&B, 0, sizeof(B));
    B.pf_page = B.no_ptr_page = ~0ull;
    B.host.io_read = io_read;
    B.host.io_write = io_write;
    B.vm.host = B.c.host = &B.host;
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    B.vm.host_xcr0 = lo & 0xe7;
    B.vm.mxcsr_mask = 0xffff;
    B.c.vm = &B.vm;
    B.c.fp_live = 1;
    B.c.cr0 = BT_CR0_NE | 0x10;
    B.c.cr4 = BT_CR4_OSFXSR | BT_CR4_OSXSAVE;
    B.c.xcr0 = B.vm.host_xcr0;
    B.c.gdt_base = GDT;
    B.c.gdt_limit = S_END - 1;
    B.c.idt_base = IDT;
    B.c.idt_limit = 0xfff;
    B.c.ldtr.attr = SYS_UNUSABLE;
    B.c.dr[6] = 0xffff0ff0;
    B.c.dr[7] = 0x400;
    bt_set_rflags(&B.c, 2);
    B.op = (struct bt_op){.opsize = 4, .addrsize = 4, .seg = BT_DS, .next_rip = 0x1002, .len = 2};
    bench_gdt();
    B.c.rip = 0x1000;
}

static void refresh(void)
{
    B.c.mode = ~0u;
    bt_mode_update(&B.c);
}

void bench_real(void)
{
    bench_reset();
    for (unsigned i = 0; i < 6; i++)
        B.c.seg[i] = (struct hvx_segment){.limit = 0xffff, .attr = 0x93};
    sys_real_seg(&B.c, BT_CS, CODE >> 4);
    sys_real_seg(&B.c, BT_SS, 0x2000);
    B.c.idt_base = 0;
    B.c.idt_limit = 0x3ff;
    B.c.gpr[BT_RSP] = 0x1000;
    B.op.opsize = B.op.addrsize = 2;
    refresh();
}

static void load(unsigned seg, uint32_t sel) { sys_seg_cache(&B.c.seg[seg], sel, get(GDT + (sel & ~7u), 8)); }

void bench_prot(unsigned cpl)
{
    bench_reset();
    B.c.cr0 |= BT_CR0_PE;
    B.c.cpl = (uint8_t)cpl;
    load(BT_CS, cpl ? S_CODE3 : S_CODE0);
    for (unsigned i = 0; i < 6; i++)
        if (i != BT_CS)
            load(i, cpl ? S_DATA3 : S_DATA0);
    sys_seg_cache(&B.c.tr, S_TSS, get(GDT + S_TSS, 8));
    put(TSS + 4, 4, STACK0);
    put(TSS + 8, 2, S_DATA0);
    put(TSS + 102, 2, 104);
    B.c.gpr[BT_RSP] = cpl ? STACK3 : STACK0 - 0x100;
    refresh();
}

void bench_long(unsigned cpl)
{
    bench_prot(cpl);
    B.c.cr0 |= BT_CR0_PG;
    B.c.cr4 |= BT_CR4_PAE;
    B.c.efer = BT_EFER_LME | BT_EFER_LMA | BT_EFER_SCE;
    load(BT_CS, cpl ? S_CODE64_3 : S_CODE64);
    put(TSS + 4, 8, STACK0);
    put(TSS + 0x24, 8, STACK0 + 0x5008); /* IST1, not aligned */
    B.op.opsize = B.op.addrsize = 8;
    refresh();
}

void bench_v86(void)
{
    bench_prot(3);
    B.c.sysflags |= BT_VM;
    for (unsigned i = 0; i < 6; i++)
        sys_v86_seg(&B.c, i, 0x3000 + i * 0x100);
    B.c.gpr[BT_RSP] = 0x1000;
    B.op.opsize = B.op.addrsize = 2;
    refresh();
}

int main(void) { return test_transfers() | test_machine() | test_data(); }
