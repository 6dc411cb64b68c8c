/* SPDX-License-Identifier: Apache-2.0
 *
 * sg.h - a position in a scatter list. Requests are cut at cluster
 * boundaries again and again; walking a cursor avoids copying the list.
 */
#ifndef HVX_IMAGE_SG_H
#define HVX_IMAGE_SG_H

#include <hvx/base.h>
#include <string.h>

struct hvx_sg {
    const struct iovec *iov; /* first entry not used up */
    unsigned n;              /* entries left */
    size_t skip;             /* bytes of *iov already used */
};

static inline struct hvx_sg hvx_sg_of(const struct iovec *iov, unsigned n)
{
    struct hvx_sg sg = {iov, n, 0};
    return sg;
}

static inline void hvx_sg_advance(struct hvx_sg *sg, uint64_t bytes)
{
    while (sg->n && bytes >= sg->iov->iov_len - sg->skip) {
        bytes -= sg->iov->iov_len - sg->skip;
        sg->iov++;
        sg->n--;
        sg->skip = 0;
    }
    if (sg->n)
        sg->skip += bytes;
}

/* The next `bytes` as plain iovecs: returns how many entries were filled and
 * in *covered how many bytes they hold (fewer than asked when max is small). */
static inline unsigned hvx_sg_slice(struct hvx_sg sg, uint64_t bytes, struct iovec *out, unsigned max,
                                    uint64_t *covered)
{
    unsigned k = 0;
    uint64_t sum = 0;
    while (sg.n && sum < bytes && k < max) {
        size_t len = sg.iov->iov_len - sg.skip;
        if (len > bytes - sum)
            len = bytes - sum;
        if (len) {
            out[k].iov_base = (uint8_t *)sg.iov->iov_base + sg.skip;
            out[k].iov_len = len;
            k++;
            sum += len;
        }
        sg.iov++;
        sg.n--;
        sg.skip = 0;
    }
    *covered = sum;
    return k;
}

enum hvx_sg_dir { HVX_SG_FILL, HVX_SG_TAKE, HVX_SG_ZERO };

/* Copy buf into the list (FILL), out of it (TAKE), or clear it (ZERO). */
static inline void hvx_sg_move(struct hvx_sg sg, enum hvx_sg_dir dir, void *buf, uint64_t bytes)
{
    uint8_t *p = buf;
    while (sg.n && bytes) {
        size_t len = sg.iov->iov_len - sg.skip;
        uint8_t *q = (uint8_t *)sg.iov->iov_base + sg.skip;
        if (len > bytes)
            len = bytes;
        if (dir == HVX_SG_ZERO) {
            memset(q, 0, len);
        } else {
            if (dir == HVX_SG_FILL)
                memcpy(q, p, len);
            else
                memcpy(p, q, len);
            p += len;
        }
        bytes -= len;
        sg.iov++;
        sg.n--;
        sg.skip = 0;
    }
}

static inline void hvx_sg_zero(struct hvx_sg sg, uint64_t bytes)
{
    hvx_sg_move(sg, HVX_SG_ZERO, NULL, bytes);
}
static inline void hvx_sg_fill(struct hvx_sg sg, const void *buf, uint64_t bytes)
{
    hvx_sg_move(sg, HVX_SG_FILL, (void *)(uintptr_t)buf, bytes);
}
static inline void hvx_sg_take(struct hvx_sg sg, void *buf, uint64_t bytes)
{
    hvx_sg_move(sg, HVX_SG_TAKE, buf, bytes);
}
#endif
