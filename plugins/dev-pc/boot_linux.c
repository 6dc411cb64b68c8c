/* SPDX-License-Identifier: Apache-2.0
 *
 * boot_linux.c - a bzImage by the 32-bit boot protocol.
 *
 * Offsets: Linux' Documentation/x86/boot.rst and zero-page.rst. The image's
 * setup header is at 0x1f1 in the file and at the same place in boot_params.
 */
#include "pc.h"

#include <string.h>

#define BP_BYTES 4096u
#define BP_ACPI_RSDP 0x070u
#define BP_ALT_MEM_K 0x1e0u
#define BP_E820_ENTRIES 0x1e8u
#define BP_E820_TABLE 0x2d0u
#define HDR_START 0x1f1u
#define HDR_BOOT_FLAG 0x1feu
#define HDR_JUMP 0x200u /* its second byte is where the header ends, from 0x202 */
#define HDR_MAGIC 0x202u
#define HDR_VERSION 0x206u
#define HDR_LOADER 0x210u
#define HDR_LOADFLAGS 0x211u
#define HDR_CODE32 0x214u
#define HDR_INITRD 0x218u
#define HDR_INITRD_BYTES 0x21cu
#define HDR_HEAP_END 0x224u
#define HDR_CMDLINE 0x228u
#define HDR_INITRD_MAX 0x22cu
#define HDR_CMDLINE_MAX 0x238u
#define HDR_PREFERRED 0x258u
#define HDR_INIT_BYTES 0x260u
#define LOADED_HIGH 0x01u
#define KERNEL_AT 0x100000u
#define OLDEST_VERSION 0x0204u /* the oldest with a command line pointer and initrd_addr_max nearby */

static uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static uint32_t get32(const uint8_t *p) { return get16(p) | (uint32_t)get16(p + 2) << 16; }
static uint64_t get64(const uint8_t *p) { return get32(p) | (uint64_t)get32(p + 4) << 32; }
static void put32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }

bool boot_is_linux(const struct pc_buf *image)
{
    return image->len > 0x1000 && get16(image->data + HDR_BOOT_FLAG) == 0xaa55 &&
           memcmp(image->data + HDR_MAGIC, "HdrS", 4) == 0;
}

static size_t setup_bytes(const struct pc_buf *image)
{
    unsigned sectors = image->data[HDR_START] ? image->data[HDR_START] : 4;
    return (sectors + 1) * 512u;
}

/* As high as the kernel reads it, below the end of low RAM. */
static int place_initrd(struct pc *pc, uint8_t *bp, uint64_t kernel_end, struct hvx_error *err)
{
    uint64_t max = get16(bp + HDR_VERSION) >= 0x0203 ? get32(bp + HDR_INITRD_MAX) : 0x37ffffff;
    uint64_t top = pc->info.ram_below_4g < max + 1 ? pc->info.ram_below_4g : max + 1;
    uint64_t n = pc->initrd.len;
    if (!n)
        return 0;
    if (n + kernel_end > top)
        return hvx_fail(err, -ENOMEM, "starting %s: the initrd of %llu MiB does not fit above the kernel; give the "
                        "guest more memory", pc->info.kernel, (unsigned long long)(n >> 20) + 1);
    uint64_t at = (top - n) & ~0xfffull;
    put32(bp + HDR_INITRD, (uint32_t)at);
    put32(bp + HDR_INITRD_BYTES, (uint32_t)n);
    return boot_write(pc, at, pc->initrd.data, n, "the initrd", err);
}

static void fill_memory_map(struct pc *pc, uint8_t *bp)
{
    struct pc_e820 map[PC_E820_MAX];
    unsigned n = pc_e820(pc, map, true);
    bp[BP_E820_ENTRIES] = (uint8_t)n;
    memcpy(bp + BP_E820_TABLE, map, n * sizeof(map[0]));
    put32(bp + BP_ALT_MEM_K, (uint32_t)((pc->info.ram_below_4g >> 10) - 1024));
}

static int write_cmdline(struct pc *pc, const uint8_t *bp, struct hvx_error *err)
{
    const char *text = pc->info.append ? pc->info.append : "";
    uint32_t max = get16(bp + HDR_VERSION) >= 0x0206 ? get32(bp + HDR_CMDLINE_MAX) : 255;
    if (strlen(text) > max)
        return hvx_fail(err, -E2BIG, "starting %s: a command line of %zu characters, the kernel takes %u",
                        pc->info.kernel, strlen(text), max);
    return boot_write(pc, BOOT_CMDLINE, text, strlen(text) + 1, "the command line", err);
}

int boot_linux(struct pc *pc, struct hvx_vcpu_regs *r, struct hvx_error *err)
{
    const struct pc_buf *image = &pc->kernel;
    size_t setup = setup_bytes(image);
    uint16_t version = get16(image->data + HDR_VERSION);
    uint8_t bp[BP_BYTES] = {0};
    uint64_t rsdp = 0;

    if (setup >= image->len)
        return hvx_fail(err, -ENOEXEC, "kernel %s: the file ends inside its setup code; it is cut short",
                        pc->info.kernel);
    if (version < OLDEST_VERSION || !(image->data[HDR_LOADFLAGS] & LOADED_HIGH))
        return hvx_fail(err, -ENOEXEC, "kernel %s: boot protocol %u.%02u or a zImage is too old; 2.04 is needed",
                        pc->info.kernel, version >> 8, version & 0xff);

    size_t header_end = HDR_MAGIC + image->data[HDR_JUMP + 1];
    memcpy(bp + HDR_START, image->data + HDR_START, header_end - HDR_START);
    bp[HDR_LOADER] = 0xff; /* no assigned number */
    put32(bp + HDR_CODE32, KERNEL_AT);
    put32(bp + HDR_CMDLINE, BOOT_CMDLINE);
    fill_memory_map(pc, bp);

    int rc = boot_tables(pc, &rsdp, err);
    if (rc)
        return rc;
    memcpy(bp + BP_ACPI_RSDP, &rsdp, sizeof(rsdp));

    size_t code = image->len - setup;
    uint64_t end = KERNEL_AT + code;
    if (version >= 0x020a) { /* it unpacks itself to its preferred address */
        uint64_t unpacked = get64(image->data + HDR_PREFERRED) + get32(image->data + HDR_INIT_BYTES);
        if (unpacked > end && unpacked < 1ull << 32)
            end = unpacked;
    }
    if (end > pc->info.ram_below_4g)
        return hvx_fail(err, -ENOMEM, "starting %s: the kernel needs %llu MiB; give the guest more memory",
                        pc->info.kernel, (unsigned long long)(end >> 20) + 1);
    rc = boot_write(pc, KERNEL_AT, image->data + setup, code, "the kernel", err);
    if (rc == 0)
        rc = place_initrd(pc, bp, end, err);
    if (rc == 0)
        rc = write_cmdline(pc, bp, err);
    if (rc == 0)
        rc = boot_write(pc, BOOT_PARAMS, bp, sizeof(bp), "the boot parameters", err);
    boot_regs32(pc, r, KERNEL_AT);
    r->gpr[HVX_RSI] = BOOT_PARAMS;
    return rc;
}
