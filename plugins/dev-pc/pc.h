/* SPDX-License-Identifier: Apache-2.0
 *
 * pc.h - the board, and what its parts show one another.
 *
 * The board is an i440fx with a PIIX3/PIIX4 south bridge. Each part is one
 * file with one opaque struct and four functions: create (claims ports and
 * regions, may fail), destroy (NULL is fine), reset, state (saves and
 * restores). pc.c calls them in a fixed order, which is also the order of the
 * saved state. Parts find one another through struct pc, whose pointers are
 * complete once pc.c's create has returned; a part that the configuration
 * leaves out is NULL.
 *
 * Time: host->clock_ns() is the only clock of the counters. Saved states hold
 * differences to it, so that a restored machine goes on where it was.
 */
#ifndef DEV_PC_PC_H
#define DEV_PC_PC_H

#include <hvx/cpu.h>
#include <hvx/device.h>
#include <hvx/plugin.h>

#define PC_MAX_SERIAL 4u
#define PC_N_IDE 4u
#define PC_MAX_REGIONS 48u
#define PC_NEVER UINT64_MAX

#define PC_NS_PER_SEC 1000000000ull
#define PC_PIT_HZ 1193182u
/* Ticks that the host was too busy for are made up for when they are at least so far apart: a guest must have time
 * left beside them. */
#define PC_TICK_MIN_NS 400000u
#define PC_PMTIMER_HZ 3579545u

/* Fixed places of the board. */
#define PC_DEVFN_HOST 0x00u /* 00.0 host bridge */
#define PC_DEVFN_ISA 0x08u  /* 01.0 ISA bridge */
#define PC_DEVFN_IDE 0x09u  /* 01.1 IDE */
#define PC_DEVFN_PM 0x0bu   /* 01.3 power management */
#define PC_DEVFN_VGA 0x10u  /* 02.0 VGA */
#define PC_PM_BASE 0x600u   /* where SeaBIOS puts the PM block; direct boot does the same */
#define PC_SMB_BASE 0x700u
#define PC_HPET_BASE 0xfed00000ull
#define PC_IOAPIC_BASE 0xfec00000ull
#define PC_LAPIC_BASE 0xfee00000ull
#define PC_IRQ_SCI 9u

/* Subsystem identity by which SeaBIOS and guest drivers know the board. */
#define PC_SUBSYS_VENDOR 0x1af4u
#define PC_SUBSYS_ID 0x1100u

struct i440fx;
struct piix3;
struct piix4_pm;
struct ide;
struct pit;
struct rtc;
struct hpet;
struct i8042;
struct uart;
struct vga;
struct fw_cfg;
struct dma8237;
struct debugcon;
struct pvpanic;
struct debug_exit;
struct acpi_hotplug;
struct pflash;
struct uefi_vars;

/* A block of bytes that grows: ACPI tables, fw_cfg files. Running out of
 * memory latches `failed`. */
struct pc_buf {
    uint8_t *data;
    size_t len, cap;
    bool failed;
};

struct pc_config {
    bool vga, hpet, acpi, pvpanic;
    unsigned n_serial;
    char *firmware; /* owned; "bios", "uefi" or a path; NULL: the default */
    char *uefi_vars; /* owned; NULL: variables are kept in memory only */
    char *vga_rom;  /* owned */
    char *debugcon_chr; /* owned; NULL: none */
    unsigned debugcon_port;
    unsigned debug_exit_port; /* 0: none */
};

struct pc {
    const struct hvx_host *host;
    struct hvx_vm *vm;
    struct hvx_guest_info info;
    struct pc_config conf;
    size_t fadt_at; /* in etc/acpi/tables */
    bool direct; /* a kernel is started without firmware */
    struct pc_buf kernel, initrd; /* its files */

    struct i440fx *i440fx;
    struct piix3 *piix3;
    struct piix4_pm *pm;
    struct ide *ide;
    struct pit *pit;
    struct rtc *rtc;
    struct hpet *hpet;
    struct i8042 *i8042;
    struct uart *uart[PC_MAX_SERIAL];
    struct vga *vga;
    struct fw_cfg *fw_cfg;
    struct dma8237 *dma;
    struct debugcon *debugcon;
    struct pvpanic *pvpanic;
    struct debug_exit *debug_exit;
    struct acpi_hotplug *hotplug; /* NULL: without ACPI */

    void *firmware; /* page-aligned image, mapped below 4 GiB */
    size_t firmware_bytes;
    struct hvx_region *firmware_high, *firmware_low;
    struct pflash *pflash; /* UEFI variables, below the code */

    struct hvx_region *regions[PC_MAX_REGIONS]; /* claimed by pc_region, given back by pc.c */
    unsigned n_regions;
};

extern const struct hvx_device_type pc_type;
extern const struct hvx_device_type debug_exit_type;
extern const struct hvx_device_type pvpanic_type;

/* The plugin's context is the host table. */
static inline const struct hvx_host *pc_host_of(void *plugin_ctx) { return (const struct hvx_host *)plugin_ctx; }

/* Muldiv without overflow: a * b / c. */
static inline uint64_t pc_muldiv(uint64_t a, uint64_t b, uint64_t c)
{
    return (uint64_t)((unsigned __int128)a * b / c);
}

/* --- pc_buf.c ------------------------------------------------------------ */
void pc_buf_free(struct pc_buf *b);
void pc_buf_bytes(struct pc_buf *b, const void *p, size_t n);
void pc_buf_zero(struct pc_buf *b, size_t n);
void pc_buf_align(struct pc_buf *b, size_t align);
void pc_buf_u8(struct pc_buf *b, uint8_t v);
void pc_buf_u16(struct pc_buf *b, uint16_t v);
void pc_buf_u32(struct pc_buf *b, uint32_t v);
void pc_buf_u64(struct pc_buf *b, uint64_t v);
/* A text of exactly n bytes, padded with `pad`. */
void pc_buf_text(struct pc_buf *b, const char *s, size_t n, char pad);
/* A file as a whole; -errno and a message. Refuses more than max bytes. */
HVX_WUR int pc_buf_file(struct pc_buf *b, const char *path, size_t max, const char *what, struct hvx_error *err);

/* Claim ports or guest-physical addresses for the life of the board. */
HVX_WUR int pc_region(struct pc *pc, enum hvx_space space, uint64_t addr, uint64_t n, uint32_t flags, const char *name,
                      const struct hvx_region_ops *ops, void *opaque, struct hvx_error *err);

/* --- i440fx.c ------------------------------------------------------------ */
HVX_WUR int i440fx_create(struct pc *pc, struct i440fx **out, struct hvx_error *err);
void i440fx_destroy(struct i440fx *h);
void i440fx_reset(struct i440fx *h);
int i440fx_state(struct i440fx *h, struct hvx_stream *s);
/* RAM everywhere in 0xc0000..0xfffff, as firmware leaves it. */
void i440fx_open_shadow(struct i440fx *h);

/* --- piix3.c: ISA bridge, PIRQ routing, ports 61, 80, 92, cf9 ------------- */
HVX_WUR int piix3_create(struct pc *pc, struct piix3 **out, struct hvx_error *err);
void piix3_destroy(struct piix3 *p);
void piix3_reset(struct piix3 *p);
int piix3_state(struct piix3 *p, struct hvx_stream *s);
/* What firmware does: PIRQ A,B to irq 10 and C,D to irq 11. */
void piix3_default_routes(struct piix3 *p);
/* Port 0xcf9, which lies inside the PCI address port's dword. */
uint8_t piix3_rcr_read(struct piix3 *p);
void piix3_rcr_write(struct piix3 *p, uint8_t value);

/* --- piix4_pm.c ----------------------------------------------------------- */
HVX_WUR int piix4_pm_create(struct pc *pc, struct piix4_pm **out, struct hvx_error *err);
void piix4_pm_destroy(struct piix4_pm *p);
void piix4_pm_reset(struct piix4_pm *p);
int piix4_pm_state(struct piix4_pm *p, struct hvx_stream *s);
void piix4_pm_default_base(struct piix4_pm *p); /* what firmware does: I/O base, SCI line */
void piix4_pm_power_button(struct piix4_pm *p);
void piix4_pm_event(struct piix4_pm *p, unsigned n); /* general-purpose event n, 0 to 15 */
void piix4_pm_rtc_alarm(struct piix4_pm *p); /* the fixed event of the clock */

/* --- ide.c ---------------------------------------------------------------- */
HVX_WUR int ide_create(struct pc *pc, const char *const drives[PC_N_IDE], struct ide **out, struct hvx_error *err);
void ide_destroy(struct ide *d);
void ide_reset(struct ide *d);
int ide_state(struct ide *d, struct hvx_stream *s);
bool ide_quiesced(struct ide *d);
/* Cylinders, heads, sectors of hard disk `n` for CMOS and firmware; false when there is none. */
bool ide_geometry(struct ide *d, unsigned n, uint32_t *c, uint32_t *h, uint32_t *s);

/* --- pit.c ---------------------------------------------------------------- */
HVX_WUR int pit_create(struct pc *pc, struct pit **out, struct hvx_error *err);
void pit_destroy(struct pit *p);
void pit_reset(struct pit *p);
int pit_state(struct pit *p, struct hvx_stream *s);
void pit_set_gate2(struct pit *p, bool gate);
bool pit_gate2(struct pit *p);
bool pit_out2(struct pit *p);
void pit_enable_irq(struct pit *p, bool on); /* HPET legacy replacement takes irq 0 away */

/* --- rtc.c ---------------------------------------------------------------- */
HVX_WUR int rtc_create(struct pc *pc, struct rtc **out, struct hvx_error *err);
void rtc_destroy(struct rtc *r);
void rtc_reset(struct rtc *r);
int rtc_state(struct rtc *r, struct hvx_stream *s);
void rtc_enable_irq(struct rtc *r, bool on);
void rtc_set_cmos(struct rtc *r, unsigned index, uint8_t value);

/* --- hpet.c --------------------------------------------------------------- */
HVX_WUR int hpet_create(struct pc *pc, struct hpet **out, struct hvx_error *err);
void hpet_destroy(struct hpet *h);
void hpet_reset(struct hpet *h);
int hpet_state(struct hpet *h, struct hvx_stream *s);

/* --- i8042.c -------------------------------------------------------------- */
HVX_WUR int i8042_create(struct pc *pc, struct i8042 **out, struct hvx_error *err);
void i8042_destroy(struct i8042 *k);
void i8042_reset(struct i8042 *k);
int i8042_state(struct i8042 *k, struct hvx_stream *s);
void i8042_default_mode(struct i8042 *k); /* what firmware does: keyboard on, translated */

/* --- uart.c --------------------------------------------------------------- */
HVX_WUR int uart_create(struct pc *pc, unsigned index, struct uart **out, struct hvx_error *err);
void uart_destroy(struct uart *u);
void uart_reset(struct uart *u);
int uart_state(struct uart *u, struct hvx_stream *s);
extern const uint16_t uart_port[PC_MAX_SERIAL];
extern const uint8_t uart_irq[PC_MAX_SERIAL];

/* --- vga.c ---------------------------------------------------------------- */
HVX_WUR int vga_create(struct pc *pc, struct vga **out, struct hvx_error *err);
void vga_destroy(struct vga *v);
void vga_reset(struct vga *v);
int vga_state(struct vga *v, struct hvx_stream *s);

/* --- fw_cfg.c ------------------------------------------------------------- */
#define FW_CFG_MAX_FILES 64u
#define FW_CFG_NAME 56u
HVX_WUR int fw_cfg_create(struct pc *pc, struct fw_cfg **out, struct hvx_error *err);
void fw_cfg_destroy(struct fw_cfg *f);
void fw_cfg_reset(struct fw_cfg *f);
int fw_cfg_state(struct fw_cfg *f, struct hvx_stream *s);
/* Items copy their bytes. fw_cfg_take_file takes over b's memory. */
HVX_WUR int fw_cfg_add_item(struct fw_cfg *f, uint16_t key, const void *data, size_t n, struct hvx_error *err);
HVX_WUR int fw_cfg_add_file(struct fw_cfg *f, const char *name, const void *data, size_t n, struct hvx_error *err);
HVX_WUR int fw_cfg_take_file(struct fw_cfg *f, const char *name, struct pc_buf *b, struct hvx_error *err);
/* The bytes of a file, for the linker script run here; NULL when absent. */
struct pc_buf *fw_cfg_file(struct fw_cfg *f, const char *name);

/* --- fw_files.c: all that firmware asks for -------------------------------- */
HVX_WUR int fw_files_create(struct pc *pc, struct hvx_error *err);
/* Entries of the memory map: base, length, type (1 RAM, 2 reserved, 3 ACPI). */
struct pc_e820 {
    uint64_t base, bytes;
    uint32_t type;
} __attribute__((packed));
#define PC_E820_MAX 16u
unsigned pc_e820(const struct pc *pc, struct pc_e820 out[PC_E820_MAX], bool low_memory);

/* --- acpi.c, acpi_dsdt.c, smbios.c ---------------------------------------- */
struct acpi_files {
    struct pc_buf tables, rsdp, loader;
    size_t fadt_at; /* in tables */
};
HVX_WUR int acpi_build(struct pc *pc, struct acpi_files *out, struct hvx_error *err);
void acpi_files_free(struct acpi_files *f);
/* Firmware moved the PM block: the FADT that it is going to read says where to. */
void acpi_pm_base_changed(struct pc *pc, uint32_t base);
void acpi_header(struct pc_buf *b, const char sig[4], uint8_t revision); /* 36 bytes, length and sum open */
void acpi_finish(struct pc_buf *b, size_t start);
void acpi_dsdt(struct pc *pc, struct pc_buf *out);

/* --- acpi_hotplug.c --------------------------------------------------------- */
HVX_WUR int acpi_hotplug_create(struct pc *pc, struct acpi_hotplug **out, struct hvx_error *err);
void acpi_hotplug_destroy(struct acpi_hotplug *h);
void acpi_hotplug_reset(struct acpi_hotplug *h);
int acpi_hotplug_state(struct acpi_hotplug *h, struct hvx_stream *s);
void acpi_hotplug_dsdt(struct pc_buf *b);  /* inside \_SB.PCI0 */
void acpi_hotplug_event(struct pc_buf *b); /* the general-purpose event */

HVX_WUR int smbios_build(struct pc *pc, struct pc_buf *anchor, struct pc_buf *tables, struct hvx_error *err);

/* --- dma8237.c, debug_ports.c --------------------------------------------- */
HVX_WUR int dma8237_create(struct pc *pc, struct dma8237 **out, struct hvx_error *err);
void dma8237_destroy(struct dma8237 *d);
void dma8237_reset(struct dma8237 *d);
int dma8237_state(struct dma8237 *d, struct hvx_stream *s);
HVX_WUR int debugcon_create(struct pc *pc, unsigned port, struct debugcon **out, struct hvx_error *err);
void debugcon_destroy(struct debugcon *d);
HVX_WUR int debug_exit_create(const struct hvx_host *host, struct hvx_vm *vm, unsigned port, struct debug_exit **out,
                              struct hvx_error *err);
void debug_exit_destroy(struct debug_exit *d);
HVX_WUR int pvpanic_create(const struct hvx_host *host, struct hvx_vm *vm, struct pvpanic **out, struct hvx_error *err);
void pvpanic_destroy(struct pvpanic *p);

/* --- uefi_vars.c: the two files of UEFI firmware -------------------------- */
struct uefi_files {
    const char *code, *vars; /* the template of the variables */
};
/* The installed pair that fits the variables file, which may be NULL or missing. */
HVX_WUR int uefi_pair(const char *vars_path, struct uefi_files *out, struct hvx_error *err);
HVX_WUR int uefi_template_of(const char *code, char *vars, size_t n, struct hvx_error *err);
/* Opens and locks the file, made from the template when it is missing; path NULL: the template's contents, not kept. */
HVX_WUR int uefi_vars_open(const char *path, const char *template, struct uefi_vars **out, struct hvx_error *err);
void uefi_vars_close(struct uefi_vars *v);
uint32_t uefi_vars_bytes(const struct uefi_vars *v);
HVX_WUR int uefi_vars_read(struct uefi_vars *v, uint8_t *out, struct hvx_error *err); /* once, all bytes */
/* Bytes at..at+n of data, on the disk when it returns. */
HVX_WUR int uefi_vars_write(struct uefi_vars *v, const uint8_t *data, uint32_t at, uint32_t n, struct hvx_error *err);

/* --- pflash.c: the chip they are in ----------------------------------------- */
/* Takes over vars, also when it fails; the chip ends before address `end`. */
HVX_WUR int pflash_create(struct pc *pc, uint64_t end, struct uefi_vars *vars, struct pflash **out,
                          struct hvx_error *err);
void pflash_destroy(struct pflash *f);
void pflash_reset(struct pflash *f);
int pflash_state(struct pflash *f, struct hvx_stream *s);

/* --- boot.c: kernels started without firmware ------------------------------ */
#define PC_MAX_KERNEL_BYTES (256u << 20)
#define PC_MAX_INITRD_BYTES (2047u << 20)
#define BOOT_GDT 0x8f000u    /* what lies below 640 KiB with direct boot */
#define BOOT_PARAMS 0x90000u /* boot_params or multiboot information */
#define BOOT_CMDLINE 0x91000u
#define BOOT_CMDLINE_MAX 0x4000u
#define BOOT_LOW_END 0x9f000u
/* Files are read once, when the board is created: a bad one is refused before the VM runs. */
HVX_WUR int boot_create(struct pc *pc, struct hvx_error *err);
void boot_destroy(struct pc *pc);
HVX_WUR int boot_start(struct pc *pc, struct hvx_error *err); /* at each reset */
HVX_WUR int boot_write(struct pc *pc, uint64_t gpa, const void *p, size_t n, const char *what, struct hvx_error *err);
/* Flat 32-bit protected mode with selectors 0x10 and 0x18. */
void boot_regs32(struct pc *pc, struct hvx_vcpu_regs *r, uint32_t eip);
/* boot_tables.c: ACPI and SMBIOS where firmware would have put them; *rsdp is the guest address, 0 without ACPI. */
HVX_WUR int boot_tables(struct pc *pc, uint64_t *rsdp, struct hvx_error *err);
/* boot_pci.c: BARs, interrupt lines, decoding. */
void boot_pci(struct pc *pc);
HVX_WUR int boot_linux(struct pc *pc, struct hvx_vcpu_regs *r, struct hvx_error *err);
HVX_WUR int boot_multiboot(struct pc *pc, struct hvx_vcpu_regs *r, struct hvx_error *err);
bool boot_is_linux(const struct pc_buf *image);
bool boot_is_multiboot(const struct pc_buf *image);
#endif
