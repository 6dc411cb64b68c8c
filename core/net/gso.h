/* SPDX-License-Identifier: Apache-2.0
 *
 * gso.h - cutting a large TCP frame into frames of the MTU, in software, for
 * receivers without segmentation offload.
 */
#ifndef HVX_NET_GSO_H
#define HVX_NET_GSO_H

#include <hvx/host.h>

/* Ethernet with two VLAN tags, IPv6 with some extension headers, TCP. */
#define HVX_GSO_MAX_HEADERS 256u

/* Calls emit for each segment: one piece, checksums complete. `scratch` holds
 * a segment and must have room for HVX_GSO_MAX_HEADERS + meta->gso_size.
 * -EINVAL: not a TCP frame as meta says; nothing was emitted then. */
HVX_WUR int hvx_gso_segment(const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta, uint8_t *scratch,
                            size_t n_scratch, void (*emit)(void *opaque, uint8_t *frame, size_t n), void *opaque);
#endif
