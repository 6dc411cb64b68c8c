/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/log.c - messages of a running VM, and events that guests cause.
 */
#include "core/vm/internal.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

#define EVENT_INTERVAL_NS 5000000000ull

static _Atomic(int) log_level = HVX_LOG_INFO;

void hvx_log_set_level(int level)
{
    atomic_store(&log_level, level);
}

static void vlog(int level, const char *who, const char *fmt, va_list ap)
{
    static const char *const mark[] = {"error: ", "warning: ", "", "debug: "};
    char line[800];
    int n;

    if (level > atomic_load(&log_level))
        return;
    n = snprintf(line, sizeof(line), "hvx: %s%s%s", level >= 0 && level <= 3 ? mark[level] : "", who ? who : "",
                 who ? ": " : "");
    n += vsnprintf(line + n, sizeof(line) - (size_t)n - 3, fmt, ap);
    if (n > (int)sizeof(line) - 4)
        n = (int)sizeof(line) - 4;
    /* The terminal may be raw: return the carriage ourselves. */
    memcpy(line + n, "\r\n", 3);
    ssize_t w = isatty(2) ? write(2, line, (size_t)n + 2) : (line[n] = '\n', write(2, line, (size_t)n + 1));
    (void)w;
}

void hvx_log(int level, const char *who, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vlog(level, who, fmt, ap);
    va_end(ap);
}

static _Thread_local uint64_t frozen_ns;

void hvx_clock_freeze(uint64_t ns)
{
    frozen_ns = ns;
}

uint64_t hvx_clock_ns(void)
{
    struct timespec ts;

    if (frozen_ns)
        return frozen_ns;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Logged at most once in EVENT_INTERVAL_NS for each kind, counted always. */
void hvx_vm_guest_event(struct hvx_vm *vm, const char *what, const char *fmt, ...)
{
    uint64_t now = hvx_clock_ns(), count = 0;
    bool show = false;
    unsigned i = 0;
    char text[300];
    va_list ap;

    pthread_mutex_lock(&vm->event_mutex);
    while (i < vm->n_guest_events && strncmp(vm->guest_event[i].what, what, sizeof(vm->guest_event[i].what) - 1))
        i++;
    if (i == vm->n_guest_events && i < HVX_MAX_GUEST_EVENTS) {
        snprintf(vm->guest_event[i].what, sizeof(vm->guest_event[i].what), "%s", what);
        vm->n_guest_events++;
    }
    if (i < vm->n_guest_events) {
        struct hvx_guest_event *e = &vm->guest_event[i];
        count = ++e->count;
        show = count == 1 || now - e->shown_ns >= EVENT_INTERVAL_NS;
        if (show)
            e->shown_ns = now;
    }
    pthread_mutex_unlock(&vm->event_mutex);
    if (!show)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    hvx_log(HVX_LOG_INFO, "guest", "%s: %s%s", what, text, count > 1 ? " (and more like it)" : "");
}
