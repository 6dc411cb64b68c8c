/* SPDX-License-Identifier: Apache-2.0
 *
 * uart.c - the 16550A, COM1..COM4.
 *
 * Output goes to the character stream at once, without the delay of a real
 * line. When the stream takes no more, bytes wait in the transmit FIFO and
 * THR-empty stays off until a timer finds room: a guest that floods the line
 * waits, the host never does. A byte written to a full FIFO is lost, as on
 * the part.
 *
 * Registers: National Semiconductor PC16550D data sheet, section 8.
 */
#include "pc.h"

#include <stdlib.h>
#include <string.h>

#define FIFO_BYTES 16u
#define RETRY_NS 1000000u

#define IER_RX 0x01u
#define IER_THRE 0x02u
#define IER_LINE 0x04u
#define IER_MODEM 0x08u
#define IIR_NONE 0x01u
#define IIR_THRE 0x02u
#define IIR_RX 0x04u
#define IIR_LINE 0x06u
#define IIR_TIMEOUT 0x0cu
#define IIR_FIFO 0xc0u
#define FCR_ENABLE 0x01u
#define FCR_CLEAR_RX 0x02u
#define FCR_CLEAR_TX 0x04u
#define LCR_DLAB 0x80u
#define MCR_OUT2 0x08u
#define MCR_LOOP 0x10u
#define LSR_DR 0x01u
#define LSR_OE 0x02u
#define LSR_THRE 0x20u
#define LSR_TEMT 0x40u
#define MSR_DCD 0x80u
#define MSR_RI 0x40u
#define MSR_DSR 0x20u
#define MSR_CTS 0x10u

const uint16_t uart_port[PC_MAX_SERIAL] = {0x3f8, 0x2f8, 0x3e8, 0x2e8};
const uint8_t uart_irq[PC_MAX_SERIAL] = {4, 3, 4, 3};

struct uart {
    struct pc *pc;
    unsigned index;
    struct hvx_chr *chr;
    struct hvx_timer *retry;
    uint8_t ier, fcr, lcr, mcr, scr;
    uint8_t overrun; /* LSR_OE until LSR is read */
    uint8_t msr_delta;
    uint16_t divisor;
    bool level; /* what this part asks of its line */
    bool thre_pending; /* THR-empty interrupt not yet seen */
    uint8_t rx[FIFO_BYTES], tx[FIFO_BYTES];
    uint8_t rx_head, rx_len, tx_len;
};

static unsigned fifo_size(const struct uart *u)
{
    return u->fcr & FCR_ENABLE ? FIFO_BYTES : 1;
}

static unsigned rx_trigger(const struct uart *u)
{
    static const uint8_t level[4] = {1, 4, 8, 14};
    return u->fcr & FCR_ENABLE ? level[u->fcr >> 6] : 1;
}

static uint8_t interrupt_cause(const struct uart *u)
{
    if ((u->ier & IER_LINE) && u->overrun)
        return IIR_LINE;
    if ((u->ier & IER_RX) && u->rx_len >= rx_trigger(u))
        return IIR_RX;
    /* Characters below the trigger: the time-out of four character times is reported at once. */
    if ((u->ier & IER_RX) && u->rx_len)
        return IIR_TIMEOUT;
    if ((u->ier & IER_THRE) && u->thre_pending)
        return IIR_THRE;
    if ((u->ier & IER_MODEM) && u->msr_delta)
        return 0;
    return IIR_NONE;
}

static void update_irq(struct uart *u)
{
    /* OUT2 gates the line on a PC */
    bool level = interrupt_cause(u) != IIR_NONE && (u->mcr & MCR_OUT2) && !(u->mcr & MCR_LOOP);
    if (level == u->level)
        return;
    u->level = level;
    /* COM1 and COM3 share a line, COM2 and COM4 another */
    struct uart *twin = u->pc->uart[u->index ^ 2];
    u->pc->host->irq_set(u->pc->vm, uart_irq[u->index], level || (twin && twin->level));
}

/* Give the stream what waits. */
static void drain(struct uart *u)
{
    if (!u->tx_len)
        return;
    size_t taken = u->pc->host->chr_write(u->chr, u->tx, u->tx_len);
    if (taken > u->tx_len)
        taken = u->tx_len;
    u->tx_len = (uint8_t)(u->tx_len - taken);
    memmove(u->tx, u->tx + taken, u->tx_len);
    if (u->tx_len) {
        u->pc->host->timer_set(u->retry, u->pc->host->clock_ns() + RETRY_NS);
    } else {
        u->thre_pending = true;
    }
}

static void retry_due(void *opaque)
{
    struct uart *u = opaque;
    drain(u);
    update_irq(u);
}

static void rx_put(struct uart *u, uint8_t v)
{
    if (u->rx_len >= fifo_size(u)) {
        u->overrun = LSR_OE;
        return;
    }
    u->rx[(u->rx_head + u->rx_len++) % FIFO_BYTES] = v;
}

static uint8_t rx_get(struct uart *u)
{
    if (!u->rx_len)
        return 0;
    uint8_t v = u->rx[u->rx_head];
    u->rx_head = (uint8_t)((u->rx_head + 1) % FIFO_BYTES);
    if (--u->rx_len == 0)
        u->pc->host->chr_rx_ready(u->chr);
    return v;
}

/* Bytes for the guest. */
static size_t uart_receive(void *opaque, const uint8_t *buf, size_t n)
{
    struct uart *u = opaque;
    size_t i = 0;
    if (u->mcr & MCR_LOOP)
        return 0;
    for (; i < n && u->rx_len < fifo_size(u); i++)
        rx_put(u, buf[i]);
    if (i)
        update_irq(u);
    return i;
}

static const struct hvx_chr_ops uart_chr_ops = {.size = sizeof(uart_chr_ops), .receive = uart_receive};

static void tx_write(struct uart *u, uint8_t v)
{
    u->thre_pending = false;
    update_irq(u); /* down first: an edge-triggered input must see the next one */
    if (u->mcr & MCR_LOOP) {
        rx_put(u, v);
        u->thre_pending = true;
    } else {
        if (u->tx_len < fifo_size(u))
            u->tx[u->tx_len++] = v;
        else
            u->pc->host->guest_event(u->pc->vm, "serial-overrun", "COM%u: a byte was written to the full transmitter",
                                     u->index + 1);
        drain(u);
    }
}

static uint8_t line_status(struct uart *u)
{
    uint8_t v = (uint8_t)((u->rx_len ? LSR_DR : 0) | u->overrun | (u->tx_len ? 0 : LSR_THRE | LSR_TEMT));
    u->overrun = 0;
    return v;
}

static uint8_t modem_lines(const struct uart *u)
{
    if (!(u->mcr & MCR_LOOP))
        return MSR_DCD | MSR_DSR | MSR_CTS;
    return (uint8_t)((u->mcr & 0x01 ? MSR_DSR : 0) | (u->mcr & 0x02 ? MSR_CTS : 0) | (u->mcr & 0x04 ? MSR_RI : 0) |
                     (u->mcr & 0x08 ? MSR_DCD : 0));
}

static void mcr_write(struct uart *u, uint8_t v)
{
    uint8_t before = modem_lines(u);
    u->mcr = v & 0x1f;
    uint8_t after = modem_lines(u), changed = before ^ after;
    /* the delta of RI is set only when it falls */
    u->msr_delta |= (uint8_t)((changed & (MSR_CTS | MSR_DSR | MSR_DCD)) >> 4);
    if ((before & MSR_RI) && !(after & MSR_RI))
        u->msr_delta |= 0x04;
    if (!(v & MCR_LOOP))
        u->pc->host->chr_rx_ready(u->chr);
}

static void fcr_write(struct uart *u, uint8_t v)
{
    if ((v ^ u->fcr) & FCR_ENABLE)
        v |= FCR_CLEAR_RX | FCR_CLEAR_TX; /* changing the mode empties both */
    u->fcr = v & FCR_ENABLE ? v & 0xc9 : 0;
    if (v & FCR_CLEAR_RX) {
        u->rx_len = 0;
        u->pc->host->chr_rx_ready(u->chr);
    }
    if ((v & FCR_CLEAR_TX) && u->tx_len) {
        u->tx_len = 0;
        u->thre_pending = true;
    }
}

static uint64_t uart_read(void *opaque, uint64_t off, unsigned size)
{
    struct uart *u = opaque;
    uint8_t v = 0xff;
    (void)size;
    switch (off) {
    case 0:
        if (u->lcr & LCR_DLAB)
            return u->divisor & 0xff;
        v = rx_get(u);
        break;
    case 1:
        return u->lcr & LCR_DLAB ? u->divisor >> 8 : u->ier;
    case 2:
        v = interrupt_cause(u);
        if (v == IIR_THRE)
            u->thre_pending = false;
        v |= u->fcr & FCR_ENABLE ? IIR_FIFO : 0;
        break;
    case 3: return u->lcr;
    case 4: return u->mcr;
    case 5: v = line_status(u); break;
    case 6:
        v = modem_lines(u) | u->msr_delta;
        u->msr_delta = 0;
        break;
    case 7: return u->scr;
    default: return 0xff;
    }
    update_irq(u);
    return v;
}

static void uart_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct uart *u = opaque;
    uint8_t v = (uint8_t)value;
    (void)size;
    switch (off) {
    case 0:
        if (u->lcr & LCR_DLAB)
            u->divisor = (uint16_t)((u->divisor & 0xff00) | v);
        else
            tx_write(u, v);
        break;
    case 1:
        if (u->lcr & LCR_DLAB) {
            u->divisor = (uint16_t)((u->divisor & 0x00ff) | v << 8);
        } else {
            /* enabling the THR-empty interrupt with an empty THR raises it */
            if ((v & ~u->ier & IER_THRE) && !u->tx_len)
                u->thre_pending = true;
            u->ier = v & 0x0f;
        }
        break;
    case 2: fcr_write(u, v); break;
    case 3: u->lcr = v; break;
    case 4: mcr_write(u, v); break;
    case 7: u->scr = v; break;
    default: break; /* LSR and MSR are read-only */
    }
    update_irq(u);
}

static const struct hvx_region_ops uart_ops = {uart_read, uart_write};

int uart_create(struct pc *pc, unsigned index, struct uart **out, struct hvx_error *err)
{
    struct uart *u = calloc(1, sizeof(*u));
    if (!u)
        return hvx_fail(err, -ENOMEM, "pc: no memory for COM%u", index + 1);
    u->pc = pc;
    u->index = index;
    *out = u;

    char id[16];
    snprintf(id, sizeof(id), "serial%u", index);
    int rc = pc->host->timer_new(pc->vm, retry_due, u, &u->retry);
    if (rc == 0)
        rc = pc->host->chr_attach(pc->vm, id, &uart_chr_ops, u, &u->chr);
    if (rc)
        return hvx_fail(err, rc, "pc: COM%u could not be connected to %s: %s", index + 1, id, strerror(-rc));
    return pc_region(pc, HVX_SPACE_PIO, uart_port[index], 8, HVX_REGION_MIN1, id, &uart_ops, u, err);
}

void uart_destroy(struct uart *u)
{
    if (!u)
        return;
    if (u->chr)
        u->pc->host->chr_detach(u->chr);
    if (u->retry)
        u->pc->host->timer_del(u->retry);
    free(u);
}

void uart_reset(struct uart *u)
{
    drain(u); /* what was on its way still gets out */
    u->ier = u->fcr = u->lcr = u->mcr = u->scr = 0;
    u->overrun = u->msr_delta = 0;
    u->divisor = 12;
    u->thre_pending = false;
    u->rx_head = u->rx_len = u->tx_len = 0;
    u->pc->host->timer_set(u->retry, PC_NEVER);
    u->level = true; /* so that the line is driven low now */
    update_irq(u);
}

int uart_state(struct uart *u, struct hvx_stream *s)
{
    hvx_state_u8(s, &u->ier);
    hvx_state_u8(s, &u->fcr);
    hvx_state_u8(s, &u->lcr);
    hvx_state_u8(s, &u->mcr);
    hvx_state_u8(s, &u->scr);
    hvx_state_u8(s, &u->overrun);
    hvx_state_u8(s, &u->msr_delta);
    hvx_state_u16(s, &u->divisor);
    hvx_state_bool(s, &u->thre_pending);
    hvx_state_bytes(s, u->rx, sizeof(u->rx));
    hvx_state_bytes(s, u->tx, sizeof(u->tx));
    hvx_state_u8(s, &u->rx_head);
    hvx_state_u8(s, &u->rx_len);
    hvx_state_u8(s, &u->tx_len);
    if (u->rx_head >= FIFO_BYTES || u->rx_len > FIFO_BYTES || u->tx_len > FIFO_BYTES) {
        u->rx_head = u->rx_len = u->tx_len = 0;
        hvx_state_fail(s, -EINVAL, "serial line: a FIFO's length is out of range");
    }
    if (!hvx_stream_is_saving(s)) {
        u->pc->host->timer_set(u->retry, u->tx_len ? 0 : PC_NEVER);
        u->level = !u->level; /* drive the line once, whatever it was */
        update_irq(u);
        if (u->rx_len < fifo_size(u)) /* input may wait that the FIFO of before had no room for */
            u->pc->host->chr_rx_ready(u->chr);
    }
    return hvx_state_error(s);
}
