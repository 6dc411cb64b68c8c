/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_direct.c - the machine of test_direct.h, and the main program.
 */
#define _GNU_SOURCE
#include "test_direct.h"
#include <unistd.h>

/* --- the kernel ------------------------------------------------------------------------ */
#define REGS(op)                                                                                                       \
    op(rcx, 8) op(rdx, 16) op(rbx, 24) op(rbp, 40) op(rsi, 48) op(rdi, 56) op(r8, 64) op(r9, 72) op(r10, 80)           \
    op(r11, 88) op(r12, 96) op(r13, 104) op(r14, 112) op(r15, 120)
#define SAVE(r, o) "mov %" #r ", kernel_area+88+" #o "(%rip)\n"
#define LOAD(r, o) "mov kernel_area+88+" #o "(%rip), %" #r "\n"
__asm__(".section .rodata\n"
        ".p2align 12\n"
        "kernel_start:\n"
        ".set kernel_vec, 0\n"
        ".rept 32\n"
        ".balign 16\n"
        ".if !((kernel_vec == 8) || ((kernel_vec >= 10) && (kernel_vec <= 14)) || (kernel_vec == 17))\n"
        "push $0\n"
        ".endif\n"
        "push $kernel_vec\n"
        "jmp kernel_trap\n"
        ".set kernel_vec, kernel_vec + 1\n"
        ".endr\n"
        ".balign 16\n"
        "kernel_int80: push $0\n"
        "push $0x80\n"
        "kernel_trap:\n" SAVE(rax, 0) REGS(SAVE)
        "pop kernel_area+24(%rip)\n pop kernel_area+32(%rip)\n pop kernel_area+40(%rip)\n pop kernel_area+48(%rip)\n"
        "pop kernel_area+56(%rip)\n pop kernel_area+64(%rip)\n pop kernel_area+72(%rip)\n"
        "mov %cr2, %rax\n mov %rax, kernel_area+80(%rip)\n"
        "jmp kernel_stop\n"
        "kernel_syscall:\n" SAVE(rax, 0) REGS(SAVE)
        "mov %rsp, kernel_area+64(%rip)\n mov %rcx, kernel_area+40(%rip)\n mov %r11, kernel_area+56(%rip)\n"
        "movq $0x100, kernel_area+24(%rip)\n"
        "lea kernel_start(%rip), %rsp\n"
        "kernel_stop:\n"
        "movq $0, kernel_area(%rip)\n"
        "out %al, $0xf4\n"
        "kernel_loop: mov kernel_area(%rip), %eax\n"
        "test %eax, %eax\n jz kernel_loop\n"
        "mov kernel_area+8(%rip), %rdi\n mov kernel_area+16(%rip), %rsi\n"
        "cmp $1, %eax\n jne 2f\n"
        "push kernel_area+72(%rip)\n push kernel_area+64(%rip)\n push kernel_area+56(%rip)\n push kernel_area+48(%rip)\n"
        "push kernel_area+40(%rip)\n" LOAD(rax, 0) REGS(LOAD) "iretq\n"
        "2: cmp $2, %eax\n jne 3f\n" LOAD(rax, 0) REGS(LOAD)
        "mov kernel_area+40(%rip), %rcx\n mov kernel_area+56(%rip), %r11\n mov kernel_area+64(%rip), %rsp\n"
        "sysretq\n"
        "3: cmp $3, %eax\n jne 4f\n invlpg (%rdi)\n jmp kernel_stop\n"
        "4: cmp $4, %eax\n jne 5f\n mov %rdi, %cr3\n jmp kernel_stop\n"
        "5: cmp $5, %eax\n jne 6f\n call *%rdi\n mov %rax, kernel_area+88(%rip)\n jmp kernel_stop\n"
        "6: mov %rsi, (%rdi)\n jmp kernel_stop\n"
        ".p2align 12\n"
        "kernel_area: .skip 4096\n"
        "kernel_end:\n"
        ".previous\n");
extern const uint8_t kernel_start[], kernel_int80[], kernel_syscall[], kernel_loop[], kernel_area[], kernel_end[];

/* --- the machine -------------------------------------------------------------------------- */
struct machine m;
const char *volatile doing = "";

/* --- guest memory ------------------------------------------------------------------------------- */
uint64_t *at64(uint64_t gpa) { return (uint64_t *)(void *)(m.h.ram + gpa); }

uint64_t new_page(void) /* for programs */
{
    uint64_t gpa = m.next_page;
    m.next_page += 4096;
    assert_true(m.next_page <= RAM_SIZE);
    return gpa;
}
uint64_t new_table(void)
{
    uint64_t gpa = m.next_table;
    m.next_table += 4096;
    assert_true(m.next_table <= USER);
    return gpa;
}
uint64_t new_root(void)
{
    uint64_t root = new_table();
    if (!m.root) { /* the kernel: 2 MiB */
        uint64_t pdpt = new_table(), pd = new_table();
        *at64(root + 511 * 8) = pdpt | P | W | A;
        *at64(pdpt + 510 * 8) = pd | P | W | A;
        *at64(pd) = 0 | P | W | A | D | PS;
        m.root = root;
    }
    *at64(root + 511 * 8) = *at64(m.root + 511 * 8);
    return root;
}
/* The entry of a page in a table of the given level (0: 4 KiB), made if need be. */
uint64_t *entry(uint64_t root, uint64_t lin, unsigned level)
{
    uint64_t table = root;
    for (unsigned l = 3; l > level; l--) {
        uint64_t *e = at64(table + (lin >> (12 + 9 * l) & 511) * 8);
        if (!(*e & P))
            *e = new_table() | P | W | U;
        table = *e & PA;
    }
    return at64(table + (lin >> (12 + 9 * level) & 511) * 8);
}
uint64_t *pte(uint64_t lin) { return entry(m.root, lin, 0); }
uint64_t map(uint64_t lin, uint64_t flags)
{
    uint64_t gpa = new_page();
    *pte(lin) = gpa | flags;
    return gpa;
}
uint8_t *user_ptr(uint64_t lin) { return m.h.ram + ((*pte(lin) & PA) | (lin & 0xfff)); }
uint64_t *user64(uint64_t lin) { return (uint64_t *)(void *)user_ptr(lin); }

void put_bytes(uint64_t lin, const void *p, size_t n)
{
    memcpy(user_ptr(lin), p, n);
    m.h.ops->code_written(m.h.vm, *pte(lin) & PA, 4096);
}
void patch64(uint64_t lin, uint64_t v) { put_bytes(lin, &v, 8); }

/* --- running -------------------------------------------------------------------------------------- */
static void on_alarm(int sig)
{
    static const char text[] = "test_direct: no progress: ";
    (void)sig;
    if (write(2, text, sizeof(text) - 1) < 0 || write(2, doing, strlen(doing)) < 0 || write(2, "\n", 1) < 0)
        _exit(98);
    _exit(99);
}

static bool zone_holds(const struct direct_proc *p)
{
    uint32_t half[2] = {(uint32_t)p->cookie, (uint32_t)(p->cookie >> 32)};
    return memmem(p->zone, sizeof(*p->zone), &half[0], 4) || memmem(p->zone, sizeof(*p->zone), &half[1], 4);
}
void check_zones(void)
{
    for (unsigned i = 0; i < m.c->direct->n_procs; i++)
        if (m.c->direct->proc[i].space && zone_holds(&m.c->direct->proc[i]))
            fail_msg("a helper's cookie is in its zone");
}

void run_once(void)
{
    if (!test_host_run(&m.h))
        fail_msg("RIP %#llx", (unsigned long long)m.c->rip);
}
void go_on(void)
{
    alarm(30);
    while (!m.h.stopped)
        run_once();
    alarm(0);
    check_zones();
}
void go(uint64_t cmd)
{
    m.a->cmd = cmd;
    m.h.stopped = false;
    go_on();
}
void go_arg(uint64_t cmd, uint64_t arg)
{
    m.a->arg = arg;
    go(cmd);
}
void invlpg(uint64_t lin) { go_arg(CMD_INVLPG, lin); }
void set_start(uint64_t rip)
{
    m.a->rip = rip;
    m.a->cs = 0x33;
    m.a->ss = 0x2b;
    m.a->flags = 0x202;
    m.a->rsp = STACK - 64;
}
void start(uint64_t rip)
{
    set_start(rip);
    go(CMD_IRET);
}
void expect_syscall(void) { assert_int_equal(m.a->vec, VEC_SYSCALL); }
uint64_t entries_before;
void natively(void) { entries_before = m.c->st.direct_entries; }
void was_native(void) { assert_true(m.c->st.direct_entries > entries_before); }
void go_natively(uint64_t cmd)
{
    natively();
    go(cmd);
    was_native();
}
void start_natively(uint64_t rip)
{
    set_start(rip);
    go_natively(CMD_IRET);
}

/* --- setting up --------------------------------------------------------------------------------------- */
static uint64_t kernel_at(const uint8_t *label) { return KLIN + KERNEL + (uint64_t)(label - kernel_start); }

static void set_state(void)
{
    struct hvx_vcpu_regs *r = test_host_get(&m.h);
    r->rip = kernel_at(kernel_loop);
    r->gpr[HVX_RSP] = KLIN + KERNEL;
    test_segment(&r->seg[HVX_CS], 0x08, 0xa09b);
    test_segment(&r->seg[HVX_SS], 0x10, 0xc093);
    r->tr.base = KLIN + TSS;
    r->gdt_base = KLIN + GDT, r->gdt_limit = 127;
    r->idt_base = KLIN + IDT, r->idt_limit = 4095;
    r->cr3 = m.root;
    r->cr4 |= 0x80 | 0x10000 | 0x40000 | (m.pcid ? 0x20000 : 0);
    r->xcr0 = 7;
    r->star = (uint64_t)0x23 << 48 | (uint64_t)0x08 << 32;
    r->lstar = r->cstar = kernel_at(kernel_syscall);
    r->sfmask = 0x47700;
    memcpy(r->xsave, &(uint16_t){0x37f}, 2);
    memcpy(r->xsave + 24, &(uint32_t){0x1f80}, 4);
    memcpy(r->xsave + 512, &(uint64_t){3}, 8);
    if (!test_host_set(&m.h, r))
        fail_msg("%s", m.h.log);
}

void machine_new(unsigned helpers)
{
    m.h.direct = "user";
    m.h.direct_eager = true;
    m.h.helpers = helpers;
    assert_true(test_host_ram(&m.h, RAM_SIZE, true));
    m.next_table = TABLES;
    m.next_page = USER;
    m.root = 0;
    new_root();
    test_gdt(at64(GDT), KLIN + TSS);
    *(uint32_t *)(void *)(m.h.ram + TSS + 4) = (uint32_t)(KLIN + KERNEL);
    *(uint32_t *)(void *)(m.h.ram + TSS + 8) = (uint32_t)((KLIN + KERNEL) >> 32);
    memcpy(m.h.ram + TSS + 0x66, &(uint16_t){0x68}, 2);
    for (unsigned i = 0; i < 32; i++)
        test_gate(at64(IDT), i, KLIN + KERNEL + i * 16, i == 3 || i == 4 ? 3 : 0);
    test_gate(at64(IDT), 0x80, kernel_at(kernel_int80), 3);
    memcpy(m.h.ram + KERNEL, kernel_start, (size_t)(kernel_end - kernel_start));
    m.a = (void *)(m.h.ram + KERNEL + (kernel_area - kernel_start));
    memset(m.h.ram + SECRET, 0x77, 4096);

    if (!test_host_start(&m.h))
        fail_msg("%s", m.h.log);
    m.c = (struct bt_vcpu *)m.h.vcpu;
    if (!m.c->direct) {
        print_message("  skipped: %s\n", m.h.log);
        skip();
    }
    set_state();
    map(CODE, RW);
    map(DATA, RW | NX);
    map(STACK - 4096, RW | NX);
    memset(user_ptr(CODE), 0xf4, 4096);
}

void machine_free(void)
{
    test_host_end(&m.h);
    memset(&m, 0, sizeof(m));
}

void begin(const char *name)
{
    doing = name;
    signal(SIGALRM, on_alarm);
    machine_new(4);
}
void begin_pcid(const char *name)
{
    m.pcid = true;
    begin(name);
    if (!(m.c->cr4 & 0x20000)) {
        print_message("  skipped: this host has no PCIDs\n");
        skip();
    }
}
static int teardown(void **state)
{
    (void)state;
    alarm(0);
    machine_free();
    return 0;
}

/* --- programs for all --------------------------------------------------------------------------- */
PROGRAM(p_loop, "xor %eax, %eax\n mov $100000, %ecx\n 1: add %rcx, %rax\n dec %rcx\n jnz 1b\n"
                "mov $0x1010, %r10d\n mov $0x1111, %r11d\n mov $0x8888, %r8d\n mov $0x1515, %r15d\n stc\n"
                "syscall\n mov $77, %ebx\n lea 3(%rax), %rsi\n syscall");
PROGRAM(p_count, "1: incq 0x600000\n jmp 1b");
PROGRAM(p_read, "nop\n mov (%rax), %rbx\n syscall");
PROGRAM(p_write, "nop\n mov %rbx, (%rax)\n syscall");
PROGRAM(p_jump, "nop\n jmp *%rax");
void put_accesses(void)
{
    put_program(READ, p_read);
    put_program(WRITE, p_write);
    put_program(JUMP, p_jump);
}
void try_at(uint64_t at, uint64_t lin)
{
    RAX = lin;
    natively();
    start(at);
}
void write_at(uint64_t lin, uint64_t v)
{
    RBX = v;
    try_at(WRITE, lin);
}
void expect_read(uint64_t lin, uint64_t v)
{
    try_at(READ, lin);
    expect_syscall();
    assert_int_equal(RBX, v);
}

void forgive(void)
{
    for (unsigned i = 0; i < DIRECT_SPACES; i++)
        m.c->direct->space[i].spoilt = 0, m.c->direct->space[i].barred = 0;
}

void good_program_still_runs(void)
{
    set_start(GOOD);
    natively();
    go(CMD_IRET);
    if (m.a->vec != VEC_SYSCALL)
        fail_msg("the good program ends with exception %llu, error %#llx, CR2 %#llx, RIP %#llx; %llu killed, %llu meddled",
                 (unsigned long long)m.a->vec, (unsigned long long)m.a->err, (unsigned long long)m.a->cr2,
                 (unsigned long long)m.a->rip, (unsigned long long)m.c->st.direct_killed,
                 (unsigned long long)m.c->st.direct_meddled);
    assert_int_equal(RAX, LOOP_SUM);
}


struct direct_proc *current_proc(void)
{
    struct direct_space *s = m.c->direct->current;
    return s && s->proc && !atomic_load(&s->proc->dead) ? s->proc : NULL;
}

#define TEST(f) cmocka_unit_test_teardown(f, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_loop_and_its_system_calls_run_natively),
        TEST(vector_registers_and_bases_survive_an_exit),
        TEST(exceptions_have_the_right_vector_code_and_rip),
        TEST(single_step_traps_after_each_instruction),
        TEST(single_step_traps_after_a_page_was_fetched),
        TEST(page_faults_have_the_right_code_and_address),
        TEST(a_changed_entry_holds_after_invlpg),
        TEST(write_protection_and_copy_on_write),
        TEST(accessed_and_dirty_are_set_and_set_again),
        TEST(pages_nearby_are_not_marked_accessed),
        TEST(large_pages),
        TEST(code32_and_its_system_calls),
        TEST(code32_finds_its_tls_entries),
        TEST(segments_are_the_guests),
        TEST(code32_exceptions),
        TEST(fast_system_calls_of_code32),
        TEST(from_32_to_64_bits_and_back),
        TEST(address_spaces_stay_apart),
        TEST(address_spaces_with_pcids),
        TEST(address_spaces_with_pcids_kept),
        TEST(helpers_are_handed_on),
        TEST(translated_pages_that_a_program_writes),
        TEST(self_modifying_programs),
        TEST(kernel_and_program_share_memory),
        TEST(rubbish_in_the_zone),
        TEST(a_program_finds_no_cookie),
        TEST(code_and_orders_cannot_be_written),
        TEST(forged_exits),
        TEST(an_exit_that_did_not_happen_and_a_late_signal),
        TEST(several_exits_at_once),
        TEST(the_next_program_on_a_helper_loses_nothing),
        TEST(with_the_cookie_the_stub_would_be_of_use),
        TEST(jumping_to_any_instruction_of_the_stub),
        TEST(jumping_to_any_byte_of_the_stub),
        TEST(a_helper_that_waits_is_killed),
        TEST(a_helper_that_runs_is_killed),
        TEST(lost_helpers_are_replaced),
        TEST(replacements_are_limited),
        TEST(spoilers_are_barred),
        TEST(a_kick_ends_an_endless_loop),
        TEST(a_helper_is_where_its_vcpu_is),
        TEST(a_vcpu_that_was_moved_is_held_for_a_while),
        TEST(who_comes_out_elsewhere_is_held),
        TEST(what_others_set_stays_set),
        TEST(rdpid_tells_the_guests_cpu),
        TEST(copies_follow_the_kernels_stores),
        TEST(copies_follow_a_programs_stores),
        TEST(copies_follow_devices),
        TEST(the_search_finds_each_rdpid),
        TEST(what_only_looks_like_rdpid),
        TEST(rdpid_in_a_writable_page),
        TEST(an_instruction_that_ends_in_such_a_page),
        TEST(more_pages_with_rdpid_than_copies),
        TEST(more_scattered_pages_than_a_helper_has),
        TEST(more_regions_than_there_are),
        TEST(a_helper_that_gets_no_more_memory),
        TEST(pages_below_64_kib),
        TEST(pages_where_a_zone_is),
        TEST(what_is_translated_does_not_call_c),
        TEST(repeats_that_are_not_plain),
        TEST(who_pays_runs_natively),
        TEST(much_coming_and_going_is_tried_in_the_soft_tier),
        TEST(some_coming_and_going_is_tried_there_too),
        TEST(programs_that_run_in_turn_are_told_apart),
    };
    if (getenv("HVXTEST_FILTER"))
        cmocka_set_test_filter(getenv("HVXTEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
