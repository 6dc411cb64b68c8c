/* SPDX-License-Identifier: Apache-2.0
 *
 * ps2.h - a PS/2 keyboard and a PS/2 mouse, as the 8042 sees them: each takes
 * command bytes and fills a queue of bytes for the controller.
 */
#ifndef DEV_PC_PS2_H
#define DEV_PC_PS2_H

#include <hvx/state.h>

#define PS2_QUEUE 64u

struct ps2_queue {
    uint8_t bytes[PS2_QUEUE];
    uint8_t head, len;
};

struct ps2_keyboard {
    struct ps2_queue out;
    uint8_t pending; /* command whose argument comes next; 0: none */
    uint8_t scan_set;
    uint8_t leds;
    uint8_t last; /* for the resend command */
    bool scanning;
};

struct ps2_mouse {
    struct ps2_queue out;
    uint8_t pending;
    uint8_t rate, resolution, buttons;
    bool reporting, remote, scaling, wrap;
    int32_t dx, dy; /* movement not yet reported */
};

bool ps2_queue_get(struct ps2_queue *q, uint8_t *v);

void ps2_keyboard_reset(struct ps2_keyboard *k);
void ps2_keyboard_write(struct ps2_keyboard *k, uint8_t v);
void ps2_keyboard_key(struct ps2_keyboard *k, uint16_t set1, bool down);
void ps2_keyboard_state(struct ps2_keyboard *k, struct hvx_stream *s);
/* Set 2 to set 1 as the controller translates it, for codes 0..0x84. */
uint8_t ps2_translate(uint8_t set2);

void ps2_mouse_reset(struct ps2_mouse *m);
void ps2_mouse_write(struct ps2_mouse *m, uint8_t v);
void ps2_mouse_move(struct ps2_mouse *m, int dx, int dy, uint32_t buttons);
void ps2_mouse_state(struct ps2_mouse *m, struct hvx_stream *s);
#endif
