/* SPDX-License-Identifier: Apache-2.0
 *
 * core/net/net.h - first-cut network back ends: user (libslirp) and TAP, one
 * per guest NIC. hSwitch replaces the wiring later, not the NIC interface.
 *
 * Specification text as given to --net:
 *   none
 *   user[,hostfwd=tcp|udp:[HOSTADDR]:HOSTPORT-[GUESTADDR]:GUESTPORT][,mac=..][,net=10.0.2.0/24][,restrict=on]
 *   tap[,ifname=NAME][,mac=..][,fd=N]
 * hostfwd may be repeated.
 */
#ifndef HVX_CORE_NET_H
#define HVX_CORE_NET_H

#include "core/vm/loop.h"
#include <hvx/host.h>

struct hvx_net;
HVX_WUR int hvx_net_open(struct hvx_loop *loop, const char *spec, unsigned index, struct hvx_net **out,
                         struct hvx_error *err);
void hvx_net_close(struct hvx_net *n);
/* For a VM that cannot do so itself: open what "tap,..." or "user,..." means, a
 * TAP device or the line to a process of user networking, which then lives as
 * long as its line does. The descriptor (fd= of a specification), or -errno. */
int hvx_net_open_fd(const char *spec, struct hvx_error *err);
/* A locally administered address that stays the same for a VM's name and the
 * NIC's number. hvx_net_open() uses an empty name; hvx_net_name_vm(), called
 * before a NIC attaches, uses the VM's, unless mac= was given. */
void hvx_net_default_mac(const char *vm_name, unsigned index, uint8_t mac[6]);
void hvx_net_name_vm(struct hvx_net *n, const char *vm_name, unsigned index);
/* The port's guest side; implements nic_* of hvx/host.h. */
HVX_WUR int hvx_nic_attach(struct hvx_net *n, const struct hvx_nic_ops *ops, void *opaque, struct hvx_nic **out,
                           struct hvx_error *err);
void hvx_nic_detach(struct hvx_nic *n);
void hvx_nic_mac(struct hvx_nic *n, uint8_t mac[6]);
void hvx_nic_set_caps(struct hvx_nic *n, uint32_t can);
void hvx_nic_send(struct hvx_nic *n, const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta);
void hvx_nic_rx_ready(struct hvx_nic *n);
uint32_t hvx_nic_mtu(struct hvx_nic *n);
void hvx_net_stats(struct hvx_net *n, void (*fn)(void *o, const char *name, uint64_t v, const char *unit), void *o);
#endif
