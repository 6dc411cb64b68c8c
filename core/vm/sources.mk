# SPDX-License-Identifier: Apache-2.0
# Files of core/vm, included by core/Makefile.am; paths are relative to core/.
core_vm_sources = vm/vm.h vm/internal.h vm/vm.c vm/loop.c vm/loop.h vm/space.c vm/space.h vm/dispatch.c vm/ram.c \
    vm/pci.c vm/pci.h vm/msix.c vm/irq.c vm/vcpu.c vm/log.c vm/stream.c vm/stream.h vm/state.c vm/stats.c \
    vm/display.c vm/host.c vm/chr.c vm/chr.h vm/machine.c vm/machine.h vm/control.c vm/control.h \
    vm/control_client.c vm/control_path.h vm/balloon.c vm/hotplug.c vm/attach.c vm/disk_spec.c vm/disk_spec.h \
    vm/confine.c vm/confine.h vm/confine_calls.c vm/confine_calls.h vm/tidy.c vm/tidy.h vm/gdb.c vm/gdb.h vm/gdb_proto.c \
    vm/gdb_proto.h vm/gdb_regs.c vm/gdb_mem.c
core_vm_sources += vm/snapshot.h vm/snapshot_file.h vm/snapshot_vm.c vm/save.c vm/restore.c
core_vm_sources += vm/control_talk.c

check_PROGRAMS += vm/test_loop vm/test_space
vm_test_loop_SOURCES = vm/test_loop.c
vm_test_space_SOURCES = vm/test_space.c vm/test_null.h
check_PROGRAMS += vm/test_pci vm/test_vm
vm_test_pci_SOURCES = vm/test_pci.c vm/test_null.h
vm_test_vm_SOURCES = vm/test_vm.c vm/test_null.h
check_PROGRAMS += vm/test_chr vm/test_control
vm_test_chr_SOURCES = vm/test_chr.c
vm_test_control_SOURCES = vm/test_control.c
check_PROGRAMS += vm/test_gdb vm/fuzz_gdb
vm_test_gdb_SOURCES = vm/test_gdb.c
vm_fuzz_gdb_SOURCES = vm/fuzz_gdb.c
vm_fuzz_gdb_LDADD = libhvxcore.a $(FUZZ_LIBS) $(LDADD)
EXTRA_DIST += vm/corpus/fuzz_gdb/start-of-gdb vm/corpus/fuzz_gdb/points-and-steps vm/corpus/fuzz_gdb/memory \
    vm/corpus/fuzz_gdb/narrow
check_PROGRAMS += vm/fuzz_pci
vm_fuzz_pci_SOURCES = vm/fuzz_pci.c
vm_fuzz_pci_LDADD = libhvxcore.a $(FUZZ_LIBS) $(LDADD)
EXTRA_DIST += vm/corpus/fuzz_pci/map-and-notify vm/corpus/fuzz_pci/bars-over-one-another
