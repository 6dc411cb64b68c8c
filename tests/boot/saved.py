# SPDX-License-Identifier: Apache-2.0
"""Saving a running machine, starting another from the file, and looking into such a file."""
import os
import struct
import subprocess
import tempfile

import vm


class Folder:
    """Where the control sockets and the files of one test are."""

    def __init__(self):
        self.temporary = tempfile.TemporaryDirectory(prefix="hvx-save-", dir=os.environ.get("TMPDIR", "/var/tmp"))
        self.path = self.temporary.name
        os.environ["XDG_RUNTIME_DIR"] = self.path
        os.environ.pop("HVX_CONF", None)

    def file(self, name):
        return os.path.join(self.path, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.temporary.cleanup()


def _output(command, timeout):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=vm.scaled(timeout), errors="replace")
    return done.returncode, done.stdout


def save(name, path, *options, timeout=120):
    """(exit status, what it said) of hvx save."""
    return _output([vm.hvx_program(), "save", *options, name, path], timeout)


def save_and_end(machine, name, path, *options):
    """Saves a machine and waits for its process; returns what went wrong, or "", and what the guest said until then."""
    status, text = save(name, path, *options)
    if status != 0:
        return "hvx save: status %d: %s" % (status, text), ""
    status, rest = machine.finish(vm.scaled(60))
    machine.kill()
    return "" if status == SAVED else "the saved VM ended with status %s" % status, rest


SAVED = 7  # exit status of hvx run


class Section:
    def __init__(self, name, at, head, size):
        self.name, self.at, self.head, self.size = name, at, head, size

    @property
    def payload(self):
        return self.at + self.head

    @property
    def crc(self):
        return self.payload + self.size


def sections(path):
    """The sections of a saved state, as core/vm/stream.h describes them."""
    found = []
    with open(path, "rb") as f:
        assert f.read(8) == b"HVXSTATE"
        at = 16
        while True:
            f.seek(at)
            length = struct.unpack("<H", f.read(2))[0]
            name = f.read(length).decode()
            _version, size = struct.unpack("<II", f.read(8))
            found.append(Section(name, at, 2 + length + 8, size))
            at = found[-1].crc + 4
            if not name:
                return found


def patched(path, out, changes):
    """A copy of the file with bytes at offsets replaced; a change of None flips a bit."""
    subprocess.run(["cp", "--reflink=auto", path, out], check=True)
    with open(out, "r+b") as f:
        for at, data in changes.items():
            f.seek(at)
            if data is None:
                old = f.read(1)[0]
                data = bytes([old ^ 0x10])
                f.seek(at)
            f.write(data)


def refusal(command, timeout=60):
    """(exit status, what it printed) of a VM that ought not to start."""
    return _output(command, timeout)
