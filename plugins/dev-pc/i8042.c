/* SPDX-License-Identifier: Apache-2.0
 *
 * i8042.c - the keyboard controller, ports 0x60 and 0x64, with a keyboard on
 * irq 1 and a mouse on irq 12.
 *
 * Bytes wait in the queues of their devices; one at a time moves to the
 * output buffer, answers of the controller first. The interrupt lines follow
 * the buffer: they fall when port 0x60 is read.
 */
#include "pc.h"
#include "ps2.h"

#include <stdlib.h>
#include <string.h>

#define STATUS_OBF 0x01u
#define STATUS_SYSTEM 0x04u
#define STATUS_COMMAND 0x08u
#define STATUS_UNLOCKED 0x10u
#define STATUS_AUX 0x20u

#define CTR_KBD_INT 0x01u
#define CTR_AUX_INT 0x02u
#define CTR_SYSTEM 0x04u
#define CTR_KBD_OFF 0x10u
#define CTR_AUX_OFF 0x20u
#define CTR_TRANSLATE 0x40u

#define OUT_RESET 0x01u /* low: reset */
#define OUT_A20 0x02u
#define KBD_IRQ 1u
#define AUX_IRQ 12u
#define N_RAM 32u
#define KEY_POWER 0xe05eu /* scan code of the Power key: the ACPI button */

struct i8042 {
    struct pc *pc;
    struct ps2_keyboard keyboard;
    struct ps2_mouse mouse;
    uint8_t ram[N_RAM]; /* ram[0] is the command byte */
    uint8_t command;    /* whose data byte is expected on port 0x60; 0: none */
    uint8_t outport;
    uint8_t data;     /* output buffer */
    bool full, aux;   /* output buffer holds a byte; from the mouse */
    bool last_was_command;
    bool released; /* 0xf0 came from the keyboard: the next code is a release */
    uint8_t reply;    /* the controller's own answer, waiting */
    bool has_reply, reply_aux;
};

static void set_lines(struct i8042 *k)
{
    const struct hvx_host *host = k->pc->host;
    host->irq_set(k->pc->vm, KBD_IRQ, k->full && !k->aux && (k->ram[0] & CTR_KBD_INT));
    host->irq_set(k->pc->vm, AUX_IRQ, k->full && k->aux && (k->ram[0] & CTR_AUX_INT));
}

/* The next byte of the keyboard, translated if asked; false when there is none. */
static bool keyboard_byte(struct i8042 *k, uint8_t *v)
{
    while (ps2_queue_get(&k->keyboard.out, v)) {
        if (!(k->ram[0] & CTR_TRANSLATE)) {
            k->released = false;
            return true;
        }
        if (*v == 0xf0) {
            k->released = true;
            continue;
        }
        *v = ps2_translate(*v);
        if (k->released && *v < 0x80)
            *v |= 0x80;
        k->released = false;
        return true;
    }
    return false;
}

static void fill(struct i8042 *k)
{
    if (!k->full) {
        if (k->has_reply) {
            k->data = k->reply;
            k->aux = k->reply_aux;
            k->full = true;
            k->has_reply = false;
        } else if (!(k->ram[0] & CTR_KBD_OFF) && keyboard_byte(k, &k->data)) {
            k->aux = false;
            k->full = true;
        } else if (!(k->ram[0] & CTR_AUX_OFF) && ps2_queue_get(&k->mouse.out, &k->data)) {
            k->aux = true;
            k->full = true;
        }
    }
    set_lines(k);
}

static void answer(struct i8042 *k, uint8_t v, bool aux)
{
    k->reply = v;
    k->reply_aux = aux;
    k->has_reply = true;
}

static void write_outport(struct i8042 *k, uint8_t v)
{
    k->outport = v;
    if (!(v & OUT_RESET))
        k->pc->host->vm_request(k->pc->vm, HVX_VM_RESET, 0);
}

static uint8_t read_outport(const struct i8042 *k)
{
    return (uint8_t)((k->outport & 0x03) | 0xc0 | (k->full && !k->aux ? 0x10 : 0) | (k->full && k->aux ? 0x20 : 0));
}

static void controller_command(struct i8042 *k, uint8_t v)
{
    k->command = 0;
    if (v >= 0x20 && v < 0x40) {
        answer(k, k->ram[v & 0x1f], false);
    } else if (v >= 0x60 && v < 0x80) {
        k->command = v;
    } else if (v >= 0xf0) {
        if (!(v & 1)) /* pulse output bit 0 */
            k->pc->host->vm_request(k->pc->vm, HVX_VM_RESET, 0);
    } else {
        switch (v) {
        case 0xa4: answer(k, 0xf1, false); break; /* no password */
        case 0xa7: k->ram[0] |= CTR_AUX_OFF; break;
        case 0xa8: k->ram[0] &= (uint8_t)~CTR_AUX_OFF; break;
        case 0xa9: answer(k, 0x00, false); break; /* mouse port is good */
        case 0xaa:
            k->ram[0] |= CTR_SYSTEM;
            answer(k, 0x55, false);
            break;
        case 0xab: answer(k, 0x00, false); break;
        case 0xad: k->ram[0] |= CTR_KBD_OFF; break;
        case 0xae: k->ram[0] &= (uint8_t)~CTR_KBD_OFF; break;
        case 0xc0: answer(k, 0x80, false); break; /* input port: not locked */
        case 0xd0: answer(k, read_outport(k), false); break;
        case 0xd1: case 0xd2: case 0xd3: case 0xd4: k->command = v; break;
        case 0xdd: k->outport &= (uint8_t)~OUT_A20; break;
        case 0xdf: k->outport |= OUT_A20; break;
        default: break;
        }
    }
    fill(k);
}

static void data_write(struct i8042 *k, uint8_t v)
{
    uint8_t command = k->command;
    k->command = 0;
    if (command >= 0x60 && command < 0x80) {
        k->ram[command & 0x1f] = v;
    } else {
        switch (command) {
        case 0xd1: write_outport(k, v); break;
        case 0xd2: answer(k, v, false); break;
        case 0xd3: answer(k, v, true); break;
        case 0xd4:
            k->ram[0] &= (uint8_t)~CTR_AUX_OFF;
            ps2_mouse_write(&k->mouse, v);
            break;
        default:
            k->ram[0] &= (uint8_t)~CTR_KBD_OFF; /* sending starts the keyboard's clock */
            ps2_keyboard_write(&k->keyboard, v);
        }
    }
    fill(k);
}

static uint64_t i8042_read_data(void *opaque, uint64_t off, unsigned size)
{
    struct i8042 *k = opaque;
    (void)off, (void)size;
    uint8_t v = k->data;
    if (k->full) {
        k->full = false;
        set_lines(k); /* down, so that the next byte makes an edge */
        fill(k);
    }
    return v;
}

static void i8042_write_data(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct i8042 *k = opaque;
    (void)off, (void)size;
    k->last_was_command = false;
    data_write(k, (uint8_t)value);
}

static uint64_t i8042_read_status(void *opaque, uint64_t off, unsigned size)
{
    struct i8042 *k = opaque;
    (void)off, (void)size;
    return STATUS_UNLOCKED | (k->full ? STATUS_OBF : 0) | (k->full && k->aux ? STATUS_AUX : 0) |
           (k->ram[0] & CTR_SYSTEM ? STATUS_SYSTEM : 0) | (k->last_was_command ? STATUS_COMMAND : 0);
}

static void i8042_write_command(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct i8042 *k = opaque;
    (void)off, (void)size;
    k->last_was_command = true;
    controller_command(k, (uint8_t)value);
}

static const struct hvx_region_ops data_ops = {i8042_read_data, i8042_write_data};
static const struct hvx_region_ops status_ops = {i8042_read_status, i8042_write_command};

/* --- input from people --------------------------------------------------------- */
static void input_key(void *opaque, uint16_t set1, bool down)
{
    struct i8042 *k = opaque;
    if (set1 == KEY_POWER && down) {
        piix4_pm_power_button(k->pc->pm);
        return;
    }
    ps2_keyboard_key(&k->keyboard, set1, down);
    fill(k);
}

static void input_pointer(void *opaque, int dx, int dy, uint32_t buttons)
{
    struct i8042 *k = opaque;
    ps2_mouse_move(&k->mouse, dx, dy, buttons);
    fill(k);
}

static const struct hvx_input_ops input_ops = {
    .size = sizeof(input_ops), .key = input_key, .pointer = input_pointer};

int i8042_create(struct pc *pc, struct i8042 **out, struct hvx_error *err)
{
    struct i8042 *k = calloc(1, sizeof(*k));
    if (!k)
        return hvx_fail(err, -ENOMEM, "pc: no memory for the keyboard controller");
    k->pc = pc;
    *out = k;
    int rc = pc_region(pc, HVX_SPACE_PIO, 0x60, 1, 0, "i8042-data", &data_ops, k, err);
    if (rc == 0)
        rc = pc_region(pc, HVX_SPACE_PIO, 0x64, 1, 0, "i8042-status", &status_ops, k, err);
    if (rc == 0) {
        rc = pc->host->input_add(pc->vm, &input_ops, k);
        if (rc)
            hvx_fail(err, rc, "pc: the keyboard could not be connected: %s", strerror(-rc));
    }
    return rc;
}

void i8042_destroy(struct i8042 *k)
{
    free(k);
}

void i8042_reset(struct i8042 *k)
{
    ps2_keyboard_reset(&k->keyboard);
    ps2_mouse_reset(&k->mouse);
    memset(k->ram, 0, sizeof(k->ram));
    k->ram[0] = CTR_KBD_INT | CTR_AUX_INT;
    k->command = 0;
    k->outport = OUT_RESET | OUT_A20 | 0xc0;
    k->full = k->aux = k->has_reply = k->reply_aux = k->released = k->last_was_command = false;
    set_lines(k);
}

void i8042_default_mode(struct i8042 *k)
{
    k->ram[0] = CTR_KBD_INT | CTR_SYSTEM | CTR_AUX_OFF | CTR_TRANSLATE;
}

int i8042_state(struct i8042 *k, struct hvx_stream *s)
{
    ps2_keyboard_state(&k->keyboard, s);
    ps2_mouse_state(&k->mouse, s);
    hvx_state_bytes(s, k->ram, sizeof(k->ram));
    hvx_state_u8(s, &k->command);
    hvx_state_u8(s, &k->outport);
    hvx_state_u8(s, &k->data);
    hvx_state_bool(s, &k->full);
    hvx_state_bool(s, &k->aux);
    hvx_state_bool(s, &k->last_was_command);
    hvx_state_bool(s, &k->released);
    hvx_state_u8(s, &k->reply);
    hvx_state_bool(s, &k->has_reply);
    hvx_state_bool(s, &k->reply_aux);
    return hvx_state_error(s);
}
