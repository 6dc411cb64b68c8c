/* SPDX-License-Identifier: Apache-2.0
 *
 * What somebody sends to the gdb stub, against a VM that is made up. The first
 * byte says what the guest runs; in what follows, 0xff stops a running VM, with
 * the next byte for thread and point, and 0xfe puts the missing frame around
 * what comes up to the next such byte, so that checksums need not be guessed.
 */
#include "core/vm/gdb.h"
#include "core/vm/gdb_proto.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static uint8_t ram[65536];
static struct hvx_vcpu_regs regs[3];
static bool gone;

static unsigned n_threads(void *o) { (void)o; return 3; }
static bool get_regs(void *o, unsigned thread, struct hvx_vcpu_regs *r)
{
    (void)o;
    if (thread >= 3)
        abort();
    *r = regs[thread];
    return true;
}
static bool set_regs(void *o, unsigned thread, const struct hvx_vcpu_regs *r)
{
    (void)o;
    if (thread >= 3)
        abort();
    regs[thread] = *r;
    return true;
}
static int read_physical(void *o, uint64_t gpa, void *buf, size_t n)
{
    (void)o;
    if (gpa > sizeof(ram) || n > sizeof(ram) - gpa)
        return -EFAULT;
    memcpy(buf, ram + gpa, n);
    return 0;
}
static bool transfer(unsigned thread, uint64_t lin, uint8_t *buf, size_t n, bool write)
{
    while (n) {
        uint64_t gpa, run;
        if (!hvx_gdb_translate(&regs[thread], lin, &gpa, &run, read_physical, NULL))
            return false;
        run = run < n ? run : n;
        if (gpa > sizeof(ram) || run > sizeof(ram) - gpa)
            return false;
        if (write)
            memcpy(ram + gpa, buf, run);
        else
            memcpy(buf, ram + gpa, run);
        lin += run;
        buf += run;
        n -= run;
    }
    return true;
}
static bool read_memory(void *o, unsigned thread, uint64_t lin, void *buf, size_t n)
{
    (void)o;
    return transfer(thread, lin, buf, n, false);
}
static bool write_memory(void *o, unsigned thread, uint64_t lin, const void *buf, size_t n)
{
    (void)o;
    return transfer(thread, lin, (uint8_t *)(uintptr_t)buf, n, true);
}
static bool resume(void *o, const enum hvx_gdb_resume *how, const struct hvx_debug_point *points, unsigned n)
{
    (void)o, (void)points;
    if (n > HVX_DEBUG_MAX_POINTS)
        abort();
    return how[0] != HVX_GDB_STEP || how[2] != HVX_GDB_STEP;
}
static void interrupt(void *o) { hvx_gdb_stop(*(struct hvx_gdb_session **)o, 0, -2); }
static void finished(void *o) { (void)o; gone = true; }
static void describe(void *o, unsigned thread, char *buf, size_t n) { (void)o; snprintf(buf, n, "%u", thread); }
static void put(void *o, const void *buf, size_t n)
{
    (void)o, (void)buf;
    if (n > HVX_GDB_PACKET + 8 || gone)
        abort();
}

static const struct hvx_gdb_target target = {
    .n_threads = n_threads, .get_regs = get_regs, .set_regs = set_regs, .read = read_memory, .write = write_memory,
    .resume = resume, .interrupt = interrupt, .detach = finished, .kill = finished, .describe = describe, .send = put,
};

static void framed(struct hvx_gdb_session *s, const uint8_t *p, size_t n)
{
    static const char digits[] = "0123456789abcdef";
    uint8_t sum = 0, tail[3];

    for (size_t i = 0; i < n; i++)
        sum += p[i];
    tail[0] = '#';
    tail[1] = (uint8_t)digits[sum >> 4];
    tail[2] = (uint8_t)digits[sum & 15];
    hvx_gdb_feed(s, (const uint8_t *)"$", 1);
    hvx_gdb_feed(s, p, n);
    hvx_gdb_feed(s, tail, 3);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct hvx_gdb_session *s = NULL;

    if (!n)
        return 0;
    memset(regs, 0, sizeof(regs));
    memset(ram, 0, sizeof(ram));
    gone = false;
    for (unsigned i = 0; i < 3; i++) {
        regs[i].cr0 = data[0] & 1 ? 0x80000001 : 0;
        regs[i].efer = data[0] & 2 ? 0x500 : 0;
        regs[i].cr4 = data[0] & 0x30;
        regs[i].seg[HVX_CS].attr = data[0] & 4 ? 0x4000 : 0;
    }
    s = hvx_gdb_session_new(&target, &s, data[0] & 8 ? 32 : 0);
    for (size_t i = 1; i < n && s;) {
        const uint8_t *p = data + i, *end = p + 1;
        while (end < data + n && *end < 0xfe)
            end++;
        if (*p == 0xff && i + 1 < n) {
            hvx_gdb_stop(s, data[i + 1] % 3, data[i + 1] / 3 - 2);
            i += 2;
            continue;
        }
        if (*p == 0xfe)
            framed(s, p + 1, (size_t)(end - p) - 1);
        else
            hvx_gdb_feed(s, p, (size_t)(end - p));
        i = (size_t)(end - data);
    }
    if (s && !gone)
        hvx_gdb_exited(s);
    hvx_gdb_session_free(s);
    return 0;
}
