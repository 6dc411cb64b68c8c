#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Boots Linux twice with one translation-cache file: the second time most of its code need not be translated, although kernel
and programs are at other addresses, and its programs have the same results. Then once more with two vCPUs and a damaged file."""
import importlib.util
import os
import re
import tempfile

import vm

spec = importlib.util.spec_from_file_location("boot_initramfs", os.path.join(vm.TESTS, "boot", "boot-initramfs.py"))
initramfs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(initramfs)


def boot(tap, folder, cache, name, cpus=1):
    """Marks of the guest's programs; blocks found, blocks translated."""
    cmd = vm.command(cpus=cpus, memory=256, kernel=os.path.join(folder, "vmlinuz"), initrd=os.path.join(folder, "initrd.img"),
                     append="console=ttyS0 quiet panic=-1 hvx.run=programs",
                     extra=["--verbose", "--engine-option", "translation-cache=" + cache])
    with vm.Machine([word for word in cmd if word != "--quiet"]) as machine:
        try:
            status, text = machine.finish(vm.scaled(120))
        except vm.Timeout:
            status, text = None, machine.buffer
    tap.result(status == vm.POWERED_OFF, name + ": power-off ends with 0", "status %s\n%s" % (status, text[-1500:]))
    found = re.search(r"translation-cache: (\d+) blocks were there, (\d+) translated", text)
    tap.result(found is not None, name + ": the engine tells what it found", text[-1500:])
    marks = re.findall(r"HVX-MARK ((?:sha256|awk|forks|jobs|gzip|shell) [^\r\n]*)", text)
    return marks, (int(found[1]), int(found[2])) if found else (0, 1), text


def main():
    folder = initramfs.files()
    tap = vm.Tap()
    if vm.ENGINE != "bt":
        vm.skip("a translation cache is the engine bt's")
    with tempfile.TemporaryDirectory() as where:
        cache = os.path.join(where, "cache")
        first, cold, text = boot(tap, folder, cache, "cold")
        tap.result(len(first) == 6, "cold: the programs ran", text[-1500:])
        second, warm, text = boot(tap, folder, cache, "warm")
        print("# cold: %d found, %d translated; warm: %d found, %d translated" % (cold + warm))
        tap.result(second == first, "warm: the same results", "%s\n%s" % (first, second))
        tap.result(warm[0] > 3 * warm[1], "warm: most blocks need not be translated", str(warm))
        with open(cache, "r+b") as f:
            f.seek(60)
            f.write(b"\x77")
        third, again, text = boot(tap, folder, cache, "damaged, two vCPUs", 2)
        tap.result(third == first, "damaged, two vCPUs: the same results", "%s\n%s" % (first, third))
        tap.result("its header is damaged" in text, "damaged: the log says so", text[:1500])
    tap.done()


main()
