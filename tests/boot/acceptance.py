#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""acceptance.py [--cpus 1,2] [--firmware bios|uefi] [--stress SECONDS] [--boots N] [--only NAME,...]
[--engine-option KEY=VALUE]... [--no-kaslr]

The long test: the full Debian guest boots through SeaBIOS (or OVMF) and GRUB from qcow2, somebody logs in on the serial
line and does real work. Each step checks an answer that is known or was computed on the host. Steps: tools digests
speed jit stress tables disk network stop poweroff fsck boots, with UEFI also variables."""
import argparse
import hashlib
import http.server
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request

import guest
import vm

STEPS = ["variables", "stop", "tools", "digests", "speed", "jit", "stress", "tables", "disk", "network", "boots"]

STRESSORS = ("--cpu 1 --cpu-method all --memcpy 1 --memcpy-method all --cache 1 --vm 1 --vm-bytes 64M --vm-method all "
             "--fork 1 --mmap 1 --mmap-bytes 32M --signal 1 --sigfpe 1 --sigsegv 1 --sigq 1 --sigrt 1 --signest 1 "
             "--switch 1 --futex 1 --sysinval 1 --pathological")

TABLE_STRESSORS = ("--mmap 1 --mmap-bytes 32M --mmapaddr 1 --mmapfork 1 --mmapfixed 1 --mmapmany 1 --mremap 1 "
                   "--mremap-bytes 8M --mprotect 1 --munmap 1 --madvise 1 --pagemove 1 --pagemove-bytes 4M --fault 1 "
                   "--tlb-shootdown 1 --vm-segv 1 --brk 1 --stack 1 --fork 1 --vfork 1 --zombie 1 --pthread 1 --signal 1 --sigsegv 1 "
                   "--sigtrap 1 --sigpending 1 --kill 1 --context 1 --switch 1")

# Objects, closures, integers that become doubles, strings, a sort; then the time it took, in ms.
JIT_PROGRAM = r"""<?php
class P { public $x; public $y; function __construct($x, $y) { $this->x = $x; $this->y = $y; } function n() { return $this->x * $this->x + $this->y * $this->y; } }
$begin = hrtime(true);
function fib($n) { return $n < 2 ? $n : fib($n - 1) + fib($n - 2); }
$h = 17; $s = 0; $d = 0.0;
for ($i = 1; $i <= 3000000; $i++) { $h = ($h * 31 + $i) & 0x7fffffff; $s += $h % 7; $d += 1 / ($i * $i); }
$sieve = array_fill(0, 200001, true);
for ($i = 2; $i * $i <= 200000; $i++) if ($sieve[$i]) for ($j = $i * $i; $j <= 200000; $j += $i) $sieve[$j] = false;
$primes = 0;
for ($i = 2; $i <= 200000; $i++) $primes += $sieve[$i];
$o = 0;
for ($i = 0; $i < 300000; $i++) { $p = new P($i % 1000, $i % 77); $o += $p->n(); }
$big = PHP_INT_MAX - 5;
for ($i = 0; $i < 10; $i++) $big += 1;
$f = fn($a) => $a * 3 + 1;
$t = "";
for ($i = 0; $i < 200000; $i++) { $t .= chr(97 + $f($i) % 26); if (strlen($t) > 4096) $t = substr($t, 2048); }
$a = [];
for ($i = 0; $i < 50000; $i++) $a[] = ($i * 7919) % 104729;
sort($a);
printf("%d %d %.12f %d %d %s %d %s %d\n", $h, $s, $d, $primes, $o, gettype($big), fib(24), md5($t), $a[777]);
printf("%d\n", (hrtime(true) - $begin) / 1000000);
"""

JIT_ANSWER = "915289969 9005370 1.644933733515 17984 100431434636 double 46368 ab277fe484d9c9ddfc815177bdd398ec 1631"

C_PROGRAM = r"""
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static unsigned long total;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static void *work(void *arg)
{
    unsigned long sum = 0;
    for (unsigned long i = 0; i < 200000; i++)
        sum += i ^ (unsigned long)arg;
    pthread_mutex_lock(&mutex);
    total += sum;
    pthread_mutex_unlock(&mutex);
    return NULL;
}
static int compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}
int main(void)
{
    pthread_t t[4];
    char *words[] = {"delta", "alpha", "echo", "charlie", "bravo"};
    double s = 0;
    for (long i = 0; i < 4; i++)
        pthread_create(&t[i], NULL, work, (void *)(i * 1000));
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    qsort(words, 5, sizeof(words[0]), compare);
    for (int i = 1; i <= 1000; i++)
        s += sin(i) * sqrt(i) / exp(i / 500.0);
    printf("%lu %s %s %.9f\n", total, words[0], words[4], s);
    return 0;
}
"""

PYTHON_PROGRAM = """
import hashlib, json, math, re, zlib
n = 0
for i in range(1, 2000):
    n = (n * 31 + pow(i, 65537, 1000003)) % (1 << 61)
text = json.dumps({"n": n, "pi": math.pi, "e": [math.exp(k / 7) for k in range(9)]}, sort_keys=True)
packed = zlib.compress(text.encode() * 50, 9)
print(n, len(packed), hashlib.blake2b(packed).hexdigest()[:16], len(re.findall("[0-9]+", text)), math.factorial(200) % 10**15)
"""

PERL_PROGRAM = r"""
my ($s, %h, @a) = (0);
for my $i (1 .. 50000) { $s += ($i * 7919) % 104729; $h{$i % 997} .= chr(65 + $i % 26) }
@a = sort { length($h{$a}) <=> length($h{$b}) || $a <=> $b } keys %h;
my $t = join ",", map { sprintf "%d:%s", $_, substr($h{$_}, 0, 3) } @a[0 .. 4];
$t =~ s/([A-Z])/lc($1)/ge;
printf "%d %s %s\n", $s, $t, unpack("%32C*", join "", map { $h{$_} } @a);
"""


class Store(http.server.BaseHTTPRequestHandler):
    """Gives out self.server.data, takes what is PUT."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.data)))
        self.end_headers()
        self.wfile.write(self.server.data)

    def do_PUT(self):
        self.server.taken = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def on_host(command):
    """What the host's own program prints, or None when it has no such program."""
    if not shutil.which(command[0]):
        return None
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          env=dict(os.environ, LC_ALL="C"))
    return done.stdout if done.returncode == 0 else None


class Acceptance:
    def __init__(self, tap, disk, cpus, options):
        self.tap, self.disk, self.cpus, self.options = tap, disk, cpus, options
        self.name = "acceptance-%d" % os.getpid()
        self.machine = self.forward = None
        self.vars = disk + ".vars" if options.firmware == "uefi" else None

    @staticmethod
    def free_port():
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            return s.getsockname()[1]

    def result(self, good, name, why=""):
        where = "".join([", UEFI" if self.options.firmware == "uefi" else "", ", KASLR off" if self.options.no_kaslr else ""] +
                        [", " + o for o in self.options.engine_option])
        return self.tap.result(good, "%d vCPU%s: %s" % (self.cpus, where, name), why)

    def extra(self):
        if vm.ENGINE == "qemu-tcg":
            return []
        return ["--name", self.name] + [a for o in self.options.engine_option for a in ("--engine-option", o)]

    def boot(self):
        self.forward = self.free_port()  # anew each time: while no VM held it, somebody else may have got it
        self.machine = guest.Guest(vm.command(cpus=self.cpus, memory=3072, disk=(self.disk, "qcow2"),
                                              net=[(self.forward, 8000)], uefi_vars=self.vars,
                                              extra=self.extra()),
                                   log=os.environ.get("HVX_LOG"))
        seconds = self.machine.wait_login(300)
        self.machine.log_in()
        return seconds

    def expect_output(self, name, command, want, timeout=120):
        status, text = self.machine.run(command, timeout)
        self.result(status == 0 and text == want, name, "status %d, want %r, got %r" % (status, want, text[-800:]))

    def variables(self):
        """A boot entry made in the guest is there after a reboot and in the next process."""
        if not self.vars:
            return
        run, entry = self.machine.run, r"BootOrder: (\w{4}),[\s\S]*Boot\1\* hvx-test\b"
        status, text = run("efibootmgr -q -c -d /dev/vda -p 2 -L hvx-test -l '\\EFI\\debian\\grubx64.efi' && efibootmgr")
        self.result(status == 0 and re.search(entry, text), "a UEFI boot entry is made", text)
        self.machine.send("reboot\n")
        self.machine.wait_login(360)
        self.machine.log_in()
        for when in ("a reboot", "another start"):
            status, text = run("efibootmgr")
            found = re.search(entry, text)
            self.result(found and "BootCurrent: " + found[1] in text, "the UEFI boot entry is used after " + when, text)
            if when == "a reboot":
                self.machine.power_off(120)
                self.boot()
                run = self.machine.run

    def no_kaslr(self):
        if not self.options.no_kaslr:
            return
        self.machine.run(r"sed -i 's/^\s*linux\s.*/& nokaslr/' /boot/grub/grub.cfg && sync")
        self.machine.send("reboot\n")
        self.machine.wait_login(360)
        self.machine.log_in()
        self.expect_output("the kernel lies where it was linked to be", "grep -w _text /proc/kallsyms",
                           "ffffffff81000000 T _text\n")

    def stop(self):
        """The power button, as hvx stop presses it, switches a systemd guest off."""
        if vm.ENGINE == "qemu-tcg":
            return
        self.machine.run("systemctl is-system-running --wait", 240)
        began = time.monotonic()
        subprocess.run([vm.hvx_program(), "stop", self.name], check=True, stdout=subprocess.DEVNULL)
        status = self.machine.finish(vm.scaled(60))[0]
        self.result(status == vm.POWERED_OFF, "hvx stop ends it with 0 (after %.1f s)" % (time.monotonic() - began))
        self.boot()

    def tools(self):
        run = self.machine.run
        self.expect_output("vCPUs that the guest sees", "nproc", "%d\n" % self.cpus)
        self.machine.put("/root/t.c", C_PROGRAM)
        with open(self.disk + ".c", "w") as f:
            f.write(C_PROGRAM)
        want = None
        if shutil.which("gcc"):
            subprocess.run(["gcc", "-O0", "-o", self.disk + ".x", self.disk + ".c", "-lm", "-pthread"], check=True)
            want = on_host([self.disk + ".x"])
        if want is None:
            want = "79996921296 alpha echo "
        for level in ("-O0", "-O2", "-O2 -m32"):
            status, text = run("gcc %s -o t t.c -lm -pthread && ./t" % level, 240)
            self.result(status == 0 and ("m32" in level and " alpha echo " in text or text.startswith(want)),
                        "gcc %s builds and runs a program" % level, "want %s, got %s" % (want, text))
        self.machine.put("/root/t.py", PYTHON_PROGRAM)
        self.expect_output("python3", "python3 t.py", on_host(["python3", "-c", PYTHON_PROGRAM]))
        self.machine.put("/root/t.pl", PERL_PROGRAM)
        want = on_host(["perl", "-e", PERL_PROGRAM])
        if want is not None:
            self.expect_output("perl", "perl t.pl", want)
        status, text = run("php -r 'echo array_sum(range(1, 1000)), \"\\n\";'", 120)
        self.result(status == 0 and text == "500500\n", "php", text)
        status, text = run("for i in 1 2 3 4 5 6 7 8 9 10; do (echo $i | sed s/^/x/ | tr x y) & done | sort | md5sum; wait", 60)
        want = hashlib.md5("".join(sorted("y%d\n" % i for i in range(1, 11))).encode()).hexdigest()
        self.result(want in text, "pipes and background jobs", text)

    def digests(self):
        data = "".join("%d\n" % i for i in range(1, 1000001)).encode()
        self.machine.run("seq 1 1000000 >/root/data")
        for name in ("md5", "sha1", "sha256", "sha512", "sha3-256", "blake2b512"):
            want = hashlib.new({"sha3-256": "sha3_256", "blake2b512": "blake2b"}.get(name, name), data).hexdigest()
            status, text = self.machine.run("openssl dgst -%s /root/data" % name, 120)
            self.result(status == 0 and text.strip().endswith(want), "openssl dgst -" + name, text)
        for cipher, key in (("aes-128-ctr", 16), ("aes-256-cbc", 32), ("chacha20", 32)):
            arguments = "enc -%s -K %s -iv %s" % (cipher, "5a" * key, "3c" * 16)
            if not shutil.which("openssl"):
                continue
            out = subprocess.run(["openssl"] + arguments.split(), input=data, stdout=subprocess.PIPE, check=True).stdout
            status, text = self.machine.run("openssl %s -in /root/data | sha256sum" % arguments, 120)
            self.result(status == 0 and hashlib.sha256(out).hexdigest() in text, "openssl enc -" + cipher, text)
        status, text = self.machine.run("openssl genrsa -out k 2048 2>/dev/null && openssl dgst -sha256 -sign k -out s data && "
                                        "openssl rsa -in k -pubout -out p 2>/dev/null && "
                                        "openssl dgst -sha256 -verify p -signature s data", 240)
        self.result(status == 0 and "Verified OK" in text, "RSA key made, signs, verifies", text)

    def speed(self):
        status, text = self.machine.run("openssl speed -seconds 1 -evp sha256 2>&1; openssl speed -seconds 1 rsa2048 2>&1", 300)
        found = re.search(r"^sha256 +([\d.]+)k.* ([\d.]+)k$", text, re.M | re.I), re.search(r"^rsa 2048 bits.*", text, re.M)
        self.result(status == 0 and all(found), "openssl speed", text)
        for line in found:
            if line:
                print("# " + line[0])

    def jit(self):
        """Code that the guest makes at run time: the same answer with PHP's JIT as without, and how long each takes."""
        self.machine.put("/root/jit.php", JIT_PROGRAM)
        php = "php -d opcache.enable_cli=1 -d opcache.file_update_protection=0 -d opcache.jit_buffer_size=64M -d opcache.jit=%s jit.php"
        found = {}
        for mode in ("off", "tracing", "function"):
            status, text = self.machine.run(php % mode, 240)
            lines = text.split("\n")
            found[mode] = lines[:2] if status == 0 and len(lines) >= 3 else [text, "0"]
        self.result(found["off"][0] == found["tracing"][0] == found["function"][0] and found["off"][0] == JIT_ANSWER,
                    "php with JIT (%s) gives what it does without" % ", ".join("%s %s ms" % (m, found[m][1]) for m in found), found)

    def tables(self):
        self.run_stress(TABLE_STRESSORS, "page tables, mmap, fork, signals, context switches")

    def stress(self):
        self.run_stress(STRESSORS, "CPU, vm, fork, mmap, signals, switch, futex, sysinval")

    def run_stress(self, stressors, names):
        seconds = self.options.stress
        # As an ordinary user: what root's invalid system calls do to a system is no matter of the hypervisor. Nor is whom
        # the guest's OOM killer ends, and not all stressors take that well (madvise and mprotect offer themselves and are
        # not started again): they shall leave some memory.
        # The kernel's log turns over many times meanwhile.
        self.machine.run("pkill -x dmesg; dmesg -w | grep --line-buffered -E 'Killed process|traps:|segfault' >/run/ended & echo")
        status, text = self.machine.run(
            "mkdir -p /tmp/stress && chown nobody /tmp/stress && cd /tmp/stress && sysctl -qw kernel.core_pattern=/dev/null && "
            "setpriv --reuid nobody --regid nogroup --clear-groups stress-ng %s --oom-avoid --verify --metrics-brief -t %ds; s=$?; "
            "cd; [ $s = 0 ]" % (stressors, seconds), seconds * 4 + 240)
        good = status == 0 and "successful run completed" in text and not re.search(r"fail(ed|ure)?: *\[?[1-9]|: fail:", text)
        self.result(good, "stress-ng --verify on %s, %d s" % (names, seconds), text)
        if not good:
            self.who_was_ended()
        for line in re.findall(r"^.*\bmetrc:? .*$", text, re.M):
            print("# " + line.strip())
        # should memory run out even so, the kernel reports whom it ends for that with a stack
        status, text = self.machine.run("dmesg | sed '/invoked oom-killer/,/<.TASK>/d' | grep -B4 -A24 -E "
                                        "'BUG|WARNING|Oops|panic|rcu.*stall|soft lockup|hung_task|Call Trace'")
        self.result(status == 1, "the guest's kernel complains of nothing after that", text)

    def who_was_ended(self):
        """A stressor that is ended fails the run: by the guest's OOM killer, by a signal, or by the engine?"""
        text = self.machine.run("sed -E 's/.*(Killed process|traps:|segfault) [0-9]+ ([^ ]*).*/\\1 \\2/' /run/ended | "
                                "sort | uniq -c; grep -c . /run/ended")[1]
        if vm.ENGINE != "qemu-tcg":
            stat = subprocess.run([vm.hvx_program(), "stat", self.name], capture_output=True, text=True).stdout
            text += "\n" + "\n".join(re.findall(r"^.*direct_(?:lost|killed|meddled|failures)\b.*$", stat, re.M))
        for line in text.splitlines():
            print("# " + line.strip())

    def disk_file(self):
        run = self.machine.run
        status, first = run("dd if=/dev/urandom of=/root/file bs=1M count=64 2>/dev/null && sync && sha256sum /root/file", 240)
        self.result(status == 0 and len(first.split()) == 2, "64 MiB file written", first)
        status, text = run("echo 3 >/proc/sys/vm/drop_caches && sha256sum /root/file", 240)
        self.result(status == 0 and text == first, "the file after its cache was dropped", text)
        self.machine.send("reboot\n")
        seconds = self.machine.wait_login(360)
        self.machine.log_in()
        self.result(True, "reboot inside the same process (%.0f s after the start)" % seconds)
        status, text = run("sha256sum /root/file", 240)
        self.result(status == 0 and text == first, "the file after a reboot", text)
        status, text = run("rm /root/file && fstrim / ; sync")
        self.result(status == 0, "fstrim", text)

    def network(self):
        run = self.machine.run
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
        server.data, server.taken = os.urandom(8 << 20), b""
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = "http://10.0.2.2:%d/file" % server.server_address[1]
        try:
            status, text = run("curl -sS --max-time 200 -o got %s && sha256sum got" % url, 240)
            self.result(status == 0 and hashlib.sha256(server.data).hexdigest() in text, "8 MiB from the host", text)
            status, text = run("dd if=/dev/urandom of=sent bs=1M count=8 2>/dev/null; curl -sS --max-time 200 -T sent %s && sha256sum sent" % url, 240)
            self.result(status == 0 and hashlib.sha256(server.taken).hexdigest() in text, "8 MiB to the host", text)
        finally:
            server.shutdown()
        status, text = run("(python3 -m http.server 8000 >/dev/null 2>&1 &) ; sha256sum sent")
        data = b""
        for _ in range(20): # the server in the guest takes a moment to start; until then connections are reset
            try:
                data = urllib.request.urlopen("http://127.0.0.1:%d/sent" % self.forward, timeout=vm.scaled(120)).read()
                break
            except OSError as trouble:
                data = str(trouble).encode()
                time.sleep(2)
        self.result(hashlib.sha256(data).hexdigest() in text, "8 MiB through a forwarded port", data[-200:])

    def boots(self):
        slow = 0.0
        for n in range(self.options.boots):
            try:
                slow = max(slow, self.boot())
                status, text = self.machine.run("systemctl is-system-running --wait; echo 6*7 | bc", 120)
                if "42" not in text or self.machine.power_off() != vm.POWERED_OFF:
                    raise vm.Ended("boot %d went wrong: %s" % (n + 1, text))
            except (vm.Timeout, vm.Ended) as trouble:
                self.result(False, "%d boots in a row" % self.options.boots, "boot %d: %s" % (n + 1, trouble))
                return
            finally:
                self.machine.kill()
        self.result(True, "%d boots in a row (slowest login prompt after %.1f s)" % (self.options.boots, slow))

    def go(self, steps):
        try:
            seconds = self.boot()
            self.result(True, "login prompt after %.1f s" % seconds)
            self.no_kaslr()
            for step in steps:
                if step != "boots":
                    {"disk": self.disk_file}.get(step, getattr(self, step, None))()
            status = self.machine.power_off(120)
            self.result(status == vm.POWERED_OFF, "poweroff ends with 0", "status %s" % status)
        except (vm.Timeout, vm.Ended) as trouble:
            self.result(False, "goes on", trouble)
        finally:
            if self.machine:
                self.machine.kill()
        if "boots" in steps and self.options.boots:
            self.boots()
        clean, text = guest.fsck(self.disk)
        if clean is None:
            self.tap.skip("%d vCPU: fsck -n" % self.cpus, text)
        else:
            self.result(clean, "fsck -n is clean", text)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpus", default="1,2")
    parser.add_argument("--firmware", choices=["bios", "uefi"], default="bios")
    parser.add_argument("--stress", type=int, default=60)
    parser.add_argument("--boots", type=int, default=20)
    parser.add_argument("--engine-option", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--no-kaslr", action="store_true", help="the guest's kernel is told nokaslr")
    parser.add_argument("--only", default=",".join(STEPS))
    options = parser.parse_args()
    steps = options.only.split(",")
    if set(steps) - set(STEPS):
        parser.error("steps are: " + " ".join(STEPS))
    tap = vm.Tap()
    for cpus in options.cpus.split(","):
        with guest.scratch_disk("full-efi" if options.firmware == "uefi" else "full") as disk:
            Acceptance(tap, disk, int(cpus), options).go(steps)
    tap.done()


if __name__ == "__main__":
    main()
