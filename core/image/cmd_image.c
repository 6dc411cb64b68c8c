/* SPDX-License-Identifier: Apache-2.0
 *
 * cmd_image.c - hvx image create|info|check|convert
 */
#define _GNU_SOURCE
#include "core/image/cmd.h"
#include "core/image/blk.h"

#include <getopt.h>
#include <jansson.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static const char usage_text[] =
    "usage: hvx image create [-f qcow2|raw] [-b BACKING -F FORMAT] [-o OPTIONS] [--force] FILE [SIZE]\n"
    "       hvx image info [--json] [-f FORMAT] FILE\n"
    "       hvx image check [--json] [--repair] [-f FORMAT] FILE\n"
    "       hvx image convert -f FORMAT -O FORMAT [-o OPTIONS] [--quiet] [--force] [--allow-backing-outside]\n"
    "                         FILE NEW\n"
    "SIZE takes the suffixes K, M, G and T. OPTIONS of qcow2: cluster_size=64K, refcount_bits=16,\n"
    "compat=1.1|0.10, lazy_refcounts=on|off. See hvx-image(1).\n";

bool hvx_image_parse_size(const char *text, uint64_t *out)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    unsigned shift = 0;
    if (end == text || *text == '-' || errno)
        return false;
    switch (*end) {
    case 'k':
    case 'K': shift = 10; break;
    case 'm':
    case 'M': shift = 20; break;
    case 'g':
    case 'G': shift = 30; break;
    case 't':
    case 'T': shift = 40; break;
    case 0: break;
    default: return false;
    }
    if ((shift && end[1]) || v > (uint64_t)INT64_MAX >> shift)
        return false;
    *out = (uint64_t)v << shift;
    return true;
}

static int parse_create_key(const char *key, const char *value, struct hvx_qcow2_create *c, struct hvx_error *err)
{
    uint64_t v;
    if (!strcmp(key, "cluster_size") && hvx_image_parse_size(value, &v) && v <= 2u << 20) {
        c->cluster_bytes = (uint32_t)v;
        return 0;
    }
    if (!strcmp(key, "refcount_bits") && hvx_image_parse_size(value, &v) && v <= 64) {
        c->refcount_bits = (uint32_t)v;
        return 0;
    }
    if (!strcmp(key, "compat") && (!strcmp(value, "1.1") || !strcmp(value, "0.10"))) {
        c->version = !strcmp(value, "1.1") ? 3 : 2;
        return 0;
    }
    if (!strcmp(key, "lazy_refcounts") && (!strcmp(value, "on") || !strcmp(value, "off"))) {
        c->lazy_refcounts = !strcmp(value, "on");
        return 0;
    }
    return hvx_fail(err, -EINVAL, "-o %s=%s is not understood; known are cluster_size=512..2M, refcount_bits=1..64, "
                    "compat=1.1|0.10 and lazy_refcounts=on|off", key, value);
}

int hvx_image_parse_create(const char *text, struct hvx_qcow2_create *c, struct hvx_error *err)
{
    char copy[512], *save = NULL;
    if (!text)
        return 0;
    if (strlen(text) >= sizeof(copy))
        return hvx_fail(err, -EINVAL, "-o: too long");
    strcpy(copy, text);
    for (char *w = strtok_r(copy, ",", &save); w; w = strtok_r(NULL, ",", &save)) {
        char *value = strchr(w, '=');
        if (!value)
            return hvx_fail(err, -EINVAL, "-o %s: needs a value", w);
        *value++ = 0;
        int r = parse_create_key(w, value, c, err);
        if (r)
            return r;
    }
    return 0;
}

/* Without -f: by the magic. Safe here: nothing below the image is opened. */
static const char *format_of(const struct hvx_image_options *o)
{
    uint32_t magic = 0;
    if (o->format)
        return o->format;
    FILE *f = fopen(o->args[0], "re");
    if (!f)
        return "raw"; /* the open that follows says why */
    if (fread(&magic, sizeof(magic), 1, f) != 1)
        magic = 0;
    fclose(f);
    return magic == __builtin_bswap32(0x514649fbu) ? "qcow2" : "raw";
}

/* --- create ---------------------------------------------------------------------- */
/* The size of an overlay is that of its backing file. */
static int backing_size(const struct hvx_image_options *o, uint64_t *bytes, struct hvx_error *err)
{
    char path[4096];
    const char *slash = strrchr(o->args[0], '/');
    if (!o->backing_format)
        return hvx_fail(err, -EINVAL,
                        "say the format of the backing file with -F raw or -F qcow2; it is never guessed");
    if (o->backing[0] == '/' || !slash)
        snprintf(path, sizeof(path), "%s", o->backing);
    else
        snprintf(path, sizeof(path), "%.*s/%s", (int)(slash - o->args[0]), o->args[0], o->backing);
    struct hvx_image_open p = {.path = path, .format = o->backing_format, .no_backing = true};
    struct hvx_image *img;
    int r = hvx_image_open(&p, &img, err);
    if (r)
        return r;
    *bytes = img->bytes;
    hvx_image_close(img);
    return 0;
}

static int create_file(const struct hvx_image_options *o, const char *format, const struct hvx_qcow2_create *c,
                       struct hvx_error *err)
{
    const char *path = o->args[0];
    struct hvx_file *f;
    bool existed = access(path, F_OK) == 0;
    if (existed && !o->force)
        return hvx_fail(err, -EEXIST, "%s exists; remove it first, or say --force to overwrite it", path);
    int r = hvx_file_open(path, HVX_FILE_WRITE | HVX_FILE_CREATE, &f, err);
    if (r)
        return r;
    if (!strcmp(format, "qcow2")) {
        r = hvx_qcow2_create(f, c, err);
    } else {
        r = f->ops->truncate(f, c->bytes);
        if (r)
            hvx_fail(err, r, "cannot give %s a size of %llu bytes: %s", path, (unsigned long long)c->bytes,
                     strerror(-r));
    }
    if (!r && (r = hvx_file_flush(f)))
        hvx_fail(err, r, "cannot write %s: %s", path, strerror(-r));
    hvx_file_close(f);
    if (r && !existed)
        unlink(path);
    return r;
}

static int cmd_create(const struct hvx_image_options *o, struct hvx_error *err)
{
    const char *format = o->format ? o->format : "qcow2";
    struct hvx_qcow2_create c = {.backing_name = o->backing, .backing_format = o->backing_format};
    if (!hvx_image_format(format))
        return hvx_fail(err, -EINVAL, "unknown image format \"%s\"; known are raw and qcow2", format);
    if (!strcmp(format, "raw") && (o->backing || o->options))
        return hvx_fail(err, -EINVAL, "a raw image takes neither a backing file nor options");
    int r = hvx_image_parse_create(o->options, &c, err);
    if (!r && o->backing)
        r = backing_size(o, &c.bytes, err);
    if (!r && o->n_args < 2 && !o->backing)
        return hvx_fail(err, -EINVAL, "how large shall it be? For example: hvx image create %s 10G", o->args[0]);
    if (!r && o->n_args == 2 && !hvx_image_parse_size(o->args[1], &c.bytes))
        return hvx_fail(err, -EINVAL, "\"%s\" is not a size; write it like 512M or 10G", o->args[1]);
    c.bytes = (c.bytes + 511) & ~511ull;
    return r ? r : create_file(o, format, &c, err);
}

/* --- info -------------------------------------------------------------------------- */
static void put(json_t *o, const char *key, json_t *value)
{
    json_object_set_new(o, key, value);
}

static void info_json(struct hvx_image *img, uint64_t on_disk, const struct hvx_qcow2_info *q)
{
    json_t *o = json_object();
    put(o, "filename", json_string(img->file->name));
    put(o, "format", json_string(img->ops->name));
    put(o, "virtual-size", json_integer((json_int_t)img->bytes));
    put(o, "actual-size", json_integer((json_int_t)on_disk));
    if (q) {
        put(o, "cluster-size", json_integer(q->cluster_bytes));
        put(o, "compat", json_string(q->version == 3 ? "1.1" : "0.10"));
        put(o, "refcount-bits", json_integer(q->refcount_bits));
        put(o, "compression-type", json_string(q->zstd ? "zstd" : "zlib"));
        put(o, "lazy-refcounts", json_boolean(q->lazy_refcounts));
        put(o, "dirty-flag", json_boolean(q->dirty));
        put(o, "corrupt", json_boolean(q->corrupt));
        put(o, "snapshots", json_integer(q->n_snapshots));
    }
    if (img->backing_name[0]) {
        put(o, "backing-filename", json_string(img->backing_name));
        if (img->backing_format[0])
            put(o, "backing-filename-format", json_string(img->backing_format));
    }
    json_dumpf(o, stdout, JSON_INDENT(2));
    puts("");
    json_decref(o);
}

static void print_size(const char *label, uint64_t v)
{
    static const char *const unit[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double d = (double)v;
    unsigned i = 0;
    for (; d >= 1024 && i < 6; i++)
        d /= 1024;
    printf("%-16s %.4g %s (%llu bytes)\n", label, d, unit[i], (unsigned long long)v);
}

static void info_text(struct hvx_image *img, uint64_t on_disk, const struct hvx_qcow2_info *q)
{
    printf("%-16s %s\n%-16s %s\n", "image:", img->file->name, "format:", img->ops->name);
    print_size("disk size:", img->bytes);
    print_size("stored:", on_disk);
    if (q) {
        print_size("cluster size:", q->cluster_bytes);
        printf("%-16s %s (version %u)\n", "compat:", q->version == 3 ? "1.1" : "0.10", q->version);
        printf("%-16s %u\n%-16s %s\n", "refcount bits:", q->refcount_bits, "compression:", q->zstd ? "zstd" : "zlib");
        printf("%-16s %u\n", "snapshots:", q->n_snapshots);
        if (q->dirty)
            printf("%-16s not closed properly; the next start repairs it\n", "state:");
        if (q->corrupt)
            printf("%-16s damaged; see hvx image check\n", "state:");
    }
    if (img->backing_name[0])
        printf("%-16s %s (format %s)\n", "backing file:", img->backing_name,
               img->backing_format[0] ? img->backing_format : "not named");
}

static void no_warning(const char *text)
{
    (void)text;
}

/* With the backing name, but without opening it. */
static int open_alone(const struct hvx_image_options *o, unsigned file_flags, struct hvx_image **out,
                      struct hvx_error *err)
{
    struct hvx_file *f;
    int r = hvx_file_open(o->args[0], file_flags, &f, err);
    hvx_image_warn = no_warning; /* the command itself says what it finds */
    return r ? r : hvx_image_open_file(f, format_of(o), HVX_IMAGE_FOR_CHECK, out, err);
}

static int cmd_info(const struct hvx_image_options *o, struct hvx_error *err)
{
    struct hvx_image *img;
    struct stat st;
    struct hvx_qcow2_info q;
    int r = open_alone(o, HVX_FILE_NO_LOCK, &img, err); /* looking does no harm, even while it runs */
    if (r)
        return r;
    bool qcow2 = img->ops == &hvx_image_qcow2;
    uint64_t on_disk = !fstat(img->file->fd, &st) && S_ISREG(st.st_mode) ? (uint64_t)st.st_blocks * 512 : img->bytes;
    if (qcow2)
        hvx_qcow2_get_info(img, &q);
    if (o->json)
        info_json(img, on_disk, qcow2 ? &q : NULL);
    else
        info_text(img, on_disk, qcow2 ? &q : NULL);
    hvx_image_close(img);
    return 0;
}

/* --- check --------------------------------------------------------------------------- */
static void print_line(void *opaque, const char *line)
{
    fprintf(opaque, "%s\n", line);
}

static void check_json(const struct hvx_image *img, const struct hvx_image_check *c)
{
    json_t *o = json_object();
    put(o, "filename", json_string(img->file->name));
    put(o, "format", json_string(img->ops->name));
    put(o, "check-errors", json_integer((json_int_t)c->check_errors));
    put(o, "corruptions", json_integer((json_int_t)c->corruptions));
    put(o, "leaks", json_integer((json_int_t)c->leaks));
    put(o, "corruptions-fixed", json_integer((json_int_t)c->corruptions_fixed));
    put(o, "leaks-fixed", json_integer((json_int_t)c->leaks_fixed));
    put(o, "total-clusters", json_integer((json_int_t)c->clusters));
    put(o, "allocated-clusters", json_integer((json_int_t)c->allocated));
    put(o, "compressed-clusters", json_integer((json_int_t)c->compressed));
    put(o, "image-end-offset", json_integer((json_int_t)c->end_bytes));
    json_dumpf(o, stdout, JSON_INDENT(2));
    puts("");
    json_decref(o);
}

static void check_text(const struct hvx_image_check *c)
{
    if (c->corruptions_fixed || c->leaks_fixed)
        printf("Repaired: %llu errors, %llu leaked clusters.\n", (unsigned long long)c->corruptions_fixed,
               (unsigned long long)c->leaks_fixed);
    if (c->corruptions)
        printf("%llu errors were found: the image is damaged. Work on a copy; what the tables say wrongly cannot be "
               "restored.\n", (unsigned long long)c->corruptions);
    if (c->check_errors)
        printf("%llu tables could not be read.\n", (unsigned long long)c->check_errors);
    if (c->leaks)
        printf("%llu leaked clusters were found: space is lost, data are not. --repair gives it back.\n",
               (unsigned long long)c->leaks);
    if (!c->corruptions && !c->check_errors && !c->leaks)
        puts("No errors.");
    if (c->clusters)
        printf(
            "%llu of %llu clusters are stored (%.2f%%), %llu of them compressed; the file is used up to byte %llu.\n",
            (unsigned long long)c->allocated, (unsigned long long)c->clusters,
            100.0 * (double)c->allocated / (double)c->clusters, (unsigned long long)c->compressed,
            (unsigned long long)c->end_bytes);
}

static int cmd_check(const struct hvx_image_options *o, struct hvx_error *err)
{
    struct hvx_image *img;
    struct hvx_image_check c;
    int r = open_alone(o, o->repair ? HVX_FILE_WRITE : 0, &img, err);
    if (r)
        return r;
    r = img->ops->check(img, o->repair, &c, print_line, o->json ? stderr : stdout);
    if (r) {
        hvx_fail(err, r, "cannot check %s: %s%s", o->args[0], strerror(-r),
                 r == -EFBIG ? " (it has more than 2^28 clusters)" : "");
    } else {
        if (o->json)
            check_json(img, &c);
        else
            check_text(&c);
        r = c.corruptions || c.check_errors ? IMAGE_CORRUPT : c.leaks ? IMAGE_LEAKS : IMAGE_OK;
    }
    hvx_image_close(img);
    return r;
}

/* --- the command line ------------------------------------------------------------------ */
static const struct command {
    const char *name;
    int (*run)(const struct hvx_image_options *o, struct hvx_error *err); /* 0, a verdict, or -errno */
    unsigned min, max;
    const char *letters; /* options that make sense here */
} commands[] = {
    {"create", cmd_create, 1, 2, "fbFoX"},
    {"info", cmd_info, 1, 1, "fj"},
    {"check", cmd_check, 1, 1, "fjr"},
    {"convert", hvx_image_convert, 2, 2, "fOoqAX"},
};

static const struct option long_options[] = {
    {"json", no_argument, NULL, 'j'},  {"repair", no_argument, NULL, 'r'},
    {"force", no_argument, NULL, 'X'}, {"allow-backing-outside", no_argument, NULL, 'A'},
    {"quiet", no_argument, NULL, 'q'}, {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static bool set_option(struct hvx_image_options *o, int c)
{
    switch (c) {
    case 'f': o->format = optarg; return true;
    case 'O': o->out_format = optarg; return true;
    case 'b': o->backing = optarg; return true;
    case 'F': o->backing_format = optarg; return true;
    case 'o': o->options = optarg; return true;
    case 'j': o->json = true; return true;
    case 'r': o->repair = true; return true;
    case 'X': o->force = true; return true;
    case 'A': o->allow_backing_outside = true; return true;
    case 'q': o->quiet = true; return true;
    default: return false;
    }
}

static int usage(FILE *to)
{
    fputs(usage_text, to);
    return to == stdout ? IMAGE_OK : IMAGE_USAGE;
}

int hvx_image_main(int argc, char **argv)
{
    const struct command *cmd = NULL;
    struct hvx_image_options o = {0};
    struct hvx_error err = {0};
    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")))
        return usage(stdout);
    for (size_t i = 0; argc > 1 && i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (!strcmp(argv[1], commands[i].name))
            cmd = &commands[i];
    }
    if (!cmd)
        return usage(stderr);
    optind = 0;
    for (int c; (c = getopt_long(argc - 1, argv + 1, "f:O:b:F:o:h", long_options, NULL)) != -1;) {
        if (c == 'h')
            return usage(stdout);
        if (c == '?' || !strchr(cmd->letters, c) || !set_option(&o, c))
            return usage(stderr);
    }
    char **rest = argv + 1 + optind;
    unsigned n = (unsigned)(argc - 1 - optind);
    if (n < cmd->min || n > cmd->max)
        return usage(stderr);
    for (; o.n_args < n; o.n_args++)
        o.args[o.n_args] = rest[o.n_args];
    int r = cmd->run(&o, &err);
    if (r >= 0)
        return r;
    fprintf(stderr, "hvx image %s: %s\n", cmd->name, err.text[0] ? err.text : strerror(-r));
    return IMAGE_FAILED;
}
