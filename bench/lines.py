# SPDX-License-Identifier: Apache-2.0
"""The lines of bench/run: what is run, where, for how long, and how its output is turned into seconds per unit."""
import re


class Line:
    """One line of the table.

    where    "work": a program of bench/work, in an initramfs guest; "disk": a shell command in the full Debian guest,
             or natively in a copy of that guest's own root file system; "boot": from power-on to the login prompt
    command  shell text; `before` is run ahead of each sample and is not timed
    parse    (output, seconds that it took) to seconds per unit, None when the output is not what it must be
    group    a server or folder that several lines share, see GROUPS
    cost     seconds that one sample takes natively, under HVX and under TCG, for the estimate
    cpus     how many CPUs of the host it has, and vCPUs its guest
    """

    def __init__(self, name, what, where, command, parse, cost, group=None, before=None, extra=False, cpus=1):
        self.name, self.what, self.where, self.command, self.parse = name, what, where, command, parse
        self.cost, self.group, self.before, self.extra, self.cpus = cost, group, before, extra, cpus


# Programs of bench/work: name, what one unit is, units in one of the program's repetitions, factor by which its
# standard number of repetitions takes about 0.6 s natively, what HVX and TCG take for the same, and whether it is no
# line of the acceptance list. Each counts units per second, so TCG, being slow, may do a part of them (TCG_SHARE).
# calls5k is four times as long: it has only 12,000 calls even so.
WORK = [
    ("sieve", "primes below 10^6", 1, 8, 2.5, 16, False),
    ("sieve16", "primes below 16 * 10^6", 1, 2, 1.5, 8, True),
    ("calls", "fib(27) by recursion", 1, 15, 2.7, 9, False),
    ("indirect", "indirect call", 1000, 60, 2.5, 10, False),
    ("double", "Leibniz term, doubles", 1000, 12, 1, 10, False),
    ("matrix", "64x64 matrix product", 64, 4, 2, 10, True),
    ("x87", "x87 term", 1000, 4, 2, 10, True),
    ("chase", "dependent load, 32 MiB", 1000, 2, 2, 3, True),
    ("memcpy", "copy of 1 MiB", 1, 2, 1, 2, True),
    ("tree", "64 Ki tree insertions", 1, 2, 2, 3, True),
    ("sha256", "SHA-256 of 1 MB, C", 1, 3, 2.3, 5, True),
    ("sha256ni", "SHA-256 of 1 MB, C with SHA-NI", 1, 4.5, 1.8, 1, False),
    ("aes", "AES block forth and back, AES-NI", 1000, 12, 1, 15, False),
    ("getpid", "null system call", 1000, 5, 1.6, 5, False),
    ("calls5k", "200 us of work and a null system call", 100, 6, 4.5, 40, False),
    ("read", "read of 1 byte", 1000, 6, 2.4, 6, False),
    ("stat", "stat of a path", 1000, 10, 6, 23, False),
    ("signal", "caught signal", 1000, 3, 3.5, 28, False),
    ("pipe", "pipe round trip, two processes", 1000, 15, 5, 32, False),
    ("fork", "fork+exit+wait", 1, 8, 2.7, 22, False),
    ("exec", "fork+exec+wait", 1, 2, 1.2, 5, False),
    ("fault", "256 page faults, first touch", 1, 1.5, 2.3, 7, False),
    ("cow", "fork, 256 copies on write", 1, 1, 2.5, 8, True),
    ("yield", "sched_yield", 1000, 5, 2, 5, True),
]
TCG_SHARE = 0.25

# What lines share: made before the first of them, undone after the last. All that is written goes to a tmpfs on every
# side, so no disk and no fsync is measured; pgbench's WAL is "synced" to memory. Servers get a few seconds of their
# load at once: it is not the first translation of their code that the lines ask for.
PG = "setpriv --reuid postgres --regid postgres --clear-groups"
PG_BIN = "/usr/lib/postgresql/15/bin"
GROUPS = {
    "kbuild": ("mkdir -p /tmp/k /tmp/k.up/upper /tmp/k.up/work && mount -t overlay -o "
               "lowerdir=/usr/src/linux-tiny,upperdir=/tmp/k.up/upper,workdir=/tmp/k.up/work overlay /tmp/k",
               "cd /; umount /tmp/k; rm -rf /tmp/k /tmp/k.up"),
    "apache": ("mkdir -p /run/apache2 /run/lock /var/log/apache2 && apache2ctl start && for i in $(seq 300); do "
               "curl -fs -o /dev/null http://127.0.0.1/ && break; sleep 0.2; done; "
               "curl -fs -o /dev/null http://127.0.0.1/ && "
               "ab -q -t 2 -n 1000000 -c 4 http://127.0.0.1/ >/dev/null 2>&1",
               "apache2ctl stop; sleep 1"),
    "pg": ("mkdir /tmp/pg && chown postgres /tmp/pg && cd /tmp && "
           "{pg} {bin}/initdb -D /tmp/pg -A trust --no-sync >/dev/null && {pg} {bin}/pg_ctl -D /tmp/pg -w -t 600 "
           "-l /tmp/pg/log -o '-k /tmp -c listen_addresses= -c autovacuum=off -c checkpoint_timeout=1h' start "
           ">/dev/null && {pg} {bin}/createdb -h /tmp bench && "
           "{pg} {bin}/pgbench -h /tmp -q -i -s 4 bench && "
           "{pg} {bin}/pgbench -h /tmp -n -b select-only -b tpcb-like -c 4 -j 1 -T 3 bench >/dev/null 2>&1"
           .format(pg=PG, bin=PG_BIN),
           "cd /tmp; {pg} {bin}/pg_ctl -D /tmp/pg -m immediate stop; rm -rf /tmp/pg".format(pg=PG, bin=PG_BIN)),
}


def by_rate(pattern, scale):
    """A parser of what prints a rate, as openssl speed does: seconds for one unit."""
    def parse(text, _):
        found = re.search(pattern, text, re.M | re.I)
        return scale / float(found[1]) if found and float(found[1]) else None
    return parse


def by_clock(want):
    """A parser that takes the time of the whole command, if the output holds what it must."""
    def parse(text, elapsed):
        return elapsed if re.search(want, text, re.M) else None
    return parse


def by_work(name, units):
    """A parser of what bench/work prints."""
    def parse(text, _):
        found = re.search(r"^work %s ok n=(\d+) result=\d+ ns=(\d+)" % name, text, re.M)
        return int(found[2]) / 1e9 / int(found[1]) / units if found else None
    return parse


def work_lines(scale):
    def command(name, factor):
        return lambda kind: "work -s %g %s" % (scale * factor * (TCG_SHARE if kind == "tcg" else 1), name)
    return [Line(name, what, "work", command(name, factor), by_work(name, units),
                 (0.6 * scale, 0.6 * hvx * scale, 0.6 * tcg * TCG_SHARE * scale), extra=extra)
            for name, what, units, factor, hvx, tcg, extra in WORK]


def openssl_lines(scale):
    """With -elapsed: by default openssl counts processor time, which a guest's kernel can only estimate."""
    def one(name, what, argument, pattern, unit, cost, extra=False):
        span = max(1, round(scale))
        return Line(name, what, "disk", "openssl speed -elapsed -seconds %d %s 2>&1" % (span, argument),
                    by_rate(pattern, unit), [cost * span] * 3, extra=extra)
    return [
        one("ossl-sha256", "SHA-256 of 16 KiB, openssl", "-bytes 16384 -evp sha256", r"^sha256\s+([\d.]+)k",
            16.384, 1.2),
        one("ossl-aes", "AES-128-CBC of 16 KiB, openssl", "-bytes 16384 -evp aes-128-cbc", r"^aes-128-cbc\s+([\d.]+)k",
            16.384, 1.2),
        one("ossl-rsa", "RSA-2048 signature, openssl", "rsa2048",
            r"^rsa 2048 bits\s+[\d.]+s\s+[\d.]+s\s+([\d.]+)", 1.0, 2.5),
    ]


def kernel_build(scale, jobs=1):
    """Parts of the tree to make; natively 1.3, 5 and 25 s on the machine of README.md, with one job."""
    if scale < 0.5:
        parts, seconds = "kernel/locking/", 1.5
    elif scale < 3:
        parts, seconds = "kernel/time/ kernel/locking/", 5
    else:
        parts, seconds = "kernel/ lib/", 25
    name, how = ("kbuild%d" % jobs, " -j%d" % jobs) if jobs > 1 else ("kbuild", "")
    return Line(name, "tinyconfig Linux 6.1%s: %s" % (how and ", make" + how, parts), "disk",
                "cd /tmp/k && make -s%s %s && echo objects $(find . -newer stamp -name '*.o' | wc -l)" % (how, parts),
                by_clock(r"^objects [1-9]"), [x * seconds / jobs for x in (1, 9, 18)], "kbuild",
                r"cd /tmp/k && find kernel lib \( -name '*.o' -o -name '.*.cmd' -o -name '*.a' \) -delete; "
                "touch stamp; sleep 0.1", cpus=jobs)


def disk_lines(scale):
    terms, rounds, span = max(100_000, int(10_000_000 * scale)), max(1, int(50 * scale)), max(1, round(4 * scale))
    files, loops = max(2, int(4 * scale)), max(10, int(200 * scale))
    pgbench = "cd /tmp && %s %s/pgbench -h /tmp -n %%s -c 4 -j 1 -T %d bench 2>&1" % (PG, PG_BIN, span)
    # Lines of as many CPUs stand together, for the guest is booted anew where that changes.
    return openssl_lines(scale) + [
        Line("perl", "%.3g M Leibniz terms, perl" % (terms / 1e6), "disk", "perl {p}/leibniz.pl %d" % terms,
             by_clock(r"^pi 3\.14"), (0.7 * scale, 4.8 * scale, 11.5 * scale)),
        Line("python", "set of python3 programs", "disk", "python3 {p}/set.py %d" % rounds,
             by_clock(r"^set of %d, checksum \d+$" % rounds), (0.7 * scale, 4.5 * scale, 11 * scale)),
        Line("php", "set of php programs", "disk", "php {p}/set.php %d" % rounds,
             by_clock(r"^set of %d, checksum \d+$" % rounds), (0.5 * scale, 3 * scale, 8 * scale)),
        kernel_build(scale),
        Line("pgbench", "pgbench select-only transaction", "disk", pgbench % "-S", by_rate(r"^tps = ([\d.]+)", 1.0),
             [span + 0.5] * 3, "pg"),
        Line("tpcb", "pgbench TPC-B transaction", "disk", pgbench % "", by_rate(r"^tps = ([\d.]+)", 1.0),
             [span + 0.5] * 3, "pg"),
        Line("apache", "request of a 10 KB page, ab -c 4", "disk",
             "ab -q -t %d -n 1000000 -c 4 http://127.0.0.1/ 2>&1" % span,
             by_rate(r"^Requests per second:\s+([\d.]+)", 1.0), [span + 0.5] * 3, "apache"),
        Line("gcc", "gcc -O2 of %d generated files" % files, "disk",
             "rm -rf /tmp/g && perl {p}/generate.pl /tmp/g %d && make -s -C /tmp/g && /tmp/g/program" % files,
             by_clock(r"^checksum [0-9a-f]{8}"), (1.1 * scale, 11 * scale, 21 * scale), extra=True),
        Line("shell", "%d short commands in a shell" % loops, "disk",
             "i=0; while [ $i -lt %d ]; do echo $i | sed s/1/2/ >/dev/null; i=$((i + 1)); done; echo done" % loops,
             by_clock("^done"), (0.5 * scale, 2 * scale, 5 * scale), extra=True),
        Line("tar", "tar and gzip of /usr/share/perl", "disk", "tar -C /usr/share -c perl | gzip -1 | wc -c",
             by_clock(r"^\d{5,}"), (0.3, 1, 3), extra=True),
        kernel_build(scale, jobs=2),
    ]


def all_lines(scale):
    boot = Line("boot", "Debian from power-on to login", "boot", None, None, (0, 14, 29))
    return work_lines(scale) + disk_lines(scale) + [boot]
