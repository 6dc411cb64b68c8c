# SPDX-License-Identifier: Apache-2.0
"""What bench/run measured: a journal that survives an interruption, medians, and the table with its targets."""
import json
import os
import statistics
import tempfile


def read_targets(path):
    """({line: {column: value}}, columns) of targets.tsv; a value is (factor, "native" or "tcg")."""
    table, columns = {}, None
    with open(path) as f:
        for number, text in enumerate(f, 1):
            fields = text.rstrip("\n").split("\t")
            if text.startswith("#") or not text.strip():
                continue
            if columns is None:
                columns = fields[1:]
                continue
            if len(fields) != len(columns) + 1:
                raise ValueError("%s, line %d: %d columns, the heading has %d" %
                                 (path, number, len(fields), len(columns) + 1))
            table[fields[0]] = {c: (float(v.rstrip("t")), "tcg" if v.endswith("t") else "native")
                                for c, v in zip(columns, fields[1:]) if v != "-"}
    return table, columns


class Journal:
    """One JSON object a line: first the circumstances, then each sample as soon as it is known."""

    def __init__(self, path, circumstances, resume):
        self.path, self.circumstances = path, circumstances
        self.samples, self.notes = {}, []
        if resume:
            self._read()
            self._cut_half_line()
            self.file = open(path, "a")
        else:
            self.file = open(path, "w")
            self._write({"circumstances": circumstances})

    def _read(self):
        with open(self.path) as f:
            for text in f:
                try:
                    entry = json.loads(text)
                except ValueError:
                    continue  # see _cut_half_line
                if "circumstances" in entry:
                    now, then = self.circumstances, entry["circumstances"]
                    differ = ", ".join("%s (%s, now %s)" % (k, then.get(k), now[k])
                                       for k in now if then.get(k) != now[k])
                    if differ:
                        raise ValueError("%s is of another run, for there differ: %s; resume it as it was begun" %
                                         (self.path, differ))
                elif "note" in entry:
                    self.notes.append(entry["note"])
                else:
                    self.samples.setdefault((entry["line"], entry["engine"]), []).append(entry)

    def _cut_half_line(self):
        """What was being written when the run was cut short would spoil the line that comes next."""
        with open(self.path, "rb+") as f:
            data = f.read()
            f.truncate(data.rfind(b"\n") + 1)

    def _write(self, entry):
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()

    def add(self, line, engine, seconds, sample=None):
        entry = {"line": line, "engine": engine, "seconds": seconds}
        if sample:
            entry.update(host=round(sample.host, 4), guest=sample.guest and round(sample.guest, 4),
                         others=round(sample.others, 4), clock_agrees=sample.clock_agrees)
        self.samples.setdefault((line, engine), []).append(entry)
        self._write(entry)

    def note(self, text):
        self.notes.append(text)
        self._write({"note": text})

    def count(self, line, engine):
        return len(self.samples.get((line, engine), ()))

    def median(self, line, engine):
        values = [s["seconds"] for s in self.samples.get((line, engine), ())]
        return statistics.median(values) if values else None

    def spread(self, line, engine):
        """(largest - smallest) / median."""
        values = [s["seconds"] for s in self.samples.get((line, engine), ())]
        return (max(values) - min(values)) / statistics.median(values) if values else 0.0

    def doubts(self, line, engine):
        """What a reader of this figure must know."""
        samples = self.samples.get((line, engine), ())
        out = []
        others = statistics.median([s.get("others", 0) for s in samples]) if samples else 0
        if others > 0.05:
            out.append("other programs had %.0f %% of the CPU" % (100 * others))
        wrong = [s for s in samples if not s.get("clock_agrees", True)]
        if wrong:
            out.append("the guest's clock counted %.2f s where the host's counted %.2f s (%d of %d samples)" %
                       (wrong[0]["guest"], wrong[0]["host"], len(wrong), len(samples)))
        if self.spread(line, engine) > 0.25:
            out.append("samples are spread over %.0f %% of the median" % (100 * self.spread(line, engine)))
        return out


class Table:
    def __init__(self, journal, engines, targets, columns, target):
        """engines are (name, kind); target is the column of targets that decides what is missed."""
        self.journal, self.engines, self.targets, self.target = journal, engines, targets, target
        self.columns = [c for c in columns if c != "reference"]
        self.missed, self.reached = [], []

    def of_kind(self, kind):
        return next((name for name, k in self.engines if k == kind), None)

    def head(self):
        text = "%-12s %-40s" % ("", "one unit is")
        for name, kind in self.engines:
            text += "%10s" % name + ("" if kind == "native" else "%8s" % "ratio")
            if kind == "hvx":
                text += "".join("%8s" % c for c in self.columns) + "  %-7s" % ""
            if kind == "tcg":
                text += "%8s" % "(then)"
        return text + ("%10s" % "hvx:tcg" if self.of_kind("tcg") and self.of_kind("hvx") else "")

    def limit(self, name, column):
        """(the target's text, the limit in seconds or None)."""
        target = self.targets.get(name, {}).get(column)
        if not target:
            return "-", None
        base = self.of_kind(target[1])
        base = base and self.journal.median(name, base)
        return "%g%s" % (target[0], "t" if target[1] == "tcg" else ""), base and target[0] * base

    def row(self, name, what):
        medians = {e: self.journal.median(name, e) for e, _ in self.engines}
        native = medians.get(self.of_kind("native"))
        text = "%-12s %-40s" % (name, what[:40])
        for engine, kind in self.engines:
            value = medians[engine]
            text += "%10s" % human(value)
            if kind != "native":
                text += "%8s" % ("%.2f" % (value / native) if value and native else "-")
            if kind == "hvx":
                text += "".join("%8s" % self.limit(name, c)[0] for c in self.columns)
                limit, verdict = self.limit(name, self.target)[1], ""
                if limit and value:
                    good = value <= limit * 1.005
                    verdict = "ok" if good else "MISSED"
                    (self.reached if good else self.missed).append((engine, name))
                text += "  %-7s" % verdict
            if kind == "tcg":
                reference = self.targets.get(name, {}).get("reference")
                text += "%8s" % ("(%g)" % reference[0] if reference else "-")
        hvx, tcg = medians.get(self.of_kind("hvx")), medians.get(self.of_kind("tcg"))
        if self.of_kind("tcg") and self.of_kind("hvx"):
            text += "%10s" % ("%.2fx" % (tcg / hvx) if hvx and tcg else "-")
        return text.rstrip()

    def summary(self):
        judged = len(self.missed) + len(self.reached)
        if not judged:
            return "no line had a target and all it takes to judge it"
        missed = " ".join(n if e == "hvx" else "%s/%s" % (e, n) for e, n in self.missed)
        return "%d of %d targets (%s) reached%s" % (len(self.reached), judged, self.target,
                                                    "; missed: " + missed if missed else "")


def human(seconds):
    if seconds is None:
        return "-"
    for factor, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= factor:
            return "%.3g %s" % (seconds / factor, unit)
    return "%.3g ns" % (seconds / 1e-9)


def write_json(path, journal, table, names):
    """The whole of it, put in place at once; a reader never sees half of it."""
    engines = [e for e, _ in table.engines]
    lines = {}
    for name in names:
        samples = {e: [s["seconds"] for s in journal.samples[name, e]] for e in engines if (name, e) in journal.samples}
        if samples:
            lines[name] = {"median": {e: journal.median(name, e) for e in samples}, "samples": samples,
                           "targets": {c: v[0] for c, v in table.targets.get(name, {}).items()},
                           "missed": [e for e, n in table.missed if n == name],
                           "doubts": {e: journal.doubts(name, e) for e in samples if journal.doubts(name, e)}}
    with tempfile.NamedTemporaryFile("w", dir=os.path.dirname(os.path.abspath(path)), delete=False) as f:
        json.dump({"circumstances": journal.circumstances, "lines": lines, "notes": journal.notes}, f, indent=1)
    os.chmod(f.name, 0o644)
    os.replace(f.name, path)
