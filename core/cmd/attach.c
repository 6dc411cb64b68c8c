/* SPDX-License-Identifier: Apache-2.0
 *
 * core/cmd/attach.c - hvx attach and hvx detach: disks and network cards of
 * running VMs. The VM's process may be confined to what it has open, so this
 * side opens the files and hands them over with the request.
 */
#define _GNU_SOURCE
#include "core/cmd/commands.h"
#include "core/net/net.h"
#include "core/vm/control.h"
#include "core/vm/disk_spec.h"

#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define WAIT_S 30

struct request {
    json_t *json;
    struct hvx_blk_fd files[HVX_CONTROL_MAX_FDS];
    int n;
};

static void describe_files(struct request *q)
{
    json_t *list = json_array();

    for (int i = 0; i < q->n; i++)
        json_array_append_new(list, json_pack("{s:s, s:s}", "name", q->files[i].name, "format", q->files[i].format));
    json_object_set_new(q->json, "files", list);
}

static int open_disk(struct request *q, const char *text, struct hvx_error *err)
{
    struct hvx_disk_spec d;
    int r = hvx_disk_spec_parse(text, &d, err);

    if (r == 0)
        r = q->n = hvx_blk_open_chain(&d.open, q->files, HVX_CONTROL_MAX_FDS, err);
    free(d.text);
    json_object_set_new(q->json, "disk", json_string(text));
    return r < 0 ? r : 0;
}

static int open_net(struct request *q, const char *text, struct hvx_error *err)
{
    struct hvx_net_words words;
    int r = hvx_net_spec_split(text, &words, err);

    if (r == 0) {
        r = hvx_net_open_fd(words.backend, err);
        if (r >= 0) {
            q->files[0] = (struct hvx_blk_fd){.fd = r, .name = "network", .format = "network"};
            q->n = 1;
            r = 0;
        }
    }
    json_object_set_new(q->json, "net", json_string(text));
    return r;
}

static int send_request(struct request *q, const char *vm, json_t **answer, struct hvx_error *err)
{
    int fds[HVX_CONTROL_MAX_FDS], r;

    describe_files(q);
    for (int i = 0; i < q->n; i++)
        fds[i] = q->files[i].fd;
    r = hvx_control_call_fds(vm, q->json, fds, (unsigned)q->n, answer, err);
    for (int i = 0; i < q->n; i++)
        close(fds[i]);
    return r;
}

static int bad_usage(const char *what)
{
    fprintf(stderr, "hvx %s: wrong usage; `hvx %s --help` shows the right one\n", what, what);
    return HVX_STATUS_USAGE;
}

int hvx_cmd_attach(int argc, char **argv)
{
    static const struct option longs[] = {
        {"disk", required_argument, NULL, 'd'}, {"net", required_argument, NULL, 'n'},
        {"json", no_argument, NULL, 'j'},       {"help", no_argument, NULL, 'h'},
        {0},
    };
    const char *disk = NULL, *net = NULL;
    struct request q = {.n = 0};
    struct hvx_error err = {0};
    bool json = false;
    json_t *answer = NULL;
    int c, r;

    optind = 1;
    opterr = 0;
    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        switch (c) {
        case 'd': disk = optarg; break;
        case 'n': net = optarg; break;
        case 'j': json = true; break;
        case 'h':
            printf("Usage: hvx attach [--json] NAME --disk PATH[,KEY=VALUE...]\n"
                   "       hvx attach [--json] NAME --net SPEC\n"
                   "Add a disk or a network card to a running virtual machine. The values are those of hvx run.\n"
                   "Prints the name by which `hvx detach` knows it.\n");
            return HVX_STATUS_OK;
        default: return bad_usage("attach");
        }
    }
    if (optind + 1 != argc || !disk == !net)
        return bad_usage("attach");
    q.json = json_pack("{s:s}", "command", "attach");
    r = disk ? open_disk(&q, disk, &err) : open_net(&q, net, &err);
    if (r == 0)
        r = send_request(&q, argv[optind], &answer, &err);
    json_decref(q.json);
    if (r < 0) {
        fprintf(stderr, "hvx attach: %s\n", err.text);
        return HVX_STATUS_FAILED;
    }
    if (json) {
        json_dumpf(answer, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
        printf("\n");
    } else {
        const char *id = json_string_value(json_object_get(answer, "id"));
        printf("%s\n", id ? id : "?");
    }
    json_decref(answer);
    return HVX_STATUS_OK;
}

/* 1: there, 0: gone. */
static int still_there(const char *vm, const char *id, struct hvx_error *err)
{
    json_t *q = json_pack("{s:s, s:s}", "command", "attached", "id", id), *answer;
    int r = hvx_control_call(vm, q, &answer, err);

    json_decref(q);
    if (r < 0)
        return r;
    r = json_is_true(json_object_get(answer, "there"));
    json_decref(answer);
    return r;
}

int hvx_cmd_detach(int argc, char **argv)
{
    static const struct option longs[] = {
        {"wait", required_argument, NULL, 'w'}, {"help", no_argument, NULL, 'h'}, {0},
    };
    const struct timespec tick = {0, 50000000};
    struct hvx_error err = {0};
    json_t *q, *answer = NULL;
    int c, r, wait_s = WAIT_S;

    optind = 1;
    opterr = 0;
    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        if (c == 'h') {
            printf("Usage: hvx detach [--wait SECONDS] NAME ID\n"
                   "Ask the guest to let go of a disk or a network card: ID is what `hvx attach` printed, such as\n"
                   "disk1 or net1. Waits for the guest for %d seconds, or as --wait says; 0: not at all.\n", WAIT_S);
            return HVX_STATUS_OK;
        }
        if (c != 'w' || !optarg[0] || optarg[strspn(optarg, "0123456789")] || strlen(optarg) > 6)
            return bad_usage("detach");
        wait_s = atoi(optarg);
    }
    if (optind + 2 != argc)
        return bad_usage("detach");
    q = json_pack("{s:s, s:s}", "command", "detach", "id", argv[optind + 1]);
    r = hvx_control_call(argv[optind], q, &answer, &err);
    json_decref(q);
    json_decref(answer);
    if (r == 0 && wait_s) {
        r = 1;
        for (int i = 0; i < wait_s * 20 && r > 0; i++) {
            nanosleep(&tick, NULL);
            r = still_there(argv[optind], argv[optind + 1], &err);
        }
        if (r > 0)
            hvx_fail(&err, -ETIMEDOUT, "the guest has not let go of %s in %d s; has its system booted, and does it know "
                                       "ACPI hot plug? It may still do so", argv[optind + 1], wait_s);
    }
    if (r != 0) {
        fprintf(stderr, "hvx detach: %s\n", err.text);
        return HVX_STATUS_FAILED;
    }
    return HVX_STATUS_OK;
}
