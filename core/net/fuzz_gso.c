/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_gso.c - any frame with any metadata through software checksums and
 * segmentation, as a guest could send it.
 */
#include "core/net/csum.h"
#include "core/net/gso.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static void count(void *opaque, uint8_t *frame, size_t n)
{
    size_t *sum = opaque;
    assert(frame && n >= 54);
    *sum += n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct hvx_net_meta m;
    size_t sum = 0, n_scratch = 1 + HVX_GSO_MAX_HEADERS + 2000;
    if (n < sizeof(m))
        return 0;
    memcpy(&m, data, sizeof(m));
    data += sizeof(m);
    n -= sizeof(m);
    uint8_t *copy = malloc(n ? n : 1), *scratch = malloc(n_scratch); /* exact sizes, for the sanitizer */
    struct iovec v[2] = {{copy, n / 3}, {copy + n / 3, n - n / 3}};
    memcpy(copy, data, n);
    (void)!hvx_gso_segment(v, 2, &m, scratch, n_scratch, count, &sum);
    (void)!hvx_csum_complete(copy, n, &m);
    free(copy);
    free(scratch);
    return 0;
}
