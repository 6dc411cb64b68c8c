/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/cpu_models.c - named CPU models and the text that chooses one:
 * NAME[,+FEATURE][,-FEATURE][,hypervisor=kvm|hvx|none][,tsc-frequency=HZ].
 *
 * A VM can move only to a host that has what it was shown. So a named model is
 * the same wherever it runs: vendor, family, brand, caches and address widths
 * come from here and nothing from the host. What a model needs of the host are
 * instructions; all of the system architecture is the engine's. The x86-64-vN
 * are the levels of the x86-64 psABI; a generation has what its makers' manuals
 * (Intel ARK and SDM, AMD's PPRs) list, less what the engine gives no guest:
 * TSX, MPX, SGX, protection keys, SMX, VMX and SVM.
 */
#include "cpu_model.h"
#include "sys.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TEXT 1024u

const struct bt_feature bt_features[BT_F_COUNT] = {
#define X(id, name, word, bit) [BT_F_##id] = {name, BT_W_##word, bit},
    BT_FEATURES(X)
#undef X
};

#define INTEL "GenuineIntel"
#define AMD "AuthenticAMD"
#define V2 "sse3 ssse3 sse4.1 sse4.2 cx16 popcnt lahf-lm"
#define V3 "avx avx2 bmi1 bmi2 f16c fma lzcnt movbe xsave"
#define V4 "avx512f avx512bw avx512cd avx512dq avx512vl"
#define ZEN_AVX512 V4 " avx512ifma avx512vbmi avx512vbmi2 avx512vnni avx512bitalg avx512-vpopcntdq avx512-bf16 gfni"

/* A model has what its base has, too. */
static const struct bt_model models[] = {
    {"x86-64-v1", NULL, INTEL, 0x000006fb, 1024, "", "any 64-bit processor"},
    {"x86-64-v2", "x86-64-v1", INTEL, 0x000106a5, 1024, V2, "level 2: with SSE 4.2 and POPCNT, about 2009"},
    {"x86-64-v3", "x86-64-v2", INTEL, 0x000306c3, 1024, V3, "level 3: with AVX2, BMI and FMA, about 2015"},
    {"x86-64-v4", "x86-64-v3", INTEL, 0x00050654, 1024, V4, "level 4: with AVX-512"},
    {"Nehalem", "x86-64-v2", INTEL, 0x000106a5, 256, "rdtscp", "Intel Xeon 5500, 2009"},
    {"Westmere", "Nehalem", INTEL, 0x000206c1, 256, "aes pclmulqdq pdpe1gb pcid", "Intel Xeon 5600, 2010"},
    {"SandyBridge", "Westmere", INTEL, 0x000206d7, 256, "avx xsave xsaveopt", "Intel Xeon E5, 2012"},
    {"IvyBridge", "SandyBridge", INTEL, 0x000306e4, 256, "f16c rdrand fsgsbase erms", "Intel Xeon E5 v2, 2013"},
    {"Haswell-noTSX", "IvyBridge", INTEL, 0x000306f2, 256, "movbe fma avx2 bmi1 bmi2 invpcid lzcnt",
     "Intel Xeon E5 v3, 2014"},
    {"Broadwell-noTSX", "Haswell-noTSX", INTEL, 0x000406f1, 256, "rdseed adx smap 3dnowprefetch",
     "Intel Xeon E5 v4, 2016"},
    {"Skylake-Server", "Broadwell-noTSX", INTEL, 0x00050654, 1024, V4 " clflushopt clwb xsavec xgetbv1 xsaves",
     "Intel Xeon Scalable, 2017 (without TSX)"},
    {"Cascadelake-Server", "Skylake-Server", INTEL, 0x00050657, 1024, "avx512vnni",
     "Intel Xeon Scalable, 2nd generation, 2019 (without TSX)"},
    {"Icelake-Server", "Cascadelake-Server", INTEL, 0x000606a6, 1280,
     "avx512ifma avx512vbmi avx512vbmi2 avx512bitalg avx512-vpopcntdq gfni vaes vpclmulqdq sha-ni rdpid fsrm",
     "Intel Xeon Scalable, 3rd generation, 2021"},
    {"SapphireRapids", "Icelake-Server", INTEL, 0x000806f8, 2048,
     "avx-vnni avx512-bf16 avx512-fp16 serialize movdiri movdir64b cldemote fzrm fsrs fsrc",
     "Intel Xeon Scalable, 4th generation, 2023 (without AMX)"},
    {"EPYC", "x86-64-v3", AMD, 0x00800f12, 512,
     "aes pclmulqdq xsaveopt xsavec xgetbv1 rdrand rdseed adx smap sha-ni clflushopt fsgsbase sse4a misalignsse "
     "3dnowprefetch mmxext pdpe1gb rdtscp",
     "AMD EPYC 7001, 2017"},
    {"EPYC-Rome", "EPYC", AMD, 0x00830f10, 512, "clwb rdpid xsaves", "AMD EPYC 7002, 2019"},
    {"EPYC-Milan", "EPYC-Rome", AMD, 0x00a00f11, 512, "erms fsrm invpcid pcid vaes vpclmulqdq", "AMD EPYC 7003, 2021"},
    {"EPYC-Genoa", "EPYC-Milan", AMD, 0x00a10f11, 1024, ZEN_AVX512, "AMD EPYC 9004, 2022"},
};
#define N_MODELS (sizeof(models) / sizeof(models[0]))

/* What is of no use, or of no effect, without something else: feature, needed. */
static const uint8_t needs[][2] = {
    {BT_F_AVX, BT_F_XSAVE}, {BT_F_XSAVEOPT, BT_F_XSAVE}, {BT_F_XSAVEC, BT_F_XSAVE}, {BT_F_XGETBV1, BT_F_XSAVE},
    {BT_F_XSAVES, BT_F_XSAVEC}, {BT_F_FMA, BT_F_AVX}, {BT_F_F16C, BT_F_AVX}, {BT_F_AVX2, BT_F_AVX},
    {BT_F_AVX_VNNI, BT_F_AVX2}, {BT_F_AVX_IFMA, BT_F_AVX2}, {BT_F_VAES, BT_F_AVX}, {BT_F_VPCLMUL, BT_F_AVX},
    {BT_F_AVX512F, BT_F_AVX2}, {BT_F_AVX512DQ, BT_F_AVX512F}, {BT_F_AVX512CD, BT_F_AVX512F},
    {BT_F_AVX512BW, BT_F_AVX512F}, {BT_F_AVX512VL, BT_F_AVX512F}, {BT_F_AVX512IFMA, BT_F_AVX512F},
    {BT_F_AVX512VNNI, BT_F_AVX512F}, {BT_F_AVX512POPCNT, BT_F_AVX512F}, {BT_F_AVX512VP2I, BT_F_AVX512F},
    {BT_F_AVX512VBMI, BT_F_AVX512BW}, {BT_F_AVX512VBMI2, BT_F_AVX512BW}, {BT_F_AVX512BITALG, BT_F_AVX512BW},
    {BT_F_AVX512BF16, BT_F_AVX512BW}, {BT_F_AVX512FP16, BT_F_AVX512BW}, {BT_F_BHI_CTRL, BT_F_SPEC_CTRL},
};

static uint32_t *word_of(uint32_t *w, unsigned f) { return &w[bt_features[f].word]; }
static uint32_t bit_of(unsigned f) { return 1u << bt_features[f].bit; }
static bool has(const uint32_t *w, unsigned f) { return (w[bt_features[f].word] & bit_of(f)) != 0; }

static unsigned find_feature(const char *name, size_t n)
{
    /* names under which some are as well known */
    static const struct { const char *name; uint8_t f; } also[] = {
        {"pni", BT_F_SSE3}, {"sse4_1", BT_F_SSE41}, {"sse4_2", BT_F_SSE42}, {"abm", BT_F_LZCNT}, {"lahf_lm", BT_F_LAHF},
        {"sha_ni", BT_F_SHA}, {"avx512_vnni", BT_F_AVX512VNNI}, {"tsc_deadline_timer", BT_F_TSC_DEADLINE},
        {"cmpxchg16b", BT_F_CX16}, {"ibrs", BT_F_SPEC_CTRL},
    };
    for (unsigned f = 1; f < BT_F_COUNT; f++)
        if (strlen(bt_features[f].name) == n && !memcmp(bt_features[f].name, name, n))
            return f;
    for (unsigned i = 0; i < sizeof(also) / sizeof(also[0]); i++)
        if (strlen(also[i].name) == n && !memcmp(also[i].name, name, n))
            return also[i].f;
    return BT_F_NONE;
}

static const struct bt_model *find_model(const char *name, size_t n)
{
    for (unsigned i = 0; i < N_MODELS; i++)
        if (strlen(models[i].name) == n && !memcmp(models[i].name, name, n))
            return &models[i];
    return NULL;
}

/* Features of a model and its bases. What the engine has for no guest is left
 * out; what it has whatever the host is (`engine`) every model has. */
static void model_words(const struct bt_model *m, const struct bt_cpuid_offer *o, uint32_t w[BT_WORDS])
{
    uint32_t listed[BT_WORDS] = {0};

    for (; m; m = m->base ? find_model(m->base, strlen(m->base)) : NULL)
        for (const char *p = m->features; *p; p += strspn(p, " ")) {
            size_t n = strcspn(p, " ");
            unsigned f = find_feature(p, n);
            *word_of(listed, f) |= bit_of(f);
            p += n;
        }
    for (unsigned i = 0; i < BT_WORDS; i++)
        w[i] = (listed[i] & o->host_kind[i]) | o->engine[i];
    /* what every 64-bit processor has, and is not in the list of names */
    w[BT_W_1D] |= o->host_kind[BT_W_1D];
    w[BT_W_E1D] |= 1u << 29;
}

/* Take away what needs something that is not there. */
static void close_down(uint32_t w[BT_WORDS])
{
    for (bool again = true; again;) {
        again = false;
        for (unsigned i = 0; i < sizeof(needs) / sizeof(needs[0]); i++)
            if (has(w, needs[i][0]) && !has(w, needs[i][1])) {
                *word_of(w, needs[i][0]) &= ~bit_of(needs[i][0]);
                again = true;
            }
    }
}

static void add_name(char *text, size_t size, const char *name)
{
    size_t n = strlen(text), l = strlen(name);
    if (n + l + 6 < size)
        snprintf(text + n, size - n, "%s%s", n ? ", " : "", name);
    else if (n + 5 < size && n && text[n - 1] != '.')
        snprintf(text + n, size - n, " ...");
}

/* Names of what w has and the host has not; false: nothing. */
static bool missing(const uint32_t w[BT_WORDS], const struct bt_cpuid_offer *o, char *text, size_t size)
{
    bool any = false;
    text[0] = 0;
    for (unsigned f = 1; f < BT_F_COUNT; f++)
        if (has(w, f) && !has(o->here, f)) {
            add_name(text, size, bt_features[f].name);
            any = true;
        }
    if (!any && (w[BT_W_1D] & ~o->here[BT_W_1D])) { /* older than any host we run on */
        snprintf(text, size, "basic features of a 64-bit processor");
        any = true;
    }
    return any;
}

/* Registers in memory must lie where the model's guests have found them before. */
static bool layout_differs(const struct bt_model *m, const uint32_t w[BT_WORDS], const struct bt_cpuid_offer *o)
{
    const bool amd = !strcmp(m->vendor, AMD);
    return has(w, BT_F_AVX512F) && o->avx512_off && o->avx512_off != (amd ? 832u : 1088u);
}

/* --- the parts of the text ------------------------------------------------------ */
static int set_feature(const char *p, size_t n, const struct bt_cpuid_offer *o, struct bt_model_choice *c,
                       struct hvx_error *err)
{
    const char sign = *p;
    unsigned f = find_feature(p + 1, n - 1);

    if (!f)
        return hvx_fail(err, -EINVAL, "--cpu: there is no feature \"%.*s\"; `hvx run --cpu help` lists them",
                        (int)(n - 1 > 40 ? 40 : n - 1), p + 1);
    if (sign == '-') {
        *word_of(c->word, f) &= ~bit_of(f);
        return 0;
    }
    if (!((o->host_kind[bt_features[f].word] | o->engine[bt_features[f].word]) & bit_of(f)))
        return hvx_fail(err, -ENOTSUP, "--cpu: engine bt has no \"%s\" for guests", bt_features[f].name);
    *word_of(c->word, f) |= bit_of(f);
    for (unsigned i = 0; i < sizeof(needs) / sizeof(needs[0]); i++)
        if (needs[i][0] == f && !has(c->word, needs[i][1]))
            return hvx_fail(err, -EINVAL, "--cpu: %s needs %s; put +%s before it", bt_features[f].name,
                            bt_features[needs[i][1]].name, bt_features[needs[i][1]].name);
    return 0;
}

static int set_hypervisor(const char *v, size_t n, struct bt_model_choice *c, struct hvx_error *err)
{
    static const char *const names[] = {[BT_HYPERVISOR_KVM] = "kvm", [BT_HYPERVISOR_HVX] = "hvx",
                                        [BT_HYPERVISOR_NONE] = "none"};
    for (unsigned i = 0; i < 3; i++)
        if (strlen(names[i]) == n && !memcmp(names[i], v, n)) {
            c->hypervisor = (enum bt_hypervisor)i;
            return 0;
        }
    return hvx_fail(err, -EINVAL, "--cpu: hypervisor=%.*s: say kvm, hvx or none", (int)(n > 40 ? 40 : n), v);
}

/* Decimal with an optional k, M or G. */
static int set_frequency(const char *v, size_t n, struct bt_model_choice *c, struct hvx_error *err)
{
    uint64_t hz = 0;
    size_t i = 0;
    for (; i < n && v[i] >= '0' && v[i] <= '9' && hz < 1ull << 40; i++)
        hz = hz * 10 + (uint64_t)(v[i] - '0');
    if (i + 1 == n && i) {
        hz *= v[i] == 'k' ? 1000u : v[i] == 'M' ? 1000000u : v[i] == 'G' ? 1000000000u : 0u;
        i++;
    }
    if (i != n || hz < BT_TSC_HZ_MIN || hz > BT_TSC_HZ_MAX)
        return hvx_fail(err, -EINVAL, "--cpu: tsc-frequency=%.*s: say Hz from 100M to 10G, such as 2600M",
                        (int)(n > 40 ? 40 : n), v);
    c->tsc_hz = hz;
    return 0;
}

static bool is_key(const char *p, size_t n, const char *key, const char **v, size_t *nv)
{
    size_t k = strlen(key);
    if (n < k || memcmp(p, key, k))
        return false;
    *v = p + k;
    *nv = n - k;
    return true;
}

/* The best level that this host has, for advice. */
static const char *advice(const struct bt_cpuid_offer *o)
{
    const char *best = "host";
    for (unsigned i = 0; i < 4; i++) {
        uint32_t w[BT_WORDS];
        char text[8];
        model_words(&models[i], o, w);
        if (!missing(w, o, text, sizeof(text)) && !layout_differs(&models[i], w, o))
            best = models[i].name;
    }
    return best;
}

int bt_model_choose(const char *text, const struct bt_cpuid_offer *o, struct bt_model_choice *c, struct hvx_error *err)
{
    size_t n = strcspn(text, ",");
    const char *v;
    size_t nv;
    char lacks[160];

    memset(c, 0, sizeof(*c));
    if (strlen(text) > MAX_TEXT)
        return hvx_fail(err, -EINVAL, "--cpu: more than %u characters", MAX_TEXT);
    if (n == 4 && !memcmp(text, "host", 4)) {
        memcpy(c->word, o->here, sizeof(c->word));
    } else {
        c->model = find_model(text, n);
        if (!c->model)
            return hvx_fail(err, -EINVAL, "--cpu: there is no model \"%.*s\"; `hvx run --cpu help` lists them",
                            (int)(n > 40 ? 40 : n), text);
        model_words(c->model, o, c->word);
    }
    for (const char *p = text + n; *p;) {
        n = strcspn(++p, ",");
        int r = *p == '+' || *p == '-' ? set_feature(p, n, o, c, err)
                : is_key(p, n, "hypervisor=", &v, &nv) ? set_hypervisor(v, nv, c, err)
                : is_key(p, n, "tsc-frequency=", &v, &nv) ? set_frequency(v, nv, c, err)
                : hvx_fail(err, -EINVAL, "--cpu: \"%.*s\" is none of +FEATURE, -FEATURE, hypervisor=, tsc-frequency=",
                           (int)(n > 40 ? 40 : n), p);
        if (r)
            return r;
        p += n;
    }
    close_down(c->word);
    if (missing(c->word, o, lacks, sizeof(lacks)))
        return hvx_fail(err, -ENOTSUP, "--cpu %.40s: this host's processor lacks %s; take them away with -FEATURE, or "
                                       "use %s, which works here", text, lacks, advice(o));
    if (c->model && layout_differs(c->model, c->word, o))
        return hvx_fail(err, -ENOTSUP,
                        "--cpu %.40s: this host keeps AVX-512 state at other places of XSAVE's area than "
                        "the model; add ,-avx512f, or use %s, which works here",
                        text, advice(o));
    if (!has(c->word, BT_F_HYPERVISOR))
        c->hypervisor = BT_HYPERVISOR_NONE;
    if (c->hypervisor == BT_HYPERVISOR_NONE)
        *word_of(c->word, BT_F_HYPERVISOR) &= ~bit_of(BT_F_HYPERVISOR);
    c->restricted = memcmp(c->word, o->here, sizeof(c->word)) != 0;
    return 0;
}

void bt_model_list(const struct bt_cpuid_offer *o, hvx_cpu_model_fn fn, void *opaque)
{
    char text[400];

    fn(opaque, "host", "all that this host's processor and the engine have", NULL);
    for (unsigned i = 0; i < N_MODELS; i++) {
        uint32_t w[BT_WORDS];
        char lacks[160], why[200];
        bool bad;
        model_words(&models[i], o, w);
        close_down(w);
        bad = missing(w, o, lacks, sizeof(lacks));
        if (bad)
            snprintf(why, sizeof(why), "lacks %s", lacks);
        else if ((bad = layout_differs(&models[i], w, o)))
            snprintf(why, sizeof(why), "keeps AVX-512 state elsewhere");
        fn(opaque, models[i].name, models[i].what, bad ? why : NULL);
    }
    text[0] = 0;
    for (unsigned f = 1; f < BT_F_COUNT; f++) {
        uint8_t w = bt_features[f].word;
        if (!((o->host_kind[w] | o->engine[w]) & bit_of(f)))
            continue;
        if (strlen(text) > 72) {
            fn(opaque, NULL, text, NULL);
            text[0] = 0;
        }
        size_t n = strlen(text);
        snprintf(text + n, sizeof(text) - n, "%s%s%s", n ? " " : "", bt_features[f].name,
                 has(o->here, f) ? "" : "(not here)");
    }
    if (text[0])
        fn(opaque, NULL, text, NULL);
}
