/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/gdb.c - the gdb stub's sockets, and its orders carried out on a VM.
 *
 * Whoever connects controls the guest, and sees and changes its memory; so the
 * port is on the loopback unless a person says otherwise. One gdb at a time.
 */
#define _GNU_SOURCE
#include "core/vm/gdb.h"
#include "core/vm/gdb_proto.h"
#include "core/vm/internal.h"
#include "core/vm/tidy.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_OUT (256u << 10) /* a gdb that does not read is dropped */

struct hvx_gdb {
    struct hvx_loop *loop;
    struct hvx_vm *vm;
    struct hvx_gdb_session *session;
    struct hvx_watch *listen_watch, *watch;
    int listen_fd, fd;
    char *path; /* of a Unix socket */
    char where[320];
    unsigned force;
    bool paused; /* one of the VM's pauses is ours */
    bool over;   /* the session said goodbye: close when it is written */
    void (*on_kill)(void *opaque);
    void *opaque;
    uint8_t *out;
    size_t out_pos, out_n;
};

/* --- the VM ------------------------------------------------------------------------ */

static void pause_vm(struct hvx_gdb *g)
{
    if (!g->paused)
        hvx_vm_pause(g->vm);
    g->paused = true;
}

static void resume_vm(struct hvx_gdb *g)
{
    for (unsigned i = 0; i < g->vm->n_vcpus_made; i++)
        atomic_store(&g->vm->vcpu[i].debug_stop, false);
    if (g->paused)
        hvx_vm_resume(g->vm);
    g->paused = false;
}

static unsigned n_threads(void *o)
{
    return ((struct hvx_gdb *)o)->vm->n_vcpus_made;
}

static bool get_regs(void *o, unsigned thread, struct hvx_vcpu_regs *r)
{
    struct hvx_gdb *g = o;

    memset(r, 0, sizeof(*r));
    r->size = sizeof(*r);
    return thread < n_threads(o) && g->vm->engine->vcpu_get(g->vm->vcpu[thread].engine, r) >= 0;
}

static bool set_regs(void *o, unsigned thread, const struct hvx_vcpu_regs *r)
{
    struct hvx_gdb *g = o;
    struct hvx_error err = {0};

    if (thread >= n_threads(o))
        return false;
    if (g->vm->engine->vcpu_set(g->vm->vcpu[thread].engine, r, &err) >= 0)
        return true;
    hvx_log(HVX_LOG_WARN, "gdb", "the engine refuses these registers: %s", err.text);
    return false;
}

static int read_physical(void *o, uint64_t gpa, void *buf, size_t n)
{
    return hvx_host_table()->mem_read(((struct hvx_gdb *)o)->vm, gpa, buf, n);
}

/* Page by page; false when any byte has none or no RAM behind it. */
static bool transfer(struct hvx_gdb *g, unsigned thread, uint64_t lin, uint8_t *buf, size_t n, bool write)
{
    struct hvx_vcpu_regs *r = aligned_alloc(64, (sizeof(*r) + 63) & ~(size_t)63);
    bool good = r && get_regs(g, thread, r);

    while (n && good) {
        uint64_t gpa, run;
        good = hvx_gdb_translate(r, lin, &gpa, &run, read_physical, g);
        if (!good)
            break;
        run = run < n ? run : n;
        good = (write ? hvx_host_table()->mem_write(g->vm, gpa, buf, run)
                      : hvx_host_table()->mem_read(g->vm, gpa, buf, run)) >= 0;
        lin += run;
        buf += run;
        n -= run;
    }
    free(r);
    return good;
}

static bool read_memory(void *o, unsigned thread, uint64_t lin, void *buf, size_t n)
{
    return transfer(o, thread, lin, buf, n, false);
}

static bool write_memory(void *o, unsigned thread, uint64_t lin, const void *buf, size_t n)
{
    return transfer(o, thread, lin, (uint8_t *)(uintptr_t)buf, n, true);
}

static int set_points(struct hvx_gdb *g, unsigned thread, bool step, const struct hvx_debug_point *points, unsigned n)
{
    struct hvx_debug d = {.size = sizeof(d), .flags = step ? HVX_DEBUG_STEP : 0, .n_points = n, .points = points};

    return g->vm->engine->debug_set(g->vm->vcpu[thread].engine, &d);
}

static bool resume(void *o, const enum hvx_gdb_resume *how, const struct hvx_debug_point *points, unsigned n)
{
    struct hvx_gdb *g = o;

    for (unsigned i = 0; i < n_threads(o); i++) {
        int r = set_points(g, i, how[i] == HVX_GDB_STEP, points, n);
        if (r < 0) {
            hvx_log(HVX_LOG_WARN, "gdb", "the engine does not take these points: %s", strerror(-r));
            return false;
        }
        atomic_store(&g->vm->vcpu[i].held, how[i] == HVX_GDB_HOLD);
    }
    resume_vm(g);
    return true;
}

/* The guest goes on as if there had never been a debugger. */
static void release(struct hvx_gdb *g)
{
    pause_vm(g);
    for (unsigned i = 0; i < n_threads(g); i++) {
        (void)set_points(g, i, false, NULL, 0);
        atomic_store(&g->vm->vcpu[i].held, false);
    }
    resume_vm(g);
}

/* Of several vCPUs that stopped at once the first is reported. The others are
 * before their breakpoints still, and meet them again. */
static void report(struct hvx_gdb *g)
{
    pause_vm(g);
    for (unsigned i = 0; i < n_threads(g); i++)
        if (atomic_load(&g->vm->vcpu[i].debug_stop)) {
            hvx_gdb_stop(g->session, i, (int)g->vm->vcpu[i].debug_detail - 1);
            return;
        }
    hvx_gdb_stop(g->session, 0, -2);
}

static void interrupt(void *o)
{
    report(o);
}

static void detach(void *o)
{
    struct hvx_gdb *g = o;

    g->over = true;
    release(g);
}

static void kill_vm(void *o)
{
    struct hvx_gdb *g = o;

    g->over = true;
    g->on_kill(g->opaque);
}

static void describe(void *o, unsigned thread, char *buf, size_t n)
{
    static const char *const states[] = {"", ", halted", ", waits for its start"};
    struct hvx_vcpu_regs *r = aligned_alloc(64, (sizeof(*r) + 63) & ~(size_t)63);

    if (r && get_regs(o, thread, r))
        snprintf(buf, n, "vCPU %u, CPL %u%s", thread, r->seg[HVX_SS].attr >> 5 & 3, states[r->mp_state % 3]);
    free(r);
}

/* --- the connection -------------------------------------------------------------------- */

static void disconnect(struct hvx_gdb *g)
{
    if (g->fd < 0)
        return;
    hvx_watch_del(g->watch);
    close(g->fd);
    g->fd = -1;
    hvx_gdb_session_free(g->session);
    g->session = NULL;
    g->out_pos = g->out_n = 0;
}

static void hang_up(struct hvx_gdb *g)
{
    bool over = g->over;

    disconnect(g);
    if (!over)
        release(g);
}

/* false: the connection is no more. */
static bool flush(struct hvx_gdb *g)
{
    while (g->out_pos < g->out_n) {
        ssize_t w = send(g->fd, g->out + g->out_pos, g->out_n - g->out_pos, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0 && errno == EAGAIN) {
            hvx_watch_set(g->watch, true, true);
            return true;
        }
        if (w <= 0) {
            hang_up(g);
            return false;
        }
        g->out_pos += (size_t)w;
    }
    g->out_pos = g->out_n = 0;
    hvx_watch_set(g->watch, true, false);
    if (g->over) {
        hang_up(g);
        return false;
    }
    return true;
}

static void put(void *o, const void *buf, size_t n)
{
    struct hvx_gdb *g = o;

    if (n > MAX_OUT - g->out_n)
        return; /* the checksum or the answer is missing: gdb asks again or gives up */
    memcpy(g->out + g->out_n, buf, n);
    g->out_n += n;
}

static const struct hvx_gdb_target target = {
    .n_threads = n_threads, .get_regs = get_regs, .set_regs = set_regs, .read = read_memory, .write = write_memory,
    .resume = resume, .interrupt = interrupt, .detach = detach, .kill = kill_vm, .describe = describe, .send = put,
};

static void ready(void *opaque, int fd, bool readable, bool writable)
{
    struct hvx_gdb *g = opaque;
    uint8_t buf[4096];
    ssize_t n;

    if (writable && !flush(g))
        return;
    if (!readable)
        return;
    n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        hang_up(g);
        return;
    }
    hvx_gdb_feed(g->session, buf, (size_t)n);
    flush(g);
}

static void came(void *opaque, int fd, bool readable, bool writable)
{
    struct hvx_gdb *g = opaque;
    int one = 1, s = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    (void)readable;
    (void)writable;
    if (s < 0)
        return;
    if (g->fd >= 0 || !g->vm) {
        close(s);
        return;
    }
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* a Unix socket says no */
    pause_vm(g);
    g->over = false;
    g->session = hvx_gdb_session_new(&target, g, g->force);
    if (!g->session || hvx_loop_watch_new(g->loop, s, true, false, ready, g, &g->watch) < 0) {
        hvx_gdb_session_free(g->session);
        g->session = NULL;
        close(s);
        resume_vm(g);
        return;
    }
    g->fd = s;
}

/* --- the socket --------------------------------------------------------------------------- */

static int listen_unix(struct hvx_gdb *g, const char *path, struct hvx_error *err)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct stat st;
    mode_t mask;
    int r;

    if (strlen(path) >= sizeof(a.sun_path) || !path[0])
        return hvx_fail(err, -EINVAL, "--gdb unix:%s: a path of 1 to %zu characters is wanted", path,
                        sizeof(a.sun_path) - 1);
    memcpy(a.sun_path, path, strlen(path) + 1);
    if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode)) {
        int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (s >= 0 && connect(s, (struct sockaddr *)&a, sizeof(a)) < 0 && errno == ECONNREFUSED)
            unlink(path); /* a leftover */
        if (s >= 0)
            close(s);
    }
    g->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mask = umask(0177);
    r = g->listen_fd < 0 ? -1 : bind(g->listen_fd, (struct sockaddr *)&a, sizeof(a));
    umask(mask);
    if (r < 0)
        return hvx_fail(err, -errno, "--gdb unix:%s: %s", path, strerror(errno));
    hvx_tidy_add(path);
    g->path = strdup(path);
    snprintf(g->where, sizeof(g->where), "unix:%s: target remote %s", path, path);
    return 0;
}

static int listen_tcp(struct hvx_gdb *g, const char *text, struct hvx_error *err)
{
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM}, *list = NULL;
    const char *colon = strrchr(text, ':'), *port = colon ? colon + 1 : text;
    struct sockaddr_storage a;
    socklen_t n = sizeof(a);
    char host[128] = "127.0.0.1", name[64], number[16];
    int e, one = 1;

    if (colon && colon > text)
        snprintf(host, sizeof(host), "%.*s", (int)(colon - text), text);
    if (host[0] == '[' && host[strlen(host) - 1] == ']') {
        host[strlen(host) - 1] = 0;
        memmove(host, host + 1, strlen(host));
    }
    if (!port[0] || port[strspn(port, "0123456789")] || strlen(port) > 5 || atoi(port) > 65535)
        return hvx_fail(err, -EINVAL, "--gdb %s: say [HOST:]PORT with a port of 0 to 65535, or unix:PATH", text);
    e = getaddrinfo(host, port, &hints, &list);
    if (e)
        return hvx_fail(err, -EINVAL, "--gdb %s: host %s: %s", text, host, gai_strerror(e));
    g->listen_fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (g->listen_fd >= 0)
        setsockopt(g->listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    e = g->listen_fd < 0 || bind(g->listen_fd, list->ai_addr, list->ai_addrlen) < 0 ? errno : 0;
    freeaddrinfo(list);
    if (e)
        return hvx_fail(err, -e, "--gdb %s: cannot listen: %s. Another port?", text, strerror(e));
    if (getsockname(g->listen_fd, (struct sockaddr *)&a, &n) < 0 ||
        getnameinfo((struct sockaddr *)&a, n, name, sizeof(name), number, sizeof(number),
                    NI_NUMERICHOST | NI_NUMERICSERV))
        return hvx_fail(err, -EIO, "--gdb %s: cannot tell the port", text);
    snprintf(g->where, sizeof(g->where), "%s port %s: target remote %s%s%s:%s", name, number,
             strchr(name, ':') ? "[" : "", name, strchr(name, ':') ? "]" : "", number);
    return 0;
}

int hvx_gdb_listen(struct hvx_loop *loop, const char *spec, struct hvx_gdb **out, struct hvx_error *err)
{
    struct hvx_gdb *g = calloc(1, sizeof(*g));
    char text[200], *option;
    int r = 0;

    if (g)
        g->out = malloc(MAX_OUT);
    if (!g || !g->out) {
        free(g);
        return hvx_fail(err, -ENOMEM, "--gdb: out of memory");
    }
    g->loop = loop;
    g->fd = g->listen_fd = -1;
    snprintf(text, sizeof(text), "%s", spec);
    option = strstr(text, ",arch=");
    if (option) {
        g->force = !strcmp(option + 6, "i386") ? 32 : !strcmp(option + 6, "x86-64") ? 64 : 0;
        *option = 0;
        if (!g->force)
            r = hvx_fail(err, -EINVAL, "--gdb: arch=%s is unknown: i386 or x86-64", option + 6);
    }
    if (r == 0)
        r = !strncmp(text, "unix:", 5) ? listen_unix(g, text + 5, err) : listen_tcp(g, text, err);
    if (r == 0 && listen(g->listen_fd, 1) < 0)
        r = hvx_fail(err, -errno, "--gdb %s: cannot listen: %s. Another port?", spec, strerror(errno));
    if (r == 0 && (r = hvx_loop_watch_new(loop, g->listen_fd, true, false, came, g, &g->listen_watch)) < 0)
        hvx_fail(err, r, "--gdb: out of memory");
    if (r < 0) {
        hvx_gdb_destroy(g);
        return r;
    }
    *out = g;
    return 0;
}

int hvx_gdb_attach(struct hvx_gdb *g, struct hvx_vm *vm, bool wait, void (*on_kill)(void *opaque), void *opaque,
                   struct hvx_error *err)
{
    if (vm->engine->size <= offsetof(struct hvx_cpu_ops, debug_set) || !vm->engine->debug_set)
        return hvx_fail(err, -ENOTSUP, "--gdb: engine %s cannot be debugged; try --engine bt", vm->engine_name);
    g->on_kill = on_kill;
    g->opaque = opaque;
    g->vm = vm;
    if (wait)
        pause_vm(g);
    hvx_log(HVX_LOG_INFO, "gdb", "%s on %s", wait ? "the guest waits for gdb" : "listening", g->where);
    return 0;
}

void hvx_gdb_stopped(struct hvx_gdb *g)
{
    if (!g || !g->session || g->over || g->paused)
        return;
    report(g);
    flush(g);
}

void hvx_gdb_destroy(struct hvx_gdb *g)
{
    if (!g)
        return;
    if (g->session) {
        hvx_gdb_exited(g->session);
        g->over = false;
        (void)!send(g->fd, g->out + g->out_pos, g->out_n - g->out_pos, MSG_NOSIGNAL | MSG_DONTWAIT);
        disconnect(g);
    }
    if (g->vm && g->paused)
        resume_vm(g);
    hvx_watch_del(g->listen_watch);
    if (g->listen_fd >= 0)
        close(g->listen_fd);
    if (g->path)
        hvx_tidy_remove(g->path);
    free(g->path);
    free(g->out);
    free(g);
}
