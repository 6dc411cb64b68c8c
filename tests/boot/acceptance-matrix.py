#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""acceptance-matrix.py [--settings KEY=VALUE,...]... [--jobs N] [--stress SECONDS] [--boots N] [--only STEP,...]

acceptance.py for each setting of the engine option direct (off, kernel, user, all), kaslr (on, off) and cpus (1, 2): 16
runs. They run in lanes, each of which has one CPU of the host, so two vCPUs take turns (acceptance.py alone pins
nothing). Each run has a log, NAME.log, and the guest's serial line, NAME.serial. Time-outs are tripled where
HVX_PATIENCE says nothing. The guest's own are not, so the CPUs must have little else to do: its systemd gives up its
serial line after 90 s.

--settings chooses runs: a key that is not named may be anything, of a key that is named twice either value will do, and
so will any of several --settings. With --resume, what passed in an earlier run with the same --json FILE is not run
again, and counts; that HVX is still the same is not checked."""
import argparse
import itertools
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

import acceptance
import guest
import vm

KEYS = {"direct": ["off", "kernel", "user", "all"], "kaslr": ["on", "off"], "cpus": ["1", "2"]}
ACCEPTANCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "acceptance.py")
PATIENCE = "3"


def name_of(setting):
    return ",".join("%s=%s" % pair for pair in zip(KEYS, setting))


def setting_filter(text):
    """{key: values that will do}."""
    wanted = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if value not in KEYS.get(key, ()):
            raise argparse.ArgumentTypeError("\"%s\" is none of %s" % (part, ", ".join(
                "%s=%s" % (k, "|".join(v)) for k, v in KEYS.items())))
        wanted.setdefault(key, []).append(value)
    return wanted


def outcome(log, status):
    """What a run's log says; a run that did not get to its plan has failed, whatever it did before."""
    with open(log, errors="replace") as f:
        lines = f.read().splitlines()
    checks = [line for line in lines if re.match(r"(not )?ok \d", line)]
    failed = [line for line in checks if line.startswith("not")]
    skipped = sum(" # SKIP " in line for line in checks)
    if status not in (0, 1) or "1..%d" % len(checks) not in lines or bool(failed) != bool(status):
        failed.append("not ok - ended with status %d: %s" % (status, "".join(lines[-1:])))
    passed = sum(line.startswith("ok") for line in checks) - skipped
    return {"passed": passed, "failed": len(failed), "skipped": skipped, "failures": failed}


class Matrix:
    def __init__(self, options, arguments, results):
        self.options, self.arguments, self.results = options, arguments, results
        self.waiting, self.lock, self.running = queue.SimpleQueue(), threading.Lock(), set()
        self.stopping = False

    def say(self, text):
        print("%s %s" % (time.strftime("%H:%M:%S"), text), flush=True)

    def command(self, setting, cpu):
        direct, kaslr, cpus = setting
        return ["taskset", "-c", str(cpu), sys.executable, "-u", ACCEPTANCE, "--cpus", cpus,
                "--engine-option", "direct=" + direct, *["--no-kaslr"] * (kaslr == "off"), *self.arguments]

    def lane(self, cpu):
        while True:
            try:
                setting = self.waiting.get_nowait()
            except queue.Empty:
                return
            path = os.path.join(self.options.folder, name_of(setting))
            with open(path + ".serial", "w"):
                pass  # the guest's lines are appended
            with open(path + ".log", "w") as log:
                with self.lock:
                    if self.stopping:
                        return
                    self.say("%s: begins on CPU %d" % (name_of(setting), cpu))
                    began = time.monotonic()
                    process = subprocess.Popen(self.command(setting, cpu), stdin=subprocess.DEVNULL, stdout=log,
                                               stderr=subprocess.STDOUT, start_new_session=True,
                                               env=dict(os.environ, HVX_LOG=path + ".serial"))
                    self.running.add(process)
                status = process.wait()
            with self.lock:
                self.running.discard(process)
                if not self.stopping:
                    self.note(setting, dict(outcome(path + ".log", status), log=path + ".log",
                                            seconds=round(time.monotonic() - began, 1)))

    def note(self, setting, result):
        self.results[name_of(setting)] = result
        self.say("%s: %d passed, %d failed, %.0f s" % (name_of(setting), result["passed"], result["failed"],
                                                       result["seconds"]))
        for failure in result["failures"]:
            print("    " + failure, flush=True)
        if self.options.json:
            self.write_json()

    def write_json(self):
        """Put in place at once; a reader never sees half of it."""
        with tempfile.NamedTemporaryFile("w", dir=os.path.dirname(os.path.abspath(self.options.json)),
                                         delete=False) as f:
            json.dump({"arguments": self.arguments, "runs": self.results}, f, indent=1)
        os.chmod(f.name, 0o644)
        os.replace(f.name, self.options.json)

    def run(self, settings, cpus):
        for setting in settings:
            self.waiting.put(setting)
        lanes = [threading.Thread(target=self.lane, args=(cpu,)) for cpu in cpus]
        try:
            for lane in lanes:
                lane.start()
            for lane in lanes:
                lane.join()
        finally:
            with self.lock:
                self.stopping = True
                for process in self.running:  # as if by ^C: they end their VMs and take away their disks
                    process.send_signal(signal.SIGINT)
            for lane in lanes:
                if lane.ident:
                    lane.join()

    def summary(self):
        """Prints the table; (passed, failed)."""
        total = {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0}
        row = "%-8s%-7s%-6s%8s%8s%9s%9s  %s"
        print(row % (*KEYS, *total, "log"))
        for setting in itertools.product(*KEYS.values()):
            result = self.results.get(name_of(setting))
            if result:
                print(row % (*setting, *("%.0f" % result[key] for key in total), result["log"]))
                for key in total:
                    total[key] += result[key]
        return total["passed"], total["failed"]


def arguments_of(parser):
    parser.add_argument("--settings", action="append", type=setting_filter, metavar="KEY=VALUE,...",
                        help="just these, as direct=off,cpus=1; again for others as well")
    parser.add_argument("--jobs", type=int, default=1, help="lanes, the n-th on the n-th CPU (default 1)")
    parser.add_argument("--stress", help="acceptance.py's")
    parser.add_argument("--boots", help="acceptance.py's")
    parser.add_argument("--only", help="acceptance.py's")
    parser.add_argument("--folder", default=os.path.join(vm.BUILD, "acceptance-matrix"), help="for the logs")
    parser.add_argument("--json", metavar="FILE", help="write the results there too, anew after each run")
    parser.add_argument("--resume", action="store_true", help="go on with what --json FILE has")
    return parser.parse_args()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = arguments_of(parser)
    cpus = sorted(os.sched_getaffinity(0))
    if not 1 <= options.jobs <= len(cpus):
        parser.error("--jobs: there are CPUs for 1 to %d" % len(cpus))
    if set((options.only or acceptance.STEPS[0]).split(",")) - set(acceptance.STEPS):
        parser.error("steps are: " + " ".join(acceptance.STEPS))
    if vm.ENGINE != "bt":
        parser.error("the option direct is of the engine bt, and HVX_ENGINE is " + vm.ENGINE)
    arguments = [text for key in ("stress", "boots", "only") if getattr(options, key) is not None
                 for text in ("--" + key, getattr(options, key))]
    results = {}
    if options.resume:
        if not options.json:
            parser.error("--resume needs --json FILE")
        if os.path.exists(options.json):
            with open(options.json) as f:
                earlier = json.load(f)
            if earlier["arguments"] != arguments:
                parser.error("%s is of runs with \"%s\"; resume them as they were begun" %
                             (options.json, " ".join(earlier["arguments"])))
            results = earlier["runs"]
    settings = [s for s in itertools.product(*KEYS.values())
                if not options.settings or any(all(dict(zip(KEYS, s))[key] in values for key, values in wanted.items())
                                               for wanted in options.settings)]
    settings = [s for s in settings if results.get(name_of(s), {"failed": 1})["failed"]]
    # Once, and not in each lane: these may end us, or take minutes.
    vm.hvx_program()
    guest.master_disk("full")
    os.environ.setdefault("HVX_PATIENCE", PATIENCE)
    os.makedirs(options.folder, exist_ok=True)
    # Handlers, so that children have the default even where a shell started us with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("cut short"))
    matrix = Matrix(options, arguments, results)
    matrix.say("%d runs in %d lanes, logs in %s" % (len(settings), options.jobs, options.folder))
    matrix.run(settings, cpus[:options.jobs])
    passed, failed = matrix.summary()
    print("%d passed, %d failed" % (passed, failed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
