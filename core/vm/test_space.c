/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/test_space.c - address spaces: layers, dispatch, PAM, slots.
 */
#define _GNU_SOURCE
#include "core/vm/test_null.h"

#include <sys/mman.h>

#define MIB (1ull << 20)

struct reg {
    uint64_t off, value, give;
    unsigned size, n_reads, n_writes;
};

static uint64_t reg_read(void *opaque, uint64_t off, unsigned size)
{
    struct reg *r = opaque;

    r->off = off;
    r->size = size;
    r->n_reads++;
    return r->give;
}

static void reg_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct reg *r = opaque;

    r->off = off;
    r->size = size;
    r->value = value;
    r->n_writes++;
}

static const struct hvx_region_ops reg_ops = {reg_read, reg_write};

struct fixture {
    struct null_engine n;
    struct hvx_vm *vm;
    const struct hvx_host *h;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    f->vm = null_vm(&f->n, 1, 64 * MIB, NULL, NULL);
    f->h = hvx_host_table();
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    hvx_vm_destroy(f->vm);
    free(f);
    return 0;
}

static struct hvx_region *add(struct fixture *f, enum hvx_space space, uint64_t addr, uint64_t n, uint32_t flags,
                              struct reg *r)
{
    struct hvx_region *out = NULL;
    struct hvx_error err;

    assert_int_equal(f->h->region_add(f->vm, space, addr, n, flags, "test", &reg_ops, r, &out, &err), 0);
    return out;
}

static uint64_t in(struct fixture *f, enum hvx_space space, uint64_t addr, unsigned size)
{
    uint64_t v = 0;

    f->h->io_read(f->vm, space, addr, size, &v);
    return v;
}

static void unclaimed_addresses_read_all_ones(void **state)
{
    struct fixture *f = *state;
    uint32_t v = 0;

    assert_int_equal(in(f, HVX_SPACE_PIO, 0x1234, 4), 0xffffffff);
    assert_int_equal(in(f, HVX_SPACE_MMIO, 0xfe000000, 2), 0xffff);
    f->h->io_write(f->vm, HVX_SPACE_PIO, 0x1234, 4, &v);
    assert_int_equal(f->vm->pio.n_unclaimed, 8);
}

static void accesses_reach_the_region_with_offset_and_size(void **state)
{
    struct fixture *f = *state;
    struct reg r = {.give = 0x11223344};
    uint16_t v = 0xbeef;

    add(f, HVX_SPACE_PIO, 0x3f8, 8, 0, &r);
    assert_int_equal(in(f, HVX_SPACE_PIO, 0x3fa, 1), 0x44);
    assert_int_equal(r.off, 2);
    assert_int_equal(r.size, 1);
    f->h->io_write(f->vm, HVX_SPACE_PIO, 0x3fc, 2, &v);
    assert_int_equal(r.off, 4);
    assert_int_equal(r.size, 2);
    assert_int_equal(r.value, 0xbeef);
}

static void wide_accesses_are_split_as_the_flags_say(void **state)
{
    struct fixture *f = *state;
    struct reg bytes = {.give = 0xab}, words = {.give = 0x01020304};
    uint64_t v = 0x1122334455667788ull;

    add(f, HVX_SPACE_PIO, 0x100, 8, HVX_REGION_MIN1, &bytes);
    add(f, HVX_SPACE_MMIO, 0xfe000000, 64, HVX_REGION_MAX4, &words);
    assert_int_equal(in(f, HVX_SPACE_PIO, 0x100, 4), 0xabababab);
    assert_int_equal(bytes.n_reads, 4);
    assert_true(in(f, HVX_SPACE_MMIO, 0xfe000008, 8) == 0x0102030401020304ull);
    assert_int_equal(words.n_reads, 2);
    f->h->io_write(f->vm, HVX_SPACE_MMIO, 0xfe000008, 8, &v);
    assert_int_equal(words.n_writes, 2);
    assert_int_equal(words.off, 12);
    assert_int_equal(words.value, 0x11223344);
}

static void an_access_over_a_regions_end_never_passes_it(void **state)
{
    struct fixture *f = *state;
    struct reg a = {.give = 0xaaaaaaaa}, b = {.give = 0xbbbbbbbb};

    add(f, HVX_SPACE_PIO, 0x100, 3, 0, &a);
    add(f, HVX_SPACE_PIO, 0x103, 1, 0, &b);
    assert_int_equal(in(f, HVX_SPACE_PIO, 0x102, 4), 0xffffbbaa);
    assert_int_equal(in(f, HVX_SPACE_PIO, 0xffff, 4), 0xffffffff);
}

static void the_last_region_added_or_moved_is_on_top(void **state)
{
    struct fixture *f = *state;
    struct reg a = {.give = 1}, b = {.give = 2};
    struct hvx_region *ra = add(f, HVX_SPACE_MMIO, 0xfe000000, 0x1000, 0, &a);
    struct hvx_region *rb = add(f, HVX_SPACE_MMIO, 0xfe000800, 0x1000, 0, &b);

    assert_int_equal(in(f, HVX_SPACE_MMIO, 0xfe000900, 1), 2);
    hvx_loop_lock(f->vm->loop);
    assert_int_equal(f->h->region_move(f->vm, ra, UINT64_MAX), 0);
    assert_int_equal(f->h->region_move(f->vm, ra, 0xfe000000), 0);
    hvx_loop_unlock(f->vm->loop);
    assert_int_equal(in(f, HVX_SPACE_MMIO, 0xfe000900, 1), 1);
    assert_int_equal(in(f, HVX_SPACE_MMIO, 0xfe001100, 1), 2);
    hvx_loop_lock(f->vm->loop);
    f->h->region_del(f->vm, ra);
    f->h->region_del(f->vm, rb);
    hvx_loop_unlock(f->vm->loop);
    assert_int_equal(in(f, HVX_SPACE_MMIO, 0xfe000900, 1), 0xff);
}

static void a_region_over_ram_makes_a_hole_in_the_slots(void **state)
{
    struct fixture *f = *state;
    struct reg r = {.give = 7};
    struct hvx_region *vga;
    uint32_t v = 0x55;

    assert_non_null(null_slot_at(&f->n, 0xa0000));
    vga = add(f, HVX_SPACE_MMIO, 0xa0000, 0x20000, 0, &r);
    assert_null(null_slot_at(&f->n, 0xa0000));
    assert_null(null_slot_at(&f->n, 0xbffff));
    assert_non_null(null_slot_at(&f->n, 0x9ffff));
    assert_non_null(null_slot_at(&f->n, 0xc0000));
    assert_int_equal(in(f, HVX_SPACE_MMIO, 0xa0010, 1), 7);
    /* DMA does not reach devices. */
    assert_int_equal(f->h->mem_write(f->vm, 0x9fffe, &v, 4), -EFAULT);
    assert_int_equal(f->vm->ram.hva[0x9fffe], 0x55);
    hvx_loop_lock(f->vm->loop);
    f->h->region_del(f->vm, vga);
    hvx_loop_unlock(f->vm->loop);
    assert_non_null(null_slot_at(&f->n, 0xa0000));
}

static void only_slots_that_changed_are_given_again(void **state)
{
    struct fixture *f = *state;
    struct reg r = {0};
    unsigned before;

    add(f, HVX_SPACE_MMIO, 0xa0000, 0x20000, 0, &r);
    before = f->n.n_set_slot;
    add(f, HVX_SPACE_MMIO, 0xfe000000, 0x1000, 0, &r);
    assert_int_equal(f->n.n_set_slot, before);
}

static void pci_bars_lie_under_ram(void **state)
{
    struct fixture *f = *state;
    struct reg r = {.give = 9};
    struct hvx_region model = {.kind = HVX_LAYER_IO, .prio = HVX_PRIO_BAR, .addr = 0x100000, .bytes = 0x1000,
                               .ops = &reg_ops, .opaque = &r, .name = "bar"};

    assert_int_equal(hvx_space_add(&f->vm->mem, &model, NULL, NULL), 0);
    assert_int_equal(in(f, HVX_SPACE_MMIO, 0x100000, 1), 0);
    assert_int_equal(r.n_reads, 0);
}

static void mapped_rom_is_read_only_and_on_top(void **state)
{
    struct fixture *f = *state;
    uint8_t *rom = mmap(NULL, 0x2000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct hvx_region *r;
    struct hvx_error err;
    uint8_t v = 1;
    size_t n = 1;

    memset(rom, 0xc3, 0x2000);
    assert_int_equal(f->h->mem_map(f->vm, 0xfffff000, 0x1000, rom, true, "rom", &r, &err), 0);
    assert_int_equal(null_slot_at(&f->n, 0xfffff000)->flags, HVX_SLOT_READONLY);
    assert_int_equal(in(f, HVX_SPACE_MMIO, 0xfffff000, 1), 0xc3);
    f->h->io_write(f->vm, HVX_SPACE_MMIO, 0xfffff000, 1, &v);
    assert_int_equal(f->h->mem_write(f->vm, 0xfffff000, &v, 1), -EFAULT);
    assert_int_equal(rom[0], 0xc3);
    assert_null(f->h->mem_ptr(f->vm, 0xfffff000, &n));
    assert_int_equal(f->h->mem_map(f->vm, 0xffffe800, 0x1000, rom, true, "odd", &r, &err), -EINVAL);
    assert_int_equal(f->h->mem_map(f->vm, 1ull << 60, 0x1000, rom, true, "far", &r, &err), -ERANGE);
    hvx_loop_lock(f->vm->loop);
    hvx_loop_unlock(f->vm->loop);
    munmap(rom, 0x2000);
}

static void a_rom_over_a_region_hands_it_the_writes(void **state)
{
    struct fixture *f = *state;
    struct reg r = {.give = 0x5a};
    struct hvx_region *map = NULL;
    struct hvx_error err;
    uint8_t *rom = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t v = 0x77;

    rom[4097] = 0x12;
    add(f, HVX_SPACE_MMIO, 0xffc00000, 8192, 0, &r);
    assert_int_equal(f->h->mem_map(f->vm, 0xffc00000, 8192, rom, true, "flash", &map, &err), 0);
    assert_int_equal(in(f, HVX_SPACE_MMIO, 0xffc01001, 1), 0x12);
    assert_int_equal(r.n_reads, 0);
    f->h->io_write(f->vm, HVX_SPACE_MMIO, 0xffc01001, 1, &v);
    assert_int_equal(r.off, 0x1001);
    assert_int_equal(r.value, 0x77);
    assert_int_equal(rom[4097], 0x12);
    assert_int_equal(f->h->region_move(f->vm, map, UINT64_MAX), 0);
    assert_int_equal(in(f, HVX_SPACE_MMIO, 0xffc01001, 1), 0x5a);
    f->h->region_del(f->vm, map);
    munmap(rom, 8192);
}

static void pam_chooses_what_reads_and_writes_reach(void **state)
{
    struct fixture *f = *state;
    uint8_t *rom = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *ram = f->vm->ram.hva + 0xf0000, v = 0x22;
    struct hvx_region *r;
    struct hvx_error err;

    memset(rom, 0x11, 0x10000);
    assert_int_equal(f->h->mem_map(f->vm, 0xf0000, 0x10000, rom, true, "bios", &r, &err), 0);
    hvx_loop_lock(f->vm->loop);
    f->h->mem_pam(f->vm, 0xf0000, 0x10000, false, true); /* copy the BIOS down: read ROM, write RAM */
    hvx_loop_unlock(f->vm->loop);
    assert_int_equal(in(f, HVX_SPACE_MMIO, 0xf0000, 1), 0x11);
    f->h->io_write(f->vm, HVX_SPACE_MMIO, 0xf0000, 1, &v);
    assert_int_equal(ram[0], 0x22);
    assert_int_equal(in(f, HVX_SPACE_MMIO, 0xf0000, 1), 0x11);
    assert_int_equal(null_slot_at(&f->n, 0xf0000)->flags, HVX_SLOT_READONLY);
    hvx_loop_lock(f->vm->loop);
    f->h->mem_pam(f->vm, 0xf0000, 0x10000, true, false); /* lock it */
    hvx_loop_unlock(f->vm->loop);
    assert_int_equal(in(f, HVX_SPACE_MMIO, 0xf0000, 1), 0x22);
    v = 0x33;
    f->h->io_write(f->vm, HVX_SPACE_MMIO, 0xf0000, 1, &v);
    assert_int_equal(ram[0], 0x22);
    assert_ptr_equal(null_slot_at(&f->n, 0xf0000)->hva, ram);
    hvx_loop_lock(f->vm->loop);
    f->h->mem_pam(f->vm, 0xf0000, 0x10000, true, true); /* plain RAM */
    hvx_loop_unlock(f->vm->loop);
    assert_int_equal(null_slot_at(&f->n, 0xf0000)->flags, 0);
    hvx_loop_lock(f->vm->loop);
    f->h->mem_pam(f->vm, 0xf0000, 0x10000, false, false); /* ROM again */
    hvx_loop_unlock(f->vm->loop);
    assert_int_equal(in(f, HVX_SPACE_MMIO, 0xf0000, 1), 0x11);
    f->h->io_write(f->vm, HVX_SPACE_MMIO, 0xf0000, 1, &v);
    assert_int_equal(ram[0], 0x22);
    munmap(rom, 0x10000);
}

static void pam_without_a_map_is_a_hole(void **state)
{
    struct fixture *f = *state;

    hvx_loop_lock(f->vm->loop);
    f->h->mem_pam(f->vm, 0xc0000, 0x4000, false, false);
    hvx_loop_unlock(f->vm->loop);
    assert_null(null_slot_at(&f->n, 0xc0000));
    assert_non_null(null_slot_at(&f->n, 0xc4000));
    assert_int_equal(in(f, HVX_SPACE_MMIO, 0xc0000, 4), 0xffffffff);
}

static void memory_access_tells_the_engine_and_stops_at_holes(void **state)
{
    struct fixture *f = *state;
    uint8_t buf[16];
    size_t n = 1 << 20;
    uint8_t *p;

    memset(buf, 0x5a, sizeof(buf));
    assert_int_equal(f->h->mem_write(f->vm, 0x1000, buf, sizeof(buf)), 0);
    assert_int_equal(f->n.n_code_written, 1);
    memset(buf, 0, sizeof(buf));
    assert_int_equal(f->h->mem_read(f->vm, 0x1000, buf, sizeof(buf)), 0);
    assert_int_equal(buf[15], 0x5a);
    assert_int_equal(f->h->mem_read(f->vm, 64 * MIB - 8, buf, 16), -EFAULT);
    assert_int_equal(buf[7], 0);
    assert_int_equal(buf[8], 0xff);
    p = f->h->mem_ptr(f->vm, 64 * MIB - 4096, &n);
    assert_ptr_equal(p, f->vm->ram.hva + 64 * MIB - 4096);
    assert_int_equal(n, 4096);
    n = 1;
    assert_null(f->h->mem_ptr(f->vm, 64 * MIB, &n));
}

static void large_memory_continues_above_4g(void **state)
{
    struct null_engine n = {0};
    struct hvx_vm *vm = null_vm(&n, 1, 3584 * MIB, NULL, NULL);
    struct hvx_guest_info info = {.size = sizeof(info)};
    uint32_t v = 0x12345678, back = 0;

    (void)state;
    hvx_host_table()->guest_info(vm, &info);
    assert_true(info.ram_below_4g == 3072 * MIB && info.ram_above_4g == 512 * MIB);
    assert_null(null_slot_at(&n, 0xc0000000));
    assert_int_equal(hvx_host_table()->mem_write(vm, (1ull << 32) + 64, &v, 4), 0);
    memcpy(&back, vm->ram.hva + 3072 * MIB + 64, 4);
    assert_int_equal(back, v);
    hvx_vm_destroy(vm);
}

static void remapped_pages_are_seen_by_slots_and_dma(void **state)
{
    struct fixture *f = *state;
    uint8_t v = 0x77, back = 0;

    assert_int_equal(hvx_ram_remap(&f->vm->ram, 0x200, 0x300, true), 0);
    assert_int_equal(hvx_ram_remap(&f->vm->ram, 0x201, 0x300, false), 0);
    assert_int_equal(hvx_ram_remap(&f->vm->ram, 1 << 30, 0, true), -EINVAL);
    hvx_space_refresh(&f->vm->mem);
    assert_int_equal(null_slot_at(&f->n, 0x200000)->fd_offset, 0x300000);
    assert_int_equal(null_slot_at(&f->n, 0x201000)->flags, HVX_SLOT_READONLY);
    assert_int_equal(f->h->mem_write(f->vm, 0x200010, &v, 1), 0);
    assert_int_equal(f->h->mem_read(f->vm, 0x201010, &back, 1), 0);
    assert_int_equal(back, 0x77);
    assert_int_equal(f->h->mem_write(f->vm, 0x201010, &v, 1), -EFAULT);
}

/* A reader on another thread sees the old or the new map, never a torn one. */
static _Atomic(bool) reader_stop;

static void *reader(void *opaque)
{
    struct hvx_vm *vm = opaque;
    struct hvx_segment_view v;

    while (!reader_stop) {
        if (hvx_space_lookup(&vm->mem, 0xa0000, &v))
            assert_true(v.kind == HVX_LAYER_RAM || v.first == 0xa0000);
        assert_true(hvx_space_lookup(&vm->mem, 0x2000000, &v));
        assert_ptr_equal(v.read_hva + (0x2000000 - v.first), vm->ram.hva + 0x2000000);
    }
    return NULL;
}

static void lookups_without_the_lock_survive_map_changes(void **state)
{
    struct fixture *f = *state;
    struct reg r = {0};
    struct hvx_region *region = add(f, HVX_SPACE_MMIO, 0xa0000, 0x20000, 0, &r);
    pthread_t t;

    reader_stop = false;
    pthread_create(&t, NULL, reader, f->vm);
    for (unsigned i = 0; i < 20000; i++) {
        hvx_loop_lock(f->vm->loop);
        assert_int_equal(f->h->region_move(f->vm, region, i & 1 ? 0xa0000 : UINT64_MAX), 0);
        hvx_loop_unlock(f->vm->loop);
    }
    reader_stop = true;
    pthread_join(t, NULL);
}

static void nonsense_regions_are_refused(void **state)
{
    struct fixture *f = *state;
    struct hvx_region *out = NULL;
    struct hvx_error err;
    struct reg r;

    assert_true(f->h->region_add(f->vm, HVX_SPACE_PIO, 0xfffe, 4, 0, "end", &reg_ops, &r, &out, &err) < 0);
    assert_true(f->h->region_add(f->vm, HVX_SPACE_PIO, 0x10, 0, 0, "empty", &reg_ops, &r, &out, &err) < 0);
    assert_true(f->h->region_add(f->vm, HVX_SPACE_MMIO, UINT64_MAX - 5, 4, 0, "far", &reg_ops, &r, &out, &err) < 0);
    assert_null(out);
    assert_non_null(strstr(err.text, "far"));
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(unclaimed_addresses_read_all_ones),
        T(accesses_reach_the_region_with_offset_and_size),
        T(wide_accesses_are_split_as_the_flags_say),
        T(an_access_over_a_regions_end_never_passes_it),
        T(the_last_region_added_or_moved_is_on_top),
        T(a_region_over_ram_makes_a_hole_in_the_slots),
        T(only_slots_that_changed_are_given_again),
        T(pci_bars_lie_under_ram),
        T(mapped_rom_is_read_only_and_on_top),
        T(a_rom_over_a_region_hands_it_the_writes),
        T(pam_chooses_what_reads_and_writes_reach),
        T(pam_without_a_map_is_a_hole),
        T(memory_access_tells_the_engine_and_stops_at_holes),
        cmocka_unit_test(large_memory_continues_above_4g),
        T(remapped_pages_are_seen_by_slots_and_dma),
        T(lookups_without_the_lock_survive_map_changes),
        T(nonsense_regions_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
