/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/net_weak.h - networks are optional for linking: a program without
 * them has VMs without networks.
 */
#pragma weak hvx_net_open
#pragma weak hvx_net_close
#pragma weak hvx_net_stats
#pragma weak hvx_nic_attach
#pragma weak hvx_nic_detach
#pragma weak hvx_nic_mac
#pragma weak hvx_nic_set_caps
#pragma weak hvx_nic_send
#pragma weak hvx_nic_rx_ready
#pragma weak hvx_nic_mtu
