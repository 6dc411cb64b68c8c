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

/* Eight bytes at a time: its c7 is rare. */
int bt_direct_next_rdpid(const uint8_t *p, int from)
{
    for (unsigned i = ((unsigned)from + 1) & ~7u; i < 4096; i += 8) {
        uint64_t x = *(const uint64_t *)(p + i) ^ 0xc7c7c7c7c7c7c7c7ull;
        if (!((x - 0x0101010101010101ull) & ~x & 0x8080808080808080ull))
            continue;
        for (int j = (int)i; j < (int)i + 8; j++)
            if (p[j] == 0xc7 && j > from && j >= 2 && j < 4095 && p[j - 1] == 0x0f && p[j + 1] >= 0xf8 &&
                (p[j - 2] == 0xf3 || ((p[j - 2] & 0xf0) == 0x40 && j >= 3 && p[j - 3] == 0xf3)))
                return j - 1;
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
