/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_jump_cache.c - where in the jump cache a target is looked
 * for: C and translated code must agree, and large programs must be spread.
 */
#include "emit.h"
#include "trans.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>

/* e_jc_index() as a function. */
static uint32_t (*emitted(uint8_t *page, bool bmi2))(uint64_t)
{
    static struct bt_vm vm;
    struct bt_emit e = {.p = page, .end = page + 4096};
    vm.have_bmi2 = bmi2;
    e8(&e, 0x41), e8(&e, 0x56); /* push r14, r15 */
    e8(&e, 0x41), e8(&e, 0x57);
    e_mov_rr(&e, H_R14, H_RDI);
    e_mov_imm(&e, H_R15, 0xdeadbeefdeadbeef);
    e_jc_index(&e, &vm);
    e_mov_rr(&e, H_RAX, H_R15);
    e8(&e, 0x41), e8(&e, 0x5f);
    e8(&e, 0x41), e8(&e, 0x5e);
    e8(&e, 0xc3);
    uint32_t (*f)(uint64_t);
    memcpy(&f, &page, sizeof(f));
    return f;
}

static void c_and_translated_code_agree(void **state)
{
    (void)state;
    uint8_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(page != MAP_FAILED);
    for (unsigned bmi2 = 0; bmi2 < 2; bmi2++) {
        if (bmi2 && !__builtin_cpu_supports("bmi2")) {
            print_message("  no BMI2 here\n");
            continue;
        }
        uint32_t (*f)(uint64_t) = emitted(page, bmi2);
        uint64_t x = 0x9e3779b97f4a7c15;
        for (unsigned i = 0; i < 100000; i++, x = x * 6364136223846793005 + 1442695040888963407) {
            uint64_t rip = i < 64 ? 1ull << i : i < 128 ? ~0ull << (i - 64) : x;
            uint32_t want = bt_jc_index(rip), is = f(rip);
            assert_true(want < BT_JC_SIZE);
            if (is != want)
                fail_msg("%#llx: %#x in C, %#x in code, BMI2 %u", (unsigned long long)rip, want, is, bmi2);
        }
    }
    munmap(page, 4096);
}

/* What the lower bits alone would put into one slot. */
static void upper_bits_tell_targets_apart(void **state)
{
    static const uint64_t bases[] = {0x401230, 0x7f12345678a0, 0xffffffff81234560};
    (void)state;
    for (unsigned b = 0; b < sizeof(bases) / sizeof(bases[0]); b++) {
        for (unsigned bit = 0; bit < 32; bit++)
            assert_int_not_equal(bt_jc_index(bases[b]), bt_jc_index(bases[b] ^ 1ull << bit));
        /* one function of each 256 KiB of 64 MiB */
        uint32_t slot[256];
        for (unsigned i = 0; i < 256; i++) {
            slot[i] = bt_jc_index(bases[b] + (uint64_t)i * BT_JC_SIZE);
            for (unsigned k = 0; k < i; k++)
                assert_int_not_equal(slot[i], slot[k]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(c_and_translated_code_agree),
        cmocka_unit_test(upper_bits_tell_targets_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
