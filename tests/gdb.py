#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`hvx run --gdb` with the real gdb: a test kernel with two vCPUs; and by hand what gdb does on ^C and kill."""
import os, re, shutil, signal, socket, struct, subprocess, sys, tempfile, time

build = os.environ["top_builddir"]
HVX = os.path.join(build, "core", "hvx")
KERNEL = os.path.join(build, "tests", "kernels", "t64_smp.elf")
ENGINE = os.path.join(build, "plugins", "cpu-bt", ".libs", "cpu-bt.so")
BOARD = os.path.join(build, "plugins", "dev-pc", ".libs", "dev-pc.so")
for needed in (KERNEL, ENGINE, BOARD, shutil.which("gdb"), shutil.which("nm")):
    if not needed or not os.path.exists(needed):
        print("1..0 # SKIP needs gdb, nm, cpu-bt, dev-pc and the test kernels")
        sys.exit(77)
tmp = tempfile.mkdtemp(prefix="hvx-test-gdb-")
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


def start(*more):
    """The VM, when its socket is there."""
    path = os.path.join(tmp, "gdb.sock")
    vm = subprocess.Popen([HVX, "run", "--no-defaults", "--memory", "64M", "--debug-exit", "--engine", "bt", *more,
                           "--gdb", f"unix:{path},arch=x86-64"],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said = b""
    while b"target remote" not in said:
        line = vm.stderr.readline()
        if not line:
            break
        said += line
    return vm, path


symbols = {}
for line in subprocess.run(["nm", KERNEL], capture_output=True, text=True).stdout.splitlines():
    address, _, name = line.split()[-3:]
    symbols[name] = int(address, 16)


def in_file(address, n):
    """Bytes of the kernel file that are loaded to `address` (ELF32 program headers)."""
    data = open(KERNEL, "rb").read()
    phoff, = struct.unpack_from("<I", data, 28)
    size, number = struct.unpack_from("<HH", data, 42)
    for i in range(number):
        kind, offset, virt, _, filesz = struct.unpack_from("<5I", data, phoff + i * size)
        if kind == 1 and virt <= address < virt + filesz:
            return data[offset + address - virt:][:n]
    return b""


# --- gdb and a kernel with two vCPUs ---------------------------------------------------

SCRIPT = """
set pagination off
set confirm off
set architecture i386:x86-64
target remote {sock}
printf "first pc %#lx\\n", $pc
info threads
break *{tk_main:#x}
continue
printf "at main %#lx %#lx %#lx\\n", $pc, $cr0, $efer
printf "bytes %02x %02x %02x %02x\\n", *(unsigned char *)$pc, *(unsigned char *)($pc + 1), *(unsigned char *)($pc + 2), *(unsigned char *)($pc + 3)
stepi
printf "stepped %#lx\\n", $pc
stepi
printf "stepped again %#lx\\n", $pc
set $rax = 0x1122334455667788
set $xmm3.uint128 = 77
set $st0 = 1.5
printf "set %#lx %d %f\\n", $rax, $xmm3.v4_int32[0], $st0
set {{long}}0x9000 = 0x1234567812345678
printf "memory %#lx\\n", *(long *)0x9000
python
try:
    gdb.execute("x/1xw 0x7fff00000000")
except gdb.error as e:
    print(e)
end
hbreak *{ap_main:#x}
continue
printf "second cpu: thread %d at %#lx\\n", $_thread, $pc
info threads
thread 1
printf "the first is not there: %d\\n", $pc != {ap_main:#x}
delete
watch *(int *){ap_alive:#x}
continue
printf "watched: thread %d, value %d\\n", $_thread, *(int *){ap_alive:#x}
delete
rwatch *(int *){job:#x}
continue
printf "read by thread %d\\n", $_thread
delete
detach
"""
vm, path = start("--kernel", KERNEL, "--cpus", "2", "--gdb-wait")
script = os.path.join(tmp, "script")
with open(script, "w") as f:
    f.write(SCRIPT.format(sock=path, **symbols))
g = subprocess.run(["gdb", "-nx", "-batch", "-x", script], capture_output=True, text=True, timeout=300)
out = g.stdout + g.stderr
main, ap_main = symbols["tk_main"], symbols["ap_main"]
for what, pattern in (
        ("--gdb-wait: not one instruction has run", rf"first pc {symbols['_start']:#x}\n"),
        ("each vCPU is a thread, and gdb hears what it does", r"Thread 2 \(vCPU 1, CPL 0, waits for its start\)"),
        ("a breakpoint is met", rf"Thread 1 hit Breakpoint 1, .*\nat main {main:#x} 0x[0-9a-f]+ 0x[0-9a-f]*d[0-9a-f]{{2}}\n"),
        ("memory shows the kernel, not the breakpoint", "bytes " + " ".join("%02x" % b for b in in_file(main, 4)) + "\n"),
        ("a step goes to the next instruction", rf"stepped {main + 2:#x}\n.*\nstepped again {main + 3:#x}\n"),
        ("registers are written: general, SSE, x87", r"set 0x1122334455667788 77 1\.5"),
        ("memory is written", r"memory 0x1234567812345678\n"),
        ("memory that is not mapped is an error", r"Cannot access memory at address 0x7fff00000000"),
        ("a hardware breakpoint is met by the second vCPU", rf"second cpu: thread 2 at {ap_main:#x}\n"),
        ("the first vCPU is somewhere else", r"the first is not there: 1\n"),
        ("a watch point stops after the write", r"Hardware watchpoint \d+: [^\n]*\n(.*\n)*.*Old value = 0\nNew value = 1\n(.*\n)*watched: thread 2, value 1\n"),
        ("a read is watched", r"read by thread [12]\n"),
        ("detach", r"\[Inferior 1 \(.*\) detached\]")):
    check(re.search(pattern, out), what, out)
try:
    said, _ = vm.communicate(timeout=300)
except subprocess.TimeoutExpired:
    vm.kill()
    said, _ = vm.communicate()
check(vm.returncode == 33 and b"not ok" not in said and said.count(b"ok ") == 13,
      "afterwards the guest runs to its end, and has noticed nothing", said.decode())

# --- the same by hand: ^C, a client that goes away, kill ------------------------------------

rom = bytearray(b"\xf4" * 65536)
rom[0:11] = b"\xba\xf8\x03\xb0!\xee\x66\x40\xeb\xfc\xf4"  # '!' to the serial line; inc eax; jmp back to it
rom[0xFFF0:0xFFF3] = b"\xe9" + struct.pack("<h", 0x10000 - 0xFFF3)
with open(os.path.join(tmp, "rom"), "wb") as f:
    f.write(rom)


class Client:
    def __init__(self, path):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.settimeout(60)
        self.s.connect(path)
        self.buf = b""

    def packet(self):
        while not re.search(rb"\$[^#]*#..", self.buf):
            got = self.s.recv(65536)
            if not got:
                return None
            self.buf += got
        m = re.search(rb"\$([^#]*)#..", self.buf)
        self.buf = self.buf[m.end():]
        self.s.sendall(b"+")
        return m.group(1).decode()

    def send(self, text):
        self.s.sendall(b"$%s#%02x" % (text.encode(), sum(text.encode()) & 255))

    def ask(self, text):
        self.send(text)
        return self.packet()

    def rax(self):
        return int.from_bytes(bytes.fromhex(self.ask("p0")), "little")


vm, path = start("--firmware", os.path.join(tmp, "rom"))
check(vm.stdout.read(1) == b"!", "without --gdb-wait the guest runs at once")
c = Client(path)
check(c.ask("?").startswith("T05"), "whoever connects finds the VM stopped")
before = c.rax()
check(c.rax() == before, "and it stays so")
c.send("c")
time.sleep(0.2)
c.s.sendall(b"\x03")
check((c.packet() or "").startswith("T02"), "^C stops it")
after = c.rax()
check(after != before, "and it had run meanwhile", (before, after))
other = Client(path)
check(other.s.recv(10) == b"", "a second client is turned away")
c.s.close()
c = None
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    c = Client(path)
    try:
        now = c.rax()
    except (TypeError, OSError):
        now = after
    if now != after:
        break
    c.s.close()
check(now != after, "when its gdb goes away without a word, the guest goes on")
c.send("k")
check(vm.wait(60) == 6, "kill ends the VM with status 6", vm.returncode)
check(not os.path.exists(path), "and its socket is gone")

# --- command lines ------------------------------------------------------------------------------

for args, words in ((["--gdb", "nowhere"], "[HOST:]PORT"), (["--gdb", "99999"], "[HOST:]PORT"),
                    (["--gdb", "1234,arch=vax"], "arch=vax"), (["--gdb", "unix:/nonexistent/x"], "/nonexistent/x"),
                    (["--gdb", "unix:" + "x" * 200], "characters"), (["--gdb-wait"], "needs --gdb")):
    r = subprocess.run([HVX, "run", "--no-defaults", "--kernel", KERNEL, *args], stdin=subprocess.DEVNULL,
                       capture_output=True, text=True, timeout=60)
    check(r.returncode in (1, 2) and words in r.stderr, f"{' '.join(args)[:40]} is refused", r)
shutil.rmtree(tmp, ignore_errors=True)
print(f"1..{count}")
sys.exit(failed > 0)
