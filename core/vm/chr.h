/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/chr.h - character back ends: stdio (raw terminal, ^] escape),
 * file:PATH, unix:PATH (server), null. Bounded buffers; a guest that floods
 * the line is slowed down (chr_write takes less), never the host.
 */
#ifndef HVX_CORE_CHR_H
#define HVX_CORE_CHR_H

#include "core/vm/loop.h"
#include <hvx/host.h>

/* on_escape is called when the person leaves with ^] (doubled to send). */
HVX_WUR int hvx_chr_open(struct hvx_loop *loop, const char *spec, void (*on_escape)(void *opaque), void *opaque,
                         struct hvx_chr **out, struct hvx_error *err);
void hvx_chr_close(struct hvx_chr *c); /* restores the terminal */
void hvx_chr_set_guest(struct hvx_chr *c, const struct hvx_chr_ops *ops, void *opaque); /* NULL detaches */
size_t hvx_chr_write(struct hvx_chr *c, const uint8_t *buf, size_t n);
void hvx_chr_rx_ready(struct hvx_chr *c);
#endif
