/* SPDX-License-Identifier: Apache-2.0
 *
 * test_boot.c - kernels started without firmware: made-up bzImage and
 * multiboot files, good and bad.
 */
#include "test_board.h"
#include <hvx/cpu.h>

#include <elf.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct files {
    char kernel[64], initrd[64];
};

static void write_file(char path[64], const void *data, size_t n)
{
    strcpy(path, "/tmp/hvx-test-kernel-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, n), (ssize_t)n);
    close(fd);
}

static int try_boot(struct board *b, struct files *f, const char *append, struct hvx_error *err)
{
    struct hvx_vm *vm = hvxtest_new(&(struct hvxtest_params){
        .ram_below_4g = BOARD_RAM, .kernel = f->kernel, .initrd = f->initrd[0] ? f->initrd : NULL, .append = append});
    return board_try(b, vm, "vga=off", err);
}

static void remove_files(struct files *f)
{
    unlink(f->kernel);
    if (f->initrd[0])
        unlink(f->initrd);
}

static const struct hvx_vcpu_regs *regs(struct board *b)
{
    size_t n;
    const struct hvx_vcpu_regs *r = hvxtest_vcpu_regs(b->vm, 0, &n);
    assert_non_null(r);
    assert_int_equal(n, sizeof(*r));
    return r;
}

static uint32_t mem32(struct board *b, uint32_t at)
{
    uint32_t v;
    memcpy(&v, hvxtest_mem(b->vm, at, 4), 4);
    return v;
}

/* --- Linux ---------------------------------------------------------------------- */
#define SETUP_BYTES (5 * 512)
#define CODE_BYTES 5000

static void make_bzimage(uint8_t *image)
{
    memset(image, 0, SETUP_BYTES + CODE_BYTES);
    image[0x1f1] = 4;
    image[0x1fe] = 0x55;
    image[0x1ff] = 0xaa;
    image[0x200] = 0xeb;
    image[0x201] = 0x66;
    memcpy(image + 0x202, "HdrS", 4);
    image[0x206] = 0x0f; /* 2.15 */
    image[0x207] = 0x02;
    image[0x211] = 1;
    memcpy(image + 0x22c, (uint32_t[]){0x7fffffff}, 4);
    memcpy(image + 0x238, (uint32_t[]){2047}, 4);
    for (unsigned i = 0; i < CODE_BYTES; i++)
        image[SETUP_BYTES + i] = (uint8_t)(i * 7);
}

static void linux_by_the_32_bit_protocol(void **state)
{
    (void)state;
    uint8_t image[SETUP_BYTES + CODE_BYTES], initrd[10000];
    struct files f = {.kernel = ""};
    struct board b;
    struct hvx_error err = {0};
    make_bzimage(image);
    memset(initrd, 0x5a, sizeof(initrd));
    write_file(f.kernel, image, sizeof(image));
    write_file(f.initrd, initrd, sizeof(initrd));
    if (try_boot(&b, &f, "console=ttyS0 quiet", &err))
        fail_msg("%s", err.text);

    const struct hvx_vcpu_regs *r = regs(&b);
    assert_int_equal(r->rip, 0x100000);
    assert_int_equal(r->seg[HVX_CS].selector, 0x10);
    assert_int_equal(r->seg[HVX_DS].selector, 0x18);
    assert_int_equal(r->cr0 & 0x80000001u, 1);
    assert_int_equal(r->rflags, 2);
    assert_memory_equal(hvxtest_mem(b.vm, 0x100000, CODE_BYTES), image + SETUP_BYTES, CODE_BYTES);

    uint32_t bp = (uint32_t)r->gpr[HVX_RSI];
    const uint8_t *p = hvxtest_mem(b.vm, bp, 4096);
    assert_memory_equal(p + 0x202, "HdrS", 4);
    assert_string_equal((char *)hvxtest_mem(b.vm, mem32(&b, bp + 0x228), 20), "console=ttyS0 quiet");
    assert_int_equal(mem32(&b, bp + 0x21c), sizeof(initrd));
    assert_memory_equal(hvxtest_mem(b.vm, mem32(&b, bp + 0x218), sizeof(initrd)), initrd, sizeof(initrd));
    assert_in_range(p[0x1e8], 4, 16); /* memory map */
    uint64_t ram = 0;
    for (unsigned i = 0; i < p[0x1e8]; i++) {
        uint64_t entry[2];
        memcpy(entry, p + 0x2d0 + 20 * i, 16);
        if (p[0x2d0 + 20 * i + 16] == 1)
            ram += entry[1];
    }
    assert_int_equal(ram, BOARD_RAM - 0x100000 + 0x9fc00);

    uint32_t rsdp = mem32(&b, bp + 0x70);
    assert_in_range(rsdp, 0xe0000, 0xfffff);
    assert_memory_equal(hvxtest_mem(b.vm, rsdp, 8), "RSD PTR ", 8);
    assert_memory_equal(hvxtest_mem(b.vm, mem32(&b, rsdp + 16), 4), "RSDT", 4);
    assert_memory_equal(hvxtest_mem(b.vm, 0xf0000, 4), "_SM_", 4);
    /* what firmware would have set up */
    assert_int_equal(board_cfg_read(&b, 0x0b, 0x40, 4), 0x601);
    assert_int_equal(board_cfg_read(&b, 0x08, 0x60, 4), 0x0b0b0a0a);
    assert_int_equal(board_cfg_read(&b, 0x09, 0x20, 4) & 0xf001, 0xc001);
    assert_int_equal(hvxtest_mmio_read(b.vm, 0xf0000, 4), 0x5f4d535f);

    /* again after a reset, though the guest overwrote everything */
    memset(hvxtest_ram(b.vm), 0xff, BOARD_RAM);
    b.type->reset(b.dev);
    assert_memory_equal(hvxtest_mem(b.vm, 0x100000, CODE_BYTES), image + SETUP_BYTES, CODE_BYTES);
    board_free(&b);
    remove_files(&f);
}

static void expect_refusal(const void *image, size_t n, const char *word)
{
    struct files f = {.kernel = ""};
    struct board b;
    struct hvx_error err = {0};
    write_file(f.kernel, image, n);
    int rc = try_boot(&b, &f, NULL, &err);
    assert_true(rc < 0);
    if (!strstr(err.text, word) || !strstr(err.text, f.kernel))
        fail_msg("the refusal lacks \"%s\" or the file: %s", word, err.text);
    board_free(&b);
    remove_files(&f);
}

static void too_little_memory_is_refused(void **state)
{
    (void)state;
    uint8_t image[SETUP_BYTES + CODE_BYTES];
    make_bzimage(image);
    memcpy(image + 0x258, (uint64_t[]){16u << 20}, 8); /* unpacks to 16 MiB, which is all there is */
    memcpy(image + 0x260, (uint32_t[]){4u << 20}, 4);
    expect_refusal(image, sizeof(image), "more memory");
    image[0x206] = 0x03; /* protocol 2.03 */
    expect_refusal(image, sizeof(image), "too old");
    make_bzimage(image);
    image[0x1f1] = 60; /* setup code longer than the file */
    expect_refusal(image, sizeof(image), "cut short");
}

static void what_is_no_kernel_is_refused(void **state)
{
    (void)state;
    uint8_t text[6000] = "#!/bin/sh\n";
    expect_refusal(text, sizeof(text), "neither");
    expect_refusal("", 0, "empty");
}

/* --- multiboot -------------------------------------------------------------------- */
static void put_header(uint8_t *at, uint32_t flags)
{
    uint32_t h[3] = {0x1badb002, flags, (uint32_t) - (0x1badb002 + flags)};
    memcpy(at, h, sizeof(h));
}

#define ELF_BYTES 0x2000

static Elf32_Phdr *make_elf(uint8_t *image)
{
    memset(image, 0, ELF_BYTES);
    Elf32_Ehdr h = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS32, ELFDATA2LSB, 1}, .e_type = ET_EXEC,
                    .e_machine = EM_386, .e_version = 1, .e_entry = 0xc0200010, .e_phoff = sizeof(h),
                    .e_ehsize = sizeof(h), .e_phentsize = sizeof(Elf32_Phdr), .e_phnum = 1};
    Elf32_Phdr p = {.p_type = PT_LOAD, .p_offset = 0x1000, .p_vaddr = 0xc0200000, .p_paddr = 0x200000,
                    .p_filesz = 0x100, .p_memsz = 0x3000};
    memcpy(image, &h, sizeof(h));
    memcpy(image + sizeof(h), &p, sizeof(p));
    put_header(image + 0x1000, 3);
    memset(image + 0x100c, 0x90, 0x40);
    return (Elf32_Phdr *)(void *)(image + sizeof(h));
}

static void multiboot_elf_with_a_module(void **state)
{
    (void)state;
    uint8_t *image = malloc(ELF_BYTES);
    struct files f = {.kernel = ""};
    struct board b;
    struct hvx_error err = {0};
    make_elf(image);
    write_file(f.kernel, image, ELF_BYTES);
    write_file(f.initrd, "module", 6);
    if (try_boot(&b, &f, "one two", &err))
        fail_msg("%s", err.text);
    const struct hvx_vcpu_regs *r = regs(&b);
    assert_int_equal(r->gpr[HVX_RAX], 0x2badb002);
    assert_int_equal(r->rip, 0x200010); /* virtual entry, loaded low */
    assert_memory_equal(hvxtest_mem(b.vm, 0x200000, 0x100), image + 0x1000, 0x100);
    uint32_t info = (uint32_t)r->gpr[HVX_RBX], flags = mem32(&b, info);
    assert_int_equal(flags & 0x4d, 0x4d);
    assert_int_equal(mem32(&b, info + 8), (BOARD_RAM >> 10) - 1024);
    assert_non_null(strstr(hvxtest_mem(b.vm, mem32(&b, info + 16), 100), " one two"));
    assert_int_equal(mem32(&b, info + 20), 1);
    uint32_t module = mem32(&b, info + 24);
    assert_int_equal(mem32(&b, module), 0x203000); /* after the zeroed data */
    assert_int_equal(mem32(&b, module + 4) - mem32(&b, module), 6);
    assert_memory_equal(hvxtest_mem(b.vm, 0x203000, 6), "module", 6);
    assert_string_equal((char *)hvxtest_mem(b.vm, mem32(&b, module + 8), 64), f.initrd);
    uint32_t mmap_bytes = mem32(&b, info + 44), mmap = mem32(&b, info + 48);
    assert_int_equal(mmap_bytes % 24, 0);
    assert_int_equal(mem32(&b, mmap), 20);
    assert_int_equal(mem32(&b, mmap + 12), 0x9fc00);
    board_free(&b);
    remove_files(&f);
    free(image);
}

static void multiboot_with_its_own_addresses(void **state)
{
    (void)state;
    uint8_t *image = calloc(1, ELF_BYTES);
    struct files f = {.kernel = ""};
    struct board b;
    struct hvx_error err = {0};
    /* header at 0x40 of the file, loaded at 0x300040; file from 0x20 on; bss */
    uint32_t addresses[5] = {0x300040, 0x300020, 0x301000, 0x302000, 0x300080};
    put_header(image + 0x40, 0x10000);
    memcpy(image + 0x4c, addresses, sizeof(addresses));
    image[0x80] = 0xf4;
    write_file(f.kernel, image, ELF_BYTES);
    if (try_boot(&b, &f, NULL, &err))
        fail_msg("%s", err.text);
    assert_int_equal(regs(&b)->rip, 0x300080);
    assert_int_equal(*(uint8_t *)hvxtest_mem(b.vm, 0x300080, 1), 0xf4);
    board_free(&b);
    remove_files(&f);
    free(image);
}

static void bad_elf_files_do_not_start(void **state)
{
    (void)state;
    uint8_t *image = malloc(ELF_BYTES);
    for (unsigned kind = 0; kind < 6; kind++) {
        struct files f = {.kernel = ""};
        struct board b;
        struct hvx_error err = {0};
        Elf32_Phdr *p = make_elf(image);
        switch (kind) {
        case 0: p->p_offset = 0xfffffff0; break;
        case 1: p->p_filesz = 0x5000; break;
        case 2: p->p_memsz = 0xf0000000; break;
        case 3: p->p_paddr = 0x90000; break;
        case 4: ((Elf32_Ehdr *)(void *)image)->e_phoff = 0xfffffff0; break;
        default: image[EI_CLASS] = ELFCLASS64; break;
        }
        write_file(f.kernel, image, ELF_BYTES);
        int rc = try_boot(&b, &f, NULL, &err);
        assert_true(rc < 0);
        assert_non_null(strstr(err.text, f.kernel));
        board_free(&b);
        remove_files(&f);
    }
    free(image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linux_by_the_32_bit_protocol), cmocka_unit_test(what_is_no_kernel_is_refused),
        cmocka_unit_test(too_little_memory_is_refused),
        cmocka_unit_test(multiboot_elf_with_a_module), cmocka_unit_test(multiboot_with_its_own_addresses),
        cmocka_unit_test(bad_elf_files_do_not_start),
    };
    return cmocka_run_group_tests_name("boot", tests, NULL, NULL);
}
