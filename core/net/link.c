/* SPDX-License-Identifier: Apache-2.0
 *
 * link.c - see link.h.
 */
#define _GNU_SOURCE
#include "core/net/link.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct head {
    uint32_t kind, bytes;
};

struct hvx_link {
    struct hvx_loop *loop;
    struct hvx_watch *watch;
    const struct hvx_link_ops *ops;
    void *opaque;
    int fd;
    size_t max_record;
    bool flush_posted, held, full, dead; /* held: the receiver has no room; full: the socket has none */
    size_t in_pos, in_n, out_pos, out_n; /* bytes from pos to n wait */
    uint8_t *in, *out;
};

static void watch_for(struct hvx_link *l)
{
    hvx_watch_set(l->watch, !l->held && !l->dead, l->full && !l->dead);
}

static void end(struct hvx_link *l, bool malformed)
{
    if (l->dead)
        return;
    l->dead = true;
    watch_for(l);
    l->ops->ended(l->opaque, malformed);
}

static void flush(void *opaque)
{
    struct hvx_link *l = opaque;

    l->flush_posted = false;
    l->full = false;
    while (l->out_pos < l->out_n && !l->dead) {
        ssize_t w = send(l->fd, l->out + l->out_pos, l->out_n - l->out_pos, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0 && errno == EAGAIN) {
            l->full = true;
            break;
        }
        if (w <= 0) {
            end(l, false);
            return;
        }
        l->out_pos += (size_t)w;
    }
    if (l->out_pos == l->out_n)
        l->out_pos = l->out_n = 0;
    watch_for(l);
}

bool hvx_link_put(struct hvx_link *l, uint32_t kind, const struct iovec *iov, unsigned n_iov)
{
    struct head h = {kind, 0};

    for (unsigned i = 0; i < n_iov; i++)
        h.bytes += (uint32_t)iov[i].iov_len;
    if (l->dead || h.bytes > l->max_record)
        return false;
    if (l->out_n + sizeof(h) + h.bytes > HVX_LINK_BUFFER && l->out_pos) {
        memmove(l->out, l->out + l->out_pos, l->out_n - l->out_pos);
        l->out_n -= l->out_pos;
        l->out_pos = 0;
    }
    if (l->out_n + sizeof(h) + h.bytes > HVX_LINK_BUFFER)
        return false;
    memcpy(l->out + l->out_n, &h, sizeof(h));
    l->out_n += sizeof(h);
    for (unsigned i = 0; i < n_iov; i++) {
        memcpy(l->out + l->out_n, iov[i].iov_base, iov[i].iov_len);
        l->out_n += iov[i].iov_len;
    }
    /* Written by the loop: a burst of frames goes in one piece. */
    if (!l->flush_posted && !l->full)
        l->flush_posted = hvx_loop_post(l->loop, flush, l) == 0;
    return true;
}

static void hand_out(struct hvx_link *l)
{
    while (!l->held && !l->dead && l->in_n - l->in_pos >= sizeof(struct head)) {
        struct head h;
        memcpy(&h, l->in + l->in_pos, sizeof(h));
        if (h.bytes > l->max_record) {
            end(l, true);
            return;
        }
        if (l->in_n - l->in_pos < sizeof(h) + h.bytes)
            break;
        if (!l->ops->record(l->opaque, h.kind, l->in + l->in_pos + sizeof(h), h.bytes))
            l->held = true;
        else
            l->in_pos += sizeof(h) + h.bytes;
    }
    if (l->in_pos) {
        memmove(l->in, l->in + l->in_pos, l->in_n - l->in_pos);
        l->in_n -= l->in_pos;
        l->in_pos = 0;
    }
}

static void ready(void *opaque, int fd, bool readable, bool writable)
{
    struct hvx_link *l = opaque;
    ssize_t n;

    if (writable)
        flush(l);
    if (!readable || l->held || l->dead)
        return;
    n = recv(fd, l->in + l->in_n, HVX_LINK_BUFFER - l->in_n, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        end(l, false);
        return;
    }
    l->in_n += (size_t)n;
    hand_out(l);
    watch_for(l);
}

void hvx_link_resume(struct hvx_link *l)
{
    if (!l->held)
        return;
    l->held = false;
    hand_out(l);
    watch_for(l);
}

int hvx_link_new(struct hvx_loop *loop, int fd, size_t max_record, const struct hvx_link_ops *ops, void *opaque,
                 struct hvx_link **out)
{
    struct hvx_link *l = calloc(1, sizeof(*l));
    int r = -ENOMEM;

    if (!l)
        return r;
    l->loop = loop;
    l->fd = fd;
    l->max_record = max_record;
    l->ops = ops;
    l->opaque = opaque;
    l->in = malloc(HVX_LINK_BUFFER);
    l->out = malloc(HVX_LINK_BUFFER);
    if (l->in && l->out)
        r = hvx_loop_watch_new(loop, fd, true, false, ready, l, &l->watch);
    if (r < 0) {
        free(l->in);
        free(l->out);
        free(l);
        return r;
    }
    *out = l;
    return 0;
}

void hvx_link_free(struct hvx_link *l)
{
    if (!l)
        return;
    hvx_loop_unpost(l->loop, flush, l);
    hvx_watch_del(l->watch);
    close(l->fd);
    free(l->in);
    free(l->out);
    free(l);
}
