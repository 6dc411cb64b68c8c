# SPDX-License-Identifier: Apache-2.0
"""set.py N: a set of small Python programs, N rounds of each; set.php does the same in PHP. Prints a checksum."""
import sys


def leibniz(terms):
    total, sign = 0.0, 1.0
    for k in range(terms):
        total += sign / (2 * k + 1)
        sign = -sign
    return int(total * 4e6)


def fib(k):
    return k if k < 2 else fib(k - 1) + fib(k - 2)


def numbers(count):
    """A set (in PHP: the keys of an array) that fills with pseudo-random numbers, and look-ups in it."""
    seen, x = set(), 1
    for _ in range(count):
        x = (x * 1103515245 + 12345) & 0x7fffffff
        seen.add(x >> 15)
    return len(seen) + sum(1 for k in range(count) if k in seen)


def words(count):
    """Text put together, split again, counted in a dictionary, sorted."""
    text = " ".join("w%d" % (k * k % 997) for k in range(count))
    counts = {}
    for word in text.split(" "):
        counts[word] = counts.get(word, 0) + 1
    ranking = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return len(ranking) * 1000 + ranking[0][1] + len(text)


class Body:
    def __init__(self, x, v):
        self.x, self.v = x, v

    def step(self):
        self.v -= self.x * 0.001
        self.x += self.v * 0.001
        return self.x


def objects(steps):
    bodies = [Body(1.0 + k, 0.0) for k in range(10)]
    total = 0.0
    for _ in range(steps):
        for body in bodies:
            total += body.step()
    return int(total)


def main(rounds):
    total = 0
    for _ in range(rounds):
        for value in (leibniz(100000), fib(18), numbers(20000), words(20000), objects(2000)):
            total = (total * 31 + value) % 1000000007
    print("set of %d, checksum %d" % (rounds, total))


main(int(sys.argv[1]))
