/* SPDX-License-Identifier: Apache-2.0
 *
 * link.h - frames between the VM's process and the one of user networking:
 * records over a stream socket, so that one system call moves many.
 *
 * Either side distrusts the other: a record that is too long ends the link.
 * All calls with the loop's lock held.
 */
#ifndef HVX_NET_LINK_H
#define HVX_NET_LINK_H

#include "core/vm/loop.h"
#include <hvx/base.h>

#define HVX_LINK_BUFFER (1u << 20) /* each way; what does not fit is dropped, as on a wire */

enum { HVX_LINK_FRAME = 0, HVX_LINK_GUEST_ERROR = 1 };

struct hvx_link;
struct hvx_link_ops {
    /* false: no room; the same record comes again after hvx_link_resume(). */
    bool (*record)(void *opaque, uint32_t kind, uint8_t *bytes, size_t n);
    void (*ended)(void *opaque, bool malformed); /* once; nothing more comes */
};

/* Takes fd over on success. */
HVX_WUR int hvx_link_new(struct hvx_loop *loop, int fd, size_t max_record, const struct hvx_link_ops *ops,
                         void *opaque, struct hvx_link **out);
void hvx_link_free(struct hvx_link *l);
/* false: no room, or the link has ended. */
bool hvx_link_put(struct hvx_link *l, uint32_t kind, const struct iovec *iov, unsigned n_iov);
void hvx_link_resume(struct hvx_link *l);

#endif
