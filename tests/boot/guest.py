# SPDX-License-Identifier: Apache-2.0
"""A Debian guest made by tests/guest/make-disk: boot, log in, run commands, power off, check the file system."""
import contextlib
import os
import re
import shutil
import subprocess
import sys
import time

import vm

MAKE_DISK = os.path.join(vm.TESTS, "guest", "make-disk")
PASSWORD = "hvx"
PARTITION_OFFSET = 1 << 20


def master_disk(flavour):
    """Path of the cached disk, made now if need be; skips the test where that cannot work. "small" and "full" are MBR
    disks, "small-efi" and "full-efi" GPT disks that boot through UEFI."""
    ready = os.path.join(vm.GUESTS, flavour + ".qcow2")
    if os.environ.get("HVX_GUESTS") and os.path.exists(ready):
        return ready
    kind, efi = flavour.removesuffix("-efi"), ["-e"] if flavour.endswith("-efi") else []
    made = subprocess.run([MAKE_DISK, "-c", vm.GUESTS, *efi, kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if made.returncode != 0:
        if os.path.exists(ready):
            return ready
        vm.skip("no guest disk: " + (made.stderr.strip().splitlines() or ["make-disk failed"])[-1])
    return made.stdout.strip().splitlines()[-1]


@contextlib.contextmanager
def scratch_disk(flavour):
    """A disk over the master disk that may be written to and goes away. It lies beside the master: HVX follows backing
    names only inside an image's own folder."""
    master = os.path.realpath(master_disk(flavour))
    path = os.path.join(os.path.dirname(master), "scratch-%s-%d.qcow2" % (flavour, os.getpid()))
    subprocess.run([sys.executable, os.path.join(vm.TESTS, "guest", "raw2qcow2.py"), "--overlay", master, path], check=True)
    try:
        yield path
    finally:
        for name in (path, path + ".raw", path + ".c", path + ".x", path + ".vars"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


def convert_to_raw(disk, raw):
    """Writes the qcow2 image as a raw one; returns the completed process with its output."""
    program = ["qemu-img"] if shutil.which("qemu-img") else [vm.hvx_program(), "image"]
    return subprocess.run([*program, "convert", "-f", "qcow2", "-O", "raw", disk, raw], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)


def fsck(disk):
    """(clean, what e2fsck printed) for the disk's first partition; (None, why) if there is no tool for it."""
    tools = os.environ["PATH"] + ":/usr/sbin:/sbin"
    if not shutil.which("e2fsck", path=tools):
        return None, "e2fsck is not installed"
    raw = disk + ".raw"
    made = convert_to_raw(disk, raw)
    if made.returncode != 0:
        return False, made.stdout
    checked = subprocess.run([shutil.which("e2fsck", path=tools), "-fn", "%s?offset=%d" % (raw, PARTITION_OFFSET)],
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    os.unlink(raw)
    return checked.returncode == 0, checked.stdout


class Guest(vm.Machine):
    """A machine whose serial line leads to a Debian with a login."""

    def wait_login(self, timeout=120):
        """Waits for the login prompt; returns the seconds since the start."""
        self.expect(r"login: ", vm.scaled(timeout))
        return time.monotonic() - self.started

    def second_grub_entry(self, timeout=60):
        self.expect(r"automatically in", vm.scaled(timeout))
        self.send("\x1b[B\r")

    def log_in(self):
        self.send("root\n")
        self.expect(r"Password: ", vm.scaled(30))
        self.send(PASSWORD + "\n")
        self.expect(r"# ", vm.scaled(60))
        self.send("stty -echo; bind 'set enable-bracketed-paste off'; export PS1= PS2= PAGER=cat LC_ALL=C; dmesg -n 1; echo @@''ready@@\n")
        self.expect(r"@@ready@@\n", vm.scaled(30))

    def run(self, command, timeout=60):
        """Runs a shell command; returns (exit status, output)."""
        self.send("{ %s\n} 2>&1; echo @@$?@@\n" % command)
        text = ""
        found = self.expect(r"([\s\S]*?)@@(\d+)@@\n", vm.scaled(timeout))
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", found[1])
        return int(found[2]), text

    def put(self, path, text):
        """Writes a text file by here-document."""
        status, out = self.run("cat >%s <<'@END@'\n%s\n@END@" % (path, text.rstrip("\n")))
        if status != 0:
            raise RuntimeError("could not write %s: %s" % (path, out))

    def power_off(self, timeout=60):
        """Exit status of the VM's process."""
        self.send("poweroff\n")
        return self.finish(vm.scaled(timeout))[0]
