#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Make ./configure. Run again after adding or removing a plugin folder.
set -e
cd "$(dirname "$0")"
mkdir -p m4 build-aux
exec autoreconf --install --force
