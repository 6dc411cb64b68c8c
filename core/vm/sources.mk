# SPDX-License-Identifier: Apache-2.0
# Files of core/vm, included by core/Makefile.am; paths are relative to core/.
core_vm_sources = vm/loop.h vm/chr.h
