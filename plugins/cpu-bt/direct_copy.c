/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/direct_copy.c - pages of code with RDPID, for helpers of the
 * user-direct tier: direct.h.
 *
 * RDPID would tell the host's CPU and cannot be made to fault. Linux has one in
 * its vDSO, in the page by which programs ask for the time. Such a page is
 * mapped from a copy in which the second byte of RDPID's opcode is another one
 * (0f -> 06): an invalid opcode, for which the helper comes out, and the
 * instruction runs in the soft tier. Only what is an instruction is changed, as
 * decoding the page from its start tells; else, and where the page can be
 * written, it runs in the soft tier as a whole.
 *
 * The page counts as translated code of this vCPU, byte for byte, so whoever
 * writes to it has bt_invalidate_local() called here: the copy goes.
 *
 * Ordinary C, with the guest's vector state saved.
 */
#define _GNU_SOURCE
#include "cache.h"
#include "direct.h"
#include <Zydis/Zydis.h>
#include <emmintrin.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MFD_EXEC
#define MFD_EXEC 0x10u
#endif
#define INVALID 0x06

int bt_direct_copies_make(struct bt_vm *vm)
{
    size_t n = (size_t)vm->n_vcpus * DIRECT_COPIES * 4096;
    int fd = memfd_create("hvx-direct-code", MFD_CLOEXEC | MFD_EXEC);
    if (fd < 0) /* before Linux 6.3 all are executable */
        fd = memfd_create("hvx-direct-code", MFD_CLOEXEC);
    if (fd < 0)
        return -1;
    void *p = ftruncate(fd, (off_t)n) ? MAP_FAILED : mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        close(fd);
        return -1;
    }
    vm->direct_copies = p;
    return fd;
}

void bt_direct_copies_end(struct bt_vm *vm)
{
    if (vm->direct_copies)
        munmap(vm->direct_copies, (size_t)vm->n_vcpus * DIRECT_COPIES * 4096);
    vm->direct_copies = NULL;
}

/* Is its 0f at j, which c7 follows? */
static bool is_rdpid(const uint8_t *p, int j)
{
    return j >= 1 && j <= 4093 && p[j + 2] >= 0xf8 &&
           (p[j - 1] == 0xf3 || ((p[j - 1] & 0xf0) == 0x40 && j >= 2 && p[j - 2] == 0xf3));
}

/* Done for each page of code that is mapped: sixteen places at a time, of which few have the two bytes. */
int bt_direct_next_rdpid(const uint8_t *p, int from)
{
    const __m128i first = _mm_set1_epi8(0x0f), second = _mm_set1_epi8((char)0xc7);
    for (int i = from & ~15; i < 4096; i += 16) {
        int at = i < 4080 ? i : 4079; /* not beyond the page */
        __m128i a = _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(p + at)), first);
        __m128i b = _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(p + at + 1)), second);
        for (unsigned m = (unsigned)_mm_movemask_epi8(_mm_and_si128(a, b)); m; m &= m - 1) {
            int j = at + __builtin_ctz(m);
            if (j >= from && is_rdpid(p, j))
                return j;
        }
    }
    return -1;
}

/* All of them, if all are instructions. */
static bool change(uint8_t *p)
{
    ZydisDecoder dec;
    ZydisDecodedInstruction d;
    ZydisDecoderInit(&dec, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    int next = bt_direct_next_rdpid(p, 0);
    for (int at = 0; at < 4096 && next >= 0;) {
        bool good = ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&dec, NULL, p + at, (ZyanUSize)(4096 - at), &d));
        int end = at + (good ? d.length : 1);
        if (next < end) {
            if (!good || d.mnemonic != ZYDIS_MNEMONIC_RDPID || next + 3 != end)
                return false;
            p[next] = INVALID;
            next = bt_direct_next_rdpid(p, next + 1);
        }
        at = end;
    }
    return next < 0;
}

uint64_t bt_direct_copy(struct bt_vcpu *c, uint64_t pa, const uint8_t *page)
{
    struct bt_direct *d = c->direct;
    unsigned slot = 0;
    if (!c->vm->direct_copies)
        return DIRECT_NO_COPY;
    for (unsigned i = 0; i < DIRECT_COPIES; i++) {
        if (d->copy[i] == (pa | 1))
            return (uint64_t)(c->index * DIRECT_COPIES + i) * 4096;
        if (!d->copy[i])
            slot = i + 1;
    }
    if (!slot || !bt_codepage_get(c, pa, true))
        return DIRECT_NO_COPY;
    bt_codepage_mark(c, pa, 4096); /* before the bytes are read */
    slot--;
    uint8_t *to = c->vm->direct_copies + (size_t)(c->index * DIRECT_COPIES + slot) * 4096;
    memcpy(to, page, 4096);
    if (!change(to))
        return DIRECT_NO_COPY;
    d->copy[slot] = pa | 1;
    d->n_copies++;
    c->st.direct_copies++;
    return (uint64_t)(c->index * DIRECT_COPIES + slot) * 4096;
}
