/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/confine.c - see confine.h. The lists of system calls are in
 * confine_calls.c.
 */
#define _GNU_SOURCE
#include "core/vm/confine.h"
#include "core/vm/confine_calls.h"

#include <fcntl.h>
#include <limits.h>
#include <malloc.h>
#include <jansson.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef LANDLOCK_ACCESS_NET_BIND_TCP /* Debian 12's headers end before network rules */
#define LANDLOCK_ACCESS_NET_BIND_TCP 1ull
#define LANDLOCK_ACCESS_NET_CONNECT_TCP 2ull
#endif
#define LANDLOCK_FS_V1 0x1fffull
#define LANDLOCK_FS_REFER 0x2000ull    /* version 2 */
#define LANDLOCK_FS_TRUNCATE 0x4000ull /* version 3 */
#define LANDLOCK_FS_IOCTL 0x8000ull    /* version 5 */
#define RESOLV_CONF "/etc/resolv.conf"

static char vm_name[64];
static bool planned;
static _Atomic(bool) confined;
static enum hvx_confine_profile in_force;
static int resolv_fd = -1;

void hvx_confine_plan(const char *name)
{
    snprintf(vm_name, sizeof(vm_name), "%s", name);
    planned = true;
}

bool hvx_confine_planned(void)
{
    return planned;
}

bool hvx_confined(void)
{
    return atomic_load(&confined);
}

/* --- Landlock and capabilities, which are each thread's own ------------------------ */

static int landlock_version(void)
{
    return (int)syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
}

/* A ruleset that handles everything and allows nothing. */
static int landlock_nothing(int version)
{
    struct {
        uint64_t fs, net;
    } attr = {LANDLOCK_FS_V1, 0};
    int fd, r;

    if (version >= 2)
        attr.fs |= LANDLOCK_FS_REFER;
    if (version >= 3)
        attr.fs |= LANDLOCK_FS_TRUNCATE;
    if (version >= 5)
        attr.fs |= LANDLOCK_FS_IOCTL;
    if (version >= 4)
        attr.net = LANDLOCK_ACCESS_NET_BIND_TCP | LANDLOCK_ACCESS_NET_CONNECT_TCP;
    fd = (int)syscall(SYS_landlock_create_ruleset, &attr, version >= 4 ? sizeof(attr) : sizeof(attr.fs), 0);
    if (fd < 0)
        return -errno;
    r = syscall(SYS_landlock_restrict_self, fd, 0) < 0 ? -errno : 0;
    close(fd);
    return r;
}

static int drop_capabilities(void)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {0};

    return syscall(SYS_capset, &head, data) < 0 ? -errno : 0;
}

static int confine_thread(bool landlock)
{
    int version;

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || drop_capabilities() < 0)
        return -errno;
    version = landlock && !HVX_SANITIZED ? landlock_version() : 0;
    return version > 0 ? landlock_nothing(version) : 0;
}

void hvx_confine_thread(void)
{
    if (planned && confine_thread(true) < 0)
        abort(); /* cannot be: none of this needs a privilege */
}

/* --- what happens at a violation ------------------------------------------------------- */

static void put(const char *s)
{
    ssize_t w = write(2, s, strlen(s));

    (void)w;
}

/* Only what a signal handler may call. A handler rather than the kernel's own
 * kill, so that the message can name the call; the call itself has not been
 * made and is not, and the handler's last act is one that the kernel answers
 * with death. The filter keeps SIGSYS's action from being changed. */
static void on_violation(int sig, siginfo_t *info, void *context)
{
    greg_t *reg = ((ucontext_t *)context)->uc_mcontext.gregs;
    unsigned nr = (unsigned)info->si_syscall;
    char digits[12], *d = digits + sizeof(digits);
    const char *name = hvx_confine_call_name(nr);

    (void)sig;
    if (in_force == HVX_CONFINE_NET && nr == SYS_openat && resolv_fd >= 0 && reg[REG_RSI] &&
        !strcmp((const char *)reg[REG_RSI], RESOLV_CONF)) {
        /* libslirp reads the host's resolver again when the file changes. */
        int fd = fcntl(resolv_fd, F_DUPFD_CLOEXEC, 3);
        lseek(fd, 0, SEEK_SET);
        reg[REG_RAX] = fd < 0 ? -errno : fd;
        return;
    }
    *--d = 0;
    do
        *--d = (char)('0' + nr % 10);
    while ((nr /= 10) && d > digits);
    put("hvx: error: ");
    put(vm_name);
    put(in_force == HVX_CONFINE_NET ? ": the process of user networking" : ": the VM's process");
    put(" made the system call ");
    put(name[0] ? name : "number");
    put(name[0] ? " (" : " ");
    put(d);
    put(name[0] ? ")" : "");
    put(", which its confinement forbids, and is killed. Either its guest broke out, or this is a fault of HVX or of a "
        "plugin: please report it. --no-confinement runs without this protection.\n");
    syscall(HVX_CONFINE_DEADLY_CALL, 0, 0, 0, 0);
    _exit(128 + SIGSYS);
}

/* --- seccomp --------------------------------------------------------------------------- */

/* What libraries do at their first use, with files, is done now. */
static void warm_up(enum hvx_confine_profile profile)
{
    time_t now = time(NULL);
    struct tm tm;

    /* With more than eight arenas malloc counts the processors, in a file. */
    mallopt(M_ARENA_MAX, 8);
    /* To cut an arena's free end off it reads the policy of over-commit, in a file. */
    mallopt(M_TRIM_THRESHOLD, INT_MAX);
    json_object_seed(0);
    tzset();
    (void)gmtime_r(&now, &tm);
    (void)sysconf(_SC_NPROCESSORS_ONLN);
    if (profile == HVX_CONFINE_NET)
        resolv_fd = open(RESOLV_CONF, O_RDONLY | O_CLOEXEC);
}

int hvx_confine_process(enum hvx_confine_profile profile, char *how, size_t how_size, struct hvx_error *err)
{
    struct sigaction act = {.sa_sigaction = on_violation, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    int version = landlock_version(), landlock_error = errno, r;
    sigset_t set;

    if (!planned)
        return 0;
    warm_up(profile);
    in_force = profile;
    sigfillset(&act.sa_mask);
    sigaction(SIGSYS, &act, NULL);
    sigemptyset(&set);
    sigaddset(&set, SIGSYS);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    /* The tidying process removes files, in folders of whomever; user networking dials for the guest. */
    r = profile == HVX_CONFINE_TIDY ? 0 : confine_thread(profile == HVX_CONFINE_VM);
    if (r < 0)
        return hvx_fail(err, r, "confinement: cannot give up privileges: %s", strerror(-r));
    r = hvx_confine_load(profile);
    if (r < 0)
        return hvx_fail(err, r,
                        "confinement: the kernel refuses the seccomp filter: %s. A VM without it is as dangerous "
                        "as its guest; --no-confinement runs it all the same",
                        strerror(-r));
    atomic_store(&confined, true);
    if (how && version > 0)
        snprintf(how, how_size, "confined: seccomp, no capabilities, Landlock version %d", version);
    else if (how)
        snprintf(how, how_size, "confined: seccomp, no capabilities; this kernel has no Landlock (%s)",
                 landlock_error == EOPNOTSUPP ? "switched off" : "not built in");
    return 0;
}
