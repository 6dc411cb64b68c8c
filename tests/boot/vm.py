# SPDX-License-Identifier: Apache-2.0
"""Starts a virtual machine under HVX or, to test the tests themselves, under QEMU.

Environment: HVX (the hvx program), HVX_ENGINE (bt, kvm, auto, ...; qemu-tcg runs QEMU instead; default bt),
HVX_ENGINE_OPTIONS (a list for --engine-option, with spaces in between), HVX_GUESTS (folder of cached guest disks),
HVX_TRACE=1 (copy the serial line to stderr).
"""
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOP = os.environ.get("top_srcdir") or os.path.dirname(TESTS)
BUILD = os.environ.get("top_builddir") or TOP
ENGINE = os.environ.get("HVX_ENGINE", "bt")
# Beside the sources, so that all build trees share it; in the build tree where the sources are read-only (distcheck).
GUESTS = os.environ.get("HVX_GUESTS") or os.path.join(TOP if os.access(TOP, os.W_OK) else BUILD, "guests")

# What the process of a VM ends with.
POWERED_OFF = 0
KERNEL_GOOD, KERNEL_BAD = 33, 35


def skip(why):
    print("# " + why)
    sys.exit(77)


def hvx_program():
    path = os.environ.get("HVX") or os.path.join(BUILD, "core", "hvx")
    if not os.path.exists(path):
        skip("there is no %s: build it, or name another with HVX=" % path)
    require(path)
    return path


def require(hvx):
    """Every plugin folder may be deleted; what needs one that is not there is left out."""
    listed = subprocess.run([hvx, "plugin", "list", "--json"], stdout=subprocess.PIPE, text=True, check=True).stdout
    ready = [p["name"] for p in json.loads(listed) if p["status"] == "enabled"]
    if ENGINE != "auto" and ENGINE not in ready and "cpu-" + ENGINE not in ready:
        skip("this build has no engine " + ENGINE)
    if not any(t["role"] == "machine" for name in ready for t in json.loads(subprocess.run(
            [hvx, "plugin", "show", "--json", name], stdout=subprocess.PIPE, text=True, check=True).stdout).get("device_types", [])):
        skip("this build has no board")


def command(cpus=1, memory=512, kernel=None, initrd=None, append=None, disk=None, snapshot=False, net="none",
            debug_exit=False, no_reboot=False, uefi_vars=None, extra=(), engine=None):
    """The command line of one VM. `disk` is (path, format); `net` "none", "user" or "user" with host forwards as
    a list of (host port, guest port); `uefi_vars` boots through UEFI, whose variables are in that file."""
    engine = engine or ENGINE
    forwards = []
    if isinstance(net, list):
        forwards, net = net, "user"
    if engine == "qemu-tcg":
        cmd = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", os.environ.get("HVX_QEMU_CPU", "max"), "-smp", str(cpus),
               "-m", str(memory), "-display", "none", "-serial", "stdio", "-monitor", "none"]
        if kernel:
            cmd += ["-kernel", kernel]
        if initrd:
            cmd += ["-initrd", initrd]
        if append:
            cmd += ["-append", append]
        if disk:
            cmd += ["-drive", "file=%s,format=%s,if=virtio,snapshot=%s" % (disk[0], disk[1], "on" if snapshot else "off")]
        if net == "none":
            cmd += ["-nic", "none"]
        else:
            cmd += ["-nic", "user,model=virtio-net-pci" + "".join(",hostfwd=tcp:127.0.0.1:%d-:%d" % f for f in forwards)]
        if uefi_vars:
            if not os.path.exists(uefi_vars):
                shutil.copyfile("/usr/share/OVMF/OVMF_VARS_4M.fd", uefi_vars)
            cmd += ["-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
                    "-drive", "if=pflash,format=raw,file=" + uefi_vars]
        if debug_exit:
            cmd += ["-device", "isa-debug-exit,iobase=0x501,iosize=4"]
        if no_reboot:
            cmd += ["-no-reboot"]
        return cmd + list(extra)
    cmd = [hvx_program(), "run", "--quiet", "--engine", engine, "--cpus", str(cpus), "--memory", "%dM" % memory]
    if kernel:
        cmd += ["--kernel", kernel]
    if initrd:
        cmd += ["--initrd", initrd]
    if append:
        cmd += ["--append", append]
    if disk:
        cmd += ["--disk", "%s,format=%s%s" % (disk[0], disk[1], ",snapshot=on" if snapshot else "")]
    cmd += ["--net", "none" if net == "none" else "user" + "".join(",hostfwd=tcp:127.0.0.1:%d-:%d" % f for f in forwards)]
    if uefi_vars:
        cmd += ["--firmware", "uefi", "--uefi-vars", uefi_vars]
    if debug_exit:
        cmd += ["--debug-exit"]
    if no_reboot:
        cmd += ["--no-reboot"]
    if os.environ.get("HVX_CONF"):
        cmd += ["--config", os.environ["HVX_CONF"]]
    for option in os.environ.get("HVX_ENGINE_OPTIONS", "").split():
        cmd += ["--engine-option", option]
    return cmd + list(extra)


class Timeout(Exception):
    pass


class Ended(Exception):
    pass


class Machine:
    """A running VM and its serial line. Use as a context manager: leaving it ends the VM. `cpus` are the host's that
    it may use."""

    def __init__(self, cmd, log=None, cpus=None):
        self.cmd = cmd
        self.started = time.monotonic()
        self.buffer = ""
        self.log = open(log, "ab") if log else None
        self.proc = subprocess.Popen(cmd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                     start_new_session=True,
                                     preexec_fn=(lambda: os.sched_setaffinity(0, cpus)) if cpus else None)
        os.set_blocking(self.proc.stdout.fileno(), False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        if self.proc.poll() is None:
            self.proc.send_signal(signal.SIGTERM)
            try:
                self.proc.wait(5)
            except subprocess.TimeoutExpired:
                self.proc.kill()
                self.proc.wait()
        if self.log:
            self.log.close()
            self.log = None

    def _read(self, until):
        """Takes in what there is; false at the end of the output."""
        wait = max(0, until - time.monotonic())
        if not select.select([self.proc.stdout], [], [], wait)[0]:
            raise Timeout("nothing more on the serial line")
        data = os.read(self.proc.stdout.fileno(), 65536)
        if not data:
            return False
        if self.log:
            self.log.write(data)
            self.log.flush()
        if os.environ.get("HVX_TRACE"):
            sys.stderr.write(data.decode("utf-8", "replace"))
        self.buffer += data.decode("utf-8", "replace").replace("\r", "")
        return True

    def expect(self, pattern, timeout):
        """Waits for the regular expression; returns the match and forgets everything up to its end."""
        until = time.monotonic() + timeout
        regex = re.compile(pattern, re.M)
        while True:
            found = regex.search(self.buffer)
            if found:
                self.buffer = self.buffer[found.end():]
                return found
            try:
                more = self._read(until)
            except Timeout:
                raise Timeout("waited %d s for \"%s\"; the last output was:\n%s" % (timeout, pattern, self.tail()))
            if not more:
                raise Ended("the VM ended (status %s) while waiting for \"%s\"; the last output was:\n%s" %
                            (self.proc.wait(), pattern, self.tail()))

    def tail(self):
        return "".join("    | %s\n" % line for line in self.buffer.splitlines()[-25:])

    def send(self, text):
        self.proc.stdin.write(text.encode())
        self.proc.stdin.flush()

    def finish(self, timeout):
        """Waits for the end of the process; returns (exit status, rest of the output)."""
        until = time.monotonic() + timeout
        try:
            while self._read(until):
                pass
        except Timeout:
            raise Timeout("the VM did not end in %d s; the last output was:\n%s" % (timeout, self.tail()))
        status = self.proc.wait(max(1, until - time.monotonic()))
        rest, self.buffer = self.buffer, ""
        return status, rest


def scaled(seconds):
    """Time-outs are for a machine that does nothing else; HVX_PATIENCE multiplies them."""
    return seconds * float(os.environ.get("HVX_PATIENCE", "1"))


class Tap:
    """Prints TAP, remembers failures."""

    def __init__(self):
        self.n = self.bad = 0

    def result(self, good, name, why=""):
        self.n += 1
        self.bad += not good
        print("%s %d - %s" % ("ok" if good else "not ok", self.n, name))
        if not good and why:
            print("".join("# %s\n" % line for line in str(why).splitlines()), end="")
        sys.stdout.flush()
        return good

    def skip(self, name, why):
        self.n += 1
        print("ok %d - %s # SKIP %s" % (self.n, name, why), flush=True)

    def done(self):
        print("1..%d" % self.n)
        sys.exit(1 if self.bad else 0)
