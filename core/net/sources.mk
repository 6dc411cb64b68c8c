# SPDX-License-Identifier: Apache-2.0
# Files of core/net, included by core/Makefile.am; paths are relative to core/.
core_net_sources = net/net.h net/net.c net/port.h net/spec.c net/user.c net/user.h net/user_slirp.c net/link.c \
    net/link.h net/tap.c net/csum.h net/csum.c net/gso.h \
    net/gso.c

check_PROGRAMS += net/test_offload net/test_user net/fuzz_gso
net_test_offload_SOURCES = net/test_offload.c
net_test_user_SOURCES = net/test_user.c
net_fuzz_gso_SOURCES = net/fuzz_gso.c
net_fuzz_gso_LDADD = libhvxcore.a $(FUZZ_LIBS) $(LDADD)
check_PROGRAMS += net/test_tap
net_test_tap_SOURCES = net/test_tap.c
EXTRA_DIST += net/corpus/fuzz_gso/tcp4 net/corpus/fuzz_gso/tcp6-vlan-extension net/corpus/fuzz_gso/checksum
