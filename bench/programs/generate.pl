#!/usr/bin/perl
# SPDX-License-Identifier: Apache-2.0
# generate.pl FOLDER N: writes a fixed C program of N files, a shared header and a Makefile; what a compiler meets in a
# kernel: structures, inline functions, switches, bit fields, tables of function pointers.
use strict;
use warnings;

my ($folder, $n) = @ARGV;
die "usage: generate.pl FOLDER N\n" unless $folder && $n && $n =~ /^\d+$/;
mkdir $folder or die "$folder: $!\n";
my $seed = 12345;
sub pick { $seed = ($seed * 1103515245 + 12345) % 2147483648; return int($seed / 65536) % $_[0] }
sub file { my ($name, $text) = @_; open my $f, '>', "$folder/$name" or die "$name: $!\n"; print $f $text; close $f }

my $header = "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n";
for my $s (0 .. 59) {
    $header .= "struct s$s { uint32_t a$s, b$s : 5, c$s : 11, d$s : 16; struct s$s *next; uint8_t bytes[" . (8 + pick(40)) .
        "]; };\nstatic inline uint32_t get$s(const struct s$s *p) { return (p->a$s ^ p->b$s) + p->c$s * " . (1 + pick(90)) .
        "u + p->bytes[" . pick(8) . "]; }\n";
}
$header .= "uint32_t part$_(uint32_t x);\n" for 0 .. $n - 1;
file('all.h', $header);
for my $i (0 .. $n - 1) {
    my $c = "#include \"all.h\"\n";
    for my $f (0 .. 39) {
        my $s = pick(60);
        $c .= "static uint32_t f$f(uint32_t x)\n{\n    struct s$s v = {.a$s = x, .b$s = x >> 3, .c$s = x >> 7, .d$s = x >> 11};\n" .
            "    uint32_t t[16];\n    memset(v.bytes, (int)(x & 255), sizeof(v.bytes));\n" .
            "    for (uint32_t i = 0; i < 16; i++)\n        t[i] = get$s(&v) * (i + " . (1 + pick(50)) . ") + (x >> (i & 7));\n" .
            "    switch (x % 9) {\n";
        $c .= "    case $_: x += t[" . pick(16) . "] ^ t[" . pick(16) . "]; break;\n" for 0 .. 7;
        $c .= "    default: x = x * 2654435761u + v.d$s; break;\n    }\n    return x ^ (x >> " . (3 + pick(12)) . ");\n}\n";
    }
    $c .= "static uint32_t (*const table[])(uint32_t) = {" . join(', ', map { "f$_" } 0 .. 39) . "};\n" .
        "uint32_t part$i(uint32_t x)\n{\n    for (int r = 0; r < 200; r++)\n        x = table[(x ^ (uint32_t)r) % 40](x);\n" .
        "    return x;\n}\n";
    file("part$i.c", $c);
}
file('main.c', "#include \"all.h\"\nint main(void)\n{\n    uint32_t x = 1;\n" .
    join('', map { "    x = part$_(x);\n" } 0 .. $n - 1) . "    printf(\"checksum %08x\\n\", x);\n    return 0;\n}\n");
my $objects = join ' ', 'main.o', map { "part$_.o" } 0 .. $n - 1;
file('Makefile', "program: $objects\n\tgcc -o \$@ $objects\n%.o: %.c all.h\n\tgcc -O2 -Wall -c -o \$@ \$<\n");
