#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""raw2qcow2.py RAW QCOW2: writes a sparse raw disk as qcow2 version 3.
raw2qcow2.py --overlay BASE QCOW2: writes an empty qcow2 over the qcow2 BASE, which must lie in the same folder.

Its own small writer on purpose: the tests then read an image that neither HVX nor QEMU wrote. Format: QEMU's
docs/interop/qcow2.txt. Clusters of 64 KiB, refcounts of 16 bits, holes and zero clusters are left unallocated.
"""
import os
import struct
import sys

CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
L2_ENTRIES = CLUSTER // 8
REFCOUNTS = CLUSTER // 2
COPIED = 1 << 63


def data_ranges(fd, size):
    """Yields (start, end) of what is not a hole, rounded out to clusters, without overlap."""
    done = at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        start = max(done, start // CLUSTER * CLUSTER)
        done = -(-end // CLUSTER) * CLUSTER
        if start < done:
            yield start, done
        at = end


def convert(raw_path, qcow2_path):
    with open(raw_path, "rb") as raw, open(qcow2_path, "wb") as out:
        size = os.fstat(raw.fileno()).st_size
        n_l2 = -(-size // (CLUSTER * L2_ENTRIES))
        l1_clusters = -(-n_l2 * 8 // CLUSTER)
        next_cluster = 1 + l1_clusters  # header, level 1 table
        l1 = [0] * n_l2
        l2 = {}
        zeros = bytes(CLUSTER)
        for start, end in data_ranges(raw.fileno(), size):
            for offset in range(start, end, CLUSTER):
                data = os.pread(raw.fileno(), CLUSTER, offset).ljust(CLUSTER, b"\0")
                if data == zeros:
                    continue
                out.seek(next_cluster * CLUSTER)
                out.write(data)
                table = l2.setdefault(offset // CLUSTER // L2_ENTRIES, [0] * L2_ENTRIES)
                table[offset // CLUSTER % L2_ENTRIES] = next_cluster * CLUSTER | COPIED
                next_cluster += 1
        for index, table in sorted(l2.items()):
            out.seek(next_cluster * CLUSTER)
            out.write(struct.pack(">%dQ" % L2_ENTRIES, *table))
            l1[index] = next_cluster * CLUSTER | COPIED
            next_cluster += 1
        # The refcount blocks and their table count themselves too.
        n_blocks = table_clusters = 1
        while True:
            total = next_cluster + n_blocks + table_clusters
            want = -(-total // REFCOUNTS), -(-n_blocks * 8 // CLUSTER)
            if want == (n_blocks, table_clusters):
                break
            n_blocks, table_clusters = want
        refcount_table = next_cluster + n_blocks
        for i in range(n_blocks):
            used = min(REFCOUNTS, total - i * REFCOUNTS)
            out.seek((next_cluster + i) * CLUSTER)
            out.write(struct.pack(">%dH" % REFCOUNTS, *([1] * used + [0] * (REFCOUNTS - used))))
        out.seek(refcount_table * CLUSTER)
        out.write(struct.pack(">%dQ" % n_blocks, *[(next_cluster + i) * CLUSTER for i in range(n_blocks)]))
        out.truncate(total * CLUSTER)
        out.seek(CLUSTER)
        out.write(struct.pack(">%dQ" % n_l2, *l1))
        out.seek(0)
        out.write(struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, CLUSTER_BITS, size, 0, n_l2, CLUSTER,
                              refcount_table * CLUSTER, table_clusters, 0, 0, 0, 0, 0, 4, 104))
        out.write(struct.pack(">II", 0, 0))  # end of header extensions


def overlay(base_path, qcow2_path):
    if os.path.dirname(os.path.abspath(base_path)) != os.path.dirname(os.path.abspath(qcow2_path)):
        sys.exit("raw2qcow2.py: %s must lie in the folder of %s" % (qcow2_path, base_path))
    with open(base_path, "rb") as f:
        head = f.read(32)
    if head[:4] != b"QFI\xfb":
        sys.exit("raw2qcow2.py: %s is no qcow2 image" % base_path)
    size = struct.unpack(">Q", head[24:32])[0]
    n_l2 = -(-size // (CLUSTER * L2_ENTRIES))
    l1_clusters = -(-n_l2 * 8 // CLUSTER)
    name = os.path.basename(base_path).encode()
    extensions = struct.pack(">II8s", 0xe2792aca, 5, b"qcow2") + struct.pack(">II", 0, 0)  # format of the base; end
    # Clusters: header, level 1 table, refcount block, refcount table.
    total = 1 + l1_clusters + 2
    with open(qcow2_path, "xb") as out:
        out.write(struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 104 + len(extensions), len(name), CLUSTER_BITS, size, 0,
                              n_l2, CLUSTER, (total - 1) * CLUSTER, 1, 0, 0, 0, 0, 0, 4, 104))
        out.write(extensions + name)
        out.seek((total - 2) * CLUSTER)
        out.write(struct.pack(">%dH" % total, *[1] * total))
        out.seek((total - 1) * CLUSTER)
        out.write(struct.pack(">Q", (total - 2) * CLUSTER))
        out.truncate(total * CLUSTER)


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "--overlay":
        overlay(sys.argv[2], sys.argv[3])
    elif len(sys.argv) == 3:
        convert(sys.argv[1], sys.argv[2])
    else:
        sys.exit(__doc__)
