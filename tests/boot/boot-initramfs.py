#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Boots the stock kernel directly, with the initramfs of tests/guest/make-initrd: user programs, ways to end."""
import os
import re
import subprocess

import vm

MAKE_INITRD = os.path.join(vm.TESTS, "guest", "make-initrd")


def files():
    folder = os.environ.get("HVX_INITRD") or os.path.join(vm.GUESTS, "initrd")
    if not all(os.path.exists(os.path.join(folder, f)) for f in ("vmlinuz", "initrd.img", "tiny.img")):
        made = subprocess.run([MAKE_INITRD, folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if made.returncode != 0:
            vm.skip("no initramfs: " + (made.stdout.strip().splitlines() or ["make-initrd failed"])[-1])
    return folder


def start(folder, image, words, **options):
    return vm.Machine(vm.command(memory=256, kernel=os.path.join(folder, "vmlinuz"), initrd=os.path.join(folder, image),
                                 append="console=ttyS0 quiet panic=-1 " + words, **options))


def smallest(tap, folder):
    with start(folder, "tiny.img", "") as machine:
        try:
            status, text = machine.finish(vm.scaled(60))
        except vm.Timeout:
            status, text = None, machine.buffer
    for mark in ("user-space", "getpid-is-1", "page-fault-done"):
        tap.result("HVX-MARK " + mark in text, "tiny init: " + mark, text[-1000:])
    tap.result(status == vm.POWERED_OFF, "power-off ends with 0", "status %s" % status)


def programs(tap, folder, cpus):
    names = "check,sieve,calls,indirect,double,matrix,x87,tree,sha256,sha256ni,aes,getpid,read,stat,signal,pipe,fork," \
            "exec,fault,cow,threads"
    with start(folder, "initrd.img", "hvx.run=%s hvx.scale=0.05" % names, cpus=cpus) as machine:
        try:
            status, text = machine.finish(vm.scaled(180))
        except vm.Timeout:
            status, text = None, machine.buffer
    verdicts = re.findall(r"^work (\w+) (ok|WRONG|skip) ", text, re.M)
    for name, verdict in verdicts:
        if verdict == "skip":
            tap.skip("%d vCPU, work %s" % (cpus, name), "this CPU model lacks what it needs")
        else:
            tap.result(verdict == "ok", "%d vCPU, work %s" % (cpus, name))
    tap.result(len(verdicts) == 24, "%d vCPU, every workload reported" % cpus, "%d did\n%s" % (len(verdicts), text[-1500:]))
    tap.result(", %d CPUs, " % cpus in text, "%d vCPU seen by the kernel" % cpus)
    tap.result(status == vm.POWERED_OFF, "%d vCPU, power-off ends with 0" % cpus, "status %s" % status)


def endings(tap, folder):
    cases = [("exit:5", "isa-debug-exit ends with 2 * value + 1", 11, {"debug_exit": True}),
             ("reboot", "a reset with --no-reboot ends with 0", 0, {"no_reboot": True})]
    for end, name, want, options in cases:
        with start(folder, "initrd.img", "hvx.run=none hvx.end=" + end, **options) as machine:
            try:
                status, text = machine.finish(vm.scaled(60))
            except vm.Timeout:
                status, text = None, machine.buffer
        tap.result(status == want, name, "status %s\n%s" % (status, text[-500:]))


def main():
    folder = files()
    tap = vm.Tap()
    smallest(tap, folder)
    programs(tap, folder, 1)
    programs(tap, folder, 2)
    endings(tap, folder)
    tap.done()


if __name__ == "__main__":
    main()
