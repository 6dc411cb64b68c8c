#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Every reason to refuse a plugin: the message names the file, what was
# expected, what was found, and the remedy; the exit status is 1; nothing
# crashes.
set -u
hvx=$top_builddir/core/hvx
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
n=0
unset HVX_CONF

ok() { n=$((n + 1)); echo "ok $n - $1"; }
not_ok() { n=$((n + 1)); echo "not ok $n - $1"; sed 's/^/# /' "$dir/out"; }

# build FILE [COMPILER OPTION]...
build() {
    build_out=$1
    shift
    # -Winit: overriding a field on purpose
    ${CC:-cc} -std=gnu11 -w -shared -fPIC -fvisibility=hidden -I"$top_srcdir/sdk/include" \
        -DNAME=dev_sample -DTEXT='"dev-sample"' "$@" -o "$build_out" "$top_srcdir/tests/plugins/sample.c"
}

# refused WHAT FILE WORDS...: hvx plugin show FILE prints all of WORDS.
refused() {
    what=$1 file=$2
    shift 2
    "$hvx" plugin show "$file" >"$dir/out" 2>&1
    status=$?
    if [ $status -ne 1 ]; then
        echo "status $status" >>"$dir/out"
        not_ok "$what"
        return
    fi
    for words in "plugin $file refused" expected "found" "$@"; do
        if ! grep -qF -- "$words" "$dir/out"; then
            echo "missing words: $words" >>"$dir/out"
            not_ok "$what"
            return
        fi
    done
    ok "$what"
}

so=$dir/dev-sample.so
bad() { # bad WHAT OPTION... -- WORDS...
    what=$1
    shift
    opts=
    while [ "$1" != -- ]; do opts="$opts $1"; shift; done
    shift
    # shellcheck disable=SC2086
    build "$so" $opts || { echo "does not compile" >"$dir/out"; not_ok "$what"; return; }
    refused "$what" "$so" "$@"
}

build "$so" && "$hvx" plugin show "$so" >"$dir/out" 2>&1 && ok "a good plugin is accepted" || not_ok "a good plugin is accepted"

build "$so" -DLONGER_OPS && "$hvx" plugin show "$so" >"$dir/out" 2>&1 && grep -q '^Device type sample' "$dir/out" &&
    ok "operations longer than this host's are served as far as it knows them" ||
    not_ok "operations longer than this host's are served as far as it knows them"

bad "wrong magic" -DOVERRIDE=.magic=7 -- "magic 0x50585648" "found 0x00000007" "is this an HVX plugin"
bad "other ABI major" -DOVERRIDE=.abi_major=2 -- "expected ABI major 1, found 2" "upgrade HVX"
bad "older ABI major" -DOVERRIDE=.abi_major=0 -- "expected ABI major 1, found 0" "rebuild the plugin"
bad "newer family minor" -DOVERRIDE=.family_minor=5 -- "minor 0 or older of the device family, found 5" "upgrade HVX"
bad "unknown family" -DOVERRIDE=.family=9 -- "expected family 1 to 4" "found 9"
bad "descriptor too short" -DOVERRIDE=.size=40 -- "96 to 96 bytes, found size 40" "HVX_PLUGIN_DEFINE"
bad "descriptor longer than its object" -DOVERRIDE=.size=4000 -- "found size 4000"
bad "missing symbol" -DBAD_SYMBOL -- "the symbol hvx_plugin_dev_sample, found none" "HVX_PLUGIN_DEFINE"
bad "undefined symbol" -DBAD_UNDEFINED -- "a_function_that_nobody_has" "-Wl,-z,defs"
bad "undefined function, bound lazily" -DBAD_UNDEFINED_LAZY -Wl,-z,lazy -- "a_function_that_nobody_has" "-Wl,-z,defs"
bad "wrong name" -DBAD_NAME -- "the plugin name dev-sample, found another" "rename"
bad "no license" -DBAD_LICENSE -- "found no license" "fill in"
bad "no init" -DBAD_INIT -- "an init function, found none"
bad "no operations" -DBAD_OPS -- "operations of the device family, found none"
bad "unsound option table" -DBAD_OPTIONS -- "option level is declared twice" "correct the table"
bad "missing callback of a device type" -DBAD_CALLBACK -- "device type sample, found no reset" "hvx/device.h"
bad "device type too short" -DBAD_TYPE_SIZE -- "found 16" "rebuild the plugin"
bad "one type twice" -DBAD_TWO_TYPES -- "found device type sample twice"
bad "missing callbacks of an engine" -DENGINE -DBAD_CALLBACK -- "found no vcpu_run, vcpu_kick" "hvx/cpu.h"
bad "engine operations too short" -DENGINE -DBAD_OPS_SIZE -- "operations of the cpu family of at least" "found 40"
bad "wrong family" -DOVERRIDE=.family=1 -- "operations of the cpu family" "check .family"

# A library that the plugin needs and that is gone.
echo 'int helper(void) { return 1; }' >"$dir/helper.c"
${CC:-cc} -shared -fPIC -o "$dir/libhelper-of-sample.so" "$dir/helper.c"
build "$so" -Wl,--no-as-needed -L"$dir" -lhelper-of-sample
rm "$dir/libhelper-of-sample.so"
refused "missing library" "$so" "libhelper-of-sample.so" "install the library"

printf 'not a shared object' >"$so"
refused "not a shared object" "$so" "the file is damaged"
: >"$so"
refused "empty file" "$so" "the file is damaged"
build "$so"
head -c 3000 "$so" >"$so.cut" && mv "$so.cut" "$so"
refused "truncated file" "$so" "cut short" "the file is damaged"
build "$so"
head -c -1000 "$so" >"$so.cut" && mv "$so.cut" "$so"
refused "truncated at its end" "$so" "cut short"
${CC:-cc} -c -x c /dev/null -o "$so"
refused "object file" "$so" "not an x86-64 shared object"

"$hvx" plugin show "$dir/none.so" >"$dir/out" 2>&1
[ $? -eq 1 ] && grep -q "No such file" "$dir/out" && ok "missing file" || not_ok "missing file"

# Through the plugin folder: a refused plugin is listed with its reason.
mkdir "$dir/one" "$dir/two"
build "$dir/one/dev-sample.so" -DOVERRIDE=.abi_major=2
export HVX_PLUGIN_DIR="$dir/one"
"$hvx" plugin list >"$dir/out" 2>&1 && grep -q "dev-sample.*refused.*expected ABI major 1, found 2" "$dir/out" &&
    ok "list shows the reason" || not_ok "list shows the reason"

build "$dir/one/dev-sample.so"
build "$dir/two/dev-sample.so"
HVX_PLUGIN_DIR=$dir/one:$dir/two "$hvx" plugin list >"$dir/out" 2>&1
[ "$(grep -c '^dev-sample .* enabled' "$dir/out")" = 1 ] && grep -qF "expected one plugin named dev-sample, found also $dir/one/dev-sample.so" "$dir/out" &&
    ok "one name in two folders" || not_ok "one name in two folders"

build "$dir/one/dev-other.so" -UNAME -DNAME=dev_other -UTEXT '-DTEXT="dev-other"'
"$hvx" plugin list >"$dir/out" 2>&1
grep -qF "found sample, which dev-other offers too; enable only one" "$dir/out" &&
    ok "one device type in two plugins" || not_ok "one device type in two plugins"

echo "1..$n"
