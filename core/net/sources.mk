# SPDX-License-Identifier: Apache-2.0
# Files of core/net, included by core/Makefile.am; paths are relative to core/.
core_net_sources = net/net.h
