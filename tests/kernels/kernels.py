#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""kernels.py [NAME...]: runs the test kernels (all, or those named) and passes on their TAP lines."""
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "boot"))
import vm  # noqa: E402

SECONDS = 60
VERIFY = "translation-cache-verify=on" in os.environ.get("HVX_ENGINE_OPTIONS", "").split()
# Run with these --cpu options as well.
MODELS = {"t64_model": ["x86-64-v1", "x86-64-v2", "x86-64-v3", "Nehalem,+xsave,+avx,hypervisor=hvx", "host,tsc-frequency=1500M",
                        "host,-xsave,-rdtscp,hypervisor=none"],
          "t64_modes": ["x86-64-v3"], "t64_fpu": ["x86-64-v3,+xsave,+xsavec,-avx"]}


def kernel_folder():
    for folder in (os.environ.get("HVX_KERNELS"), os.path.join(vm.BUILD, "tests", "kernels"), "kernels"):
        if folder and os.path.exists(os.path.join(folder, "t64_cpu.elf")):
            return folder
    vm.skip("the test kernels are not built: make -C tests check")


def run(tap, folder, name, model=None):
    path = os.path.join(folder, name)
    if name.endswith(".img"):
        cmd = vm.command(memory=64, disk=(path, "raw"), snapshot=True, debug_exit=True, no_reboot=True)
    else:
        cmd = vm.command(cpus=2 if "smp" in name else 1, memory=128, kernel=path, debug_exit=True, no_reboot=True,
                         extra=["--cpu", model] if model else [])
    stem = os.path.splitext(name)[0] + (" (%s)" % model if model else "")
    planned = False
    if VERIFY and "--quiet" in cmd:
        cmd.remove("--quiet")  # differences are warnings
        # Of their own: a VM of another model or number of vCPUs would begin the file anew.
        cmd = [c + "." + re.sub(r"\W+", "-", stem) if c.startswith("translation-cache=") else c for c in cmd]
    with vm.Machine(cmd) as machine:
        try:
            status, text = machine.finish(vm.scaled(SECONDS))
        except vm.Timeout:
            status, text = None, machine.buffer
    tail = text
    for line in text.splitlines():
        found = re.match(r"(?:.*\x1b\S*)?(ok|not ok) \d+ (\S+)(?: # SKIP (.*))?$", line)
        if found and found[3]:
            tap.skip(stem + ": " + found[2], found[3])
        elif found:
            tap.result(found[1] == "ok", stem + ": " + found[2])
        elif line.startswith("# "):
            print(line)
        elif VERIFY and "first difference at" in line:
            tap.result(False, stem + ": translations that were kept are those that would be made", line)
        planned |= re.match(r"1\.\.\d+$", line) is not None
    if status is None:
        tap.result(False, stem + ": ends in time", "killed after %d s; last output:\n%s" % (vm.scaled(SECONDS), tail[-1500:]))
    elif status not in (vm.KERNEL_GOOD, vm.KERNEL_BAD) or not planned:
        tap.result(False, stem + ": ends by isa-debug-exit", "exit status %d; last output:\n%s" % (status, tail[-1500:]))


def main():
    folder = kernel_folder()
    names = [n if "." in n else n + (".img" if n == "realmode" else ".elf") for n in sys.argv[1:]]
    if not names:
        names = sorted(n for n in os.listdir(folder) if n.startswith(("t32", "t64", "realmode")) and n.endswith((".elf", ".img")))
    tap = vm.Tap()
    for name in names:
        run(tap, folder, name)
        for model in MODELS.get(os.path.splitext(name)[0], []) if vm.ENGINE == "bt" else []:
            run(tap, folder, name, model)
    tap.done()


main()
