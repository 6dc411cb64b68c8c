#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Stock 32-bit Debian kernels, with PAE and without, with a 32-bit user space, on 1 and 2 vCPUs: programs whose answers
are known, a shell on the serial line, power-off."""
import hashlib
import os
import re
import subprocess

import vm

MAKE_INITRD = os.path.join(vm.TESTS, "guest", "make-initrd")
# Not "check" as a whole: Debian's 32-bit busybox, which is init here, makes all readable memory of its children
# executable, and "faults" wants the opposite.
WORK = "smc,vectors,strings,sieve,calls,double,x87,tree,sha256,getpid,read,signal,pipe,fork,exec,fault,cow,threads"


def files(flavour):
    """Folder of the kernel and its initramfs; None and why when they cannot be had."""
    folder = os.path.join(vm.GUESTS, "initrd-" + flavour)
    if not all(os.path.exists(os.path.join(folder, f)) for f in ("vmlinuz", "initrd.img")):
        made = subprocess.run([MAKE_INITRD, "-a", flavour, folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if made.returncode != 0:
            return None, (made.stdout.strip().splitlines() or ["make-initrd failed"])[-1]
    return folder, None


def start(folder, cpus, words):
    return vm.Machine(vm.command(cpus=cpus, memory=512, kernel=os.path.join(folder, "vmlinuz"),
                                 initrd=os.path.join(folder, "initrd.img"), append="console=ttyS0 quiet panic=-1 " + words))


def finish(machine, seconds):
    try:
        return machine.finish(vm.scaled(seconds))
    except vm.Timeout:
        return None, machine.buffer


def lines(numbers):
    return "".join("%d\n" % n for n in numbers).encode()


def answers():
    """What init's programs print (tests/guest/initramfs-init)."""
    total = sum(i * i % 7919 for i in range(1, 20001))
    sums = "".join(hashlib.md5(lines(range(n, 5001, 3))).hexdigest() + "  -\n" for n in range(1, 9))
    return {"sha256": hashlib.sha256(lines(range(1, 100001))).hexdigest(),
            "awk": "%d %.6f %d" % (total, total / 7, sum(i % 13 == 5 for i in range(1, 20001))),
            "forks": "200", "jobs": hashlib.md5(sums.encode()).hexdigest(), "gzip": "same"}


def programs(tap, name, folder, cpus):
    with start(folder, cpus, "hvx.run=programs") as machine:
        status, text = finish(machine, 180)
    for what, want in answers().items():
        tap.result("HVX-MARK %s %s\n" % (what, want) in text, "%s: %s" % (name, what), text[-1500:])
    tap.result(re.search(r"^HVX-MARK Linux 6\.1\.\S+ i686, %d CPUs" % cpus, text, re.M), name + ": its kernel and vCPUs", text[-1500:])
    tap.result(status == vm.POWERED_OFF, name + ": power-off ends with 0", "status %s" % status)


def work(tap, name, folder, cpus):
    with start(folder, cpus, "hvx.run=%s hvx.scale=0.05" % WORK) as machine:
        status, text = finish(machine, 300)
    verdicts = re.findall(r"^work (\w+) (ok|WRONG|skip) ", text, re.M)
    wrong = [w for w, verdict in verdicts if verdict == "WRONG"]
    tap.result(len(verdicts) >= len(WORK.split(",")) and not wrong and status == vm.POWERED_OFF,
               "%s: %d workloads of bench/work" % (name, len(verdicts)), text[-1500:])


def shell(tap, name, folder, cpus):
    with start(folder, cpus, "hvx.run=shell") as machine:
        try:
            machine.expect(r"# ", vm.scaled(120))
            machine.send("uname -m; echo $((6 * 7)); exit\n")
            machine.expect(r"^i686\n42\n", vm.scaled(60))
            status, text = machine.finish(vm.scaled(60))
        except (vm.Timeout, vm.Ended) as trouble:
            status, text = None, str(trouble)
    tap.result(status == vm.POWERED_OFF, name + ": a shell on the serial line", text)


def main():
    tap = vm.Tap()
    for flavour in ("686-pae", "686"):
        folder, why = files(flavour)
        if not folder:
            tap.skip("Linux " + flavour, why)
            continue
        # The kernel without PAE is built without SMP.
        for cpus in (1, 2) if flavour == "686-pae" else (1,):
            name = "%s, %d vCPU" % (flavour, cpus)
            programs(tap, name, folder, cpus)
        work(tap, name, folder, cpus)
        shell(tap, flavour, folder, 1)
    tap.done()


main()
