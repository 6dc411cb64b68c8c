#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Each public header compiles alone, as C11 and as C++11, without a warning.
n=0
for h in "$top_srcdir"/sdk/include/hvx/*.h; do
    for std in c11 c++11; do
        case $std in
        c11) compiler=${CC:-cc} lang=c ;;
        *) compiler=${CXX:-c++} lang=c++ ;;
        esac
        n=$((n + 1))
        name="$(basename "$h") alone as $std"
        # shellcheck disable=SC2086
        if echo "#include <hvx/$(basename "$h")>" |
            $compiler -x $lang -std=$std -Wall -Wextra -Werror -I"$top_srcdir/sdk/include" -fsyntax-only -; then
            echo "ok $n - $name"
        else
            echo "not ok $n - $name"
        fi
    done
done
echo "1..$n"
