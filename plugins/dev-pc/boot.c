/* SPDX-License-Identifier: Apache-2.0
 *
 * boot.c - starting a kernel without firmware: read the files, recognise the
 * kind, and at each reset leave the board and vCPU 0 as firmware and a boot
 * loader would have.
 */
#include "pc.h"

#include <stdlib.h>
#include <string.h>

static int read_files(struct pc *pc, struct hvx_error *err)
{
    int rc = pc_buf_file(&pc->kernel, pc->info.kernel, PC_MAX_KERNEL_BYTES, "kernel", err);
    if (rc)
        return rc;
    if (!boot_is_linux(&pc->kernel) && !boot_is_multiboot(&pc->kernel))
        return hvx_fail(err, -ENOEXEC, "kernel %s: neither a Linux bzImage nor a multiboot file", pc->info.kernel);
    if (pc->info.initrd && pc->info.initrd[0]) {
        rc = pc_buf_file(&pc->initrd, pc->info.initrd, PC_MAX_INITRD_BYTES, "initrd", err);
        if (rc)
            return rc;
    }
    if (pc->info.append && strlen(pc->info.append) >= BOOT_CMDLINE_MAX)
        return hvx_fail(err, -E2BIG, "kernel %s: a command line of %zu characters, at most %u are possible",
                        pc->info.kernel, strlen(pc->info.append), BOOT_CMDLINE_MAX - 1);
    return 0;
}

void boot_destroy(struct pc *pc)
{
    pc_buf_free(&pc->kernel);
    pc_buf_free(&pc->initrd);
}

int boot_write(struct pc *pc, uint64_t gpa, const void *p, size_t n, const char *what, struct hvx_error *err)
{
    if (pc->host->mem_write(pc->vm, gpa, p, n))
        return hvx_fail(err, -ENOMEM, "starting %s: %s needs %zu bytes at %#llx, where there is no RAM; give the guest "
                        "more memory", pc->info.kernel, what, n, (unsigned long long)gpa);
    return 0;
}

static struct hvx_segment flat(uint16_t selector, uint16_t type)
{
    uint16_t attr = (uint16_t)(type | 0xc090);
    return (struct hvx_segment){.base = 0, .limit = UINT32_MAX, .selector = selector, .attr = attr};
}

void boot_regs32(struct pc *pc, struct hvx_vcpu_regs *r, uint32_t eip)
{
    (void)pc;
    memset(r, 0, sizeof(*r));
    r->size = sizeof(*r);
    r->rip = eip;
    r->rflags = 2;
    for (unsigned i = 0; i < 6; i++)
        r->seg[i] = flat(0x18, 0x03); /* data, writable, accessed */
    r->seg[HVX_CS] = flat(0x10, 0x0b);
    r->ldtr = (struct hvx_segment){.limit = 0xffff, .attr = 0x0082};
    r->tr = (struct hvx_segment){.limit = 0xffff, .attr = 0x008b};
    r->gdt_base = BOOT_GDT;
    r->gdt_limit = 4 * 8 - 1;
    r->cr0 = 0x11; /* PE, ET */
    r->xcr0 = 1;
    r->dr[6] = 0xffff0ff0;
    r->dr[7] = 0x400;
    r->apic_base = PC_LAPIC_BASE | 0x900; /* enabled, bootstrap processor */
    r->pat = 0x0007040600070406ull;
    r->misc_enable = 1;
    /* The local APIC in virtual wire mode, by register number (offset / 16). */
    r->apic[0x03] = 0x00050014;                               /* version: must be there for the page to count */
    r->apic[0x0e] = UINT32_MAX;                               /* destination format: flat */
    r->apic[0x0f] = 0x10f;                                    /* enabled, spurious vector 15 */
    r->apic[0x32] = r->apic[0x33] = r->apic[0x34] = r->apic[0x37] = 0x10000; /* masked */
    r->apic[0x35] = 0x700;                                    /* LINT0: ExtINT */
    r->apic[0x36] = 0x400;                                    /* LINT1: NMI */
}

static int write_gdt(struct pc *pc, struct hvx_error *err)
{
    static const uint64_t gdt[4] = {0, 0, 0x00cf9b000000ffffull, 0x00cf93000000ffffull};
    return boot_write(pc, BOOT_GDT, gdt, sizeof(gdt), "the descriptor table", err);
}

/* The files into RAM, their entry state into *r. */
static int load(struct pc *pc, struct hvx_vcpu_regs *r, struct hvx_error *err)
{
    i440fx_open_shadow(pc->i440fx);
    int rc = write_gdt(pc, err);
    if (rc)
        return rc;
    return boot_is_linux(&pc->kernel) ? boot_linux(pc, r, err) : boot_multiboot(pc, r, err);
}

static struct hvx_vcpu_regs *new_regs(void)
{
    return aligned_alloc(64, (sizeof(struct hvx_vcpu_regs) + 63) & ~(size_t)63);
}

/* Loads once before the machine runs, so that whatever does not fit is refused now and not at the reset. */
static int rehearse(struct pc *pc, struct hvx_error *err)
{
    struct hvx_vcpu_regs *r = new_regs();
    if (!r)
        return hvx_fail(err, -ENOMEM, "starting %s: no memory", pc->info.kernel);
    int rc = load(pc, r, err);
    free(r);
    return rc;
}

int boot_create(struct pc *pc, struct hvx_error *err)
{
    int rc = read_files(pc, err);
    return rc ? rc : rehearse(pc, err);
}

int boot_start(struct pc *pc, struct hvx_error *err)
{
    struct hvx_vcpu_regs *r = new_regs();
    if (!r)
        return hvx_fail(err, -ENOMEM, "starting %s: no memory", pc->info.kernel);
    piix3_default_routes(pc->piix3);
    piix4_pm_default_base(pc->pm);
    i8042_default_mode(pc->i8042);
    boot_pci(pc);
    int rc = load(pc, r, err);
    if (rc == 0) {
        rc = pc->host->vcpu_set_regs(pc->vm, 0, r, sizeof(*r));
        if (rc)
            hvx_fail(err, rc, "starting %s: vCPU 0 does not take its first state: %s", pc->info.kernel, strerror(-rc));
    }
    free(r);
    return rc;
}
