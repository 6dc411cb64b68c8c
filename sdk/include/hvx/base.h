/* SPDX-License-Identifier: Apache-2.0
 *
 * hvx/base.h - what every public header shares: errors, attributes, versions.
 *
 * Errors live in three worlds:
 *   host trouble        a function returns -errno and fills a caller-owned
 *                       struct hvx_error with a sentence for a person;
 *   guest misbehaviour  the device or engine gives the architectural answer
 *                       and reports a rate-limited event; the VM lives on;
 *   our own bug         assert().
 * Outputs stay untouched on failure. destroy(NULL) is always fine.
 */
#ifndef HVX_BASE_H
#define HVX_BASE_H

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/uio.h>

#ifdef __cplusplus
#define HVX_EXTERN_C_BEGIN extern "C" {
#define HVX_EXTERN_C_END }
#define HVX_STATIC_ASSERT(c, m) static_assert(c, m)
#else
#define HVX_EXTERN_C_BEGIN
#define HVX_EXTERN_C_END
#define HVX_STATIC_ASSERT(c, m) _Static_assert(c, m)
#endif

#define HVX_WUR __attribute__((warn_unused_result))
#define HVX_PRINTF(f, a) __attribute__((format(printf, f, a)))

HVX_EXTERN_C_BEGIN

/* A message to a person: what was being done, with what, what went wrong and
 * what to try. Owned by the caller; `code` repeats the -errno returned. */
struct hvx_error {
    int code;
    char text[500];
};

/* Fill err (may be NULL) and return code, so that a caller can write
 *     return hvx_fail(err, -EINVAL, "disk %s: ...", path); */
HVX_PRINTF(3, 4)
static inline int hvx_fail(struct hvx_error *err, int code, const char *fmt, ...)
{
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(err->text, sizeof(err->text), fmt, ap);
        va_end(ap);
        err->code = code;
    }
    return code;
}

/* Opaque objects of the core; a plugin only passes them back. */
struct hvx_vm;        /* one virtual machine */
struct hvx_pci_dev;   /* a function on a PCI bus */
struct hvx_region;    /* a claimed range of ports or guest-physical addresses */
struct hvx_timer;     /* a timer on the VM's event loop */
struct hvx_watch;     /* a watched file descriptor on the VM's event loop */
struct hvx_blk;       /* an opened disk image */
struct hvx_nic;       /* a port on a virtual network */
struct hvx_chr;       /* a character stream: serial line, console */
struct hvx_display;   /* a registered display */
struct hvx_config;    /* parsed options of one instance, see option.h */
struct hvx_stream;    /* a saved-state stream, see state.h */

HVX_EXTERN_C_END
#endif
