#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# hvx image from the command line: what it makes, prints and refuses, and its
# exit codes. Prints TAP.
hvx=${top_builddir:-.}/core/hvx
[ -x "$hvx" ] || { echo "$hvx is not built"; exit 77; }
hvx=$(cd "$(dirname "$hvx")" && pwd)/hvx
dir=$(mktemp -d) && cd "$dir" || exit 99
trap 'rm -rf "$dir"' EXIT
n=0
failed=0
expect() { # STATUS TEXT COMMAND...: the command ends so and prints text that matches
    status=$1 text=$2
    shift 2
    n=$((n + 1))
    out=$("$@" 2>&1)
    got=$?
    if [ $got = "$status" ] && printf '%s\n' "$out" | grep -q -e "$text"; then
        echo "ok $n - $*"
    else
        echo "not ok $n - $* (status $got, not $status, or no \"$text\" in:)"
        printf '%s\n' "$out" | sed 's/^/# /'
        failed=1
    fi
}
expect 0 '' "$hvx" image create a.qcow2 1G
expect 0 'disk size: *1 GiB (1073741824 bytes)' "$hvx" image info a.qcow2
expect 0 '"virtual-size": 1073741824' "$hvx" image info --json a.qcow2
expect 0 'No errors' "$hvx" image check a.qcow2
expect 1 'exists' "$hvx" image create a.qcow2 1G
expect 0 '' "$hvx" image create --force -o cluster_size=4K,refcount_bits=1,compat=1.1 a.qcow2 64M
expect 0 'cluster size: *4 KiB' "$hvx" image info a.qcow2
expect 1 'not a size' "$hvx" image create b.qcow2 lots
expect 1 'how large' "$hvx" image create b.qcow2
expect 1 'power of two' "$hvx" image create -o cluster_size=5000 b.qcow2 1G
expect 1 'not understood' "$hvx" image create -o colour=red b.qcow2 1G
expect 1 'unknown image format' "$hvx" image create -f vdi b.vdi 1G
expect 1 'too large for clusters' "$hvx" image create -o cluster_size=512 b.qcow2 8T
[ -e b.qcow2 ] && { echo "not ok - a failed create left a file"; failed=1; }
expect 0 '' "$hvx" image create -f raw r.raw 3M
expect 0 'format: *raw' "$hvx" image info r.raw
expect 1 'say the format of the backing file' "$hvx" image create -b r.raw o.qcow2
expect 0 '' "$hvx" image create -b r.raw -F raw o.qcow2
expect 0 'backing file: *r.raw (format raw)' "$hvx" image info o.qcow2
expect 0 'disk size: *3 MiB' "$hvx" image info o.qcow2
expect 1 'say both formats' "$hvx" image convert r.raw n.qcow2
expect 1 'not a qcow2 image' "$hvx" image convert -f qcow2 -O raw r.raw n.raw
head -c 700000 /dev/urandom | dd of=r.raw bs=1000 seek=300 conv=notrunc 2>/dev/null
expect 0 '' "$hvx" image convert -f raw -O qcow2 r.raw n.qcow2
expect 0 '' "$hvx" image convert -f qcow2 -O raw n.qcow2 back.raw
expect 0 '' cmp r.raw back.raw
expect 0 '' "$hvx" image convert -f qcow2 -O raw o.qcow2 merged.raw
expect 0 '' cmp r.raw merged.raw
expect 1 'exists' "$hvx" image convert -f qcow2 -O raw n.qcow2 back.raw
expect 0 '' "$hvx" image convert --force -f qcow2 -O raw n.qcow2 back.raw
expect 1 'cannot open disk image' "$hvx" image info nothing.qcow2
mkdir sub
expect 0 '' "$hvx" image create -b "$dir/r.raw" -F raw sub/o.qcow2
expect 1 'outside of the image' "$hvx" image convert -f qcow2 -O raw sub/o.qcow2 x.raw
expect 0 '' "$hvx" image convert --allow-backing-outside -f qcow2 -O raw sub/o.qcow2 x.raw
# Damage: refcounts of the first clusters away, then a leak.
cp n.qcow2 bad.qcow2
dd if=/dev/zero of=bad.qcow2 bs=1 seek=131072 count=8 conv=notrunc 2>/dev/null
expect 4 'errors were found' "$hvx" image check bad.qcow2
expect 0 'Repaired' "$hvx" image check --repair bad.qcow2
expect 0 'No errors' "$hvx" image check bad.qcow2
expect 0 '' "$hvx" image convert -f qcow2 -O raw bad.qcow2 bad.raw
expect 0 '' cmp r.raw bad.raw
cp n.qcow2 leak.qcow2
printf '\0\1' | dd of=leak.qcow2 bs=1 seek=132072 conv=notrunc 2>/dev/null
expect 3 'leaked' "$hvx" image check leak.qcow2
expect 0 '"leaks-fixed": 1' "$hvx" image check --repair --json leak.qcow2
head -c 200 n.qcow2 >short.qcow2
expect 1 'cut off' "$hvx" image info short.qcow2
expect 2 'usage:' "$hvx" image
expect 2 'usage:' "$hvx" image frobnicate
expect 2 'usage:' "$hvx" image info
expect 2 'usage:' "$hvx" image info --repair a.qcow2
expect 0 'usage:' "$hvx" image --help
echo "1..$n"
exit $failed
