/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/apic.h - the interrupt controllers: local APICs (apic.c),
 * the I/O APIC (ioapic.c) and the two 8259 (pic.c).
 *
 * Who owns what
 *   ISR, PPR and the timer of a local APIC belong to its vCPU thread. IRR, TMR
 *   and the pending-error word are atomics that any thread sets. The registers
 *   that decide where a message goes (base, LDR, DFR, SVR, TPR, LVT) are
 *   written by the owner and read by anyone: relaxed atomics, because hardware
 *   promises no order between a change of them and a message in flight either.
 *   A sender sets the IRR bit (release) and then kicks; the owner sees the
 *   kick, then reads IRR (acquire).
 *   The 8259s and the I/O APIC are behind one spin lock: it is held for a few
 *   dozen instructions, and a vCPU takes it with live guest vector state, where
 *   no libc function may be called. No lock is taken inside it.
 *
 * Layout and rules follow Intel SDM volume 3, chapter "Advanced Programmable
 * Interrupt Controller", the 82093AA data sheet and the 8259A data sheet.
 */
#ifndef BT_APIC_H
#define BT_APIC_H

#include "bt.h"

/* Kicks, and the APIC timer (then si_code is SI_TIMER: set BT_PEND_TIMER). */
#define BT_SIG_KICK (SIGRTMIN + 1)

#define BT_APIC_BASE_BSP 0x100ull
#define BT_APIC_BASE_EXTD 0x400ull
#define BT_APIC_BASE_EN 0x800ull
#define BT_APIC_DEFAULT_GPA 0xfee00000ull
#define BT_IOAPIC_GPA 0xfec00000ull
#define BT_IOAPIC_PINS 24u
#define BT_FERR_GSI 13u /* x87 exceptions of old */
#define BT_APIC_BUS_HZ 1000000000ull /* CPUID leaf 0x15 says the same */

enum { BT_LVT_TIMER, BT_LVT_THERMAL, BT_LVT_PERF, BT_LVT_LINT0, BT_LVT_LINT1, BT_LVT_ERROR, BT_N_LVT };
enum { BT_DM_FIXED, BT_DM_LOWEST, BT_DM_SMI, BT_DM_NMI = 4, BT_DM_INIT, BT_DM_SIPI, BT_DM_EXTINT };

struct bt_apic {
    _Atomic uint64_t irr[4], tmr[4];
    uint64_t isr[4];
    _Atomic uint64_t base;
    _Atomic uint32_t ldr, dfr, svr, tpr, lvt[BT_N_LVT];
    _Atomic uint32_t esr_pending; /* errors since the last write of ESR */
    _Atomic uint32_t extint;      /* the I/O APIC (or an IPI) announced an 8259 interrupt */
    _Atomic uint32_t sipi_vector; /* valid with BT_PEND_SIPI */
    uint32_t esr, icr_lo, icr_hi, tdcr, initial;

    /* The timer, in guest TSC time whatever its mode. */
    uint64_t deadline; /* 0: idle */
    uint64_t period;   /* periodic mode */
    uint64_t armed;    /* the deadline that the host timer was last set for, 0 none */
    int32_t timer_id;  /* kernel's id of the POSIX timer */
    int32_t timer_tid; /* thread it signals, 0: no timer yet */
};

struct bt_pic {
    uint8_t line, irr, isr, imr, elcr;
    uint8_t base;     /* ICW2 */
    uint8_t lowest;   /* input of lowest priority, 7 at first */
    uint8_t icw_step; /* 0 idle, else the ICW expected next: 2, 3, 4 */
    uint8_t want_icw4, single, icw3;
    uint8_t auto_eoi, rotate_aeoi, nested_special;
    uint8_t special_mask, poll, read_isr;
};

struct bt_irqchip {
    _Atomic uint32_t lock;
    _Atomic uint32_t pic_intr; /* INTR output of the master */
    _Atomic uint32_t rotor;    /* breaks ties of lowest-priority delivery */
    struct bt_pic pic[2];
    struct {
        uint64_t entry[BT_IOAPIC_PINS];
        uint32_t lines; /* level of each input */
        uint8_t id, select;
    } ioapic;
    /* Ticks of the system timer, GSI 0 (bt_irq_tick): owed are those that ended
     * while an earlier one was still requested. */
    struct {
        _Atomic int32_t vector; /* of the request at the local APICs, -1: none */
        uint32_t owed;
        bool at_pic; /* requested at the 8259 */
    } tick;
};

/* --- apic.c ------------------------------------------------------------------ */
/* Send a message over the "bus". dest has 8 bits when `wide` is false (0xff is
 * everyone), else 32. shorthand: 0 none, 1 self, 2 all, 3 all but src; src may
 * be NULL when shorthand is 0. Any thread. True when some APIC took it. */
bool bt_apic_send(struct bt_vm *vm, struct bt_vcpu *src, unsigned shorthand, uint32_t dest, bool wide, bool logical,
                  unsigned mode, uint8_t vector, bool level);
/* Vector of the start-up IPI behind BT_PEND_SIPI. */
uint8_t bt_apic_sipi_vector(struct bt_vcpu *c);
/* Guest time from now to the timer's expiry, ~0 when it is idle. Owner. */
uint64_t bt_apic_next_deadline_ns(struct bt_vcpu *c);
/* tsc_offset has grown by delta: keep a counting timer's end where it was. Owner. */
void bt_apic_tsc_moved(struct bt_vcpu *c, uint64_t delta);
/* Would this vCPU take an interrupt from the 8259s now? Any thread. */
bool bt_apic_takes_pic(struct bt_vcpu *c);
/* Is this vector requested and not yet taken? Any thread. */
bool bt_apic_requested(const struct bt_vcpu *c, uint8_t vector);

/* --- ioapic.c: the caller holds the irqchip lock ------------------------------- */
void bt_ioapic_reset(struct bt_irqchip *chip);
void bt_ioapic_set(struct bt_vm *vm, unsigned pin, bool level);
uint32_t bt_ioapic_read(struct bt_irqchip *chip, unsigned off);
void bt_ioapic_write(struct bt_vm *vm, unsigned off, uint32_t v);
void bt_ioapic_state(struct bt_vm *vm, struct hvx_stream *s);
/* takes the lock itself */
void bt_ioapic_eoi(struct bt_vm *vm, uint8_t vector);
/* The vector with which an edge on this pin would be delivered; -1: masked, or no plain edge. */
int bt_ioapic_edge_vector(const struct bt_irqchip *chip, unsigned pin);
/* A requested tick was acknowledged: the next one that is owed follows. */
void bt_tick_taken(struct bt_vm *vm);

/* --- pic.c: likewise ------------------------------------------------------------ */
void bt_pic_reset(struct bt_vm *vm);
void bt_pic_set(struct bt_vm *vm, unsigned irq, bool level);
int bt_pic_peek(struct bt_vm *vm); /* vector that an acknowledge would give now, -1 when INTR is low */
int bt_pic_ack(struct bt_vm *vm);  /* takes the lock itself */
bool bt_pic_io(struct bt_vm *vm, uint16_t port, bool write, uint8_t *value); /* one byte; takes the lock */
void bt_pic_state(struct bt_vm *vm, struct hvx_stream *s);

static inline void bt_irqchip_lock(struct bt_irqchip *chip)
{
    unsigned spins = 0;
    while (atomic_exchange_explicit(&chip->lock, 1, memory_order_acquire)) {
        while (atomic_load_explicit(&chip->lock, memory_order_relaxed)) {
            __asm__ volatile("pause");
            if (++spins >= 200) {
                /* The holder may have lost its CPU: sched_yield(), without libc. */
                long r = 24;
                __asm__ volatile("syscall" : "+a"(r) : : "rcx", "r11", "memory");
                spins = 0;
            }
        }
    }
}

static inline void bt_irqchip_unlock(struct bt_irqchip *chip)
{
    atomic_store_explicit(&chip->lock, 0, memory_order_release);
}

#endif
