#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""save-restore.py [--cpus 1,2] [--times N] [--seed N]

The long test of hvx save: the full Debian guest compiles C files; in the midst of it the machine is saved, its process
ends, another goes on from the file, and the compilation comes to its end. What it has made is compared with what the
same compiler made without an interruption. N times (10) in a row, so that all but the first save a machine that was
restored itself; afterwards the file system must be clean."""
import argparse
import random
import time

import guest
import saved
import vm

MEMORY = 1024
FILES = 4

# A file of so many functions, none like another, of the kinds that give an optimiser work.
GENERATOR = r"""
FUNCTION = '''
static double v@K(double *a, int n) { double s = @K; for (int i = 0; i < n; i++) s += a[i] * a[i * @P % n]; return s; }
unsigned g@N_@K(const char *t, unsigned n)
{
    unsigned h = @P, m[16] = {0};
    double a[32];
    for (unsigned i = 0; i < 32; i++) a[i] = i * @K.5;
    for (unsigned i = 0; i < n; i++) {
        switch ((t[i] + h) % 7) {
        case 0: h = h * 31 + t[i]; break;
        case 1: h ^= h >> @S; break;
        case 2: m[h % 16] += h; break;
        case 3: h += strlen(t) * m[(h >> 4) % 16]; break;
        case 4: h = (h << @S) | (h >> (32 - @S)); break;
        default: h -= (unsigned)v@K(a, 32); break;
        }
    }
    return h;
}
'''
for n in range(FILES):
    with open("f" + str(n) + ".c", "w") as f:
        f.write("#include <string.h>" + chr(10))
        for k in range(40):
            values = {"@N": n, "@K": k, "@P": 2 * (n * 40 + k) + 3, "@S": k % 13 + 1}
            text = FUNCTION
            for name in values:
                text = text.replace(name, str(values[name]))
            f.write(text)
""".replace("FILES", str(FILES))

BUILD = ("cd /root/build && rm -f *.o && (seq 0 LAST | xargs -P $(nproc) -I% sh -c "
         "'gcc -O2 -c f%.c -o f%.o || echo failed'; cat f*.o | sha256sum)".replace("LAST", str(FILES - 1)))


class Test:
    def __init__(self, tap, folder, disk, cpus, options):
        self.tap, self.folder, self.disk, self.cpus, self.options = tap, folder, disk, cpus, options
        self.random = random.Random("%d/%d" % (options.seed, cpus))
        self.state = folder.file("state")
        self.machine = None

    def command(self, *extra):
        return vm.command(cpus=self.cpus, memory=MEMORY, disk=(self.disk, "qcow2"), net="user",
                          extra=("--name", "saved") + extra)

    def boot(self):
        self.machine = guest.Guest(self.command())
        self.machine.wait_login(300)
        self.machine.log_in()
        self.machine.run("mkdir -p /root/build && cd /root/build")
        self.machine.put("/root/build/make.py", GENERATOR)
        status, text = self.machine.run("python3 make.py && gcc --version | head -n 1", 120)
        if status != 0:
            raise vm.Ended("no files to compile: " + text)

    def reference(self):
        started = time.monotonic()
        status, text = self.machine.run(BUILD, 600)
        if status != 0 or len(text.split()) != 2:
            raise vm.Ended("the compiler does not work: " + text)
        print("# %d vCPU: an undisturbed build takes %.1f s" % (self.cpus, time.monotonic() - started))
        return text, time.monotonic() - started

    def once(self, n, want, seconds):
        wait = self.random.uniform(0.1, 0.6) * seconds
        self.machine.send("{ %s\n} 2>&1; echo @@$?@@\n" % BUILD)
        time.sleep(wait)
        before = time.monotonic()
        trouble, rest = saved.save_and_end(self.machine, "saved", self.state)
        between = time.monotonic()
        if trouble:
            self.tap.result(False, "%d vCPU: save %d" % (self.cpus, n), trouble)
            return False
        self.machine = guest.Guest(self.command("--restore", self.state))
        if "@@" in rest: # the machine was faster than before: that was no test
            print("# %d vCPU: the build had ended before the save" % self.cpus, flush=True)
            return self.once(n, want, seconds / 2)
        found = self.machine.expect(r"([\s\S]*?)@@(\d+)@@\n", vm.scaled(600))
        good = found[1].strip() == want.strip() and found[2] == "0"
        self.tap.result(good, "%d vCPU: saved %.1f s into the build (in %.1f s), goes on to the right end: %d of %d" %
                        (self.cpus, wait, between - before, n, self.options.times),
                        "want %s, got %s" % (want, found[0]))
        return good

    def go(self):
        try:
            self.boot()
            want, seconds = self.reference()
            for n in range(1, self.options.times + 1):
                if not self.once(n, want, seconds):
                    break
            text = self.machine.run("dmesg | grep -iE 'bug|oops|stall|lockup|unstable|hung|error' | head; uptime")[1]
            print("".join("# %s\n" % line for line in text.splitlines()), end="")
            self.tap.result(self.machine.power_off(120) == vm.POWERED_OFF, "%d vCPU: poweroff ends with 0" % self.cpus)
        except (vm.Timeout, vm.Ended) as trouble:
            self.tap.result(False, "%d vCPU: goes on" % self.cpus, trouble)
        finally:
            if self.machine:
                self.machine.kill()
        clean, text = guest.fsck(self.disk)
        if clean is None:
            self.tap.skip("%d vCPU: fsck -n" % self.cpus, text)
        else:
            self.tap.result(clean, "%d vCPU: fsck -n is clean" % self.cpus, text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpus", default="1,2")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    tap = vm.Tap()
    with saved.Folder() as folder:
        for cpus in options.cpus.split(","):
            with guest.scratch_disk("full") as disk:
                Test(tap, folder, disk, int(cpus), options).go()
    tap.done()


if __name__ == "__main__":
    main()
