#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A plugin exports its descriptor and nothing else, leaves no symbol of the
# program undefined, and binds everything when it is loaded.
n=0
check() { # check RESULT TEXT
    n=$((n + 1))
    [ "$1" = 0 ] && echo "ok $n - $2" || echo "not ok $n - $2"
}
for so in "$top_builddir"/plugins/*/.libs/*.so; do
    [ -f "$so" ] || continue
    name=$(basename "$so" .so)
    want=hvx_plugin_$(echo "$name" | tr - _)
    got=$(nm -D --defined-only "$so" | awk '{ print $3 }' | tr '\n' ' ')
    [ "$got" = "$want " ] || echo "# $name exports: $got"
    [ "$got" = "$want " ]
    check $? "$name exports just $want"
    undefined=$(nm -D --undefined-only "$so" | awk '{ print $2 }' | grep '^hvx')
    [ -z "$undefined" ]
    check $? "$name needs no symbol of the program"
    readelf -d "$so" | grep -q 'BIND_NOW\|Flags:.*NOW'
    check $? "$name binds at load"
done
[ $n -gt 0 ] || { echo "no plugin was built"; exit 77; }
echo "1..$n"
