/* SPDX-License-Identifier: Apache-2.0
 *
 * test_board.h - a whole board on the fake host, for the unit tests: made
 * with small files in place of firmware and VGA BIOS, reset, and driven
 * through its ports as a guest would.
 */
#ifndef DEV_PC_TEST_BOARD_H
#define DEV_PC_TEST_BOARD_H

#include <hvx/test.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define BOARD_RAM (16u << 20)
#define BOARD_FIRMWARE_BYTES 0x40000u

struct board {
    struct hvx_vm *vm;
    const struct hvx_device_type *type;
    struct hvx_config *config;
    void *ctx, *dev;
};

/* Options as "key=value,..." or NULL; params NULL: BOARD_RAM, one vCPU. */
void board_new(struct board *b, struct hvx_vm *vm, const char *options);
int board_try(struct board *b, struct hvx_vm *vm, const char *options, struct hvx_error *err);
void board_free(struct board *b); /* the VM too */
struct hvx_vm *board_vm(void);
const struct hvx_device_type *board_type(const char *name);

static inline uint8_t in8(struct board *b, uint16_t port) { return (uint8_t)hvxtest_pio_read(b->vm, port, 1); }
static inline uint16_t in16(struct board *b, uint16_t port) { return (uint16_t)hvxtest_pio_read(b->vm, port, 2); }
static inline uint32_t in32(struct board *b, uint16_t port) { return (uint32_t)hvxtest_pio_read(b->vm, port, 4); }
static inline void out8(struct board *b, uint16_t port, uint8_t v) { hvxtest_pio_write(b->vm, port, 1, v); }
static inline void out16(struct board *b, uint16_t port, uint16_t v) { hvxtest_pio_write(b->vm, port, 2, v); }
static inline void out32(struct board *b, uint16_t port, uint32_t v) { hvxtest_pio_write(b->vm, port, 4, v); }
static inline void step_us(struct board *b, uint64_t us) { hvxtest_step_ns(b->vm, us * 1000); }

/* PCI configuration through 0xcf8/0xcfc. */
uint32_t board_cfg_read(struct board *b, unsigned devfn, unsigned off, unsigned size);
void board_cfg_write(struct board *b, unsigned devfn, unsigned off, unsigned size, uint32_t v);

#endif
