/* SPDX-License-Identifier: Apache-2.0
 *
 * Guest RAM between guard pages, and address-space dispatch.
 */
#include "internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096u

static void ram_add(struct ram_block *b, uint64_t gpa, uint64_t n)
{
    if (!n)
        return;
    b->map_n = n + 2 * PAGE;
    b->map = mmap(NULL, b->map_n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (b->map == MAP_FAILED)
        test_bug("mmap of %llu bytes of guest RAM: %s", (unsigned long long)n, strerror(errno));
    b->hva = (uint8_t *)b->map + PAGE;
    if (mprotect(b->hva, n, PROT_READ | PROT_WRITE) < 0)
        test_bug("mprotect of guest RAM: %s", strerror(errno));
    b->gpa = gpa;
    b->n = n;
}

void test_mem_init(struct hvx_vm *vm)
{
    ram_add(&vm->ram[0], 0, vm->params.ram_below_4g);
    ram_add(&vm->ram[1], 1ull << 32, vm->params.ram_above_4g);
}

void test_mem_done(struct hvx_vm *vm)
{
    for (int i = 0; i < 2; i++)
        if (vm->ram[i].map)
            munmap(vm->ram[i].map, vm->ram[i].map_n);
}

static uint8_t *ram_at(struct hvx_vm *vm, uint64_t gpa, uint64_t *run)
{
    for (int i = 0; i < 2; i++) {
        struct ram_block *b = &vm->ram[i];
        if (b->n && gpa >= b->gpa && gpa - b->gpa < b->n) {
            *run = b->n - (gpa - b->gpa);
            return b->hva + (gpa - b->gpa);
        }
    }
    return NULL;
}

static struct hvx_region *region_at(struct hvx_vm *vm, enum hvx_space space, uint64_t addr)
{
    for (struct hvx_region *r = vm->regions; r; r = r->next)
        if (r->space == space && r->addr != ~0ull && addr >= r->addr && addr - r->addr < r->n)
            return r;
    return NULL;
}

static bool pam_says_ram(struct hvx_vm *vm, uint64_t gpa, bool write)
{
    if (gpa < TEST_PAM_BASE || gpa >= TEST_PAM_BASE + TEST_PAM_PAGES * PAGE)
        return false;
    return vm->pam[(gpa - TEST_PAM_BASE) / PAGE] & (write ? 2 : 1);
}

/* What answers at gpa: *r a region or mapping, or a RAM pointer, or neither (a
 * hole). *run: bytes up to the next possible change. */
static uint8_t *resolve(struct hvx_vm *vm, uint64_t gpa, bool write, struct hvx_region **r, uint64_t *run)
{
    *run = PAGE - gpa % PAGE;
    *r = pam_says_ram(vm, gpa, write) ? NULL : region_at(vm, HVX_SPACE_MMIO, gpa);
    if (*r) {
        uint64_t left = (*r)->n - (gpa - (*r)->addr);
        if (left < *run)
            *run = left;
        return (*r)->ops ? NULL : (*r)->hva + (gpa - (*r)->addr);
    }
    for (struct hvx_region *o = vm->regions; o; o = o->next)
        if (o->space == HVX_SPACE_MMIO && o->addr != ~0ull && o->addr > gpa && o->addr - gpa < *run)
            *run = o->addr - gpa;
    uint64_t ram_run;
    uint8_t *p = ram_at(vm, gpa, &ram_run);
    if (p && ram_run < *run)
        *run = ram_run;
    return p;
}

int test_mem_read(struct hvx_vm *vm, uint64_t gpa, void *buf, size_t n)
{
    int result = 0;
    uint8_t *out = buf;
    while (n) {
        struct hvx_region *r;
        uint64_t run;
        uint8_t *p = resolve(vm, gpa, false, &r, &run);
        if (run > n)
            run = n;
        if (p) {
            memcpy(out, p, run);
        } else {
            memset(out, 0xff, run);
            result = -EFAULT;
        }
        gpa += run;
        out += run;
        n -= run;
    }
    return result;
}

int test_mem_write(struct hvx_vm *vm, uint64_t gpa, const void *buf, size_t n)
{
    int result = 0;
    const uint8_t *in = buf;
    __atomic_add_fetch(&vm->dirty_bytes, n, __ATOMIC_RELAXED);
    while (n) {
        struct hvx_region *r;
        uint64_t run;
        uint8_t *p = resolve(vm, gpa, true, &r, &run);
        if (run > n)
            run = n;
        if (p && !(r && r->read_only))
            memcpy(p, in, run);
        else
            result = -EFAULT;
        gpa += run;
        in += run;
        n -= run;
    }
    return result;
}

static void *host_mem_ptr(struct hvx_vm *vm, uint64_t gpa, size_t *n)
{
    struct hvx_region *r;
    uint64_t run;
    uint8_t *p = resolve(vm, gpa, true, &r, &run);
    if (!p || r)
        return NULL;
    size_t total = 0;
    uint64_t at = gpa;
    while (total < *n) {
        uint8_t *q = resolve(vm, at, true, &r, &run);
        if (r || q != p + total)
            break;
        total += run;
        at += run;
    }
    if (total < *n)
        *n = total;
    return p;
}

static void host_mem_dirty(struct hvx_vm *vm, uint64_t gpa, size_t n)
{
    struct hvx_region *r;
    uint64_t run;
    if (n && !resolve(vm, gpa, true, &r, &run))
        test_bug("mem_dirty: nothing at %#llx", (unsigned long long)gpa);
    __atomic_add_fetch(&vm->dirty_bytes, n, __ATOMIC_RELAXED);
}

static int host_mem_discard(struct hvx_vm *vm, uint64_t gpa, uint64_t n)
{
    size_t have = n;
    if (!n || (gpa | n) % 4096)
        return -EINVAL;
    uint8_t *p = host_mem_ptr(vm, gpa, &have);
    if (!p || have < n)
        return -EFAULT;
    memset(p, 0, n);
    vm->discarded_bytes += n;
    return 0;
}

uint64_t hvxtest_discarded_bytes(struct hvx_vm *vm)
{
    return vm->discarded_bytes;
}

uint64_t hvxtest_dirty_bytes(struct hvx_vm *vm)
{
    return __atomic_load_n(&vm->dirty_bytes, __ATOMIC_RELAXED);
}

uint8_t *hvxtest_ram(struct hvx_vm *vm)
{
    return vm->ram[0].hva;
}

void *hvxtest_mem(struct hvx_vm *vm, uint64_t gpa, size_t n)
{
    uint64_t run;
    uint8_t *p = ram_at(vm, gpa, &run);
    if (!p || run < n)
        test_bug("hvxtest_mem: %#llx..+%zu is not RAM", (unsigned long long)gpa, n);
    return p;
}

/* --- regions --------------------------------------------------------------------- */
int test_region_add(struct hvx_vm *vm, enum hvx_space space, uint64_t addr, uint64_t n, uint32_t flags,
                    const char *name, const struct hvx_region_ops *ops, void *opaque, struct hvx_region **out,
                    struct hvx_error *err)
{
    if (!n || !ops || !ops->read || !ops->write || !name || !out)
        test_bug("region_add(%s): size, ops->read, ops->write, name and out are required", name ? name : "?");
    if (space == HVX_SPACE_PIO && addr != ~0ull && (addr > 0xffff || n > 0x10000 - addr))
        return hvx_fail(err, -EINVAL, "region %s: ports %#llx+%llu are outside 0..0xffff", name,
                        (unsigned long long)addr, (unsigned long long)n);
    for (struct hvx_region *r = vm->regions; r; r = r->next)
        if (addr != ~0ull && r->ops && r->space == space && r->addr != ~0ull && addr < r->addr + r->n &&
            r->addr < addr + n && !strcmp(r->name, name))
            test_bug("region_add: %s at %#llx overlaps itself", name, (unsigned long long)addr);
    struct hvx_region *r = test_alloc(sizeof(*r));
    *r = (struct hvx_region){.next = vm->regions, .vm = vm, .space = space, .addr = addr, .n = n, .flags = flags,
                             .ops = ops, .opaque = opaque};
    snprintf(r->name, sizeof(r->name), "%s", name);
    vm->regions = r;
    *out = r;
    return 0;
}

static int host_region_add(struct hvx_vm *vm, enum hvx_space space, uint64_t addr, uint64_t n, uint32_t flags,
                           const char *name, const struct hvx_region_ops *ops, void *opaque, struct hvx_region **out,
                           struct hvx_error *err)
{
    if (test_should_fail(vm))
        return hvx_fail(err, -ENOMEM, "region %s: injected fault", name);
    return test_region_add(vm, space, addr, n, flags, name, ops, opaque, out, err);
}

void test_region_del(struct hvx_vm *vm, struct hvx_region *r)
{
    if (!r)
        return;
    struct hvx_region **p = &vm->regions;
    while (*p && *p != r)
        p = &(*p)->next;
    if (!*p)
        test_bug("region_del: not a region of this VM, or deleted twice");
    *p = r->next;
    free(r);
}

int test_region_move(struct hvx_vm *vm, struct hvx_region *r, uint64_t addr)
{
    (void)vm;
    if (r->space == HVX_SPACE_PIO && addr != ~0ull && (addr > 0xffff || r->n > 0x10000 - addr))
        return -EINVAL;
    r->addr = addr;
    return 0;
}

struct hvx_region *test_map_new(struct hvx_vm *vm, uint64_t gpa, uint64_t n, void *hva, bool read_only,
                                const char *name)
{
    struct hvx_region *r = test_alloc(sizeof(*r));
    *r = (struct hvx_region){.next = vm->regions, .vm = vm, .space = HVX_SPACE_MMIO, .addr = gpa, .n = n, .hva = hva,
                             .read_only = read_only};
    snprintf(r->name, sizeof(r->name), "%s", name);
    vm->regions = r;
    return r;
}

static int host_mem_map(struct hvx_vm *vm, uint64_t gpa, uint64_t n, void *hva, bool read_only, const char *name,
                        struct hvx_region **out, struct hvx_error *err)
{
    if (test_should_fail(vm))
        return hvx_fail(err, -ENOMEM, "mem_map %s: injected fault", name);
    if ((gpa != ~0ull && gpa % PAGE) || n % PAGE || !n || (uintptr_t)hva % PAGE)
        test_bug("mem_map(%s): address, size and host pointer must be page-aligned", name);
    *out = test_map_new(vm, gpa, n, hva, read_only, name);
    return 0;
}

static void host_mem_pam(struct hvx_vm *vm, uint64_t gpa, uint64_t n, bool read_ram, bool write_ram)
{
    if (gpa % PAGE || n % PAGE || gpa < TEST_PAM_BASE || gpa + n > TEST_PAM_BASE + TEST_PAM_PAGES * PAGE)
        test_bug("mem_pam: %#llx+%#llx is not page-aligned inside 0xc0000..0xfffff", (unsigned long long)gpa,
                 (unsigned long long)n);
    for (uint64_t i = 0; i < n / PAGE; i++)
        vm->pam[(gpa - TEST_PAM_BASE) / PAGE + i] = (uint8_t)(read_ram | write_ram << 1);
}

/* --- accesses as a vCPU makes them --------------------------------------------------- */
static uint64_t size_mask(unsigned size)
{
    return size >= 8 ? ~0ull : (1ull << (8 * size)) - 1;
}

/* The largest access that the region takes at off. */
static unsigned piece_size(const struct hvx_region *r, uint64_t off, unsigned size)
{
    unsigned max = r->flags & HVX_REGION_MIN1 ? 1 : r->flags & HVX_REGION_MAX4 ? 4 : 8;
    while (size > max || size > r->n - off)
        size /= 2;
    return size;
}

static void region_access(struct hvx_region *r, uint64_t off, unsigned size, uint8_t *value, bool write)
{
    struct hvx_vm *vm = r->vm;
    test_lock(vm);
    while (size) {
        unsigned piece = piece_size(r, off, size & -size);
        uint64_t v = 0;
        if (write) {
            memcpy(&v, value, piece);
            r->ops->write(r->opaque, off, piece, v & size_mask(piece));
        } else {
            v = r->ops->read(r->opaque, off, piece);
            memcpy(value, &v, piece);
        }
        off += piece;
        value += piece;
        size -= piece;
    }
    test_unlock(vm);
}

/* What gets the writes to a read-only map: the device region that it covers. */
static struct hvx_region *device_below(struct hvx_region *map, uint64_t addr)
{
    for (struct hvx_region *r = map->next; r; r = r->next)
        if (r->ops && r->space == map->space && r->addr != ~0ull && addr >= r->addr && addr - r->addr < r->n)
            return r;
    return NULL;
}

static void io_access(struct hvx_vm *vm, enum hvx_space space, uint64_t addr, unsigned size, uint8_t *value, bool write)
{
    if (size != 1 && size != 2 && size != 4 && size != 8)
        test_bug("io access of %u bytes", size);
    while (size) {
        struct hvx_region *r;
        uint64_t run = 1;
        uint8_t *p = NULL;
        if (space == HVX_SPACE_PIO) {
            addr &= 0xffff;
            r = region_at(vm, space, addr);
            run = r ? r->n - (addr - r->addr) : 1;
        } else {
            p = resolve(vm, addr, write, &r, &run);
        }
        unsigned n = run < size ? (unsigned)run : size;
        if (write && r && r->read_only && device_below(r, addr))
            r = device_below(r, addr);
        if (r && r->ops)
            region_access(r, addr - r->addr, n, value, write);
        else if (p && write && !(r && r->read_only))
            memcpy(p, value, n);
        else if (p && !write)
            memcpy(value, p, n);
        else if (!write)
            memset(value, 0xff, n);
        addr += n;
        value += n;
        size -= n;
    }
}

static void host_io_read(struct hvx_vm *vm, enum hvx_space space, uint64_t addr, unsigned size, void *value)
{
    io_access(vm, space, addr, size, value, false);
}

static void host_io_write(struct hvx_vm *vm, enum hvx_space space, uint64_t addr, unsigned size, const void *value)
{
    uint8_t copy[8];
    memcpy(copy, value, size <= 8 ? size : 0);
    io_access(vm, space, addr, size, copy, true);
}

uint64_t hvxtest_pio_read(struct hvx_vm *vm, uint16_t port, unsigned size)
{
    uint64_t v = 0;
    host_io_read(vm, HVX_SPACE_PIO, port, size, &v);
    return v;
}

void hvxtest_pio_write(struct hvx_vm *vm, uint16_t port, unsigned size, uint64_t value)
{
    host_io_write(vm, HVX_SPACE_PIO, port, size, &value);
}

uint64_t hvxtest_mmio_read(struct hvx_vm *vm, uint64_t gpa, unsigned size)
{
    uint64_t v = 0;
    host_io_read(vm, HVX_SPACE_MMIO, gpa, size, &v);
    return v;
}

void hvxtest_mmio_write(struct hvx_vm *vm, uint64_t gpa, unsigned size, uint64_t value)
{
    host_io_write(vm, HVX_SPACE_MMIO, gpa, size, &value);
}

const char *hvxtest_region_name(struct hvx_vm *vm, enum hvx_space space, uint64_t addr)
{
    struct hvx_region *r = region_at(vm, space, addr);
    return r ? r->name : NULL;
}

void test_host_mem(struct hvx_host *h)
{
    h->mem_read = test_mem_read;
    h->mem_write = test_mem_write;
    h->mem_ptr = host_mem_ptr;
    h->mem_dirty = host_mem_dirty;
    h->mem_discard = host_mem_discard;
    h->region_add = host_region_add;
    h->region_del = test_region_del;
    h->region_move = test_region_move;
    h->mem_map = host_mem_map;
    h->mem_pam = host_mem_pam;
    h->io_read = host_io_read;
    h->io_write = host_io_write;
}
