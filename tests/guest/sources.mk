# SPDX-License-Identifier: Apache-2.0
# Makers of guests: disks and an initramfs. Nothing here runs by itself in make check.
EXTRA_DIST += guest/make-disk guest/make-initrd guest/raw2qcow2.py guest/initramfs-init guest/udhcpc-script \
    guest/tiny-init.S
