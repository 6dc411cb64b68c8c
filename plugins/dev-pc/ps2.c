/* SPDX-License-Identifier: Apache-2.0
 *
 * ps2.c - keyboard (scan sets 1 and 2) and three-button mouse.
 *
 * Commands: IBM PS/2 Hardware Interface Technical Reference, keyboard and
 * auxiliary device sections.
 */
#include "ps2.h"

#include <string.h>

#define ACK 0xfau
#define RESEND 0xfeu
#define SELF_TEST_OK 0xaau

/* --- queues ------------------------------------------------------------------- */
static void queue_clear(struct ps2_queue *q)
{
    q->head = q->len = 0;
}

/* All n bytes or none: half a packet would put driver and device out of step. */
static bool queue_put(struct ps2_queue *q, const uint8_t *v, unsigned n)
{
    if (q->len + n > PS2_QUEUE)
        return false;
    for (unsigned i = 0; i < n; i++)
        q->bytes[(q->head + q->len++) % PS2_QUEUE] = v[i];
    return true;
}

bool ps2_queue_get(struct ps2_queue *q, uint8_t *v)
{
    if (!q->len)
        return false;
    *v = q->bytes[q->head];
    q->head = (uint8_t)((q->head + 1) % PS2_QUEUE);
    q->len--;
    return true;
}

static void queue_state(struct ps2_queue *q, struct hvx_stream *s)
{
    hvx_state_bytes(s, q->bytes, sizeof(q->bytes));
    hvx_state_u8(s, &q->head);
    hvx_state_u8(s, &q->len);
    if (q->head >= PS2_QUEUE || q->len > PS2_QUEUE) {
        queue_clear(q);
        hvx_state_fail(s, -EINVAL, "PS/2: a queue's length is out of range");
    }
}

/* --- keyboard ------------------------------------------------------------------ */
static const uint8_t set2_to_set1[0x85] = {
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59, /* 00 */
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b, /* 10 */
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d, /* 20 */
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f, /* 30 */
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61, /* 40 */
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76, /* 50 */
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f, /* 60 */
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54, /* 70 */
    0x80, 0x81, 0x82, 0x41, 0x54,                                                                   /* 80 */
};

uint8_t ps2_translate(uint8_t set2)
{
    return set2 < sizeof(set2_to_set1) ? set2_to_set1[set2] : set2;
}

static uint8_t set1_to_set2(uint8_t code)
{
    for (unsigned i = 1; i < 0x80; i++)
        if (set2_to_set1[i] == code)
            return (uint8_t)i;
    return code == 0x41 ? 0x83 : 0;
}

void ps2_keyboard_reset(struct ps2_keyboard *k)
{
    memset(k, 0, sizeof(*k));
    k->scan_set = 2;
    k->scanning = true;
}

static void keyboard_reply(struct ps2_keyboard *k, const uint8_t *v, unsigned n)
{
    queue_put(&k->out, v, n);
    k->last = v[n - 1];
}

static void keyboard_argument(struct ps2_keyboard *k, uint8_t command, uint8_t v)
{
    uint8_t reply[2] = {ACK, 0};
    unsigned n = 1;
    if (command == 0xed) {
        k->leds = v & 7;
    } else if (command == 0xf0) {
        if (v == 0) {
            reply[1] = k->scan_set;
            n = 2;
        } else if (v <= 2) {
            k->scan_set = v;
        } else {
            reply[0] = RESEND; /* set 3 is not there */
        }
    }
    keyboard_reply(k, reply, n);
}

void ps2_keyboard_write(struct ps2_keyboard *k, uint8_t v)
{
    static const uint8_t ack[] = {ACK}, echo[] = {0xee}, id[] = {ACK, 0xab, 0x83}, bat[] = {ACK, SELF_TEST_OK},
                         resend[] = {RESEND};
    uint8_t pending = k->pending;
    k->pending = 0;
    if (pending && v < 0xed) {
        keyboard_argument(k, pending, v);
        return;
    }
    switch (v) {
    case 0xed: /* LEDs */
    case 0xf0: /* scan set */
    case 0xf3: /* repeat rate */
        k->pending = v;
        keyboard_reply(k, ack, 1);
        break;
    case 0xee:
        keyboard_reply(k, echo, 1);
        break;
    case 0xf2:
        keyboard_reply(k, id, 3);
        break;
    case 0xf4:
        queue_clear(&k->out);
        k->scanning = true;
        keyboard_reply(k, ack, 1);
        break;
    case 0xf5:
    case 0xf6:
        queue_clear(&k->out);
        k->scan_set = 2;
        k->scanning = v == 0xf6;
        keyboard_reply(k, ack, 1);
        break;
    case 0xf7: case 0xf8: case 0xf9: case 0xfa: /* key types of scan set 3 */
        keyboard_reply(k, ack, 1);
        break;
    case 0xfe:
        queue_put(&k->out, &k->last, 1);
        break;
    case 0xff:
        ps2_keyboard_reset(k);
        keyboard_reply(k, bat, 2);
        break;
    default:
        keyboard_reply(k, resend, 1);
    }
}

void ps2_keyboard_key(struct ps2_keyboard *k, uint16_t set1, bool down)
{
    uint8_t out[3];
    unsigned n = 0;
    if (!k->scanning)
        return;
    if ((set1 & 0xff00) == 0xe000)
        out[n++] = 0xe0;
    else if (set1 & 0xff00)
        return;
    uint8_t code = set1 & 0x7f;
    if (k->scan_set == 1) {
        out[n++] = (uint8_t)(code | (down ? 0 : 0x80));
    } else {
        uint8_t set2 = set1_to_set2(code);
        if (!set2)
            return;
        if (!down)
            out[n++] = 0xf0;
        out[n++] = set2;
    }
    queue_put(&k->out, out, n);
}

void ps2_keyboard_state(struct ps2_keyboard *k, struct hvx_stream *s)
{
    queue_state(&k->out, s);
    hvx_state_u8(s, &k->pending);
    hvx_state_u8(s, &k->scan_set);
    hvx_state_u8(s, &k->leds);
    hvx_state_u8(s, &k->last);
    hvx_state_bool(s, &k->scanning);
}

/* --- mouse ----------------------------------------------------------------------- */
static void mouse_defaults(struct ps2_mouse *m)
{
    m->rate = 100;
    m->resolution = 2;
    m->reporting = m->remote = m->scaling = m->wrap = false;
    m->dx = m->dy = 0;
}

void ps2_mouse_reset(struct ps2_mouse *m)
{
    memset(m, 0, sizeof(*m));
    mouse_defaults(m);
}

static int clamp9(int v)
{
    return v < -256 ? -256 : v > 255 ? 255 : v;
}

/* One movement packet; what does not fit in nine bits goes into the next. */
static bool mouse_packet(struct ps2_mouse *m)
{
    int dx = clamp9(m->dx), dy = clamp9(m->dy);
    uint8_t p[3] = {(uint8_t)(0x08 | (m->buttons & 7) | (dx < 0 ? 0x10 : 0) | (dy < 0 ? 0x20 : 0)), (uint8_t)dx,
                    (uint8_t)dy};
    if (!queue_put(&m->out, p, 3))
        return false;
    m->dx -= dx;
    m->dy -= dy;
    return true;
}

static void mouse_command(struct ps2_mouse *m, uint8_t v)
{
    static const uint8_t ack[] = {ACK}, id[] = {ACK, 0}, bat[] = {ACK, SELF_TEST_OK, 0}, resend[] = {RESEND};
    uint8_t status[4] = {ACK,
                         (uint8_t)((m->remote ? 0x40 : 0) | (m->reporting ? 0x20 : 0) | (m->scaling ? 0x10 : 0) |
                                   (m->buttons & 1) << 2 | (m->buttons & 4) >> 1 | (m->buttons & 2) >> 1),
                         m->resolution, m->rate};
    switch (v) {
    case 0xe6: m->scaling = false; break;
    case 0xe7: m->scaling = true; break;
    case 0xe8: m->pending = v; break;
    case 0xe9: queue_put(&m->out, status, 4); return;
    case 0xea: m->remote = false; break;
    case 0xeb:
        queue_put(&m->out, ack, 1);
        mouse_packet(m);
        return;
    case 0xec: m->wrap = false; break;
    case 0xee: m->wrap = true; break;
    case 0xf0: m->remote = true; break;
    case 0xf2: queue_put(&m->out, id, 2); return;
    case 0xf3: m->pending = v; break;
    case 0xf4: m->reporting = true; break;
    case 0xf5: m->reporting = false; break;
    case 0xf6: mouse_defaults(m); break;
    case 0xff:
        ps2_mouse_reset(m);
        queue_put(&m->out, bat, 3);
        return;
    default:
        queue_put(&m->out, resend, 1);
        return;
    }
    queue_put(&m->out, ack, 1);
}

void ps2_mouse_write(struct ps2_mouse *m, uint8_t v)
{
    static const uint8_t ack[] = {ACK};
    uint8_t pending = m->pending;
    m->pending = 0;
    if (m->wrap && v != 0xff && v != 0xec) {
        queue_put(&m->out, &v, 1);
    } else if (pending) {
        if (pending == 0xe8)
            m->resolution = v & 3;
        else
            m->rate = v;
        queue_put(&m->out, ack, 1);
    } else {
        mouse_command(m, v);
    }
}

static int32_t add_capped(int32_t a, int b)
{
    const int32_t cap = 4096;
    int64_t sum = (int64_t)a + b;
    return sum > cap ? cap : sum < -cap ? -cap : (int32_t)sum;
}

void ps2_mouse_move(struct ps2_mouse *m, int dx, int dy, uint32_t buttons)
{
    bool changed = (buttons & 7) != m->buttons;
    m->buttons = buttons & 7;
    m->dx = add_capped(m->dx, dx);
    m->dy = add_capped(m->dy, -dy); /* the wire counts upwards, screens downwards */
    if (!m->reporting || m->remote)
        return;
    while (changed || m->dx || m->dy) {
        if (!mouse_packet(m))
            break;
        changed = false;
    }
}

void ps2_mouse_state(struct ps2_mouse *m, struct hvx_stream *s)
{
    queue_state(&m->out, s);
    hvx_state_u8(s, &m->pending);
    hvx_state_u8(s, &m->rate);
    hvx_state_u8(s, &m->resolution);
    hvx_state_u8(s, &m->buttons);
    hvx_state_bool(s, &m->reporting);
    hvx_state_bool(s, &m->remote);
    hvx_state_bool(s, &m->scaling);
    hvx_state_bool(s, &m->wrap);
    if (!hvx_stream_is_saving(s))
        m->dx = m->dy = 0;
}
