# SPDX-License-Identifier: Apache-2.0
# Included by plugins/cpu-bt/Makefile.am.
cpu_bt_irqchip_sources = apic.c apic.h ioapic.c pic.c cpuid.c cpuid.h msr.c

check_PROGRAMS += test_irqchip test_cpuid_msr
test_irqchip_SOURCES = test_irqchip.c test_stubs.h $(cpu_bt_irqchip_sources)
test_irqchip_LDADD = $(CMOCKA_LIBS)
test_cpuid_msr_SOURCES = test_cpuid_msr.c test_stubs.h $(cpu_bt_irqchip_sources)
test_cpuid_msr_LDADD = $(CMOCKA_LIBS)
