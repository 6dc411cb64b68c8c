/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening plugin files. The only file that uses libltdl.
 *
 * libltdl says "file not found" for a missing file, a missing library and a
 * missing symbol alike, and it binds lazily, so that an undefined function
 * would be found out in the middle of a guest's run. So each file is first
 * opened with dlopen(RTLD_NOW), whose message is the true one.
 */
#define _GNU_SOURCE
#include "core/plugin/loader.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <ltdl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* "/a/b/dev-pc.so" -> "dev-pc" */
static char *plugin_name(const char *path)
{
    const char *base = strrchr(path, '/') + 1;
    size_t n = strlen(base);
    return n > 3 && !strcmp(base + n - 3, ".so") ? strndup(base, n - 3) : NULL;
}

/* The dynamic linker maps a file that was cut short and then dies by SIGBUS:
 * look first. Returns what is wrong, or NULL. ELF-64 Object File Format 1.5. */
static const char *elf_problem(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return strerror(errno);
    const char *why = NULL;
    struct stat st;
    ElfW(Ehdr) h;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        why = "not a regular file";
    else if (pread(fd, &h, sizeof(h), 0) != sizeof(h) || memcmp(h.e_ident, ELFMAG, SELFMAG))
        why = "not an ELF file";
    else if (h.e_ident[EI_CLASS] != ELFCLASS64 || h.e_machine != EM_X86_64 || h.e_type != ET_DYN)
        why = "an ELF file, but not an x86-64 shared object";
    else if (h.e_shoff > (uint64_t)st.st_size || (uint64_t)h.e_shnum * sizeof(ElfW(Shdr)) > st.st_size - h.e_shoff)
        why = "a shared object that was cut short";
    for (unsigned i = 0; !why && i < h.e_phnum; i++) {
        ElfW(Phdr) p;
        if (pread(fd, &p, sizeof(p), (off_t)(h.e_phoff + i * sizeof(p))) != sizeof(p) ||
            p.p_offset > (uint64_t)st.st_size || p.p_filesz > st.st_size - p.p_offset)
            why = "a shared object that was cut short";
    }
    close(fd);
    return why;
}

static int open_failure(const char *path, const char *why, struct hvx_error *err)
{
    const char *remedy = "see 'file' and 'ldd' on it";
    if (strstr(why, "undefined symbol"))
        remedy = "a plugin may call nothing but its host table and its own libraries: link it with -Wl,-z,defs and see "
                 "what is missing";
    else if (strstr(why, "cannot open shared object file"))
        remedy = "install the library that it needs";
    return hvx_fail(err, -ELIBACC, "plugin %s refused: expected a shared object that loads, found: %s; %s", path, why,
                    remedy);
}

/* Bytes of the object at p, from the symbol table; 0 when it does not say. */
static size_t symbol_size(void *p)
{
    Dl_info info;
    ElfW(Sym) *sym = NULL;
    return dladdr1(p, &info, (void **)&sym, RTLD_DL_SYMENT) && sym && info.dli_saddr == p ? sym->st_size : 0;
}

static int check_module(struct hvx_module *m, struct hvx_error *err)
{
    char symbol[128];
    snprintf(symbol, sizeof(symbol), "hvx_plugin_%s", m->name);
    for (char *p = symbol; *p; p++)
        if (*p == '-')
            *p = '_';
    void *raw = lt_dlsym(m->handle, symbol);
    if (!raw)
        return hvx_fail(err, -ENOEXEC, "plugin %s refused: expected the symbol %s, found none; export it with "
                        "HVX_PLUGIN_DEFINE, and name the file after the plugin", m->path, symbol);
    return hvx_plugin_check(raw, symbol_size(raw), m->path, m->name, &m->desc, &m->ops, err);
}

int hvx_module_open(const char *path, struct hvx_module **out, struct hvx_error *err)
{
    if (path[0] != '/')
        return hvx_fail(err, -EINVAL, "plugin %s refused: expected an absolute path, found a relative one; a plugin is "
                        "never searched for in library folders", path);
    if (access(path, F_OK) < 0)
        return hvx_fail(err, -errno, "plugin %s refused: expected a file, found: %s; check plugin_dir in hvx.conf", path,
                        strerror(errno));
    const char *problem = elf_problem(path);
    if (problem)
        return hvx_fail(err, -ENOEXEC, "plugin %s refused: expected a shared object, found: %s; the file is damaged or "
                        "no plugin: install or build it again", path, problem);
    void *probe = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!probe) {
        const char *why = dlerror();
        return open_failure(path, why ? why : "an unknown error", err);
    }
    struct hvx_module *m = calloc(1, sizeof(*m));
    int r = -ENOMEM;
    if (!m)
        goto out;
    m->path = strdup(path);
    m->name = plugin_name(path);
    if (!m->path)
        goto out;
    if (!m->name) {
        r = hvx_fail(err, -EINVAL, "plugin %s refused: expected a name that ends in .so, found another; rename it", path);
        goto out;
    }
    if (lt_dlinit() != 0) {
        r = hvx_fail(err, -ELIBACC, "plugin %s: libltdl does not start: %s", path, lt_dlerror());
        goto out;
    }
    m->handle = lt_dlopen(path);
    if (!m->handle) {
        const char *why = lt_dlerror();
        r = open_failure(path, why ? why : "an unknown error", err);
        lt_dlexit();
        goto out;
    }
    r = check_module(m, err);
out:
    dlclose(probe);
    if (r < 0) {
        if (r == -ENOMEM)
            hvx_fail(err, r, "plugin %s: out of memory", path);
        hvx_module_close(m);
        return r;
    }
    *out = m;
    return 0;
}

void hvx_module_close(struct hvx_module *m)
{
    if (!m)
        return;
    hvx_ops_free(m->desc.family, m->ops);
    if (m->handle) {
        lt_dlclose(m->handle);
        lt_dlexit();
    }
    free(m->path);
    free(m->name);
    free(m);
}
