#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""perf-map.py: the option perf-map of the engine writes what perf reads: lines "START SIZE NAME" in /tmp/perf-PID.map,
with the guest's addresses and modes in the names; without it there is no such file.

Runs the kernel of difftest/system, which is in all modes within a few cases, confined as ever.
"""
import os
import re
import stat
import subprocess
import sys

HVX = os.environ.get("HVX", "../../core/hvx")
KERNEL = "difftest/system.elf"
LINE = re.compile(r"([0-9a-f]+) ([0-9a-f]+) (bt:stubs|guest:0x([0-9a-f]+) ([ku])(16|32|64)(?: cold)?)")


def run(*options):
    """Path of the map that a run would have written."""
    p = subprocess.Popen([HVX, "run", "--quiet", "--engine", "bt", *options, "--memory", "64M", "--net", "none", "--serial", "null",
                          "--no-reboot", "--debug-exit", "--no-control", "--kernel", KERNEL, "--append", "count=400"],
                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    note = p.communicate(timeout=100)[1]
    if "no enabled plugin offers a board" in note:  # every other plugin's folder may be deleted
        print("perf-map.py: skipped: this build has no board")
        sys.exit(77)
    if p.returncode != 1:  # --debug-exit: the kernel wrote 0
        sys.exit("perf-map.py: hvx run ended with %d: %s" % (p.returncode, note))
    return "/tmp/perf-%d.map" % p.pid


def main():
    if not os.path.exists(KERNEL):
        print("perf-map.py: skipped: %s is not there" % KERNEL)
        return 77
    if os.path.exists(run()):
        sys.exit("perf-map.py: a map that nobody asked for")
    path = run("--engine-option", "perf-map=on")
    try:
        s = os.stat(path)
        if stat.S_IMODE(s.st_mode) & 0o077 or s.st_uid != os.geteuid():
            sys.exit("perf-map.py: mode %o, owner %d" % (s.st_mode, s.st_uid))
        with open(path) as f:
            lines = f.read().splitlines()
    finally:
        os.unlink(path)
    modes, kernel = set(), 0
    for line in lines:
        m = LINE.fullmatch(line)
        if not m or int(m[1], 16) + int(m[2], 16) > 1 << 31 or not int(m[2], 16):
            sys.exit("perf-map.py: what is this: %r" % line)
        if m[4]:
            modes.add(m[5] + m[6])
            kernel += 0x100000 <= int(m[4], 16) < 0x200000 and m[5] + m[6] == "k32"
    if modes != {"k16", "k32", "k64", "u16", "u32", "u64"} or not kernel:
        sys.exit("perf-map.py: modes %s, %d blocks of the kernel" % (sorted(modes), kernel))
    if len(lines) < 400 or len(set(lines)) < len(lines) * 9 // 10:
        sys.exit("perf-map.py: %d lines, %d of them different" % (len(lines), len(set(lines))))
    print("perf-map: %d pieces of code" % len(lines))
    return 0


sys.exit(main())
