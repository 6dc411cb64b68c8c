/* SPDX-License-Identifier: Apache-2.0
 *
 * A device that plays a guest which broke out of it: a byte written to its
 * port makes the VM's process do what the confinement forbids. For
 * tests/confinement.py.
 */
#define _GNU_SOURCE
#include <hvx/device.h>
#include <hvx/plugin.h>

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PORT 0x5f0

struct escape {
    const struct hvx_host *host;
    struct hvx_vm *vm;
    struct hvx_region *region;
};

static const char *const attempts[] = {"file", "socket", "exec", "fork", "unlink", "signal", "code", "ring", "ioctl"};

/* Each would do something, was it not for the confinement. */
static long attempt(unsigned what)
{
    char *const none[] = {NULL};
    char params[256] = {0};
    int fd;
    void *p;

    switch (what) {
    case 0: return open("/etc/hostname", O_RDONLY);
    case 1: return socket(AF_INET, SOCK_STREAM, 0);
    case 2: return execve("/bin/true", none, none);
    case 3: return syscall(SYS_clone, 17 /* SIGCHLD */, NULL, NULL, NULL, NULL);
    case 4: return unlink("/nonexistent");
    case 5: return kill(getppid(), 0);
    case 6:
        p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return mprotect(p, 4096, PROT_READ | PROT_EXEC);
    case 7: return syscall(SYS_io_uring_setup, 4, params);
    case 8: fd = 0; return ioctl(fd, TIOCSTI, "x");
    default: return 0;
    }
}

static uint64_t port_read(void *opaque, uint64_t off, unsigned size)
{
    struct escape *e = opaque;
    (void)off, (void)size;
    return e->host->is_confined();
}

static void port_write(void *opaque, uint64_t off, unsigned size, uint64_t v)
{
    struct escape *e = opaque;
    long r;
    (void)off, (void)size;
    if (v >= sizeof(attempts) / sizeof(attempts[0]))
        return;
    r = attempt((unsigned)v);
    e->host->log(HVX_LOG_ERROR, "escape", "%s gave %ld", attempts[v], r);
}

static const struct hvx_region_ops region_ops = {.read = port_read, .write = port_write};

static void destroy(void *dev)
{
    struct escape *e = dev;
    if (e)
        e->host->region_del(e->vm, e->region);
    free(e);
}

static int create(void *ctx, struct hvx_vm *vm, const struct hvx_config *config, void **dev, struct hvx_error *err)
{
    struct escape *e = calloc(1, sizeof(*e));
    int r;
    (void)config;
    if (!e)
        return -ENOMEM;
    e->host = ctx;
    e->vm = vm;
    r = e->host->region_add(vm, HVX_SPACE_PIO, PORT, 1, 0, "escape", &region_ops, e, &e->region, err);
    if (r < 0)
        free(e);
    else
        *dev = e;
    return r;
}

static void reset(void *dev) { (void)dev; }

static const struct hvx_device_type type = {
    .size = sizeof(type), .role = HVX_ROLE_NONE, .rank = -1, .version = 1, .name = "escape",
    .summary = "breaks out, for a test", .create = create, .destroy = destroy, .reset = reset,
};
static const struct hvx_device_type *const types[] = {&type};
static const struct hvx_device_ops ops = {.size = sizeof(ops), .n_types = 1, .types = types};

static int init(const struct hvx_host *host, const struct hvx_config *config, void **ctx, struct hvx_error *err)
{
    (void)config, (void)err;
    *ctx = (void *)(uintptr_t)host;
    return 0;
}

HVX_PLUGIN_DEFINE(dev_escape, HVX_FAMILY_DEVICE, HVX_DEVICE_MINOR, .name = "dev-escape", .version = "1",
                  .summary = "breaks out, for a test", .license = "Apache-2.0", .init = init, .ops = &ops);
