#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The README's guest: a Debian disk boots through SeaBIOS and GRUB with 1 and 2 vCPUs, reports, powers off; the file
system is clean afterwards; through GRUB's second entry a person can log in."""
import re

import guest
import vm


def report(tap, disk, cpus):
    name = "%d vCPU: " % cpus
    # With two vCPUs the disk is behind the SCSI adapter.
    form = "qcow2,if=scsi" if cpus == 2 and vm.ENGINE != "qemu-tcg" else "qcow2"
    with guest.Guest(vm.command(cpus=cpus, memory=1024, disk=(disk, form), net="user")) as machine:
        try:
            status, text = machine.finish(vm.scaled(180))
        except vm.Timeout:
            tap.result(False, name + "boots and powers off in time", machine.tail())
            return
    for what, pattern in (("kernel", r"^kernel: +Linux 6\.1\..* x86_64$"), ("sees its vCPUs", r"^cpu: +%d x " % cpus),
                          ("root file system", r"^root: +/dev/[vs]da1 +ext4 +rw"), ("perl", r"^perl: .* 3\.14159$"),
                          ("digest", r"^digest: .* ba7816bf8f01cfea\.\.\. "), ("network", r"^network: +\S+ 10\.0\.2\."),
                          ("report is whole", r"^== end of report ==$")):
        tap.result(re.search(pattern, text, re.M), name + what, text[-1500:])
    tap.result(status == vm.POWERED_OFF, name + "power-off ends with 0", "status %d" % status)


def sleeps(machine):
    """How often the process's control thread has gone to sleep."""
    with open("/proc/%d/status" % machine.proc.pid) as status:
        return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status.read(), re.M).group(1))


def login(tap, disk):
    with guest.Guest(vm.command(memory=1024, disk=(disk, "qcow2"), net="user")) as machine:
        try:
            machine.second_grub_entry()
            seconds = machine.wait_login()
            print("# login prompt after %.1f s" % seconds)
            machine.log_in()
            status, text = machine.run("perl -e 'print 6 * 7, \"\\n\"'; id -u; findmnt -no FSTYPE /")
            tap.result(status == 0 and text == "42\n0\next4\n", "commands on the serial line", text)
            if vm.ENGINE == "bt":  # thousands of signals and of characters have come by
                times = sleeps(machine)
                tap.result(times < 300, "a guest that boots does not wake the control thread", "%d times" % times)
            tap.result(machine.power_off() == vm.POWERED_OFF, "poweroff after login ends with 0")
        except (vm.Timeout, vm.Ended) as trouble:
            tap.result(False, "login on the serial line", trouble)


def main():
    tap = vm.Tap()
    with guest.scratch_disk("small") as disk:
        report(tap, disk, 1)
        report(tap, disk, 2)
        login(tap, disk)
        clean, text = guest.fsck(disk)
        if clean is None:
            tap.skip("file system is clean afterwards", text)
        else:
            tap.result(clean, "file system is clean afterwards", text)
    tap.done()


main()
