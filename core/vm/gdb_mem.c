/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/gdb_mem.c - a page walk for the debugger (SDM volume 3, chapter 4).
 */
#include "core/vm/gdb.h"

#define CR0_PG 0x80000000u
#define CR4_PSE 0x10u
#define CR4_PAE 0x20u
#define CR4_LA57 0x1000u
#define EFER_LMA 0x400u
#define PRESENT 1u
#define LARGE 0x80u
#define FRAME 0x000ffffffffff000ull

typedef int (*read_fn)(void *opaque, uint64_t gpa, void *buf, size_t n);

static bool walk32(const struct hvx_vcpu_regs *r, uint32_t lin, uint64_t *gpa, uint64_t *page, read_fn read, void *o)
{
    uint32_t e;

    if (read(o, (r->cr3 & 0xfffff000u) + (lin >> 22) * 4, &e, 4) < 0 || !(e & PRESENT))
        return false;
    if ((e & LARGE) && (r->cr4 & CR4_PSE)) {
        *page = 4u << 20;
        *gpa = (e & 0xffc00000u) | (uint64_t)(e >> 13 & 0xff) << 32 | (lin & 0x3fffffu);
        return true;
    }
    if (read(o, (e & 0xfffff000u) + (lin >> 12 & 0x3ff) * 4, &e, 4) < 0 || !(e & PRESENT))
        return false;
    *page = 4096;
    *gpa = (e & 0xfffff000u) | (lin & 0xfffu);
    return true;
}

/* levels: 3 with PAE alone, else 4 or 5. */
static bool walk64(const struct hvx_vcpu_regs *r, uint64_t lin, unsigned levels, uint64_t *gpa, uint64_t *page,
                   read_fn read, void *o)
{
    uint64_t table = levels == 3 ? r->cr3 & 0xffffffe0u : r->cr3 & FRAME, e;

    for (unsigned level = levels; level >= 1; level--) {
        unsigned shift = 12 + 9 * (level - 1), mask = levels == 3 && level == 3 ? 3 : 0x1ff;
        unsigned index = (unsigned)(lin >> shift) & mask;
        if (read(o, table + index * 8, &e, 8) < 0 || !(e & PRESENT))
            return false;
        if (level == 1 || ((e & LARGE) && (level == 2 || (level == 3 && levels > 3)))) {
            *page = 1ull << shift;
            *gpa = (e & FRAME & ~(*page - 1)) | (lin & (*page - 1));
            return true;
        }
        table = e & FRAME;
    }
    return false;
}

bool hvx_gdb_translate(const struct hvx_vcpu_regs *r, uint64_t lin, uint64_t *gpa, uint64_t *run, read_fn read,
                       void *opaque)
{
    bool long_mode = (r->efer & EFER_LMA) != 0, found = true;
    uint64_t page = 4096;

    if (!long_mode)
        lin = (uint32_t)lin;
    if (!(r->cr0 & CR0_PG))
        *gpa = lin;
    else if (long_mode)
        found = walk64(r, lin, r->cr4 & CR4_LA57 ? 5 : 4, gpa, &page, read, opaque);
    else if (r->cr4 & CR4_PAE)
        found = walk64(r, lin, 3, gpa, &page, read, opaque);
    else
        found = walk32(r, (uint32_t)lin, gpa, &page, read, opaque);
    if (found)
        *run = page - (lin & (page - 1));
    return found;
}
