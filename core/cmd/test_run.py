#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""hvx run and its relatives, from outside: wrong command lines, exit statuses, the control socket, the terminal.
The guests are a few instructions of real-mode code in place of the firmware."""
import json, os, pty, select, signal, socket, struct, subprocess, sys, tempfile, time

build = os.environ["top_builddir"]
HVX = os.path.join(build, "core", "hvx")
tmp = tempfile.mkdtemp(prefix="hvx-test-run-")
os.environ["XDG_RUNTIME_DIR"] = tmp
os.environ.pop("HVX_CONF", None)
count = failed = 0


def check(good, text, detail=""):
    global count, failed
    count += 1
    failed += not good
    print(f"{'ok' if good else 'not ok'} {count} - {text}", flush=True)
    if not good and detail:
        print("# " + str(detail).replace("\n", "\n# "), flush=True)


def hvx(*args, timeout=180):
    r = subprocess.run([HVX, *args], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
    return r.returncode, r.stdout.decode("latin1"), r.stderr.decode("latin1")


# --- guests ---------------------------------------------------------------------

def firmware(name, code):
    """64 KiB with `code` at its start, which the reset vector at 0xfff0 jumps to. CS:0 is its first byte."""
    rom = bytearray(b"\xf4" * 65536)
    rom[: len(code)] = code
    rom[0xFFF0:0xFFF3] = b"\xe9" + struct.pack("<h", 0x10000 - 0xFFF3)
    path = os.path.join(tmp, name)
    with open(path, "wb") as f:
        f.write(rom)
    return path


def out8(port, value):
    return b"\xba" + struct.pack("<H", port) + b"\xb0" + bytes([value]) + b"\xee"


def say(text):
    return b"".join(out8(0x3F8, c) for c in text)


HALT = b"\xfa\xf4\xeb\xfd"  # cli; hlt; again
GUESTS = {
    "exit3": say(b"hello\r\n") + out8(0x501, 3) + HALT,
    "triple": b"\x2e\x0f\x01\x1e\x00\x80\xcc",  # lidt cs:[0x8000] below; int3
    "reset": out8(0xCF9, 0x02) + out8(0xCF9, 0x06) + HALT,
    "idle": say(b"up\r\n") + HALT,
    "flood": b"\xba\xf8\x03\xb0\x23\xee\xeb\xfd",  # out dx, al for ever
    # in al, 0x3fd; test al, 1; jz; in al, 0x3f8; inc al; out 0x3f8, al
    "echo": say(b"!") + b"\xba\xfd\x03\xec\xa8\x01\x74\xf8\xba\xf8\x03\xec\xfe\xc0\xee\xeb\xf0",
    # writes nonsense to every port and reads it; not 64, 92, cf9 (reset) and 500-507 (debug exit, pvpanic)
    "ports": b"\x31\xd2" b"\x83\xfa\x64\x74\x19" b"\x81\xfa\x92\x00\x74\x13" b"\x81\xfa\xf9\x0c\x74\x0d"
             b"\x89\xd0\x24\xf8\x3d\x00\x05\x74\x04" b"\x88\xd0\xee\xec" b"\x42\x75\xdf"
             + out8(0x501, 1) + HALT,
}
paths = {}
for name, code in GUESTS.items():
    paths[name] = firmware(name, code)
with open(paths["triple"], "r+b") as f:
    f.seek(0x8000)
    f.write(b"\0" * 6)

BASE = ["run", "--no-defaults", "--memory", "32M", "--firmware"]


def run(guest, *more, **kw):
    return hvx(*BASE, paths[guest], "--debug-exit", *more, **kw)


def start(guest, *more, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL):
    return subprocess.Popen([HVX, *BASE, paths[guest], *more], stdin=stdin, stdout=stdout, stderr=subprocess.PIPE)


def until(condition, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def running(name):
    return any(v["name"] == name for v in json.loads(hvx("ps", "--json")[1]))


def call(name, **request):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(f"{tmp}/hvx/{name}.sock")
        s.sendall(json.dumps(request).encode() + b"\n")
        return json.loads(s.makefile().readline())


# --- wrong command lines -------------------------------------------------------------

disk = os.path.join(tmp, "disk.img")
with open(disk, "wb") as f:
    f.truncate(1 << 20)
WRONG = [
    (["--frob"], 2, "--frob"),
    (["--cpus", "0", disk], 2, "1 to 64"),
    (["--cpus", "two", disk], 2, "two"),
    (["--memory", "1M", disk], 2, "at least 16M"),
    (["--memory", "100T", disk], 2, "1024G"),
    (["--memory", "lots", disk], 2, "512M"),
    (["--memory"], 2, "needs a value"),
    ([], 2, "nothing to boot"),
    (["--initrd", disk, disk], 2, "--kernel"),
    (["--name", "../etc", disk], 2, "letters"),
    (["--boot", "xyz", disk], 2, "letters"),
    (["--display", "gtk", disk], 2, "screendump"),
    (["--kernel", "/nonexistent/k"], 1, "/nonexistent/k"),
    (["--config", "/nonexistent/c", disk], 1, "/nonexistent/c"),
    (["--engine", "frob", disk], 1, "frob"),
]
WITH_PLUGINS = [
    (["/nonexistent/d.qcow2"], 1, "/nonexistent/d.qcow2"),
    ([os.path.join(tmp, "odd.name")], 1, "format="),
    ([disk + ",frob=1"], 1, "frob"),
    ([disk + ",snapshot=perhaps"], 1, "perhaps"),
    (["--no-defaults", "--firmware", paths["idle"], "--device", "frob"], 1, "frob"),
    ([disk, "--net", "frob"], 1, "frob"),
    ([disk, "--serial", "tcp:1"], 1, "unix:PATH"),
    ([disk, "--machine", "frob"], 1, "frob"),
    ([disk, "--engine-option", "frob=1"], 1, "frob"),
    ([disk, "--machine-option", "frob=1"], 1, "frob"),
]


def wrong(table):
    for args, status, words in table:
        s, _, err = hvx("run", *args)
        # Disks come first: a build without a disk device stops there.
        no_disks = any(a.startswith(disk) for a in args) and "role disk" in err
        check(s == status and (words in err or no_disks), f"hvx run {' '.join(args).replace(tmp, 'TMP')}: status {status}, says {words!r}",
              f"status {s}: {err}")


wrong(WRONG)
s, out, _ = hvx("ps")
check(s == 0 and out.count("\n") == 1, "hvx ps without VMs prints its heading alone")
for c in ("stop", "kill", "stat"):
    s, _, err = hvx(c, "nobody")
    check(s == 1 and "nobody" in err, f"hvx {c} names the VM that is not there")
    s, _, err = hvx(c)
    check(s == 2, f"hvx {c} without a name is a usage error")

# --- guests, when there is an engine and a board ------------------------------------------

plugins = json.loads(hvx("plugin", "list", "--json")[1])
ready = [p for p in plugins if p["status"] == "enabled"]
s, _, err = run("exit3")
if "no execution engine" in err or "role machine" in err:
    print(f"# {err.strip()}: no guests")
    print(f"1..{count}")
    sys.exit(failed != 0)

wrong(WITH_PLUGINS)
s, out, err = run("exit3")
check(s == 7 and "hello\r\n" in out, "a guest prints on the serial line and ends hvx with VALUE * 2 + 1", (s, out, err))
s, out, err = run("triple", "--no-reboot")
check(s == 5 and "triple fault" in err, "a triple fault with --no-reboot has status 5", (s, err))
s, out, err = run("reset", "--no-reboot")
check(s == 0 and "reset" in err, "a reset with --no-reboot has status 0", (s, err))
s, out, err = run("ports")
check(s == 3, "a guest that writes to nearly every port lives on", (s, err[-400:]))
s, out, err = run("exit3", "--cpus", "4", "--engine-option", "")
check(s == 7, "four vCPUs: the others wait for SIPI", (s, err))

line = os.path.join(tmp, "line")
p = start("idle", "--name", "one", "--serial", f"file:{line}")
check(until(lambda: running("one")), "hvx ps lists a running VM")
check(until(lambda: os.path.exists(line) and open(line, "rb").read() == b"up\r\n"), "the serial line goes to a file")
s, _, err = run("idle", "--name", "one")
check(s == 1 and "one" in err, "a second VM of that name is refused", (s, err))
s, out, _ = hvx("stat", "--json", "one")
stats = json.loads(out)
check(s == 0 and any(x["group"] == "ports" and x["name"] == "writes" and x["value"] > 3 for x in stats["stats"]),
      "hvx stat counts port writes")
check(hvx("stat", "one")[1].startswith("one: running"), "hvx stat prints for people")
check(call("one", command="pause")["ok"] and call("one", command="info")["state"] == "paused", "a VM can be paused")
check(call("one", command="state-round-trip")["ok"], "its state survives saving and restoring")
check(call("one", command="resume")["ok"] and call("one", command="info")["state"] == "running", "and go on")
check(call("one", command="reset")["ok"] and call("one", command="info")["resets"] == 1, "and be reset")
check(not call("one", command="fly")["ok"] and not call("one", command="sendkey", keys="nokey")["ok"],
      "unknown commands and keys are refused")
png = os.path.join(tmp, "screen.png")
s, _, err = hvx("screendump", "one", png)
check(s == 0 and open(png, "rb").read(8) == b"\x89PNG\r\n\x1a\n", "hvx screendump writes a PNG", err)
check(hvx("kill", "one")[0] == 0 and p.wait(90) == 6, "hvx kill ends it with status 6")
check(not os.path.exists(f"{tmp}/hvx/one.sock"), "no socket is left")

p = start("idle", "--name", "two", "--serial", "null")
until(lambda: running("two"))
p.send_signal(signal.SIGTERM)
check(p.wait(90) == 6, "SIGTERM ends a VM with status 6")
p = start("idle", "--name", "three", "--serial", "null")
until(lambda: running("three"))
p.kill()
p.wait()
check(hvx("ps", "--json")[1].strip() == "[]" and not os.listdir(f"{tmp}/hvx"), "hvx ps removes the socket of a dead VM")


# --- floods and the terminal -----------------------------------------------------------------

def rss(pid):
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[1]) * 4096


r, w = os.pipe()
p = start("flood", "--name", "flood", stdout=w)
os.close(w)
until(lambda: running("flood"))
time.sleep(0.5)
before = rss(p.pid)
time.sleep(1.5)
grown = rss(p.pid) - before
check(grown < 8 << 20, f"a flood that nobody reads does not grow the process ({grown >> 10} KiB in 1.5 s)")
check(call("flood", command="info")["ok"], "and the VM still answers")
check(hvx("kill", "flood")[0] == 0 and p.wait(90) == 6, "and ends when told to")
os.close(r)


def read_until(fd, what, seconds=90):
    got, end = b"", time.monotonic() + seconds
    while what not in got and time.monotonic() < end:
        if select.select([fd], [], [], 0.1)[0]:
            try:
                got += os.read(fd, 4096)
            except OSError:
                break
    return got


pid, fd = pty.fork()
if pid == 0:
    os.execv(HVX, [HVX, *BASE, paths["echo"], "--name", "term", "--quiet"])
check(b"!" in read_until(fd, b"!"), "the serial line is on the terminal")
os.write(fd, b"a")
check(b"b" in read_until(fd, b"b"), "keys reach the guest, raw")
os.write(fd, b"\x1d\x1d")
check(b"\x1e" in read_until(fd, b"\x1e"), "^] twice sends one")
os.write(fd, b"\x03")
check(b"\x04" in read_until(fd, b"\x04"), "^C is the guest's")
os.write(fd, b"\x1d")
read_until(fd, b"\0" * 99, 20)  # to the end of the pty
_, status = os.waitpid(pid, 0)
check(os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, "^] leaves with status 0", status)

print(f"1..{count}")
subprocess.run(["rm", "-rf", tmp])
sys.exit(failed != 0)
