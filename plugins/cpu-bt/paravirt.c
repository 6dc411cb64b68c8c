/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/paravirt.c - what Linux and others know from KVM (figures:
 * Documentation/virt/kvm/x86/{cpuid,msr,hypercalls}.rst): a clock in guest
 * memory, a kick that ends another vCPU's HLT, one call for many IPIs.
 *
 * What was left out, and why. PV EOI saves an exit where there are exits; here
 * an EOI is a write of an x2APIC MSR, which a C function does in place.
 * Asynchronous page faults need a host that faults; steal time and the calls
 * that build on it need to know when the host took the CPU away, which no one
 * tells an ordinary process without a system call.
 *
 * The clock counts nanoseconds of guest TSC since power-on: TSC - TSC_ADJUST,
 * which is the same on all vCPUs (so it says "stable") and goes on by itself
 * when a saved VM is restored with its TSC: then the page in RAM is right as
 * it is. It is written when the guest names it, or moves its TSC, and never
 * else.
 */
#include "apic.h"
#include "cpu_model.h"
#include "phys.h"
#include <sys/syscall.h>
#include <time.h>

#define MSR_WALL_CLOCK 0x11u
#define MSR_SYSTEM_TIME 0x12u
#define MSR_WALL_CLOCK_NEW 0x4b564d00u
#define MSR_SYSTEM_TIME_NEW 0x4b564d01u
#define FEATURE_CLOCK (1u << 0 | 1u << 3 | 1u << 24) /* old MSRs, new MSRs, stable between vCPUs */
#define FEATURE_NO_IO_DELAY (1u << 1)
#define FEATURE_UNHALT (1u << 7)
#define FEATURE_SEND_IPI (1u << 11)
#define CLOCK_ENABLED 1u
#define CLOCK_STABLE 1u

#define HC_KICK_CPU 5u
#define HC_CLOCK_PAIRING 9u
#define HC_SEND_IPI 10u
#define HC_NOT_THERE (0 - 1000ull)
#define HC_FAULT (0 - 14ull)
#define HC_DENIED (0 - 1ull)
#define HC_UNSUPPORTED (0 - 95ull)

struct clock_page { /* pvclock_vcpu_time_info */
    uint32_t version, pad;
    uint64_t tsc, system_time;
    uint32_t mul;
    int8_t shift;
    uint8_t flags, pad2[2];
};
struct wall_page { /* pvclock_wall_clock */
    uint32_t version, sec, nsec;
};
struct pairing { /* kvm_clock_pairing */
    int64_t sec, nsec;
    uint64_t tsc;
    uint32_t flags, pad[9];
};

static bool offered(const struct bt_vcpu *c) { return c->vm->cpuid->hypervisor == BT_HYPERVISOR_KVM; }

uint32_t bt_pv_features(const struct bt_vm *vm)
{
    return FEATURE_CLOCK | FEATURE_NO_IO_DELAY | (vm->n_vcpus > 1 ? FEATURE_UNHALT | FEATURE_SEND_IPI : 0);
}

/* --- guest memory by physical address ------------------------------------------------ */
/* n bytes inside one page; NULL when that is no RAM. Translations of the bytes are dropped. */
static void *ram(struct bt_vcpu *c, uint64_t gpa, unsigned n)
{
    uintptr_t page = bt_phys_page(c->vm, gpa);
    if (!page || (page & BT_HVA_RO) || (gpa & 0xfff) + n > 4096)
        return NULL;
    uint64_t mask = atomic_load(&bt_chunk(c->vm, gpa)->code[bt_chunk_page(gpa)]);
    if (mask)
        bt_sync_request(c->vm, c, mask, BT_SYNC_INVALIDATE, gpa, n, false);
    return (void *)((page & ~0xfffull) + (gpa & 0xfff));
}

/* The version is odd while the rest changes. */
static uint32_t version_begin(volatile uint32_t *v)
{
    uint32_t odd = (*v | 1) + (*v & 1 ? 2 : 0);
    *v = odd;
    __asm__ volatile("" ::: "memory"); /* stores are seen in their order */
    return odd + 1;
}
static void version_end(volatile uint32_t *v, uint32_t even)
{
    __asm__ volatile("" ::: "memory");
    *v = even;
}

/* --- the clock -------------------------------------------------------------------------- */
/* Guest TSC at which the clock shows 0. */
static uint64_t clock_zero(const struct bt_vcpu *c) { return bt_msr_tsc_adjust(c); }

/* ns = (ticks << shift, or >> -shift) * mul >> 32, mul as large as it can be. */
static uint32_t rate(uint64_t hz, int8_t *shift)
{
    uint64_t n = 1000000000u, d = hz;
    int s = 0;
    while (n >= d) {
        d <<= 1;
        s++;
    }
    while (n * 2 < d) {
        n <<= 1;
        s--;
    }
    *shift = (int8_t)s;
    return (uint32_t)((unsigned __int128)n * (1ull << 32) / d);
}

static uint64_t clock_now(const struct bt_vcpu *c)
{
    return (uint64_t)((unsigned __int128)(bt_guest_tsc(c) - clock_zero(c)) * 1000000000u / c->vm->tsc_hz);
}

static void write_clock(struct bt_vcpu *c)
{
    uint64_t gpa = c->pv.system_time & ~3ull;
    struct clock_page *p = c->pv.system_time & CLOCK_ENABLED ? ram(c, gpa, sizeof(*p)) : NULL;
    if (!p)
        return;
    uint32_t v = version_begin(&p->version);
    p->tsc = clock_zero(c);
    p->system_time = 0;
    p->mul = rate(c->vm->tsc_hz, &p->shift);
    p->flags = CLOCK_STABLE;
    version_end(&p->version, v);
}

static void real_time(struct timespec *t)
{
    long r = SYS_clock_gettime;
    __asm__ volatile("syscall" : "+a"(r) : "D"((long)CLOCK_REALTIME), "S"(t) : "rcx", "r11", "memory");
}

static void write_wall(struct bt_vcpu *c)
{
    struct wall_page *p = ram(c, c->pv.wall_clock & ~3ull, sizeof(*p));
    struct timespec t;
    if (!p)
        return;
    real_time(&t);
    uint64_t ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec - clock_now(c);
    uint32_t v = version_begin(&p->version);
    p->sec = (uint32_t)(ns / 1000000000u);
    p->nsec = (uint32_t)(ns % 1000000000u);
    version_end(&p->version, v);
}

void bt_pv_tsc_moved(struct bt_vcpu *c) { write_clock(c); }

void bt_pv_reset(struct bt_vcpu *c)
{
    c->pv.system_time = c->pv.wall_clock = 0;
    c->pv_unhalt = 0;
}

/* --- MSRs ------------------------------------------------------------------------------- */
bool bt_pv_msr(const struct bt_vcpu *c, uint32_t index)
{
    return offered(c) && (index == MSR_WALL_CLOCK || index == MSR_SYSTEM_TIME || index == MSR_WALL_CLOCK_NEW ||
                          index == MSR_SYSTEM_TIME_NEW);
}

static uint64_t *field(struct bt_vcpu *c, uint32_t index)
{
    return index == MSR_SYSTEM_TIME || index == MSR_SYSTEM_TIME_NEW ? &c->pv.system_time : &c->pv.wall_clock;
}

bool bt_pv_rdmsr(struct bt_vcpu *c, uint32_t index, uint64_t *v)
{
    if (!bt_pv_msr(c, index))
        return false;
    *v = *field(c, index);
    return true;
}

void bt_pv_set_msr(struct bt_vcpu *c, uint32_t index, uint64_t v) { *field(c, index) = v; }

bool bt_pv_wrmsr(struct bt_vcpu *c, uint32_t index, uint64_t v)
{
    if (!bt_pv_msr(c, index))
        return false;
    bt_pv_set_msr(c, index, v);
    if (field(c, index) == &c->pv.system_time)
        write_clock(c);
    else
        write_wall(c);
    return true;
}

/* --- hypercalls --------------------------------------------------------------------------- */
static uint64_t kick_cpu(struct bt_vcpu *c, uint32_t apic_id)
{
    for (unsigned i = 0; i < c->vm->n_vcpus; i++) {
        struct bt_vcpu *o = c->vm->vcpu[i];
        if (o && o->apic_id == apic_id)
            bt_kick(o, BT_PEND_UNHALT);
    }
    return 0;
}

/* Bit i of the two words: the APIC with ID min + i. */
static uint64_t send_ipi(struct bt_vcpu *c, const uint64_t a[4])
{
    const unsigned per_word = bt_long_mode(c) ? 64 : 32;
    const unsigned mode = (a[3] >> 8) & 7;
    uint64_t sent = 0;
    if (mode != BT_DM_FIXED && mode != BT_DM_NMI)
        return HC_UNSUPPORTED;
    for (unsigned w = 0; w < 2; w++)
        for (uint64_t bits = a[w]; bits; bits &= bits - 1) {
            uint64_t id = a[2] + w * per_word + (unsigned)__builtin_ctzll(bits);
            if (id < HVX_MAX_VCPUS && bt_apic_send(c->vm, c, 0, (uint32_t)id, true, false, mode, (uint8_t)a[3], false))
                sent++;
        }
    return sent;
}

static uint64_t clock_pairing(struct bt_vcpu *c, uint64_t gpa, uint64_t type)
{
    struct timespec t;
    if (type)
        return HC_UNSUPPORTED;
    struct pairing *p = ram(c, gpa, sizeof(*p));
    if (!p || (gpa & 7))
        return HC_FAULT;
    real_time(&t);
    p->tsc = bt_guest_tsc(c);
    p->sec = t.tv_sec;
    p->nsec = t.tv_nsec;
    p->flags = 0;
    for (unsigned i = 0; i < 9; i++)
        *(volatile uint32_t *)&p->pad[i] = 0;
    return 0;
}

uint64_t bt_pv_hypercall(struct bt_vcpu *c, uint64_t nr, const uint64_t a[4])
{
    if (c->cpl)
        return HC_DENIED;
    switch (nr) {
    case HC_KICK_CPU: return c->vm->n_vcpus > 1 ? kick_cpu(c, (uint32_t)a[1]) : HC_NOT_THERE;
    case HC_SEND_IPI: return c->vm->n_vcpus > 1 ? send_ipi(c, a) : HC_NOT_THERE;
    case HC_CLOCK_PAIRING: return clock_pairing(c, a[0], a[1]);
    default: return HC_NOT_THERE;
    }
}
