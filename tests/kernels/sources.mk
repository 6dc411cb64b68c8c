# SPDX-License-Identifier: Apache-2.0
# Test kernels: freestanding, built by rules of their own, since neither the flags nor the format of our programs suit.
KERNEL_FLAGS = -std=gnu11 -O1 -Wall -Wextra -ffreestanding -nostdlib -fno-pic -fno-pie -fno-stack-protector \
    -fno-asynchronous-unwind-tables -mgeneral-regs-only -fcf-protection=none
KERNEL_FLAGS_32 = -m32 $(KERNEL_FLAGS)
KERNEL_FLAGS_64 = -m64 -mno-red-zone -mcmodel=small $(KERNEL_FLAGS)
KERNELS_32 = kernels/t32_except.elf kernels/t32_paging.elf kernels/t32_segments.elf kernels/t32_irq.elf kernels/t32_modes.elf \
    kernels/bad_ports.elf kernels/bad_triple.elf kernels/bad_flood.elf
KERNELS_64 = kernels/t64_cpu.elf kernels/t64_modes.elf kernels/t64_model.elf kernels/t64_mm.elf kernels/t64_smc.elf kernels/t64_apic.elf kernels/t64_smp.elf \
    kernels/t64_fpu.elf kernels/t64_strings.elf kernels/t64_async.elf kernels/t64_returns.elf \
    kernels/t64_smp_chains.elf kernels/t64_smp_direct.elf kernels/t64_direct_random.elf
KERNEL_BOOT = kernels/realmode.img
kernel_common = kernels/tk.c kernels/tk.h kernels/kernel.ld
check_DATA = $(KERNELS_32) $(KERNELS_64) $(KERNEL_BOOT)
CLEANFILES += $(check_DATA)
EXTRA_DIST += $(kernel_common) kernels/start32.S kernels/start64.S $(KERNELS_32:.elf=.c) $(KERNELS_64:.elf=.c) \
    $(KERNEL_BOOT:.img=.S)

$(KERNELS_32): kernels/%.elf: kernels/%.c $(kernel_common) kernels/start32.S
	$(AM_V_GEN)$(MKDIR_P) kernels && $(CC) $(KERNEL_FLAGS_32) -Wl,-m,elf_i386,--build-id=none,--no-warn-rwx-segments \
	    -static -T $(srcdir)/kernels/kernel.ld -o $@ $(srcdir)/kernels/start32.S $< $(srcdir)/kernels/tk.c
# Multiboot loaders want 32-bit ELF files: the 64-bit code is wrapped, its addresses are below 4 GiB anyway.
$(KERNELS_64): kernels/%.elf: kernels/%.c $(kernel_common) kernels/start64.S
	$(AM_V_GEN)$(MKDIR_P) kernels && $(CC) $(KERNEL_FLAGS_64) \
	    -Wl,-m,elf_x86_64,-z,max-page-size=4096,--build-id=none,--no-warn-rwx-segments \
	    -static -T $(srcdir)/kernels/kernel.ld -o $@.64 $(srcdir)/kernels/start64.S $< $(srcdir)/kernels/tk.c && \
	    objcopy -I elf64-x86-64 -O elf32-i386 $@.64 $@ && rm -f $@.64
# SeaBIOS takes no virtio disk of a few sectors for bootable.
$(KERNEL_BOOT): kernels/%.img: kernels/%.S
	$(AM_V_GEN)$(MKDIR_P) kernels && $(CC) -m32 -nostdlib -static \
	    -Wl,-m,elf_i386,--build-id=none,-Ttext=0x7c00,--oformat=binary -o $@ $< && truncate -s 1M $@

dist_check_SCRIPTS += kernels/kernels.py
