/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/cpu_features.h - the CPUID features that differ between
 * processors, by the names that Linux and libvirt use, and where CPUID shows
 * them. What every 64-bit processor has (fpu ... sse2, syscall, nx, lm) is not
 * here: no model is without it.
 *
 * A new feature goes here, into the KEEP or SET mask of cpuid.c, and, when
 * it brings instructions, into the table of isa.c.
 */
#ifndef BT_CPU_FEATURES_H
#define BT_CPU_FEATURES_H

#include <stdint.h>

/* Registers of CPUID that hold features: leaf, subleaf, register. */
#define BT_CPUID_WORDS(X)                                                                                              \
    X(1C, 1, 0, 2) X(1D, 1, 0, 3) X(7B, 7, 0, 1) X(7C, 7, 0, 2) X(7D, 7, 0, 3) X(71A, 7, 1, 0) X(71D, 7, 1, 3)         \
    X(72D, 7, 2, 3) X(D1A, 0xd, 1, 0) X(E1C, 0x80000001, 0, 2) X(E1D, 0x80000001, 0, 3)

enum bt_cpuid_word {
#define X(name, leaf, sub, reg) BT_W_##name,
    BT_CPUID_WORDS(X)
#undef X
        BT_WORDS
};

/* X(identifier, name, word, bit) */
#define BT_FEATURES(X)                                                                                                 \
    X(SSE3, "sse3", 1C, 0) X(PCLMUL, "pclmulqdq", 1C, 1) X(SSSE3, "ssse3", 1C, 9) X(FMA, "fma", 1C, 12)                \
    X(CX16, "cx16", 1C, 13) X(PCID, "pcid", 1C, 17) X(SSE41, "sse4.1", 1C, 19) X(SSE42, "sse4.2", 1C, 20)              \
    X(X2APIC, "x2apic", 1C, 21) X(MOVBE, "movbe", 1C, 22) X(POPCNT, "popcnt", 1C, 23)                                  \
    X(TSC_DEADLINE, "tsc-deadline", 1C, 24) X(AES, "aes", 1C, 25) X(XSAVE, "xsave", 1C, 26) X(AVX, "avx", 1C, 28)      \
    X(F16C, "f16c", 1C, 29) X(RDRAND, "rdrand", 1C, 30) X(HYPERVISOR, "hypervisor", 1C, 31)                            \
    X(FSGSBASE, "fsgsbase", 7B, 0) X(TSC_ADJUST, "tsc-adjust", 7B, 1) X(BMI1, "bmi1", 7B, 3) X(AVX2, "avx2", 7B, 5)    \
    X(SMEP, "smep", 7B, 7) X(BMI2, "bmi2", 7B, 8) X(ERMS, "erms", 7B, 9) X(INVPCID, "invpcid", 7B, 10)                 \
    X(AVX512F, "avx512f", 7B, 16) X(AVX512DQ, "avx512dq", 7B, 17) X(RDSEED, "rdseed", 7B, 18) X(ADX, "adx", 7B, 19)    \
    X(SMAP, "smap", 7B, 20)                                                                                            \
    X(AVX512IFMA, "avx512ifma", 7B, 21) X(CLFLUSHOPT, "clflushopt", 7B, 23) X(CLWB, "clwb", 7B, 24)                    \
    X(AVX512CD, "avx512cd", 7B, 28) X(SHA, "sha-ni", 7B, 29) X(AVX512BW, "avx512bw", 7B, 30)                           \
    X(AVX512VL, "avx512vl", 7B, 31) X(PREFETCHWT1, "prefetchwt1", 7C, 0) X(AVX512VBMI, "avx512vbmi", 7C, 1)            \
    X(UMIP, "umip", 7C, 2) X(AVX512VBMI2, "avx512vbmi2", 7C, 6) X(GFNI, "gfni", 7C, 8) X(VAES, "vaes", 7C, 9)          \
    X(VPCLMUL, "vpclmulqdq", 7C, 10) X(AVX512VNNI, "avx512vnni", 7C, 11) X(AVX512BITALG, "avx512bitalg", 7C, 12)       \
    X(AVX512POPCNT, "avx512-vpopcntdq", 7C, 14) X(RDPID, "rdpid", 7C, 22) X(CLDEMOTE, "cldemote", 7C, 25)              \
    X(MOVDIRI, "movdiri", 7C, 27) X(MOVDIR64B, "movdir64b", 7C, 28) X(FSRM, "fsrm", 7D, 4)                             \
    X(AVX512VP2I, "avx512-vp2intersect", 7D, 8) X(SERIALIZE, "serialize", 7D, 14) X(AVX512FP16, "avx512-fp16", 7D, 23) \
    X(SPEC_CTRL, "spec-ctrl", 7D, 26) X(ARCH_CAP, "arch-capabilities", 7D, 29) X(AVX_VNNI, "avx-vnni", 71A, 4)         \
    X(AVX512BF16, "avx512-bf16", 71A, 5) X(FZRM, "fzrm", 71A, 10) X(FSRS, "fsrs", 71A, 11) X(FSRC, "fsrc", 71A, 12)    \
    X(AVX_IFMA, "avx-ifma", 71A, 23) X(BHI_CTRL, "bhi-ctrl", 72D, 4)                                                   \
    X(XSAVEOPT, "xsaveopt", D1A, 0) X(XSAVEC, "xsavec", D1A, 1)                                                        \
    X(XGETBV1, "xgetbv1", D1A, 2) X(XSAVES, "xsaves", D1A, 3) X(LAHF, "lahf-lm", E1C, 0) X(LZCNT, "lzcnt", E1C, 5)     \
    X(SSE4A, "sse4a", E1C, 6) X(MISALIGNSSE, "misalignsse", E1C, 7) X(PREFETCHW, "3dnowprefetch", E1C, 8)              \
    X(MMXEXT, "mmxext", E1D, 22) X(PDPE1GB, "pdpe1gb", E1D, 26) X(RDTSCP, "rdtscp", E1D, 27)

enum bt_feature_id {
    BT_F_NONE,
#define X(id, name, word, bit) BT_F_##id,
    BT_FEATURES(X)
#undef X
        BT_F_COUNT
};

struct bt_feature {
    const char *name;
    uint8_t word, bit;
};
extern const struct bt_feature bt_features[BT_F_COUNT];

#endif
