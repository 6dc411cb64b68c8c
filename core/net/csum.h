/* SPDX-License-Identifier: Apache-2.0
 *
 * csum.h - Internet checksums (RFC 1071) in software, for receivers that take
 * no frames with partial checksums.
 */
#ifndef HVX_NET_CSUM_H
#define HVX_NET_CSUM_H

#include <hvx/host.h>

/* Add n bytes, as big-endian 16-bit words, to a running sum. Every call but
 * the last must add an even number of bytes. */
uint64_t hvx_csum_add(uint64_t sum, const void *p, size_t n);
/* Fold to 16 bits, not inverted, host order. */
uint16_t hvx_csum_fold(uint64_t sum);
/* Finish the partial checksum of a frame that lies in one piece: the field at
 * csum_start + csum_offset holds the sum of the pseudo header already.
 * -EINVAL when the offsets point outside of the frame. */
HVX_WUR int hvx_csum_complete(uint8_t *frame, size_t n, const struct hvx_net_meta *meta);
#endif
