#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Devices in front of a real driver: two queues with two vCPUs, a SCSI adapter with disks and a CD-ROM, disks and a
network card that come and go, and memory that goes back to the host. Stock kernel, initramfs of tests/guest/make-initrd.
"""
import json
import os
import re
import subprocess
import tempfile
import time

import vm

MAKE_INITRD = os.path.join(vm.TESTS, "guest", "make-initrd")
MIB = 1 << 20


def files():
    folder = os.environ.get("HVX_INITRD") or os.path.join(vm.GUESTS, "initrd")
    if not all(os.path.exists(os.path.join(folder, f)) for f in ("vmlinuz", "initrd.img")):
        made = subprocess.run([MAKE_INITRD, folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if made.returncode != 0:
            vm.skip("no initramfs: " + (made.stdout.strip().splitlines() or ["make-initrd failed"])[-1])
    return folder


def hvx(*args):
    """(exit status, output) of an hvx command."""
    done = subprocess.run([vm.hvx_program(), *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout.strip()


class Shell(vm.Machine):
    def ready(self):
        self.expect(r"[#$] ", vm.scaled(180))
        self.send("stty -echo; export PS1= PS2=; echo @@''ready@@\n")
        self.expect(r"@@ready@@\n", vm.scaled(30))

    def run(self, command, timeout=60):
        self.send("{ %s\n} 2>&1; echo @@$?@@\n" % command)
        found = self.expect(r"([\s\S]*?)@@(\d+)@@\n", vm.scaled(timeout))
        return int(found[2]), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", found[1])

    def until(self, command, pattern, timeout=30):
        """Repeats a command until its output matches; returns (whether, output)."""
        end = time.monotonic() + vm.scaled(timeout)
        while True:
            _, text = self.run(command)
            if re.search(pattern, text, re.M):
                return True, text
            if time.monotonic() > end:
                return False, text
            time.sleep(0.5)


def raw(path, mib, mark):
    with open(path, "wb") as f:
        f.truncate(mib * MIB)
        f.write(mark.encode())
    return path


def queues(tap, guest):
    status, text = guest.run("ls /sys/block/vda/mq | wc -l; ls -d /sys/class/net/eth0/queues/rx-* | wc -l; nproc")
    tap.result(text.split() == ["2", "2", "2"], "virtio-blk and virtio-net: two queues for two vCPUs", text)
    status, text = guest.run("ip link set eth0 up; udhcpc -i eth0 -n -q -t 10 -s /bin/udhcpc-script && ping -c 2 10.0.2.2")
    tap.result(status == 0, "traffic through a card with two pairs of queues", text)


def scsi(tap, guest, disk):
    guest.until("ls -1 /sys/class/block", r"^sdb$")
    # Names go by who is found first: ask by target.
    guest.run("zero=$(ls /sys/bus/scsi/devices/*:0:0:0/block) one=$(ls /sys/bus/scsi/devices/*:0:1:0/block)")
    status, text = guest.run("cat /sys/block/$zero/device/vendor /sys/block/$zero/device/model; head -c 9 /dev/$zero; echo; "
                             "head -c 8 /dev/$one; echo; blockdev --getsize64 /dev/$zero; head -c 7 /dev/sr0")
    tap.result(re.search(r"HVX *\nDISK *\nscsi-zero\nscsi-one\n%d\ncd-mark" % (32 * MIB), text) is not None,
               "SCSI: two disks and a CD-ROM drive with their contents", text)
    status, text = guest.run("dd if=/dev/urandom of=/tmp/r bs=1M count=8 2>/dev/null; dd if=/tmp/r of=/dev/$zero bs=1M seek=4 "
                             "conv=fsync 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/$zero bs=1M skip=4 count=8 "
                             "2>/dev/null | cmp - /tmp/r && echo same; rm /tmp/r", timeout=120)
    tap.result("same" in text, "SCSI: what was written is read back", text)
    before = os.stat(disk).st_blocks
    status, text = guest.run("cat /sys/block/$zero/queue/discard_max_bytes /sys/block/$zero/device/queue_depth; "
                             "ls /sys/block/$zero/mq | wc -l; blkdiscard -o 4194304 -l 8388608 /dev/$zero && echo discarded")
    tap.result("discarded" in text and not text.startswith("0\n"), "SCSI: discard", text)
    tap.result(os.stat(disk).st_blocks < before, "SCSI: the discarded space is free in the file",
               "%d blocks before, %d after" % (before, os.stat(disk).st_blocks))


def hot_plug(tap, guest, name, folder):
    disk = raw(os.path.join(folder, "hot.raw"), 16, "hot-disk")
    status, text = hvx("attach", name, "--disk", disk + ",serial=HOT1,queues=2")
    tap.result(status == 0 and re.fullmatch(r"disk\d+", text), "attach a disk", text)
    disk_id = text
    good, text = guest.until("cat /sys/block/vd?/serial", r"HOT1")
    tap.result(good, "the guest has found the disk", text)
    status, text = guest.run("head -c 8 /dev/vdb; echo; echo back >/dev/vdb; sync; ls /sys/block/vdb/mq | wc -l")
    tap.result(status == 0 and text.split() == ["hot-disk", "2"], "it is read and written, through two queues", text)
    status, text = hvx("attach", name, "--disk", disk)
    tap.result(status != 0 and "in use" in text, "the same file a second time is refused", text)
    status, text = hvx("detach", name, disk_id)
    tap.result(status == 0, "detach the disk", text)
    good, text = guest.until("ls -1 /sys/block", r"\A(?![\s\S]*vdb)")
    tap.result(good, "the guest has it no more", text)
    with open(disk, "rb") as f:
        tap.result(f.read(4) == b"back", "what the guest wrote is in the file")
    status, text = hvx("attach", name, "--disk", disk + ",if=scsi,serial=HOT2,snapshot=on")
    tap.result(status == 0, "attach the same disk again, with an adapter of its own", text)
    scsi_id = text
    good, text = guest.until("ls -1 /sys/class/block", r"^sdc$")
    tap.result(good, "the guest has found the SCSI disk", text)
    status, text = hvx("detach", name, scsi_id)
    tap.result(status == 0, "detach it", text)
    status, net_id = hvx("attach", name, "--net", "user")
    tap.result(status == 0, "attach a network card", net_id)
    good, text = guest.until("ls -1 /sys/class/net", r"^eth1$")
    tap.result(good, "the guest has found the card", text)
    status, text = guest.run("ip link set eth0 down; ip link set eth1 up; udhcpc -i eth1 -n -q -t 10 "
                             "-s /bin/udhcpc-script && ping -c 2 10.0.2.2; ip link set eth1 down")
    tap.result("2 packets received" in text, "traffic through it", text)
    status, text = hvx("detach", name, net_id)
    tap.result(status == 0, "detach the card", text)
    status, text = hvx("detach", name, "disk99")
    tap.result(status != 0 and "no device" in text, "detach of what is not there is refused", text)


def figures(name):
    status, text = hvx("balloon", "--json", name)
    return json.loads(text) if status == 0 else {}


def balloon(tap, guest, name):
    # Memory that the guest has used once and freed is still there on the host: until it is reported.
    guest.run("mount -t tmpfs -o size=300m none /mnt || { mkdir -p /mnt; mount -t tmpfs -o size=300m none /mnt; }")
    guest.run("dd if=/dev/zero of=/mnt/x bs=1M count=256 2>/dev/null", timeout=120)
    full = figures(name)
    guest.run("rm /mnt/x")
    end = time.monotonic() + vm.scaled(30)
    while time.monotonic() < end and figures(name)["resident"] > full["resident"] - 200 * MIB:
        time.sleep(0.5)
    after = figures(name)
    tap.result(after["resident"] <= full["resident"] - 200 * MIB, "freed memory goes back to the host by itself",
               "%s\n%s" % (full, after))
    print("# free-page reporting: %.0f MiB on the host with the file, %.0f MiB after" %
          (full["resident"] / MIB, after["resident"] / MIB))
    guest.run("dd if=/dev/zero of=/mnt/x bs=1M count=100 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches", timeout=120)
    before = figures(name)
    status, text = hvx("balloon", "--wait", "60", name, "320M")
    small = figures(name)
    tap.result(status == 0 and small["actual"] == 320 * MIB, "the balloon takes the guest down to 320 MiB", text)
    status, text = guest.run("grep MemTotal /proc/meminfo")
    tap.result(small["resident"] <= 320 * MIB + 8 * MIB, "and the host has no more than that in use", str(small))
    print("# balloon: %.0f MiB on the host before, %.0f MiB at a target of 320 MiB" % (before["resident"] / MIB,
                                                                                    small["resident"] / MIB))
    status, text = hvx("balloon", "--wait", "60", name, "512M")
    tap.result(status == 0, "the guest gets it back", text)
    status, text = guest.run("cmp -n 104857600 /mnt/x /dev/zero && echo intact; rm /mnt/x; umount /mnt", timeout=120)
    tap.result("intact" in text, "what the guest had in use is intact", text)
    status, text = hvx("stat", name)
    tap.result("reported free so far" in text and "guest: available" in text, "hvx stat has the figures", text[-1500:])
    status, text = hvx("balloon", name, "1M")
    tap.result(status != 0 and "between" in text, "a size that cannot be is refused", text)


def main():
    if vm.ENGINE == "qemu-tcg":
        vm.skip("for HVX only")
    folder = files()
    tap = vm.Tap()
    with tempfile.TemporaryDirectory() as tmp:
        name = "devices-%d" % os.getpid()
        first = raw(os.path.join(tmp, "first.raw"), 8, "first")
        one, two = raw(os.path.join(tmp, "one.raw"), 32, "scsi-zero"), raw(os.path.join(tmp, "two.raw"), 8, "scsi-one")
        cd = raw(os.path.join(tmp, "cd.iso"), 4, "cd-mark")
        modules = "virtio_pci,virtio_blk,virtio_net,virtio_scsi,sd_mod,sr_mod,virtio_balloon,button"
        words = "console=ttyS0 quiet panic=-1 hvx.modules=%s hvx.run=shell" % modules
        command = vm.command(cpus=2, memory=512, kernel=os.path.join(folder, "vmlinuz"), net="user",
                             initrd=os.path.join(folder, "initrd.img"), append=words, disk=(first, "raw"),
                             extra=["--name", name, "--disk", one + ",if=scsi,queues=2", "--disk", two + ",if=scsi",
                                    "--disk", cd + ",if=scsi,media=cdrom"])
        command[command.index("--net") + 1] += ",queues=0"
        with Shell(command) as guest:
            try:
                guest.ready()
                queues(tap, guest)
                scsi(tap, guest, one)
                hot_plug(tap, guest, name, tmp)
                balloon(tap, guest, name)
                guest.send("poweroff -f\n")
                tap.result(guest.finish(vm.scaled(60))[0] == vm.POWERED_OFF, "power-off ends with 0")
            except (vm.Timeout, vm.Ended) as trouble:
                tap.result(False, "the guest does what it is told", trouble)
    tap.done()


main()
