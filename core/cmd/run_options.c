/* SPDX-License-Identifier: Apache-2.0
 *
 * core/cmd/run_options.c - the command line of `hvx run`. One table is the
 * parser's and the help's.
 */
#define _GNU_SOURCE
#include "core/cmd/commands.h"
#include "core/cmd/run.h"
#include "core/vm/control.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    O_NAME = 256, O_CPUS, O_MEMORY, O_DISK, O_CDROM, O_KERNEL, O_INITRD, O_APPEND, O_FIRMWARE, O_UEFI_VARS, O_BOOT,
    O_MACHINE, O_MACHINE_OPTION, O_NET, O_DEVICE, O_SERIAL, O_CONSOLE, O_DISPLAY, O_ENGINE, O_ENGINE_OPTION, O_CPU,
    O_NO_REBOOT, O_RESTORE, O_NO_DEFAULTS, O_DEBUG_EXIT, O_CONFIG, O_NO_CONTROL, O_NO_CONFINEMENT,
    O_GDB, O_GDB_WAIT,
    O_QUIET, O_VERBOSE, O_HELP,
};

static const struct {
    int id;
    const char *name, *value, *help; /* value NULL: a flag; "[X]": optional */
} table[] = {
    {O_NAME, "name", "NAME", "name for hvx ps, stop, stat (default: the disk's or kernel's)"},
    {O_CPUS, "cpus", "N", "number of vCPUs, 1 to 64 (default 1)"},
    {O_MEMORY, "memory", "SIZE", "guest memory, such as 512M or 2G (default 1G)"},
    {O_DISK, "disk", "PATH[,KEY=VALUE...]", "add a disk; format=raw|qcow2, if=TYPE, cache=writeback|none|unsafe, "
                                            "snapshot=on, readonly=on, serial=TEXT"},
    {O_CDROM, "cdrom", "ISO", "put an ISO image into the CD-ROM drive"},
    {O_KERNEL, "kernel", "FILE", "boot this Linux kernel or multiboot file directly"},
    {O_INITRD, "initrd", "FILE", "initial RAM disk, with --kernel"},
    {O_APPEND, "append", "TEXT", "kernel command line, with --kernel"},
    {O_FIRMWARE, "firmware", "bios|uefi|FILE", "firmware (default bios, which is SeaBIOS; uefi is OVMF)"},
    {O_UEFI_VARS, "uefi-vars", "FILE", "where UEFI's variables are kept (default with --name: a file of that name)"},
    {O_BOOT, "boot", "ORDER", "boot order of letters: c disk, d CD-ROM, n network"},
    {O_MACHINE, "machine", "TYPE", "board (default: the best enabled one)"},
    {O_MACHINE_OPTION, "machine-option", "KEY=VALUE,...", "options of the board"},
    {O_NET, "net", "SPEC", "network card: none, user[,hostfwd=tcp::2222-:22], tap[,ifname=NAME] (default user)"},
    {O_DEVICE, "device", "TYPE[,KEY=VALUE...]", "add a device; hvx plugin show PLUGIN lists the types"},
    {O_SERIAL, "serial", "SPEC", "serial line: stdio, null, file:PATH, unix:PATH; repeat for more (default stdio)"},
    {O_CONSOLE, "console", "SPEC", "paravirtual console, likewise (default: none)"},
    {O_DISPLAY, "display", "none", "only none: hvx screendump saves the picture"},
    {O_ENGINE, "engine", "NAME|auto", "execution engine (default auto: the first of the ranking that works)"},
    {O_ENGINE_OPTION, "engine-option", "KEY=VALUE,...", "options of the engine"},
    {O_CPU, "cpu", "MODEL[,+F,-F...]", "processor shown to the guest (default host); --cpu help lists the models"},
    {O_RESTORE, "restore", "FILE", "go on where hvx save has saved this VM; give its other options as then"},
    {O_NO_REBOOT, "no-reboot", NULL, "end instead of resetting"},
    {O_NO_DEFAULTS, "no-defaults", NULL, "no network card and RNG that was not asked for"},
    {O_DEBUG_EXIT, "debug-exit", "[PORT]", "let the guest end hvx by a port write, with status VALUE * 2 + 1"},
    {O_CONFIG, "config", "FILE", "read this hvx.conf"},
    {O_NO_CONTROL, "no-control", NULL, "no control socket: hvx ps does not see this VM"},
    {O_NO_CONFINEMENT, "no-confinement", NULL, "dangerous: leave the process all its privileges and system calls"},
    {O_GDB, "gdb", "PORT|HOST:PORT|unix:PATH", "let gdb debug the guest (host: 127.0.0.1); ,arch=i386|x86-64"},
    {O_GDB_WAIT, "gdb-wait", NULL, "with --gdb: no instruction before gdb says so"},
    {O_QUIET, "quiet", NULL, "print only errors"},
    {O_VERBOSE, "verbose", NULL, "print more"},
    {O_HELP, "help", NULL, "print this"},
};
#define N_OPTIONS (sizeof(table) / sizeof(table[0]))

static void help(void)
{
    printf("Usage: hvx run [OPTION]... [DISK]\n"
           "Boot a disk image or a kernel as a virtual machine, its serial line on the terminal.\n\n");
    for (size_t i = 0; i < N_OPTIONS; i++) {
        char left[64];
        const char *v = table[i].value;
        if (!v)
            snprintf(left, sizeof(left), "--%s", table[i].name);
        else if (v[0] == '[')
            snprintf(left, sizeof(left), "--%s[=%.*s]", table[i].name, (int)strlen(v) - 2, v + 1);
        else
            snprintf(left, sizeof(left), "--%s %s", table[i].name, v);
        if (strlen(left) > 26)
            printf("  %s\n  %-26s %s\n", left, "", table[i].help);
        else
            printf("  %-26s %s\n", left, table[i].help);
    }
    printf("\nOn the terminal ^] leaves and ends the VM; press it twice to send one to the guest.\n"
           "Exit status: 0 the guest powered off, 1 the host side failed, 2 wrong usage, 3 the guest panicked,\n"
           "4 the engine failed, 5 triple fault with --no-reboot, 6 ended from outside,\n"
           "7 saved by hvx save.\n");
}

static int bad(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static int bad(const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "hvx run: ");
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\n");
    return HVX_RUN_EXIT + HVX_STATUS_USAGE;
}

static int push(const char **list, unsigned *n, unsigned max, const char *value, const char *what)
{
    if (*n == max)
        return bad("--%s can be given %u times at most", what, max);
    list[(*n)++] = value;
    return 0;
}

static int set_cpus(struct hvx_run_options *o, const char *text)
{
    char *end;
    unsigned long v = strtoul(text, &end, 10);

    if (!text[0] || *end || v < 1 || v > HVX_MAX_VCPUS)
        return bad("--cpus %s: say a number from 1 to %u", text, HVX_MAX_VCPUS);
    o->machine.vm.n_vcpus = (unsigned)v;
    return 0;
}

static int set_memory(struct hvx_run_options *o, const char *text)
{
    int64_t v;

    if (hvx_parse_size(text, &v) < 0)
        return bad("--memory %s: not a size; say for instance 512M or 2G", text);
    if (v < (int64_t)HVX_VM_MIN_RAM)
        return bad("--memory %s: too little; a VM needs at least %lluM (a plain number is in bytes)", text,
                   HVX_VM_MIN_RAM >> 20);
    if (v > (int64_t)HVX_VM_MAX_RAM)
        return bad("--memory %s: too much; at most %lluG", text, HVX_VM_MAX_RAM >> 30);
    o->machine.vm.ram_bytes = (uint64_t)v;
    return 0;
}

static int apply(struct hvx_run_options *o, int id, const char *v)
{
    struct hvx_machine_options *m = &o->machine;

    switch (id) {
    case O_NAME:
        if (!hvx_control_name_ok(v))
            return bad("--name %s: use up to %u letters, digits, '.', '_', '-'", v, HVX_CONTROL_MAX_NAME);
        snprintf(o->name, sizeof(o->name), "%s", v);
        o->name_given = true;
        return 0;
    case O_CPUS: return set_cpus(o, v);
    case O_MEMORY: return set_memory(o, v);
    case O_DISK: return push(m->disk, &m->n_disks, HVX_MACHINE_MAX, v, "disk");
    case O_NET: return push(m->net, &m->n_nets, HVX_MACHINE_MAX, v, "net");
    case O_DEVICE: return push(m->device, &m->n_devices, HVX_MACHINE_MAX, v, "device");
    case O_SERIAL: return push(m->serial, &m->n_serials, 4, v, "serial");
    case O_ENGINE_OPTION: return push(m->engine_option, &m->n_engine_options, HVX_MACHINE_MAX, v, "engine-option");
    case O_MACHINE_OPTION: return push(m->machine_option, &m->n_machine_options, HVX_MACHINE_MAX, v, "machine-option");
    case O_CDROM: m->cdrom = v; return 0;
    case O_KERNEL: m->vm.kernel = v; return 0;
    case O_INITRD: m->vm.initrd = v; return 0;
    case O_APPEND: m->vm.append = v; return 0;
    case O_FIRMWARE: m->vm.firmware = v; return 0;
    case O_UEFI_VARS: m->uefi_vars = v; return 0;
    case O_BOOT:
        if (!v[0] || v[strspn(v, "acdn")])
            return bad("--boot %s: use the letters c (disk), d (CD-ROM), n (network)", v);
        m->vm.boot_order = v;
        return 0;
    case O_MACHINE: m->machine = v; return 0;
    case O_CONSOLE: m->console = v; return 0;
    case O_DISPLAY:
        return strcmp(v, "none") ? bad("--display %s: only none is there; hvx screendump saves the picture", v) : 0;
    case O_ENGINE: m->engine = v; return 0;
    case O_CPU:
        m->vm.cpu_model = v;
        o->cpu_help = !strcmp(v, "help");
        return 0;
    case O_RESTORE: o->restore = v; return 0;
    case O_NO_REBOOT: o->no_reboot = true; return 0;
    case O_NO_DEFAULTS: m->no_defaults = true; return 0;
    case O_DEBUG_EXIT: m->debug_exit = v ? v : ""; return 0;
    case O_CONFIG: o->config = v; return 0;
    case O_NO_CONTROL: o->no_control = true; return 0;
    case O_NO_CONFINEMENT: o->no_confinement = true; return 0;
    case O_GDB: o->gdb = v; return 0;
    case O_GDB_WAIT: o->gdb_wait = true; return 0;
    case O_QUIET: o->quiet = true; o->log_level = HVX_LOG_ERROR; return 0;
    case O_VERBOSE: o->log_level = HVX_LOG_DEBUG; return 0;
    default: return 0;
    }
}

/* "debian" from "/images/debian.qcow2,snapshot=on". */
static void default_name(struct hvx_run_options *o)
{
    const char *from = o->machine.n_disks ? o->machine.disk[0]
                       : o->machine.vm.kernel ? o->machine.vm.kernel
                       : o->machine.cdrom     ? o->machine.cdrom
                                              : "vm";
    char path[4096], *base, *dot;

    if (!strncmp(from, "file=", 5))
        from += 5;
    snprintf(path, sizeof(path), "%.*s", (int)strcspn(from, ","), from);
    base = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    dot = strrchr(base, '.');
    if (dot && dot > base)
        *dot = 0;
    snprintf(o->name, sizeof(o->name), "%.32s", base);
    if (!hvx_control_name_ok(o->name))
        snprintf(o->name, sizeof(o->name), "vm-%d", (int)getpid());
}

/* A VM that a person has named keeps its variables. One whose name was made up
 * does not: the next one of that name may be another. */
static int default_vars(struct hvx_run_options *o)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char path[4096], *slash;
    int n;

    if (state && state[0] == '/')
        n = snprintf(path, sizeof(path), "%s/hvx/%s.uefi-vars", state, o->name);
    else if (geteuid() == 0)
        n = snprintf(path, sizeof(path), "/var/lib/hvx/%s.uefi-vars", o->name);
    else if (home && home[0] == '/')
        n = snprintf(path, sizeof(path), "%s/.local/state/hvx/%s.uefi-vars", home, o->name);
    else
        return bad("no place for the UEFI variables: HOME is not set; name a file with --uefi-vars");
    if (n < 0 || (size_t)n >= sizeof(path))
        return bad("the path for the UEFI variables is too long; name a file with --uefi-vars");
    for (slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        if (mkdir(path, 0700) < 0 && errno != EEXIST)
            return bad("the folder %s for the UEFI variables: %s; name a file with --uefi-vars", path,
                       strerror(errno)) - HVX_STATUS_USAGE + HVX_STATUS_FAILED;
        *slash = '/';
    }
    o->owned[0] = strdup(path);
    o->machine.uefi_vars = o->owned[0];
    return o->owned[0] ? 0 : bad("out of memory");
}

static int check(struct hvx_run_options *o)
{
    struct hvx_machine_options *m = &o->machine;
    bool word = m->vm.firmware && (!strcmp(m->vm.firmware, "bios") || !strcmp(m->vm.firmware, "uefi"));
    const char *files[] = {m->vm.kernel, m->vm.initrd, word ? NULL : m->vm.firmware};

    if (o->cpu_help)
        return HVX_RUN_EXIT + hvx_cpu_help(o->config, m->engine);
    if (!m->n_disks && !m->vm.kernel && !m->cdrom && !m->vm.firmware)
        return bad("nothing to boot: name a disk image, or --kernel FILE, or --cdrom ISO (--help explains)");
    if (!m->vm.kernel && (m->vm.initrd || m->vm.append))
        return bad("--%s needs --kernel", m->vm.initrd ? "initrd" : "append");
    for (unsigned i = 0; i < 3; i++)
        if (files[i] && access(files[i], R_OK) < 0)
            return bad("%s: %s", files[i], strerror(errno)) - HVX_STATUS_USAGE + HVX_STATUS_FAILED;
    if (m->uefi_vars && (m->vm.kernel || !m->vm.firmware || !strcmp(m->vm.firmware, "bios")))
        return bad("--uefi-vars needs UEFI firmware: add --firmware uefi");
    if (o->gdb_wait && !o->gdb)
        return bad("--gdb-wait needs --gdb");
    if (!m->n_serials)
        m->serial[m->n_serials++] = m->console && !strcmp(m->console, "stdio") ? "null" : "stdio";
    if (!m->n_nets && !m->no_defaults)
        m->net[m->n_nets++] = "user";
    if (!o->name_given)
        default_name(o);
    m->vm.name = o->name;
    if (o->name_given && word && !strcmp(m->vm.firmware, "uefi") && !m->vm.kernel && !m->uefi_vars)
        return default_vars(o);
    return 0;
}

int hvx_run_parse(int argc, char **argv, struct hvx_run_options *o)
{
    struct option longs[N_OPTIONS + 1];
    int id, r;

    memset(o, 0, sizeof(*o));
    memset(longs, 0, sizeof(longs));
    o->machine.vm.n_vcpus = 1;
    o->machine.vm.ram_bytes = 1ull << 30;
    o->machine.engine = "auto";
    o->log_level = HVX_LOG_INFO;
    for (size_t i = 0; i < N_OPTIONS; i++) {
        longs[i].name = table[i].name;
        longs[i].val = table[i].id;
        longs[i].has_arg = !table[i].value            ? no_argument
                           : table[i].value[0] == '[' ? optional_argument
                                                      : required_argument;
    }
    optind = 1;
    opterr = 0;
    while ((id = getopt_long(argc, argv, ":", longs, NULL)) != -1) {
        if (id == O_HELP) {
            help();
            return HVX_RUN_EXIT + HVX_STATUS_OK;
        }
        if (id == '?')
            return bad("no option '%s'; --help lists them", argv[optind - 1]);
        if (id == ':')
            return bad("option '%s' needs a value", argv[optind - 1]);
        r = apply(o, id, optarg);
        if (r)
            return r;
    }
    for (; optind < argc; optind++) {
        r = push(o->machine.disk, &o->machine.n_disks, HVX_MACHINE_MAX, argv[optind], "disk");
        if (r)
            return r;
    }
    return check(o);
}
