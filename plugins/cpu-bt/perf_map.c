/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/perf_map.c - names for translated code that Linux's perf finds:
 * /tmp/perf-PID.map, a line "START SIZE NAME" for each piece (Linux: tools/perf/Documentation/jit-interface.txt).
 * Option perf-map; off, it costs a test of a pointer for each translation.
 *
 * The file is opened before the VM gives up the file system. Each vCPU gathers lines and appends whole lines, so vCPUs
 * need no lock. Guests decide how much is translated: the file is capped.
 *
 * No libc and no vector registers here: bt_block_moved() runs while the guest's are live.
 */
#include "perf_map.h"
#include <sys/syscall.h>

#define PERF_MAP_MAX (64u << 20) /* bytes of the file */
#define LINE_BYTES 80u

static char *put_text(char *p, const char *s)
{
    while (*s)
        *p++ = *s++;
    return p;
}

static char *put_hex(char *p, uint64_t v)
{
    unsigned n = 1;
    while (n < 16 && v >> (4 * n))
        n++;
    while (n--)
        *p++ = "0123456789abcdef"[v >> (4 * n) & 15];
    return p;
}

void bt_perf_map_flush(struct bt_vcpu *c)
{
    struct bt_perf_map *m = c->perf_map;
    if (!m || !m->n)
        return;
    if (atomic_fetch_add_explicit(m->written, m->n, memory_order_relaxed) + m->n <= PERF_MAP_MAX) {
        long r = SYS_write; /* what cannot be written is lost: a full disk is no reason to stop a VM */
        __asm__ volatile("syscall"
                         : "+a"(r)
                         : "D"((long)m->fd), "S"(m->text), "d"((unsigned long)m->n)
                         : "rcx", "r11", "memory");
    } else { /* it stays full */
        atomic_fetch_sub_explicit(m->written, m->n, memory_order_relaxed);
    }
    m->n = 0;
}

static void line(struct bt_vcpu *c, uint32_t from, uint32_t to, const char *kind, uint64_t rip, const char *mode,
                 const char *what)
{
    struct bt_perf_map *m = c->perf_map;
    if (from >= to)
        return;
    if (m->n + LINE_BYTES > sizeof(m->text))
        bt_perf_map_flush(c);
    char *p = put_hex(m->text + m->n, from);
    *p++ = ' ';
    p = put_hex(p, to - from);
    *p++ = ' ';
    p = put_text(p, kind);
    if (mode) {
        p = put_hex(put_text(p, "0x"), rip);
        *p++ = ' ';
        p = put_text(p, mode);
    }
    p = put_text(p, what);
    *p++ = '\n';
    m->n = (uint32_t)(p - m->text);
}

void bt_perf_map_block(struct bt_vcpu *c, const struct bt_block *b)
{
    if (!c->perf_map)
        return;
    char mode[4] = {(b->mode & BT_MODE_CPL) == 3 ? 'u' : 'k', '1', '6', 0};
    if ((b->mode & BT_MODE_CODE) == BT_MODE_CODE64)
        mode[1] = '6', mode[2] = '4';
    else if ((b->mode & BT_MODE_CODE) == BT_MODE_CODE32)
        mode[1] = '3', mode[2] = '2';
    line(c, b->ind, b->end, "guest:", b->rip, mode, "");
    line(c, b->cold, b->cold_end, "guest:", b->rip, mode, " cold");
}

void bt_perf_map_stubs(struct bt_vcpu *c)
{
    if (c->perf_map)
        line(c, c->cache->stubs_start, c->cache->stubs_end, "bt:stubs", 0, NULL, "");
}
