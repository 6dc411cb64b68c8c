# SPDX-License-Identifier: Apache-2.0
# Tests that boot real guests. The short ones are part of make check; make acceptance runs the long ones.
dist_check_SCRIPTS += boot/bad-guests.py boot/boot-initramfs.py boot/devices.py boot/boot-small.py \
    boot/boot-i386.py boot/boot-uefi.py
dist_check_SCRIPTS += boot/save-short.py boot/direct-losses.py boot/boot-warm.py
EXTRA_DIST += boot/vm.py boot/guest.py boot/acceptance.py boot/acceptance-matrix.py boot/saved.py \
    boot/save-restore.py boot/resident.py

.PHONY: acceptance
acceptance:
	top_srcdir='$(abs_top_srcdir)' top_builddir='$(abs_top_builddir)' python3 $(srcdir)/boot/acceptance.py $(ACCEPTANCE_FLAGS)
	top_srcdir='$(abs_top_srcdir)' top_builddir='$(abs_top_builddir)' python3 $(srcdir)/boot/direct-losses.py --long

.PHONY: acceptance-matrix
acceptance-matrix:
	top_srcdir='$(abs_top_srcdir)' top_builddir='$(abs_top_builddir)' \
	    python3 $(srcdir)/boot/acceptance-matrix.py $(ACCEPTANCE_MATRIX_FLAGS)

.PHONY: resident
resident:
	top_srcdir='$(abs_top_srcdir)' top_builddir='$(abs_top_builddir)' python3 $(srcdir)/boot/resident.py
