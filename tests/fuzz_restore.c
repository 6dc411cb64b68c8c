/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: the file of hvx save, all of it, into a VM with every plugin
 * that is there. An input is either such a file as it is, or changes to a good
 * one, five bytes each: which section, where in it, what to put there. Checksums
 * are taken for right, or nothing would ever get past them; a tenth of the
 * inputs keeps them. Then the board is used, and reset for the next.
 */
#define _GNU_SOURCE
#include "core/plugin/registry.h"
#include "core/vm/internal.h"
#include "core/vm/machine.h"
#include "core/vm/snapshot.h"

#include <fcntl.h>
#include <glob.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_SECTIONS 256u
#define DISK_BYTES (1u << 20)

/* One VM serves all inputs and lives to the end; what its plugins map is no root for the leak check. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "detect_leaks=0"; }

static struct hvx_machine *machine;
static struct hvx_vm *vm;
static char *fresh;
static size_t n_fresh;
static struct part {
    size_t at, head, bytes;
} parts[MAX_SECTIONS];
static unsigned n_parts;

/* --- a VM ------------------------------------------------------------------------- */

static void find_plugins(void)
{
    const char *build = getenv("top_builddir");
    char pattern[4096], all[65536] = "";
    glob_t g;

    if (getenv("HVX_PLUGIN_DIR"))
        return;
    snprintf(pattern, sizeof(pattern), "%s/plugins/*/.libs", build ? build : "..");
    if (glob(pattern, 0, NULL, &g))
        return;
    for (size_t i = 0; i < g.gl_pathc; i++)
        if (strlen(all) + strlen(g.gl_pathv[i]) + 2 < sizeof(all)) {
            strcat(all, all[0] ? ":" : "");
            strcat(all, g.gl_pathv[i]);
        }
    globfree(&g);
    setenv("HVX_PLUGIN_DIR", all, 1);
}

static void *loop_main(void *arg)
{
    hvx_loop_run(arg);
    return NULL;
}

static void empty_disk(char *spec, size_t n, const char *more)
{
    int fd = memfd_create("disk", 0);

    if (fd < 0 || ftruncate(fd, DISK_BYTES) < 0)
        abort();
    /* Read-only: a disk that a guest wrote to is refused ever after. */
    snprintf(spec, n, "/proc/self/fd/%d,format=raw,readonly=on%s", fd, more);
}

static void make_vm(void)
{
    static char disk[2][100];
    struct hvx_error err = {0};
    struct hvx_conf *conf;
    struct hvx_registry *reg;
    char why[400];
    pthread_t loop;
    struct hvx_machine_options o = {
        .vm = {.name = "fuzz", .n_vcpus = 2, .ram_bytes = HVX_VM_MIN_RAM, .cpu_model = "x86-64-v1"},
        .engine = "bt",
        .machine_option = {"vga=off"},
        .n_machine_options = 1,
        .disk = {disk[0], disk[1]},
        .n_disks = 2,
        .serial = {"null"},
        .n_serials = 1,
        .console = "null",
    };

    find_plugins();
    setenv("HVX_CONF", "/dev/null", 1);
    empty_disk(disk[0], sizeof(disk[0]), "");
    empty_disk(disk[1], sizeof(disk[1]), ",if=ide");
    hvx_log_set_level(HVX_LOG_ERROR - 1);
    if (hvx_conf_load(NULL, &conf, &err) < 0 || hvx_registry_new(conf, hvx_host_table(), &reg, &err) < 0 ||
        hvx_machine_new(reg, &o, &machine, why, sizeof(why), &err) < 0) {
        fprintf(stderr, "# %s\n", err.text);
        exit(77); /* plugins may be missing */
    }
    vm = hvx_machine_vm(machine);
    if (hvx_vm_vcpus_create(vm, &err) < 0 || pthread_create(&loop, NULL, loop_main, hvx_vm_loop(vm)))
        abort();
    vm->loop_running = true;
    hvx_vm_reset(vm);
}

static void find_sections(void)
{
    size_t at = 16;

    while (at + 10 < n_fresh && n_parts < MAX_SECTIONS) {
        struct part *p = &parts[n_parts++];
        uint32_t bytes;
        p->at = at;
        p->head = 2u + (uint8_t)fresh[at] + 8u;
        memcpy(&bytes, fresh + at + p->head - 4, 4);
        p->bytes = bytes;
        at += p->head + bytes + 4;
    }
}

static void save_fresh(void)
{
    struct hvx_error err = {0};
    struct hvx_save *s;
    FILE *f = open_memstream(&fresh, &n_fresh);
    int r;

    if (!f || hvx_save_begin(vm, f, "fuzz", &s, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    while ((r = hvx_save_step(s, &err)) == 1)
        ;
    hvx_save_end(s, true);
    if (r < 0 || fclose(f))
        abort();
    find_sections();
}

/* --- inputs --------------------------------------------------------------------------- */

static void change(char *state, const uint8_t *edit)
{
    /* Most changes go past "vm" and "cpu", which refuse nearly all of them. */
    const struct part *p = &parts[edit[0] < 16 || n_parts < 3 ? edit[0] % n_parts : 2 + edit[0] % (n_parts - 2)];
    size_t off = edit[1] | (size_t)edit[2] << 8 | (size_t)edit[3] << 16;

    if ((off & 15) == 15) { /* name, version, size */
        state[p->at + (off >> 4) % p->head] = (char)edit[4];
        return;
    }
    if (!p->bytes)
        return;
    /* Long ones are mostly buffers: begin and end are worth more. */
    if (off & 1)
        off = p->bytes - 1 - (off >> 4) % (p->bytes < 1024 ? p->bytes : 1024);
    else if (off & 2)
        off = (off >> 4) % (p->bytes < 1024 ? p->bytes : 1024);
    else
        off = (off >> 4) % p->bytes;
    state[p->at + p->head + off] = (char)edit[4];
}

static void use(void)
{
    static const uint16_t ports[] = {0x00, 0x40, 0x60, 0x70, 0xc0, 0x170, 0x1f0, 0x3f8, 0x510, 0x600, 0xc000};
    uint64_t v;

    hvx_loop_lock(vm->loop);
    for (unsigned i = 0; i < sizeof(ports) / sizeof(ports[0]); i++)
        for (unsigned k = 0; k < 16; k++) {
            hvx_space_read(&vm->pio, ports[i] + k, 1, &v);
            if (k % 8 == 0)
                hvx_space_write(&vm->pio, ports[i] + k, 1, &k);
        }
    for (unsigned i = 0; i < 64; i++) {
        hvx_space_read(&vm->pio, 0x1f0, 4, &v);
        hvx_space_read(&vm->mem, 0xfe000000u + i * 0x1000, 4, &v);
    }
    hvx_loop_unlock(vm->loop);
}

static void restore(void *data, size_t n, bool skip_sums)
{
    struct hvx_error err = {0};
    struct hvx_restore *r;
    FILE *f = fmemopen(data, n, "r");

    if (!f)
        return; /* an empty input */
    if (hvx_restore_open_stream(f, "fuzz", skip_sums, &r, &err) < 0)
        return;
    if (hvx_restore_load(r, vm, &err) == 0)
        use();
    else if (getenv("HVXTEST_VERBOSE"))
        fprintf(stderr, "# %s\n", err.text);
    hvx_restore_close(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    char *state;

    if (!vm) {
        make_vm();
        save_fresh();
    }
    if (n && data[0] == 'H') { /* a file as it is */
        state = malloc(n);
        memcpy(state, data, n);
        restore(state, n, true);
        restore(state, n, false);
    } else {
        state = malloc(n_fresh);
        memcpy(state, fresh, n_fresh);
        for (size_t i = 1; i + 5 <= n && i < 1000; i += 5)
            change(state, data + i);
        restore(state, n_fresh - (n && data[0] % 16 == 1 ? data[0] : 0), !n || data[0] % 10);
    }
    free(state);
    hvx_vm_reset(vm);
    return 0;
}
