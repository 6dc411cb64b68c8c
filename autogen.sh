#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Make ./configure. Run again after adding or removing a plugin folder.
set -e
cd "$(dirname "$0")"
mkdir -p m4 build-aux
# Two at once in one tree would take each other's files away.
exec 9>build-aux/.lock
flock 9
autoreconf --install --force
