#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""system.py: system instructions in every mode under HVX and under QEMU's TCG, compared case by case.

One kernel (system/) makes the cases from a seed and prints a hash of what each did; where the two hashes differ, the case
is run again with all that went into the hash. What the cases leave out or the hash ignores, because QEMU departs from the
manuals there, stands with its reason in system/EXCLUSIONS; any difference is a failure.

Some instructions differ between the makers of processors (SYSENTER in long mode), and both sides follow what CPUID shows:
the cases run with this host's vendor, then a quarter of them with the other one, by way of a named model.

Run by make check without arguments it takes some 20 seconds (and is skipped where there is no QEMU).
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
VENDORS = {"intel": ("GenuineIntel", "Haswell-noTSX"), "amd": ("AuthenticAMD", "EPYC-Milan")}  # CPUID, a model of HVX's
START, STALL = 30, 15  # seconds without output after which a machine is taken to hang: before its first line, later


class DoesNotStart(Exception):
    pass


class Side:
    def __init__(self, name, command):
        self.name, self.command = name, command

    def run(self, text):
        """Lines that a run with this command line printed, whether it came to its end, and why not."""
        with tempfile.NamedTemporaryFile("r", errors="replace") as out:
            p = subprocess.Popen(self.command(text, out.name), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.PIPE)
            size, since = 0, time.monotonic()
            while True:
                try:
                    note = p.communicate(timeout=0.1)[1].decode(errors="replace").strip()
                    break
                except subprocess.TimeoutExpired:
                    now = os.stat(out.name).st_size
                    if now != size:
                        size, since = now, time.monotonic()
                    elif time.monotonic() - since > (STALL if size else START):
                        p.kill()
                        p.communicate()
                        note = "a case does not end"
                        break
            lines = out.read().splitlines()
        return lines, "# system: end" in lines, note or "the machine ended"

    def hashes(self, seed, first, count):
        """A hash for each case; None where the machine died or hung."""
        got, forms = [], {}
        while len(got) < count:
            n = count - len(got)
            lines, ended, note = self.run("seed=%d first=%d count=%d" % (seed, first + len(got), n))
            if not any(line.startswith("# system: begin") for line in lines):
                raise DoesNotStart("system.py: the kernel does not start under %s: %s" % (self.name, note))
            new = [line for line in lines if re.fullmatch("[0-9a-f]{8}", line)][:n]
            got += new
            for line in lines:
                m = re.match(r"form (.*): (\d+) (\d+)$", line)
                if m:
                    old = forms.get(m[1], (0, 0))
                    forms[m[1]] = (old[0] + int(m[2]), old[1] + int(m[3]))
            if len(new) < n:
                got.append(None)
        return got, forms

    def dump(self, seed, case):
        lines, ended, note = self.run("seed=%d first=%d count=1 dump" % (seed, case))
        head = [line for line in lines if line.startswith("# ") and not line.startswith("# system") and line != "# result"]
        body = dict(line.strip().split("=", 1) for line in lines if re.match(r"  .*=[0-9a-f]{8}$", line))
        return head, body, ended


def host_vendor():
    with open("/proc/cpuinfo") as f:
        return "amd" if re.search(r"^vendor_id\s*: (AuthenticAMD|HygonGenuine)", f.read(), re.M) else "intel"


def qemu(args, vendor):
    def command(text, out):
        cpu = args.qemu_cpu + ",vendor=" + VENDORS[vendor][0]
        return ["qemu-system-x86_64", "-accel", "tcg", "-cpu", cpu, "-m", "64", "-display", "none", "-monitor", "none",
                "-nic", "none", "-serial", "file:" + out, "-no-reboot", "-device", "isa-debug-exit,iobase=0x501,iosize=4",
                "-kernel", args.kernel, "-append", text]
    return Side("QEMU", command)


def hvx(args, vendor):
    def command(text, out):
        cpu = "host" if vendor == host_vendor() else VENDORS[vendor][1]
        return [args.hvx, "run", "--quiet", "--engine", "bt", "--cpu", cpu, "--memory", "64M", "--net", "none", "--serial", "file:" + out,
                "--no-reboot", "--debug-exit", "--no-control", "--kernel", args.kernel, "--append", text]
    return Side("HVX", command)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--first", type=int, default=0)
    p.add_argument("--cases", type=int, default=12000)
    p.add_argument("--kernel", default="difftest/system.elf")
    p.add_argument("--seeds", default=os.path.join(HERE, "system.seeds"), help="cases kept, run again at the end")
    p.add_argument("--hvx", default=os.environ.get("HVX", "../../core/hvx"))
    p.add_argument("--qemu-cpu", default="max,-vme")
    p.add_argument("--vendor", choices=sorted(VENDORS), help="cases with this one only; kept ones with the host's")
    p.add_argument("--summary", action="store_true", help="failures by form")
    p.add_argument("--reports", type=int, default=20)
    p.add_argument("--show", type=int, help="describe one case under both and end")
    args = p.parse_args()
    begin = time.monotonic()
    if os.environ.get("HVX_TEST_LIGHT"):
        print("system.py: skipped: HVX_TEST_LIGHT is set")
        return 77
    for name, path in (("HVX", args.hvx), ("the kernel", args.kernel), ("QEMU", shutil.which("qemu-system-x86_64") or "")):
        if not os.path.exists(path):
            print("system.py: skipped: %s is not there (%s)" % (name, path or "package qemu-system-x86"))
            return 77
    own = args.vendor or host_vendor()
    other = [v for v in VENDORS if v != own][0]
    if args.show is not None:
        show(sides_of(args, own), args.seed, args.show, True)
        return 0
    failed = compare(args, own, args.cases, begin)
    if args.summary:
        return failed
    if not args.vendor:
        try:
            failed |= compare(args, other, args.cases // 4, time.monotonic())
        except DoesNotStart as e:
            print("system.py: no cases with a processor of the other maker's: %s" % e)
    begin = time.monotonic()
    kept = replay(sides_of(args, own), args.seeds)
    print("system: %d kept cases, %d failures; %.1f s" % (kept + (time.monotonic() - begin,)))
    return bool(failed or kept[1])


def sides_of(args, vendor):
    return [hvx(args, vendor), qemu(args, vendor)]


def compare(args, vendor, cases, begin):
    sides = sides_of(args, vendor)
    (a, forms), (b, _) = (s.hashes(args.seed, args.first, cases) for s in sides)
    failures = [args.first + i for i in range(cases) if a[i] != b[i] or a[i] is None]
    if args.summary:
        names = list(forms)
        count = {}
        for case in failures:
            count.setdefault(names[case % len(names)], []).append(case)
        for name in names:
            if name in count:
                print("%-40s %5d failures: %s" % (name, len(count[name]), " ".join(map(str, count[name][:8]))))
        return bool(failures)
    for case in failures[:args.reports]:
        for s, got in zip(sides, (a, b)):
            if got[case - args.first] is None:
                print("# case %d: among the others %s ends, or does not go on, in it" % (case, s.name))
        show(sides, args.seed, case)
    for name, (n, faults) in forms.items():
        print("%-40s %7d cases %7d exceptions" % (name, n, faults))
    print("system: %s, seed %d, %d forms, %d cases (%d with an exception other than the last #UD), %d failures; %.1f s"
          % (VENDORS[vendor][0], args.seed, len(forms), cases, sum(f for _, f in forms.values()), len(failures),
             time.monotonic() - begin))
    return bool(failures)


def replay(sides, path):
    """Runs the cases kept; how many, and how many of them fail."""
    cases, failed = {}, 0
    with open(path) as f:
        for line in f:
            fields = line.split("#")[0].split()
            if fields:
                cases.setdefault(int(fields[0]), []).append(int(fields[1]))
    for seed, numbers in cases.items():
        for n in numbers:
            (a, _), (b, _) = (s.hashes(seed, n, 1) for s in sides)
            if a != b or a[0] is None:
                failed += 1
                show(sides, seed, n)
    return sum(map(len, cases.values())), failed


def show(sides, seed, case, full=False):
    (head, a, ended_a), (_, b, ended_b) = (s.dump(seed, case) for s in sides)
    print("FAIL system case %d seed %d" % (case, seed))
    for line in head:
        print("    " + (line if full else line[:300]))
    if not (ended_a and ended_b):
        print("    %s" % ", ".join(s.name + (" ends" if e else " does not end") for s, e in zip(sides, (ended_a, ended_b))))
        return
    for k in a:
        if a[k] != b.get(k):
            print("    %-20s %s  %s" % (k, a[k], b.get(k)))


try:
    sys.exit(main())
except DoesNotStart as e:
    sys.exit(str(e))
