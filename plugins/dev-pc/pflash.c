/* SPDX-License-Identifier: Apache-2.0
 *
 * pflash.c - the flash chip that holds UEFI's variables: 8 bits wide, blocks
 * of 4 KiB, the Intel command set (CFI, JEDEC JESD68; command codes as in the
 * 28FxxxJ3 data sheet).
 *
 * Two layers lie at its address. In read-array mode, which is nearly always,
 * a read-only map shows the contents, so that reads cost what RAM costs; a
 * write to it reaches the device region below, as hvx/host.h promises. In the
 * other modes the map is taken away and reads reach the region too.
 *
 * When the chip returns to read-array mode after a change, the changed bytes
 * are on the disk before the guest goes on: firmware orders its writes so that
 * a power failure between any two of them loses no variable.
 */
#include "pc.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define BLOCK 4096u
#define WRITE_BUFFER 256u
#define CFI_LOG2_BUFFER 8u

#define SR_READY 0x80u
#define SR_ERASE_ERROR 0x20u
#define SR_PROGRAM_ERROR 0x10u

enum flash_mode { READ_ARRAY, READ_STATUS, READ_ID, READ_CFI, MODES };
enum flash_step { COMMAND, PROGRAM, ERASE, LOCK, BUFFER_COUNT, BUFFER_DATA, BUFFER_CONFIRM, STEPS };

struct pflash {
    struct pc *pc;
    struct hvx_region *map;
    struct uefi_vars *vars; /* where the contents are kept */
    uint8_t *data;
    uint64_t gpa;
    uint32_t bytes;
    uint8_t mode, step, status;
    uint32_t dirty_from, dirty_to; /* changed since the last sync */
    /* A buffered write under way. */
    uint32_t buffer_block, buffer_left;
    uint8_t buffer[BLOCK];
    bool buffer_set[BLOCK];
};

static void touched(struct pflash *f, uint32_t at, uint32_t n)
{
    if (f->dirty_from >= f->dirty_to) {
        f->dirty_from = at;
        f->dirty_to = at + n;
        return;
    }
    f->dirty_from = at < f->dirty_from ? at : f->dirty_from;
    f->dirty_to = at + n > f->dirty_to ? at + n : f->dirty_to;
}

static void sync_file(struct pflash *f)
{
    struct hvx_error err;
    if (f->dirty_from >= f->dirty_to)
        return;
    /* The VM goes on with what it has in memory; the next change tries again. */
    if (uefi_vars_write(f->vars, f->data, f->dirty_from, f->dirty_to - f->dirty_from, &err))
        f->pc->host->log(HVX_LOG_ERROR, "pc", "%s", err.text);
    else
        f->dirty_from = f->dirty_to = 0;
}

static void set_mode(struct pflash *f, enum flash_mode mode)
{
    bool was_array = f->mode == READ_ARRAY, is_array = mode == READ_ARRAY;
    f->mode = (uint8_t)mode;
    if (is_array)
        sync_file(f);
    if (was_array == is_array)
        return;
    /* Both places are known to be good: the map has been there. */
    if (f->pc->host->region_move(f->pc->vm, f->map, is_array ? f->gpa : UINT64_MAX))
        f->pc->host->log(HVX_LOG_ERROR, "pc", "UEFI variables: their memory could not be mapped");
}

/* --- commands ------------------------------------------------------------------------ */
static void command(struct pflash *f, uint8_t v)
{
    f->step = COMMAND;
    switch (v) {
    case 0x10: case 0x40: f->step = PROGRAM; break;
    case 0x20: f->step = ERASE; break;
    case 0x60: f->step = LOCK; break;
    case 0xe8: f->step = BUFFER_COUNT; break;
    case 0x70: break;
    case 0x50:
        /* The part would say "ready" afterwards. OVMF takes a status of zero here for a sign of flash. */
        f->status = 0;
        set_mode(f, READ_ARRAY);
        return;
    case 0x90: set_mode(f, READ_ID); return;
    case 0x98: set_mode(f, READ_CFI); return;
    case 0x00: case 0xf0: case 0xff: set_mode(f, READ_ARRAY); return;
    default:
        f->pc->host->guest_event(f->pc->vm, "flash", "unknown command %#x to the flash chip", v);
        set_mode(f, READ_ARRAY);
        return;
    }
    if (v == 0xe8)
        f->status |= SR_READY; /* "buffer available" */
    set_mode(f, READ_STATUS);
}

/* The guest may program without having erased: bits can be set as well as cleared, as other virtual chips do it. */
static void program(struct pflash *f, uint32_t at, uint8_t v)
{
    f->data[at] = v;
    touched(f, at, 1);
    f->status |= SR_READY;
}

static void erase(struct pflash *f, uint32_t at)
{
    at &= ~(BLOCK - 1);
    memset(f->data + at, 0xff, BLOCK);
    touched(f, at, BLOCK);
    f->status |= SR_READY;
}

static void buffer_start(struct pflash *f, uint32_t at, uint8_t v)
{
    f->buffer_block = at & ~(BLOCK - 1);
    f->buffer_left = (uint32_t)v + 1; /* at most WRITE_BUFFER, by its type */
    memset(f->buffer_set, 0, sizeof(f->buffer_set));
    f->step = BUFFER_DATA;
}

static void buffer_data(struct pflash *f, uint32_t at, uint8_t v)
{
    if ((at & ~(BLOCK - 1)) != f->buffer_block) {
        f->status |= SR_READY | SR_PROGRAM_ERROR;
        f->step = COMMAND;
        return;
    }
    f->buffer[at % BLOCK] = v;
    f->buffer_set[at % BLOCK] = true;
    if (--f->buffer_left == 0)
        f->step = BUFFER_CONFIRM;
}

static void buffer_confirm(struct pflash *f, uint8_t v)
{
    f->step = COMMAND;
    if (v != 0xd0) {
        f->status |= SR_READY | SR_PROGRAM_ERROR;
        return;
    }
    for (uint32_t i = 0; i < BLOCK; i++)
        if (f->buffer_set[i])
            program(f, f->buffer_block + i, f->buffer[i]);
}

static void flash_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct pflash *f = opaque;
    uint32_t at = (uint32_t)off;
    uint8_t v = (uint8_t)value;
    (void)size; /* always 1 */
    switch (f->step) {
    case PROGRAM:
        program(f, at, v);
        f->step = COMMAND;
        break;
    case ERASE:
        if (v == 0xd0)
            erase(f, at);
        else
            f->status |= SR_READY | SR_ERASE_ERROR | SR_PROGRAM_ERROR; /* "improper command sequence" */
        f->step = COMMAND;
        break;
    case LOCK: /* blocks have no locks: set, clear and lock down all succeed */
        f->status |= SR_READY;
        f->step = COMMAND;
        break;
    case BUFFER_COUNT: buffer_start(f, at, v); break;
    case BUFFER_DATA: buffer_data(f, at, v); break;
    case BUFFER_CONFIRM: buffer_confirm(f, v); break;
    default: command(f, v);
    }
}

/* --- reading in the other modes -------------------------------------------------------- */
static uint8_t cfi_byte(const struct pflash *f, uint32_t at)
{
    /* JESD68.01: query string, command set 1 (Intel), typical and greatest times, geometry with one kind of block. */
    uint32_t n_blocks = f->bytes / BLOCK - 1, log2_bytes = 31u - (uint32_t)__builtin_clz(f->bytes);
    uint8_t table[0x31 - 0x10] = {
        'Q', 'R', 'Y', 1, 0, 0x31, 0, 0, 0, 0, 0, 0x45, 0x55, 0, 0, 7, 7, 10, 0, 4, 4, 4, 0,
        (uint8_t)log2_bytes, 0, 0, CFI_LOG2_BUFFER, 0, 1,
        (uint8_t)n_blocks, (uint8_t)(n_blocks >> 8), BLOCK >> 8 & 0xff, BLOCK >> 16,
    };
    return at >= 0x10 && at < 0x31 ? table[at - 0x10] : 0;
}

static uint64_t flash_read(void *opaque, uint64_t off, unsigned size)
{
    struct pflash *f = opaque;
    (void)size; /* always 1 */
    switch (f->mode) {
    case READ_STATUS: return f->status;
    case READ_ID: return off % BLOCK == 0 ? 0x89 : off % BLOCK == 1 ? 0x18 : 0; /* Intel; its 28F128J3 */
    case READ_CFI: return cfi_byte(f, (uint32_t)off % BLOCK);
    default: return f->data[off];
    }
}

static const struct hvx_region_ops flash_ops = {flash_read, flash_write};

/* --- life -------------------------------------------------------------------------------- */
int pflash_create(struct pc *pc, uint64_t end, struct uefi_vars *vars, struct pflash **out, struct hvx_error *err)
{
    struct pflash *f = calloc(1, sizeof(*f));
    if (!f) {
        uefi_vars_close(vars);
        return hvx_fail(err, -ENOMEM, "UEFI variables: no memory");
    }
    *out = f;
    f->pc = pc;
    f->vars = vars;
    f->bytes = uefi_vars_bytes(vars);
    f->gpa = end - f->bytes;
    f->status = SR_READY;
    void *p = mmap(NULL, f->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return hvx_fail(err, -ENOMEM, "UEFI variables: no memory for %u bytes", f->bytes);
    f->data = p;
    int rc = uefi_vars_read(vars, f->data, err);
    if (rc == 0)
        rc = pc_region(pc, HVX_SPACE_MMIO, f->gpa, f->bytes, HVX_REGION_MIN1, "uefi-vars", &flash_ops, f, err);
    if (rc == 0)
        rc = pc->host->mem_map(pc->vm, f->gpa, f->bytes, f->data, true, "uefi-vars-array", &f->map, err);
    return rc;
}

void pflash_destroy(struct pflash *f)
{
    if (!f)
        return;
    if (f->data && f->map)
        sync_file(f);
    if (f->map)
        f->pc->host->region_del(f->pc->vm, f->map);
    if (f->data)
        munmap(f->data, f->bytes);
    uefi_vars_close(f->vars);
    free(f);
}

void pflash_reset(struct pflash *f)
{
    f->step = COMMAND;
    f->status = SR_READY;
    set_mode(f, READ_ARRAY);
}

int pflash_state(struct pflash *f, struct hvx_stream *s)
{
    uint32_t bytes = f->bytes;
    uint8_t mode = f->mode;
    hvx_state_u32(s, &bytes);
    if (bytes != f->bytes) {
        hvx_state_fail(s, -EINVAL, "UEFI variables: the saved ones have another size; start with the VM's firmware");
        return hvx_state_error(s);
    }
    hvx_state_u8(s, &mode);
    hvx_state_u8(s, &f->step);
    hvx_state_u8(s, &f->status);
    hvx_state_bytes(s, f->data, f->bytes);
    hvx_state_u32(s, &f->buffer_block);
    hvx_state_u32(s, &f->buffer_left);
    hvx_state_bytes(s, f->buffer, sizeof(f->buffer));
    for (unsigned i = 0; i < BLOCK; i++)
        hvx_state_bool(s, &f->buffer_set[i]);
    if (f->buffer_block >= f->bytes || f->buffer_block % BLOCK || f->buffer_left > WRITE_BUFFER || mode >= MODES ||
        f->step >= STEPS || (f->step == BUFFER_DATA && !f->buffer_left)) {
        f->buffer_block = f->buffer_left = f->step = mode = 0;
        hvx_state_fail(s, -EINVAL, "UEFI variables: the flash chip's state is out of range");
    }
    if (!hvx_stream_is_saving(s) && !hvx_state_error(s)) {
        touched(f, 0, f->bytes); /* the file follows the machine */
        sync_file(f);
        set_mode(f, (enum flash_mode)mode);
    }
    return hvx_state_error(s);
}
