# SPDX-License-Identifier: Apache-2.0
"""Where bench/run's lines run: natively, in a guest with an initramfs, in the full Debian guest. All three are shells
that take the same commands and know how long each took, by the host's clock and by their own."""
import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time

import guest
import vm

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAMS = "/tmp/bench"
PREPARE = "unset HISTFILE; export LC_ALL=C PATH=%s:$PATH; cd /; echo @@''set@@" % PROGRAMS
# What the host may see more than the guest: the way over the serial line; a share, and seconds.
CLOCK_SHARE, CLOCK_SECONDS = 0.03, 0.25
TICK = os.sysconf("SC_CLK_TCK")


class Trouble(Exception):
    """Something that a person must put right before anything can be measured."""


def tool(name, package):
    path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if not path:
        raise Trouble("needs the program %s; install %s" % (name, package))
    return path


# --- files that are made once

def programs_folder(folder):
    """FOLDER/programs: bench/work, built, and what bench/programs holds; the same files on every side."""
    out = os.path.join(folder, "programs")
    os.makedirs(out, exist_ok=True)
    binary, work = os.path.join(out, "work"), os.path.join(HERE, "work")
    sources = [os.path.join(work, name) for name in os.listdir(work)]
    if not os.path.exists(binary) or os.path.getmtime(binary) < max(os.path.getmtime(s) for s in sources):
        subprocess.run(["gcc", "-std=gnu11", "-O2", "-static", "-pthread", "-o", binary + ".new",
                        *sorted(s for s in sources if s.endswith(".c")), "-lm"], check=True)
        os.rename(binary + ".new", binary)
    for name in os.listdir(os.path.join(HERE, "programs")):
        shutil.copy2(os.path.join(HERE, "programs", name), out)
    return out


def programs_image(folder):
    """FOLDER/programs.img: the same as a disk for the Debian guest."""
    image = os.path.join(folder, "programs.img")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(image)
    mke2fs = [tool("mke2fs", "e2fsprogs"), "-q", "-t", "ext2", "-L", "bench"]
    subprocess.run([*mke2fs, "-d", programs_folder(folder), image, "16M"], check=True, stdout=subprocess.DEVNULL)
    return image


def initramfs(folder):
    """(kernel, initrd) with bench/work in it."""
    binary, initrd = os.path.join(programs_folder(folder), "work"), os.path.join(folder, "initrd.img")
    if not os.path.exists(initrd) or os.path.getmtime(initrd) < os.path.getmtime(binary):
        kernel = ["-k", os.environ["HVX_KERNEL_ROOT"]] if "HVX_KERNEL_ROOT" in os.environ else []
        made = subprocess.run([os.path.join(vm.TESTS, "guest", "make-initrd"), *kernel, "-w", binary, folder],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if made.returncode != 0:
            raise Trouble("could not make the initramfs guest: " + made.stdout.strip())
    return os.path.join(folder, "vmlinuz"), initrd


def native_root(say):
    """The files of the full guest's disk as a folder beside it, copied out once for each disk."""
    master = os.path.realpath(guest.master_disk("full"))
    root = os.path.splitext(master)[0] + ".root"
    with open(root + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.isdir(root):
            return root
        say("copying the guest's files to %s for the native column" % root)
        debugfs, raw = tool("debugfs", "e2fsprogs"), root + ".raw"
        shutil.rmtree(root + ".new", ignore_errors=True)
        os.mkdir(root + ".new")
        try:
            made = guest.convert_to_raw(master, raw)
            if made.returncode != 0:
                raise Trouble("could not unpack %s: %s" % (master, made.stdout.strip()))
            done = subprocess.run([debugfs, "-R", "rdump / \"%s.new\"" % root,
                                   "%s?offset=%d" % (raw, guest.PARTITION_OFFSET)],
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if not os.path.exists(os.path.join(root + ".new", "usr", "bin", "gcc")):
                raise Trouble("debugfs did not copy the guest's files: " + done.stdout[-500:])
            os.rename(root + ".new", root)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(raw)
    return root


@contextlib.contextmanager
def overlay(tag):
    """A disk over the full guest's, written to and thrown away; beside the master, where HVX follows backing names."""
    master = os.path.realpath(guest.master_disk("full"))
    path = os.path.join(os.path.dirname(master), "scratch-bench-%s-%d.qcow2" % (tag, os.getpid()))
    subprocess.run([sys.executable, os.path.join(vm.TESTS, "guest", "raw2qcow2.py"), "--overlay", master, path],
                   check=True)
    try:
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


# --- processor time

def cpu_busy(cpus):
    """Seconds that the CPUs did anything, or were taken away by what is below us."""
    names, ticks = ["cpu%d" % cpu for cpu in cpus], 0
    with open("/proc/stat") as f:
        for name, *counts in map(str.split, f):
            if name in names:
                n = [int(x) for x in counts[:8]]
                ticks += sum(n) - n[3] - n[4]
    return ticks / TICK


def process_seconds(pid, children):
    try:
        with open("/proc/%d/stat" % pid) as f:
            fields = f.read().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(int(x) for x in fields[11:15 if children else 13]) / TICK


def tree_seconds(pid):
    """Processor time of a process and of those that it has made, as an engine's helpers."""
    total = process_seconds(pid, True)
    with contextlib.suppress(OSError):
        for task in os.listdir("/proc/%d/task" % pid):
            with open("/proc/%d/task/%s/children" % (pid, task)) as f:
                total += sum(tree_seconds(int(child)) for child in f.read().split())
    return total


def namespace_seconds(pid):
    """Processor time of all processes in the PID name space of this process's first child, ended ones included."""
    try:
        with open("/proc/%d/task/%d/children" % (pid, pid)) as f:
            first = f.read().split()[0]
        space = os.readlink("/proc/%s/ns/pid" % first)
    except (OSError, IndexError):
        return 0.0
    total = 0.0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink("/proc/%s/ns/pid" % name) == space:
                    total += process_seconds(int(name), True)
    return total


class Sample:
    """One timed command: `elapsed` is what counts, `host` and `guest` what the two clocks said, `others` the share of
    the CPUs that went to programs which were not measured."""

    def __init__(self, status, text, host, guest_seconds, others):
        self.status, self.text, self.host, self.guest, self.others = status, text, host, guest_seconds, others
        self.clock_agrees = guest_seconds is None or \
            -0.02 - 0.01 * host <= host - guest_seconds <= CLOCK_SECONDS + CLOCK_SHARE * host
        self.elapsed = guest_seconds if guest_seconds is not None and self.clock_agrees else host


class Shell(guest.Guest):
    """A shell on these CPUs of the host, from which commands are timed; begin() comes after the constructor, which only
    starts it, so that a machine that does not get there can be ended."""
    own_seconds = staticmethod(tree_seconds)

    def __init__(self, cmd, cpus):
        super().__init__(cmd, cpus=cpus)
        self.cpus, self.group = cpus, None

    def begin(self):
        self.send(PREPARE + "\n")
        self.expect(r"@@set@@\n", 60)

    def time(self, command, timeout):
        """The shell's own clock stands in bash's EPOCHREALTIME; where the shell has none, bench/work tells the time."""
        wrapped = "a=$EPOCHREALTIME; { %s\n} </dev/null; s=$?; echo \"@clock $a $EPOCHREALTIME\"; [ $s = 0 ]" % command
        busy, own, start = cpu_busy(self.cpus), self.own_seconds(self.proc.pid), time.monotonic()
        status, text = self.run(wrapped, timeout)
        host = time.monotonic() - start
        others = cpu_busy(self.cpus) - busy - self.own_seconds(self.proc.pid) + own
        others = max(0.0, others) / max(host, 0.01) / len(self.cpus)
        clock = re.search(r"@clock (\d+\.\d+) (\d+\.\d+)", text)
        worked = re.search(r"^work \w+ ok .* ns=(\d+)", text, re.M)
        seconds = int(worked[1]) / 1e9 if worked else float(clock[2]) - float(clock[1]) if clock else None
        return Sample(status, re.sub(r"@clock.*\n", "", text), host, seconds, others)


class Native(Shell):
    """The host's CPUs and kernel, the guest's programs."""
    own_seconds = staticmethod(namespace_seconds)

    def __init__(self, root, programs, cpus):
        super().__init__([tool("unshare", "util-linux"), "--mount", "--pid", "--net", "--fork", "--kill-child",
                          os.path.join(HERE, "native-root"), root, programs], cpus)


class InitramfsGuest(Shell):
    def begin(self):
        self.expect(r"HVX-MARK .* CPUs, up", vm.scaled(120))
        time.sleep(0.3)
        # Not interactive, or busybox would edit and echo lines.
        self.send("stty -echo; exec sh -s 2>&1 | cat\n")
        super().begin()


class DiskGuest(Shell):
    def begin(self):
        self.wait_login(600)
        self.log_in()
        super().begin()
        status, text = self.run("mount -t tmpfs -o size=75%,mode=1777 none /tmp && mount -o ro LABEL=bench /mnt && "
                                "cp -a /mnt /tmp/bench && umount /mnt", 120)
        if status != 0:
            raise vm.Ended("the guest could not set up its folder of programs: " + text)


class Engine:
    """A column: how its machines are started. kind is native, hvx or tcg."""

    def __init__(self, name, kind, program=None, args=()):
        self.name, self.kind, self.program, self.args = name, kind, program, list(args)

    def command(self, **machine):
        extra = machine.pop("extra", [])
        if self.kind == "tcg":
            return vm.command(engine="qemu-tcg", extra=extra + self.args, **machine)
        cmd = vm.command(engine=os.environ.get("HVX_ENGINE", "bt"), extra=extra + self.args, **machine)
        return [self.program] + cmd[1:]

    def initramfs_command(self, folder):
        kernel, initrd = initramfs(folder)
        return self.command(memory=512, kernel=kernel, initrd=initrd,
                            append="console=ttyS0 quiet panic=-1 hvx.run=shell")

    def disk_command(self, disk, image=None, vcpus=1):
        extra = []
        if image and self.kind == "tcg":
            extra = ["-drive", "file=%s,format=raw,if=virtio,readonly=on" % image]
        elif image:
            extra = ["--disk", "%s,format=raw,readonly=on" % image]
        # TCG has a thread for each vCPU here: thread=multi is its default where guest and host are x86.
        return self.command(cpus=vcpus, memory=2048, disk=(disk, "qcow2"), net="user", extra=extra)
