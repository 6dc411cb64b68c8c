#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""warm.py: option translation-cache with confined VMs. A second VM finds the blocks that the first one translated and gives
the same results; with a file that is damaged, of another build, a link, or somebody else's, it says so and gives them, too.

Runs the kernel of difftest/system, which is in all modes within a few cases.
"""
import os
import re
import struct
import subprocess
import sys
import tempfile

HVX = os.environ.get("HVX", "../../core/hvx")
KERNEL = "difftest/system.elf"
MASK = (1 << 64) - 1


def mix(h, v):
    h = ((h ^ v) * 0x9e3779b97f4a7c15) & MASK
    return h ^ h >> 32


def checksum(h, data):
    """bt_warm_sum() of warm_rec.c; the header's length is a multiple of 8."""
    lane = [(h + i) & MASK for i in range(4)]
    words = struct.unpack("<%dQ" % (len(data) // 8), data)
    whole = len(words) // 4 * 4
    for i in range(whole):
        lane[i & 3] = mix(lane[i & 3], words[i])
    for v in words[whole:]:
        lane[0] = mix(lane[0], v)
    return mix(mix(mix(lane[0], lane[1]), lane[2]), lane[3])


def run(path, *options):
    """What the kernel wrote; blocks found, blocks translated; the engine's lines."""
    p = subprocess.run([HVX, "run", "--verbose", "--engine", "bt", "--engine-option", "translation-cache=" + path, *options,
                        "--memory", "64M", "--net", "none", "--no-reboot", "--debug-exit", "--no-control", "--kernel", KERNEL,
                        "--append", "count=3000"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=200)
    note = p.stderr.decode(errors="replace")
    if "no enabled plugin offers a board" in note:  # every other plugin's folder may be deleted
        print("warm.py: skipped: this build has no board")
        sys.exit(77)
    if p.returncode != 1:  # --debug-exit: the kernel wrote 0
        sys.exit("warm.py: hvx run ended with %d: %s" % (p.returncode, note))
    n = re.search(r"translation-cache: (\d+) blocks were there, (\d+) translated", note)
    return p.stdout, (int(n[1]), int(n[2])) if n else None, note


def expect(ok, what, *more):
    if not ok:
        sys.exit("warm.py: %s: %s" % (what, more))
    print("warm: " + what)


def refused(path, result, why):
    text, n, note = run(path)
    expect(text == result, "the same results although " + why)
    expect(n is None or n[0] < n[1], "cold", n)
    expect(re.search(r"translation-cache: %s is not used.*: .*%s" % (re.escape(path), why), note), "the log says " + why, note)


def main():
    if not os.path.exists(KERNEL):
        print("warm.py: skipped: %s is not there" % KERNEL)
        return 77
    with tempfile.TemporaryDirectory() as folder:
        path, other = os.path.join(folder, "file"), os.path.join(folder, "other")
        result, (found, made), _ = run(path)
        expect(found < made, "cold: %d found, %d translated" % (found, made))
        expect(os.stat(path).st_mode & 0o777 == 0o600, "nobody else may read it")
        text, (found, made), _ = run(path)
        expect(text == result, "the same results from a warm VM")
        expect(found > 3 * made, "warm: %d found, %d translated" % (found, made))
        # Tests only: what is found is translated as well, and compared.
        text, _, note = run(path, "--engine-option", "translation-cache-verify=on")
        expect(text == result and "first difference" not in note, "what is found is what would be made", note[-2000:])

        with open(path, "r+b") as f:
            f.seek(64)
            f.write(b"\x55\x55")
        refused(path, result, "its header is damaged")
        run(path)
        with open(path, "r+b") as f:
            head = bytearray(f.read(128))
            head[16] ^= 1
            head[120:] = struct.pack("<Q", checksum(0, bytes(head[:120])))
            f.seek(0)
            f.write(head)
        refused(path, result, "another build of the engine made it")
        run(path)
        os.rename(path, other)
        os.symlink(other, path)
        refused(path, result, "it is a symbolic link")
        os.unlink(path)
        os.rename(other, path)
        os.chmod(path, 0o660)
        refused(path, result, "others may write to it")
        os.chmod(path, 0o600)
        if os.geteuid() == 0:
            os.chown(path, 12345, -1)
            refused(path, result, "it belongs to another user")
            os.chown(path, 0, -1)
        text, (found, made), _ = run(path)
        expect(text == result and found > 3 * made, "and warm again: %d found, %d translated" % (found, made))
    return 0


sys.exit(main())
