/* SPDX-License-Identifier: Apache-2.0
 *
 * boot_multiboot.c - kernels with a multiboot 1 header: ELF32, or any file
 * whose header gives the addresses itself (the a.out kludge). The initrd
 * becomes module 0.
 *
 * Header and information: Multiboot Specification 0.6.96, chapter 3.
 */
#include "pc.h"

#include <elf.h>
#include <string.h>

#define MB_MAGIC 0x1badb002u
#define MB_LOADER_MAGIC 0x2badb002u
#define MB_SEARCH 8192u
#define MB_HEADER_ADDRESSES (1u << 16)
#define MB_UNKNOWN_REQUIRED 0x0000fff8u /* bits 0 and 1 are met, bit 2 (video) cannot fail */
#define MB_MAX_SEGMENTS 64u

#define INFO_MEMORY 0x001u
#define INFO_CMDLINE 0x004u
#define INFO_MODULES 0x008u
#define INFO_MMAP 0x040u
#define INFO_LOADER 0x200u

/* Places inside the page of BOOT_PARAMS. */
#define AT_MMAP (BOOT_PARAMS + 0x100u)
#define AT_MODULE (BOOT_PARAMS + 0x400u)
#define AT_LOADER_NAME (BOOT_PARAMS + 0x440u)

static uint32_t get32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

/* Offset of the header in the file, or -1. */
static long find_header(const struct pc_buf *image)
{
    size_t n = image->len < MB_SEARCH ? image->len : MB_SEARCH;
    for (size_t at = 0; at + 12 <= n; at += 4) {
        const uint8_t *p = image->data + at;
        if (get32(p) == MB_MAGIC && (uint32_t)(get32(p) + get32(p + 4) + get32(p + 8)) == 0)
            return (long)at;
    }
    return -1;
}

bool boot_is_multiboot(const struct pc_buf *image)
{
    return find_header(image) >= 0;
}

/* One piece of the file into memory, the rest of it zeros. Nothing may lie over what is put there for the kernel. */
static int load(struct pc *pc, uint64_t gpa, const uint8_t *p, uint64_t file_bytes, uint64_t mem_bytes, uint64_t *end,
                struct hvx_error *err)
{
    static const uint8_t zeros[4096];
    if (gpa < BOOT_LOW_END && gpa + mem_bytes > BOOT_GDT)
        return hvx_fail(err, -ENOEXEC, "kernel %s: it loads over %#x..%#x, which the boot information takes",
                        pc->info.kernel, BOOT_GDT, BOOT_LOW_END);
    if (gpa + mem_bytes > pc->info.ram_below_4g)
        return hvx_fail(err, -ENOMEM, "kernel %s: it loads up to %#llx, beyond the guest's memory", pc->info.kernel,
                        (unsigned long long)(gpa + mem_bytes));
    int rc = file_bytes ? boot_write(pc, gpa, p, file_bytes, "the kernel", err) : 0;
    for (uint64_t done = file_bytes; done < mem_bytes && rc == 0;) {
        size_t n = mem_bytes - done < sizeof(zeros) ? (size_t)(mem_bytes - done) : sizeof(zeros);
        rc = boot_write(pc, gpa + done, zeros, n, "the kernel's zeroed data", err);
        done += n;
    }
    if (gpa + mem_bytes > *end)
        *end = gpa + mem_bytes;
    return rc;
}

static int load_elf(struct pc *pc, uint32_t *entry, uint64_t *end, struct hvx_error *err)
{
    const struct pc_buf *image = &pc->kernel;
    Elf32_Ehdr h;
    if (image->len < sizeof(h))
        return hvx_fail(err, -ENOEXEC, "kernel %s: the file is cut short", pc->info.kernel);
    memcpy(&h, image->data, sizeof(h));
    if (h.e_ident[EI_CLASS] != ELFCLASS32 || h.e_machine != EM_386)
        return hvx_fail(err, -ENOEXEC, "kernel %s: multiboot 1 starts 32-bit x86 ELF files; this one is of class %u, "
                        "machine %u", pc->info.kernel, h.e_ident[EI_CLASS], h.e_machine);
    if (h.e_phnum == 0 || h.e_phnum > MB_MAX_SEGMENTS || h.e_phentsize < sizeof(Elf32_Phdr) ||
        h.e_phoff > image->len || (uint64_t)h.e_phnum * h.e_phentsize > image->len - h.e_phoff)
        return hvx_fail(err, -ENOEXEC, "kernel %s: its ELF program headers do not lie in the file", pc->info.kernel);
    *entry = h.e_entry;
    for (unsigned i = 0; i < h.e_phnum; i++) {
        Elf32_Phdr p;
        memcpy(&p, image->data + h.e_phoff + (size_t)i * h.e_phentsize, sizeof(p));
        if (p.p_type != PT_LOAD || !p.p_memsz)
            continue;
        if (p.p_offset > image->len || p.p_filesz > image->len - p.p_offset || p.p_filesz > p.p_memsz)
            return hvx_fail(err, -ENOEXEC, "kernel %s: segment %u does not lie in the file", pc->info.kernel, i);
        /* an entry given as a virtual address is meant where its segment is loaded */
        if (h.e_entry >= p.p_vaddr && h.e_entry - p.p_vaddr < p.p_memsz && p.p_vaddr != p.p_paddr)
            *entry = h.e_entry - p.p_vaddr + p.p_paddr;
        int rc = load(pc, p.p_paddr, image->data + p.p_offset, p.p_filesz, p.p_memsz, end, err);
        if (rc)
            return rc;
    }
    return 0;
}

static int load_flat(struct pc *pc, size_t at, uint32_t *entry, uint64_t *end, struct hvx_error *err)
{
    const struct pc_buf *image = &pc->kernel;
    if (at + 32 > image->len)
        return hvx_fail(err, -ENOEXEC, "kernel %s: the file ends inside the multiboot header", pc->info.kernel);
    const uint8_t *p = image->data + at;
    uint32_t header = get32(p + 12), from = get32(p + 16), to = get32(p + 20), bss_end = get32(p + 24);
    if (from > header || header - from > at)
        return hvx_fail(err, -ENOEXEC, "kernel %s: the multiboot header's addresses do not fit the file",
                        pc->info.kernel);
    size_t start = at - (header - from);
    uint64_t n = to ? (uint64_t)to - from : image->len - start;
    if ((to && to < from) || n > image->len - start)
        return hvx_fail(err, -ENOEXEC, "kernel %s: the multiboot header asks for more than the file has",
                        pc->info.kernel);
    uint64_t mem = bss_end > from + n ? bss_end - from : n;
    *entry = get32(p + 28);
    return load(pc, from, image->data + start, n, mem, end, err);
}

/* Map entries carry their own size, which does not count itself. */
static int write_mmap(struct pc *pc, uint32_t *bytes, struct hvx_error *err)
{
    struct pc_e820 map[PC_E820_MAX];
    unsigned n = pc_e820(pc, map, true);
    struct pc_buf b = {0};
    for (unsigned i = 0; i < n; i++) {
        pc_buf_u32(&b, 20);
        pc_buf_u64(&b, map[i].base);
        pc_buf_u64(&b, map[i].bytes);
        pc_buf_u32(&b, map[i].type);
    }
    *bytes = (uint32_t)b.len;
    int rc = b.failed ? hvx_fail(err, -ENOMEM, "starting %s: no memory", pc->info.kernel)
                      : boot_write(pc, AT_MMAP, b.data, b.len, "the memory map", err);
    pc_buf_free(&b);
    return rc;
}

static int write_module(struct pc *pc, uint64_t end, uint32_t name, struct hvx_error *err)
{
    uint64_t at = (end + 0xfff) & ~0xfffull;
    uint32_t entry[4] = {(uint32_t)at, (uint32_t)(at + pc->initrd.len), name, 0};
    if (at < 0x100000)
        at = entry[0] = 0x100000, entry[1] = (uint32_t)(at + pc->initrd.len);
    if (at + pc->initrd.len > pc->info.ram_below_4g)
        return hvx_fail(err, -ENOMEM, "starting %s: the module does not fit; give the guest more memory",
                        pc->info.kernel);
    int rc = boot_write(pc, at, pc->initrd.data, pc->initrd.len, "the module", err);
    return rc ? rc : boot_write(pc, AT_MODULE, entry, sizeof(entry), "the module list", err);
}

/* By convention the command line begins with the kernel's file name. */
static int write_cmdline(struct pc *pc, uint32_t *module_name, struct hvx_error *err)
{
    struct pc_buf b = {0};
    const char *append = pc->info.append ? pc->info.append : "";
    pc_buf_bytes(&b, pc->info.kernel, strlen(pc->info.kernel));
    if (append[0])
        pc_buf_u8(&b, ' ');
    pc_buf_bytes(&b, append, strlen(append) + 1);
    *module_name = BOOT_CMDLINE + (uint32_t)b.len;
    if (pc->initrd.len)
        pc_buf_bytes(&b, pc->info.initrd, strlen(pc->info.initrd) + 1);
    int rc = b.failed || b.len > BOOT_LOW_END - BOOT_CMDLINE
                 ? hvx_fail(err, -E2BIG, "starting %s: the command line is too long", pc->info.kernel)
                 : boot_write(pc, BOOT_CMDLINE, b.data, b.len, "the command line", err);
    pc_buf_free(&b);
    return rc;
}

int boot_multiboot(struct pc *pc, struct hvx_vcpu_regs *r, struct hvx_error *err)
{
    static const char loader[] = "HVX";
    long at = find_header(&pc->kernel);
    uint32_t flags = get32(pc->kernel.data + at + 4), entry = 0, module_name = 0;
    uint64_t end = 0, rsdp;
    uint32_t info[22] = {0};

    if (flags & MB_UNKNOWN_REQUIRED)
        return hvx_fail(err, -ENOEXEC, "kernel %s: its multiboot header asks for features %#x, which nobody knows",
                        pc->info.kernel, flags & MB_UNKNOWN_REQUIRED);
    int rc = flags & MB_HEADER_ADDRESSES ? load_flat(pc, (size_t)at, &entry, &end, err)
                                         : load_elf(pc, &entry, &end, err);
    if (rc == 0)
        rc = boot_tables(pc, &rsdp, err);
    if (rc == 0)
        rc = write_cmdline(pc, &module_name, err);
    if (rc == 0)
        rc = write_mmap(pc, &info[11], err);
    if (rc == 0)
        rc = boot_write(pc, AT_LOADER_NAME, loader, sizeof(loader), "the loader's name", err);
    if (rc == 0 && pc->initrd.len) {
        rc = write_module(pc, end, module_name, err);
        info[0] |= INFO_MODULES;
        info[5] = 1;
        info[6] = AT_MODULE;
    }
    info[0] |= INFO_MEMORY | INFO_CMDLINE | INFO_MMAP | INFO_LOADER;
    info[1] = 640 - 1; /* KiB below the reserved end of low memory */
    info[2] = (uint32_t)((pc->info.ram_below_4g >> 10) - 1024);
    info[4] = BOOT_CMDLINE;
    info[12] = AT_MMAP;
    info[16] = AT_LOADER_NAME;
    if (rc == 0)
        rc = boot_write(pc, BOOT_PARAMS, info, sizeof(info), "the boot information", err);
    boot_regs32(pc, r, entry);
    r->gpr[HVX_RAX] = MB_LOADER_MAGIC;
    r->gpr[HVX_RBX] = BOOT_PARAMS;
    return rc;
}
