# SPDX-License-Identifier: Apache-2.0
# Included by plugins/cpu-bt/Makefile.am.
cpu_bt_irqchip_sources = apic.c apic.h ioapic.c pic.c cpuid.c cpuid.h msr.c
