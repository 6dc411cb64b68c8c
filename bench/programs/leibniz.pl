#!/usr/bin/perl
# SPDX-License-Identifier: Apache-2.0
# leibniz.pl N: pi by N terms of Leibniz' series, the loop written out as a beginner would.
use strict;
use warnings;

my ($n) = @ARGV;
my ($sum, $sign) = (0, 1);
for (my $k = 0; $k < $n; $k++) {
    $sum += $sign / (2 * $k + 1);
    $sign = -$sign;
}
printf "pi %.4f\n", 4 * $sum;
