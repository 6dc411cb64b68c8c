# SPDX-License-Identifier: Apache-2.0
# Files of core/net, included by core/Makefile.am; paths are relative to core/.
core_net_sources = net/net.h net/net.c net/port.h net/spec.c net/user.c net/tap.c net/csum.h net/csum.c net/gso.h \
    net/gso.c
