#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A guest that computes and writes to its disk is saved, goes on in another process, and comes to the right end. Files
that are damaged, or of another VM, are refused. The long test with a compiling guest is save-restore.py."""
import hashlib
import json
import os
import signal
import struct
import subprocess
import time

import saved
import vm

STEPS = 300
MEMORY = 160
PROMPT = r"# "


def initrd():
    folder = os.environ.get("HVX_INITRD") or os.path.join(vm.GUESTS, "initrd")
    if not all(os.path.exists(os.path.join(folder, f)) for f in ("vmlinuz", "initrd.img")):
        made = subprocess.run([os.path.join(vm.TESTS, "guest", "make-initrd"), folder], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        if made.returncode != 0:
            vm.skip("no initramfs: " + (made.stdout.strip().splitlines() or ["make-initrd failed"])[-1])
    return folder


def program(marks):
    """A chain of digests, each written to its sector of the disk."""
    return ("d=start; i=0; while [ $i -lt %d ]; do d=$(echo $d $i | sha256sum | cut -c1-64); "
            "echo $d | dd of=/dev/vda bs=512 seek=$i conv=notrunc,fsync 2>/dev/null; i=$((i+1)); "
            "[ $i = %d ] && echo half''way; done; echo 'chain''='$d\n" % (STEPS, marks))


def chain():
    d, sectors = "start", []
    for i in range(STEPS):
        d = hashlib.sha256(("%s %d\n" % (d, i)).encode()).hexdigest()
        sectors.append(d)
    return sectors


class Test:
    def __init__(self, tap, folder, cpus):
        self.tap, self.folder, self.cpus = tap, folder, cpus
        self.files = initrd()
        self.disk = folder.file("disk%d.img" % cpus)
        self.state = folder.file("state%d" % cpus)
        with open(self.disk, "wb") as f:
            f.truncate(4 << 20)

    def result(self, good, name, why=""):
        return self.tap.result(good, "%d vCPU: %s" % (self.cpus, name), why)

    def command(self, *extra, memory=MEMORY, cpus=None, disk=None, name="saved"):
        return vm.command(cpus=cpus or self.cpus, memory=memory, kernel=os.path.join(self.files, "vmlinuz"),
                          initrd=os.path.join(self.files, "initrd.img"),
                          append="console=ttyS0 quiet panic=-1 hvx.run=shell hvx.modules=virtio_pci,virtio_blk",
                          disk=disk or (self.disk, "raw"), extra=("--name", name) + extra)

    def restored(self, path=None, **more):
        return self.command("--restore", path or self.state, **more)

    def clock(self, machine):
        machine.send("echo up''time=$(cut -d' ' -f1 /proc/uptime)\n")
        return float(machine.expect(r"uptime=([\d.]+)", vm.scaled(30))[1])

    def go_on(self, machine, what):
        """The rest of the computation in a machine that was restored."""
        want = chain()
        got = machine.expect(r"chain=(\w{64})", vm.scaled(90))[1]
        self.result(got == want[-1], what + ": the computation comes to the right end", got)
        return want

    def life(self):
        with vm.Machine(self.command()) as machine:
            machine.expect(PROMPT, vm.scaled(60))
            uptime = self.clock(machine)
            machine.send(program(STEPS // 6))
            machine.expect(r"halfway", vm.scaled(90))
            trouble, rest = saved.save_and_end(machine, "saved", self.state)
            if not self.result(not trouble, "saved; the old process ends", trouble):
                return False
            if "chain=" in rest:
                self.tap.skip("%d vCPU: the computation goes on" % self.cpus, "it had ended before the save")
                return False
        self.result(os.stat(self.state).st_mode & 0o777 == 0o600 and not [
            n for n in os.listdir(self.folder.path) if "hvx-save" in n], "one file, nobody else's to read")
        # Twice from one file: the disk must be as it was, so what the first one writes is thrown away.
        with vm.Machine(self.restored(disk=(self.disk, "raw,snapshot=on"))) as machine:
            self.go_on(machine, "restored with snapshot=on")
        with vm.Machine(self.restored()) as machine:
            want = self.go_on(machine, "restored again")
            now = self.clock(machine)
            self.result(uptime < now < uptime + vm.scaled(60), "the guest's clock goes on",
                        "%s, then %s" % (uptime, now))
            machine.send("poweroff -f\n")
            status, _ = machine.finish(vm.scaled(60))
            self.result(status == vm.POWERED_OFF, "power-off ends with 0", "status %s" % status)
        with open(self.disk, "rb") as f:
            data = f.read()
        self.result(all(data[i * 512:].startswith(d.encode()) for i, d in enumerate(want)),
                    "the disk holds what was written before and after")
        return True

    def refused(self, name, words, command):
        status, text = saved.refusal(command)
        self.result(status == 1 and words in text, "refused: " + name, "status %s: %s" % (status, text[-600:]))

    def refusals(self):
        """On the state of life(), whose disk has changed since."""
        bad = self.folder.file("bad")
        self.refused("the disk was written to since", "has been changed since", self.restored())
        parts = saved.sections(self.state)
        seen = set()
        for s in parts:
            if s.name in seen:
                continue
            seen.add(s.name)
            where = {"payload": s.payload + s.size // 2, "checksum": s.crc + 1}
            for part, at in where.items():
                saved.patched(self.state, bad, {at: None})
                status, text = saved.refusal(self.restored(bad))
                if status != 1 or "damaged" not in text:
                    self.result(False, "a flipped bit in the %s of section '%s'" % (part, s.name), text)
        self.result(True, "refused: a flipped bit in payload and checksum of each of %d kinds of section" % len(seen))
        head = parts[1]
        for name, changes, words in (
                ("a newer format", {8: struct.pack("<I", 99)}, "newer"),
                ("another program's file", {0: b"QFI\xfb"}, "not a saved state"),
                ("a damaged head of a section", {head.at: b"\xff\xff"}, "damaged"),
                ("a section that claims too much", {head.payload - 4: b"\xff\xff\xff\x7f"}, "damaged")):
            saved.patched(self.state, bad, changes)
            self.refused(name, words, self.restored(bad))
        whole = os.path.getsize(self.state)
        for name, size in (("half a file", whole // 2), ("the last byte missing", whole - 1), ("nothing", 0)):
            saved.patched(self.state, bad, {})
            os.truncate(bad, size)
            self.refused(name, "incomplete" if size else "not a saved state", self.restored(bad))
        with open(bad, "ab") as f:
            f.write(open(self.state, "rb").read() + b"x")
        self.refused("something behind the end", "follows the end", self.restored(bad))
        self.refused("no file", "No such file", self.restored("/nonexistent/state"))
        self.refused("other memory", "--memory %dM" % MEMORY, self.restored(memory=MEMORY + 16))
        self.refused("other number of vCPUs", "--cpus %d" % self.cpus, self.restored(cpus=self.cpus + 1))
        self.refused("another device", "virtio-net", self.restored() + ["--net", "user"])

    def survives(self):
        """What goes wrong with saving leaves the VM running and no file."""
        def lives(machine, what):
            machine.send("echo ali''ve\n")
            machine.expect(r"alive", vm.scaled(30))
            self.result(not os.path.exists(self.state) and not [n for n in os.listdir(self.folder.path) if "save" in n],
                        "the VM goes on and no file is left after " + what)
        os.unlink(self.state)
        hvx = vm.hvx_program()
        with vm.Machine(self.command()) as machine:
            machine.expect(PROMPT, vm.scaled(60))
            status, text = saved.save("saved", "/nonexistent/folder/state")
            self.result(status == 1 and "/nonexistent" in text, "no folder: says so", text)
            lives(machine, "a wrong folder")
            script = 'mount -t tmpfs -o size=2m none "$1" && exec "$0" save saved "$1/x"'
            full = subprocess.run(["unshare", "-rm", "sh", "-c", script, hvx, self.full_folder()],
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if "unshare" in full.stdout or "mount" in full.stdout:
                self.tap.skip("a full disk", full.stdout.strip())
            else:
                self.result(full.returncode == 1 and "No space" in full.stdout, "a full disk: says so", full.stdout)
                lives(machine, "a full disk")
            client = subprocess.Popen([hvx, "save", "saved", self.state, "--exec", "sleep 60"],
                                      stderr=subprocess.DEVNULL, start_new_session=True)
            deadline = time.monotonic() + vm.scaled(60)
            while self.info().get("state") != "saving" and time.monotonic() < deadline:
                time.sleep(0.05)
            self.result(self.info().get("state") == "saving", "hvx ps says that it is being saved")
            os.killpg(client.pid, signal.SIGKILL)
            client.wait()
            lives(machine, "hvx save was killed")
            status, text = saved.save("saved", self.state, "--exec", "exit 3")
            self.result(status == 1 and "status 3" in text, "a command of --exec that fails is told", text)
            lives(machine, "--exec failed")
            status, text = saved.save("saved", self.state, "--continue",
                                      "--exec", "cp -p '%s' '%s'" % (self.disk, self.disk + ".copy"))
            machine.send("echo ali''ve\n")
            machine.expect(r"alive", vm.scaled(30))
            self.result(status == 0 and os.path.exists(self.state), "--continue: saved, and it goes on", text)
            client = subprocess.Popen([hvx, "save", "saved", self.state + ".2", "--exec", "sleep 60"],
                                      stderr=subprocess.DEVNULL, start_new_session=True)
            while self.info().get("state") != "saving" and time.monotonic() < deadline:
                time.sleep(0.05)
            machine.proc.kill()
            os.killpg(client.pid, signal.SIGKILL)
            client.wait()
            self.result(not os.path.exists(self.state + ".2"), "no file when the VM is killed meanwhile")
        copy = self.restored(disk=(self.disk + ".copy", "raw"))
        if vm.ENGINE == "bt":
            self.refused("a lesser processor", "lacks", copy + ["--cpu", "x86-64-v1"])
        with vm.Machine(copy) as machine:
            machine.send("echo ali''ve\n")
            machine.expect(r"alive", vm.scaled(60))
            self.result(True, "restored with the disk that --exec has copied")

    def full_folder(self):
        path = self.folder.file("full")
        os.makedirs(path, exist_ok=True)
        return path

    def info(self):
        listed = subprocess.run([vm.hvx_program(), "ps", "--json"], stdout=subprocess.PIPE, text=True).stdout
        return next((v for v in json.loads(listed) if v["name"] == "saved"), {})


def main():
    if vm.ENGINE == "qemu-tcg":
        vm.skip("QEMU has its own way")
    tap = vm.Tap()
    with saved.Folder() as folder:
        for cpus in (1, 2):
            test = Test(tap, folder, cpus)
            try:
                good = test.life()
                if cpus == 1 and good:
                    test.refusals()
                    test.survives()
            except (vm.Timeout, vm.Ended) as trouble:
                tap.result(False, "%d vCPU: goes on" % cpus, trouble)
    tap.done()


main()
