/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/tsc.c - the rate of the host's time-stamp counter. Ordinary C.
 *
 * CPUID leaf 15h is empty on many cloud machines and Linux tells the rate to
 * nobody, so it is measured against CLOCK_MONOTONIC_RAW, which the kernel
 * derives from the same counter.
 */
#include "bt.h"
#include <time.h>

#define MEASURE_NS 20000000ull
#define GRAIN_HZ 10000u /* a few parts per million: what such a measurement is good for */

/* Counter and clock at one instant: the tightest of several tries. */
static void sample(uint64_t *tsc, uint64_t *ns)
{
    uint64_t best = ~0ull;
    for (unsigned i = 0; i < 16; i++) {
        struct timespec t;
        uint64_t a = bt_host_tsc();
        clock_gettime(CLOCK_MONOTONIC_RAW, &t);
        uint64_t b = bt_host_tsc();
        if (b - a < best) {
            best = b - a;
            *tsc = a + (b - a) / 2;
            *ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
        }
    }
}

uint64_t bt_host_tsc_hz(void)
{
    uint64_t t0, n0, t1, n1;
    struct timespec nap = {.tv_nsec = (long)MEASURE_NS};
    sample(&t0, &n0);
    nanosleep(&nap, NULL);
    sample(&t1, &n1);
    if (n1 <= n0)
        return 1000000000u;
    uint64_t hz = (uint64_t)((unsigned __int128)(t1 - t0) * 1000000000u / (n1 - n0));
    hz = (hz + GRAIN_HZ / 2) / GRAIN_HZ * GRAIN_HZ;
    return hz ? hz : GRAIN_HZ;
}
