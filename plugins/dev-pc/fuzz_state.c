/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: a saved state that somebody changed. Triples of the input are
 * a position (of four bytes) and a byte to put there; the result is loaded,
 * taken or refused, and the board is used afterwards.
 */
#include "test_board.h"

#include <stdlib.h>
#include <string.h>

/* The saved buffers of the drives are long and may hold anything: most changes go elsewhere. */
static size_t spread(uint32_t position, size_t n)
{
    if (position & 1)
        return n - 1 - (position >> 1) % (n < 1000 ? n : 1000);
    return (position >> 1) % n;
}

static void use(struct board *b)
{
    static const uint16_t first[] = {0x00, 0x40, 0x60, 0x70, 0xb0, 0xc0,
                                     0x170, 0x1f0, 0x2f8, 0x370, 0x3f0, 0x510, 0x600};
    for (unsigned i = 0; i < sizeof(first) / sizeof(first[0]); i++) {
        for (unsigned port = first[i]; port < first[i] + 16u; port++) {
            in8(b, (uint16_t)port);
            if (port % 8 == 0)
                out8(b, (uint16_t)port, (uint8_t)port);
        }
    }
    for (unsigned i = 0; i < 300; i++) {
        in32(b, 0x1f0);
        in32(b, 0x170);
    }
    out8(b, 0xc000, 9);
    hvxtest_step_ns(b->vm, 30000000);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct board b;
    struct hvx_vm *vm = board_vm();
    struct hvx_error err;
    static uint8_t *fresh; /* saving takes longer than all the rest */
    static size_t n_fresh;
    uint8_t *state;
    size_t n;
    hvxtest_disk_add(vm, "disk0", &(struct hvxtest_disk_params){.bytes = 1 << 20});
    hvxtest_disk_add(vm, "disk1", &(struct hvxtest_disk_params){.bytes = 1 << 20, .read_only = true, .cdrom = true});
    board_new(&b, vm, "vga=off,ide0=disk0,ide2=disk1");
    if (!fresh && hvxtest_save(b.type->state, b.dev, 1, &fresh, &n_fresh))
        abort();
    n = n_fresh;
    state = malloc(n);
    if (!state)
        abort();
    memcpy(state, fresh, n);
    for (size_t i = 0; i + 5 <= size && i < 500; i += 5) {
        uint32_t position;
        memcpy(&position, data + i, 4);
        state[spread(position, n)] = data[i + 4];
    }
    (void)!hvxtest_load(b.type->state, b.dev, 1, state, n - (size & 1), &err);
    use(&b);
    b.type->reset(b.dev);
    use(&b);
    hvxtest_run(vm);
    free(state);
    board_free(&b);
    return 0;
}
