/* SPDX-License-Identifier: Apache-2.0
 *
 * test_ide.c - disks by PIO and DMA, and the CD-ROM's packet commands.
 */
#include "test_board.h"

#include <stdlib.h>
#include <string.h>

#define DISK_BYTES (4u << 20)
#define CD_BYTES (1u << 20)
#define CMD 0x1f0
#define CTL 0x3f6
#define CD_CMD 0x170
#define PRD_AT 0x10000u
#define DATA_AT 0x20000u

struct world {
    struct board b;
    struct hvx_blk *disk, *cd;
    uint16_t bm;
};

static int setup(void **state)
{
    static struct world w;
    struct hvx_vm *vm = board_vm();
    memset(&w, 0, sizeof(w));
    w.disk = hvxtest_disk_add(vm, "disk0", &(struct hvxtest_disk_params){.bytes = DISK_BYTES});
    w.cd = hvxtest_disk_add(vm, "disk1",
                              &(struct hvxtest_disk_params){.bytes = CD_BYTES, .read_only = true, .cdrom = true});
    for (unsigned i = 0; i < DISK_BYTES; i++)
        hvxtest_disk_data(w.disk)[i] = (uint8_t)(i >> 9 ^ i);
    for (unsigned i = 0; i < CD_BYTES; i++)
        hvxtest_disk_data(w.cd)[i] = (uint8_t)(i >> 11 ^ i ^ 0x55);
    board_new(&w.b, vm, "vga=off,ide0=disk0,ide2=disk1");
    struct hvx_pci_dev *pci = hvxtest_pci_at(vm, 0x09);
    hvxtest_pci_enable(pci);
    w.bm = (uint16_t)hvxtest_pci_bar(pci, 4);
    *state = &w;
    return 0;
}

static int teardown(void **state)
{
    board_free(&((struct world *)*state)->b);
    return 0;
}

/* --- the guest's side ---------------------------------------------------------- */
static uint8_t status(struct world *w, uint16_t base) { return in8(&w->b, base + 7); }

static void lba28(struct world *w, uint32_t lba, unsigned n, uint8_t command)
{
    out8(&w->b, CMD + 6, (uint8_t)(0xe0 | lba >> 24));
    out8(&w->b, CMD + 2, (uint8_t)n);
    out8(&w->b, CMD + 3, (uint8_t)lba);
    out8(&w->b, CMD + 4, (uint8_t)(lba >> 8));
    out8(&w->b, CMD + 5, (uint8_t)(lba >> 16));
    out8(&w->b, CMD + 7, command);
    hvxtest_run(w->b.vm);
}

static void lba48(struct world *w, uint64_t lba, unsigned n, uint8_t command)
{
    out8(&w->b, CMD + 6, 0xe0);
    out8(&w->b, CMD + 2, (uint8_t)(n >> 8));
    out8(&w->b, CMD + 3, (uint8_t)(lba >> 24));
    out8(&w->b, CMD + 4, (uint8_t)(lba >> 32));
    out8(&w->b, CMD + 5, (uint8_t)(lba >> 40));
    out8(&w->b, CMD + 2, (uint8_t)n);
    out8(&w->b, CMD + 3, (uint8_t)lba);
    out8(&w->b, CMD + 4, (uint8_t)(lba >> 8));
    out8(&w->b, CMD + 5, (uint8_t)(lba >> 16));
    out8(&w->b, CMD + 7, command);
    hvxtest_run(w->b.vm);
}

static void pio_in(struct world *w, uint16_t base, void *to, unsigned bytes)
{
    uint16_t *p = to;
    for (unsigned i = 0; i < bytes / 2; i++)
        p[i] = in16(&w->b, base);
    hvxtest_run(w->b.vm);
}

static void pio_out(struct world *w, uint16_t base, const void *from, unsigned bytes)
{
    const uint16_t *p = from;
    for (unsigned i = 0; i < bytes / 2; i++)
        out16(&w->b, base, p[i]);
    hvxtest_run(w->b.vm);
}

static void prd(struct world *w, unsigned i, uint32_t at, uint32_t bytes, bool last)
{
    uint32_t entry[2] = {at, (bytes & 0xffff) | (last ? 0x80000000u : 0)};
    memcpy(hvxtest_mem(w->b.vm, PRD_AT + 8 * i, 8), entry, 8);
}

static void bm_start(struct world *w, uint16_t bm, bool to_memory)
{
    out32(&w->b, bm + 4, PRD_AT);
    out8(&w->b, bm + 2, 0x06);
    out8(&w->b, bm, to_memory ? 9 : 1);
    hvxtest_run(w->b.vm);
}

/* --- disks ------------------------------------------------------------------------ */
static void identify_tells_the_size(void **state)
{
    struct world *w = *state;
    uint16_t id[256];
    out8(&w->b, CMD + 6, 0xa0);
    out8(&w->b, CMD + 7, 0xec);
    assert_true(hvxtest_irq_level(w->b.vm, 14));
    assert_int_equal(status(w, CMD), 0x58);
    assert_false(hvxtest_irq_level(w->b.vm, 14));
    pio_in(w, CMD, id, 512);
    assert_int_equal(id[60] | id[61] << 16, DISK_BYTES / 512);
    assert_int_equal(id[100], DISK_BYTES / 512);
    assert_int_equal(id[83] & 0x0400, 0x0400);
    assert_int_equal(status(w, CMD), 0x50);
}

static void pio_read_interrupts_for_each_sector(void **state)
{
    struct world *w = *state;
    uint8_t got[3 * 512];
    hvxtest_irq_clear(w->b.vm);
    lba28(w, 100, 3, 0x20);
    for (unsigned i = 0; i < 3; i++) {
        assert_true(hvxtest_irq_level(w->b.vm, 14));
        assert_int_equal(status(w, CMD), 0x58);
        pio_in(w, CMD, got + 512 * i, 512);
    }
    assert_int_equal(hvxtest_irq_rises(w->b.vm, 14), 3);
    assert_int_equal(status(w, CMD), 0x50);
    assert_memory_equal(got, hvxtest_disk_data(w->disk) + 100 * 512, sizeof(got));
}

static void pio_read_multiple_and_chs(void **state)
{
    struct world *w = *state;
    uint8_t got[8 * 512];
    out8(&w->b, CMD + 2, 4);
    out8(&w->b, CMD + 7, 0xc6);
    assert_int_equal(status(w, CMD), 0x50);
    hvxtest_irq_clear(w->b.vm);
    lba28(w, 8, 8, 0xc4);
    status(w, CMD);
    pio_in(w, CMD, got, 4 * 512);
    status(w, CMD);
    pio_in(w, CMD, got + 4 * 512, 4 * 512);
    assert_int_equal(hvxtest_irq_rises(w->b.vm, 14), 2);
    assert_memory_equal(got, hvxtest_disk_data(w->disk) + 8 * 512, sizeof(got));
    /* CHS 1/2/3 with 16 heads, 63 sectors */
    out8(&w->b, CMD + 6, 0xa2);
    out8(&w->b, CMD + 2, 1);
    out8(&w->b, CMD + 3, 3);
    out8(&w->b, CMD + 4, 1);
    out8(&w->b, CMD + 5, 0);
    out8(&w->b, CMD + 7, 0x20);
    hvxtest_run(w->b.vm);
    pio_in(w, CMD, got, 512);
    assert_memory_equal(got, hvxtest_disk_data(w->disk) + (1 * 16 * 63 + 2 * 63 + 2) * 512, 512);
}

static void pio_read_longer_than_the_buffer(void **state)
{
    struct world *w = *state;
    uint8_t *got = malloc(600 * 512);
    lba48(w, 1000, 600, 0x24);
    for (unsigned i = 0; i < 600; i++) {
        assert_int_equal(status(w, CMD), 0x58);
        pio_in(w, CMD, got + 512 * i, 512);
    }
    assert_int_equal(status(w, CMD), 0x50);
    assert_memory_equal(got, hvxtest_disk_data(w->disk) + 1000 * 512, 600 * 512);
    free(got);
}

static void pio_write_reaches_the_disk(void **state)
{
    struct world *w = *state;
    uint8_t data[2 * 512];
    memset(data, 0xa7, sizeof(data));
    hvxtest_irq_clear(w->b.vm);
    lba28(w, 50, 2, 0x30);
    assert_int_equal(hvxtest_irq_rises(w->b.vm, 14), 0); /* the first block needs none */
    assert_int_equal(status(w, CMD), 0x58);
    pio_out(w, CMD, data, 512);
    assert_int_equal(status(w, CMD), 0x58);
    pio_out(w, CMD, data + 512, 512);
    assert_int_equal(status(w, CMD), 0x50);
    assert_memory_equal(hvxtest_disk_data(w->disk) + 50 * 512, data, sizeof(data));
    assert_int_equal(hvxtest_disk_data(w->disk)[52 * 512], 52);
}

static void dma_read_scatters_by_descriptors(void **state)
{
    struct world *w = *state;
    prd(w, 0, DATA_AT, 0x10000, false); /* 64 KiB, written as 0 */
    prd(w, 1, DATA_AT + 0x20000, 512 * 100, false);
    prd(w, 2, DATA_AT + 0x40002, 0x10000, false);
    prd(w, 3, DATA_AT + 0x60000, 512 * 44, true);
    lba48(w, 7, 400, 0x25);
    assert_int_equal(in8(&w->b, w->bm + 2) & 4, 0);
    bm_start(w, w->bm, true);
    assert_true(hvxtest_irq_level(w->b.vm, 14));
    assert_int_equal(in8(&w->b, w->bm + 2) & 7, 4); /* interrupt, not active, no error */
    assert_int_equal(status(w, CMD), 0x50);
    const uint8_t *d = hvxtest_disk_data(w->disk) + 7 * 512;
    assert_memory_equal(hvxtest_mem(w->b.vm, DATA_AT, 0x10000), d, 0x10000);
    assert_memory_equal(hvxtest_mem(w->b.vm, DATA_AT + 0x20000, 512 * 100), d + 0x10000, 512 * 100);
    assert_memory_equal(hvxtest_mem(w->b.vm, DATA_AT + 0x40002, 0x10000), d + 0x10000 + 512 * 100, 0x10000);
}

static void dma_write_and_flush(void **state)
{
    struct world *w = *state;
    memset(hvxtest_mem(w->b.vm, DATA_AT, 1024), 0x3c, 1024);
    prd(w, 0, DATA_AT, 1024, true);
    out32(&w->b, w->bm + 4, PRD_AT);
    out8(&w->b, w->bm, 1); /* started before the command: also in order */
    lba28(w, 4, 2, 0xca);
    assert_int_equal(status(w, CMD), 0x50);
    assert_memory_equal(hvxtest_disk_data(w->disk) + 4 * 512, hvxtest_mem(w->b.vm, DATA_AT, 1024), 1024);
    unsigned before = hvxtest_disk_count(w->disk, HVX_BLK_FLUSH);
    out8(&w->b, CMD + 7, 0xe7);
    assert_int_equal(in8(&w->b, CTL), 0x80);
    hvxtest_run(w->b.vm);
    assert_int_equal(status(w, CMD), 0x50);
    assert_int_equal(hvxtest_disk_count(w->disk, HVX_BLK_FLUSH), before + 1);
}

static void dma_with_too_few_descriptors_is_an_error(void **state)
{
    struct world *w = *state;
    prd(w, 0, DATA_AT, 512, true);
    lba28(w, 0, 4, 0xc8);
    bm_start(w, w->bm, true);
    assert_int_equal(status(w, CMD) & 0x89, 0x01);
    assert_int_equal(in8(&w->b, w->bm + 2) & 3, 2);
}

static void dma_outside_memory_is_an_error(void **state)
{
    struct world *w = *state;
    prd(w, 0, 0xf0000000u, 512, true);
    lba28(w, 0, 1, 0xc8);
    bm_start(w, w->bm, true);
    assert_int_equal(status(w, CMD) & 0x89, 0x01);
    assert_int_equal(in8(&w->b, w->bm + 2) & 2, 2);
}

static void disk_errors_reach_the_guest(void **state)
{
    struct world *w = *state;
    hvxtest_disk_fail(w->disk, HVX_BLK_READ, 1, -EIO);
    lba28(w, 77, 1, 0x20);
    assert_int_equal(status(w, CMD), 0x41);
    assert_int_equal(in8(&w->b, CMD + 1), 0x40); /* uncorrectable */
    assert_int_equal(in8(&w->b, CMD + 3), 77);
    hvxtest_disk_fail(w->disk, HVX_BLK_FLUSH, 1, -EIO);
    out8(&w->b, CMD + 7, 0xea);
    hvxtest_run(w->b.vm);
    assert_int_equal(status(w, CMD) & 1, 1);
}

static void addresses_beyond_the_end_are_refused(void **state)
{
    struct world *w = *state;
    unsigned before = hvxtest_disk_count(w->disk, 0);
    lba28(w, DISK_BYTES / 512 - 1, 2, 0x20);
    assert_int_equal(status(w, CMD), 0x41);
    assert_int_equal(in8(&w->b, CMD + 1), 0x10);
    lba48(w, 0xffffffffffffull, 65535, 0x25);
    assert_int_equal(status(w, CMD), 0x41);
    out8(&w->b, CMD + 6, 0xa0);
    out8(&w->b, CMD + 3, 0); /* sector 0 does not exist in CHS */
    out8(&w->b, CMD + 7, 0x20);
    assert_int_equal(status(w, CMD), 0x41);
    assert_int_equal(hvxtest_disk_count(w->disk, 0), before);
    out8(&w->b, CMD + 7, 0xf1); /* unknown command */
    assert_int_equal(status(w, CMD), 0x41);
    assert_int_equal(in8(&w->b, CMD + 1), 0x04);
}

static void reset_waits_for_the_request_in_flight(void **state)
{
    struct world *w = *state;
    hvxtest_disk_hold(w->disk, true);
    lba28(w, 0, 1, 0x20);
    assert_int_equal(in8(&w->b, CTL), 0x80);
    out8(&w->b, CTL, 0x04);
    out8(&w->b, CTL, 0x00);
    assert_int_equal(in8(&w->b, CTL), 0x80);
    out8(&w->b, CMD + 7, 0xec); /* not taken now */
    w->b.type->reset(w->b.dev);
    assert_int_equal(in8(&w->b, CTL), 0x80);
    assert_false(w->b.type->quiesced(w->b.dev));
    hvxtest_disk_release(w->disk, 0);
    hvxtest_disk_hold(w->disk, false);
    hvxtest_run(w->b.vm);
    assert_int_equal(in8(&w->b, CTL), 0x50);
    assert_int_equal(in8(&w->b, CMD + 1), 0x01);
    assert_true(w->b.type->quiesced(w->b.dev));
    assert_false(hvxtest_irq_level(w->b.vm, 14));
}

static void nien_masks_the_interrupt(void **state)
{
    struct world *w = *state;
    out8(&w->b, CTL, 0x02);
    lba28(w, 0, 1, 0x20);
    assert_false(hvxtest_irq_level(w->b.vm, 14));
    out8(&w->b, CTL, 0x00);
    assert_true(hvxtest_irq_level(w->b.vm, 14));
}

static void absent_slave_reads_as_nothing(void **state)
{
    struct world *w = *state;
    out8(&w->b, CMD + 6, 0xb0);
    assert_int_equal(status(w, CMD), 0);
    out8(&w->b, CMD + 7, 0xec);
    assert_int_equal(status(w, CMD), 0);
    out8(&w->b, CMD + 6, 0xa0);
    assert_int_equal(status(w, CMD), 0x50);
}

static void unknown_drive_is_refused_by_name(void **state)
{
    (void)state;
    struct board b;
    struct hvx_error err = {0};
    assert_int_equal(board_try(&b, board_vm(), "vga=off,ide1=disk7", &err), -ENOENT);
    assert_non_null(strstr(err.text, "ide1"));
    assert_non_null(strstr(err.text, "disk7"));
    board_free(&b);
}

/* --- CD-ROM ------------------------------------------------------------------------- */
static void packet(struct world *w, const uint8_t cdb[12], bool dma, unsigned limit)
{
    out8(&w->b, CD_CMD + 6, 0xa0);
    out8(&w->b, CD_CMD + 1, dma);
    out8(&w->b, CD_CMD + 4, (uint8_t)limit);
    out8(&w->b, CD_CMD + 5, (uint8_t)(limit >> 8));
    out8(&w->b, CD_CMD + 7, 0xa0);
    assert_int_equal(status(w, CD_CMD) & 0x89, 0x08);
    assert_int_equal(in8(&w->b, CD_CMD + 2) & 3, 1);
    pio_out(w, CD_CMD, cdb, 12);
}

/* Read what the drive gives until it has no more; returns the bytes. */
static unsigned packet_data(struct world *w, uint8_t *to, unsigned max)
{
    unsigned n = 0;
    while (status(w, CD_CMD) & 0x08) {
        unsigned bytes = in8(&w->b, CD_CMD + 4) | in8(&w->b, CD_CMD + 5) << 8;
        assert_int_equal(in8(&w->b, CD_CMD + 2) & 3, 2);
        assert_true(n + bytes <= max);
        pio_in(w, CD_CMD, to + n, (bytes + 1) & ~1u);
        n += bytes;
    }
    assert_int_equal(in8(&w->b, CD_CMD + 2) & 3, 3);
    return n;
}

static void clear_attention(struct world *w)
{
    static const uint8_t test_unit_ready[12] = {0};
    uint8_t sense[32];
    packet(w, test_unit_ready, false, 0);
    assert_int_equal(status(w, CD_CMD), 0x41); /* a disc was put in */
    packet(w, (const uint8_t[12]){0x03, 0, 0, 0, 18}, false, 0xfffe);
    assert_int_equal(packet_data(w, sense, sizeof(sense)), 18);
    assert_int_equal(sense[2], 6);
    assert_int_equal(sense[12], 0x28);
    packet(w, test_unit_ready, false, 0);
    assert_int_equal(status(w, CD_CMD), 0x50);
}

static void cd_is_recognised(void **state)
{
    struct world *w = *state;
    uint16_t id[256];
    assert_int_equal(in8(&w->b, CD_CMD + 4), 0x14);
    assert_int_equal(in8(&w->b, CD_CMD + 5), 0xeb);
    out8(&w->b, CD_CMD + 2, 2); /* what the register held must not matter */
    out8(&w->b, CD_CMD + 7, 0xec);
    assert_int_equal(status(w, CD_CMD) & 1, 1);
    assert_int_equal(in8(&w->b, CD_CMD + 4), 0x14);
    out8(&w->b, CD_CMD + 2, 2);
    out8(&w->b, CD_CMD + 7, 0xa1);
    pio_in(w, CD_CMD, id, 512);
    assert_int_equal(id[0], 0x85c0);
    assert_int_equal(status(w, CD_CMD) & 0x09, 0);
}

static void cd_inquiry_capacity_toc(void **state)
{
    struct world *w = *state;
    uint8_t got[64] = {0};
    packet(w, (const uint8_t[12]){0x12, 0, 0, 0, 36}, false, 0xfffe);
    assert_int_equal(packet_data(w, got, sizeof(got)), 36);
    assert_int_equal(got[0], 5);
    clear_attention(w);
    packet(w, (const uint8_t[12]){0x25}, false, 0xfffe);
    assert_int_equal(packet_data(w, got, sizeof(got)), 8);
    static const uint8_t capacity[8] = {0, 0, (CD_BYTES / 2048 - 1) >> 8, (CD_BYTES / 2048 - 1) & 0xff, 0, 0, 8, 0};
    assert_memory_equal(got, capacity, 8);
    packet(w, (const uint8_t[12]){0x43, 0, 0, 0, 0, 0, 0, 0, 64}, false, 0xfffe);
    assert_int_equal(packet_data(w, got, sizeof(got)), 20);
    assert_int_equal(got[14], 0xaa);
    packet(w, (const uint8_t[12]){0xff}, false, 0xfffe);
    assert_int_equal(status(w, CD_CMD), 0x41);
    assert_int_equal(in8(&w->b, CD_CMD + 1) >> 4, 5);
}

static void cd_read_by_pio_respects_the_byte_count(void **state)
{
    struct world *w = *state;
    uint8_t got[3 * 2048];
    clear_attention(w);
    hvxtest_irq_clear(w->b.vm);
    packet(w, (const uint8_t[12]){0x28, 0, 0, 0, 0, 16, 0, 0, 3}, false, 2048);
    assert_int_equal(packet_data(w, got, sizeof(got)), sizeof(got));
    assert_int_equal(hvxtest_irq_rises(w->b.vm, 15), 4); /* three blocks and the end */
    assert_memory_equal(got, hvxtest_disk_data(w->cd) + 16 * 2048, sizeof(got));
}

static void cd_read_by_dma(void **state)
{
    struct world *w = *state;
    clear_attention(w);
    prd(w, 0, DATA_AT, 0x10000, false);
    prd(w, 1, DATA_AT + 0x10000, 0x10000, false);
    prd(w, 2, DATA_AT + 0x20000, 0x9000, true);
    packet(w, (const uint8_t[12]){0xa8, 0, 0, 0, 0, 3, 0, 0, 0, 82}, true, 0);
    bm_start(w, (uint16_t)(w->bm + 8), true);
    assert_int_equal(status(w, CD_CMD), 0x50);
    assert_int_equal(in8(&w->b, (uint16_t)(w->bm + 10)) & 7, 4);
    assert_memory_equal(hvxtest_mem(w->b.vm, DATA_AT, 82 * 2048), hvxtest_disk_data(w->cd) + 3 * 2048, 82 * 2048);
}

static void cd_read_beyond_the_end(void **state)
{
    struct world *w = *state;
    clear_attention(w);
    packet(w, (const uint8_t[12]){0x28, 0, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff}, false, 2048);
    assert_int_equal(status(w, CD_CMD), 0x41);
    packet(w, (const uint8_t[12]){0xa8, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, true, 2048);
    assert_int_equal(status(w, CD_CMD), 0x41);
}

static void state_in_the_middle_of_a_read(void **state)
{
    struct world *w = *state;
    uint8_t got[3 * 512], *saved;
    size_t n;
    struct hvx_error err;
    lba28(w, 200, 3, 0x20);
    status(w, CMD);
    pio_in(w, CMD, got, 700);
    assert_int_equal(hvxtest_save(w->b.type->state, w->b.dev, 1, &saved, &n), 0);
    w->b.type->reset(w->b.dev);
    assert_int_equal(hvxtest_load(w->b.type->state, w->b.dev, 1, saved, n, &err), 0);
    pio_in(w, CMD, got + 700, sizeof(got) - 700);
    assert_memory_equal(got, hvxtest_disk_data(w->disk) + 200 * 512, sizeof(got));
    assert_int_equal(status(w, CMD), 0x50);
    free(saved);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(identify_tells_the_size), T(pio_read_interrupts_for_each_sector), T(pio_read_multiple_and_chs),
        T(pio_read_longer_than_the_buffer), T(pio_write_reaches_the_disk), T(dma_read_scatters_by_descriptors),
        T(dma_write_and_flush), T(dma_with_too_few_descriptors_is_an_error), T(dma_outside_memory_is_an_error),
        T(disk_errors_reach_the_guest), T(addresses_beyond_the_end_are_refused),
        T(reset_waits_for_the_request_in_flight), T(nien_masks_the_interrupt), T(absent_slave_reads_as_nothing),
        cmocka_unit_test(unknown_drive_is_refused_by_name), T(cd_is_recognised), T(cd_inquiry_capacity_toc),
        T(cd_read_by_pio_respects_the_byte_count), T(cd_read_by_dma), T(cd_read_beyond_the_end),
        T(state_in_the_middle_of_a_read),
    };
    return cmocka_run_group_tests_name("ide", tests, NULL, NULL);
}
