/* SPDX-License-Identifier: Apache-2.0
 *
 * pc.c - the board as a device type: options, assembly, firmware, reset and
 * state of all parts in one fixed order.
 */
#include "pc.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define DEFAULT_FIRMWARE "/usr/share/seabios/bios-256k.bin"
#define DEFAULT_VGA_ROM "/usr/share/seabios/vgabios-stdvga.bin"
#define FIRMWARE_MAX (16u << 20)
#define FIRMWARE_LOW_BYTES 0x20000u
#define PAGE 4096u

static const struct hvx_option pc_options[] = {
    {.name = "firmware", .type = HVX_OPT_STRING,
     .help = "bios, uefi (OVMF, of the package ovmf) or an image; default: bios, " DEFAULT_FIRMWARE},
    {.name = "uefi-vars", .type = HVX_OPT_STRING,
     .help = "file that keeps UEFI's variables, made when it is missing; default: they end with the VM"},
    {.name = "vga", .type = HVX_OPT_BOOL, .def = "on", .help = "standard VGA with 16 MiB"},
    {.name = "vga-rom", .type = HVX_OPT_STRING, .def = DEFAULT_VGA_ROM, .help = "VGA BIOS image"},
    {.name = "serial", .type = HVX_OPT_INT, .min = 0, .max = PC_MAX_SERIAL, .def = "2",
     .help = "number of serial ports, COM1 to COM4"},
    {.name = "ide0", .type = HVX_OPT_STRING, .help = "drive of the first channel's master, such as disk0"},
    {.name = "ide1", .type = HVX_OPT_STRING, .help = "drive of the first channel's slave"},
    {.name = "ide2", .type = HVX_OPT_STRING, .help = "drive of the second channel's master"},
    {.name = "ide3", .type = HVX_OPT_STRING, .help = "drive of the second channel's slave"},
    {.name = "hpet", .type = HVX_OPT_BOOL, .def = "on", .help = "high precision event timers"},
    {.name = "acpi", .type = HVX_OPT_BOOL, .def = "on", .help = "ACPI tables"},
    {.name = "pvpanic", .type = HVX_OPT_BOOL, .def = "on",
     .help = "port 0x505, by which a guest says that it panicked"},
    {.name = "debugcon", .type = HVX_OPT_INT, .min = 0, .max = 0xffff, .def = "0x402",
     .help = "port of firmware's debug console; 0: none"},
    {.name = "debugcon-chr", .type = HVX_OPT_STRING, .def = "debugcon",
     .help = "character stream of the debug console, such as serial1 when there is just one serial port"},
    {.name = "debug-exit", .type = HVX_OPT_INT, .min = 0, .max = 0xfffe, .def = "0",
     .help = "first port of a built-in isa-debug-exit; 0: none"},
    {.name = NULL},
};

/* --- firmware ----------------------------------------------------------------------- */
/* Mapped below 4 GiB; its last 128 KiB also below 1 MiB, under the shadow RAM of the PAM registers. */
static int firmware_map(struct pc *pc, const char *path, struct hvx_error *err)
{
    struct pc_buf b = {0};
    int rc = pc_buf_file(&b, path, FIRMWARE_MAX, "firmware (package seabios)", err);
    if (rc)
        return rc;
    if (b.len % PAGE) {
        rc = hvx_fail(err, -EINVAL,
                      "firmware %s: its %zu bytes are no multiple of 4096; it is cut short or no firmware",
                      path, b.len);
        pc_buf_free(&b);
        return rc;
    }
    void *p = mmap(NULL, b.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        pc_buf_free(&b);
        return hvx_fail(err, -ENOMEM, "firmware %s: no memory for it", path);
    }
    memcpy(p, b.data, b.len);
    pc->firmware = p;
    pc->firmware_bytes = b.len;
    pc_buf_free(&b);

    size_t low = pc->firmware_bytes < FIRMWARE_LOW_BYTES ? pc->firmware_bytes : FIRMWARE_LOW_BYTES;
    rc = pc->host->mem_map(pc->vm, (1ull << 32) - pc->firmware_bytes, pc->firmware_bytes, p, true, "firmware",
                           &pc->firmware_high, err);
    if (rc == 0)
        rc = pc->host->mem_map(pc->vm, 0x100000 - low, low, (uint8_t *)p + pc->firmware_bytes - low, true,
                               "firmware-low", &pc->firmware_low, err);
    return rc;
}

/* Code and, below it, a flash chip with variables. */
static int uefi_create(struct pc *pc, const char *code, const char *template, struct hvx_error *err)
{
    struct uefi_vars *vars = NULL;
    int rc = uefi_vars_open(pc->conf.uefi_vars, template, &vars, err);
    if (rc)
        return rc;
    rc = firmware_map(pc, code, err);
    if (rc) {
        uefi_vars_close(vars);
        return rc;
    }
    if (!pc->conf.uefi_vars)
        pc->host->log(HVX_LOG_INFO, "pc", "UEFI variables are forgotten at the end: no file was named for them");
    return pflash_create(pc, (1ull << 32) - pc->firmware_bytes, vars, &pc->pflash, err);
}

static int firmware_create(struct pc *pc, struct hvx_error *err)
{
    const char *path = pc->conf.firmware ? pc->conf.firmware : pc->info.firmware;
    char template[4096];
    int rc;

    if (path && !strcmp(path, "uefi")) {
        struct uefi_files pair;
        rc = uefi_pair(pc->conf.uefi_vars, &pair, err);
        return rc ? rc : uefi_create(pc, pair.code, pair.vars, err);
    }
    if (!path || !path[0] || !strcmp(path, "bios"))
        path = DEFAULT_FIRMWARE;
    if (!pc->conf.uefi_vars)
        return firmware_map(pc, path, err);
    rc = uefi_template_of(path, template, sizeof(template), err);
    return rc ? rc : uefi_create(pc, path, template, err);
}

/* --- assembly ------------------------------------------------------------------------ */
static char *copy_string(const char *s)
{
    return s && s[0] ? strdup(s) : NULL;
}

static void read_config(struct pc *pc, const struct hvx_config *c)
{
    const struct hvx_host *host = pc->host;
    pc->conf = (struct pc_config){
        .vga = host->conf_bool(c, "vga"),
        .hpet = host->conf_bool(c, "hpet"),
        .acpi = host->conf_bool(c, "acpi"),
        .pvpanic = host->conf_bool(c, "pvpanic"),
        .n_serial = (unsigned)host->conf_int(c, "serial"),
        .firmware = copy_string(host->conf_string(c, "firmware")),
        .uefi_vars = copy_string(host->conf_string(c, "uefi-vars")),
        .vga_rom = copy_string(host->conf_string(c, "vga-rom")),
        .debugcon_chr = copy_string(host->conf_string(c, "debugcon-chr")),
        .debugcon_port = (unsigned)host->conf_int(c, "debugcon"),
        .debug_exit_port = (unsigned)host->conf_int(c, "debug-exit"),
    };
    pc->info.size = sizeof(pc->info);
    host->guest_info(pc->vm, &pc->info);
    pc->direct = pc->info.kernel && pc->info.kernel[0];
}

static int create_drives(struct pc *pc, const struct hvx_config *c, struct hvx_error *err)
{
    static const char *const names[PC_N_IDE] = {"ide0", "ide1", "ide2", "ide3"};
    const char *ids[PC_N_IDE];
    for (unsigned i = 0; i < PC_N_IDE; i++) {
        const char *id = pc->host->conf_string(c, names[i]);
        ids[i] = id && id[0] ? id : NULL;
    }
    return ide_create(pc, ids, &pc->ide, err);
}

/* Parts in the order in which they depend on one another. */
static int create_parts(struct pc *pc, const struct hvx_config *c, struct hvx_error *err)
{
    int rc = i440fx_create(pc, &pc->i440fx, err);
    if (rc == 0)
        rc = piix3_create(pc, &pc->piix3, err);
    if (rc == 0)
        rc = create_drives(pc, c, err);
    if (rc == 0)
        rc = piix4_pm_create(pc, &pc->pm, err);
    if (rc == 0)
        rc = pit_create(pc, &pc->pit, err);
    if (rc == 0)
        rc = rtc_create(pc, &pc->rtc, err);
    if (rc == 0 && pc->conf.hpet)
        rc = hpet_create(pc, &pc->hpet, err);
    if (rc == 0)
        rc = dma8237_create(pc, &pc->dma, err);
    if (rc == 0)
        rc = i8042_create(pc, &pc->i8042, err);
    for (unsigned i = 0; i < pc->conf.n_serial && rc == 0; i++)
        rc = uart_create(pc, i, &pc->uart[i], err);
    if (rc == 0 && pc->conf.vga)
        rc = vga_create(pc, &pc->vga, err);
    if (rc == 0)
        rc = fw_cfg_create(pc, &pc->fw_cfg, err);
    if (rc == 0 && pc->conf.debugcon_port)
        rc = debugcon_create(pc, pc->conf.debugcon_port, &pc->debugcon, err);
    if (rc == 0 && pc->conf.pvpanic)
        rc = pvpanic_create(pc->host, pc->vm, &pc->pvpanic, err);
    if (rc == 0 && pc->conf.debug_exit_port)
        rc = debug_exit_create(pc->host, pc->vm, pc->conf.debug_exit_port, &pc->debug_exit, err);
    if (rc == 0 && pc->conf.acpi)
        rc = acpi_hotplug_create(pc, &pc->hotplug, err);
    if (rc == 0)
        rc = fw_files_create(pc, err);
    if (rc == 0)
        rc = pc->direct ? boot_create(pc, err) : firmware_create(pc, err);
    return rc;
}

static void pc_destroy(void *dev)
{
    struct pc *pc = dev;
    if (!pc)
        return;
    for (unsigned i = 0; i < pc->n_regions; i++)
        pc->host->region_del(pc->vm, pc->regions[i]);
    boot_destroy(pc);
    pflash_destroy(pc->pflash);
    if (pc->firmware_low)
        pc->host->region_del(pc->vm, pc->firmware_low);
    if (pc->firmware_high)
        pc->host->region_del(pc->vm, pc->firmware_high);
    if (pc->firmware)
        munmap(pc->firmware, pc->firmware_bytes);
    acpi_hotplug_destroy(pc->hotplug);
    debug_exit_destroy(pc->debug_exit);
    pvpanic_destroy(pc->pvpanic);
    debugcon_destroy(pc->debugcon);
    fw_cfg_destroy(pc->fw_cfg);
    vga_destroy(pc->vga);
    for (unsigned i = 0; i < PC_MAX_SERIAL; i++)
        uart_destroy(pc->uart[i]);
    i8042_destroy(pc->i8042);
    dma8237_destroy(pc->dma);
    hpet_destroy(pc->hpet);
    rtc_destroy(pc->rtc);
    pit_destroy(pc->pit);
    piix4_pm_destroy(pc->pm);
    ide_destroy(pc->ide);
    piix3_destroy(pc->piix3);
    i440fx_destroy(pc->i440fx);
    free(pc->conf.firmware);
    free(pc->conf.uefi_vars);
    free(pc->conf.vga_rom);
    free(pc->conf.debugcon_chr);
    free(pc);
}

static int pc_create(void *plugin_ctx, struct hvx_vm *vm, const struct hvx_config *config, void **dev,
                     struct hvx_error *err)
{
    struct pc *pc = calloc(1, sizeof(*pc));
    if (!pc)
        return hvx_fail(err, -ENOMEM, "pc: no memory for the board");
    pc->host = pc_host_of(plugin_ctx);
    pc->vm = vm;
    read_config(pc, config);
    int rc = create_parts(pc, config, err);
    if (rc) {
        pc_destroy(pc);
        return rc;
    }
    *dev = pc;
    return 0;
}

static void pc_reset(void *dev)
{
    struct pc *pc = dev;
    struct hvx_error err;
    i440fx_reset(pc->i440fx);
    piix3_reset(pc->piix3);
    ide_reset(pc->ide);
    piix4_pm_reset(pc->pm);
    pit_reset(pc->pit);
    rtc_reset(pc->rtc);
    if (pc->hpet)
        hpet_reset(pc->hpet);
    dma8237_reset(pc->dma);
    i8042_reset(pc->i8042);
    for (unsigned i = 0; i < pc->conf.n_serial; i++)
        uart_reset(pc->uart[i]);
    if (pc->vga)
        vga_reset(pc->vga);
    fw_cfg_reset(pc->fw_cfg);
    if (pc->hotplug)
        acpi_hotplug_reset(pc->hotplug);
    if (pc->pflash)
        pflash_reset(pc->pflash);
    if (pc->direct && boot_start(pc, &err))
        pc->host->log(HVX_LOG_ERROR, "pc", "%s", err.text);
}

static int pc_state(void *dev, struct hvx_stream *s)
{
    struct pc *pc = dev;
    i440fx_state(pc->i440fx, s);
    piix3_state(pc->piix3, s);
    ide_state(pc->ide, s);
    piix4_pm_state(pc->pm, s);
    pit_state(pc->pit, s);
    rtc_state(pc->rtc, s);
    if (pc->hpet)
        hpet_state(pc->hpet, s);
    dma8237_state(pc->dma, s);
    i8042_state(pc->i8042, s);
    for (unsigned i = 0; i < pc->conf.n_serial; i++)
        uart_state(pc->uart[i], s);
    if (pc->vga)
        vga_state(pc->vga, s);
    fw_cfg_state(pc->fw_cfg, s);
    if (pc->hotplug)
        acpi_hotplug_state(pc->hotplug, s);
    if (pc->pflash)
        pflash_state(pc->pflash, s);
    return hvx_state_error(s);
}

static bool pc_quiesced(void *dev)
{
    return ide_quiesced(((struct pc *)dev)->ide);
}

const struct hvx_device_type pc_type = {
    .size = sizeof(pc_type),
    .role = HVX_ROLE_MACHINE,
    .rank = 10,
    .version = 1,
    .name = "pc",
    .summary = "i440fx board: IDE, timers, serial lines, keyboard and mouse, VGA, firmware or a kernel",
    .options = pc_options,
    .create = pc_create,
    .destroy = pc_destroy,
    .reset = pc_reset,
    .state = pc_state,
    .quiesced = pc_quiesced,
};
