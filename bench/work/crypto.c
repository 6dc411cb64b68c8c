/* SPDX-License-Identifier: Apache-2.0 */
/* SHA-256 in plain C and with the CPU's instructions, AES with the CPU's instructions. Answers from FIPS 180-4/197. */
#include "work.h"

#include <cpuid.h>
#include <immintrin.h>
#include <string.h>

static const uint32_t k256[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
    0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
    0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
    0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t ror(uint32_t x, int n)
{
    return (x >> n) | (x << (32 - n));
}

static void sha256_plain(uint32_t h[8], const unsigned char *p, size_t blocks)
{
    while (blocks--) {
        uint32_t w[64], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6], i = h[7];

        for (int t = 0; t < 16; t++, p += 4)
            w[t] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
        for (int t = 16; t < 64; t++)
            w[t] = (ror(w[t - 2], 17) ^ ror(w[t - 2], 19) ^ (w[t - 2] >> 10)) + w[t - 7] +
                   (ror(w[t - 15], 7) ^ ror(w[t - 15], 18) ^ (w[t - 15] >> 3)) + w[t - 16];
        for (int t = 0; t < 64; t++) {
            uint32_t t1 = i + (ror(e, 6) ^ ror(e, 11) ^ ror(e, 25)) + ((e & f) ^ (~e & g)) + k256[t] + w[t];
            uint32_t t2 = (ror(a, 2) ^ ror(a, 13) ^ ror(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));

            i = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e, h[5] += f, h[6] += g, h[7] += i;
    }
}

__attribute__((target("sha,sse4.1,ssse3"))) static void sha256_ni(uint32_t h[8], const unsigned char *p, size_t blocks)
{
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bll, 0x0405060700010203ll);
    /* The instructions want the eight words as ABEF and CDGH. */
    __m128i abef = _mm_set_epi32((int)h[0], (int)h[1], (int)h[4], (int)h[5]);
    __m128i cdgh = _mm_set_epi32((int)h[2], (int)h[3], (int)h[6], (int)h[7]);

    while (blocks--) {
        __m128i w[16], abef0 = abef, cdgh0 = cdgh;

        for (int t = 0; t < 16; t++, p += t < 5 ? 16 : 0) {
            __m128i m;

            if (t < 4)
                w[t] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)p), swap);
            else
                w[t] = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(w[t - 4], w[t - 3]),
                                                          _mm_alignr_epi8(w[t - 1], w[t - 2], 4)),
                                            w[t - 1]);
            m = _mm_add_epi32(w[t], _mm_load_si128((const __m128i *)&k256[4 * t]));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, m);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(m, 0x0e));
        }
        abef = _mm_add_epi32(abef, abef0);
        cdgh = _mm_add_epi32(cdgh, cdgh0);
    }
    h[0] = (uint32_t)_mm_extract_epi32(abef, 3), h[1] = (uint32_t)_mm_extract_epi32(abef, 2);
    h[4] = (uint32_t)_mm_extract_epi32(abef, 1), h[5] = (uint32_t)_mm_extract_epi32(abef, 0);
    h[2] = (uint32_t)_mm_extract_epi32(cdgh, 3), h[3] = (uint32_t)_mm_extract_epi32(cdgh, 2);
    h[6] = (uint32_t)_mm_extract_epi32(cdgh, 1), h[7] = (uint32_t)_mm_extract_epi32(cdgh, 0);
}

#define MILLION 1000000u

/* The million-a test of FIPS 180: 15625 whole blocks, then one of padding. */
static enum work_verdict million_a(unsigned long n, uint64_t *result,
                                   void (*rounds)(uint32_t *, const unsigned char *, size_t))
{
    static const uint32_t want[8] = {0xcdc76e5c, 0x9914fb92, 0x81a1c7e2, 0x84d73e67,
                                     0xf1809a48, 0xa497200e, 0x046d39cc, 0xc7112cd0};
    static unsigned char data[MILLION + 64];

    memset(data, 'a', MILLION);
    data[MILLION] = 0x80;
    for (int i = 0; i < 8; i++)
        data[MILLION + 63 - i] = (unsigned char)((uint64_t)MILLION * 8 >> (8 * i));
    for (unsigned long r = 0; r < n; r++) {
        uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

        rounds(h, data, (MILLION + 64) / 64);
        *result = h[0];
        if (memcmp(h, want, sizeof(h)))
            return WORK_WRONG;
    }
    return WORK_OK;
}

static enum work_verdict run_sha256(unsigned long n, uint64_t *result)
{
    return million_a(n, result, sha256_plain);
}

static enum work_verdict run_sha256ni(unsigned long n, uint64_t *result)
{
    unsigned a, b, c, d;

    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & (1u << 29)))
        return WORK_SKIP;
    return million_a(n, result, sha256_ni);
}

#define EXPAND(I, RCON) key[I] = expand(key[(I) - 1], _mm_aeskeygenassist_si128(key[(I) - 1], RCON))

__attribute__((target("aes,sse2"))) static inline __m128i expand(__m128i key, __m128i gen)
{
    gen = _mm_shuffle_epi32(gen, 0xff);
    key = _mm_xor_si128(key, _mm_slli_si128(key, 4));
    key = _mm_xor_si128(key, _mm_slli_si128(key, 8));
    return _mm_xor_si128(key, gen);
}

/* AES-128: the FIPS-197 example block, then 1000 * n chained blocks forth and back. */
__attribute__((target("aes,sse2"))) static enum work_verdict aes_ni(unsigned long n, uint64_t *result)
{
    static const unsigned char want[16] = {0x69, 0xc4, 0xe0, 0xd8, 0x6a, 0x7b, 0x04, 0x30,
                                           0xd8, 0xcd, 0xb7, 0x80, 0x70, 0xb4, 0xc5, 0x5a};
    unsigned char plain[16], out[16];
    __m128i key[11], inv[11], x, start;

    for (int i = 0; i < 16; i++)
        out[i] = (unsigned char)i, plain[i] = (unsigned char)(i * 0x11);
    key[0] = _mm_loadu_si128((const __m128i *)out);
    EXPAND(1, 0x01), EXPAND(2, 0x02), EXPAND(3, 0x04), EXPAND(4, 0x08), EXPAND(5, 0x10);
    EXPAND(6, 0x20), EXPAND(7, 0x40), EXPAND(8, 0x80), EXPAND(9, 0x1b), EXPAND(10, 0x36);
    for (int i = 0; i < 11; i++)
        inv[i] = i == 0 || i == 10 ? key[i] : _mm_aesimc_si128(key[i]);
    start = x = _mm_loadu_si128((const __m128i *)plain);
    for (unsigned long r = 0; r < 1000 * n; r++) {
        x = _mm_xor_si128(x, key[0]);
        for (int i = 1; i < 10; i++)
            x = _mm_aesenc_si128(x, key[i]);
        x = _mm_aesenclast_si128(x, key[10]);
        if (r == 0) {
            _mm_storeu_si128((__m128i *)out, x);
            if (memcmp(out, want, 16))
                return WORK_WRONG;
        }
    }
    *result = (uint64_t)_mm_cvtsi128_si32(x) & 0xffffffffu;
    for (unsigned long r = 0; r < 1000 * n; r++) {
        x = _mm_xor_si128(x, inv[10]);
        for (int i = 9; i > 0; i--)
            x = _mm_aesdec_si128(x, inv[i]);
        x = _mm_aesdeclast_si128(x, inv[0]);
    }
    return _mm_movemask_epi8(_mm_cmpeq_epi8(x, start)) == 0xffff ? WORK_OK : WORK_WRONG;
}

static enum work_verdict run_aes(unsigned long n, uint64_t *result)
{
    return __builtin_cpu_supports("aes") ? aes_ni(n, result) : WORK_SKIP;
}

const struct work work_crypto[] = {
    {"sha256", "SHA-256 of a million 'a' in plain C", 60, run_sha256},
    {"sha256ni", "SHA-256 of a million 'a' with SHA instructions", 250, run_sha256ni},
    {"aes", "1000 AES-128 blocks forth and back with AES instructions", 3000, run_aes},
    {NULL, NULL, 0, NULL},
};
