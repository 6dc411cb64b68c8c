#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a VM of two vCPUs costs the host besides its RAM, after a kernel build in the full guest: make resident, some
two minutes. Arguments go to hvx run.

The figure is the proportional share (Pss) of all of the VM's processes - hvx itself, the helpers that run programs, the
one that tidies up - without the mappings of guest RAM, whichever process has them. So a file's pages count once, and
only the part that is the VM's own of those that other programs have as well. Page tables, which the host's kernel keeps
for the VM, are printed and do not count.

HVX_RESIDENT_MIB is the limit, HVX_RESIDENT_PARTS=1 prints the mappings and the engine's own figures.
"""
import os
import re
import subprocess
import sys
import time

import guest
import vm

LIMIT = int(os.environ.get("HVX_RESIDENT_MIB", "128"))
PARTS = bool(os.environ.get("HVX_RESIDENT_PARTS"))
GUEST_RAM = "/memfd:hvx-guest-ram"
BUILD = ("mkdir -p /tmp/k /tmp/k.up && mount -t tmpfs none /tmp/k.up && mkdir /tmp/k.up/upper /tmp/k.up/work && "
         "mount -t overlay -o lowerdir=/usr/src/linux-tiny,upperdir=/tmp/k.up/upper,workdir=/tmp/k.up/work overlay "
         "/tmp/k && cd /tmp/k && find kernel -name '*.o' -delete && make -s -j2 kernel/time/ kernel/locking/ && "
         "find kernel/time kernel/locking -name '*.o' | wc -l")


def family(pid):
    """The process and all below it."""
    pids = [pid]
    for p in pids:
        for task in os.listdir("/proc/%d/task" % p):
            with open("/proc/%d/task/%s/children" % (p, task)) as f:
                pids += [int(x) for x in f.read().split()]
    return pids


def mappings(pid):
    """(name, bytes, what smaps tells of it in KiB), one for each mapping."""
    found = []
    with open("/proc/%d/smaps" % pid) as f:
        for line in f:
            start = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *(.*)", line)
            if start:
                found.append((start[3], int(start[2], 16) - int(start[1], 16), {}))
            elif re.match(r"\w+: +\d+ kB", line):
                found[-1][2][line.split(":")[0]] = int(line.split()[1])
    return found


def table_kib(pid):
    with open("/proc/%d/status" % pid) as f:
        return int(re.search(r"VmPTE:\s+(\d+)", f.read())[1])


def measure(pid, parts=False):
    """KiB: beyond guest RAM, guest RAM, page tables."""
    own = ram = tables = 0
    for p in family(pid):
        tables += table_kib(p)
        for name, size, kib in mappings(p):
            if name.startswith(GUEST_RAM):
                ram += kib["Pss"]
                continue
            own += kib["Pss"]
            if parts and kib["Pss"] >= 256:
                print("#   %7.1f MiB, %5.1f in huge pages, of %7.1f: %s" % (
                    kib["Pss"] / 1024, kib.get("AnonHugePages", 0) / 1024, size / 1048576,
                    (name or "anonymous") + ("" if p == pid else ", of a helper")))
    return own, ram, tables


def show(name):
    text = subprocess.run([vm.hvx_program(), "stat", name], stdout=subprocess.PIPE, text=True).stdout
    for line in text.splitlines():
        if re.match("vcpu|  (held|fixed|blocks|moved|cache_flushes|translate_ns)", line):
            print("# " + line)


def build(tap, machine, name):
    booted = measure(machine.proc.pid)
    start = time.monotonic()
    status, text = machine.run(BUILD, 900)
    tap.result(status == 0 and int(text.split()[-1]) > 10, "a kernel's files are built", text)
    own, ram, tables = measure(machine.proc.pid, PARTS)
    if PARTS:
        show(name)
    print("# beyond guest RAM: %.1f MiB at the login prompt, %.1f MiB after a build of %.0f s; guest RAM %.0f MiB, "
          "page tables %.1f MiB" % (booted[0] / 1024, own / 1024, time.monotonic() - start, ram / 1024, tables / 1024))
    tap.result(ram > 100 * 1024, "guest RAM is told from the rest", "%d KiB" % ram)
    tap.result(own <= LIMIT * 1024, "beyond guest RAM the VM takes no more than %d MiB" % LIMIT, "%.1f MiB" % (own / 1024))


def main():
    if vm.ENGINE == "qemu-tcg":
        vm.skip("for HVX only")
    tap = vm.Tap()
    name = "resident-%d" % os.getpid()
    with guest.scratch_disk("full") as disk:
        command = vm.command(cpus=2, memory=2048, disk=(disk, "qcow2"), net="user", extra=["--name", name] + sys.argv[1:])
        with guest.Guest(command) as machine:
            try:
                machine.wait_login(600)
                machine.log_in()
                build(tap, machine, name)
                tap.result(machine.power_off() == vm.POWERED_OFF, "power-off ends with 0")
            except (vm.Timeout, vm.Ended) as trouble:
                tap.result(False, "the guest does what it is told", trouble)
    tap.done()


main()
