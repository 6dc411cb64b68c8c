/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/emit.h - writing host instructions.
 *
 * State is addressed by absolute 32-bit displacements (ModRM with a SIB byte
 * and no base), so code that refers to it can be copied without fixing up.
 * Nothing here touches host flags unless its name says so.
 */
#ifndef BT_EMIT_H
#define BT_EMIT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { H_RAX, H_RCX, H_RDX, H_RBX, H_RSP, H_RBP, H_RSI, H_RDI, H_R8, H_R9, H_R10, H_R11, H_R12, H_R13, H_R14, H_R15 };

/* A field of a block that depends on where the block is, for the guest or the host: relocate.c. STATE, an address in
 * the vCPU's region, and RIP32, a sign-extended constant that moves with the guest's RIP, matter to warm.h only. */
enum bt_reloc_kind {
    BT_RELOC_REL32, BT_RELOC_ABS32, BT_RELOC_RIP, BT_RELOC_EXIT, BT_RELOC_OP, BT_RELOC_STATE, BT_RELOC_RIP32
};
struct bt_reloc {
    uint32_t at; /* host address while the block is made, then from the start of its hot or cold code */
    uint8_t kind, cold;
};
#define BT_MAX_RELOCS 1536u
struct bt_relocs {
    uint32_t n;
    bool fixed; /* something in it cannot be moved */
    bool full;  /* and not all fields are listed */
    bool upper; /* the guest's RIP is in the last 2 GiB: constants are RIP32 */
    struct bt_reloc r[BT_MAX_RELOCS];
};

struct bt_emit {
    uint8_t *p;
    uint8_t *end; /* callers check room for a whole instruction before they start */
    struct bt_relocs *relocs; /* NULL: nobody will move it */
};

static inline void e_reloc(struct bt_emit *e, unsigned kind)
{
    struct bt_relocs *r = e->relocs;
    if (!r)
        return;
    if (r->n == BT_MAX_RELOCS) {
        r->fixed = r->full = true;
        return;
    }
    r->r[r->n++] = (struct bt_reloc){(uint32_t)(uintptr_t)e->p, (uint8_t)kind, 0};
}

static inline void e8(struct bt_emit *e, unsigned v) { *e->p++ = (uint8_t)v; }
static inline void e16(struct bt_emit *e, unsigned v) { memcpy(e->p, &(uint16_t){(uint16_t)v}, 2); e->p += 2; }
static inline void e32(struct bt_emit *e, uint32_t v) { memcpy(e->p, &v, 4); e->p += 4; }
static inline void e64(struct bt_emit *e, uint64_t v) { memcpy(e->p, &v, 8); e->p += 8; }
/* The address of state or of a stub, as a field of its own. */
static inline void e32_at(struct bt_emit *e, uint32_t abs) { e_reloc(e, BT_RELOC_STATE); e32(e, abs); }
/* The last n bytes, 8 or 4, are a constant that moves with the guest's RIP. What would have another length elsewhere
 * cannot. */
static inline void e_rip_field(struct bt_emit *e, uint64_t v, unsigned n)
{
    struct bt_relocs *r = e->relocs;
    if (!r || r->fixed)
        return;
    if (r->upper ? n != 4 || (int64_t)v >= 0 || (int64_t)v != (int32_t)v : n != 8) {
        r->fixed = true;
        return;
    }
    e->p -= n;
    e_reloc(e, n == 8 ? BT_RELOC_RIP : BT_RELOC_RIP32);
    e->p += n;
}
static inline uint32_t e_here(const struct bt_emit *e) { return (uint32_t)(uintptr_t)e->p; }
static inline uint32_t e_abs(const void *p) { return (uint32_t)(uintptr_t)p; }

static inline void e_rex(struct bt_emit *e, unsigned w, unsigned r, unsigned x, unsigned b, bool force)
{
    unsigned v = 0x40 | w << 3 | (r >> 3 & 1) << 2 | (x >> 3 & 1) << 1 | (b >> 3 & 1);
    if (v != 0x40 || force)
        e8(e, v);
}
/* ModRM forms; the opcode has been written. */
static inline void e_mod_rr(struct bt_emit *e, unsigned reg, unsigned rm) { e8(e, 0xc0 | (reg & 7) << 3 | (rm & 7)); }
static inline void e_mod_abs(struct bt_emit *e, unsigned reg, uint32_t abs)
{
    e8(e, (reg & 7) << 3 | 4);
    e8(e, 0x25);
    e32_at(e, abs);
}
/* [address of state + base], [address of state + index << scale] */
static inline void e_mod_base_at(struct bt_emit *e, unsigned reg, unsigned base, uint32_t abs)
{
    e8(e, 0x80 | (reg & 7) << 3 | (base & 7));
    if ((base & 7) == 4)
        e8(e, 0x24);
    e32_at(e, abs);
}
static inline void e_mod_index_at(struct bt_emit *e, unsigned reg, unsigned index, unsigned scale, uint32_t abs)
{
    e8(e, (reg & 7) << 3 | 4);
    e8(e, scale << 6 | (index & 7) << 3 | 5);
    e32_at(e, abs);
}
static inline void e_mod_base(struct bt_emit *e, unsigned reg, unsigned base, int32_t disp)
{
    unsigned b = base & 7;
    if (disp == 0 && b != 5) {
        e8(e, (reg & 7) << 3 | b);
        if (b == 4)
            e8(e, 0x24);
    } else if (disp >= -128 && disp < 128) {
        e8(e, 0x40 | (reg & 7) << 3 | b);
        if (b == 4)
            e8(e, 0x24);
        e8(e, (uint8_t)disp);
    } else {
        e8(e, 0x80 | (reg & 7) << 3 | b);
        if (b == 4)
            e8(e, 0x24);
        e32(e, (uint32_t)disp);
    }
}
/* [base + index << scale + disp]; base or index may be -1. */
static inline void e_mod_sib(struct bt_emit *e, unsigned reg, int base, int index, unsigned scale, int32_t disp)
{
    unsigned x = index < 0 ? 4 : (unsigned)index & 7;
    if (base < 0) {
        e8(e, (reg & 7) << 3 | 4);
        e8(e, scale << 6 | x << 3 | 5);
        e32(e, (uint32_t)disp);
        return;
    }
    unsigned mod = disp == 0 && (base & 7) != 5 ? 0 : disp >= -128 && disp < 128 ? 1 : 2;
    e8(e, mod << 6 | (reg & 7) << 3 | 4);
    e8(e, scale << 6 | x << 3 | ((unsigned)base & 7));
    if (mod == 1)
        e8(e, (uint8_t)disp);
    else if (mod == 2)
        e32(e, (uint32_t)disp);
}
/* one-byte opcode, register and register/memory; w: 64-bit */
static inline void e_rr(struct bt_emit *e, unsigned w, unsigned op, unsigned reg, unsigned rm)
{
    e_rex(e, w, reg, 0, rm, false);
    e8(e, op);
    e_mod_rr(e, reg, rm);
}
static inline void e_r_abs(struct bt_emit *e, unsigned w, unsigned op, unsigned reg, uint32_t abs)
{
    e_rex(e, w, reg, 0, 0, false);
    e8(e, op);
    e_mod_abs(e, reg, abs);
}
static inline void e_r_base(struct bt_emit *e, unsigned w, unsigned op, unsigned reg, unsigned base, int32_t disp)
{
    e_rex(e, w, reg, 0, base, false);
    e8(e, op);
    e_mod_base(e, reg, base, disp);
}
static inline void e_r_base_at(struct bt_emit *e, unsigned w, unsigned op, unsigned reg, unsigned base, uint32_t abs)
{
    e_rex(e, w, reg, 0, base, false);
    e8(e, op);
    e_mod_base_at(e, reg, base, abs);
}
static inline void e_r_index_at(struct bt_emit *e, unsigned w, unsigned op, unsigned reg, unsigned index,
                                unsigned scale, uint32_t abs)
{
    e_rex(e, w, reg, index, 0, false);
    e8(e, op);
    e_mod_index_at(e, reg, index, scale, abs);
}
static inline void e_r_sib(struct bt_emit *e, unsigned w, unsigned op, unsigned reg, int base, int index,
                           unsigned scale, int32_t disp)
{
    e_rex(e, w, reg, index < 0 ? 0 : (unsigned)index, base < 0 ? 0 : (unsigned)base, false);
    e8(e, op);
    e_mod_sib(e, reg, base, index, scale, disp);
}
static inline void e_mov_rr(struct bt_emit *e, unsigned d, unsigned s) { e_rr(e, 1, 0x8b, d, s); }
static inline void e_mov32_rr(struct bt_emit *e, unsigned d, unsigned s) { e_rr(e, 0, 0x8b, d, s); }
static inline void e_load(struct bt_emit *e, unsigned d, const void *abs) { e_r_abs(e, 1, 0x8b, d, e_abs(abs)); }
static inline void e_load32(struct bt_emit *e, unsigned d, const void *abs) { e_r_abs(e, 0, 0x8b, d, e_abs(abs)); }
static inline void e_store(struct bt_emit *e, unsigned s, const void *abs) { e_r_abs(e, 1, 0x89, s, e_abs(abs)); }
static inline void e_store32(struct bt_emit *e, unsigned s, const void *abs) { e_r_abs(e, 0, 0x89, s, e_abs(abs)); }
static inline void e_store8_imm(struct bt_emit *e, const void *abs, unsigned v)
{
    e8(e, 0xc6);
    e_mod_abs(e, 0, e_abs(abs));
    e8(e, v);
}
static inline void e_lea(struct bt_emit *e, unsigned w, unsigned d, int base, int index, unsigned scale, int32_t disp)
{
    if (index < 0 && base >= 0) {
        e_rex(e, w, d, 0, (unsigned)base, false);
        e8(e, 0x8d);
        e_mod_base(e, d, (unsigned)base, disp);
    } else {
        e_r_sib(e, w, 0x8d, d, base, index, scale, disp);
    }
}
static inline void e_mov_imm(struct bt_emit *e, unsigned d, uint64_t v)
{
    if (v <= 0xffffffffu) {
        e_rex(e, 0, 0, 0, d, false);
        e8(e, 0xb8 | (d & 7));
        e32(e, (uint32_t)v);
    } else if ((int64_t)v == (int32_t)v) {
        e_rex(e, 1, 0, 0, d, false);
        e8(e, 0xc7);
        e_mod_rr(e, 0, d);
        e32(e, (uint32_t)v);
    } else {
        e_rex(e, 1, 0, 0, d, false);
        e8(e, 0xb8 | (d & 7));
        e64(e, v);
    }
}
/* A constant that moves with the guest's RIP. */
static inline void e_mov_rip(struct bt_emit *e, unsigned d, uint64_t v)
{
    e_mov_imm(e, d, v);
    e_rip_field(e, v, v <= 0xffffffffu || (int64_t)v == (int32_t)v ? 4 : 8);
}
/* 64-bit store of a constant to state; clobbers r15 when it does not fit */
static inline void e_store_imm(struct bt_emit *e, const void *abs, uint64_t v)
{
    if ((int64_t)v == (int32_t)v) {
        e8(e, 0x48);
        e8(e, 0xc7);
        e_mod_abs(e, 0, e_abs(abs));
        e32(e, (uint32_t)v);
    } else {
        e_mov_imm(e, H_R15, v);
        e_store(e, H_R15, abs);
    }
}
/* alu: 0 add 1 or 2 adc 3 sbb 4 and 5 sub 6 xor 7 cmp. Clobber flags. */
static inline void e_alu_ri(struct bt_emit *e, unsigned w, unsigned alu, unsigned r, int32_t v)
{
    e_rex(e, w, 0, 0, r, false);
    if (v >= -128 && v < 128) {
        e8(e, 0x83);
        e_mod_rr(e, alu, r);
        e8(e, (uint8_t)v);
    } else {
        e8(e, 0x81);
        e_mod_rr(e, alu, r);
        e32(e, (uint32_t)v);
    }
}
static inline void e_cmp_abs8(struct bt_emit *e, const void *abs, unsigned v)
{
    e8(e, 0x80);
    e_mod_abs(e, 7, e_abs(abs));
    e8(e, v);
}
static inline void e_cmp_abs32(struct bt_emit *e, const void *abs, int8_t v)
{
    e8(e, 0x83);
    e_mod_abs(e, 7, e_abs(abs));
    e8(e, (uint8_t)v);
}
static inline void e_rel32(struct bt_emit *e, uint32_t target)
{
    e_reloc(e, BT_RELOC_REL32);
    e32(e, target - (e_here(e) + 4));
}
static inline void e_jmp(struct bt_emit *e, uint32_t target) { e8(e, 0xe9); e_rel32(e, target); }
static inline void e_call(struct bt_emit *e, uint32_t target) { e8(e, 0xe8); e_rel32(e, target); }
/* returns the address of the rel32 field */
static inline uint8_t *e_jcc(struct bt_emit *e, unsigned cc, uint32_t target)
{
    e8(e, 0x0f);
    e8(e, 0x80 | cc);
    uint8_t *site = e->p;
    e_rel32(e, target);
    return site;
}
static inline void e_patch32(uint8_t *site, uint32_t target)
{
    uint32_t v = target - ((uint32_t)(uintptr_t)site + 4);
    memcpy(site, &v, 4);
}
static inline void e_jmp_r(struct bt_emit *e, unsigned r)
{
    e_rex(e, 0, 0, 0, r, false);
    e8(e, 0xff);
    e_mod_rr(e, 4, r);
}
static inline void e_call_r(struct bt_emit *e, unsigned r)
{
    e_rex(e, 0, 0, 0, r, false);
    e8(e, 0xff);
    e_mod_rr(e, 2, r);
}
/* movzx r32, r16 */
static inline void e_movzx16(struct bt_emit *e, unsigned d, unsigned s)
{
    e_rex(e, 0, d, 0, s, false);
    e8(e, 0x0f);
    e8(e, 0xb7);
    e_mod_rr(e, d, s);
}
/* rorx r32, r32, imm (BMI2) */
static inline void e_rorx32(struct bt_emit *e, unsigned d, unsigned s, unsigned n)
{
    e8(e, 0xc4);
    e8(e, (d < 8 ? 0x80 : 0) | 0x40 | (s < 8 ? 0x20 : 0) | 3);
    e8(e, 0x7b);
    e8(e, 0xf0);
    e_mod_rr(e, d, s);
    e8(e, n);
}
enum { CC_O, CC_NO, CC_B, CC_AE, CC_E, CC_NE, CC_BE, CC_A, CC_S, CC_NS, CC_P, CC_NP, CC_L, CC_GE, CC_LE, CC_G };
#endif
