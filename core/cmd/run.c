/* SPDX-License-Identifier: Apache-2.0
 *
 * core/cmd/run.c - `hvx run`: start a VM and stay with it until it ends.
 *
 * This thread runs the control loop: what the guest asks for, what arrives on
 * the control socket, and what another thread tells it of signals. Devices
 * have a loop and a thread of their own, so that this one can wait for vCPUs
 * without holding the VM lock.
 */
#define _GNU_SOURCE
#include "core/cmd/commands.h"
#include "core/cmd/run.h"
#include "core/cmd/run_save.h"
#include "core/plugin/registry.h"
#include "core/vm/confine.h"
#include "core/vm/control.h"
#include "core/vm/gdb.h"
#include "core/vm/internal.h"
#include "core/vm/tidy.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define N_EVENTS (HVX_EVENT_DEBUG + 1)
#define SIGNALS_STACK_BYTES (128u * 1024)

struct run {
    struct hvx_run_options options;
    struct hvx_loop *loop;
    struct hvx_registry *registry;
    struct hvx_machine *machine;
    struct hvx_vm *vm;
    struct hvx_control *control;
    struct hvx_gdb *gdb;
    pthread_t signals; /* waits for those of the person */
    bool has_signals;
    _Atomic int signal; /* that ends the VM */
    atomic_bool enough; /* the thread is to end */
    uint64_t started_ns, n_resets;
    int status;
    bool ending, user_paused;
    struct hvx_run_save save;
    struct hvx_restore *restore; /* until the VM has started */
    int last_level;
    char last_words[400]; /* why the VM ended: printed when the guest's last output has left */
    /* Events wait here, one of a kind: a guest that writes to its reset port
     * in a loop asks for one reset. */
    pthread_mutex_t mutex;
    bool pending[N_EVENTS], posted;
    int code[N_EVENTS];
    char text[N_EVENTS][200];
    char command[HVX_SAVED_TEXT];
};

static void end(struct run *r, int status)
{
    if (r->ending)
        return;
    r->ending = true;
    r->status = status;
    hvx_loop_stop(r->loop);
}

static void say(struct run *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(struct run *r, const char *fmt, ...)
{
    char text[400];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    hvx_log(HVX_LOG_INFO, r->options.name, "%s", text);
}

static void say_last(struct run *r, int level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void say_last(struct run *r, int level, const char *fmt, ...)
{
    va_list ap;

    if (r->ending)
        return;
    va_start(ap, fmt);
    vsnprintf(r->last_words, sizeof(r->last_words), fmt, ap);
    va_end(ap);
    r->last_level = level;
}

/* --- what the guest asked for ------------------------------------------------ */

static void handle_event(struct run *r, enum hvx_vm_event e, int code, const char *text)
{
    switch (e) {
    case HVX_EVENT_POWEROFF:
        say_last(r, HVX_LOG_INFO, "the guest powered off");
        end(r, HVX_STATUS_OK);
        break;
    case HVX_EVENT_DEBUG_EXIT:
        end(r, code & 0xff);
        break;
    case HVX_EVENT_PANIC:
        say_last(r, HVX_LOG_ERROR, "the guest panicked");
        end(r, HVX_STATUS_PANIC);
        break;
    case HVX_EVENT_ENGINE_ERROR:
        say_last(r, HVX_LOG_ERROR, "engine %s, vCPU %d: %s", hvx_vm_engine_name(r->vm), code, text);
        end(r, HVX_STATUS_ENGINE);
        break;
    case HVX_EVENT_DEBUG:
        hvx_gdb_stopped(r->gdb);
        break;
    case HVX_EVENT_SHUTDOWN:
        if (r->options.no_reboot) {
            say_last(r, HVX_LOG_INFO, "triple fault on vCPU %d%s%s", code, text[0] ? ": " : "", text);
            end(r, HVX_STATUS_TRIPLE_FAULT);
            break;
        }
        say(r, "triple fault on vCPU %d%s%s", code, text[0] ? ": " : "", text);
        /* fall through */
    case HVX_EVENT_RESET:
        if (r->options.no_reboot) {
            say_last(r, HVX_LOG_INFO, "the guest asked for a reset; ending, as --no-reboot says");
            end(r, HVX_STATUS_OK);
            break;
        }
        r->n_resets++;
        hvx_vm_reset(r->vm);
        break;
    }
}

static void handle_events(void *opaque)
{
    struct run *r = opaque;

    if (hvx_run_save_busy(&r->save))
        return; /* resumed() posts this again */
    for (int e = 1; e < N_EVENTS && !r->ending; e++) {
        char text[sizeof(r->text[0])];
        bool pending;
        int code;
        pthread_mutex_lock(&r->mutex);
        r->posted = false;
        pending = r->pending[e];
        r->pending[e] = false;
        code = r->code[e];
        memcpy(text, r->text[e], sizeof(text));
        pthread_mutex_unlock(&r->mutex);
        if (pending)
            handle_event(r, (enum hvx_vm_event)e, code, text);
    }
}

static void on_event(void *opaque, enum hvx_vm_event e, int code, const char *text)
{
    struct run *r = opaque;
    bool post;

    pthread_mutex_lock(&r->mutex);
    if (!r->pending[e]) {
        r->pending[e] = true;
        r->code[e] = code;
        snprintf(r->text[e], sizeof(r->text[e]), "%s", text ? text : "");
    }
    post = !r->posted;
    r->posted = true;
    pthread_mutex_unlock(&r->mutex);
    if (post && hvx_loop_post(r->loop, handle_events, r) < 0)
        hvx_log(HVX_LOG_ERROR, r->options.name, "out of memory: the guest's %s is lost", hvx_vm_event_name(e));
}

static void left(void *opaque)
{
    struct run *r = opaque;

    say_last(r, HVX_LOG_INFO, "left the console; the VM ends");
    end(r, HVX_STATUS_OK);
}

static void on_escape(void *opaque)
{
    struct run *r = opaque;

    (void)!hvx_loop_post(r->loop, left, r); /* we are on the device loop here */
}

/* --- signals of the person ------------------------------------------------------ */

static void ended_by_signal(void *opaque)
{
    struct run *r = opaque;

    say_last(r, HVX_LOG_INFO, "%s; the VM ends", strsignal(atomic_load(&r->signal)));
    end(r, HVX_STATUS_KILLED);
}

static void persons_signals(sigset_t *set)
{
    sigemptyset(set);
    for (const int *s = (const int[]){SIGINT, SIGTERM, SIGHUP, SIGQUIT, 0}; *s; s++)
        sigaddset(set, *s);
}

/* A thread, and not a signalfd in the loop: Linux wakes whoever polls one for
 * each signal of the process, and an engine's page faults are signals. */
static void *wait_for_signals(void *opaque)
{
    struct run *r = opaque;
    sigset_t set;
    int signo;

    hvx_confine_thread();
    pthread_setname_np(pthread_self(), "signals");
    persons_signals(&set);
    while (sigwait(&set, &signo) == 0 && !atomic_load(&r->enough)) {
        atomic_store(&r->signal, signo);
        (void)!hvx_loop_post(r->loop, ended_by_signal, r);
    }
    return NULL;
}

static int start_waiting_for_signals(struct run *r)
{
    pthread_attr_t attr;
    int e;

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, SIGNALS_STACK_BYTES);
    e = pthread_create(&r->signals, &attr, wait_for_signals, r);
    pthread_attr_destroy(&attr);
    r->has_signals = e == 0;
    return -e;
}

static void stop_waiting_for_signals(struct run *r)
{
    if (!r->has_signals)
        return;
    atomic_store(&r->enough, true);
    pthread_kill(r->signals, SIGTERM);
    pthread_join(r->signals, NULL);
    r->has_signals = false;
}

/* --- the control socket --------------------------------------------------------- */

static void add_stat(void *opaque, const char *group, const char *name, uint64_t value, const char *unit)
{
    json_array_append_new(opaque, json_pack("{s:s, s:s, s:I, s:s}", "group", group, "name", name, "value",
                                            (json_int_t)value, "unit", unit ? unit : ""));
}

static const char *string_of(json_t *request, const char *key, struct hvx_error *err)
{
    const char *s = json_string_value(json_object_get(request, key));

    if (!s)
        hvx_fail(err, -EINVAL, "the request lacks \"%s\"", key);
    return s;
}

static void describe(struct run *r, json_t *answer)
{
    const struct hvx_vm_params *p = &r->options.machine.vm;

    json_object_set_new(answer, "name", json_string(r->options.name));
    json_object_set_new(answer, "pid", json_integer(getpid()));
    json_object_set_new(answer, "engine", json_string(hvx_vm_engine_name(r->vm)));
    json_object_set_new(answer, "cpus", json_integer(p->n_vcpus));
    json_object_set_new(answer, "memory", json_integer((json_int_t)p->ram_bytes));
    json_object_set_new(answer, "state", json_string(hvx_run_save_busy(&r->save) ? "saving"
                                                     : r->user_paused            ? "paused"
                                                                                 : "running"));
    json_object_set_new(answer, "uptime_s", json_integer((json_int_t)((hvx_clock_ns() - r->started_ns) / 1000000000u)));
    json_object_set_new(answer, "resets", json_integer((json_int_t)r->n_resets));
}

static void kill_now(void *opaque)
{
    struct run *r = opaque;

    say_last(r, HVX_LOG_INFO, "ended by hvx kill");
    end(r, HVX_STATUS_KILLED);
}

/* Save the devices' and vCPUs' state and put it back: a guest that notices has
 * found a bug. For tests. */
static int round_trip(struct run *r, json_t *answer, struct hvx_error *err)
{
    char *state = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&state, &n);
    int e;

    if (!f)
        return hvx_fail(err, -errno, "no memory for the state: %s", strerror(errno));
    hvx_vm_pause(r->vm);
    e = hvx_vm_save_devices(r->vm, f, err);
    fclose(f);
    if (e == 0) {
        json_object_set_new(answer, "bytes", json_integer((json_int_t)n));
        f = fmemopen(state, n, "r");
        e = f ? hvx_vm_restore_devices(r->vm, f, err) : hvx_fail(err, -ENOMEM, "no memory for the state");
        if (f)
            fclose(f);
    }
    hvx_vm_resume(r->vm);
    free(state);
    return e;
}

static int screendump(struct run *r, struct hvx_error *err)
{
    int e, fd = hvx_control_take_fd(r->control, 0);

    if (fd < 0)
        return hvx_fail(err, -EINVAL, "screendump: pass the file's descriptor with the request");
    e = hvx_vm_screendump(r->vm, fd, err);
    close(fd);
    return e;
}

/* The client opened the files: this process may not be able to. */
static int attach(struct run *r, json_t *request, json_t *answer, struct hvx_error *err)
{
    struct hvx_blk_fd fds[HVX_CONTROL_MAX_FDS];
    struct hvx_attach_request q = {.fds = fds};
    char id[24], name[48];
    json_t *files = json_object_get(request, "files");
    int e;

    q.disk = json_string_value(json_object_get(request, "disk"));
    q.net = json_string_value(json_object_get(request, "net"));
    if (!q.disk == !q.net)
        return hvx_fail(err, -EINVAL, "the request names neither \"disk\" nor \"net\", or both");
    for (size_t i = 0; i < json_array_size(files) && q.n_fds < HVX_CONTROL_MAX_FDS; i++) {
        const char *file = json_string_value(json_object_get(json_array_get(files, i), "name"));
        const char *format = json_string_value(json_object_get(json_array_get(files, i), "format"));
        struct hvx_blk_fd *f = &fds[q.n_fds];
        f->fd = hvx_control_take_fd(r->control, (unsigned)i);
        if (f->fd < 0)
            break;
        snprintf(f->name, sizeof(f->name), "%s", file ? file : "?");
        snprintf(f->format, sizeof(f->format), "%s", format ? format : "");
        q.n_fds++;
    }
    e = hvx_machine_attach(r->vm, r->registry, &q, id, name, err);
    if (e == 0) {
        json_object_set_new(answer, "id", json_string(id));
        json_object_set_new(answer, "device", json_string(name));
        say(r, "attached %s as %s", id, name);
    }
    return e;
}

static int balloon(struct run *r, json_t *request, json_t *answer, struct hvx_error *err)
{
    json_t *size = json_object_get(request, "size");
    struct hvx_vm_balloon_info i;
    int e = json_is_integer(size) ? hvx_vm_balloon_target(r->vm, (uint64_t)json_integer_value(size), err) : 0;

    if (e < 0)
        return e;
    if (!hvx_vm_balloon_info(r->vm, &i))
        return hvx_fail(err, -ENOTSUP, "the VM has no balloon; it was started with --no-defaults, or no enabled plugin "
                                       "offers one");
    json_object_set_new(answer, "memory", json_integer((json_int_t)i.ram));
    json_object_set_new(answer, "target", json_integer((json_int_t)i.target));
    json_object_set_new(answer, "actual", json_integer((json_int_t)i.actual));
    json_object_set_new(answer, "resident", json_integer((json_int_t)i.resident));
    json_object_set_new(answer, "given_back", json_integer((json_int_t)i.discarded));
    json_object_set_new(answer, "driver", json_boolean(i.ready));
    return 0;
}

/* --- saving ------------------------------------------------------------------------ */

static bool guest_waits(struct run *r)
{
    bool any = false;

    pthread_mutex_lock(&r->mutex);
    for (unsigned e = 1; e < N_EVENTS; e++)
        any |= r->pending[e];
    pthread_mutex_unlock(&r->mutex);
    return any;
}

static int save(struct run *r, struct hvx_error *err)
{
    int e = hvx_run_save_begin(&r->save, r->control, err);

    if (e == 0 && guest_waits(r)) {
        /* That the guest asked is nowhere in its state. */
        hvx_run_save_abort(&r->save, true);
        return hvx_fail(err, -EAGAIN, "the guest has just asked for a reset or its end; try again");
    }
    return e;
}

static void save_resumed(void *opaque)
{
    struct run *r = opaque;

    /* What came up before the pause was put off. */
    if (hvx_loop_post(r->loop, handle_events, r) < 0)
        hvx_log(HVX_LOG_ERROR, r->options.name, "out of memory: a request of the guest may be lost");
}

static void end_saved(void *opaque)
{
    struct run *r = opaque;

    say(r, "saved; the VM ends");
    end(r, HVX_STATUS_SAVED);
}

static int save_end(struct run *r, json_t *request, struct hvx_error *err)
{
    int e = hvx_run_save_commit(&r->save, request, err);

    if (e == 1 && hvx_loop_post(r->loop, end_saved, r) < 0)
        return hvx_fail(err, -ENOMEM, "out of memory");
    return e < 0 ? e : 0;
}

static int on_command(void *opaque, const char *command, json_t *request, json_t *answer, struct hvx_error *err)
{
    struct run *r = opaque;
    const char *s;

    if (hvx_run_save_busy(&r->save) && strcmp(command, "info") && strcmp(command, "kill") &&
        strcmp(command, "save-end"))
        return hvx_fail(err, -EBUSY, "the VM is being saved; wait for that, or end `hvx save`");
    if (!strcmp(command, "info")) {
        describe(r, answer);
    } else if (!strcmp(command, "stat")) {
        json_t *list = json_array();
        describe(r, answer);
        hvx_vm_stats(r->vm, add_stat, list);
        json_object_set_new(answer, "stats", list);
    } else if (!strcmp(command, "stop")) {
        if (!hvx_vm_power_button(r->vm))
            return hvx_fail(err, -ENOTSUP, "this board has no power button; `hvx kill` ends the VM at once");
    } else if (!strcmp(command, "kill")) {
        /* Later, so that the answer leaves first. */
        if (hvx_loop_post(r->loop, kill_now, r) < 0)
            return hvx_fail(err, -ENOMEM, "out of memory");
    } else if (!strcmp(command, "reset")) {
        r->n_resets++;
        hvx_vm_reset(r->vm);
    } else if (!strcmp(command, "pause")) {
        if (!r->user_paused)
            hvx_vm_pause(r->vm);
        r->user_paused = true;
    } else if (!strcmp(command, "resume")) {
        if (r->user_paused)
            hvx_vm_resume(r->vm);
        r->user_paused = false;
    } else if (!strcmp(command, "attach")) {
        return attach(r, request, answer, err);
    } else if (!strcmp(command, "detach")) {
        return (s = string_of(request, "id", err)) ? hvx_vm_detach(r->vm, s, err) : -EINVAL;
    } else if (!strcmp(command, "attached")) {
        if (!(s = string_of(request, "id", err)))
            return -EINVAL;
        json_object_set_new(answer, "there", json_boolean(hvx_vm_attached(r->vm, s)));
    } else if (!strcmp(command, "balloon")) {
        return balloon(r, request, answer, err);
    } else if (!strcmp(command, "save")) {
        return save(r, err);
    } else if (!strcmp(command, "save-end")) {
        return save_end(r, request, err);
    } else if (!strcmp(command, "state-round-trip")) {
        return round_trip(r, answer, err);
    } else if (!strcmp(command, "screendump")) {
        return screendump(r, err);
    } else if (!strcmp(command, "sendkey")) {
        return (s = string_of(request, "keys", err)) ? hvx_vm_sendkey(r->vm, s, err) : -EINVAL;
    } else {
        return hvx_fail(err, -EINVAL, "unknown command '%s'", command);
    }
    return 0;
}

/* --- start and end ----------------------------------------------------------------- */

static int open_control(struct run *r, struct hvx_error *err)
{
    char base[sizeof(r->options.name)];
    int e;

    if (r->options.no_control)
        return 0;
    snprintf(base, sizeof(base), "%s", r->options.name);
    for (unsigned i = 2;; i++) {
        e = hvx_control_new(r->loop, r->options.name, on_command, r, &r->control, err);
        if (e != -EEXIST || r->options.name_given || i > 99)
            break;
        snprintf(r->options.name, sizeof(r->options.name), "%.32s-%u", base, i);
    }
    if (e < 0 && e != -EEXIST && !r->options.name_given) {
        /* A folder that cannot be made must not keep a VM from running. */
        hvx_log(HVX_LOG_WARN, NULL, "%s; hvx ps will not see this VM", err->text);
        return 0;
    }
    return e;
}

static void kill_for_gdb(void *opaque)
{
    struct run *r = opaque;

    say(r, "ended by gdb");
    end(r, HVX_STATUS_KILLED);
}

static void killed_by_gdb(void *opaque)
{
    struct run *r = opaque;

    (void)!hvx_loop_post(r->loop, kill_for_gdb, r); /* after what gdb is to be told has left */
}

static int confine(void *opaque, struct hvx_error *err)
{
    struct run *r = opaque;
    char how[200];
    int e;

    e = r->gdb ? hvx_gdb_attach(r->gdb, r->vm, r->options.gdb_wait, killed_by_gdb, r, err) : 0;
    if (e < 0 || r->options.no_confinement)
        return e;
    e = hvx_tidy_start(err);
    if (e == 0)
        e = hvx_confine_process(HVX_CONFINE_VM, how, sizeof(how), err);
    if (e == 0)
        hvx_log(HVX_LOG_DEBUG, r->options.name, "%s", how);
    return e;
}

static void show_restoring(void *opaque, uint64_t done, uint64_t total)
{
    struct run *r = opaque;
    static uint64_t shown_ns;
    uint64_t now = hvx_clock_ns();

    if (r->options.quiet || !total || !isatty(2) || (now - shown_ns < 200000000u && done < total))
        return;
    shown_ns = now;
    fprintf(stderr, done < total ? "\rhvx: reading %s: %3u %%" : "\r\033[K", r->options.restore,
            (unsigned)(done * 100 / total));
}

static int open_restore(struct run *r, struct hvx_error *err)
{
    const struct hvx_saved_vm *v;
    int e = hvx_restore_open(r->options.restore, show_restoring, r, &r->restore, err);

    if (e < 0)
        return e;
    v = hvx_restore_info(r->restore);
    r->options.machine.vm.uuid = v->uuid;
    return 0;
}

static int start(struct run *r, struct hvx_registry *reg, struct hvx_error *err)
{
    char why[400];
    int e = start_waiting_for_signals(r);

    if (e < 0)
        return hvx_fail(err, e, "signals: %s", strerror(-e));
    e = open_control(r, err);
    if (e < 0)
        return e;
    r->options.machine.vm.on_event = on_event;
    r->options.machine.vm.before_guest = confine;
    e = r->options.gdb ? hvx_gdb_listen(r->loop, r->options.gdb, &r->gdb, err) : 0;
    if (e < 0)
        return e;
    r->options.machine.vm.opaque = r;
    r->options.machine.on_escape = on_escape;
    r->options.machine.escape_opaque = r;
    if (r->options.restore && (e = open_restore(r, err)) < 0)
        return e;
    e = hvx_machine_new(reg, &r->options.machine, &r->machine, why, sizeof(why), err);
    if (e < 0)
        return e;
    r->vm = hvx_machine_vm(r->machine);
    say(r, "%s", why);
    r->started_ns = hvx_clock_ns();
    r->save = (struct hvx_run_save){.vm = r->vm, .loop = r->loop, .name = r->options.name, .command = r->command,
                                    .resumed = save_resumed, .opaque = r};
    if (r->restore)
        hvx_vm_restore_from(r->vm, r->restore);
    e = hvx_vm_start(r->vm, err);
    hvx_restore_close(r->restore);
    r->restore = NULL;
    return e;
}

/* As it was typed, for whoever wants to restore the VM. */
static void keep_command(struct run *r, int argc, char **argv)
{
    size_t n = (size_t)snprintf(r->command, sizeof(r->command), "hvx");

    for (int i = 0; i < argc && n < sizeof(r->command); i++) {
        bool plain = argv[i][0] && !argv[i][strcspn(argv[i], " \t\n\"'\\$`&|;<>()*?[]#~!")];
        n += (size_t)snprintf(r->command + n, sizeof(r->command) - n, plain ? " %s" : " '%s'", argv[i]);
    }
}

int hvx_cmd_run(int argc, char **argv)
{
    struct run *r = calloc(1, sizeof(*r));
    struct hvx_conf *conf = NULL;
    struct hvx_registry *reg = NULL;
    struct hvx_error err = {0};
    int e;

    if (!r)
        return HVX_STATUS_FAILED;
    e = hvx_run_parse(argc, argv, &r->options);
    if (e) {
        free(r);
        return e - HVX_RUN_EXIT;
    }
    r->options.machine.vm.name = r->options.name;
    keep_command(r, argc, argv);
    pthread_mutex_init(&r->mutex, NULL);
    hvx_log_set_level(r->options.log_level);
    if (r->options.no_confinement)
        hvx_log(HVX_LOG_WARN, r->options.name,
                "--no-confinement: a guest that finds a hole in HVX can do what you can on this host");
    else
        hvx_confine_plan(r->options.name);
    /* Before the first thread: they inherit it. */
    hvx_vm_block_signals();
    e = hvx_conf_load(r->options.config, &conf, &err);
    if (e == 0)
        e = hvx_registry_new(conf, hvx_host_table(), &reg, &err);
    r->registry = reg;
    if (e == 0)
        e = hvx_loop_new(&r->loop, &err);
    if (e == 0)
        e = start(r, reg, &err);
    if (e == 0) {
        hvx_loop_run(r->loop);
        hvx_run_save_abort(&r->save, false);
        hvx_control_destroy(r->control);
        r->control = NULL;
    } else {
        r->status = HVX_STATUS_FAILED;
    }
    hvx_control_destroy(r->control);
    hvx_restore_close(r->restore);
    hvx_gdb_destroy(r->gdb);
    hvx_machine_destroy(r->machine); /* closes the serial lines */
    if (r->last_words[0])
        hvx_log(r->last_level, r->options.name, "%s", r->last_words);
    if (e < 0)
        hvx_log(HVX_LOG_ERROR, "run", "%s", err.text);
    stop_waiting_for_signals(r);
    hvx_loop_destroy(r->loop);
    hvx_registry_destroy(reg);
    hvx_conf_destroy(conf);
    hvx_tidy_finish();
    e = r->status;
    pthread_mutex_destroy(&r->mutex);
    free(r);
    return e;
}
