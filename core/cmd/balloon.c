/* SPDX-License-Identifier: Apache-2.0
 *
 * core/cmd/balloon.c - hvx balloon: how much of its memory a guest may use.
 */
#define _GNU_SOURCE
#include "core/cmd/commands.h"
#include "core/conf/options.h"
#include "core/vm/control.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The figures as an object owned by the caller; size < 0: just look. */
static int ask(const char *vm, int64_t size, json_t **answer)
{
    struct hvx_error err = {0};
    json_t *q = json_pack("{s:s}", "command", "balloon");
    int r;

    if (size >= 0)
        json_object_set_new(q, "size", json_integer(size));
    r = hvx_control_call(vm, q, answer, &err);
    json_decref(q);
    if (r < 0)
        fprintf(stderr, "hvx balloon: %s\n", err.text);
    return r;
}

static double mib(json_t *a, const char *key)
{
    return (double)json_integer_value(json_object_get(a, key)) / (1 << 20);
}

static bool reached(json_t *a)
{
    return json_integer_value(json_object_get(a, "target")) == json_integer_value(json_object_get(a, "actual"));
}

static int wait_for(const char *vm, int seconds, json_t **answer)
{
    const struct timespec tick = {0, 100000000};

    for (int i = 0; i < seconds * 10 && !reached(*answer); i++) {
        json_t *next;
        nanosleep(&tick, NULL);
        if (ask(vm, -1, &next) < 0)
            return HVX_STATUS_FAILED;
        json_decref(*answer);
        *answer = next;
    }
    if (reached(*answer))
        return HVX_STATUS_OK;
    fprintf(stderr, "hvx balloon: the guest has %.0f MiB after %d s and shall have %.0f MiB; %s\n", mib(*answer, "actual"),
            seconds, mib(*answer, "target"),
            json_is_true(json_object_get(*answer, "driver")) ? "it may need more time, or the memory"
                                                             : "no driver in the guest serves the balloon");
    return HVX_STATUS_FAILED;
}

static int usage_error(void)
{
    fprintf(stderr, "hvx balloon: usage: hvx balloon [--json] [--wait SECONDS] NAME [SIZE]\n");
    return HVX_STATUS_USAGE;
}

int hvx_cmd_balloon(int argc, char **argv)
{
    static const struct option longs[] = {
        {"json", no_argument, NULL, 'j'}, {"wait", required_argument, NULL, 'w'}, {"help", no_argument, NULL, 'h'}, {0},
    };
    int64_t size = -1;
    int c, wait_s = 0, status = HVX_STATUS_OK;
    bool json = false;
    json_t *answer;

    optind = 1;
    opterr = 0;
    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        if (c == 'h') {
            printf("Usage: hvx balloon [--json] [--wait SECONDS] NAME [SIZE]\n"
                   "Leave SIZE (such as 512M) of its memory to the guest; the rest goes back to the host. A size as large\n"
                   "as the VM's memory gives all back to the guest. Without SIZE: show what there is.\n"
                   "--wait SECONDS waits until the guest has done so, and fails when it does not.\n");
            return HVX_STATUS_OK;
        } else if (c == 'j') {
            json = true;
        } else if (c == 'w' && optarg[0] && !optarg[strspn(optarg, "0123456789")] && strlen(optarg) < 7) {
            wait_s = atoi(optarg);
        } else {
            return usage_error();
        }
    }
    if (argc - optind < 1 || argc - optind > 2)
        return usage_error();
    if (argc - optind == 2 && (hvx_parse_size(argv[optind + 1], &size) < 0 || size < 0)) {
        fprintf(stderr, "hvx balloon: %s is no size; write it like 512M or 2G\n", argv[optind + 1]);
        return HVX_STATUS_USAGE;
    }
    if (ask(argv[optind], size, &answer) < 0)
        return HVX_STATUS_FAILED;
    if (wait_s)
        status = wait_for(argv[optind], wait_s, &answer);
    if (json) {
        json_dumpf(answer, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
        printf("\n");
    } else if (size < 0 || wait_s) {
        printf("memory %.0f MiB, target %.0f MiB, guest has %.0f MiB%s; on the host %.1f MiB in use, %.1f MiB given back\n",
               mib(answer, "memory"), mib(answer, "target"), mib(answer, "actual"),
               json_is_true(json_object_get(answer, "driver")) ? "" : " (no driver)", mib(answer, "resident"),
               mib(answer, "given_back"));
    }
    json_decref(answer);
    return status;
}
