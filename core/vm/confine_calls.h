/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/confine_calls.h - the seccomp filters, for confine.c.
 */
#ifndef HVX_CORE_CONFINE_CALLS_H
#define HVX_CORE_CONFINE_CALLS_H

#include "core/vm/confine.h"

#include <sys/syscall.h>

/* The run-time of AddressSanitizer reads files and traces its own threads. */
#if defined(__SANITIZE_ADDRESS__)
#define HVX_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HVX_SANITIZED 1
#endif
#endif
#ifndef HVX_SANITIZED
#define HVX_SANITIZED 0
#endif

/* A call that is answered with the process's death at once: what a violation's handler ends with. */
#define HVX_CONFINE_DEADLY_CALL SYS_execveat

/* Build the profile's filter and put it on every thread. Returns 0 or -errno. */
HVX_WUR int hvx_confine_load(enum hvx_confine_profile profile);
/* "" when it has no name. Safe in a signal handler after hvx_confine_load(). */
const char *hvx_confine_call_name(unsigned nr);

#endif
