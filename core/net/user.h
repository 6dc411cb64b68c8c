/* SPDX-License-Identifier: Apache-2.0
 *
 * user.h - the two halves of user networking: the back end in the VM's process
 * (user.c) and the process that has the sockets (user_slirp.c).
 */
#ifndef HVX_NET_USER_H
#define HVX_NET_USER_H

#include "core/net/port.h"

/* The life of that process. First it answers with a struct hvx_error over fd,
 * code 0 when all is well; then fd carries frames (link.h), until its end. */
__attribute__((noreturn)) void hvx_net_user_main(int fd, const struct hvx_net_spec *spec);

#endif
