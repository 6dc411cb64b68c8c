/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/disk_spec.c - what --disk and --net say: a part for the back end and
 * a part for the device in front of it.
 */
#define _GNU_SOURCE
#include "core/vm/disk_spec.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

int hvx_spec_append(char *text, size_t size, const char *key, const char *value, const char *where,
                    struct hvx_error *err)
{
    size_t n = strlen(text);

    n += (size_t)snprintf(text + n, size - n, "%s%s%s", n ? "," : "", key, value[0] ? "=" : "");
    for (const char *v = value; *v && n < size; v++) {
        if (*v == ',' && n < size)
            text[n++] = ',';
        if (n < size)
            text[n++] = *v;
    }
    if (n >= size)
        return hvx_fail(err, -E2BIG, "%s: more options than fit into %zu characters", where, size - 1);
    text[n] = 0;
    return 0;
}

/* --- disks ------------------------------------------------------------------------- */

static int yes_no(const char *key, const char *value, bool *out, struct hvx_error *err)
{
    if (!strcmp(value, "on") || !strcmp(value, "yes") || !strcmp(value, "true") || !value[0])
        *out = true;
    else if (!strcmp(value, "off") || !strcmp(value, "no") || !strcmp(value, "false"))
        *out = false;
    else
        return hvx_fail(err, -EINVAL, "--disk: %s=%s: say on or off", key, value);
    return 0;
}

static int media(const char *value, struct hvx_blk_open *open, struct hvx_error *err)
{
    open->cdrom = !strcmp(value, "cdrom");
    if (open->cdrom)
        open->read_only = true;
    else if (strcmp(value, "disk"))
        return hvx_fail(err, -EINVAL, "--disk: media=%s: say disk or cdrom", value);
    return 0;
}

/* What is no option of the disk is one of the device that shows it to the
 * guest; that one says what it knows. */
static int disk_option(struct hvx_disk_spec *d, const char *key, const char *value, struct hvx_error *err)
{
    if (!strcmp(key, "file"))
        d->open.path = value;
    else if (!strcmp(key, "format"))
        d->open.format = value;
    else if (!strcmp(key, "if"))
        d->iface = value;
    else if (!strcmp(key, "cache"))
        d->open.cache = value;
    else if (!strcmp(key, "aio"))
        d->open.aio = value;
    else if (!strcmp(key, "serial"))
        d->open.serial = value;
    else if (!strcmp(key, "snapshot"))
        return yes_no(key, value, &d->open.snapshot, err);
    else if (!strcmp(key, "readonly"))
        return yes_no(key, value, &d->open.read_only, err);
    else if (!strcmp(key, "allow-backing-outside"))
        return yes_no(key, value, &d->open.allow_backing_outside, err);
    else if (!strcmp(key, "media"))
        return media(value, &d->open, err);
    else
        return hvx_spec_append(d->device, sizeof(d->device), key, value, "--disk", err);
    return 0;
}

static const char *format_of_name(const char *path)
{
    const char *dot = strrchr(path, '.');

    if (dot && (!strcasecmp(dot, ".qcow2") || !strcasecmp(dot, ".qcow")))
        return "qcow2";
    if (dot && (!strcasecmp(dot, ".raw") || !strcasecmp(dot, ".img") || !strcasecmp(dot, ".iso")))
        return "raw";
    return NULL;
}

/* file=PATH,format=F,...; the first part may be a plain path. A comma in a
 * value is doubled. */
int hvx_disk_spec_parse(const char *text, struct hvx_disk_spec *d, struct hvx_error *err)
{
    char *in, *part;
    bool first = true;

    memset(d, 0, sizeof(*d));
    d->text = strdup(text);
    if (!d->text)
        return hvx_fail(err, -ENOMEM, "--disk: out of memory");
    for (part = in = d->text; part; first = false) {
        char *out = part, *eq, *next = NULL;
        int r;
        for (in = part; *in; in++) {
            if (*in == ',' && in[1] != ',') {
                next = in + 1;
                break;
            }
            if (*in == ',')
                in++;
            *out++ = *in;
        }
        *out = 0;
        eq = strchr(part, '=');
        if (first && (!eq || strchr(part, '/') < eq) && (!eq || strchr(part, '/')))
            r = disk_option(d, "file", part, err);
        else if (!eq)
            r = disk_option(d, part, "", err);
        else {
            *eq = 0;
            r = disk_option(d, part, eq + 1, err);
        }
        if (r < 0)
            return r;
        part = next;
    }
    if (!d->open.path || !d->open.path[0])
        return hvx_fail(err, -EINVAL, "--disk %s: no file is named; say --disk PATH or --disk file=PATH,...", text);
    if (!d->open.format)
        d->open.format = format_of_name(d->open.path);
    if (!d->open.format)
        return hvx_fail(err, -EINVAL,
                        "--disk %s: the name does not tell the format (.qcow2, .raw, .img do); add format=raw or "
                        "format=qcow2",
                        text);
    return 0;
}

/* --- networks ---------------------------------------------------------------------- */

int hvx_net_spec_split(const char *text, struct hvx_net_words *out, struct hvx_error *err)
{
    static const char *const own[] = {"hostfwd", "mac", "net", "restrict", "ifname", "fd"};
    char *copy = strdup(text), *save = NULL;
    int r = 0;

    memset(out, 0, sizeof(*out));
    if (!copy)
        return hvx_fail(err, -ENOMEM, "--net: out of memory");
    for (char *word = strtok_r(copy, ",", &save); word && r == 0; word = strtok_r(NULL, ",", &save)) {
        size_t n = strcspn(word, "=");
        bool mine = !out->backend[0]; /* the first word is the kind */
        for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
            mine |= strlen(own[i]) == n && !strncmp(own[i], word, n);
        if (!mine && n == 5 && !strncmp(word, "model", n)) {
            snprintf(out->model, sizeof(out->model), "%s", word[n] ? word + n + 1 : "");
            continue;
        }
        const char *value = word[n] ? word + n + 1 : "";
        word[n] = 0;
        if (mine)
            r = hvx_spec_append(out->backend, sizeof(out->backend), word, value, "--net", err);
        else
            r = hvx_spec_append(out->device, sizeof(out->device), word, value, "--net", err);
    }
    free(copy);
    return r;
}
