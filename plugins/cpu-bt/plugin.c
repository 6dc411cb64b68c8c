/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/plugin.c - the engine as core sees it: hvx/cpu.h. Ordinary C.
 */
#define _GNU_SOURCE
#include "apic.h"
#include "cache.h"
#include "cpu_model.h"
#include "direct.h"
#include "perf_map.h"
#include "kdirect.h"
#include "mmu.h"
#include "phys.h"
#include "run.h"
#include "state.h"
#include "trans.h"
#include "translate.h"
#include "warm.h"
#include <cpuid.h>
#include <fcntl.h>
#include <hvx/plugin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct engine {
    const struct hvx_host *host;
};

static int bt_init(const struct hvx_host *host, const struct hvx_config *config, void **ctx, struct hvx_error *err)
{
    (void)config;
    struct engine *e = calloc(1, sizeof(*e));
    if (!e)
        return hvx_fail(err, -ENOMEM, "cpu-bt: out of memory");
    e->host = host;
    *ctx = e;
    return 0;
}
static void bt_fini(void *ctx) { free(ctx); }

static bool host_has(unsigned leaf, unsigned reg, unsigned bit)
{
    unsigned r[4];
    return __get_cpuid_count(leaf, 0, &r[0], &r[1], &r[2], &r[3]) && (r[reg] >> bit & 1);
}

static int bt_probe_engine(void *ctx, struct hvx_error *err)
{
    (void)ctx;
    if (!host_has(1, 2, 27))
        return hvx_fail(err, -ENOTSUP, "cpu-bt: this CPU has no XSAVE; it needs a processor of 2011 or later");
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (p == MAP_FAILED)
        return hvx_fail(err, -errno,
                        "cpu-bt: the host refuses writable and executable memory below 2 GiB (%s); a security module "
                        "may forbid it",
                        strerror(errno));
    munmap(p, 4096);
    return 0;
}

/* --- VM -------------------------------------------------------------------------- */
static uint64_t host_xcr0(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return ((uint64_t)hi << 32 | lo) & 0xe7;
}

/* perf wants it to be ours; others could put something there first. */
static int perf_map_open(struct bt_vm *vm, struct hvx_error *err)
{
    char path[40];
    struct stat st;
    snprintf(path, sizeof(path), "/tmp/perf-%ld.map", (long)getpid());
    vm->perf_map_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
    if (vm->perf_map_fd < 0)
        return hvx_fail(err, -errno, "cpu-bt: perf-map: cannot open %s: %s", path, strerror(errno));
    if (fstat(vm->perf_map_fd, &st) || !S_ISREG(st.st_mode) || st.st_uid != geteuid() || st.st_nlink != 1 ||
        ftruncate(vm->perf_map_fd, 0))
        return hvx_fail(err, -EPERM, "cpu-bt: perf-map: %s is there already and is not a file of ours; remove it",
                        path);
    return 0;
}

static void vm_destroy(struct hvx_engine_vm *e)
{
    struct bt_vm *vm = (struct bt_vm *)e;
    if (!vm)
        return;
    free(vm->direct_ram);
    if (vm->perf_map_fd >= 0)
        close(vm->perf_map_fd);
    bt_kd_destroy(vm->kd);
    bt_irqchip_destroy(vm);
    bt_cpuid_destroy(vm);
    bt_sync_destroy(vm);
    bt_phys_destroy(vm);
    pthread_mutex_destroy(&vm->direct_lock);
    pthread_mutex_destroy(&vm->lock);
    free(vm);
}

static int vm_create(void *ctx, struct hvx_vm *hvm, const struct hvx_engine_config *cfg, struct hvx_engine_vm **out,
                     struct hvx_error *err)
{
    struct engine *e = ctx;
    int rc = bt_probe_engine(ctx, err);
    if (rc)
        return rc;
    if (cfg->n_vcpus < 1 || cfg->n_vcpus > HVX_MAX_VCPUS)
        return hvx_fail(err, -EINVAL, "cpu-bt: %u vCPUs asked for, 1 to %u are possible", cfg->n_vcpus, HVX_MAX_VCPUS);
    struct bt_vm *vm = calloc(1, sizeof(*vm));
    if (!vm)
        return hvx_fail(err, -ENOMEM, "cpu-bt: out of memory");
    vm->hvm = hvm;
    vm->host = e->host;
    vm->n_vcpus = cfg->n_vcpus;
    vm->host_tsc_hz = bt_host_tsc_hz();
    vm->tsc_hz = cfg->tsc_hz ? cfg->tsc_hz : vm->host_tsc_hz;
    if (vm->tsc_hz < BT_TSC_HZ_MIN || vm->tsc_hz > BT_TSC_HZ_MAX) {
        rc = hvx_fail(err, -EINVAL, "cpu-bt: a TSC of %llu Hz; 100 MHz to 10 GHz are possible",
                      (unsigned long long)vm->tsc_hz);
        free(vm);
        return rc;
    }
    vm->perf_map_fd = -1;
    vm->host_xcr0 = host_xcr0();
    vm->have_bmi2 = host_has(7, 1, 8);
    vm->direct_ram = calloc(DIRECT_MAX_RAM, sizeof(*vm->direct_ram));
    const char *direct = cfg->options ? e->host->conf_string(cfg->options, "direct") : "off";
    if (cfg->options) {
        vm->warm_path = e->host->conf_string(cfg->options, "translation-cache");
        vm->warm_verify = e->host->conf_bool(cfg->options, "translation-cache-verify");
    }
    vm->direct_kernel = !strcmp(direct, "kernel") || !strcmp(direct, "all");
    vm->direct_user = !strcmp(direct, "user") || !strcmp(direct, "all");
    vm->direct_helpers = cfg->options ? (unsigned)e->host->conf_int(cfg->options, "direct-helpers") : 1;
    vm->direct_eager = cfg->options && e->host->conf_bool(cfg->options, "direct-eager");
    if (!vm->direct_ram) {
        free(vm);
        return hvx_fail(err, -ENOMEM, "cpu-bt: out of memory");
    }
    pthread_mutex_init(&vm->lock, NULL);
    pthread_mutex_init(&vm->direct_lock, NULL);
    vm->direct_maker_fd = vm->direct_maker_pidfd = -1;
    vm->kd = bt_kd_create(vm);
    rc = bt_sync_create(vm);
    if (!rc)
        rc = bt_cpuid_create(vm, cfg->cpu_model ? cfg->cpu_model
                                 : cfg->options ? e->host->conf_string(cfg->options, "cpu") : "host", err);
    if (!rc && (rc = bt_irqchip_create(vm)))
        hvx_fail(err, rc, "cpu-bt: cannot make the interrupt controllers");
    if (!rc)
        rc = bt_signals_install(err);
    if (!rc && cfg->options && e->host->conf_bool(cfg->options, "perf-map"))
        rc = perf_map_open(vm, err);
    if (rc) {
        vm_destroy((struct hvx_engine_vm *)vm);
        return rc;
    }
    *out = (struct hvx_engine_vm *)vm;
    return 0;
}

/* What [gpa, gpa + n) is has changed: each vCPU forgets what it knows of it. Large slots come and go before the guest
 * runs only. */
static void forget_range(struct bt_vm *vm, struct bt_vcpu *self, uint64_t gpa, uint64_t n)
{
    uint64_t mask = vm->n_vcpus == 64 ? ~0ull : (1ull << vm->n_vcpus) - 1;
    unsigned what = n > 16u << 20 ? BT_SYNC_FLUSH : BT_SYNC_RANGE;
    if (!n)
        return;
    if (self) /* in a device's callback: no translation of ours is in use, the dispatcher is in time */
        bt_sync_request(vm, NULL, 1ull << self->index, what, gpa, n, false);
    bt_sync_request(vm, self, mask, what, gpa, n, true);
}

static int set_slot(struct hvx_engine_vm *e, const struct hvx_mem_slot *slot, struct hvx_error *err)
{
    struct bt_vm *vm = (struct bt_vm *)e;
    struct hvx_mem_slot old = {0};
    pthread_mutex_lock(&vm->lock);
    for (unsigned i = 0; i < vm->n_slots; i++)
        if (vm->slots[i].id == slot->id)
            old = vm->slots[i];
    pthread_mutex_unlock(&vm->lock);
    int rc = bt_phys_set_slot(vm, slot, err);
    if (rc)
        return rc;
    bt_kd_slots_changed(vm);
    struct bt_vcpu *self = NULL;
    for (unsigned i = 0; i < vm->n_vcpus; i++)
        if (vm->vcpu[i] && bt_thread_is(vm->vcpu[i]))
            self = vm->vcpu[i];
    forget_range(vm, self, old.gpa, old.bytes);
    forget_range(vm, self, slot->gpa, slot->bytes);
    return 0;
}

static void code_written(struct hvx_engine_vm *e, uint64_t gpa, uint64_t n)
{
    struct bt_vm *vm = (struct bt_vm *)e;
    for (uint64_t p = gpa & ~0xfffull; p < gpa + n; p += 4096) {
        struct bt_page_chunk *ch = bt_chunk(vm, p);
        if (!ch)
            continue;
        uint64_t mask = atomic_load(&ch->code[bt_chunk_page(p)]);
        if (!mask)
            continue;
        uint64_t from = p < gpa ? gpa : p, to = p + 4096 < gpa + n ? p + 4096 : gpa + n;
        bt_sync_request(vm, NULL, mask, BT_SYNC_INVALIDATE, from, to - from, false);
    }
}

/* --- vCPU ----------------------------------------------------------------------------- */
static void set_segment(struct hvx_segment *s, uint16_t sel, uint64_t base, uint32_t limit, uint16_t attr)
{
    s->selector = sel;
    s->base = base;
    s->limit = limit;
    s->attr = attr;
}

/* SDM volume 3, table "IA-32 and Intel 64 Processor States Following Power-up, Reset, or INIT". */
void bt_vcpu_init(struct bt_vcpu *c, bool init)
{
    memset(c->gpr, 0, sizeof(c->gpr));
    uint32_t id[4];
    bt_cpuid(c, 1, 0, id);
    c->gpr[BT_RDX] = id[0];
    c->rip = 0xfff0;
    bt_set_rflags(c, 2);
    for (unsigned i = 0; i < 6; i++)
        set_segment(&c->seg[i], 0, 0, 0xffff, 0x93);
    set_segment(&c->seg[BT_CS], 0xf000, 0xffff0000u, 0xffff, 0x9b);
    set_segment(&c->ldtr, 0, 0, 0xffff, 0x82);
    set_segment(&c->tr, 0, 0, 0xffff, 0x8b);
    c->gdt_base = c->idt_base = 0;
    c->gdt_limit = c->idt_limit = 0xffff;
    c->cr0 = init ? (c->cr0 & 0x60000000u) | 0x10 : 0x60000010u;
    c->cr2 = c->cr3 = c->cr4 = 0;
    c->efer = 0;
    memset(c->dr, 0, sizeof(c->dr));
    c->dr[6] = 0xffff0ff0u;
    c->dr[7] = 0x400;
    c->cpl = 0;
    c->halted = c->shadow = c->force_careful = c->force_single = c->nmi_masked = c->nmi_held = c->irq_wait = 0;
    c->delivering = -1;
    c->exc.valid = c->inject.valid = 0;
    c->bounce.active = 0;
    c->cache->helper_ret = 0;
    if (!init) {
        c->xcr0 = 1;
        c->xss = 0;
        bt_msr_reset(c);
        c->fp_live = 0;
        memset(c->xsave, 0, sizeof(c->xsave));
        c->xsave[0] = 0x40; /* FCW */
        *(uint32_t *)(c->xsave + 24) = 0x1f80;
        c->xsave[512] = 1; /* XSTATE_BV: x87 */
        c->wait_sipi = c->index != 0;
        atomic_fetch_and(&c->pending, BT_PEND_KICK);
    }
    bt_apic_reset(c, init);
    for (unsigned i = 0; i < 6; i++)
        bt_seg_update(c, i);
    bt_mode_update(c);
    bt_tlb_flush_all(c);
    bt_direct_reset(c);
    if (!init)
        bt_cache_flush(c);
}

#define HUGE_PAGE ((size_t)2 << 20)

static size_t up(size_t n) { return (n + 4095) & ~(size_t)4095; }

static void vcpu_destroy(struct hvx_vcpu *v)
{
    struct bt_vcpu *c = (struct bt_vcpu *)v;
    if (!c)
        return;
    bt_direct_destroy(c->vm); /* of all vCPUs: none runs any more */
    bt_warm_finish(c->vm);    /* likewise */
    c->vm->vcpu[c->index] = NULL;
    bt_apic_destroy(c);
    bt_trans_destroy(c->trans);
    bt_perf_map_flush(c);
    free(c->perf_map);
    if (c->cache) {
        munmap(c->cache->blocks, BT_MAX_BLOCKS * sizeof(struct bt_block));
        munmap(c->cache->exits, BT_MAX_EXITS * sizeof(struct bt_exit));
        munmap(c->cache->map, BT_MAX_MAP);
        munmap(c->cache->recipes, BT_MAX_RECIPES * sizeof(struct again));
        munmap(c->cache->relocs, BT_MAX_RELOCS_KEPT * sizeof(struct bt_kept_reloc));
        munmap(c->cache->pages, c->cache->max_pages * sizeof(struct bt_codepage));
    }
    bt_mmu_destroy(c);
    munmap(c->region, c->region_size);
}

/* Huge pages for what is looked up while a guest runs; the rest takes no more than it fills. */
static void *reserve(size_t n, bool huge)
{
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    (void)madvise(p, n, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    (void)madvise(p, n, MADV_DONTFORK); /* see region_map() */
    return p;
}

/* Below 2 GiB and in huge pages: translations are large and jumped about in, and the host's TLBs are small. Not for
 * processes that are forked later: they would keep the pages as they are now, beside ours. */
static uint8_t *region_map(size_t n)
{
    uint8_t *p = mmap(NULL, n + HUGE_PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    uint8_t *r = (uint8_t *)(((uintptr_t)p + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    if (r > p)
        munmap(p, (size_t)(r - p));
    if (r + n < p + n + HUGE_PAGE)
        munmap(r + n, (size_t)(p + HUGE_PAGE - r));
    (void)madvise(r, n, MADV_HUGEPAGE); /* a wish */
    (void)madvise(r, n, MADV_DONTFORK);
    return r;
}

static int vcpu_create(struct hvx_engine_vm *e, unsigned index, struct hvx_vcpu **out, struct hvx_error *err)
{
    struct bt_vm *vm = (struct bt_vm *)e;
    size_t o_cache = up(sizeof(struct bt_vcpu)), o_tlb = o_cache + up(sizeof(struct bt_cache));
    size_t n_tlb = up(BT_TLB_SIZE * sizeof(struct bt_tlb_entry)), n_jc = up(BT_JC_SIZE * 4);
    size_t o_jc = o_tlb + 2 * n_tlb, o_stubs = o_jc + 2 * n_jc, o_hot = o_stubs + 16384;
    size_t o_cold = up(o_hot + BT_HOT_BYTES(vm->n_vcpus)), o_win = up(o_cold + BT_COLD_BYTES(vm->n_vcpus));
    size_t o_ret = o_win + 4 * 4096, n_ret = 4096 + BT_RET_BYTES, total = o_ret + 2 * n_ret;
    uint8_t *r = region_map(total);
    if (!r)
        return hvx_fail(err, -ENOMEM,
                        "cpu-bt: no room for vCPU %u's %zu MiB of translations below 2 GiB; use fewer vCPUs", index,
                        total >> 20);
    struct bt_vcpu *c = (struct bt_vcpu *)r;
    c->region = r;
    c->region_size = total;
    c->vm = vm;
    c->host = vm->host;
    c->index = index;
    c->apic_id = index;
    c->delivering = -1;
    atomic_store(&c->quiescent, 1);
    c->cache = (struct bt_cache *)(r + o_cache);
    struct bt_cache *k = c->cache;
    for (unsigned t = 0; t < 2; t++) {
        c->tlb[t] = (struct bt_tlb_entry *)(r + o_tlb + t * n_tlb);
        c->jc[t] = (uint32_t *)(r + o_jc + t * n_jc);
    }
    c->window.base = r + o_win;
    mprotect(r + o_win, 4096, PROT_NONE);
    mprotect(r + o_win + 2 * 4096, 2 * 4096, PROT_NONE);
    for (unsigned t = 0; t < 2; t++) {
        mprotect(r + o_ret + t * n_ret, 4096, PROT_NONE);
        k->ret_top[t] = (uint32_t)(uintptr_t)(r + o_ret + (t + 1) * n_ret - BT_RET_SPARE);
    }
    k->stubs_start = (uint32_t)(uintptr_t)(r + o_stubs);
    k->stubs_end = k->stubs_start + 16384;
    k->hot = k->hot_p = r + o_hot;
    k->hot_end = r + o_cold;
    k->cold = k->cold_p = r + o_cold;
    k->cold_end = r + o_win;
    k->most = BT_HELD_BYTES(vm->n_vcpus);
    k->max_pages = 65536;
    k->n_pages = 1;
    k->blocks = reserve(BT_MAX_BLOCKS * sizeof(struct bt_block), true);
    k->exits = reserve(BT_MAX_EXITS * sizeof(struct bt_exit), true);
    k->map = reserve(BT_MAX_MAP, false);
    k->relocs = reserve(BT_MAX_RELOCS_KEPT * sizeof(struct bt_kept_reloc), false);
    k->recipes = reserve(BT_MAX_RECIPES * sizeof(struct again), false);
    k->pages = reserve(k->max_pages * sizeof(struct bt_codepage), false);
    c->trans = bt_trans_create(c);
    if (vm->perf_map_fd >= 0 && (c->perf_map = calloc(1, sizeof(*c->perf_map))))
        c->perf_map->fd = vm->perf_map_fd, c->perf_map->written = &vm->perf_map_bytes;
    if (!k->blocks || !k->exits || !k->map || !k->relocs || !k->recipes || !k->pages || !c->trans || bt_mmu_create(c) ||
        bt_apic_create(c)) {
        vm->vcpu[index] = c;
        vcpu_destroy((struct hvx_vcpu *)c);
        return hvx_fail(err, -ENOMEM, "cpu-bt: out of memory for vCPU %u", index);
    }
    bt_stubs_emit(c);
    bt_perf_map_stubs(c);
    for (unsigned t = 0; t < 2; t++)
        for (unsigned i = 0; i < BT_JC_SIZE; i++)
            c->jc[t][i] = k->stub_jc_miss[t];
    k->n_blocks = k->n_exits = k->n_kpage = 1;
    vm->vcpu[index] = c;
    bt_vcpu_init(c, false);
    *out = (struct hvx_vcpu *)c;
    return 0;
}

static void vcpu_reset(struct hvx_vcpu *v) { bt_vcpu_init((struct bt_vcpu *)v, false); }

static int vcpu_run(struct hvx_vcpu *v, struct hvx_exit *exit)
{
    struct bt_vcpu *c = (struct bt_vcpu *)v;
    if (!bt_thread_is(c) || !c->tid) /* another vCPU may have been at this place before */
        bt_signals_thread(c);
    bt_kd_start(c);
    int rc = bt_vcpu_run(c, exit);
    if (exit->reason == HVX_EXIT_ERROR)
        snprintf(exit->text, sizeof(exit->text), "%s (rip %#llx, cs base %#llx, cr0 %#llx, mode %#x)",
                 (const char *)(uintptr_t)c->exit_arg, (unsigned long long)c->rip,
                 (unsigned long long)c->seg[BT_CS].base, (unsigned long long)c->cr0, c->mode);
    return rc;
}

static void vcpu_kick(struct hvx_vcpu *v) { bt_kick((struct bt_vcpu *)v, BT_PEND_KICK); }

static int debug_set(struct hvx_vcpu *v, const struct hvx_debug *d) { return bt_debug_set((struct bt_vcpu *)v, d); }

static int vcpu_get(struct hvx_vcpu *v, struct hvx_vcpu_regs *r)
{
    struct bt_vcpu *c = (struct bt_vcpu *)v;
    bt_fp_save(c);
    r->mp_state = c->wait_sipi ? 2 : c->halted ? 1 : 0;
    memcpy(r->gpr, c->gpr, sizeof(r->gpr));
    r->rip = c->rip;
    r->rflags = bt_rflags(c);
    memcpy(r->seg, c->seg, sizeof(r->seg));
    r->ldtr = c->ldtr;
    r->tr = c->tr;
    r->gdt_base = c->gdt_base;
    r->idt_base = c->idt_base;
    r->gdt_limit = c->gdt_limit;
    r->idt_limit = c->idt_limit;
    r->cr0 = c->cr0;
    r->cr2 = c->cr2;
    r->cr3 = c->cr3;
    r->cr4 = c->cr4;
    r->cr8 = bt_apic_get_tpr(c);
    r->efer = c->efer;
    r->xcr0 = c->xcr0;
    r->xss = c->xss;
    memcpy(r->dr, c->dr, sizeof(r->dr));
    r->tsc = bt_guest_tsc(c);
    r->tsc_aux = c->tsc_aux;
    r->star = c->star;
    r->lstar = c->lstar;
    r->cstar = c->cstar;
    r->sfmask = c->sfmask;
    r->kernel_gs_base = c->kernel_gs_base;
    r->sysenter_cs = c->sysenter_cs;
    r->sysenter_esp = c->sysenter_esp;
    r->sysenter_eip = c->sysenter_eip;
    r->pat = c->pat;
    r->misc_enable = c->misc_enable;
    r->interrupt_shadow = c->shadow;
    r->nmi_masked = c->nmi_masked;
    r->pending_exception = c->exc.valid ? 0x80000000u | (c->exc.has_error ? 0x100u : 0) | c->exc.vector : 0;
    r->pending_error_code = c->exc.error;
    bt_msr_get_all(c, r);
    bt_apic_get(c, r);
    bt_events_get(c, r);
    r->xsave_size = 2696 < HVX_XSAVE_MAX ? 2696 : HVX_XSAVE_MAX;
    memcpy(r->xsave, c->xsave, sizeof(r->xsave));
    return 0;
}

/* The vCPUs' counters must agree to the cycle, and r->tsc is as old as the call
 * that read it: a value within a second of what this vCPU or another one shows
 * means that one's. */
static void set_tsc(struct bt_vcpu *c, uint64_t tsc)
{
    uint64_t offset = tsc - bt_tsc_scale(c->vm, bt_host_tsc());
    if (!tsc && c->vm->direct_user && !c->vm->tsc_ratio) /* power-on: see bt_msr_reset() */
        offset = 0;
    for (unsigned i = 0; i < c->vm->n_vcpus; i++) {
        const struct bt_vcpu *o = c->vm->vcpu[(c->index + i) % c->vm->n_vcpus];
        int64_t d = o ? (int64_t)(offset - o->tsc_offset) : INT64_MAX;
        if (d > -(int64_t)c->vm->tsc_hz && d < (int64_t)c->vm->tsc_hz) {
            c->tsc_offset = o->tsc_offset;
            return;
        }
    }
    c->tsc_offset = offset;
}

static int vcpu_set(struct hvx_vcpu *v, const struct hvx_vcpu_regs *r, struct hvx_error *err)
{
    struct bt_vcpu *c = (struct bt_vcpu *)v;
    if (r->xcr0 & ~bt_cpuid_xcr0(c->vm))
        return hvx_fail(err, -ENOTSUP,
                        "cpu-bt: the saved state uses XSAVE features %#llx, the CPU model here has %#llx; "
                        "start the VM with the --cpu that it was saved with",
                        (unsigned long long)r->xcr0, (unsigned long long)bt_cpuid_xcr0(c->vm));
    int rc = bt_state_check(c, r, err);
    if (rc)
        return rc;
    c->wait_sipi = r->mp_state == 2;
    c->halted = r->mp_state == 1;
    memcpy(c->gpr, r->gpr, sizeof(c->gpr));
    c->rip = r->rip;
    bt_set_rflags(c, (uint32_t)r->rflags);
    memcpy(c->seg, r->seg, sizeof(c->seg));
    c->ldtr = r->ldtr;
    c->tr = r->tr;
    c->gdt_base = r->gdt_base;
    c->idt_base = r->idt_base;
    c->gdt_limit = r->gdt_limit;
    c->idt_limit = r->idt_limit;
    c->cr0 = r->cr0 | 0x10;
    c->cr2 = r->cr2;
    c->cr3 = r->cr3;
    c->cr4 = r->cr4;
    c->efer = r->efer;
    c->xcr0 = r->xcr0 | 1;
    c->xss = r->xss;
    memcpy(c->dr, r->dr, sizeof(c->dr));
    set_tsc(c, r->tsc);
    c->tsc_aux = r->tsc_aux;
    c->star = r->star;
    c->lstar = r->lstar;
    c->cstar = r->cstar;
    c->sfmask = r->sfmask;
    c->kernel_gs_base = r->kernel_gs_base;
    c->sysenter_cs = r->sysenter_cs;
    c->sysenter_esp = r->sysenter_esp;
    c->sysenter_eip = r->sysenter_eip;
    c->pat = r->pat;
    c->misc_enable = r->misc_enable;
    bt_msr_set_all(c, r);
    c->shadow = (uint8_t)r->interrupt_shadow;
    c->nmi_masked = (uint8_t)r->nmi_masked;
    c->cpl = c->sysflags & BT_VM ? 3 : (c->cr0 & BT_CR0_PE) ? c->seg[BT_SS].attr >> 5 & 3 : 0;
    c->inject.valid = r->pending_exception >> 31;
    c->inject.vector = (uint8_t)r->pending_exception;
    c->inject.has_error = r->pending_exception >> 8 & 1;
    c->inject.error = r->pending_error_code;
    c->fp_live = 0;
    if (r->xsave_size >= 576) {
        memcpy(c->xsave, r->xsave, sizeof(c->xsave));
        uint64_t *hdr = (uint64_t *)(c->xsave + 512);
        hdr[0] &= c->vm->host_xcr0;
        for (unsigned i = 1; i < 8; i++)
            hdr[i] = 0;
        *(uint32_t *)(c->xsave + 24) &= c->vm->mxcsr_mask;
    }
    bt_apic_set(c, r);
    for (unsigned i = 0; i < 6; i++)
        bt_seg_update(c, i);
    bt_mode_update(c);
    bt_cache_flush(c);
    bt_tlb_flush_all(c);
    bt_direct_reset(c);
    bt_load_pdptes(c);
    bt_events_set(c, r);
    atomic_fetch_or(&c->pending, BT_PEND_IRQ);
    return 0;
}

/* PAE without long mode keeps four entries in registers. */
void bt_load_pdptes(struct bt_vcpu *c)
{
    if (!(c->cr0 & BT_CR0_PG) || !(c->cr4 & BT_CR4_PAE) || bt_long_mode(c))
        return;
    uintptr_t p = bt_phys_page(c->vm, c->cr3 & 0xffffffe0u);
    if (p)
        memcpy(c->pdpte, (void *)((p & ~0xfffull) | (c->cr3 & 0xfe0)), 32);
}

static void irqchip_reset(struct hvx_engine_vm *e) { bt_irqchip_reset((struct bt_vm *)e); }
static int irqchip_state(struct hvx_engine_vm *e, struct hvx_stream *s)
{
    return bt_irqchip_state((struct bt_vm *)e, s);
}
static int model_state(struct hvx_engine_vm *e, struct hvx_stream *s) { return bt_model_state((struct bt_vm *)e, s); }
static void irq_line(struct hvx_engine_vm *e, unsigned gsi, bool level) { bt_irq_line((struct bt_vm *)e, gsi, level); }
static void irq_tick(struct hvx_engine_vm *e, unsigned gsi, unsigned n) { bt_irq_tick((struct bt_vm *)e, gsi, n); }
static void msi(struct hvx_engine_vm *e, uint64_t addr, uint32_t data) { bt_msi((struct bt_vm *)e, addr, data); }

/* What its translations take at the moment, part by part. */
static void memory_stats(const struct bt_vcpu *c, const char *g, hvx_stat_fn fn, void *opaque)
{
    const struct bt_cache *k = c->cache;
    uint64_t hot = (uint64_t)(k->hot_p - k->hot), cold = (uint64_t)(k->cold_p - k->cold), dead = 0;
    for (uint32_t i = 1; i < k->n_blocks; i++)
        dead += k->blocks[i].dead;
    fn(opaque, g, "held", bt_cache_held(c), "bytes");
    fn(opaque, g, "held_blocks", k->n_blocks - 1, "blocks");
    fn(opaque, g, "held_dead", dead, "blocks");
    fn(opaque, g, "held_hot", hot, "bytes");
    fn(opaque, g, "held_cold", cold, "bytes");
    fn(opaque, g, "held_records", k->n_blocks * sizeof(k->blocks[0]), "bytes");
    fn(opaque, g, "held_exits", k->n_exits * sizeof(k->exits[0]), "bytes");
    fn(opaque, g, "held_map", k->n_map, "bytes");
    fn(opaque, g, "held_recipes", k->n_recipes * sizeof(k->recipes[0]), "bytes");
    fn(opaque, g, "held_relocs", k->n_relocs * sizeof(k->relocs[0]), "bytes");
    fn(opaque, g, "held_pages", k->n_pages * sizeof(k->pages[0]), "bytes");
    /* jump caches, TLBs, hashes: of one size, however much there is */
    fn(opaque, g, "fixed_tables", (uint64_t)(k->hot - c->region) + sizeof(*c->mmu), "bytes");
}

static void stats(struct hvx_engine_vm *e, hvx_stat_fn fn, void *opaque)
{
    struct bt_vm *vm = (struct bt_vm *)e;
    for (unsigned i = 0; i < vm->n_vcpus; i++) {
        struct bt_vcpu *c = vm->vcpu[i];
        char g[16];
        if (!c)
            continue;
        snprintf(g, sizeof(g), "vcpu%u", i);
#define S(field, unit) fn(opaque, g, #field, c->st.field, unit)
        S(blocks, "blocks");
        S(insns_translated, "instructions");
        fn(opaque, g, "translate_ns", (uint64_t)((double)c->st.translate_cycles * 1e9 / (double)vm->host_tsc_hz), "ns");
        S(code_bytes, "bytes");
        S(chains, "links");
        S(dispatches, "times");
        S(jc_miss, "times");
        S(inline_miss, "times");
        S(inline_learnt, "times");
        S(inline_opened, "sites");
        S(traces, "times");
        S(c_ops, "times");
        S(slow_accesses, "times");
        fn(opaque, g, "tlb_misses_kernel", c->st.tlb_miss[0], "times");
        fn(opaque, g, "tlb_misses_user", c->st.tlb_miss[1], "times");
        S(tlb_flush, "times");
        S(tlb_flush_global, "times");
        S(invlpg, "times");
        S(bounces, "times");
        S(careful, "times");
        S(mmio, "exits");
        S(pio, "exits");
        S(halts, "exits");
        S(moved, "blocks");
        S(smc_invalidations, "blocks");
        S(cache_flushes, "times");
        S(exceptions, "times");
        S(page_faults, "times");
        S(interrupts, "times");
        S(kicks, "signals");
        S(unchains, "blocks");
        S(sync_requests, "times");
        if (vm->warm) {
            S(warm_loaded, "blocks");
            S(warm_kept, "blocks");
            S(warm_lost, "blocks");
            fn(opaque, g, "warm_ns", (uint64_t)((double)c->st.warm_cycles * 1e9 / (double)vm->host_tsc_hz), "ns");
            if (vm->warm->verify)
                S(warm_differs, "blocks");
        }
        S(kd_maps, "runs");
        S(kd_faults, "signals");
        S(kd_soft, "instructions");
        S(kd_unmaps, "pieces");
        S(kd_checks, "regions");
        memory_stats(c, g, fn, opaque);
        if (!c->direct)
            continue;
        fn(opaque, g, "direct_ns", (uint64_t)((double)c->st.direct_cycles * 1e9 / (double)vm->host_tsc_hz), "ns");
        S(direct_entries, "times");
        S(direct_syscalls, "exits");
        S(direct_faults, "exits");
        S(direct_kicks, "exits");
        S(direct_held, "times");
        S(direct_soft, "exits");
        S(direct_left, "times");
        S(direct_maps, "calls");
        S(direct_pages, "pages");
        S(direct_unmaps, "calls");
        S(direct_compares, "times");
        S(direct_uncoded, "pages");
        S(direct_failures, "times");
        S(direct_lost, "helpers");
        S(direct_killed, "programs");
        S(direct_meddled, "times");
        S(direct_remade, "helpers");
        S(direct_copies, "pages");
#undef S
    }
}

static int prepare(struct hvx_engine_vm *e, struct hvx_error *err)
{
    struct bt_vm *vm = (struct bt_vm *)e;
    int rc = bt_direct_prepare(vm, err);
    if (!rc)
        bt_warm_prepare(vm);
    return rc;
}

static int cpu_models(void *ctx, hvx_cpu_model_fn fn, void *opaque)
{
    (void)ctx;
    bt_cpuid_models(fn, opaque);
    return 0;
}

static const struct hvx_option options[] = {
    {.name = "cpu", .type = HVX_OPT_STRING, .def = "host",
     .help = "CPU model when hvx run has no --cpu: "
             "NAME[,+FEATURE,-FEATURE][,hypervisor=kvm|hvx|none][,tsc-frequency=HZ]"},
    {.name = "direct", .type = HVX_OPT_ENUM, .choices = "off|kernel|user|all", .def = "all",
     .help = "what may run without look-ups: kernels in the VM's own process, programs natively in helper processes"},
    {.name = "direct-helpers", .type = HVX_OPT_INT, .min = 1, .max = DIRECT_PROCS_MAX, .def = "8",
     .help = "helper processes for each vCPU: as many programs of the guest can run natively in turns"},
    {.name = "direct-eager", .type = HVX_OPT_BOOL, .def = "off",
     .help = "programs run natively from their first instruction, whether it pays or not: for tests"},
    {.name = "perf-map", .type = HVX_OPT_BOOL, .def = "off",
     .help = "name translated code for Linux's perf, in /tmp/perf-PID.map"},
    {.name = "translation-cache", .type = HVX_OPT_STRING, .def = "",
     .help = "file that keeps translations from one VM to the next, made when there is none"},
    {.name = "translation-cache-verify", .type = HVX_OPT_BOOL, .def = "off",
     .help = "translate all the same and compare with what the file has: for tests"},
    {.name = NULL},
};

static const struct hvx_cpu_ops ops = {
    .size = sizeof(ops),
    .rank = 10,
    .probe = bt_probe_engine,
    .vm_create = vm_create,
    .vm_destroy = vm_destroy,
    .set_slot = set_slot,
    .vcpu_create = vcpu_create,
    .vcpu_destroy = vcpu_destroy,
    .vcpu_reset = vcpu_reset,
    .vcpu_run = vcpu_run,
    .vcpu_kick = vcpu_kick,
    .vcpu_get = vcpu_get,
    .vcpu_set = vcpu_set,
    .irqchip_reset = irqchip_reset,
    .irqchip_state = irqchip_state,
    .irq_line = irq_line,
    .irq_tick = irq_tick,
    .prepare = prepare,
    .msi = msi,
    .code_written = code_written,
    .stats = stats,
    .cpu_models = cpu_models,
    .model_state = model_state,
    .debug_set = debug_set,
};

static const char *const capabilities[] = {"real-mode", "protected-mode", "long-mode", "smp", "irqchip", NULL};

HVX_PLUGIN_DEFINE(cpu_bt, HVX_FAMILY_CPU, HVX_CPU_MINOR, .name = "cpu-bt", .version = "0.1",
                  .summary = "binary-translating engine: runs any x86 guest without hardware virtualization",
                  .license = "Apache-2.0", .options = options, .capabilities = capabilities, .init = bt_init,
                  .fini = bt_fini, .ops = &ops);
