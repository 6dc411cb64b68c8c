#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What the engine's helpers do with a program's registers and exceptions: the
# forms of difftest, run natively in one. Memory and faults are the guest's.
exec difftest/difftest --direct --cases 8 --sequences 1000 --quiet
