/* SPDX-License-Identifier: Apache-2.0
 *
 * The outside world of the fake host: disks in memory, networks, character
 * streams, display and input.
 */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

#define MAX_FRAMES 65536u

struct hvx_blk {
    struct hvx_blk *next;
    struct hvx_vm *vm;
    char id[32];
    struct hvxtest_disk_params p;
    uint8_t *data;
    bool hold;
    unsigned count[8];
    uint32_t fail_op;
    unsigned fail_nth;
    int fail_error;
    struct hvx_blk_req **queue; /* in flight, oldest first */
    unsigned n_queue, cap_queue;
};

struct frame {
    uint8_t *data;
    size_t n;
    struct hvx_net_meta meta;
};

struct hvx_nic {
    struct test_port *port;
};

struct test_port {
    struct test_port *next;
    char id[32];
    uint8_t mac[6];
    struct hvx_nic nic;
    bool attached;
    struct hvx_nic_ops ops;
    void *opaque;
    uint32_t caps;
    unsigned rx_ready;
    struct frame *frames;
    unsigned n_frames;
};

struct hvx_chr {
    struct hvx_chr *next;
    struct hvx_vm *vm;
    char id[32];
    bool attached;
    struct hvx_chr_ops ops;
    void *opaque;
    uint8_t *out, *in;
    size_t n_out, n_in, limit;
};

struct hvx_display {
    struct hvx_display *next;
    struct hvx_vm *vm;
    struct hvx_display_ops ops;
    void *opaque;
};

/* --- disks ----------------------------------------------------------------------- */
struct hvx_blk *hvxtest_disk_add(struct hvx_vm *vm, const char *id, const struct hvxtest_disk_params *p)
{
    if (!p->bytes || p->bytes % 512)
        test_bug("hvxtest_disk_add(%s): the size must be a multiple of 512 bytes", id);
    struct hvx_blk *b = test_alloc(sizeof(*b));
    b->vm = vm;
    b->p = *p;
    if (!b->p.logical_block)
        b->p.logical_block = 512;
    snprintf(b->id, sizeof(b->id), "%s", id);
    b->data = test_alloc(p->bytes);
    b->next = vm->disks;
    vm->disks = b;
    return b;
}

uint8_t *hvxtest_disk_data(struct hvx_blk *b)
{
    return b->data;
}

static struct hvx_blk *host_blk_get(struct hvx_vm *vm, const char *id)
{
    for (struct hvx_blk *b = vm->disks; b; b = b->next)
        if (!strcmp(b->id, id))
            return b;
    return NULL;
}

static void host_blk_info(struct hvx_blk *b, struct hvx_blk_info *out)
{
    struct hvx_blk_info info = {
        .logical_block = b->p.logical_block,
        .bytes = b->p.bytes,
        .read_only = b->p.read_only || b->p.cdrom,
        .can_discard = !b->p.no_discard && !b->p.read_only && !b->p.cdrom,
        .can_write_zeroes = !b->p.read_only && !b->p.cdrom,
        .is_cdrom = b->p.cdrom,
        .opt_io_bytes = 65536,
    };
    snprintf(info.serial, sizeof(info.serial), "TEST-%.16s", b->id);
    uint32_t size = out->size;
    if (size < sizeof(uint32_t) || size > sizeof(info))
        test_bug("blk_info: out->size is %u; set it to sizeof(struct hvx_blk_info)", size);
    info.size = size;
    memcpy(out, &info, size);
}

/* What the contract in hvx/host.h asks of a request. */
static void check_request(const struct hvx_blk_req *req)
{
    if (!req->done || req->op < HVX_BLK_READ || req->op > HVX_BLK_WRITE_ZEROES)
        test_bug("blk_submit: op %u, done %p", req->op, (void *)(uintptr_t)req->done);
    if (req->offset % 512 || req->bytes % 512)
        test_bug("blk_submit: offset %llu and bytes %llu must be multiples of 512", (unsigned long long)req->offset,
                 (unsigned long long)req->bytes);
    if (req->n_iov > HVX_BLK_MAX_IOV)
        test_bug("blk_submit: %u iovecs, at most %u", req->n_iov, HVX_BLK_MAX_IOV);
    if (req->op != HVX_BLK_READ && req->op != HVX_BLK_WRITE)
        return;
    uint64_t sum = 0;
    for (unsigned i = 0; i < req->n_iov; i++)
        sum += req->iov[i].iov_len;
    if (sum != req->bytes)
        test_bug("blk_submit: bytes is %llu, the iovecs hold %llu", (unsigned long long)req->bytes,
                 (unsigned long long)sum);
}

static void host_blk_submit(struct hvx_blk *b, struct hvx_blk_req *req)
{
    check_request(req);
    pthread_mutex_lock(&b->vm->loop_lock);
    b->count[req->op]++;
    if (b->n_queue == b->cap_queue) {
        b->cap_queue = b->cap_queue ? 2 * b->cap_queue : 64;
        b->queue = realloc(b->queue, b->cap_queue * sizeof(*b->queue));
        if (!b->queue)
            test_bug("out of memory");
    }
    b->queue[b->n_queue++] = req;
    int result = 1; /* 1: decided when it is carried out */
    if (b->fail_nth && (!b->fail_op || b->fail_op == req->op) && --b->fail_nth == 0)
        result = b->fail_error;
    req->result = result;
    pthread_mutex_unlock(&b->vm->loop_lock);
}

static int carry_out(struct hvx_blk *b, struct hvx_blk_req *req)
{
    if (req->result != 1)
        return req->result;
    if (req->op == HVX_BLK_FLUSH)
        return 0;
    if (req->offset > b->p.bytes || req->bytes > b->p.bytes - req->offset)
        return -EINVAL;
    if (req->op != HVX_BLK_READ && (b->p.read_only || b->p.cdrom))
        return -EROFS;
    uint8_t *p = b->data + req->offset;
    if (req->op == HVX_BLK_WRITE_ZEROES || req->op == HVX_BLK_DISCARD) {
        memset(p, 0, req->bytes);
        return 0;
    }
    for (unsigned i = 0; i < req->n_iov; i++) {
        if (req->op == HVX_BLK_READ)
            memcpy(req->iov[i].iov_base, p, req->iov[i].iov_len);
        else
            memcpy(p, req->iov[i].iov_base, req->iov[i].iov_len);
        p += req->iov[i].iov_len;
    }
    return 0;
}

static void complete(struct hvx_blk *b, unsigned i)
{
    pthread_mutex_lock(&b->vm->loop_lock);
    struct hvx_blk_req *req = b->queue[i];
    memmove(b->queue + i, b->queue + i + 1, (--b->n_queue - i) * sizeof(*b->queue));
    pthread_mutex_unlock(&b->vm->loop_lock);
    req->result = carry_out(b, req);
    test_lock(b->vm);
    req->done(req);
    test_unlock(b->vm);
}

unsigned test_io_run(struct hvx_vm *vm)
{
    unsigned n = 0;
    for (struct hvx_blk *b = vm->disks; b; b = b->next) {
        unsigned due = b->hold ? 0 : b->n_queue; /* not those submitted by the completions themselves */
        for (; due; due--, n++)
            complete(b, 0);
    }
    return n;
}

void hvxtest_disk_fail(struct hvx_blk *b, uint32_t op, unsigned nth, int error)
{
    b->fail_op = op;
    b->fail_nth = nth;
    b->fail_error = error < 0 ? error : -EIO;
}

void hvxtest_disk_hold(struct hvx_blk *b, bool hold)
{
    b->hold = hold;
}

unsigned hvxtest_disk_in_flight(struct hvx_blk *b)
{
    return b->n_queue;
}

void hvxtest_disk_release(struct hvx_blk *b, unsigned i)
{
    if (i != ~0u) {
        if (i >= b->n_queue)
            test_bug("hvxtest_disk_release(%u): %u are in flight", i, b->n_queue);
        complete(b, i);
        return;
    }
    for (unsigned n = b->n_queue; n; n--)
        complete(b, 0);
}

unsigned hvxtest_disk_count(struct hvx_blk *b, uint32_t op)
{
    return op < 8 ? b->count[op] : 0;
}

/* --- networks ----------------------------------------------------------------------- */
static struct test_port *port_find(struct hvx_vm *vm, const char *id)
{
    for (struct test_port *p = vm->ports; p; p = p->next)
        if (!strcmp(p->id, id))
            return p;
    return NULL;
}

static struct test_port *port_get(struct hvx_vm *vm, const char *id)
{
    struct test_port *p = port_find(vm, id);
    if (!p)
        test_bug("there is no network %s; hvxtest_nic_add() makes one", id);
    return p;
}

void hvxtest_nic_add(struct hvx_vm *vm, const char *id)
{
    struct test_port *p = test_alloc(sizeof(*p));
    unsigned n = 0;
    for (struct test_port *q = vm->ports; q; q = q->next)
        n++;
    snprintf(p->id, sizeof(p->id), "%s", id);
    memcpy(p->mac, (uint8_t[6]){0x52, 0x54, 0x00, 0x12, 0x34, (uint8_t)(0x56 + n)}, 6);
    p->next = vm->ports;
    vm->ports = p;
}

static int host_nic_attach(struct hvx_vm *vm, const char *id, const struct hvx_nic_ops *ops, void *opaque,
                           struct hvx_nic **out, struct hvx_error *err)
{
    if (test_should_fail(vm))
        return hvx_fail(err, -ENOMEM, "nic_attach %s: injected fault", id);
    if (!ops || ops->size != sizeof(*ops) || !ops->receive)
        test_bug("nic_attach: ops->size and ops->receive must be set");
    struct test_port *p = port_find(vm, id);
    if (!p)
        return hvx_fail(err, -ENOENT, "there is no network %s", id);
    if (p->attached)
        return hvx_fail(err, -EBUSY, "network %s is taken", id);
    p->attached = true;
    p->ops = *ops;
    p->opaque = opaque;
    p->nic.port = p;
    *out = &p->nic;
    return 0;
}

static void host_nic_detach(struct hvx_nic *n)
{
    if (n)
        n->port->attached = false;
}

static void host_nic_mac(struct hvx_nic *n, uint8_t mac[6])
{
    memcpy(mac, n->port->mac, 6);
}

static void host_nic_set_caps(struct hvx_nic *n, uint32_t can)
{
    n->port->caps = can;
}

static void host_nic_send(struct hvx_nic *n, const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta)
{
    struct test_port *p = n->port;
    struct frame f = {.meta = meta ? *meta : (struct hvx_net_meta){0}};
    for (unsigned i = 0; i < n_iov; i++)
        f.n += iov[i].iov_len;
    if (f.n > HVX_NET_MAX_FRAME || !f.n)
        test_bug("nic_send: a frame of %zu bytes", f.n);
    if (p->n_frames == MAX_FRAMES)
        return;
    f.data = test_alloc(f.n);
    size_t at = 0;
    for (unsigned i = 0; i < n_iov; i++) {
        memcpy(f.data + at, iov[i].iov_base, iov[i].iov_len);
        at += iov[i].iov_len;
    }
    p->frames = realloc(p->frames, (p->n_frames + 1) * sizeof(f));
    if (!p->frames)
        test_bug("out of memory");
    p->frames[p->n_frames++] = f;
}

static void host_nic_rx_ready(struct hvx_nic *n)
{
    n->port->rx_ready++;
}

static uint32_t host_nic_mtu(struct hvx_nic *n)
{
    (void)n;
    return 1500;
}

unsigned hvxtest_nic_sent(struct hvx_vm *vm, const char *id)
{
    return port_get(vm, id)->n_frames;
}

const uint8_t *hvxtest_nic_frame(struct hvx_vm *vm, const char *id, unsigned i, size_t *n, struct hvx_net_meta *meta)
{
    struct test_port *p = port_get(vm, id);
    if (i >= p->n_frames)
        test_bug("hvxtest_nic_frame(%s, %u): there were %u", id, i, p->n_frames);
    if (n)
        *n = p->frames[i].n;
    if (meta)
        *meta = p->frames[i].meta;
    return p->frames[i].data;
}

int hvxtest_nic_inject(struct hvx_vm *vm, const char *id, const void *frame, size_t n, const struct hvx_net_meta *meta)
{
    struct test_port *p = port_get(vm, id);
    if (!p->attached)
        return 0;
    /* Two pieces, so that nobody takes the first for the whole. */
    size_t first = n > 20 ? 20 : n;
    struct iovec iov[2] = {{(void *)(uintptr_t)frame, first}, {(uint8_t *)(uintptr_t)frame + first, n - first}};
    struct hvx_net_meta plain = {0};
    test_lock(vm);
    int r = p->ops.receive(p->opaque, iov, n > first ? 2 : 1, meta ? meta : &plain);
    test_unlock(vm);
    return r;
}

uint32_t hvxtest_nic_caps(struct hvx_vm *vm, const char *id)
{
    return port_get(vm, id)->caps;
}

unsigned hvxtest_nic_rx_ready_count(struct hvx_vm *vm, const char *id)
{
    return port_get(vm, id)->rx_ready;
}

void hvxtest_nic_link(struct hvx_vm *vm, const char *id, bool up)
{
    struct test_port *p = port_get(vm, id);
    test_lock(vm);
    if (p->attached && p->ops.link_changed)
        p->ops.link_changed(p->opaque, up);
    test_unlock(vm);
}

/* --- character streams ------------------------------------------------------------------ */
static struct hvx_chr *chr_get(struct hvx_vm *vm, const char *id)
{
    for (struct hvx_chr *c = vm->chrs; c; c = c->next)
        if (!strcmp(c->id, id))
            return c;
    struct hvx_chr *c = test_alloc(sizeof(*c));
    c->vm = vm;
    c->limit = SIZE_MAX;
    snprintf(c->id, sizeof(c->id), "%s", id);
    c->next = vm->chrs;
    vm->chrs = c;
    return c;
}

static int host_chr_attach(struct hvx_vm *vm, const char *id, const struct hvx_chr_ops *ops, void *opaque,
                           struct hvx_chr **out)
{
    if (test_should_fail(vm))
        return -ENOMEM;
    if (!ops || ops->size != sizeof(*ops) || !ops->receive)
        test_bug("chr_attach: ops->size and ops->receive must be set");
    struct hvx_chr *c = chr_get(vm, id);
    if (c->attached)
        return -EBUSY;
    c->attached = true;
    c->ops = *ops;
    c->opaque = opaque;
    *out = c;
    return 0;
}

static void host_chr_detach(struct hvx_chr *c)
{
    if (c)
        c->attached = false;
}

static size_t host_chr_write(struct hvx_chr *c, const uint8_t *buf, size_t n)
{
    if (n > c->limit)
        n = c->limit;
    c->out = realloc(c->out, c->n_out + n + 1);
    if (!c->out)
        test_bug("out of memory");
    memcpy(c->out + c->n_out, buf, n);
    c->n_out += n;
    c->out[c->n_out] = '\0';
    return n;
}

static void chr_offer(struct hvx_chr *c)
{
    while (c->n_in && c->attached) {
        test_lock(c->vm);
        size_t taken = c->ops.receive(c->opaque, c->in, c->n_in);
        test_unlock(c->vm);
        if (taken > c->n_in)
            test_bug("chr receive took %zu of %zu bytes", taken, c->n_in);
        if (!taken)
            return;
        memmove(c->in, c->in + taken, c->n_in - taken);
        c->n_in -= taken;
    }
}

static void chr_offer_later(void *opaque)
{
    chr_offer(opaque);
}

static void host_chr_rx_ready(struct hvx_chr *c)
{
    /* Not from inside the device's own call. */
    if (c->n_in) {
        unsigned fail_in = c->vm->fail_in;
        c->vm->fail_in = 0;
        hvxtest_host()->defer(c->vm, chr_offer_later, c);
        c->vm->fail_in = fail_in;
    }
}

const uint8_t *hvxtest_chr_output(struct hvx_vm *vm, const char *id, size_t *n)
{
    struct hvx_chr *c = chr_get(vm, id);
    if (n)
        *n = c->n_out;
    return c->out ? c->out : (const uint8_t *)"";
}

void hvxtest_chr_clear(struct hvx_vm *vm, const char *id)
{
    struct hvx_chr *c = chr_get(vm, id);
    c->n_out = 0;
    if (c->out)
        c->out[0] = '\0';
}

size_t hvxtest_chr_input(struct hvx_vm *vm, const char *id, const void *buf, size_t n)
{
    struct hvx_chr *c = chr_get(vm, id);
    c->in = realloc(c->in, c->n_in + n + 1);
    if (!c->in)
        test_bug("out of memory");
    memcpy(c->in + c->n_in, buf, n);
    c->n_in += n;
    chr_offer(c);
    return c->n_in;
}

void hvxtest_chr_limit(struct hvx_vm *vm, const char *id, size_t max_taken)
{
    chr_get(vm, id)->limit = max_taken;
}

/* --- display and input ---------------------------------------------------------------------- */
static int host_display_add(struct hvx_vm *vm, const struct hvx_display_ops *ops, void *opaque,
                            struct hvx_display **out)
{
    if (test_should_fail(vm))
        return -ENOMEM;
    if (!ops || ops->size != sizeof(*ops) || !ops->render)
        test_bug("display_add: ops->size and ops->render must be set");
    struct hvx_display *d = test_alloc(sizeof(*d));
    *d = (struct hvx_display){.next = vm->displays, .vm = vm, .ops = *ops, .opaque = opaque};
    vm->displays = d;
    *out = d;
    return 0;
}

static void host_display_del(struct hvx_display *d)
{
    if (!d)
        return;
    struct hvx_display **p = &d->vm->displays;
    while (*p && *p != d)
        p = &(*p)->next;
    if (!*p)
        test_bug("display_del: deleted twice");
    *p = d->next;
    free(d);
}

int hvxtest_render(struct hvx_vm *vm, struct hvx_surface *out)
{
    if (!vm->displays)
        return -ENODEV;
    test_lock(vm);
    int r = vm->displays->ops.render(vm->displays->opaque, out);
    test_unlock(vm);
    return r;
}

static int host_input_add(struct hvx_vm *vm, const struct hvx_input_ops *ops, void *opaque)
{
    if (test_should_fail(vm) || vm->n_inputs == 8)
        return -ENOMEM;
    vm->inputs[vm->n_inputs] = ops;
    vm->input_opaques[vm->n_inputs++] = opaque;
    return 0;
}

void hvxtest_key(struct hvx_vm *vm, uint16_t scancode_set1, bool down)
{
    test_lock(vm);
    for (unsigned i = 0; i < vm->n_inputs; i++)
        if (vm->inputs[i]->key)
            vm->inputs[i]->key(vm->input_opaques[i], scancode_set1, down);
    test_unlock(vm);
}

void hvxtest_pointer(struct hvx_vm *vm, int dx, int dy, uint32_t buttons)
{
    test_lock(vm);
    for (unsigned i = 0; i < vm->n_inputs; i++)
        if (vm->inputs[i]->pointer)
            vm->inputs[i]->pointer(vm->input_opaques[i], dx, dy, buttons);
    test_unlock(vm);
}

/* --- the end ------------------------------------------------------------------------------------ */
unsigned test_io_leftovers(struct hvx_vm *vm, char *buf, size_t n)
{
    unsigned count = 0;
    for (struct test_port *p = vm->ports; p; p = p->next)
        if (p->attached) {
            test_note(buf, n, "attached network %s", p->id);
            count++;
        }
    for (struct hvx_chr *c = vm->chrs; c; c = c->next)
        if (c->attached) {
            test_note(buf, n, "attached stream %s", c->id);
            count++;
        }
    for (struct hvx_display *d = vm->displays; d; d = d->next, count++)
        test_note(buf, n, "a display");
    for (struct hvx_blk *b = vm->disks; b; b = b->next)
        if (b->n_queue) {
            test_note(buf, n, "%u requests in flight on %s", b->n_queue, b->id);
            count++;
        }
    return count;
}

void test_io_done(struct hvx_vm *vm)
{
    while (vm->disks) {
        struct hvx_blk *b = vm->disks;
        vm->disks = b->next;
        free(b->data);
        free(b->queue);
        free(b);
    }
    while (vm->ports) {
        struct test_port *p = vm->ports;
        vm->ports = p->next;
        for (unsigned i = 0; i < p->n_frames; i++)
            free(p->frames[i].data);
        free(p->frames);
        free(p);
    }
    while (vm->chrs) {
        struct hvx_chr *c = vm->chrs;
        vm->chrs = c->next;
        free(c->out);
        free(c->in);
        free(c);
    }
}

void test_host_io(struct hvx_host *h)
{
    h->blk_get = host_blk_get;
    h->blk_info = host_blk_info;
    h->blk_submit = host_blk_submit;
    h->nic_attach = host_nic_attach;
    h->nic_detach = host_nic_detach;
    h->nic_mac = host_nic_mac;
    h->nic_set_caps = host_nic_set_caps;
    h->nic_send = host_nic_send;
    h->nic_rx_ready = host_nic_rx_ready;
    h->nic_mtu = host_nic_mtu;
    h->chr_attach = host_chr_attach;
    h->chr_detach = host_chr_detach;
    h->chr_write = host_chr_write;
    h->chr_rx_ready = host_chr_rx_ready;
    h->display_add = host_display_add;
    h->display_del = host_display_del;
    h->input_add = host_input_add;
}
