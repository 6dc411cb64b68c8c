/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/cpuid.c - what CPUID shows: the model "host" is what the
 * host's processor has, less what a guest cannot be given; named models, which
 * take nothing from the host, are in cpu_models.c.
 *
 * An unprivileged instruction runs on the host itself, so a feature is kept
 * when the host shows it (KEEP masks below); a feature of the system
 * architecture is shown when the engine has it, whatever the host says (SET).
 * CPUID executed natively costs microseconds in a virtual machine, so all is
 * read once, at creation.
 *
 * Speculation. Guest rings are software: guest kernel and guest user run as one
 * host process in ring 3. What a guest kernel would do against leaks between
 * its rings - change page tables on entry, write SPEC_CTRL, VERW, flush
 * buffers - touches nothing of the host's processor here and would only cost
 * time; between guest and host stands the process boundary with the host
 * kernel's own mitigations. So the model says "not affected" wherever a bit
 * can say it (ARCH_CAPABILITIES in msr.c), and offers IBRS with IBRS_ALL,
 * whose MSR is a plain variable, because then Linux uses neither retpolines
 * nor IBRS on entry. It is no statement about isolation between processes
 * inside one guest, which is as good as the host's between threads.
 */
#include "cpu_model.h"
#include "apic.h"
#include <cpuid.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define B(n) (1u << (n))

/* Leaf 1 */
#define KEEP_1C                                                                                                        \
    (B(0) | B(1) | B(9) | B(12) | B(13) | B(19) | B(20) | B(22) | B(23) | B(25) | B(26) | B(28) | B(29) | B(30))
#define SET_1C (B(21) /* x2APIC */ | B(24) /* TSC deadline */ | B(31) /* hypervisor */)
#define KEEP_1D (B(0) | B(8) | B(15) | B(19) | B(23) | B(24) | B(25) | B(26))
/* DE PSE TSC MSR PAE MCE APIC SEP MTRR PGE MCA PAT SS */
#define SET_1D (B(2) | B(3) | B(4) | B(5) | B(6) | B(7) | B(9) | B(11) | B(12) | B(13) | B(14) | B(16) | B(27))
/* Leaf 7: not HLE RTM SGX MPX SMAP PT; PKU CET LA57 WAITPKG KL ENQCMD; UINTR AMX PCONFIG ARCH_LBR IBT... */
#define KEEP_7B                                                                                                        \
    (B(0) | B(3) | B(5) | B(6) | B(8) | B(9) | B(10) | B(13) | B(16) | B(17) | B(18) | B(19) | B(21) | B(23) | B(24) | \
     B(28) | B(29) | B(30) | B(31))
#define SET_7B (B(1) /* TSC_ADJUST */ | B(7) /* SMEP */)
#define KEEP_7C (B(0) | B(1) | B(6) | B(8) | B(9) | B(10) | B(11) | B(12) | B(14) | B(22) | B(25) | B(27) | B(28))
#define SET_7C (B(2) /* UMIP */)
#define KEEP_7D (B(4) | B(8) | B(14) | B(23))
#define SET_7D (B(26) /* IBRS, IBPB */ | B(29) /* ARCH_CAPABILITIES */)
#define SET_72D B(4) /* BHI_CTRL: else Linux clears the branch history by a loop on each system call */
#define KEEP_71A (B(0) | B(1) | B(2) | B(4) | B(5) | B(10) | B(11) | B(12) | B(23))
#define KEEP_71D (B(4) | B(5) | B(10) | B(14))
/* Leaf 0xd, 1: OPT, C, XGETBV(1), S; not XFD */
#define KEEP_D1A 0xfu
/* Leaf 0x80000001 */
#define KEEP_E1C (B(0) | B(5) | B(6) | B(7) | B(8))
#define KEEP_E1D (B(22) | B(26) | B(27) | B(29))
#define AMD_E1C (B(6) | B(7))
#define SET_E1D (B(11) /* SYSCALL */ | B(20) /* NX */)
/* What needs AVX state, and AVX-512 state */
#define AVX_1C (B(12) | B(28) | B(29))
#define AVX_7B (B(5))
#define AVX_7C (B(9) | B(10))
#define AVX512_7B (B(16) | B(17) | B(21) | B(28) | B(30) | B(31))
#define AVX512_7C (B(1) | B(6) | B(11) | B(12) | B(14))
#define AVX512_7D (B(8) | B(23))

enum { A, BX, C, D };

static uint32_t *add(struct bt_cpuid *m, uint32_t leaf, uint32_t sub)
{
    struct bt_cpuid_leaf *l = &m->leaf[m->n < BT_CPUID_MAX ? m->n++ : BT_CPUID_MAX - 1];
    l->leaf = leaf;
    l->sub = sub;
    return l->r;
}

static void host(uint32_t leaf, uint32_t sub, uint32_t r[4])
{
    __cpuid_count(leaf, sub, r[A], r[BX], r[C], r[D]);
}

static unsigned log2_up(unsigned n)
{
    unsigned b = 0;
    while ((1u << b) < n)
        b++;
    return b;
}

static uint64_t host_xcr0(void)
{
    uint32_t r[4], lo, hi;
    host(1, 0, r);
    if (!(r[C] & B(27)))
        return 3;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

/* --- what there is to offer ------------------------------------------------------------ */

static bool host_is_amd(void)
{
    uint32_t h[4];
    host(0, 0, h);
    return h[C] == 0x444d4163 /* "cAMD" */ || h[C] == 0x656e6975 /* "uine", Hygon */;
}

static void offer(struct bt_cpuid_offer *o)
{
    static const struct { uint32_t leaf, sub, reg, keep, set; } words[BT_WORDS] = {
        [BT_W_1C] = {1, 0, C, KEEP_1C, SET_1C | (BT_CPUID_PCID ? B(17) : 0)},
        [BT_W_1D] = {1, 0, D, KEEP_1D, SET_1D},
        [BT_W_7B] = {7, 0, BX, KEEP_7B, SET_7B},
        [BT_W_7C] = {7, 0, C, KEEP_7C, SET_7C},
        [BT_W_7D] = {7, 0, D, KEEP_7D, SET_7D},
        [BT_W_71A] = {7, 1, A, KEEP_71A, 0},
        [BT_W_71D] = {7, 1, D, KEEP_71D, 0},
        [BT_W_72D] = {7, 2, D, 0, SET_72D},
        [BT_W_D1A] = {0xd, 1, A, KEEP_D1A, 0},
        [BT_W_E1C] = {0x80000001, 0, C, KEEP_E1C, 0},
        [BT_W_E1D] = {0x80000001, 0, D, KEEP_E1D, SET_E1D},
    };
    uint32_t max[2][4], h[4];
    uint64_t xcr0 = host_xcr0();

    memset(o, 0, sizeof(*o));
    host(0, 0, max[0]);
    host(7, 0, max[1]);
    for (unsigned i = 0; i < BT_WORDS; i++) {
        o->host_kind[i] = words[i].keep;
        o->engine[i] = words[i].set;
        o->here[i] = words[i].set;
        bool there = words[i].leaf >= 0x80000000 ||
                     (words[i].leaf <= max[0][A] && (words[i].leaf != 7 || words[i].sub <= max[1][A]));
        if (there) {
            host(words[i].leaf, words[i].sub, h);
            o->here[i] |= h[words[i].reg] & words[i].keep;
        }
    }
    uint32_t *w = o->here;
    if (!host_is_amd())
        w[BT_W_E1C] &= ~AMD_E1C;
    if ((xcr0 & 6) != 6) {
        w[BT_W_1C] &= ~AVX_1C;
        w[BT_W_7B] &= ~AVX_7B;
        w[BT_W_7C] &= ~AVX_7C;
        w[BT_W_71A] &= B(10) | B(11) | B(12);
        w[BT_W_71D] &= B(14);
    }
    if ((xcr0 & 0xe6) != 0xe6) {
        w[BT_W_7B] &= ~AVX512_7B;
        w[BT_W_7C] &= ~AVX512_7C;
        w[BT_W_7D] &= ~AVX512_7D;
        w[BT_W_71A] &= ~B(5);
    } else {
        host(0xd, 5, h);
        o->avx512_off = h[BX];
    }
}

void bt_cpuid_models(hvx_cpu_model_fn fn, void *opaque)
{
    struct bt_cpuid_offer o;
    offer(&o);
    bt_model_list(&o, fn, opaque);
}

/* --- leaves ------------------------------------------------------------------------ */

static void leaf_1(struct bt_cpuid *m, const struct bt_model *model)
{
    uint32_t *r = add(m, 1, 0), h[4];
    host(1, 0, h);
    r[A] = model ? model->signature : h[A];
    /* CLFLUSH size; APIC ID is filled in per vCPU */
    r[BX] = (model ? 0x800 : h[BX] & 0xff00) | (1u << log2_up(m->n_vcpus)) << 16;
    r[C] = m->word[BT_W_1C];
    r[D] = m->word[BT_W_1D] | (m->n_vcpus > 1 ? B(28) : 0);
}

static void leaf_7(struct bt_cpuid *m)
{
    uint32_t *r = add(m, 7, 0);
    r[A] = 2;
    r[BX] = m->word[BT_W_7B];
    r[C] = m->word[BT_W_7C];
    r[D] = m->word[BT_W_7D];
    r = add(m, 7, 1);
    r[A] = m->word[BT_W_71A];
    r[D] = m->word[BT_W_71D];
    add(m, 7, 2)[D] = m->word[BT_W_72D];
}

static void leaf_cache(struct bt_cpuid *m, uint32_t leaf, uint32_t sub, const uint32_t h[4])
{
    uint32_t *r = add(m, leaf, sub);
    /* Shared as the guest's cores would: the first two levels per core, the rest by the package. */
    unsigned shared = ((h[A] >> 5) & 7) >= 3 ? (1u << log2_up(m->n_vcpus)) - 1 : 0;
    r[A] = (h[A] & 0x3fff) | shared << 14;
    if (leaf == 4)
        r[A] |= ((1u << log2_up(m->n_vcpus)) - 1) << 26;
    r[BX] = h[BX];
    r[C] = h[C];
    r[D] = h[D];
}

static unsigned l2_ways(const struct bt_model *model)
{
    return model->l2_kib == 1280 ? 20 : model->l2_kib > 512 ? 16 : 8;
}

static void leaf_caches(struct bt_cpuid *m, const struct bt_model *model)
{
    if (model) { /* 32 KiB each for data and code, the second level, 16 MiB for all; lines of 64 bytes */
        const unsigned ways = l2_ways(model), sets = model->l2_kib * 16 / ways;
        const uint32_t h[4][4] = {{0x121, 7u << 22 | 63, 63, 0}, {0x122, 7u << 22 | 63, 63, 0},
                                  {0x143, (ways - 1) << 22 | 63, sets - 1, 0}, {0x163, 15u << 22 | 63, 16383, 0}};
        for (uint32_t sub = 0; sub < 4; sub++)
            leaf_cache(m, 4, sub, h[sub]);
        add(m, 2, 0)[A] = 0x00feff01; /* "see leaf 4" */
        return;
    }
    uint32_t h[4];
    host(2, 0, h);
    memcpy(add(m, 2, 0), h, sizeof(h));
    for (uint32_t sub = 0; sub < 8; sub++) {
        host(4, sub, h);
        if (!(h[A] & 31))
            break;
        leaf_cache(m, 4, sub, h);
    }
}

static void leaf_topology(struct bt_cpuid *m, uint32_t leaf)
{
    uint32_t *r = add(m, leaf, 0);
    r[BX] = 1;
    r[C] = 0x100;
    r = add(m, leaf, 1);
    r[A] = log2_up(m->n_vcpus);
    r[BX] = m->n_vcpus;
    r[C] = 0x201;
}

static void leaf_xsave(struct bt_cpuid *m)
{
    uint32_t h[4], *r, max = 576;
    if (!(m->word[BT_W_1C] & B(26)))
        return;
    for (unsigned i = 2; i < 16; i++) {
        if (!(m->xcr0 >> i & 1))
            continue;
        host(0xd, i, h);
        m->comp_size[i] = h[A];
        m->comp_off[i] = h[BX];
        m->comp_align[i] = h[C] >> 1 & 1;
        if (h[A] + h[BX] > max)
            max = h[A] + h[BX];
    }
    r = add(m, 0xd, 0);
    r[A] = (uint32_t)m->xcr0;
    r[C] = max;
    r = add(m, 0xd, 1);
    r[A] = m->word[BT_W_D1A];
    for (unsigned i = 2; i < 16; i++) {
        if (!m->comp_size[i])
            continue;
        r = add(m, 0xd, i);
        r[A] = m->comp_size[i];
        r[BX] = m->comp_off[i];
        r[C] = m->comp_align[i] << 1;
    }
}

/* The crystal is the APIC timer's clock, 1 GHz, and TSC = crystal * num / den.
 * Linux multiplies kHz by num in 32 bits: num stays below 4294. The best
 * fraction with so small a numerator, by continued fractions: under 0.3 ppm off. */
static void leaf_tsc(struct bt_cpuid *m, uint64_t tsc_hz)
{
    uint64_t x = tsc_hz, y = BT_APIC_BUS_HZ, n0 = 0, n1 = 1, d0 = 1, d1 = 0;
    while (y) {
        uint64_t q = x / y, n = q * n1 + n0, d = q * d1 + d0, t = x % y;
        if (n >= 4294 || d >= 100000)
            break;
        n0 = n1, n1 = n;
        d0 = d1, d1 = d;
        x = y, y = t;
    }
    if (!tsc_hz || !d1 || !n1)
        return;
    uint32_t *r = add(m, 0x15, 0);
    r[A] = (uint32_t)d1;
    r[BX] = (uint32_t)n1;
    r[C] = (uint32_t)BT_APIC_BUS_HZ;
    r = add(m, 0x16, 0);
    r[A] = r[BX] = (uint32_t)((tsc_hz + 500000) / 1000000);
    r[C] = 100;
}

static void leaf_brand(struct bt_cpuid *m, const struct bt_model *model)
{
    char text[49] = "";
    snprintf(text, sizeof(text), "%s virtual processor", model->name);
    for (uint32_t i = 0; i < 3; i++)
        memcpy(add(m, 0x80000002 + i, 0), text + 16 * i, 16);
    if (m->amd) {
        uint32_t *r = add(m, 0x80000005, 0);
        r[C] = r[D] = 32u << 24 | 8u << 16 | 1u << 8 | 64;
    }
    uint32_t *r = add(m, 0x80000006, 0);
    r[C] = model->l2_kib << 16 | (l2_ways(model) > 8 ? 8u : 6u) << 12 | (m->amd ? 1u << 8 : 0) | 64;
    r[D] = m->amd ? 32u << 18 | 8u << 12 | 1u << 8 | 64 : 0;
}

static void leaf_extended(struct bt_cpuid *m, const struct bt_model *model)
{
    uint32_t h[4], *r;
    host(0x80000000, 0, h);
    uint32_t max = model ? 0x80000021 : h[A];
    r = add(m, 0x80000000, 0);
    r[A] = max < 0x80000008 ? 0x80000008 : max > 0x80000021 ? 0x80000021 : max;
    if (!m->amd)
        r[A] = 0x80000008;
    else
        r[BX] = m->leaf[0].r[BX], r[C] = m->leaf[0].r[C], r[D] = m->leaf[0].r[D];
    r = add(m, 0x80000001, 0);
    r[A] = m->amd ? m->leaf[1].r[A] : 0;
    r[C] = m->word[BT_W_E1C];
    r[D] = m->word[BT_W_E1D];
    if (m->amd) /* the low bits repeat leaf 1's */
        r[D] |= m->leaf[1].r[D] & 0x0183f3ffu & ~B(11);
    if (model)
        leaf_brand(m, model);
    for (uint32_t l = 0x80000002; !model && l <= 0x80000006 && l <= max; l++) {
        host(l, 0, h);
        memcpy(add(m, l, 0), h, sizeof(h));
    }
    add(m, 0x80000007, 0)[D] = B(8); /* invariant TSC */
    host(0x80000008, 0, h);
    r = add(m, 0x80000008, 0);
    /* bt_vm.chunk[] spans 1 TiB. Page tables are walked by us: a named model may have more bits than the host. */
    m->phys_bits = model || (h[A] & 0xff) > 40 ? 40 : h[A] & 0xff;
    r[A] = m->phys_bits | 48u << 8;
    if (m->amd) {
        r[BX] = B(26) | B(29); /* SSB_NO, BTC_NO */
        r[C] = (m->n_vcpus - 1) | log2_up(m->n_vcpus) << 12;
        if (max >= 0x80000021) {
            h[A] = B(2);
            if (!model)
                host(0x80000021, 0, h);
            r = add(m, 0x80000021, 0);
            r[A] = (h[A] & (B(2) /* LFENCE serialises */)) | B(6) /* null selectors clear the base */ |
                   B(29) /* SRSO_NO */;
            r[C] = B(1) | B(2); /* TSA_SQ_NO, TSA_L1_NO */
        }
    }
}

/* Rates that differ by less than a measurement is good for are the same: a
 * scaled RDTSC costs more. 250 ppm is what KVM takes for equal. */
void bt_tsc_scale_init(struct bt_vm *vm)
{
    uint64_t want = vm->tsc_hz, have = vm->host_tsc_hz;
    uint64_t off = want > have ? want - have : have - want;
    vm->tsc_ratio = !have || off < have / 4000 ? 0 : (uint64_t)(((unsigned __int128)want << 48) / have);
}

/* Leaf 0x40000010 is VMware's form of telling the TSC's and the APIC's clock in kHz. */
static void leaf_hypervisor(struct bt_cpuid *m, const struct bt_vm *vm)
{
    const bool kvm = m->hypervisor == BT_HYPERVISOR_KVM;
    if (m->hypervisor == BT_HYPERVISOR_NONE)
        return;
    uint32_t *r = add(m, 0x40000000, 0);
    r[A] = 0x40000010;
    memcpy(r + 1, kvm ? "KVMKVMKVM\0\0\0" : "HVXHVXHVXHVX", 12);
    if (kvm)
        add(m, 0x40000001, 0)[A] = bt_pv_features(vm);
    r = add(m, 0x40000010, 0);
    r[A] = (uint32_t)(vm->tsc_hz / 1000);
    r[BX] = (uint32_t)(BT_APIC_BUS_HZ / 1000);
}

static void vendor(struct bt_cpuid *m, const struct bt_model *model)
{
    uint32_t h[4], *r = add(m, 0, 0);
    host(0, 0, h);
    r[A] = 0x1f;
    if (model) { /* EBX EDX ECX */
        memcpy(&h[BX], model->vendor, 4);
        memcpy(&h[D], model->vendor + 4, 4);
        memcpy(&h[C], model->vendor + 8, 4);
    }
    r[BX] = h[BX], r[C] = h[C], r[D] = h[D];
    m->amd = model ? model->vendor[0] == 'A' : host_is_amd();
}

/* MXCSR_MASK of an FXSAVE image; 0 is how the first processors with SSE say 0xffbf. */
static uint32_t host_mxcsr_mask(void)
{
    uint8_t image[512] __attribute__((aligned(16))) = {0};
    uint32_t mask;
    __asm__ volatile("fxsave %0" : "+m"(image));
    memcpy(&mask, image + 28, sizeof(mask));
    return mask ? mask : 0xffbf;
}

int bt_cpuid_create(struct bt_vm *vm, const char *text, struct hvx_error *err)
{
    struct bt_cpuid_offer o;
    struct bt_model_choice choice;
    uint32_t h[4];

    offer(&o);
    int rc = bt_model_choose(text ? text : "host", &o, &choice, err);
    if (rc)
        return rc;
    struct bt_cpuid *m = calloc(1, sizeof(*m));
    if (!m)
        return hvx_fail(err, -ENOMEM, "no memory for the CPU model");
    if (choice.tsc_hz)
        vm->tsc_hz = choice.tsc_hz;
    bt_tsc_scale_init(vm);
    memcpy(m->word, choice.word, sizeof(m->word));
    m->restricted = choice.restricted;
    m->hypervisor = (uint8_t)choice.hypervisor;
    m->n_vcpus = vm->n_vcpus ? vm->n_vcpus : 1;
    m->tsc_base = bt_host_tsc();
    m->xcr0 = 3;
    if (m->word[BT_W_1C] & B(28))
        m->xcr0 |= 4;
    if (m->word[BT_W_7B] & B(16))
        m->xcr0 |= 0xe0;

    host(0, 0, h);
    vendor(m, choice.model);
    leaf_1(m, choice.model);
    if (!m->amd && (choice.model || h[A] >= 4))
        leaf_caches(m, choice.model);
    add(m, 6, 0)[A] = B(2); /* ARAT: the APIC timer never stops */
    leaf_7(m);
    leaf_topology(m, 0xb);
    leaf_topology(m, 0x1f);
    leaf_xsave(m);
    leaf_tsc(m, vm->tsc_hz);
    vm->cpuid = m;
    vm->amd = m->amd;
    vm->host_amd = host_is_amd();
    vm->mxcsr_mask = host_mxcsr_mask();
    vm->hypercalls = m->hypervisor == BT_HYPERVISOR_KVM;
    leaf_hypervisor(m, vm);
    leaf_extended(m, choice.model);
    return 0;
}

void bt_cpuid_destroy(struct bt_vm *vm)
{
    free(vm->cpuid);
    vm->cpuid = NULL;
}

bool bt_cpuid_has_x2apic(const struct bt_vm *vm)
{
    return bt_cpuid_has(vm, BT_F_X2APIC);
}

/* --- the instruction ------------------------------------------------------------------ */

static uint32_t area_size(const struct bt_cpuid *m, uint64_t features, bool compact)
{
    uint32_t n = 576;
    for (unsigned i = 2; i < 16; i++) {
        if (!(features >> i & 1) || !m->comp_size[i])
            continue;
        if (compact)
            n = (m->comp_align[i] ? (n + 63) & ~63u : n) + m->comp_size[i];
        else if (m->comp_off[i] + m->comp_size[i] > n)
            n = m->comp_off[i] + m->comp_size[i];
    }
    return n;
}

void bt_cpuid(struct bt_vcpu *c, uint32_t leaf, uint32_t sub, uint32_t out[4])
{
    const struct bt_cpuid *m = c->vm->cpuid;
    bool indexed = leaf == 4 || leaf == 7 || leaf == 0xb || leaf == 0xd || leaf == 0x1f;

    out[A] = out[BX] = out[C] = out[D] = 0;
    for (unsigned i = 0; i < m->n; i++) {
        const struct bt_cpuid_leaf *l = &m->leaf[i];
        if (l->leaf == leaf && (!indexed || l->sub == sub)) {
            out[A] = l->r[A], out[BX] = l->r[BX], out[C] = l->r[C], out[D] = l->r[D];
            break;
        }
    }
    switch (leaf) {
    case 1:
        out[BX] |= c->apic_id << 24;
        if (c->cr4 & BT_CR4_OSXSAVE)
            out[C] |= B(27);
        if (!(atomic_load_explicit(&c->apic->base, memory_order_relaxed) & BT_APIC_BASE_EN))
            out[D] &= ~B(9);
        break;
    case 0xb:
    case 0x1f:
        if (sub > 1)
            out[C] = sub & 0xff;
        out[D] = c->apic_id;
        break;
    case 0xd:
        if (sub == 0)
            out[BX] = area_size(m, c->xcr0, false);
        else if (sub == 1 && (out[A] & 0xa))
            out[BX] = area_size(m, c->xcr0 | c->xss, true);
        break;
    default: break;
    }
}
