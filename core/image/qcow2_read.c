/* SPDX-License-Identifier: Apache-2.0
 *
 * qcow2_read.c - reading by a worker: what needs tables from disk, and
 * compressed clusters.
 */
#include "core/image/qcow2.h"

#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

int qcow2_inflate(const struct qcow2 *q, const uint8_t *in, size_t n_in, uint8_t *out, size_t n_out)
{
    if (q->zstd) {
        /* The input is followed by padding, so decode one frame as a stream. */
        ZSTD_DCtx *d = ZSTD_createDCtx();
        if (!d)
            return -ENOMEM;
        ZSTD_inBuffer zi = {in, n_in, 0};
        ZSTD_outBuffer zo = {out, n_out, 0};
        size_t r = 1;
        while (zo.pos < zo.size && zi.pos < zi.size) {
            r = ZSTD_decompressStream(d, &zo, &zi);
            if (ZSTD_isError(r))
                break;
        }
        ZSTD_freeDCtx(d);
        return ZSTD_isError(r) || zo.pos != n_out ? -EIO : 0;
    }
    z_stream z = {.next_in = (Bytef *)(uintptr_t)in, .avail_in = (uInt)n_in, .next_out = out, .avail_out = (uInt)n_out};
    if (inflateInit2(&z, -12) != Z_OK)
        return -ENOMEM;
    int r = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    /* Z_BUF_ERROR with a full buffer: the stream's end mark did not fit */
    return (r == Z_STREAM_END || r == Z_BUF_ERROR) && z.avail_out == 0 ? 0 : -EIO;
}

int qcow2_decompress(struct qcow2 *q, const struct qcow2_entry *e, struct hvx_sg sg, uint64_t in_cluster,
                     uint64_t bytes)
{
    int r = 0;
    pthread_mutex_lock(&q->zlock);
    if (!q->z_data) {
        q->z_data = malloc(q->cluster_bytes);
        q->z_in = aligned_alloc(4096, 2 * q->cluster_bytes < 4096 ? 4096 : 2 * q->cluster_bytes);
        if (!q->z_data || !q->z_in)
            r = -ENOMEM;
    }
    if (!r && (q->z_offset != e->offset || q->z_bytes != e->z_bytes)) {
        q->z_offset = 0;
        r = hvx_file_pread(q->file, q->z_in, e->z_bytes, e->offset);
        if (!r) {
            r = qcow2_inflate(q, q->z_in, e->z_bytes, q->z_data, q->cluster_bytes);
            if (r == -EIO)
                hvx_image_corrupt(q->img, "the compressed cluster at %#llx cannot be decompressed",
                                  (unsigned long long)e->offset);
        }
        if (!r) {
            q->z_offset = e->offset;
            q->z_bytes = e->z_bytes;
        }
    }
    if (!r)
        hvx_sg_fill(sg, q->z_data + in_cluster, bytes);
    pthread_mutex_unlock(&q->zlock);
    return r;
}

int qcow2_preadv(struct hvx_image *img, struct hvx_sg sg, uint64_t off, uint64_t bytes)
{
    struct qcow2 *q = img->priv;
    while (bytes) {
        struct qcow2_entry e;
        uint64_t run;
        int r = qcow2_extent(q, off, bytes, &e, &run);
        if (r)
            return r;
        switch (e.kind) {
        case QCOW2_NORMAL: r = hvx_file_preadv(q->file, sg, e.offset + qcow2_in_cluster(q, off), run); break;
        case QCOW2_COMPRESSED: r = qcow2_decompress(q, &e, sg, qcow2_in_cluster(q, off), run); break;
        case QCOW2_UNALLOCATED:
            if (img->backing) {
                r = hvx_image_preadv(img->backing, sg, off, run);
                break;
            }
            /* fall through */
        default: hvx_sg_zero(sg, run); break;
        }
        if (r)
            return r;
        hvx_sg_advance(&sg, run);
        off += run;
        bytes -= run;
    }
    return 0;
}

int qcow2_status(struct hvx_image *img, uint64_t off, uint64_t bytes, uint64_t *run, bool *data)
{
    struct qcow2 *q = img->priv;
    struct qcow2_entry e;
    int r = qcow2_extent(q, off, bytes, &e, run);
    if (r)
        return r;
    if (e.kind == QCOW2_UNALLOCATED && img->backing)
        return hvx_image_status(img->backing, off, *run, run, data);
    *data = e.kind == QCOW2_NORMAL || e.kind == QCOW2_COMPRESSED;
    return 0;
}
