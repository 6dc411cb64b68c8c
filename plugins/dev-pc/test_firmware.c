/* SPDX-License-Identifier: Apache-2.0
 *
 * test_firmware.c - what firmware sees: PCI configuration, shadow RAM,
 * interrupt routing, fw_cfg, ACPI and SMBIOS; and the board as a whole:
 * failures at creation, saved state.
 */
#include "test_board.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int setup(void **state)
{
    static struct board b;
    struct hvx_vm *vm = hvxtest_new(&(struct hvxtest_params){.ram_below_4g = BOARD_RAM, .n_vcpus = 3});
    board_new(&b, vm, NULL);
    *state = &b;
    return 0;
}

static int teardown(void **state)
{
    board_free(*state);
    return 0;
}

/* --- PCI ------------------------------------------------------------------------- */
static void functions_of_the_board(void **state)
{
    static const struct {
        uint8_t devfn;
        uint32_t id, class_code;
    } expect[] = {{0x00, 0x12378086, 0x060000}, {0x08, 0x70008086, 0x060100}, {0x09, 0x70108086, 0x010180},
                  {0x0b, 0x71138086, 0x068000}, {0x10, 0x11111234, 0x030000}};
    struct board *b = *state;
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(board_cfg_read(b, expect[i].devfn, 0, 4), expect[i].id);
        assert_int_equal(board_cfg_read(b, expect[i].devfn, 8, 4) >> 8, expect[i].class_code);
        assert_int_equal(board_cfg_read(b, expect[i].devfn, 0x2c, 4), 0x11001af4);
    }
    assert_int_equal(board_cfg_read(b, 0x18, 0, 4), 0xffffffff);
    assert_int_equal(board_cfg_read(b, 0x08, 0x0e, 1) & 0x80, 0x80);
}

static void configuration_address_needs_a_dword(void **state)
{
    struct board *b = *state;
    out32(b, 0xcf8, 0x80000800);
    assert_int_equal(in32(b, 0xcf8), 0x80000800);
    out8(b, 0xcf8, 0xff);
    out16(b, 0xcf8, 0xffff);
    assert_int_equal(in32(b, 0xcf8), 0x80000800);
    out32(b, 0xcf8, 0x00000800); /* not enabled */
    assert_int_equal(in32(b, 0xcfc), 0xffffffff);
}

static void pam_switches_between_rom_and_ram(void **state)
{
    struct board *b = *state;
    uint8_t *ram = hvxtest_ram(b->vm);
    memset(ram + 0xe0000, 0x11, 0x20000);
    uint64_t rom = hvxtest_mmio_read(b->vm, 0xf0000, 4);
    assert_int_not_equal(rom, 0x11111111);
    assert_int_equal(rom, hvxtest_mmio_read(b->vm, 0xffff0000, 4));
    hvxtest_mmio_write(b->vm, 0xf0000, 4, 0);
    assert_int_equal(hvxtest_mmio_read(b->vm, 0xf0000, 4), rom);
    board_cfg_write(b, 0, 0x59, 1, 0x30); /* 0xf0000: RAM */
    assert_int_equal(hvxtest_mmio_read(b->vm, 0xf0000, 4), 0x11111111);
    hvxtest_mmio_write(b->vm, 0xf0000, 4, 0x22222222);
    assert_int_equal(hvxtest_mmio_read(b->vm, 0xf0000, 4), 0x22222222);
    board_cfg_write(b, 0, 0x59, 1, 0x10); /* read-only RAM */
    hvxtest_mmio_write(b->vm, 0xf0000, 4, 0);
    assert_int_equal(hvxtest_mmio_read(b->vm, 0xf0000, 4), 0x22222222);
    board_cfg_write(b, 0, 0x5f, 1, 0x03); /* 0xe8000 stays ROM, 0xe0000.. has its own registers */
    assert_int_equal(hvxtest_mmio_read(b->vm, 0xe8000, 4), 0x11111111);
    assert_int_not_equal(hvxtest_mmio_read(b->vm, 0xec000, 4), 0x11111111);
    b->type->reset(b->dev);
    assert_int_equal(hvxtest_mmio_read(b->vm, 0xf0000, 4), rom);
}

static void pirq_routing_follows_its_registers(void **state)
{
    struct board *b = *state;
    struct hvx_pci_desc desc = {.size = sizeof(desc), .devfn = 3 << 3, .vendor = 1, .device = 2, .irq_pin = 1};
    struct hvx_pci_dev *d;
    struct hvx_error err;
    assert_int_equal(hvxtest_host()->pci_add(b->vm, &desc, NULL, NULL, &d, &err), 0);
    hvxtest_host()->pci_set_irq(d, true);
    assert_false(hvxtest_irq_level(b->vm, 10)); /* not routed after reset */
    board_cfg_write(b, 0x08, 0x62, 1, 11); /* slot 3 INTA is PIRQ C */
    assert_true(hvxtest_irq_level(b->vm, 11));
    board_cfg_write(b, 0x08, 0x62, 1, 10);
    assert_false(hvxtest_irq_level(b->vm, 11));
    assert_true(hvxtest_irq_level(b->vm, 10));
    hvxtest_host()->pci_set_irq(d, false);
    assert_false(hvxtest_irq_level(b->vm, 10));
    hvxtest_host()->pci_del(b->vm, d);
}

static void cmos_tells_memory_and_processors(void **state)
{
    struct board *b = *state;
    static const uint8_t expect[][2] = {{0x15, 0x80}, {0x16, 0x02}, {0x17, 0x00}, {0x18, 0x3c}, {0x34, 0}, {0x5f, 2},
                                        {0x3d, 0x32}, {0x38, 0x41}};
    for (unsigned i = 0; i < 8; i++) {
        out8(b, 0x70, expect[i][0]);
        assert_int_equal(in8(b, 0x71), expect[i][1]);
    }
}

/* --- fw_cfg ------------------------------------------------------------------------ */
static void fw_read(struct board *b, uint16_t key, void *to, unsigned n)
{
    out16(b, 0x510, key);
    for (unsigned i = 0; i < n; i++)
        ((uint8_t *)to)[i] = in8(b, 0x511);
}

/* Key and size of a file, by the directory. */
static uint16_t fw_find(struct board *b, const char *name, uint32_t *size)
{
    struct {
        uint32_t size;
        uint16_t key, reserved;
        char name[56];
    } entry;
    uint32_t n;
    fw_read(b, 0x19, &n, 4);
    n = be32toh(n);
    assert_in_range(n, 1, 64);
    for (uint32_t i = 0; i < n; i++) {
        for (unsigned k = 0; k < sizeof(entry); k++)
            ((uint8_t *)&entry)[k] = in8(b, 0x511);
        if (!strcmp(entry.name, name)) {
            *size = be32toh(entry.size);
            return be16toh(entry.key);
        }
    }
    fail_msg("no file %s", name);
    return 0;
}

static void fw_cfg_by_ports(void **state)
{
    struct board *b = *state;
    char sig[5] = {0};
    uint32_t id, size;
    uint16_t cpus;
    uint8_t states[8];
    fw_read(b, 0, sig, 4);
    assert_string_equal(sig, "QEMU");
    fw_read(b, 1, &id, 4);
    assert_int_equal(id, 3);
    fw_read(b, 5, &cpus, 2);
    assert_int_equal(cpus, 3);
    uint16_t key = fw_find(b, "etc/system-states", &size);
    assert_int_equal(size, 6);
    fw_read(b, key, states, 8);
    assert_int_equal(states[0], 128);
    assert_int_equal(states[6] | states[7], 0); /* zeros past the end */
    fw_read(b, 0x1234, states, 8);
    assert_int_equal(states[0], 0);
}

struct dma {
    uint32_t control, length;
    uint64_t address;
} __attribute__((packed));

static uint32_t fw_dma(struct board *b, uint32_t control, uint32_t length, uint64_t address)
{
    struct dma d = {htobe32(control), htobe32(length), htobe64(address)};
    memcpy(hvxtest_mem(b->vm, 0x5000, sizeof(d)), &d, sizeof(d));
    out32(b, 0x514, 0);
    out32(b, 0x518, htobe32(0x5000));
    memcpy(&d, hvxtest_mem(b->vm, 0x5000, sizeof(d)), sizeof(d));
    return be32toh(d.control);
}

static void fw_cfg_by_dma(void **state)
{
    struct board *b = *state;
    uint32_t size;
    assert_int_equal(in32(b, 0x514), htobe32(0x51454d55));
    assert_int_equal(in32(b, 0x518), htobe32(0x20434647));
    uint16_t key = fw_find(b, "etc/acpi/tables", &size);
    uint8_t *whole = malloc(size);
    fw_read(b, key, whole, size);
    assert_int_equal(fw_dma(b, (uint32_t)key << 16 | 8 | 2, size + 16, 0x8000), 0);
    assert_memory_equal(hvxtest_mem(b->vm, 0x8000, size), whole, size);
    assert_int_equal(fw_dma(b, (uint32_t)key << 16 | 8 | 4, 64, 0), 0); /* select, skip 64 */
    memset(hvxtest_mem(b->vm, 0x9000, 64), 0xcc, 64);
    assert_int_equal(fw_dma(b, 2, 36, 0x9000), 0);
    assert_memory_equal(hvxtest_mem(b->vm, 0x9000, 36), whole + 64, 36);
    assert_int_equal(*(uint8_t *)hvxtest_mem(b->vm, 0x9024, 1), 0xcc); /* not a byte more */
    assert_int_equal(fw_dma(b, 0x10, 4, 0x9000) & 1, 1); /* writing is refused */
    assert_int_equal(fw_dma(b, (uint32_t)key << 16 | 8 | 2, 64, 0xf0000000) & 1, 1);
    assert_int_equal(fw_dma(b, (uint32_t)key << 16 | 8 | 2, 0xffffffff, 0x1000) & 1, 1);
    out32(b, 0x518, 0xffffffff); /* a descriptor outside RAM */
    assert_true(hvxtest_events(b->vm, "fw-cfg-dma") > 0);
    free(whole);
}

/* --- tables, where direct boot would place them -------------------------------------- */
static uint8_t sum(const uint8_t *p, size_t n)
{
    uint8_t s = 0;
    while (n--)
        s = (uint8_t)(s + *p++);
    return s;
}

/* Just the script's effect, done with the file contents as firmware would. */
struct loaded {
    uint8_t *tables, *rsdp;
    uint32_t n_tables, n_rsdp;
};
#define TABLES_AT 0x100000u
#define RSDP_AT 0xf0000u

static void load_tables(struct board *b, struct loaded *l)
{
    uint32_t n;
    uint16_t key = fw_find(b, "etc/acpi/tables", &l->n_tables);
    l->tables = malloc(l->n_tables);
    fw_read(b, key, l->tables, l->n_tables);
    key = fw_find(b, "etc/acpi/rsdp", &l->n_rsdp);
    l->rsdp = malloc(l->n_rsdp);
    fw_read(b, key, l->rsdp, l->n_rsdp);
    key = fw_find(b, "etc/table-loader", &n);
    assert_int_equal(n % 128, 0);
    uint8_t *script = malloc(n);
    fw_read(b, key, script, n);
    for (uint8_t *e = script; e < script + n; e += 128) {
        uint32_t command, offset, start, bytes;
        memcpy(&command, e, 4);
        bool rsdp = !strcmp((char *)e + 4, "etc/acpi/rsdp");
        uint8_t *to = rsdp ? l->rsdp : l->tables;
        uint32_t limit = rsdp ? l->n_rsdp : l->n_tables;
        if (command == 2) {
            uint64_t v = 0;
            memcpy(&offset, e + 116, 4);
            assert_true(offset + e[120] <= limit);
            assert_string_equal((char *)e + 60, "etc/acpi/tables");
            memcpy(&v, to + offset, e[120]);
            assert_true(v < l->n_tables);
            v += TABLES_AT;
            memcpy(to + offset, &v, e[120]);
        } else if (command == 3) {
            memcpy(&offset, e + 60, 4);
            memcpy(&start, e + 64, 4);
            memcpy(&bytes, e + 68, 4);
            assert_true(offset < limit && start + bytes <= limit);
            to[offset] = (uint8_t)(to[offset] - sum(to + start, bytes));
        } else {
            assert_int_equal(command, 1);
        }
    }
    free(script);
}

static const uint8_t *table(struct loaded *l, const char *sig, uint32_t *n)
{
    uint64_t xsdt;
    memcpy(&xsdt, l->rsdp + 24, 8);
    const uint8_t *x = l->tables + (xsdt - TABLES_AT);
    memcpy(n, x + 4, 4);
    assert_int_equal(sum(x, *n), 0);
    for (uint32_t i = 36; i < *n; i += 8) {
        uint64_t at;
        uint32_t bytes;
        memcpy(&at, x + i, 8);
        const uint8_t *t = l->tables + (at - TABLES_AT);
        memcpy(&bytes, t + 4, 4);
        if (!strcmp(sig, "DSDT") && !memcmp(t, "FACP", 4)) {
            memcpy(&at, t + 140, 8);
            t = l->tables + (at - TABLES_AT);
            memcpy(&bytes, t + 4, 4);
        }
        if (!memcmp(t, sig, 4)) {
            *n = bytes;
            return t;
        }
    }
    fail_msg("no table %s", sig);
    return NULL;
}

static void acpi_tables_sum_up_and_agree_with_the_board(void **state)
{
    struct board *b = *state;
    struct loaded l;
    uint32_t n, v;
    load_tables(b, &l);
    assert_memory_equal(l.rsdp, "RSD PTR ", 8);
    assert_int_equal(sum(l.rsdp, 20), 0);
    assert_int_equal(sum(l.rsdp, 36), 0);
    static const char *const all[] = {"FACP", "APIC", "HPET", "DSDT"};
    for (unsigned i = 0; i < 4; i++) {
        const uint8_t *t = table(&l, all[i], &n);
        assert_int_equal(sum(t, n), 0);
    }
    const uint8_t *fadt = table(&l, "FACP", &n);
    assert_int_equal(n, 244);
    memcpy(&v, fadt + 76, 4);
    assert_int_equal(v, 0x608);
    memcpy(&v, fadt + 36, 4);
    assert_memory_equal(l.tables + (v - TABLES_AT), "FACS", 4);
    assert_int_equal(v % 64, 0);
    const uint8_t *madt = table(&l, "APIC", &n);
    unsigned lapics = 0, overrides = 0;
    for (uint32_t i = 44; i < n; i += madt[i + 1]) {
        lapics += madt[i] == 0;
        overrides += madt[i] == 2;
    }
    assert_int_equal(lapics, 3);
    assert_int_equal(overrides, 5);
    free(l.tables);
    free(l.rsdp);
}

static void fadt_follows_the_pm_block(void **state)
{
    struct board *b = *state;
    struct loaded l;
    uint32_t n, v;
    board_cfg_write(b, 0x0b, 0x40, 4, 0xb001); /* as OVMF does */
    board_cfg_write(b, 0x0b, 0x80, 1, 1);
    load_tables(b, &l);
    const uint8_t *fadt = table(&l, "FACP", &n);
    assert_int_equal(sum(fadt, n), 0);
    memcpy(&v, fadt + 64, 4);
    assert_int_equal(v, 0xb004);
    memcpy(&v, fadt + 212, 4);
    assert_int_equal(v, 0xb008);
    free(l.tables);
    free(l.rsdp);
}

/* The disassembler as a second opinion on the AML, where it is installed. */
static void dsdt_disassembles(void **state)
{
    struct board *b = *state;
    struct loaded l;
    uint32_t n;
    char cmd[600], line[300], path[64] = "/tmp/hvx-test-dsdt-XXXXXX";
    static const char *const expect[] = {"Device (PCI0)", "LNKD", "Processor (CP02", "_S5", "Device (HPET)",
                                         "PNP0501", "Name (_PRT, Package (0x80)", "ResourceTemplate"};
    bool found[8] = {false};
    if (system("iasl -v >/dev/null 2>&1"))
        skip();
    load_tables(b, &l);
    const uint8_t *dsdt = table(&l, "DSDT", &n);
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, dsdt, n), n);
    close(fd);
    snprintf(cmd, sizeof(cmd), "exec 2>/dev/null; iasl -p %s -d %s >%s.log 2>&1 && "
             "iasl -p %s.again %s.dsl >>%s.log 2>&1",
             path, path, path, path, path, path);
    int status = system(cmd);
    snprintf(line, sizeof(line), "%s.dsl", path);
    FILE *f = fopen(line, "r");
    while (f && fgets(line, sizeof(line), f))
        for (unsigned i = 0; i < 8; i++)
            found[i] |= strstr(line, expect[i]) != NULL;
    if (f)
        fclose(f);
    snprintf(cmd, sizeof(cmd), "rm -f %s*", path);
    assert_int_equal(system(cmd), 0);
    assert_int_equal(status, 0); /* disassembled, and the source compiles again without an error */
    for (unsigned i = 0; i < 8; i++)
        if (!found[i])
            fail_msg("%s is not in the DSDT", expect[i]);
    free(l.tables);
    free(l.rsdp);
}

static void smbios_structures_follow_one_another(void **state)
{
    struct board *b = *state;
    uint32_t n;
    uint8_t anchor[31], seen[256] = {0};
    fw_read(b, fw_find(b, "etc/smbios/smbios-anchor", &n), anchor, 31);
    assert_int_equal(n, 31);
    assert_int_equal(sum(anchor, 31), 0);
    assert_int_equal(sum(anchor + 16, 15), 0);
    uint16_t key = fw_find(b, "etc/smbios/smbios-tables", &n);
    uint8_t *t = malloc(n);
    fw_read(b, key, t, n);
    unsigned count = 0;
    for (uint32_t i = 0; i < n; count++) {
        assert_true(t[i + 1] >= 4);
        seen[t[i]]++;
        i += t[i + 1];
        while (i + 1 < n && (t[i] || t[i + 1]))
            i++;
        i += 2;
        assert_true(i <= n);
    }
    assert_int_equal(count, anchor[28] | anchor[29] << 8);
    assert_int_equal(seen[4], 3);
    static const uint8_t types[] = {0, 1, 3, 16, 17, 19, 32, 127};
    for (unsigned i = 0; i < sizeof(types); i++)
        assert_int_equal(seen[types[i]], 1);
    free(t);
}

/* --- the board as a whole ----------------------------------------------------------------- */
static void missing_firmware_is_named(void **state)
{
    (void)state;
    struct board b;
    struct hvx_error err = {0};
    struct hvx_vm *vm = hvxtest_new(&(struct hvxtest_params){.ram_below_4g = BOARD_RAM});
    const struct hvx_device_type *t = board_type("pc");
    memset(&b, 0, sizeof(b));
    struct hvx_config *c = hvxtest_config(t->options, "firmware=/nonexistent/bios.bin,vga=off");
    assert_int_equal(t->create((void *)(uintptr_t)hvxtest_host(), vm, c, &b.dev, &err), -ENOENT);
    assert_non_null(strstr(err.text, "/nonexistent/bios.bin"));
    hvxtest_config_free(c);
    hvxtest_free(vm);
}

static void every_failure_at_creation_cleans_up(void **state)
{
    (void)state;
    unsigned n = 1;
    for (;; n++) {
        struct board b;
        struct hvx_error err = {0};
        struct hvx_vm *vm = hvxtest_new(&(struct hvxtest_params){.ram_below_4g = BOARD_RAM});
        hvxtest_disk_add(vm, "disk0", &(struct hvxtest_disk_params){.bytes = 1 << 20});
        hvxtest_fail_nth(vm, n);
        int rc = board_try(&b, vm, "ide0=disk0,debug-exit=0x501", &err);
        bool waiting = hvxtest_fail_nth(vm, 0);
        board_free(&b);
        if (waiting)
            break;
        assert_true(rc < 0);
        assert_true(err.text[0] != 0);
    }
    assert_true(n > 40);
}

static void state_survives_the_round_trip(void **state)
{
    struct board *b = *state;
    uint8_t *one, *two;
    size_t n_one, n_two;
    struct hvx_error err;
    out8(b, 0x43, 0x34);
    out8(b, 0x40, 0x9c);
    out8(b, 0x40, 0x2e);
    out8(b, 0x3f8 + 7, 0x77);
    out16(b, 0x1ce, 1);
    out16(b, 0x1cf, 800);
    board_cfg_write(b, 0, 0x59, 1, 0x30);
    board_cfg_write(b, 0x08, 0x60, 1, 10);
    hvxtest_mmio_write(b->vm, 0xfed00010, 8, 1);
    step_us(b, 1234);
    assert_int_equal(hvxtest_save(b->type->state, b->dev, 1, &one, &n_one), 0);
    b->type->reset(b->dev);
    assert_int_equal(in8(b, 0x3f8 + 7), 0);
    assert_int_equal(hvxtest_load(b->type->state, b->dev, 1, one, n_one, &err), 0);
    assert_int_equal(in8(b, 0x3f8 + 7), 0x77);
    assert_int_equal(in16(b, 0x1cf), 800);
    assert_int_equal(hvxtest_mmio_read(b->vm, 0xfed000f0, 8), 123400);
    hvxtest_irq_clear(b->vm);
    step_us(b, 100000);
    assert_in_range(hvxtest_irq_rises(b->vm, 0), 9, 11); /* the PIT goes on */
    b->type->reset(b->dev);
    assert_int_equal(hvxtest_load(b->type->state, b->dev, 1, one, n_one, &err), 0);
    assert_int_equal(hvxtest_save(b->type->state, b->dev, 1, &two, &n_two), 0);
    assert_int_equal(n_one, n_two);
    assert_memory_equal(one, two, n_one);
    assert_true(hvxtest_load(b->type->state, b->dev, 1, one, n_one - 1, &err) < 0);
    free(one);
    free(two);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(functions_of_the_board), T(configuration_address_needs_a_dword), T(pam_switches_between_rom_and_ram),
        T(pirq_routing_follows_its_registers), T(cmos_tells_memory_and_processors), T(fw_cfg_by_ports),
        T(fw_cfg_by_dma), T(acpi_tables_sum_up_and_agree_with_the_board), T(fadt_follows_the_pm_block),
        T(dsdt_disassembles),
        T(smbios_structures_follow_one_another), cmocka_unit_test(missing_firmware_is_named),
        cmocka_unit_test(every_failure_at_creation_cleans_up), T(state_survives_the_round_trip),
    };
    return cmocka_run_group_tests_name("firmware", tests, NULL, NULL);
}
