/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/isa.c - which CPUID feature an instruction needs: with a CPU
 * model below the host's, what CPUID does not show must not work. Asked when a
 * block is made, and only for such models. Ordinary C.
 */
#include "cpu_model.h"
#include "trans.h"

#define S(x) ZYDIS_ISA_SET_##x
#define F(x) BT_F_##x
#define ONE(set, f) [S(set)] = {F(f), 0}
#define TWO(set, f, g) [S(set)] = {F(f), F(g)}
/* 128- and 256-bit forms need AVX512VL as well */
#define EVEX(set, f) TWO(set##_128, f, AVX512VL), TWO(set##_256, f, AVX512VL), ONE(set##_512, f)
#define EVEX2(set, f) TWO(set##_128, f, AVX512VL), TWO(set##_256, f, AVX512VL), TWO(set##_512, f, AVX512F)

static const uint8_t need[ZYDIS_ISA_SET_MAX_VALUE + 1][2] = {
    ONE(ADOX_ADCX, ADX), ONE(AES, AES), ONE(AVX, AVX), ONE(AVX2, AVX2), ONE(AVX2GATHER, AVX2), TWO(AVXAES, AVX, AES),
    TWO(AVX_GFNI, AVX, GFNI), ONE(AVX_VNNI, AVX_VNNI), ONE(BMI1, BMI1), ONE(BMI2, BMI2), ONE(CLFLUSHOPT, CLFLUSHOPT),
    ONE(CLWB, CLWB), ONE(CMPXCHG16B, CX16), ONE(F16C, F16C), ONE(FMA, FMA), ONE(GFNI, GFNI), ONE(INVPCID, INVPCID),
    ONE(LZCNT, LZCNT), ONE(MOVBE, MOVBE), ONE(MOVDIR, MOVDIRI), ONE(PCLMULQDQ, PCLMUL), ONE(POPCNT, POPCNT),
    ONE(RDPID, RDPID), ONE(RDRAND, RDRAND), ONE(RDSEED, RDSEED), ONE(RDTSCP, RDTSCP), ONE(RDWRFSGS, FSGSBASE),
    ONE(SERIALIZE, SERIALIZE), ONE(SHA, SHA), ONE(SMAP, SMAP), ONE(SSE3, SSE3), ONE(SSE3X87, SSE3), ONE(SSE4, SSE41),
    ONE(SSE42, SSE42), ONE(SSE4A, SSE4A), ONE(SSSE3, SSSE3), ONE(SSSE3MMX, SSSE3), ONE(VAES, VAES),
    ONE(VPCLMULQDQ, VPCLMUL), ONE(XSAVE, XSAVE), ONE(XSAVEC, XSAVEC), ONE(XSAVEOPT, XSAVEOPT), ONE(XSAVES, XSAVES),
    EVEX(AVX512BW, AVX512BW), ONE(AVX512BW_128N, AVX512BW), ONE(AVX512BW_KOP, AVX512BW), EVEX(AVX512CD, AVX512CD),
    EVEX(AVX512DQ, AVX512DQ), ONE(AVX512DQ_128N, AVX512DQ), ONE(AVX512DQ_KOP, AVX512DQ), ONE(AVX512DQ_SCALAR, AVX512DQ),
    EVEX(AVX512F, AVX512F), ONE(AVX512F_128N, AVX512F), ONE(AVX512F_KOP, AVX512F), ONE(AVX512F_SCALAR, AVX512F),
    EVEX(AVX512_BF16, AVX512BF16), EVEX(AVX512_BITALG, AVX512BITALG), EVEX(AVX512_FP16, AVX512FP16),
    ONE(AVX512_FP16_128N, AVX512FP16), ONE(AVX512_FP16_SCALAR, AVX512FP16), EVEX2(AVX512_GFNI, GFNI),
    EVEX(AVX512_IFMA, AVX512IFMA), EVEX2(AVX512_VAES, VAES), EVEX(AVX512_VBMI2, AVX512VBMI2),
    EVEX(AVX512_VBMI, AVX512VBMI), EVEX(AVX512_VNNI, AVX512VNNI), EVEX(AVX512_VP2INTERSECT, AVX512VP2I),
    EVEX2(AVX512_VPCLMULQDQ, VPCLMUL), EVEX(AVX512_VPOPCNTDQ, AVX512POPCNT),
};

bool trans_isa_hidden(const struct trans *t, const struct insn *x)
{
    const struct bt_vm *vm = t->c->vm;
    unsigned set = x->d.meta.isa_set;

    if (set == S(LAHF)) /* always there outside 64-bit code */
        return t->code64 && !bt_cpuid_has(vm, F(LAHF));
    if (x->d.mnemonic == ZYDIS_MNEMONIC_MOVDIR64B)
        return !bt_cpuid_has(vm, F(MOVDIR64B));
    for (unsigned i = 0; i < 2 && set <= ZYDIS_ISA_SET_MAX_VALUE; i++)
        if (need[set][i] && !bt_cpuid_has(vm, need[set][i]))
            return true;
    return false;
}

/* F3 0F BC and BD are BSF and BSR, and F3 0F 09 is WBINVD, on processors that
 * know no better. */
void trans_isa_decoder(const struct bt_vm *vm, ZydisDecoder *d)
{
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_LZCNT, bt_cpuid_has(vm, F(LZCNT)));
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_TZCNT, bt_cpuid_has(vm, F(BMI1)));
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CLDEMOTE, bt_cpuid_has(vm, F(CLDEMOTE)));
}
