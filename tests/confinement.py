#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The confinement of a running VM, from inside (tests/plugins/escape.c) and from outside (/proc)."""
import os, signal, struct, subprocess, sys, tempfile, time

build = os.environ["top_builddir"]
HVX = os.path.join(build, "core", "hvx")
ESCAPE = os.path.join(build, "tests", "plugins", ".libs")
libs = [os.path.join(build, "plugins", p, ".libs") for p in ("cpu-bt", "dev-pc", "dev-virtio")]
if not all(os.path.isdir(d) for d in libs):
    print("1..0 # SKIP needs cpu-bt, dev-pc and dev-virtio")
    sys.exit(77)
tmp = tempfile.mkdtemp(prefix="hvx-test-confine-")
os.environ.update(XDG_RUNTIME_DIR=tmp, HVX_PLUGIN_DIR=":".join(libs + [ESCAPE]), HVX_CONF=os.path.join(tmp, "hvx.conf"))
with open(os.environ["HVX_CONF"], "w") as f:
    f.write("plugins = {cpu-bt, dev-pc, dev-virtio, dev-escape}\n")
with open(HVX, "rb") as f:
    sanitized = b"__asan_init" in f.read()
count = failed = 0


def check(good, text, detail=""):
    global count, failed
    count += 1
    failed += not good
    print(f"{'ok' if good else 'not ok'} {count} - {text}", flush=True)
    if not good and detail:
        print("# " + str(detail).replace("\n", "\n# "), flush=True)


def firmware(name, code):
    rom = bytearray(b"\xf4" * 65536)
    rom[: len(code)] = code
    rom[0xFFF0:0xFFF3] = b"\xe9" + struct.pack("<h", 0x10000 - 0xFFF3)
    path = os.path.join(tmp, name)
    with open(path, "wb") as f:
        f.write(rom)
    return path


def out8(port, value):
    return b"\xba" + struct.pack("<H", port) + b"\xb0" + bytes([value]) + b"\xee"


HALT = b"\xfa\xf4\xeb\xfd"
BASE = [HVX, "run", "--no-defaults", "--memory", "32M", "--device", "escape", "--debug-exit", "--firmware"]


def attempt(number, *more):
    rom = firmware("escape%d" % number, out8(0x5F0, number) + out8(0x501, 9) + HALT)
    r = subprocess.run(BASE + [rom, "--name", "escape", *more], stdin=subprocess.DEVNULL, capture_output=True,
                       timeout=120)
    return r.returncode, r.stderr.decode("latin1")


def tidied_up():
    """By a process of its own, a little after the VM's."""
    deadline = time.monotonic() + 20
    while os.listdir(os.path.join(tmp, "hvx")) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not os.listdir(os.path.join(tmp, "hvx"))


# What, the system call in the message (None: the kernel kills without one), does a sanitizer need it
for number, what, call, excepted in (
        (0, "opening a file", "openat", True), (1, "making a socket", "socket", False),
        (2, "starting a program", None, False), (3, "forking", "clone", True),
        (4, "removing a file", "unlink", False), (5, "a signal to another process", "kill", True),
        (6, "making memory executable", "mprotect", True), (8, "typing into the terminal", "ioctl", True)):
    if sanitized and excepted:
        continue
    status, err = attempt(number)
    good = status == -signal.SIGSYS and "gave" not in err
    if call:
        good = good and f"made the system call {call} (" in err and "confinement forbids" in err
    check(good, f"{what} from inside ends the VM with SIGSYS" + (" and a message" if call else ""), f"{status} {err}")
    check(tidied_up(), f"{what}: the control socket is gone all the same", os.listdir(os.path.join(tmp, "hvx")))
status, err = attempt(7)
check(status == 19 and "ring gave -1" in err, "a new io_uring is refused, and nobody dies of it", f"{status} {err}")
status, err = attempt(1, "--no-confinement")
check(status == 19 and "socket gave" in err and "gave -1" not in err and "warning: " in err,
      "--no-confinement lets it, after a warning", f"{status} {err}")

# An engine may ask whether it is confined: in al, 0x5f0; add al, al; out 0x501
rom = firmware("ask", b"\xba\xf0\x05\xec\xba\x01\x05\xee" + HALT)
for more, want in (([], 3), (["--no-confinement"], 1)):
    r = subprocess.run(BASE + [rom, *more], stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    check(r.returncode == want, f"is_confined() says {want == 3}", r)


def status_of(pid):
    threads = {}
    for tid in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{tid}/status") as f:
            threads[tid] = dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)
    return threads


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return [int(p) for p in f.read().split()]


disk = os.path.join(tmp, "disk.raw")
with open(disk, "wb") as f:
    f.truncate(1 << 20)
rom = firmware("up", out8(0x3F8, ord("!")) + HALT)
vm = subprocess.Popen([*BASE, rom, "--name", "looked-at", "--disk", disk + ",if=ide", "--net", "user", "--cpus", "2"],
                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
up = vm.stdout.read(1)
threads = status_of(vm.pid)
check(up == b"!" and len(threads) >= 4, "a VM with a disk and two vCPUs has its threads", threads.keys())
for field, want in (("NoNewPrivs", "1"), ("Seccomp", "2"), ("CapEff", "0" * 16), ("CapPrm", "0" * 16),
                    ("CapInh", "0" * 16)):
    wrong = {t["Name"]: t[field] for t in threads.values() if t[field] != want}
    check(not wrong, f"{field} is {want} in every thread", wrong)
for pid in children(vm.pid):
    deadline = time.monotonic() + 20
    while True:  # it confines itself, a little after the VM goes on
        t = status_of(pid)[str(pid)]
        good = (t["Name"] != "hvx" and t["NoNewPrivs"] == "1" and t["Seccomp"] == "2" and
                (t["Name"] == "hvx-tidy" or t["CapEff"] == "0" * 16))
        if good or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    check(good, f"so it is in its helper {t['Name']}", t)
r = subprocess.run([HVX, "screendump", "looked-at", os.path.join(tmp, "x.png")], capture_output=True)
check(r.returncode == 0, "hvx screendump works with it", r)
r = subprocess.run([HVX, "stat", "looked-at"], capture_output=True)
check(r.returncode == 0, "hvx stat works with it", r)
os.kill(vm.pid, signal.SIGKILL)
vm.wait()
check(tidied_up(), "the control socket of a VM that was killed is removed")
subprocess.run(["rm", "-rf", tmp])
print(f"1..{count}")
sys.exit(failed > 0)
