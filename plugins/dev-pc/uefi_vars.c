/* SPDX-License-Identifier: Apache-2.0
 *
 * uefi_vars.c - which files UEFI firmware is made of, and the file that keeps
 * a VM's variables: made from the firmware's template when it is missing,
 * locked against a second user, written through to the disk.
 */
#define _GNU_SOURCE
#include "pc.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define OVMF "/usr/share/OVMF/"
#define VARS_MAX (4u << 20)
#define BLOCK 4096u
/* A firmware volume header has its signature here (UEFI PI specification, volume 3, 3.2.1). */
#define FVH_AT 40u

struct uefi_vars {
    char *path; /* NULL: in memory only */
    int fd;
    struct pc_buf contents; /* what there is at the start; empty once read */
    uint32_t bytes;
};

/* --- the pairs of code and template ---------------------------------------------------- */
static const struct uefi_files pairs[] = {
    {OVMF "OVMF_CODE_4M.fd", OVMF "OVMF_VARS_4M.fd"},
    {OVMF "OVMF_CODE.fd", OVMF "OVMF_VARS.fd"},
};

static off_t file_size(const char *path)
{
    struct stat st;
    return path && stat(path, &st) == 0 && S_ISREG(st.st_mode) ? st.st_size : -1;
}

int uefi_pair(const char *vars_path, struct uefi_files *out, struct hvx_error *err)
{
    off_t have = file_size(vars_path);
    bool some = false;
    for (unsigned i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        off_t template = file_size(pairs[i].vars);
        if (template < 0 || access(pairs[i].code, R_OK))
            continue;
        some = true;
        if (have > 0 && have != template)
            continue; /* the variables of an existing VM decide which build it is */
        *out = pairs[i];
        return 0;
    }
    if (some)
        return hvx_fail(err, -EINVAL, "UEFI variables %s: %lld bytes fit none of the firmware in " OVMF
                        "; it is no variables file, or of other firmware (name that with --firmware)",
                        vars_path, (long long)have);
    return hvx_fail(err, -ENOENT, "firmware uefi: there is none in " OVMF "; install the package ovmf");
}

/* OVMF_CODE_4M.fd has OVMF_VARS_4M.fd beside it. */
int uefi_template_of(const char *code, char *vars, size_t n, struct hvx_error *err)
{
    const char *name = strrchr(code, '/');
    const char *at = strstr(name ? name : code, "CODE");
    if (!at)
        return hvx_fail(err, -EINVAL, "firmware %s: UEFI variables need firmware that comes in two files, such as "
                        "OVMF_CODE_4M.fd with OVMF_VARS_4M.fd beside it; say --firmware uefi", code);
    if (strstr(at, ".secboot") || strstr(at, ".ms"))
        return hvx_fail(err, -ENOTSUP, "firmware %s: Secure Boot builds need system management mode, which there is "
                        "not; use OVMF_CODE_4M.fd", code);
    int len = snprintf(vars, n, "%.*sVARS%s", (int)(at - code), code, at + 4);
    if (len < 0 || (size_t)len >= n)
        return hvx_fail(err, -ENAMETOOLONG, "firmware %s: the path is too long", code);
    return 0;
}

/* --- the file ------------------------------------------------------------------------------ */
static int check_contents(const struct pc_buf *b, const char *path, struct hvx_error *err)
{
    if (b->len % BLOCK || b->len <= FVH_AT + 4 || memcmp(b->data + FVH_AT, "_FVH", 4))
        return hvx_fail(err, -EINVAL, "UEFI variables %s: this is no file of UEFI variables; name another, or remove "
                        "it to have a new one made", path);
    return 0;
}

static int write_all(int fd, const uint8_t *p, size_t n, off_t at)
{
    while (n) {
        ssize_t done = pwrite(fd, p, n, at);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done ? -errno : -EIO;
        p += done;
        n -= (size_t)done;
        at += done;
    }
    return 0;
}

static void sync_folder(const char *path)
{
    char folder[4096];
    const char *slash = strrchr(path, '/');
    snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)!fsync(fd);
        close(fd);
    }
}

/* A whole file or none: written under another name and then linked, which never replaces one that came meanwhile. */
static int make_file(const char *path, const struct pc_buf *b, struct hvx_error *err)
{
    char temporary[4096];
    if (snprintf(temporary, sizeof(temporary), "%s.new-%d", path, (int)getpid()) >= (int)sizeof(temporary))
        return hvx_fail(err, -ENAMETOOLONG, "making the UEFI variables %s: the path is too long", path);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int rc = fd < 0 ? -errno : write_all(fd, b->data, b->len, 0);
    if (rc == 0 && fsync(fd))
        rc = -errno;
    if (rc == 0 && link(temporary, path) && errno != EEXIST)
        rc = -errno;
    if (fd >= 0) {
        close(fd);
        unlink(temporary);
    }
    if (rc)
        return hvx_fail(err, rc, "making the UEFI variables %s: %s; name a file in a folder that may be written to",
                        path, strerror(-rc));
    sync_folder(path);
    return 0;
}

/* A write lock on all bytes also meets the byte locks that QEMU takes on its images. */
static int lock_file(int fd, const char *path, struct hvx_error *err)
{
    struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_OFD_SETLK, &all) == 0 || (errno != EAGAIN && errno != EACCES))
        return 0; /* or a file system without locks: nothing to lean on */
    return hvx_fail(err, -EAGAIN, "UEFI variables %s: another virtual machine uses this file; stop it (`hvx ps`), or "
                    "give each its own with --uefi-vars", path);
}

static int open_file(struct uefi_vars *v, const char *template, struct hvx_error *err)
{
    struct pc_buf b = {0};
    int rc = 0;
    v->fd = open(v->path, O_RDWR | O_CLOEXEC);
    if (v->fd < 0 && errno == ENOENT) {
        rc = pc_buf_file(&b, template, VARS_MAX, "template of the UEFI variables", err);
        if (rc == 0)
            rc = check_contents(&b, template, err);
        if (rc == 0)
            rc = make_file(v->path, &b, err);
        pc_buf_free(&b);
        if (rc)
            return rc;
        v->fd = open(v->path, O_RDWR | O_CLOEXEC);
    }
    if (v->fd < 0)
        return hvx_fail(err, -errno, "opening the UEFI variables %s: %s", v->path, strerror(errno));
    rc = lock_file(v->fd, v->path, err);
    return rc ? rc : pc_buf_file(&v->contents, v->path, VARS_MAX, "UEFI variables", err);
}

int uefi_vars_open(const char *path, const char *template, struct uefi_vars **out, struct hvx_error *err)
{
    struct uefi_vars *v = calloc(1, sizeof(*v));
    if (!v)
        return hvx_fail(err, -ENOMEM, "UEFI variables: no memory");
    v->fd = -1;
    int rc = 0;
    if (path) {
        v->path = strdup(path);
        rc = v->path ? open_file(v, template, err) : hvx_fail(err, -ENOMEM, "UEFI variables: no memory");
    } else {
        rc = pc_buf_file(&v->contents, template, VARS_MAX, "template of the UEFI variables", err);
    }
    if (rc == 0)
        rc = check_contents(&v->contents, path ? path : template, err);
    off_t want = file_size(template);
    if (rc == 0 && want >= 0 && (off_t)v->contents.len != want)
        rc = hvx_fail(err, -EINVAL, "UEFI variables %s: it has %zu bytes, the firmware's are %lld; it belongs to other "
                      "firmware", path, v->contents.len, (long long)want);
    if (rc) {
        uefi_vars_close(v);
        return rc;
    }
    v->bytes = (uint32_t)v->contents.len;
    *out = v;
    return 0;
}

void uefi_vars_close(struct uefi_vars *v)
{
    if (!v)
        return;
    if (v->fd >= 0)
        close(v->fd);
    pc_buf_free(&v->contents);
    free(v->path);
    free(v);
}

uint32_t uefi_vars_bytes(const struct uefi_vars *v) { return v->bytes; }

int uefi_vars_read(struct uefi_vars *v, uint8_t *out, struct hvx_error *err)
{
    if (v->contents.len != v->bytes)
        return hvx_fail(err, -EIO, "UEFI variables: they were read already");
    memcpy(out, v->contents.data, v->bytes);
    pc_buf_free(&v->contents);
    return 0;
}

int uefi_vars_write(struct uefi_vars *v, const uint8_t *data, uint32_t at, uint32_t n, struct hvx_error *err)
{
    if (v->fd < 0)
        return 0;
    int rc = write_all(v->fd, data + at, n, at);
    if (rc == 0 && fdatasync(v->fd))
        rc = -errno;
    if (rc)
        return hvx_fail(err, rc, "writing the UEFI variables %s: %s; what the guest changed is lost when the VM ends",
                        v->path, strerror(-rc));
    return 0;
}
