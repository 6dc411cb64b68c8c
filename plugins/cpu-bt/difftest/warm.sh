#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Translations kept in a file: the same cases twice, against the host both times. Their code is at the same addresses
# over and over; a translation used for other bytes than its own gives other results.
file=$(mktemp -d)/warm || exit 99
trap 'rm -rf "$(dirname "$file")"' EXIT
for want in 0 5000; do
    out=$(difftest/difftest --warm "$file" --cases 8 --sequences 2000 --programs 600 --quiet --stats) || { echo "$out"; exit 1; }
    n=$(echo "$out" | sed -n 's/.* warm_loaded *\([0-9]*\) .*/\1/p')
    echo "difftest warm: ${n:-0} blocks from the file"
    [ "${n:-0}" -ge $want ] || { echo "$out"; exit 1; }
done
