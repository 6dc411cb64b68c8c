/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/op_io.c - IN, OUT, INS, OUTS.
 */
#include "phys.h"
#include "sys.h"

void sys_check_io(struct bt_vcpu *c, uint32_t port, unsigned size)
{
    if (!bt_pe(c) || (!bt_vm86(c) && c->cpl <= bt_iopl(c)))
        return;
    /* Permission bitmap of a 32-bit or 64-bit TSS (SDM volume 1, 19.5.2). */
    unsigned type = SYS_TYPE(c->tr.attr);
    if ((c->tr.attr & SYS_UNUSABLE) || (type != SYS_TSS32 && type != SYS_TSS32_BUSY) || c->tr.limit < 103)
        sys_gp0(c);
    uint32_t off = (uint32_t)bt_read(c, c->tr.base + 102, 2, 0) + port / 8;
    if (off + 1 > c->tr.limit)
        sys_gp0(c);
    uint32_t bits = (uint32_t)bt_read(c, c->tr.base + off, 2, 0) >> (port & 7);
    if (bits & ((1u << size) - 1))
        sys_gp0(c);
}

static uint32_t port_read(struct bt_vcpu *c, uint16_t port, unsigned size)
{
    uint32_t v = 0;
    uint64_t wide = ~0ull;

    c->st.pio++;
    if (c->bp_exec >> BT_BP_IO)
        bt_debug_io(c, port, size);
    if (bt_irqchip_pio(c, port, size, false, &v))
        return v;
    bt_fp_save(c);
    bt_quiescent_enter(c);
    c->host->io_read(c->vm->hvm, HVX_SPACE_PIO, port, size, &wide);
    bt_quiescent_leave(c);
    return (uint32_t)(wide & sys_mask(size));
}

static void port_write(struct bt_vcpu *c, uint16_t port, unsigned size, uint32_t v)
{
    c->st.pio++;
    if (c->bp_exec >> BT_BP_IO)
        bt_debug_io(c, port, size);
    if (bt_irqchip_pio(c, port, size, true, &v))
        return;
    bt_fp_save(c);
    bt_quiescent_enter(c);
    c->host->io_write(c->vm->hvm, HVX_SPACE_PIO, port, size, &v);
    bt_quiescent_leave(c);
}

static uint16_t port_of(const struct bt_vcpu *c, const struct bt_op *op)
{
    return (uint16_t)(op->reg ? c->gpr[BT_RDX] : op->imm & 0xff);
}

void bt_op_in(struct bt_vcpu *c, const struct bt_op *op)
{
    uint16_t port = port_of(c, op);
    sys_check_io(c, port, op->opsize);
    bt_reg_set(c, BT_RAX, op->opsize, 0, port_read(c, port, op->opsize));
}

void bt_op_out(struct bt_vcpu *c, const struct bt_op *op)
{
    uint16_t port = port_of(c, op);
    sys_check_io(c, port, op->opsize);
    port_write(c, port, op->opsize, (uint32_t)bt_reg_get(c, BT_RAX, op->opsize, 0));
}

/* --- string forms ------------------------------------------------------------------ */
#define IO_BATCH 1024u /* elements between looks at c->pending */

static void advance(struct bt_vcpu *c, const struct bt_op *op, unsigned reg)
{
    uint64_t step = c->dflag ? -(uint64_t)op->opsize : op->opsize;
    bt_reg_set(c, reg, op->addrsize, 0, bt_reg_get(c, reg, op->addrsize, 0) + step);
}

static void ins_one(struct bt_vcpu *c, const struct bt_op *op, uint16_t port)
{
    uint64_t lin = bt_seg_lin(c, BT_ES, bt_reg_get(c, BT_RDI, op->addrsize, 0), op->opsize, true);
    /* The port may have side effects: make sure that the store will succeed. */
    bt_probe(c, lin, op->opsize, bt_acc(c) | BT_ACC_WRITE);
    bt_write(c, lin, op->opsize, port_read(c, port, op->opsize), bt_acc(c) | BT_ACC_WRITE);
    advance(c, op, BT_RDI);
}

static void outs_one(struct bt_vcpu *c, const struct bt_op *op, uint16_t port)
{
    uint64_t lin = bt_seg_lin(c, op->seg, bt_reg_get(c, BT_RSI, op->addrsize, 0), op->opsize, false);
    port_write(c, port, op->opsize, (uint32_t)bt_read(c, lin, op->opsize, bt_acc(c)));
    advance(c, op, BT_RSI);
}

static void io_string(struct bt_vcpu *c, const struct bt_op *op,
                      void (*one)(struct bt_vcpu *, const struct bt_op *, uint16_t))
{
    uint16_t port = (uint16_t)c->gpr[BT_RDX];

    sys_check_io(c, port, op->opsize);
    if (!op->rep) {
        one(c, op, port);
        c->rip = op->next_rip;
        return;
    }
    for (unsigned n = 0;; n++) {
        uint64_t count = bt_reg_get(c, BT_RCX, op->addrsize, 0);
        if (!count) {
            c->rip = op->next_rip;
            return;
        }
        if (n && (c->mode & BT_MODE_TF)) /* a trap after every element */
            return;
        if (n >= IO_BATCH && atomic_load_explicit(&c->pending, memory_order_relaxed))
            bt_restart(c); /* goes on with what is left */
        one(c, op, port);
        bt_reg_set(c, BT_RCX, op->addrsize, 0, count - 1);
    }
}

void bt_op_ins(struct bt_vcpu *c, const struct bt_op *op) { io_string(c, op, ins_one); }
void bt_op_outs(struct bt_vcpu *c, const struct bt_op *op) { io_string(c, op, outs_one); }
