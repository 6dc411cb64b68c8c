/* SPDX-License-Identifier: Apache-2.0
 *
 * core/cmd/control_cmds.c - hvx ps, stop, kill, stat, screendump: what talks
 * to running VMs over their control sockets.
 */
#define _GNU_SOURCE
#include "core/cmd/commands.h"
#include "core/conf/options.h"
#include "core/vm/control.h"

#include <fcntl.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct args {
    bool json;
    int wait_s; /* stop: -1 do not wait */
    char *operand[2];
    unsigned n;
};

/* Options that these commands share. Returns 0, or the exit status + 1. */
static int parse(int argc, char **argv, const char *operands, unsigned min, unsigned max, const char *what,
                 struct args *a)
{
    static const struct option longs[] = {
        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {"wait", required_argument, NULL, 'w'},
        {0},
    };
    bool stop = !strcmp(argv[0], "stop");
    int c;

    memset(a, 0, sizeof(*a));
    a->wait_s = -1;
    optind = 1;
    opterr = 0;
    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        if (c == 'j') {
            a->json = true;
        } else if (c == 'w' && stop) {
            a->wait_s = atoi(optarg);
        } else if (c == 'h') {
            printf("Usage: hvx %s [--json]%s%s\n%s\n", argv[0], stop ? " [--wait SECONDS]" : "", operands, what);
            return 1 + HVX_STATUS_OK;
        } else {
            fprintf(stderr, "hvx %s: wrong option '%s'; --help lists them\n", argv[0], argv[optind - 1]);
            return 1 + HVX_STATUS_USAGE;
        }
    }
    for (; optind < argc && a->n < max; optind++)
        a->operand[a->n++] = argv[optind];
    if (optind < argc || a->n < min) {
        fprintf(stderr, "hvx %s: usage: hvx %s [--json]%s\n", argv[0], argv[0], operands);
        return 1 + HVX_STATUS_USAGE;
    }
    return 0;
}

static int call(const char *who, const char *vm, json_t *request, json_t **answer)
{
    struct hvx_error err = {0};
    int r = hvx_control_call(vm, request, answer, &err);

    json_decref(request);
    if (r < 0)
        fprintf(stderr, "hvx %s: %s\n", who, err.text);
    return r;
}

static void print_json(json_t *v)
{
    json_dumpf(v, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    printf("\n");
}

static const char *text_of(json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s ? s : "?";
}

static json_int_t number_of(json_t *o, const char *key)
{
    return json_integer_value(json_object_get(o, key));
}

/* --- ps -------------------------------------------------------------------------- */

int hvx_cmd_ps(int argc, char **argv)
{
    json_t *all = json_array();
    struct args a;
    char **list, memory[32];
    size_t i;
    json_t *v;
    int r = parse(argc, argv, "", 0, 0, "List the virtual machines that run under this user.", &a);

    if (r) {
        json_decref(all);
        return r - 1;
    }
    list = hvx_control_list();
    for (i = 0; list && list[i]; i++) {
        json_t *answer;
        struct hvx_error err;
        json_t *request = json_pack("{s:s}", "command", "info");
        if (hvx_control_call(list[i], request, &answer, &err) == 0) {
            json_object_del(answer, "ok");
            json_array_append_new(all, answer);
        }
        json_decref(request);
        free(list[i]);
    }
    free(list);
    if (a.json) {
        print_json(all);
    } else {
        printf("%-24s %8s %-8s %-10s %4s %8s %10s\n", "NAME", "PID", "STATE", "ENGINE", "CPUS", "MEMORY", "UPTIME");
        json_array_foreach(all, i, v) {
            json_int_t up = number_of(v, "uptime_s");
            hvx_format_size(number_of(v, "memory"), memory, sizeof(memory));
            printf("%-24s %8lld %-8s %-10s %4lld %8s %4lld:%02lld:%02lld\n", text_of(v, "name"),
                   (long long)number_of(v, "pid"), text_of(v, "state"), text_of(v, "engine"),
                   (long long)number_of(v, "cpus"), memory, (long long)up / 3600, (long long)up / 60 % 60,
                   (long long)up % 60);
        }
    }
    json_decref(all);
    return HVX_STATUS_OK;
}

/* --- stop, kill -------------------------------------------------------------------- */

static bool wait_until_gone(const char *name, int seconds)
{
    struct timespec tick = {0, 100000000};

    for (int i = 0; i < seconds * 10; i++) {
        json_t *answer, *request = json_pack("{s:s}", "command", "info");
        struct hvx_error err;
        int r = hvx_control_call(name, request, &answer, &err);
        json_decref(request);
        if (r == -ENOENT)
            return true;
        if (r == 0)
            json_decref(answer);
        nanosleep(&tick, NULL);
    }
    return false;
}

static int simple(const char *command, const char *name, bool json)
{
    json_t *answer;

    if (call(command, name, json_pack("{s:s}", "command", command), &answer) < 0)
        return HVX_STATUS_FAILED;
    if (json)
        print_json(answer);
    json_decref(answer);
    return HVX_STATUS_OK;
}

int hvx_cmd_stop(int argc, char **argv)
{
    struct args a;
    int r = parse(argc, argv, " NAME", 1, 1,
                  "Press the power button of a virtual machine; the guest decides what to do.\n"
                  "--wait SECONDS waits for it to end, and fails when it does not.",
                  &a);

    if (r)
        return r - 1;
    r = simple("stop", a.operand[0], a.json);
    if (r == HVX_STATUS_OK && a.wait_s >= 0 && !wait_until_gone(a.operand[0], a.wait_s)) {
        fprintf(stderr, "hvx stop: VM '%s' still runs after %d s; does its guest handle the power button? "
                        "`hvx kill` ends it at once\n", a.operand[0], a.wait_s);
        return HVX_STATUS_FAILED;
    }
    return r;
}

int hvx_cmd_kill(int argc, char **argv)
{
    struct args a;
    int r = parse(argc, argv, " NAME", 1, 1, "End a virtual machine at once, as pulling the plug would.", &a);

    return r ? r - 1 : simple("kill", a.operand[0], a.json);
}

/* --- stat ---------------------------------------------------------------------------- */

static void print_value(json_int_t v, const char *unit)
{
    if (!strcmp(unit, "bytes") && v >= 1 << 20)
        printf("%14.1f MiB", (double)v / (1 << 20));
    else if (!strcmp(unit, "ns") && v >= 1000000)
        printf("%14.1f ms", (double)v / 1e6);
    else
        printf("%14lld %s", (long long)v, unit);
    printf("\n");
}

int hvx_cmd_stat(int argc, char **argv)
{
    json_t *answer, *v;
    const char *group = "";
    struct args a;
    size_t i;
    int r = parse(argc, argv, " NAME", 1, 1, "Show the counters of a virtual machine: engine, dispatch, devices.", &a);

    if (r)
        return r - 1;
    if (call("stat", a.operand[0], json_pack("{s:s}", "command", "stat"), &answer) < 0)
        return HVX_STATUS_FAILED;
    json_object_del(answer, "ok");
    if (a.json) {
        print_json(answer);
    } else {
        printf("%s: %s, engine %s, %lld vCPU%s, up %lld s, %lld resets\n", text_of(answer, "name"),
               text_of(answer, "state"), text_of(answer, "engine"), (long long)number_of(answer, "cpus"),
               number_of(answer, "cpus") == 1 ? "" : "s", (long long)number_of(answer, "uptime_s"),
               (long long)number_of(answer, "resets"));
        json_array_foreach(json_object_get(answer, "stats"), i, v) {
            if (strcmp(group, text_of(v, "group"))) {
                group = text_of(v, "group");
                printf("%s\n", group);
            }
            printf("  %-36s", text_of(v, "name"));
            print_value(number_of(v, "value"), text_of(v, "unit"));
        }
    }
    json_decref(answer);
    return HVX_STATUS_OK;
}

/* --- screendump ------------------------------------------------------------------------ */

int hvx_cmd_screendump(int argc, char **argv)
{
    json_t *answer, *request;
    struct hvx_error err = {0};
    struct args a;
    bool fresh;
    int fd, r = parse(argc, argv, " NAME FILE.png", 2, 2, "Save what the guest's screen shows as a PNG file.", &a);

    if (r)
        return r - 1;
    /* The VM's process opens no files. */
    fd = open(a.operand[1], O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) {
        fprintf(stderr, "hvx screendump: cannot create %s: %s\n", a.operand[1], strerror(errno));
        return HVX_STATUS_FAILED;
    }
    fresh = lseek(fd, 0, SEEK_END) == 0;
    lseek(fd, 0, SEEK_SET);
    request = json_pack("{s:s}", "command", "screendump");
    r = hvx_control_call_fds(a.operand[0], request, &fd, 1, &answer, &err);
    json_decref(request);
    if (r == 0 && !fresh)
        (void)!ftruncate(fd, lseek(fd, 0, SEEK_CUR)); /* what stood there may have been longer */
    close(fd);
    if (r < 0) {
        if (fresh)
            unlink(a.operand[1]);
        fprintf(stderr, "hvx screendump: %s\n", err.text);
        return HVX_STATUS_FAILED;
    }
    if (a.json)
        print_json(answer);
    json_decref(answer);
    return HVX_STATUS_OK;
}
