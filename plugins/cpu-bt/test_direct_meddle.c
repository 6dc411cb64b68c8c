/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_direct_meddle.c - programs that jump into the stub, write to the
 * zone, and tell of exits that did not happen.
 */
#define _GNU_SOURCE
#include <Zydis/Zydis.h>
#include <errno.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#include "test_direct.h" /* last, for its short names */

extern const uint8_t direct_stub[], direct_stub_end[];

/* A helper has its zone, and pages that the tables give to programs. */
static bool maps_unreadable;
static void check_maps(const struct direct_proc *p)
{
    char name[40], line[400];
    snprintf(name, sizeof(name), "/proc/%d/maps", p->pid);
    FILE *f = fopen(name, "r");
    if (!f) {
        maps_unreadable |= errno == EACCES;
        return;
    }
    while (fgets(line, sizeof(line), f)) {
        unsigned long long from, to, off;
        char prot[5], file[200] = "";
        if (sscanf(line, "%llx-%llx %4s %llx %*s %*s %199[^\n]", &from, &to, prot, &off, file) < 4)
            fail_msg("cannot read %s", line);
        if (from >= p->base && to <= p->base + sizeof(struct direct_zone)) {
            if (prot[1] == 'w' && (prot[2] == 'x' || from < p->base + offsetof(struct direct_zone, report)))
                fail_msg("the zone's rights have changed: %s", line);
            continue;
        }
        if (strstr(file, "[vsyscall]"))
            continue;
        if (!strstr(file, TEST_RAM_NAME))
            fail_msg("the helper has more than guest RAM: %s", line);
        for (; from < to; from += 4096, off += 4096) {
            uint64_t e = *pte(from);
            if ((e & (P | U)) != (P | U) || (e & PA) != off || off < USER || (prot[1] == 'w' && (e & (W | D)) != (W | D)) ||
                (prot[2] == 'x' && (e & NX)))
                fail_msg("the helper has what the program may not have: %#llx in %s", from, line);
        }
    }
    fclose(f);
}

static _Atomic bool kicking;
static pthread_mutex_t kick_lock = PTHREAD_MUTEX_INITIALIZER; /* the machine may be replaced */
static void *kicker(void *arg)
{
    struct timespec t = {0, 1000000};
    (void)arg;
    while (kicking) {
        nanosleep(&t, NULL);
        pthread_mutex_lock(&kick_lock);
        if (m.h.vcpu)
            m.h.ops->vcpu_kick(m.h.vcpu);
        pthread_mutex_unlock(&kick_lock);
    }
    return NULL;
}

/* jmp *0(%rip): no register is lost */
static const uint8_t f_jmp[] = {0xff, 0x25, 0, 0, 0, 0};
static _Atomic int n_signals;
static void on_usr2(int sig)
{
    (void)sig;
    n_signals++;
}

enum { SET_MMAP, SET_MUNMAP, SET_SIGRETURN, SET_PRCTL, SET_READ, SET_WRITE, SET_WRITE_OK, SET_READ_OK, SET_OPENAT, SET_CLONE, SET_KILL,
       SET_MPROTECT, SET_TLS, SET_INDIRECT, N_SETS };

/* Registers as the stub has them in its various places: calls, and pointers to orders of one's own. */
static void meddling_registers(unsigned set, const struct direct_proc *p, uint64_t cookie)
{
    uint64_t *g = m.a->gpr, nr = 0, a[6] = {0};
    switch (set) {
    case SET_MMAP:
        nr = SYS_mmap;
        a[0] = 0x500000000000, a[1] = 4096, a[2] = 3, a[3] = MAP_SHARED | MAP_FIXED, a[4] = DIRECT_RAM_FD, a[5] = SECRET;
        break;
    case SET_MUNMAP: nr = SYS_munmap, a[0] = p->base, a[1] = sizeof(struct direct_zone); break;
    case SET_SIGRETURN: nr = SYS_rt_sigreturn; break;
    case SET_PRCTL: nr = SYS_prctl, a[0] = 26, a[1] = 2; break;
    case SET_READ: nr = SYS_read, a[0] = DIRECT_CMD_FD, a[1] = DATA + 64, a[2] = 8; break;
    case SET_WRITE: nr = SYS_write, a[0] = DIRECT_EXIT_FD, a[1] = DATA + 64, a[2] = 8; break;
    case SET_WRITE_OK:
        nr = SYS_write, a[0] = DIRECT_EXIT_FD, a[1] = p->base + offsetof(struct direct_zone, report.token), a[2] = 8;
        break;
    case SET_READ_OK:
        nr = SYS_read, a[0] = DIRECT_CMD_FD, a[1] = p->base + offsetof(struct direct_zone, report.cookie), a[2] = 8;
        break;
    case SET_OPENAT: nr = SYS_openat, a[0] = (uint64_t)-100, a[1] = DATA + 128, a[2] = 2; break;
    case SET_CLONE: nr = SYS_clone; break;
    case SET_KILL: nr = SYS_kill, a[0] = (uint64_t)getpid(), a[1] = SIGUSR2; break;
    case SET_TLS: nr = I386_SET_THREAD_AREA, a[0] = DATA + 0x300; break;
    case SET_MPROTECT: nr = SYS_mprotect, a[0] = p->base, a[1] = sizeof(struct direct_zone), a[2] = 7; break;
    default: break;
    }
    memset(g, 0, sizeof(m.a->gpr));
    a[3] |= cookie >> 32 << 32;
    a[4] |= cookie << 32;
    g[0] = nr, g[7] = a[0], g[6] = a[1], g[2] = a[2], g[10] = a[3], g[8] = a[4], g[9] = a[5];
    g[3] = cookie >> 32 << 32, g[5] = cookie << 32;
    g[12] = 5;
    g[13] = DATA + 0x400; /* struct direct_op of our own */
    struct direct_op *op = (void *)user_ptr(DATA + 0x400);
    for (unsigned i = 0; i < 8; i++) {
        op[i].nr = nr;
        memcpy(op[i].arg, a, sizeof(a));
        if (set == SET_INDIRECT) { /* several exits at once */
            op[i].nr = SYS_write;
            op[i].arg[0] = DIRECT_EXIT_FD, op[i].arg[1] = p->base + offsetof(struct direct_zone, report.token), op[i].arg[2] = 8;
            op[i].arg[3] = op[i].arg[4] = 0;
        }
    }
}

/* A frame that blocks all signals and goes on at code that says so, at STACK - 4096 + 64. */
static void forged_frame(void)
{
    ucontext_t *u = (void *)user_ptr(STACK - 4096 + 64);
    memset(u, 0, sizeof(*u));
    u->uc_mcontext.gregs[REG_RIP] = (greg_t)(CODE + 0x700);
    u->uc_mcontext.gregs[REG_RSP] = (greg_t)(STACK - 64);
    u->uc_mcontext.gregs[REG_EFL] = 0x202;
    u->uc_mcontext.gregs[REG_CSGSFS] = 0x002b000000000033;
    memset(&u->uc_sigmask, 0xff, 8);
}
PROGRAM(p_forbidden, "movl $0x4747, 0x600000\n 1: jmp 1b");

static void meddle_once(uint64_t offset, unsigned set)
{
    struct direct_proc *p;
    static char what[80];
    forgive();
    good_program_still_runs();
    p = current_proc();
    if (!p) { /* all have been used up */
        pthread_mutex_lock(&kick_lock);
        machine_free();
        machine_new(DIRECT_PROCS_MAX);
        pthread_mutex_unlock(&kick_lock);
        put_program(GOOD, p_loop);
        put_program(CODE + 0x700, p_forbidden);
        put_bytes(CODE + 16, f_jmp, sizeof(f_jmp));
        strcpy((char *)user_ptr(DATA + 128), "/dev/null");
        forged_frame();
        good_program_still_runs();
        p = current_proc();
        assert_non_null(p);
    }
    was_native();
    put_accesses(); /* so that forbidden code can tell, and a forged frame be read */
    write_at(DATA, 0);
    expect_syscall();
    try_at(READ, STACK - 4096 + 64);
    expect_syscall();
    if (!(p = current_proc()))
        return;
    patch64(CODE + 16 + 6, p->base + offset);
    meddling_registers(set, p, 0);
    *user64(DATA) = 0;
    set_start(CODE + 16);
    m.a->rsp = STACK - 4096 + 64;
    snprintf(what, sizeof(what), "stub + %#llx with registers %u", (unsigned long long)offset, set);
    doing = what;
    go(CMD_IRET);
    if (m.a->vec >= 32)
        fail_msg("%s: no exception, but %llu", what, (unsigned long long)m.a->vec);
    if (*user64(DATA))
        fail_msg("%s: a forged frame was taken", what);
    assert_int_equal(*at64(SECRET), 0x7777777777777777);
    assert_int_equal(n_signals, 0);
    check_zones();
    if ((p = current_proc()))
        check_maps(p);
}

static void meddle_all(bool boundaries)
{
    ZydisDecoder dec;
    ZydisDecodedInstruction in;
    pthread_t t;
    size_t size = (size_t)(direct_stub_end - direct_stub);
    unsigned n = 0, calls = 0;
    ZydisDecoderInit(&dec, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    signal(SIGUSR2, on_usr2);
    put_program(GOOD, p_loop);
    put_program(CODE + 0x700, p_forbidden);
    put_bytes(CODE + 16, f_jmp, sizeof(f_jmp));
    forged_frame();
    kicking = true;
    pthread_create(&t, NULL, kicker, NULL);
    for (size_t at = 0; at < size;) {
        bool call = at + 1 < size && ((direct_stub[at] == 0x0f && direct_stub[at + 1] == 0x05) || (direct_stub[at] == 0xcd && direct_stub[at + 1] == 0x80));
        calls += call;
        if (boundaries) {
            for (unsigned set = 0; set < N_SETS; set++)
                if (call || set == SET_MMAP || set == SET_SIGRETURN || set == SET_INDIRECT || set == SET_WRITE_OK)
                    meddle_once(at, set), n++;
            if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&dec, NULL, direct_stub + at, size - at, &in)))
                fail_msg("the stub cannot be decoded at %#zx", at);
            at += in.length;
        } else {
            meddle_once(at, at % N_SETS), n++;
            at++;
        }
    }
    kicking = false;
    pthread_join(t, NULL);
    print_message("  %u jumps into the stub, %u places with SYSCALL or INT 80h%s\n", n, calls,
                  maps_unreadable ? "; /proc/PID/maps not readable, not looked at" : "");
    assert_true(calls >= 5);
}
void jumping_to_any_instruction_of_the_stub(void **state)
{
    (void)state;
    begin(__func__);
    meddle_all(true);
}
void jumping_to_any_byte_of_the_stub(void **state)
{
    (void)state;
    begin(__func__);
    meddle_all(false);
}

/* --- the zone as memory ---------------------------------------------------------------------------------- */
PROGRAM(p_rubbish, "rep stosq\n mov $3, %eax\n mov $4, %ebx\n syscall\n mov $5, %ebx\n hlt");
void rubbish_in_the_zone(void **state)
{
    static const uint64_t pattern[] = {0, ~0ull, 0x8000000000000000, 0x1234567812345678};
    (void)state;
    begin(__func__);
    put_accesses();
    put_program(CODE, p_rubbish);
    const uint64_t token = offsetof(struct direct_zone, report.token);
    for (unsigned i = 0; i < 8; i++) { /* before the token, behind it */
        expect_read(DATA, 0);
        struct direct_proc *p = current_proc();
        assert_non_null(p);
        set_start(CODE);
        RAX = pattern[i / 2];
        m.a->gpr[7] = p->base + (i % 2 ? token + 8 : offsetof(struct direct_zone, report));
        RCX = (i % 2 ? sizeof(struct direct_zone) - token - 8 : token - offsetof(struct direct_zone, report)) / 8;
        go(CMD_IRET);
        expect_syscall();
        assert_int_equal(RAX, 3);
        assert_int_equal(RBX, 4);
        go(CMD_SYSRET);
        expect_trap(13, 0, CODE + (uint64_t)(p_rubbish_end - p_rubbish) - 1);
        assert_int_equal(RBX, 5);
        check_maps(p);
    }
    assert_int_equal(m.c->st.direct_lost, 0);
    put_program(GOOD, p_loop);
    const uint64_t tokens[] = {0, ~0ull, 1ull << 40, (1ull << 40) + 1};
    for (unsigned i = 0, other = 0; i < 4; i++) { /* who writes that ends with the helper, unless it is what stood there */
        forgive();
        good_program_still_runs();
        was_native();
        struct direct_proc *p = current_proc();
        assert_non_null(p);
        set_start(CODE);
        RAX = tokens[i];
        m.a->gpr[7] = p->base + token;
        RCX = 1;
        uint64_t lost = m.c->st.direct_lost;
        go(CMD_IRET);
        assert_true(m.a->vec == 6 ? m.a->rip == 0 && m.c->st.direct_lost == lost + 1 : m.a->vec == VEC_SYSCALL && ++other == 1);
    }
}

/* Looks at every 4 bytes for the complements of RBX and RDX. */
PROGRAM(p_scan, "xor %r12d, %r12d\n 1: mov (%rdi), %eax\n not %eax\n cmp %ebx, %eax\n je 2f\n cmp %edx, %eax\n jne 3f\n"
                "2: inc %r12\n 3: inc %rdi\n cmp %rsi, %rdi\n jb 1b\n syscall");
void a_program_finds_no_cookie(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    put_program(CODE, p_scan);
    for (unsigned i = 0; i < 3; i++) {
        expect_read(DATA, 0);
        struct direct_proc *p = current_proc();
        assert_non_null(p);
        set_start(CODE);
        m.a->gpr[7] = p->base;
        m.a->gpr[6] = p->base + sizeof(struct direct_zone) - 3;
        RBX = ~(uint32_t)p->cookie;
        m.a->gpr[2] = ~(uint32_t)(p->cookie >> 32);
        go_natively(CMD_IRET);
        expect_syscall();
        assert_int_equal(m.a->gpr[7], m.a->gpr[6]);
        assert_int_equal(m.a->gpr[12], 0);
    }
    assert_int_equal(m.c->st.direct_lost, 0);
}

void code_and_orders_cannot_be_written(void **state)
{
    static const uint64_t at[] = {0, 4088, offsetof(struct direct_zone, orders.segs), offsetof(struct direct_zone, report) - 8};
    (void)state;
    begin(__func__);
    put_accesses();
    for (unsigned i = 0; i < 4; i++) {
        expect_read(DATA, 0);
        struct direct_proc *p = current_proc();
        uint64_t before;
        assert_non_null(p);
        memcpy(&before, (uint8_t *)p->zone + at[i], 8);
        write_at(p->base + at[i], before + 1);
        expect_pf(6, p->base + at[i]);
        assert_memory_equal(&before, (uint8_t *)p->zone + at[i], 8);
    }
}

/* An exit of a program's own making: whatever it says, the program is not more than a program. */
PROGRAM(p_forge, "rep stosq\n mov %r14, %rdi\n mov %r15, %rcx\n rep stosq\n mov $1, %eax\n mov $4, %edi\n mov %r9, %rsi\n mov $8, %edx\n jmp *%r8");
void forged_exits(void **state)
{
    static const uint64_t pattern[] = {0, ~0ull, 0x0010001000100008, 0x8000000000000000, SIGSEGV, SIGTRAP};
    const uint8_t *call = memmem(direct_stub, (size_t)(direct_stub_end - direct_stub), "\x0f\x05", 2);
    pthread_t t;
    (void)state;
    begin(__func__);
    put_accesses();
    put_program(GOOD, p_loop);
    kicking = true;
    pthread_create(&t, NULL, kicker, NULL);
    for (unsigned i = 0; i < 6; i++) {
        put_program(CODE, p_forge);
        forgive();
        good_program_still_runs();
        struct direct_proc *p = current_proc();
        if (!p)
            break;
        set_start(CODE);
        RAX = pattern[i];
        m.a->gpr[7] = p->base + p->uc;
        RCX = sizeof(ucontext_t) / 8;
        m.a->gpr[14] = p->base + p->fp;
        m.a->gpr[15] = p->fp_size / 8;
        m.a->gpr[8] = p->base + (uint64_t)(call - direct_stub);
        m.a->gpr[9] = p->base + offsetof(struct direct_zone, report.token);
        go(CMD_IRET);
        assert_true(m.a->vec < 32);
        assert_int_equal(m.a->cs, 0x33);
        /* A kick can come late, which ends the helper. That is the forger's loss: this is its address space. */
        uint64_t killed = m.c->st.direct_killed;
        set_start(GOOD);
        go(CMD_IRET);
        assert_true(m.a->vec == VEC_SYSCALL || (m.a->vec == 6 && m.c->st.direct_killed == killed + 1));
        good_program_still_runs();
    }
    kicking = false;
    pthread_join(t, NULL);
}

/* The vCPU must know whether the program runs. A program tells of exits that did not happen, so that one is left over
 * for when it next runs: with a signal that comes late, or by several at once. */
PROGRAM(p_false_exit, "mov %r11, (%r10)\n movl $31, (%r9)\n mov $1, %eax\n mov $4, %edi\n mov $8, %edx\n jmp *%r8");
static void *kick_later(void *arg)
{
    struct timespec t = {0, 50000000};
    (void)arg;
    nanosleep(&t, NULL);
    m.h.ops->vcpu_kick(m.h.vcpu);
    return NULL;
}
#define MANY 8192u
static void false_exits(bool late_signal)
{
    static const uint8_t f_syscall[] = {0x0f, 0x05};
    const uint8_t *call = memmem(direct_stub, (size_t)(direct_stub_end - direct_stub), "\x0f\x05", 2);
    const uint8_t *orders = memmem(direct_stub, (size_t)(direct_stub_end - direct_stub), "\x49\x8b\x45\x00", 4); /* mov (%r13), %rax */
    assert_true(call && orders);
    put_accesses();
    put_bytes(CODE + 14, f_syscall, 2);
    put_program(CODE + 16, p_false_exit);
    put_program(CODE + 0x400, p_count);
    for (unsigned round = 0; round < 3; round++) {
        forgive();
        expect_read(DATA + 8, 0);
        struct direct_proc *p = current_proc();
        assert_non_null(p);
        meddling_registers(SET_INDIRECT, p, 0);
        for (unsigned i = 0; i < MANY; i++) { /* some 1 ms of exits */
            if (!(i % 64) && !round)
                map(0x900000 + i * 64, RW | NX);
            memcpy(user_ptr(0x900000 + i * 64), user_ptr(DATA + 0x400), 64);
        }
        for (unsigned i = 0; i < MANY; i += 64) /* the stub must find them */
            expect_read(0x900000 + i * 64, SYS_write);
        meddling_registers(SET_INDIRECT, p, 0);
        set_start(CODE + 16);
        m.a->gpr[12] = MANY;
        m.a->gpr[13] = 0x900000;
        m.a->gpr[10] = p->base + p->uc + offsetof(ucontext_t, uc_mcontext.gregs) + REG_TRAPNO * 8;
        m.a->gpr[11] = 0;
        m.a->gpr[9] = p->base + offsetof(struct direct_zone, report.signal);
        m.a->gpr[8] = p->base + (uint64_t)((late_signal ? call : orders) - direct_stub);
        m.a->gpr[6] = p->base + offsetof(struct direct_zone, report.token);
        go(CMD_IRET);
        if (late_signal && !atomic_load(&p->dead)) {
            struct pollfd f = {.fd = p->exit_fd, .events = POLLIN};
            kill(p->pid, SIGUSR1);
            poll(&f, 1, 2000);
        }
        pthread_t t;
        volatile uint64_t *count = user64(DATA);
        for (unsigned i = 0; i < 4; i++) {
            set_start(CODE + 0x400);
            m.a->cmd = CMD_IRET;
            m.h.stopped = false;
            pthread_create(&t, NULL, kick_later, NULL);
            alarm(30);
            run_once();
            alarm(0);
            pthread_join(t, NULL);
            uint64_t n = *count;
            struct timespec ts = {0, 20000000};
            nanosleep(&ts, NULL);
            if (*count != n)
                fail_msg("round %u: the program runs on though the vCPU has stopped", round);
            if (!m.h.stopped) { /* out of the loop: a system call */
                put_bytes(CODE + 0x400, "\x0f\x05", 2);
                go_on();
                put_program(CODE + 0x400, p_count);
            }
        }
    }
}
void an_exit_that_did_not_happen_and_a_late_signal(void **state)
{
    (void)state;
    begin(__func__);
    false_exits(true);
}
void several_exits_at_once(void **state)
{
    (void)state;
    begin(__func__);
    false_exits(false);
}

/* Another address space gets a helper that waits for orders though no signal has come. */
void the_next_program_on_a_helper_loses_nothing(void **state)
{
    static const uint8_t f_syscall[] = {0x0f, 0x05};
    const uint8_t *call = memmem(direct_stub, (size_t)(direct_stub_end - direct_stub), "\x0f\x05", 2);
    (void)state;
    begin(__func__);
    for (unsigned late_signal = 0; late_signal < 2; late_signal++) {
        machine_free();
        machine_new(1);
        uint64_t root = m.root, next = new_root();
        put_accesses();
        *entry(next, CODE, 0) = *pte(CODE);
        *entry(next, STACK - 4096, 0) = *pte(STACK - 4096);
        put_bytes(CODE + 14, f_syscall, 2);
        put_program(CODE + 16, p_false_exit);
        put_program(GOOD, p_loop);
        for (unsigned round = 0; round < 5; round++) {
            forgive();
            go_arg(CMD_CR3, root);
            expect_read(DATA + 8, 0);
            struct direct_proc *p = current_proc();
            if (!p)
                break;
            meddling_registers(SET_WRITE_OK, p, 0);
            set_start(CODE + 16);
            m.a->gpr[10] = p->base + p->uc + offsetof(ucontext_t, uc_mcontext.gregs) + REG_TRAPNO * 8;
            m.a->gpr[9] = p->base + offsetof(struct direct_zone, report.signal);
            m.a->gpr[8] = p->base + (uint64_t)(call - direct_stub);
            go(CMD_IRET);
            expect_syscall(); /* what it has told of */
            assert_int_equal(m.a->rip, CODE + 16);
            if (late_signal) {
                struct pollfd f = {.fd = p->exit_fd, .events = POLLIN};
                kill(p->pid, SIGUSR1);
                assert_int_equal(poll(&f, 1, 2000), 1);
            }
            go_arg(CMD_CR3, next);
            good_program_still_runs();
            if (!late_signal)
                was_native();
            assert_int_equal(m.c->st.direct_lost, late_signal * (round + 1)); /* each time, if a new one has come */
        }
        assert_int_equal(m.c->st.direct_killed, 0);
    }
}

/* The tests above would see it: with the cookie, a program can do what they look for. */
static _Atomic int seen_forbidden;
static void *look_and_kick(void *arg)
{
    char name[40], line[400];
    snprintf(name, sizeof(name), "/proc/%d/maps", ((struct direct_proc *)arg)->pid);
    for (unsigned i = 0; i < 200 && !seen_forbidden; i++) {
        struct timespec t = {0, 5000000};
        FILE *f = fopen(name, "r");
        nanosleep(&t, NULL);
        if (!f) {
            maps_unreadable = true;
            break;
        }
        while (fgets(line, sizeof(line), f))
            seen_forbidden |= !strncmp(line, "500000000000-500000001000 rw", 28);
        fclose(f);
    }
    m.h.ops->vcpu_kick(m.h.vcpu);
    return NULL;
}
void with_the_cookie_the_stub_would_be_of_use(void **state)
{
    const uint8_t *call = memmem(direct_stub, (size_t)(direct_stub_end - direct_stub), "\x49\x09\xe8\x0f\x05", 5); /* or %rbp, %r8; syscall */
    pthread_t t;
    (void)state;
    begin(__func__);
    assert_non_null(call);
    put_accesses();
    put_bytes(CODE + 16, f_jmp, sizeof(f_jmp));
    expect_read(DATA, 0);
    struct direct_proc *p = current_proc();
    assert_non_null(p);
    patch64(CODE + 16 + 6, p->base + (uint64_t)(call + 3 - direct_stub));
    meddling_registers(SET_MMAP, p, p->cookie);
    set_start(CODE + 16);
    m.a->cmd = CMD_IRET;
    m.h.stopped = false;
    pthread_create(&t, NULL, look_and_kick, p);
    alarm(30);
    run_once(); /* it maps the page, is resumed, and does it again */
    alarm(0);
    pthread_join(t, NULL);
    if (maps_unreadable) {
        print_message("  skipped: /proc/PID/maps is not readable\n");
        skip();
    }
    assert_true(seen_forbidden);
}
