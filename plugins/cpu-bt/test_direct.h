/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_direct.h - the user-direct tier (direct.h) under a small
 * kernel of its own: what a program's exits tell the kernel, that helpers follow
 * the guest's page tables, that the stub is of no use to a program, that
 * helpers may die, and which programs run so.
 *
 * The kernel is a page of code and a page of data, `struct area`. Whatever
 * enters it saves all registers there, writes to a port - which gets the test
 * out of vcpu_run() - and does what area.cmd says next. Page tables are written
 * by the test; what it changes there the guest's own INVLPG or MOV CR3 flushes.
 */
#ifndef TEST_DIRECT_H
#define TEST_DIRECT_H

#include "direct.h"
#include "test_host.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define RAM_SIZE 0x10000000ull
#define GDT 0x1000u
#define TSS 0x2000u
#define IDT 0x3000u
#define KERNEL 0x10000u /* code, area; a stack below */
#define TABLES 0x200000u
#define USER 0x1000000u /* what programs may have lies above, all else is the kernel's */
#define SECRET 0x1f0000u
#define KLIN 0xffffffff80000000ull

/* Where programs are put. */
#define CODE 0x400000ull
#define DATA 0x600000ull
#define STACK 0x7ffff000ull /* one page below */

#define P 1ull
#define W 2ull
#define U 4ull
#define A 0x20ull
#define D 0x40ull
#define PS 0x80ull
#define NX (1ull << 63)
#define RW (P | W | U | A | D)
#define PA 0x000ffffffffff000ull

enum { VEC_SYSCALL = 0x100 };
enum { CMD_IRET = 1, CMD_SYSRET, CMD_INVLPG, CMD_CR3, CMD_CALL, CMD_STORE };
struct area {
    uint64_t cmd, arg, arg2;
    uint64_t vec, err, rip, cs, flags, rsp, ss, cr2;
    uint64_t gpr[16];
};

/* --- the machine: test_direct.c ------------------------------------------------------------ */
struct machine {
    struct test_host h;
    struct bt_vcpu *c;
    struct area *a;
    uint64_t root, next_table, next_page;
    bool pcid;
};
extern struct machine m;
extern const char *volatile doing; /* for the watchdog */
/* A test's first call. In the test itself, not in a fixture: cmocka has its own handlers for faults, and the engine's
 * must come after them. */
void begin(const char *name);
void begin_pcid(const char *name);
void machine_new(unsigned helpers);
void machine_free(void);

uint64_t *at64(uint64_t gpa);
uint64_t new_page(void); /* for programs */
uint64_t new_table(void);
uint64_t new_root(void); /* has the kernel */
uint64_t *entry(uint64_t root, uint64_t lin, unsigned level); /* 0: 4 KiB; its tables are made if need be */
/* In the first address space: */
uint64_t *pte(uint64_t lin);
uint64_t map(uint64_t lin, uint64_t flags); /* a new page, whose address it returns */
uint8_t *user_ptr(uint64_t lin);
uint64_t *user64(uint64_t lin);
void put_bytes(uint64_t lin, const void *p, size_t n);
void patch64(uint64_t lin, uint64_t v);
#define put_program(lin, name) put_bytes(lin, name, (size_t)(name##_end - name))

#define RAX m.a->gpr[0]
#define RCX m.a->gpr[1]
#define RBX m.a->gpr[3]
void run_once(void); /* one vcpu_run() */
void go_on(void);    /* until the kernel waits for what to do */
void go(uint64_t cmd);
void go_arg(uint64_t cmd, uint64_t arg);
void invlpg(uint64_t lin);
void set_start(uint64_t rip);
void start(uint64_t rip);
/* Neither the cookie nor a half of it is anywhere in a zone while the vCPU has control. */
void check_zones(void);
void expect_syscall(void);
#define expect_trap_in(code, v, e, at)                                                                                 \
    do {                                                                                                               \
        assert_int_equal(m.a->vec, v);                                                                                 \
        assert_int_equal(m.a->err, e);                                                                                 \
        assert_int_equal(m.a->rip, at);                                                                                \
        assert_int_equal(m.a->cs, code);                                                                               \
        assert_int_equal(m.a->ss, 0x2b);                                                                               \
    } while (0)
#define expect_trap(v, e, at) expect_trap_in(0x33, v, e, at)
#define program_traps(name, v, e, at)                                                                                  \
    do {                                                                                                               \
        put_program(CODE, name);                                                                                       \
        start(CODE);                                                                                                   \
        expect_trap(v, e, at);                                                                                         \
    } while (0)
#define expect_pf(e, lin)                                                                                              \
    do {                                                                                                               \
        assert_int_equal(m.a->vec, 14);                                                                                \
        assert_int_equal(m.a->err, e);                                                                                 \
        assert_int_equal(m.a->cr2, lin);                                                                               \
    } while (0)

/* What runs between these two ran natively. */
extern uint64_t entries_before;
void natively(void);
void was_native(void);
void go_natively(uint64_t cmd); /* go() between them */
void start_natively(uint64_t rip);
struct direct_proc *current_proc(void); /* NULL: none, or dead */

/* --- programs ------------------------------------------------------------------------------ */
/* A program NAME, to be put by put_program(). */
#define PROGRAM(name, text)                                                                                            \
    __asm__(".section .rodata\n.globl " #name ", " #name "_end\n.hidden " #name ", " #name "_end\n" #name ": " text      \
            "\n" #name "_end:\n.previous\n");                                                                          \
    PROGRAM_OF(name)
#define PROGRAM_OF(name) extern const uint8_t name[], name##_end[]
PROGRAM_OF(p_loop);
#define LOOP_SUM 5000050000ull
PROGRAM_OF(p_count); /* at DATA, for ever */
/* One access at RAX, of RBX. */
#define READ (CODE + 0x100)
#define WRITE (CODE + 0x200)
#define JUMP (CODE + 0x300)
void put_accesses(void);
void try_at(uint64_t at, uint64_t lin);
void write_at(uint64_t lin, uint64_t v);
void expect_read(uint64_t lin, uint64_t v);
#define GOOD (CODE + 0x800) /* p_loop lies here */
void good_program_still_runs(void);
void forgive(void); /* what was done to helpers until now */

/* --- the tests ------------------------------------------------------------------------------ */
/* test_direct_exits.c */
void a_loop_and_its_system_calls_run_natively(void **state);
void vector_registers_and_bases_survive_an_exit(void **state);
void exceptions_have_the_right_vector_code_and_rip(void **state);
void single_step_traps_after_each_instruction(void **state);
void single_step_traps_after_a_page_was_fetched(void **state);
void page_faults_have_the_right_code_and_address(void **state);
/* test_direct_code32.c */
void code32_and_its_system_calls(void **state);
void code32_finds_its_tls_entries(void **state);
void segments_are_the_guests(void **state);
void code32_exceptions(void **state);
void fast_system_calls_of_code32(void **state);
void from_32_to_64_bits_and_back(void **state);
/* test_direct_memory.c */
void a_changed_entry_holds_after_invlpg(void **state);
void write_protection_and_copy_on_write(void **state);
void accessed_and_dirty_are_set_and_set_again(void **state);
void pages_nearby_are_not_marked_accessed(void **state);
void large_pages(void **state);
void address_spaces_stay_apart(void **state);
void address_spaces_with_pcids(void **state);
void address_spaces_with_pcids_kept(void **state);
void helpers_are_handed_on(void **state);
void translated_pages_that_a_program_writes(void **state);
void self_modifying_programs(void **state);
void kernel_and_program_share_memory(void **state);
void more_scattered_pages_than_a_helper_has(void **state);
void more_regions_than_there_are(void **state);
void a_helper_that_gets_no_more_memory(void **state);
void pages_below_64_kib(void **state);
void pages_where_a_zone_is(void **state);
/* test_direct_meddle.c */
void rubbish_in_the_zone(void **state);
void a_program_finds_no_cookie(void **state);
void code_and_orders_cannot_be_written(void **state);
void forged_exits(void **state);
void an_exit_that_did_not_happen_and_a_late_signal(void **state);
void several_exits_at_once(void **state);
void the_next_program_on_a_helper_loses_nothing(void **state);
void with_the_cookie_the_stub_would_be_of_use(void **state);
void jumping_to_any_instruction_of_the_stub(void **state);
void jumping_to_any_byte_of_the_stub(void **state);
/* test_direct_copy.c */
void rdpid_tells_the_guests_cpu(void **state);
void copies_follow_the_kernels_stores(void **state);
void copies_follow_a_programs_stores(void **state);
void copies_follow_devices(void **state);
void the_search_finds_each_rdpid(void **state);
void what_only_looks_like_rdpid(void **state);
void rdpid_in_a_writable_page(void **state);
void an_instruction_that_ends_in_such_a_page(void **state);
void more_pages_with_rdpid_than_copies(void **state);
/* test_direct_losses.c */
void a_helper_that_waits_is_killed(void **state);
void a_helper_that_runs_is_killed(void **state);
void lost_helpers_are_replaced(void **state);
void replacements_are_limited(void **state);
void spoilers_are_barred(void **state);
void a_kick_ends_an_endless_loop(void **state);
/* test_direct_cpu.c */
void a_helper_is_where_its_vcpu_is(void **state);
void a_vcpu_that_was_moved_is_held_for_a_while(void **state);
void who_comes_out_elsewhere_is_held(void **state);
void what_others_set_stays_set(void **state);
/* test_direct_soft.c */
void what_is_translated_does_not_call_c(void **state);
void repeats_that_are_not_plain(void **state);
/* test_direct_policy.c */
void who_pays_runs_natively(void **state);
void much_coming_and_going_is_tried_in_the_soft_tier(void **state);
void some_coming_and_going_is_tried_there_too(void **state);
void programs_that_run_in_turn_are_told_apart(void **state);

#endif
