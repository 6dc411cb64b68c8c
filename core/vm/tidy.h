/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/tidy.h - files that exist only while a VM runs: sockets.
 *
 * A confined process cannot remove them. hvx_tidy_start() forks a process that
 * waits for this one's end, whichever way it comes, and removes them then.
 */
#ifndef HVX_CORE_TIDY_H
#define HVX_CORE_TIDY_H

#include <hvx/base.h>

#define HVX_TIDY_MAX 16u

/* `path` has just been made. A file that stands there later but is another one is left alone. */
void hvx_tidy_add(const char *path);
/* Remove it: now, or at the end when hvx_tidy_start() has been called. */
void hvx_tidy_remove(const char *path);
HVX_WUR int hvx_tidy_start(struct hvx_error *err);
/* Let it do its work, and wait for that. */
void hvx_tidy_finish(void);

#endif
