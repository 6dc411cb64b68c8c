/* SPDX-License-Identifier: Apache-2.0
 *
 * The gdb stub's protocol against a made-up VM, and the page walk.
 */
#include "core/vm/gdb.h"
#include "core/vm/gdb_proto.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct {
    struct hvx_gdb_session *s;
    struct hvx_vcpu_regs *regs;
    uint8_t ram[8192]; /* at 0x1000 */
    char out[40000];
    size_t n;
    enum hvx_gdb_resume how[2];
    struct hvx_debug_point point[HVX_DEBUG_MAX_POINTS];
    unsigned n_points, n_resumes, n_interrupts, n_detached, n_killed;
} vm;

static unsigned n_threads(void *o) { (void)o; return 2; }
static bool get_regs(void *o, unsigned thread, struct hvx_vcpu_regs *r)
{
    (void)o;
    memcpy(r, &vm.regs[thread], sizeof(*r));
    return true;
}
static bool set_regs(void *o, unsigned thread, const struct hvx_vcpu_regs *r)
{
    (void)o;
    memcpy(&vm.regs[thread], r, sizeof(*r));
    return true;
}
static bool in_ram(uint64_t lin, size_t n)
{
    return lin >= 0x1000 && n <= sizeof(vm.ram) && lin - 0x1000 <= sizeof(vm.ram) - n;
}
static bool read_memory(void *o, unsigned thread, uint64_t lin, void *buf, size_t n)
{
    (void)o, (void)thread;
    if (!in_ram(lin, n))
        return false;
    memcpy(buf, vm.ram + lin - 0x1000, n);
    return true;
}
static bool write_memory(void *o, unsigned thread, uint64_t lin, const void *buf, size_t n)
{
    (void)o, (void)thread;
    if (!in_ram(lin, n))
        return false;
    memcpy(vm.ram + lin - 0x1000, buf, n);
    return true;
}
static bool resume(void *o, const enum hvx_gdb_resume *how, const struct hvx_debug_point *points, unsigned n)
{
    (void)o;
    memcpy(vm.how, how, sizeof(vm.how));
    memcpy(vm.point, points, n * sizeof(*points));
    vm.n_points = n;
    vm.n_resumes++;
    return true;
}
static void interrupt(void *o)
{
    (void)o;
    vm.n_interrupts++;
    hvx_gdb_stop(vm.s, 0, -2);
}
static void detach(void *o) { (void)o; vm.n_detached++; }
static void kill_vm(void *o) { (void)o; vm.n_killed++; }
static void describe(void *o, unsigned thread, char *buf, size_t n) { (void)o; snprintf(buf, n, "cpu %u", thread); }
static void put(void *o, const void *buf, size_t n)
{
    (void)o;
    if (n > sizeof(vm.out) - vm.n - 1)
        return;
    memcpy(vm.out + vm.n, buf, n);
    vm.n += n;
    vm.out[vm.n] = 0;
}

static const struct hvx_gdb_target target = {
    .n_threads = n_threads, .get_regs = get_regs, .set_regs = set_regs, .read = read_memory, .write = write_memory,
    .resume = resume, .interrupt = interrupt, .detach = detach, .kill = kill_vm, .describe = describe, .send = put,
};

static int setup(void **state)
{
    (void)state;
    free(vm.regs);
    memset(&vm, 0, sizeof(vm));
    vm.regs = aligned_alloc(64, 2 * sizeof(*vm.regs));
    memset(vm.regs, 0, 2 * sizeof(*vm.regs));
    vm.regs[0].rip = 0x1234;
    vm.regs[0].efer = 0x500;
    vm.regs[0].cr0 = 0x80000001;
    vm.s = hvx_gdb_session_new(&target, NULL, 0);
    return 0;
}
static int teardown(void **state)
{
    (void)state;
    hvx_gdb_session_free(vm.s);
    free(vm.regs);
    vm.regs = NULL;
    return 0;
}

/* The answer's data, without its frame; the acknowledgement is checked. */
static const char *ask_bytes(const char *data, size_t n)
{
    static char text[20000];
    uint8_t sum = 0;
    char tail[4];
    size_t len;

    vm.n = 0;
    vm.out[0] = 0;
    for (size_t i = 0; i < n; i++)
        sum += (uint8_t)data[i];
    snprintf(tail, sizeof(tail), "#%02x", sum);
    hvx_gdb_feed(vm.s, (const uint8_t *)"$", 1);
    hvx_gdb_feed(vm.s, (const uint8_t *)data, n);
    hvx_gdb_feed(vm.s, (const uint8_t *)tail, 3);
    assert_int_equal(vm.out[0], '+');
    if (vm.n == 1)
        return NULL;
    assert_int_equal(vm.out[1], '$');
    len = vm.n - 5;
    assert_int_equal(vm.out[vm.n - 3], '#');
    memcpy(text, vm.out + 2, len);
    text[len] = 0;
    return text;
}
static const char *ask(const char *data) { return ask_bytes(data, strlen(data)); }

static void packets_are_checked_and_sent_again(void **state)
{
    char first[64];

    (void)state;
    assert_string_equal(ask("qC"), "QC1");
    memcpy(first, vm.out + 1, vm.n);
    vm.n = 0;
    hvx_gdb_feed(vm.s, (const uint8_t *)"-", 1);
    vm.out[vm.n] = 0;
    assert_string_equal(vm.out, first);
    vm.n = 0;
    hvx_gdb_feed(vm.s, (const uint8_t *)"$qC#00", 6);
    vm.out[vm.n] = 0;
    assert_string_equal(vm.out, "-");
    assert_string_equal(ask("vMustReplyEmpty"), "");
    assert_string_equal(ask("QStartNoAckMode"), "OK");
    vm.n = 0;
    hvx_gdb_feed(vm.s, (const uint8_t *)"$qC#b4", 6);
    assert_int_equal(vm.out[0], '$');
}

static void a_packet_that_is_too_long_is_an_error(void **state)
{
    char *big = malloc(60000);

    (void)state;
    memset(big, 'm', 60000);
    assert_string_equal(ask_bytes(big, 60000), "E07");
    assert_string_equal(ask("qC"), "QC1");
    free(big);
}

static void registers_are_read_and_written(void **state)
{
    const char *a;
    char packet[100];

    (void)state;
    vm.regs[0].gpr[HVX_RBX] = 0x1122334455667788;
    a = ask("p1");
    assert_string_equal(a, "8877665544332211");
    assert_string_equal(ask("p10"), "3412000000000000");
    assert_string_equal(ask("P10=0040000000000000"), "OK");
    assert_int_equal(vm.regs[0].rip, 0x4000);
    assert_string_equal(ask("P13=0800"), "E16");     /* too short */
    assert_string_equal(ask("P12=08000000"), "E0e"); /* a selector in protected mode */
    assert_string_equal(ask("p99999999"), "E01");
    assert_string_equal(ask("pffff"), "E01");
    /* FPU in its initial state, and taken into use by a write */
    assert_string_equal(ask("p20"), "7f030000");
    snprintf(packet, sizeof(packet), "P18=%s", "00000000000000c0ff3f");
    assert_string_equal(ask(packet), "OK");
    assert_int_equal(vm.regs[0].xsave[512] & 3, 1);
    assert_string_equal(ask("p18"), "00000000000000c0ff3f");
    assert_string_equal(ask("p20"), "7f030000");
    snprintf(packet, sizeof(packet), "P28=%s", "000102030405060708090a0b0c0d0e0f");
    assert_string_equal(ask(packet), "OK");
    assert_int_equal(vm.regs[0].xsave[161], 1);
    /* all at once */
    a = ask("g");
    assert_true(strlen(a) > 1000);
    snprintf(packet, sizeof(packet), "G%.64s", a);
    assert_string_equal(ask(packet), "OK");
}

static void the_description_comes_in_pieces(void **state)
{
    char all[20000] = "", packet[80];
    size_t n = 0;

    (void)state;
    for (;;) {
        const char *a;
        snprintf(packet, sizeof(packet), "qXfer:features:read:target.xml:%zx,100", n);
        a = ask(packet);
        n += strlen(a + 1);
        assert_true(n < sizeof(all));
        strcat(all, a + 1);
        if (a[0] == 'l')
            break;
        assert_int_equal(a[0], 'm');
    }
    assert_non_null(strstr(all, "<architecture>i386:x86-64<"));
    assert_non_null(strstr(all, "name=\"gs_base\""));
    assert_non_null(strstr(all, "name=\"cr3\""));
    assert_non_null(strstr(all, "</target>"));
    assert_string_equal(ask("qXfer:features:read:other.xml:0,10"), "E00");
    assert_string_equal(ask("qXfer:features:read:target.xml:ffffffffffffffff,ffffffffffffffff"), "l");
}

static void protected_mode_without_long_mode_is_i386(void **state)
{
    (void)state;
    hvx_gdb_session_free(vm.s);
    vm.regs[0].efer = 0;
    vm.regs[0].seg[HVX_CS].attr = 0x4000;
    vm.s = hvx_gdb_session_new(&target, NULL, 0);
    assert_string_equal(ask("p8"), "34120000");
    assert_non_null(strstr(ask("qXfer:features:read:target.xml:0,200"), "<architecture>i386<"));
}

static void memory_is_read_and_written(void **state)
{
    (void)state;
    memcpy(vm.ram, "\x12\x34\x56", 3);
    assert_string_equal(ask("m1000,3"), "123456");
    assert_string_equal(ask("M1001,2:abcd"), "OK");
    assert_int_equal(vm.ram[2], 0xcd);
    assert_string_equal(ask_bytes("X1000,3:a}\x03z", 12), "OK"); /* 0x03 ^ 0x20 is '#' */
    assert_memory_equal(vm.ram, "a#z", 3);
    assert_string_equal(ask("X1000,0:"), "OK");
    assert_string_equal(ask("m0,4"), "E0e");
    assert_string_equal(ask("M1000,2:zz00"), "E16");
    assert_string_equal(ask("M1000,3:0011"), "E16");
    assert_string_equal(ask("m1000,ffffffffffffffff"), "E16");
    assert_string_equal(ask("m1000"), "E16");
    assert_int_equal(strlen(ask("m2f00,200")), 2 * 0x100); /* what there is of it */
}

static void points_reach_the_vm(void **state)
{
    (void)state;
    assert_string_equal(ask("Z0,1000,1"), "OK");
    assert_string_equal(ask("Z0,1000,1"), "OK"); /* once */
    assert_string_equal(ask("Z2,2000,8"), "OK");
    assert_string_equal(ask("Z9,2000,8"), "");
    assert_string_equal(ask("Z1,2000"), "E16");
    assert_null(ask("c"));
    assert_int_equal(vm.n_points, 2);
    assert_int_equal(vm.point[1].kind, HVX_DEBUG_WRITE);
    assert_int_equal(vm.point[1].bytes, 8);
    vm.n = 0;
    hvx_gdb_stop(vm.s, 1, 1);
    vm.out[vm.n] = 0;
    assert_non_null(strstr(vm.out, "$T05thread:2;watch:2000;#"));
    assert_string_equal(ask("qC"), "QC2");
    assert_string_equal(ask("z2,2000,8"), "OK");
    assert_string_equal(ask("z2,2000,8"), "OK");
    for (unsigned i = 0; i < HVX_DEBUG_MAX_POINTS + 3; i++) {
        char packet[40];
        snprintf(packet, sizeof(packet), "Z1,%x,1", 0x5000 + i);
        assert_string_equal(ask(packet), i < HVX_DEBUG_MAX_POINTS - 1 ? "OK" : "E1c");
    }
}

static void threads_step_go_and_stay(void **state)
{
    (void)state;
    assert_string_equal(ask("qfThreadInfo"), "m1,2");
    assert_string_equal(ask("qsThreadInfo"), "l");
    assert_string_equal(ask("T2"), "OK");
    assert_string_equal(ask("T3"), "E01");
    assert_string_equal(ask("qThreadExtraInfo,2"), "6370752031");
    assert_string_equal(ask("Hg2"), "OK");
    assert_string_equal(ask("Hg7"), "E01");
    assert_string_equal(ask("vCont?"), "vCont;c;C;s;S");
    assert_string_equal(ask("vCont"), "E16");
    assert_string_equal(ask("vCont;s:9"), "E16");
    assert_string_equal(ask("vCont;x"), "E16");
    assert_null(ask("vCont;s:2;c"));
    assert_int_equal(vm.how[0], HVX_GDB_GO);
    assert_int_equal(vm.how[1], HVX_GDB_STEP);
    hvx_gdb_stop(vm.s, 1, -1);
    assert_null(ask("vCont;s:1"));
    assert_int_equal(vm.how[1], HVX_GDB_HOLD);
    hvx_gdb_stop(vm.s, 0, -1);
    assert_null(ask("Hc2") == NULL ? "" : NULL);
    assert_null(ask("s2000"));
    assert_int_equal(vm.how[1], HVX_GDB_STEP);
    assert_int_equal(vm.regs[1].rip, 0x2000);
}

static void control_c_detach_and_kill(void **state)
{
    (void)state;
    assert_null(ask("c"));
    assert_string_equal(ask("g"), "E01"); /* not while it runs */
    vm.n = 0;
    hvx_gdb_feed(vm.s, (const uint8_t *)"\x03", 1);
    vm.out[vm.n] = 0;
    assert_int_equal(vm.n_interrupts, 1);
    assert_non_null(strstr(vm.out, "$T02thread:1;#"));
    assert_string_equal(ask("?"), "T02thread:1;");
    assert_string_equal(ask("D"), "OK");
    assert_int_equal(vm.n_detached, 1);
    teardown(state);
    setup(state);
    assert_string_equal(ask("vKill;1"), "OK");
    assert_int_equal(vm.n_killed, 1);
    teardown(state);
    setup(state);
    assert_null(ask("k"));
    assert_int_equal(vm.n_killed, 1);
}

/* --- the walk: a few page tables in 64 KiB ----------------------------------------------- */

static uint8_t memory[65536];
static int read_physical(void *o, uint64_t gpa, void *buf, size_t n)
{
    (void)o;
    if (gpa > sizeof(memory) || n > sizeof(memory) - gpa)
        return -EFAULT;
    memcpy(buf, memory + gpa, n);
    return 0;
}
static void entry(uint64_t at, uint64_t v, unsigned n) { memcpy(memory + at, &v, n); }

static void addresses_are_translated_in_every_mode(void **state)
{
    struct hvx_vcpu_regs *r = aligned_alloc(64, sizeof(*r));
    uint64_t gpa = 1, run = 1;

    (void)state;
    memset(r, 0, sizeof(*r));
    memset(memory, 0, sizeof(memory));
    assert_true(hvx_gdb_translate(r, 0x1ffff0010, &gpa, &run, read_physical, NULL)); /* no paging: 32 bits */
    assert_int_equal(gpa, 0xffff0010);
    assert_int_equal(run, 4096 - 0x10);
    r->cr0 = 0x80000001;
    r->cr3 = 0x1000;
    entry(0x1000 + 4 * 0x300, 0x2001, 4); /* 0xc0000000: a table, its entry 5 */
    entry(0x2000 + 4 * 5, 0x7001, 4);
    entry(0x1000 + 4 * 0x301, 0x00800081, 4); /* 0xc0400000: 4 MiB */
    assert_true(hvx_gdb_translate(r, 0xc0005123, &gpa, &run, read_physical, NULL));
    assert_int_equal(gpa, 0x7123);
    assert_false(hvx_gdb_translate(r, 0xc0006000, &gpa, &run, read_physical, NULL));
    r->cr4 = 0x10;
    assert_true(hvx_gdb_translate(r, 0xc0412345, &gpa, &run, read_physical, NULL));
    assert_int_equal(gpa, 0x812345);
    r->cr4 = 0x20; /* PAE */
    r->cr3 = 0x3020;
    entry(0x3020 + 8 * 3, 0x4001, 8);
    entry(0x4000 + 8 * 1, 0x5001, 8);
    entry(0x5000 + 8 * 2, 0x8000000000009001, 8);
    assert_true(hvx_gdb_translate(r, 0xc0202abc, &gpa, &run, read_physical, NULL));
    assert_int_equal(gpa, 0x9abc);
    r->efer = 0x500; /* long mode */
    r->cr3 = 0x6000;
    entry(0x6000 + 8 * 511, 0x7001, 8);
    entry(0x7000 + 8 * 510, 0x8001, 8);
    entry(0x8000 + 8 * 8, 0x40000083, 8); /* 2 MiB */
    assert_true(hvx_gdb_translate(r, 0xffffffff81012345, &gpa, &run, read_physical, NULL));
    assert_int_equal(gpa, 0x40012345);
    assert_int_equal(run, 0x200000 - 0x12345);
    assert_false(hvx_gdb_translate(r, 0x1000, &gpa, &run, read_physical, NULL));
    r->cr3 = 0xfffff000; /* tables outside of memory */
    assert_false(hvx_gdb_translate(r, 0xffffffff81012345, &gpa, &run, read_physical, NULL));
    free(r);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(packets_are_checked_and_sent_again), T(a_packet_that_is_too_long_is_an_error),
        T(registers_are_read_and_written), T(the_description_comes_in_pieces),
        T(protected_mode_without_long_mode_is_i386), T(memory_is_read_and_written), T(points_reach_the_vm),
        T(threads_step_go_and_stay), T(control_c_detach_and_kill), T(addresses_are_translated_in_every_mode),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
