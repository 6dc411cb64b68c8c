#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Guests that misbehave, and machines that cannot start: the VMM must answer, not crash and not hang."""
import os
import subprocess
import tempfile

import vm

KERNELS = os.environ.get("HVX_KERNELS") or os.path.join(vm.BUILD, "tests", "kernels")


def outcome(cmd, seconds=60):
    """(exit status or None when it had to be killed, text)"""
    with vm.Machine(cmd) as machine:
        try:
            return machine.finish(vm.scaled(seconds))
        except vm.Timeout:
            return None, machine.buffer


def kernel(name, **options):
    return vm.command(memory=64, kernel=os.path.join(KERNELS, name), debug_exit=True, **options)


def guests(tap):
    status, text = outcome(kernel("bad_ports.elf", no_reboot=True), 120)
    # It may reset or switch itself off by what it writes; a crash (negative), or our own errors 1 and 4, may not happen.
    tap.result(status in (0, 5, vm.KERNEL_GOOD), "nonsense to every port and register", "status %s\n%s" % (status, text[-1500:]))
    tap.result("pci-configuration" in text, "nonsense in PCI configuration space", text[-500:])
    status, text = outcome(kernel("bad_triple.elf", no_reboot=True))
    want = 0 if vm.ENGINE == "qemu-tcg" else 5
    tap.result(status == want and "before-the-triple-fault" in text, "triple fault with --no-reboot",
               "status %s\n%s" % (status, text[-500:]))
    status, text = outcome(kernel("bad_flood.elf"), 120)
    tap.result(status == vm.KERNEL_GOOD and "after-the-flood" in text, "a flood on the serial line", "status %s" % status)
    # Nobody reads the flood: the guest has to wait or lose it, and the VMM must still end when told to.
    proc = subprocess.Popen(kernel("bad_flood.elf"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        proc.wait(3)
    except subprocess.TimeoutExpired:
        pass
    proc.terminate()
    try:
        proc.wait(10)
        ended = True
    except subprocess.TimeoutExpired:
        ended = False
        proc.kill()
    proc.stdout.close()
    tap.result(ended, "a flood that nobody reads, then SIGTERM")


def refusals(tap):
    if vm.ENGINE == "qemu-tcg":
        tap.skip("refusals", "QEMU has its own messages")
        return
    with tempfile.TemporaryDirectory() as folder:
        empty, junk, short = (os.path.join(folder, n) for n in ("empty", "junk", "short.qcow2"))
        open(empty, "w").close()
        with open(junk, "wb") as f:
            f.write(os.urandom(65536))
        with open(short, "wb") as f:
            f.write(b"QFI\xfb\0\0\0\3" + bytes(20))
        good = os.path.join(KERNELS, "t32_irq.elf")
        cases = [
            ("missing kernel", vm.command(kernel=folder + "/none"), "none"),
            ("a kernel that is no kernel", vm.command(kernel=junk), "junk"),
            ("an empty kernel", vm.command(kernel=empty), "empty"),
            ("missing disk", vm.command(disk=(folder + "/none.img", "raw")), "none.img"),
            ("truncated qcow2", vm.command(disk=(short, "qcow2")), "short.qcow2"),
            ("qcow2 that is not one", vm.command(disk=(junk, "qcow2")), "junk"),
            ("unknown format", vm.command(disk=(junk, "vhdz")), "vhdz"),
            ("unknown engine", vm.command(kernel=good, engine="nonsense"), "nonsense"),
            ("unknown device", vm.command(kernel=good, extra=["--device", "no-such-thing"]), "no-such-thing"),
            ("too little memory", vm.command(kernel=good, memory=0), "memory"),
            ("too many vCPUs", vm.command(kernel=good, cpus=100000), "cpus"),
            ("unknown network", vm.command(kernel=good, extra=["--net", "carrier-pigeon"]), "carrier-pigeon"),
        ]
        for name, cmd, word in cases:
            status, text = outcome(cmd, 15)
            tap.result(status in (1, 2) and word in text, "refused with a message: " + name, "status %s\n%s" % (status, text[-500:]))


def main():
    if not os.path.exists(os.path.join(KERNELS, "bad_ports.elf")):
        vm.skip("the test kernels are not built: make -C tests check")
    tap = vm.Tap()
    guests(tap)
    refusals(tap)
    tap.done()


main()
