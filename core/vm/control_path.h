/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/control_path.h - where control sockets live; shared by both sides.
 */
#ifndef HVX_CORE_CONTROL_PATH_H
#define HVX_CORE_CONTROL_PATH_H

#include "core/vm/control.h"
#include <sys/un.h>

HVX_WUR int hvx_control_address(const char *name, bool create, struct sockaddr_un *a, struct hvx_error *err);
bool hvx_control_alive(const struct sockaddr_un *a);

#endif
