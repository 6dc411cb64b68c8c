#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Options are declared once; the manuals name each of them, and each command."""
import glob, json, os, re, subprocess, sys

src, build = os.environ["top_srcdir"], os.environ["top_builddir"]
hvx = build + "/core/hvx"
count = failed = 0


def check(good, text):
    global count, failed
    count += 1
    failed += not good
    print(f"{'ok' if good else 'not ok'} {count} - {text}")


def manual(path):
    """The text with roff's escapes undone."""
    with open(path) as f:
        return re.sub(r"\\f[BIRP]", "", f.read().replace("\\-", "-"))


def has_word(text, word):
    return re.search(r"(?<![\w-])" + re.escape(word) + r"(?![\w-])", text, re.I) is not None


os.environ.pop("HVX_CONF", None)
os.environ["HVX_PLUGIN_DIR"] = ":".join(glob.glob(build + "/plugins/*/.libs"))
plugins = json.loads(subprocess.run([hvx, "plugin", "list", "--json"], check=True, capture_output=True).stdout)
for p in plugins:
    name = p["name"]
    page = f"{src}/plugins/{name}/hvx-{name}.7"
    if not os.path.exists(page):
        check(False, f"plugins/{name}/hvx-{name}.7 exists")
        continue
    text = manual(page)
    shown = json.loads(subprocess.run([hvx, "plugin", "show", "--json", name], check=True, capture_output=True).stdout)
    words = [o["name"] for o in shown["options"]]
    for t in shown.get("device_types", []):
        words += [t["name"]] + [o["name"] for o in t["options"]]
    missing = sorted({w for w in words if not has_word(text, w)})
    check(not missing, f"the manual of {name} has its {len(words)} options and types" + (": not " + ", ".join(missing) if missing else ""))

text = manual(src + "/core/cmd/hvx.1")
usage = subprocess.run([hvx, "--help"], check=True, capture_output=True, text=True).stdout
commands = re.findall(r"^  (\w+) ", usage, re.M)
check(len(commands) > 0, "hvx --help lists commands")
missing = [c for c in commands if not has_word(text, c)]
check(not missing, "hvx(1) has every command" + (": not " + ", ".join(missing) if missing else ""))
for c in commands:
    r = subprocess.run([hvx, c, "--help"], capture_output=True, text=True)
    check(r.returncode == 0 and "usage" in r.stdout.lower(), f"hvx {c} --help prints its usage and exits with 0")
    pages = [text] + [manual(p) for p in glob.glob(f"{src}/core/*/hvx-{c}.1")]
    options = sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", r.stdout)))
    missing = [o for o in options if not any(has_word(t, o) for t in pages)]
    check(not missing, f"the manuals have the options of hvx {c}" + (": not " + ", ".join(missing) if missing else ""))
print(f"1..{count}")
sys.exit(failed != 0)
