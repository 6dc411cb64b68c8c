<?php
// SPDX-License-Identifier: Apache-2.0
// set.php N: a set of small PHP programs, N rounds of each; the same as set.py, and the same checksum.

function leibniz($terms)
{
    $total = 0.0;
    $sign = 1.0;
    for ($k = 0; $k < $terms; $k++) {
        $total += $sign / (2 * $k + 1);
        $sign = -$sign;
    }
    return (int)($total * 4e6);
}

function fib($k)
{
    return $k < 2 ? $k : fib($k - 1) + fib($k - 2);
}

function numbers($count)
{
    $seen = [];
    $x = 1;
    for ($i = 0; $i < $count; $i++) {
        $x = ($x * 1103515245 + 12345) & 0x7fffffff;
        $seen[$x >> 15] = true;
    }
    $found = count($seen);
    for ($k = 0; $k < $count; $k++)
        if (isset($seen[$k]))
            $found++;
    return $found;
}

function words($count)
{
    $parts = [];
    for ($k = 0; $k < $count; $k++)
        $parts[] = sprintf("w%d", $k * $k % 997);
    $text = implode(" ", $parts);
    $counts = [];
    foreach (explode(" ", $text) as $word)
        $counts[$word] = ($counts[$word] ?? 0) + 1;
    $ranking = array_keys($counts);
    usort($ranking, fn($a, $b) => $counts[$b] <=> $counts[$a] ?: strcmp($a, $b));
    return count($ranking) * 1000 + $counts[$ranking[0]] + strlen($text);
}

class Body
{
    private $x;
    private $v;

    public function __construct($x, $v)
    {
        $this->x = $x;
        $this->v = $v;
    }

    public function step()
    {
        $this->v -= $this->x * 0.001;
        $this->x += $this->v * 0.001;
        return $this->x;
    }
}

function objects($steps)
{
    $bodies = [];
    for ($k = 0; $k < 10; $k++)
        $bodies[] = new Body(1.0 + $k, 0.0);
    $total = 0.0;
    for ($i = 0; $i < $steps; $i++)
        foreach ($bodies as $body)
            $total += $body->step();
    return (int)$total;
}

$total = 0;
for ($r = 0; $r < (int)$argv[1]; $r++)
    foreach ([leibniz(100000), fib(18), numbers(20000), words(20000), objects(2000)] as $value)
        $total = ($total * 31 + $value) % 1000000007;
printf("set of %d, checksum %d\n", $argv[1], $total);
