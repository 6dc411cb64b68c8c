/* SPDX-License-Identifier: Apache-2.0
 *
 * One source for the plugins that the loader's tests need: good ones by
 * default, and with -DBAD_... one that must be refused for that reason.
 *
 *   -DNAME=dev_sample -DTEXT='"dev-sample"'    identifier and name
 *   -DENGINE                                   an engine instead of a device
 *   -DTYPE='"sample"'                          name of the device type
 */
#include <hvx/cpu.h>
#include <hvx/device.h>
#include <hvx/plugin.h>

#include <stdlib.h>

#ifndef TYPE
#define TYPE "sample"
#endif
#ifndef RANK
#define RANK 10
#endif

static const struct hvx_option options[] = {
    {.name = "level", .type = HVX_OPT_INT, .min = 0, .max = 9, .def = "3", .help = "how much"},
    {.name = "mode", .type = HVX_OPT_ENUM, .choices = "fast|slow", .def = "fast", .help = "which way"},
    {.name = "cache", .type = HVX_OPT_SIZE, .min = 4096, .max = 1 << 30, .def = "1M", .help = "bytes kept"},
    {.name = "fail", .type = HVX_OPT_BOOL, .def = "no", .help = "refuse to start"},
#ifdef REQUIRED
    {.name = "key", .type = HVX_OPT_STRING, .flags = HVX_OPTF_REQUIRED, .help = "the key"},
#endif
#ifdef BAD_OPTIONS
    {.name = "level", .type = HVX_OPT_INT},
#endif
    {.name = NULL},
};

struct sample {
    const struct hvx_host *host;
    int64_t level;
};

static int sample_init(const struct hvx_host *host, const struct hvx_config *config, void **ctx, struct hvx_error *err)
{
    if (host->conf_bool(config, "fail"))
        return hvx_fail(err, -EPERM, "it was told to fail");
    struct sample *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->host = host;
    s->level = host->conf_int(config, "level");
    *ctx = s;
    return 0;
}

static void sample_fini(void *ctx)
{
    struct sample *s = ctx;
    s->host->log(HVX_LOG_INFO, TEXT, "fini at level %d", (int)s->level);
    free(s);
}

#ifdef ENGINE
static int engine_probe(void *ctx, struct hvx_error *err)
{
    (void)ctx;
    return hvx_fail(err, -ENOSYS, "a sample runs nothing");
}
static int engine_vm_create(void *ctx, struct hvx_vm *vm, const struct hvx_engine_config *cfg,
                            struct hvx_engine_vm **out, struct hvx_error *err)
{
    (void)vm, (void)cfg, (void)out;
    return engine_probe(ctx, err);
}
static void engine_vm_destroy(struct hvx_engine_vm *e) { (void)e; }
static int engine_set_slot(struct hvx_engine_vm *e, const struct hvx_mem_slot *slot, struct hvx_error *err)
{
    (void)slot;
    return engine_probe(e, err);
}
static int engine_vcpu_create(struct hvx_engine_vm *e, unsigned index, struct hvx_vcpu **out, struct hvx_error *err)
{
    (void)index, (void)out;
    return engine_probe(e, err);
}
static void engine_vcpu(struct hvx_vcpu *v) { (void)v; }
static int engine_vcpu_run(struct hvx_vcpu *v, struct hvx_exit *exit) { (void)v, (void)exit; return -ENOSYS; }
static int engine_vcpu_get(struct hvx_vcpu *v, struct hvx_vcpu_regs *r) { (void)v, (void)r; return -ENOSYS; }
static int engine_vcpu_set(struct hvx_vcpu *v, const struct hvx_vcpu_regs *r, struct hvx_error *err)
{
    (void)v, (void)r, (void)err;
    return -ENOSYS;
}
static int engine_state(struct hvx_engine_vm *e, struct hvx_stream *s) { (void)e, (void)s; return -ENOSYS; }
static void engine_irq(struct hvx_engine_vm *e, unsigned gsi, bool level) { (void)e, (void)gsi, (void)level; }
static void engine_msi(struct hvx_engine_vm *e, uint64_t addr, uint32_t data) { (void)e, (void)addr, (void)data; }
static void engine_code(struct hvx_engine_vm *e, uint64_t gpa, uint64_t n) { (void)e, (void)gpa, (void)n; }

static const struct hvx_cpu_ops ops = {
#ifdef BAD_OPS_SIZE
    .size = 40,
#else
    .size = sizeof(ops),
#endif
    .rank = RANK,
    .probe = engine_probe,
    .vm_create = engine_vm_create,
    .vm_destroy = engine_vm_destroy,
    .set_slot = engine_set_slot,
    .vcpu_create = engine_vcpu_create,
    .vcpu_destroy = engine_vcpu,
    .vcpu_reset = engine_vcpu,
#ifndef BAD_CALLBACK
    .vcpu_run = engine_vcpu_run,
    .vcpu_kick = engine_vcpu,
#endif
    .vcpu_get = engine_vcpu_get,
    .vcpu_set = engine_vcpu_set,
    .irqchip_reset = engine_vm_destroy,
    .irqchip_state = engine_state,
    .irq_line = engine_irq,
    .msi = engine_msi,
    .code_written = engine_code,
};
#else
static int type_create(void *ctx, struct hvx_vm *vm, const struct hvx_config *config, void **dev, struct hvx_error *err)
{
    (void)vm, (void)config, (void)err;
    *dev = ctx;
    return 0;
}
static void type_nothing(void *dev) { (void)dev; }

static const struct hvx_device_type type = {
#ifdef BAD_TYPE_SIZE
    .size = 16,
#else
    .size = sizeof(type),
#endif
    .role = HVX_ROLE_RNG,
    .rank = RANK,
    .version = 1,
    .name = TYPE,
    .summary = "does nothing",
    .create = type_create,
    .destroy = type_nothing,
#ifndef BAD_CALLBACK
    .reset = type_nothing,
#endif
};
#ifdef BAD_TWO_TYPES
static const struct hvx_device_type *const types[] = {&type, &type};
#else
static const struct hvx_device_type *const types[] = {&type};
#endif
#ifdef LONGER_OPS /* as a later version of the header would make them */
static const struct {
    struct hvx_device_ops known;
    void (*later[3])(void);
} longer = {.known = {.size = sizeof(longer), .n_types = sizeof(types) / sizeof(types[0]), .types = types}};
#define OPS &longer.known
#else
static const struct hvx_device_ops ops = {.size = sizeof(ops), .n_types = sizeof(types) / sizeof(types[0]), .types = types};
#endif
#endif

#ifdef BAD_UNDEFINED
void a_function_that_nobody_has(void);
__attribute__((visibility("default"))) void (*const reference)(void) = a_function_that_nobody_has;
#endif
#ifdef BAD_UNDEFINED_LAZY
void a_function_that_nobody_has(void);
__attribute__((visibility("default"))) void calls_it(void) { a_function_that_nobody_has(); }
#endif

#ifdef ENGINE
#define FAMILY HVX_FAMILY_CPU
#else
#define FAMILY HVX_FAMILY_DEVICE
#endif
static const char *const capabilities[] = {"sampling", "nothing-else", NULL};

#ifndef OPS
#define OPS &ops
#endif

/* By hand rather than by HVX_PLUGIN_DEFINE, so that each field can be wrong. */
#define GLUE(a, b) a##b
#define SYMBOL(name) GLUE(hvx_plugin_, name)
#ifndef BAD_SYMBOL
extern const struct hvx_plugin SYMBOL(NAME);
__attribute__((visibility("default"))) const struct hvx_plugin SYMBOL(NAME) = {
    .size = sizeof(struct hvx_plugin),
    .magic = HVX_PLUGIN_MAGIC,
    .abi_major = HVX_ABI_MAJOR,
    .family = FAMILY,
#ifndef BAD_NAME
    .name = TEXT,
#else
    .name = "another",
#endif
    .version = "1.2",
    .summary = "a sample",
#ifndef BAD_LICENSE
    .license = "Apache-2.0",
#endif
    .options = options,
    .capabilities = capabilities,
#ifndef BAD_INIT
    .init = sample_init,
#endif
    .fini = sample_fini,
#ifndef BAD_OPS
    .ops = OPS,
#endif
#ifdef OVERRIDE
    OVERRIDE, /* such as -DOVERRIDE=.magic=7; the last initialiser wins */
#endif
};
#endif
