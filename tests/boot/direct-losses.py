#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""direct-losses.py [--long] [--seconds N] [--max-map-count N]

A guest's programs run natively in helper processes, which somebody kills at random. The guest goes on: a program whose
helper was killed under it ends by SIGILL, all others have the right result, and helpers come back. In short for make
check, in a guest of an initramfs; --long, part of make acceptance, in the full Debian guest, where moreover helpers run
out of address space, and a program lives on page faults. With --max-map-count the host's limit of mappings is N
meanwhile, for all its processes."""
import argparse
import hashlib
import os
import random
import resource
import signal
import subprocess
import time

import acceptance
import guest
import vm

# A function of the guest's shell: NAME COMMAND ANSWER, again and again.
LOOP = """loop() { while [ ! -e /tmp/stop ]; do out=$($2 2>&1); s=$?; case $s:$out in 0:*"$3"*) echo good;; 132:*) echo lost;; \
*) echo bad $s "$out";; esac; done >>/tmp/log.$1; }"""

MORE = r"""
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static int fail(const char *what, unsigned long at)
{
    printf("WRONG %s %lx\n", what, at);
    return 1;
}
/* Pages here and there in much memory, over and over, in another order each time. */
static int scatter(int seconds)
{
    const unsigned long pages = 20000, span = 1ul << (sizeof(long) == 8 ? 36 : 30), step = span / pages & ~4095ul;
    char *p = mmap(NULL, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    unsigned long n = 0, until = (unsigned long)time(NULL) + seconds;
    if (p == MAP_FAILED)
        return fail("mmap", 0);
    do {
        for (unsigned long i = 0; i < pages; i++) {
            unsigned long *at = (unsigned long *)(void *)(p + (i * 7919 % pages) * step);
            if (*at != (n ? n + i : 0))
                return fail("page", i);
            *at = n + 1 + i;
        }
        n++;
    } while ((unsigned long)time(NULL) < until);
    printf("scatter is right\n");
    return 0;
}

static sigjmp_buf back;
static volatile uintptr_t where;
static void on_fault(int sig, siginfo_t *info, void *u)
{
    (void)sig, (void)u;
    where = (uintptr_t)info->si_addr;
    siglongjmp(back, 1);
}
/* Memory that comes, is protected, and goes: each fault is the one that it must be. */
static int storm(int seconds)
{
    struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    unsigned long until = (unsigned long)time(NULL) + seconds, seed = 1;
    sigaction(SIGSEGV, &sa, NULL);
    do {
        enum { N = 64 };
        volatile unsigned char *p = mmap(NULL, N * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        unsigned char state[N] = {0}; /* 0: as it was, 1: read-only, 2: no access, 3: gone */
        if (p == MAP_FAILED)
            return fail("mmap", 0);
        for (int i = 0; i < N; i++)
            p[i * 4096 + 5] = (unsigned char)(i + 3);
        for (int k = 0; k < 200; k++) {
            seed = seed * 1103515245 + 12345;
            int i = seed >> 8 & (N - 1), what = seed >> 16 & 3;
            void *page = (void *)(uintptr_t)(p + i * 4096);
            if (state[i] != 3 && (seed >> 20 & 1)) {
                if (what == 3 ? munmap(page, 4096) : mprotect(page, 4096, what == 0 ? PROT_READ | PROT_WRITE : what == 1 ? PROT_READ : PROT_NONE))
                    return fail("mprotect", i);
                state[i] = (unsigned char)what;
            }
            for (volatile int write = 0; write < 2; write++) {
                volatile int faulted = 0;
                where = 0;
                if (!sigsetjmp(back, 1)) {
                    if (write)
                        p[i * 4096 + 5] = (unsigned char)(i + 3);
                    else if (p[i * 4096 + 5] != (unsigned char)(i + 3))
                        return fail("value", i);
                } else {
                    faulted = 1;
                }
                if (faulted != (write ? state[i] != 0 : state[i] >= 2) || (faulted && where != (uintptr_t)p + i * 4096 + 5))
                    return fail("fault", i);
            }
            for (volatile int c = 0; c < 20000; c++)
                ;
        }
        munmap((void *)(uintptr_t)p, N * 4096);
    } while ((unsigned long)time(NULL) < until);
    printf("storm is right\n");
    return 0;
}
int main(int argc, char **argv)
{
    int seconds = argc > 2 ? atoi(argv[2]) : 10;
    return argc > 1 && !strcmp(argv[1], "scatter") ? scatter(seconds) : storm(seconds);
}
"""


def statistics(name):
    """What hvx stat says, summed over the vCPUs."""
    text = subprocess.run([vm.hvx_program(), "stat", name], stdout=subprocess.PIPE, text=True).stdout
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[1].replace(".", "", 1).isdigit():
            found[words[0]] = found.get(words[0], 0) + float(words[1])
    return found


def processes():
    """pid -> (name, parent, ticks of CPU time)."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/stat" % pid) as f:
                text = f.read()
        except OSError:
            continue
        name, rest = text[text.index("(") + 1:text.rindex(")")], text[text.rindex(")") + 2:].split()
        found[int(pid)] = name, int(rest[1]), int(rest[11]) + int(rest[12])
    return found


def helpers(vm_pid):
    """pid -> ticks of the VM's helpers."""
    every = processes()

    def ours(pid):
        while pid in every and pid != vm_pid:
            pid = every[pid][1]
        return pid == vm_pid
    return {pid: p[2] for pid, p in every.items() if p[0] == "hvx-direct" and ours(pid)}


class Losses:
    def __init__(self, tap, machine, name):
        self.tap, self.machine, self.name = tap, machine, name
        self.run, self.result = machine.run, tap.result

    def kill_some(self, seconds):
        """Every now and then one: of those that have just run, or any. Until some program was hit."""
        began, before, n, hits = time.monotonic(), helpers(self.machine.proc.pid), 0, statistics(self.name)["direct_killed"]
        while time.monotonic() < began + seconds or (time.monotonic() < began + 5 * seconds and
                                                     statistics(self.name)["direct_killed"] == hits):
            time.sleep(random.uniform(0.2, 0.8))
            now = helpers(self.machine.proc.pid)
            busy = [pid for pid in now if now[pid] > before.get(pid, 0)]
            before = now
            some = busy if busy and random.random() < 0.7 else list(now)
            if some:
                os.kill(random.choice(some), signal.SIGKILL)
                n += 1
        return n

    def killing(self, loops, seconds):
        self.run(LOOP)
        self.run("rm -f /tmp/stop /tmp/log.*")
        before = statistics(self.name)
        for i, (command, answer) in enumerate(loops):
            self.run("loop %d '%s' '%s' &" % (i, command, answer))
        killed = self.kill_some(seconds)
        status, text = self.run("touch /tmp/stop; wait; cat /tmp/log.*", 240)
        lines = [line for line in text.splitlines() if line.split(" ")[0] in ("good", "lost", "bad")] # and the shell's comments
        after = statistics(self.name)
        change = {k: after[k] - before.get(k, 0) for k in after if k.startswith("direct_")}
        good, lost = lines.count("good"), lines.count("lost")
        print("# %d helpers killed; programs: %d right, %d ended with their helper; %s" %
              (killed, good, lost, " ".join("%s %d" % (k, change[k]) for k in
                                            ("direct_entries", "direct_lost", "direct_killed", "direct_meddled", "direct_remade"))))
        self.result(change["direct_lost"] > 0 and change["direct_killed"] > 0, "helpers were lost, some under their programs", change)
        self.result(good > 0 and good + lost == len(lines), "every program is right or ended by SIGILL",
                    text[-3000:] if good == 0 else "\n".join(line for line in lines if line.startswith("bad"))[:3000])
        self.result(lost <= change["direct_killed"], "no more of them than the engine knows of", "%d, %s" % (lost, change))
        self.result(change["direct_remade"] > 0, "helpers are made anew", change)
        status, text = self.run("dmesg | grep -E 'BUG|WARNING|Oops|Kernel panic|stall|lockup|hung_task|Call Trace|general protection'")
        self.result(status == 1, "the guest's kernel complains of nothing", text)

    def natively(self, command, answer, timeout=120):
        """The program is right, and most of its time is a helper's."""
        before, began = statistics(self.name), time.monotonic()
        status, text = self.run(command, timeout)
        took, after = time.monotonic() - began, statistics(self.name)
        entries = after["direct_entries"] - before["direct_entries"]
        soft = after["dispatches"] - before["dispatches"]
        self.result(status == 0 and answer in text, "afterwards: %s (%.1f s)" % (command, took), text)
        self.result(entries > 50, "and runs natively again", "%d entries of helpers, %d of translated code" % (entries, soft))

    def exhaustion(self, program):
        """Nothing more can be mapped in a helper: what runs there begins anew, smaller, or goes on in the soft tier."""
        limited = helpers(self.machine.proc.pid)
        for pid in limited:
            resource.prlimit(pid, resource.RLIMIT_AS, (24 << 20, resource.RLIM_INFINITY))
        before = statistics(self.name)
        status, text = self.run("%s scatter 15" % program, 240)
        failed = statistics(self.name)["direct_failures"] - before["direct_failures"]
        self.result(status == 0 and "scatter is right" in text, "%s: scattered pages and helpers of 24 MiB" % program, text)
        self.result(failed > 0, "orders of theirs failed (%d)" % failed)
        for pid in limited:
            try:
                resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            except ProcessLookupError:
                pass
        status, text = self.run("%s scatter 10" % program, 240)
        self.result(status == 0 and "scatter is right" in text, "%s: the same without a limit" % program, text)


    def few_mappings(self, program, limit):
        """No process of the host may have more mappings than that."""
        path = "/proc/sys/vm/max_map_count"
        with open(path) as f:
            usual = f.read()
        before = statistics(self.name)
        try:
            with open(path, "w") as f:
                f.write("%d\n" % limit)
            status, text = self.run("%s scatter 15" % program, 240)
        finally:
            with open(path, "w") as f:
                f.write(usual)
        failed = statistics(self.name)["direct_failures"] - before["direct_failures"]
        self.result(status == 0 and "scatter is right" in text, "%s: vm.max_map_count %d" % (program, limit), text)
        self.result(failed > 0, "orders of helpers failed (%d)" % failed)


def short(tap, seconds):
    folder = os.environ.get("HVX_INITRD") or os.path.join(vm.GUESTS, "initrd")
    if not all(os.path.exists(os.path.join(folder, f)) for f in ("vmlinuz", "initrd.img")):
        made = subprocess.run([os.path.join(vm.TESTS, "guest", "make-initrd"), folder], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        if made.returncode != 0:
            vm.skip("no initramfs: " + (made.stdout.strip().splitlines() or ["make-initrd failed"])[-1])
    name = "direct-losses-%d" % os.getpid()
    cmd = vm.command(cpus=2, memory=256, kernel=os.path.join(folder, "vmlinuz"), initrd=os.path.join(folder, "initrd.img"),
                     append="console=ttyS0 quiet panic=-1 hvx.run=shell", extra=["--name", name])
    with guest.Guest(cmd) as machine:
        try:
            machine.expect(r"# ", vm.scaled(60))
            machine.send("stty -echo; export PS1= PS2=; echo @@''ready@@\n")
            machine.expect(r"@@ready@@\n", vm.scaled(30))
            need_tier(name)
            losses = Losses(tap, machine, name)
            status, _ = machine.run("test -x /bin/work32")
            work32 = "work32" if status == 0 else "work"
            loops = [("work -s 0.3 sieve sha256", "work sha256 ok"), (work32 + " -s 0.3 sieve double", "work double ok"),
                     ("work -s 0.3 tree", "work tree ok")]
            losses.killing(loops, seconds)
            time.sleep(2) # the last replacements
            losses.natively("work -s 1 sieve", "work sieve ok")
            losses.natively(work32 + " -s 1 sieve", "work sieve ok")
        except (vm.Timeout, vm.Ended) as trouble:
            tap.result(False, "the guest goes on", trouble)


def need_tier(name):
    if "direct_entries" not in statistics(name):
        vm.skip("user-direct execution is off here")


def long(tap, seconds, max_map_count):
    name = "direct-losses-%d" % os.getpid()
    data = "".join("%d\n" % i for i in range(1, 3000001)).encode()
    with guest.scratch_disk("full") as disk:
        with guest.Guest(vm.command(cpus=2, memory=1536, disk=(disk, "qcow2"), extra=["--name", name]),
                         log=os.environ.get("HVX_LOG")) as machine:
            try:
                machine.wait_login(300)
                machine.log_in()
                need_tier(name)
                losses, run = Losses(tap, machine, name), machine.run
                run("systemctl is-system-running --wait; dmesg -C; sysctl -qw kernel.core_pattern=/dev/null; seq 1 3000000 >/root/data", 240)
                machine.put("/root/more.c", MORE)
                machine.put("/root/t.py", acceptance.PYTHON_PROGRAM)
                machine.put("/root/t.pl", acceptance.PERL_PROGRAM)
                status, text = run("cd /root && gcc -O2 -o more64 more.c && gcc -O2 -m32 -o more32 more.c", 240)
                tap.result(status == 0, "programs are built", text)
                python = run("python3 /root/t.py", 120)[1].strip()
                perl = run("perl /root/t.pl", 120)[1].strip()
                digest = hashlib.sha256(data).hexdigest()
                loops = [("sha256sum /root/data", digest), ("openssl dgst -sha256 /root/data", digest),
                         ("python3 /root/t.py", python), ("perl /root/t.pl", perl), ("/root/more32 storm 1", "storm is right")]
                losses.killing(loops, seconds)
                time.sleep(5) # the last replacements
                for command, answer in loops[:4]:
                    status, text = run(command, 120)
                    tap.result(status == 0 and answer in text, "a new program is right: " + command, text)
                losses.natively("/root/more64 storm 5", "storm is right")
                losses.natively("/root/more32 storm 5", "storm is right")
                losses.exhaustion("/root/more64")
                losses.exhaustion("/root/more32")
                if max_map_count:
                    losses.few_mappings("/root/more64", max_map_count)
                    losses.few_mappings("/root/more32", max_map_count)
                for i in (64, 32):
                    status, text = run("/root/more%d storm 15" % i, 120)
                    tap.result(status == 0 and "storm is right" in text, "a storm of faults, %d bits" % i, text)
                status, text = run("dmesg | grep -E 'BUG|WARNING|Oops|Kernel panic|stall|lockup|hung_task|Call Trace|general protection'")
                tap.result(status == 1, "the guest's kernel complains of nothing in the end", text)
                status = machine.power_off(120)
                tap.result(status == vm.POWERED_OFF, "poweroff ends with 0", "status %s" % status)
            except (vm.Timeout, vm.Ended) as trouble:
                tap.result(False, "the guest goes on", trouble)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--seconds", type=int)
    parser.add_argument("--max-map-count", type=int, metavar="N", help="needs root")
    options = parser.parse_args()
    if vm.ENGINE not in ("bt", "auto"):
        vm.skip("only cpu-bt has helpers")
    tap = vm.Tap()
    if options.long:
        long(tap, options.seconds or 60, options.max_map_count)
    else:
        short(tap, options.seconds or 8)
    tap.done()


if __name__ == "__main__":
    main()
