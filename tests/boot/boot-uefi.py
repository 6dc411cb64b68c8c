#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A GPT disk with an EFI system partition boots through OVMF and Debian's GRUB with 1 and 2 vCPUs; a boot entry made by
the guest is used after a reboot and in the next process; the same disk boots through SeaBIOS."""
import os
import re

import guest
import vm


def start(disk, variables, cpus=1):
    return guest.Guest(vm.command(cpus=cpus, memory=1024, disk=(disk, "qcow2"), net="user", uefi_vars=variables))


def log_in(machine):
    machine.second_grub_entry(120)
    seconds = machine.wait_login(180)
    machine.log_in()
    return seconds


def entry(tap, machine, name):
    """The entry that make_entry() made was booted from."""
    status, text = machine.run("efibootmgr")
    found = re.search(r"Boot(\w{4})\* hvx-test\b", text)
    tap.result(status == 0 and found and "BootCurrent: " + found[1] in text, name, text)


def first_run(tap, disk, variables):
    with start(disk, variables) as machine:
        print("# 1 vCPU: login prompt after %.1f s" % log_in(machine))
        status, text = machine.run("test -d /sys/firmware/efi/efivars && findmnt -no FSTYPE /boot/efi")
        tap.result(status == 0 and text == "vfat\n", "boots through UEFI with 1 vCPU", text)
        status, text = machine.run("efibootmgr -q -c -d /dev/vda -p 2 -L hvx-test -l '\\EFI\\debian\\grubx64.efi'")
        tap.result(status == 0, "a boot entry is made", text)
        machine.send("reboot\n")
        log_in(machine)
        entry(tap, machine, "the boot entry is used after a reboot")
        tap.result(machine.power_off() == vm.POWERED_OFF, "power-off ends with 0")


def second_run(tap, disk, variables):
    with start(disk, variables, 2) as machine:
        print("# 2 vCPU: login prompt after %.1f s" % log_in(machine))
        tap.result(machine.run("nproc") == (0, "2\n"), "boots through UEFI with 2 vCPUs")
        entry(tap, machine, "the boot entry is used in another process")
        tap.result(machine.power_off() == vm.POWERED_OFF, "power-off with 2 vCPUs ends with 0")


def bios(tap, disk):
    with guest.Guest(vm.command(memory=1024, disk=(disk, "qcow2"), net="user")) as machine:
        status, text = machine.finish(vm.scaled(180))
        tap.result(status == vm.POWERED_OFF and "== end of report ==" in text, "the disk boots through SeaBIOS too", text[-1500:])


def main():
    if not os.path.exists("/usr/share/OVMF/OVMF_CODE_4M.fd"):
        vm.skip("there is no OVMF (package ovmf)")
    tap = vm.Tap()
    with guest.scratch_disk("small-efi") as disk:
        try:
            first_run(tap, disk, disk + ".vars")
            second_run(tap, disk, disk + ".vars")
            bios(tap, disk)
        except (vm.Timeout, vm.Ended) as trouble:
            tap.result(False, "goes on", trouble)
        clean, text = guest.fsck(disk)
        if clean is None:
            tap.skip("file system is clean afterwards", text)
        else:
            tap.result(clean, "file system is clean afterwards", text)
    tap.done()


main()
