/* SPDX-License-Identifier: Apache-2.0
 *
 * csum.c - see csum.h.
 */
#include "core/net/csum.h"

#include <endian.h>
#include <string.h>

uint64_t hvx_csum_add(uint64_t sum, const void *p, size_t n)
{
    const uint8_t *b = p;
    /* Carries of 32-bit words collect in the upper half: ones' complement
     * addition does not care about the word size (RFC 1071, section 2). */
    for (; n >= 4; b += 4, n -= 4) {
        uint32_t w;
        memcpy(&w, b, 4);
        sum += be32toh(w);
    }
    if (n >= 2) {
        sum += (uint32_t)b[0] << 8 | b[1];
        b += 2;
        n -= 2;
    }
    if (n)
        sum += (uint32_t)b[0] << 8;
    return sum;
}

uint16_t hvx_csum_fold(uint64_t sum)
{
    sum = (sum & 0xffffffffu) + (sum >> 32);
    sum = (sum & 0xffffffffu) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

int hvx_csum_complete(uint8_t *frame, size_t n, const struct hvx_net_meta *meta)
{
    size_t field = (size_t)meta->csum_start + meta->csum_offset;
    if (meta->csum_start > n || field + 2 > n)
        return -EINVAL;
    uint16_t c = (uint16_t)~hvx_csum_fold(hvx_csum_add(0, frame + meta->csum_start, n - meta->csum_start));
    if (!c)
        c = 0xffff; /* zero would mean "none" to UDP; the two are equal to TCP */
    frame[field] = (uint8_t)(c >> 8);
    frame[field + 1] = (uint8_t)c;
    return 0;
}
