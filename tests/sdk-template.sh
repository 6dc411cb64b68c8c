#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The template plugin, as somebody outside the tree meets it: install, build
# from the installed files only, test, load; then change the ABI it was built
# for and read the refusal; then let a guest drive it.
set -u
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
n=0
ok() { n=$((n + 1)); echo "ok $n - $1"; }
not_ok() { n=$((n + 1)); echo "not ok $n - $1"; sed 's/^/# /' "$dir/out"; }
verdict() { if [ "$1" = 0 ]; then ok "$2"; else not_ok "$2"; fi; }
unset MAKEFLAGS MFLAGS MAKELEVEL HVX_CONF HVX_PLUGIN_DIR

make -C "$top_builddir" install DESTDIR="$dir" >"$dir/out" 2>&1
verdict $? "make install"
pc=$(find "$dir" -name hvx-sdk.pc)
hvx=$(find "$dir" -type f -name hvx -perm -u+x)
cp -r "$(find "$dir" -type d -path '*/hvx/template')" "$dir/mine"
chmod -R u+w "$dir/mine"
cd "$dir/mine" || exit 99

# The .pc file speaks of the final prefix; this copy lives under DESTDIR.
PKG_CONFIG_PATH=$(dirname "$pc")
export PKG_CONFIG_PATH
build() { make -s PKG_CONFIG='pkg-config --define-prefix' CFLAGS='-O2 -Wall -Wextra -Werror' "$@" >"$dir/out" 2>&1; }

build
verdict $? "builds from installed headers without a warning"
case "${CC:-}" in
*sanitize*) ;;
*)
    if nm "${PKG_CONFIG_PATH%/pkgconfig}/libhvxtest.a" 2>/dev/null | grep -q __asan_init; then
        build check LDFLAGS=-fsanitize=address,undefined
    else
        build check
    fi
    verdict $? "its unit test passes"
    ;;
esac
"$hvx" plugin show ./dev-adder.so >"$dir/out" 2>&1 && grep -q 'delay-ns=int (0 to 1000000000), default 1000' "$dir/out"
verdict $? "hvx plugin show FILE accepts it and lists its options"
mkdir "$dir/plugins"
cp dev-adder.so "$dir/plugins"
HVX_PLUGIN_DIR=$dir/plugins "$hvx" plugin list >"$dir/out" 2>&1 && grep -q '^dev-adder  *device  *enabled  *1\.0' "$dir/out"
verdict $? "hvx plugin list finds it in the plugin folder"

header=$(find "$dir" -path '*/include/hvx/plugin.h')
cp "$header" "$dir/plugin.h"
# altered WHAT SED-EXPRESSION WORDS
altered() {
    sed "$2" "$dir/plugin.h" >"$header"
    rm -f dev-adder.so
    build
    "$hvx" plugin show ./dev-adder.so >"$dir/out" 2>&1
    [ $? = 1 ] && grep -qF "$3" "$dir/out"
    verdict $? "$1"
    cp "$dir/plugin.h" "$header"
}
altered "another ABI major is refused" 's/HVX_ABI_MAJOR 1u/HVX_ABI_MAJOR 2u/' \
    "dev-adder.so refused: expected ABI major 1, found 2; upgrade HVX, or rebuild the plugin against this host's hvx-sdk headers"
altered "a newer family minor is refused" 's/HVX_DEVICE_MINOR 0u/HVX_DEVICE_MINOR 1u/' \
    "dev-adder.so refused: expected minor 0 or older of the device family, found 1; upgrade HVX, or rebuild"

# A guest drives it, when this build can run one.
rm -f dev-adder.so
build && cp dev-adder.so "$dir/plugins"
installed=$(dirname "$(find "$dir" -path '*/lib*/hvx/plugins/*.so' | head -n 1)")
if build guest.elf; then
    HVX_PLUGIN_DIR=$installed:$dir/plugins timeout 60 "$hvx" run --engine "${HVX_TEST_ENGINE:-auto}" --debug-exit \
        --memory 32M --net none --kernel guest.elf --device adder >"$dir/out" 2>&1 </dev/null
    status=$?
else
    status=no-compiler
fi
if [ $status = no-compiler ] || grep -q 'no enabled plugin offers a board\|no execution engine works' "$dir/out"; then
    n=$((n + 1))
    echo "ok $n - a guest drives it # SKIP no engine, no board, or no gcc -m32"
else
    echo "status $status" >>"$dir/out"
    [ $status = 33 ] && grep -q 'adder: 40 + 2 = 42' "$dir/out"
    verdict $? "a guest drives it"
fi
echo "1..$n"
