/* SPDX-License-Identifier: Apache-2.0
 *
 * hvx/cpu.h - what an execution engine implements.
 *
 * Shaped like KVM: guest RAM is given as slots, a vCPU has registers and a
 * run() that returns a reason. The local APICs, the I/O APIC and the two
 * 8259 PICs live in the engine. Port and MMIO accesses that the engine does
 * not serve itself go straight to host->io_read/io_write in the middle of an
 * instruction: an engine that translates code need not unwind to its caller
 * for them.
 *
 * Threads. vcpu_run is called on the vCPU's own thread, always the same one,
 * without the VM lock. vcpu_kick, irq_line, msi, code_written come from any
 * thread. Everything else is called with no vCPU running.
 */
#ifndef HVX_CPU_H
#define HVX_CPU_H

#include <hvx/host.h>

HVX_EXTERN_C_BEGIN

struct hvx_segment {
    uint64_t base;
    uint32_t limit; /* in bytes, granularity applied */
    uint16_t selector;
    uint16_t attr; /* descriptor bits 40..55: type 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14, G 15; bit 8 set: unusable */
};

enum { HVX_RAX, HVX_RCX, HVX_RDX, HVX_RBX, HVX_RSP, HVX_RBP, HVX_RSI, HVX_RDI, HVX_R8 };
enum { HVX_ES, HVX_CS, HVX_SS, HVX_DS, HVX_FS, HVX_GS };

#define HVX_XSAVE_MAX 4096u
#define HVX_MAX_MSRS 64u
#define HVX_MAX_VCPUS 64u

/* The whole architectural state of a vCPU in one engine-neutral form. */
struct hvx_vcpu_regs {
    uint32_t size;
    uint32_t mp_state; /* 0 runnable, 1 halted, 2 wait for SIPI */
    uint64_t gpr[16], rip, rflags;
    struct hvx_segment seg[6], ldtr, tr;
    uint64_t gdt_base, idt_base;
    uint32_t gdt_limit, idt_limit;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, xcr0, xss;
    uint64_t dr[8];
    uint64_t apic_base, tsc, tsc_aux, star, lstar, cstar, sfmask, kernel_gs_base;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip, pat, tsc_deadline, misc_enable;
    uint32_t interrupt_shadow, nmi_masked;
    uint32_t pending_exception; /* vector | 0x100 has error code | 0x80000000 valid */
    uint32_t pending_error_code;
    uint32_t apic[64];   /* the 4 KiB APIC page, one word per register (offset >> 4) */
    uint32_t n_msrs;     /* further MSRs: MTRRs and the like */
    uint32_t xsave_size; /* bytes used in xsave[] */
    struct { uint32_t index, pad; uint64_t value; } msrs[HVX_MAX_MSRS];
    __attribute__((aligned(64))) uint8_t xsave[HVX_XSAVE_MAX]; /* standard (not compacted) format */
    /* What has arrived and waits for the vCPU: an NMI, INIT, a start-up IPI
     * (0x100 | vector), an interrupt of the 8259s announced by the I/O APIC;
     * errors that the next write of the APIC's ESR will show. */
    uint32_t pending_nmi, pending_init, pending_sipi, pending_extint, apic_errors;
    uint32_t has_pdpte; /* PAE paging outside long mode: pdpte is what the processor has loaded */
    uint64_t pdpte[4];
};

#define HVX_SLOT_READONLY 1u /* writes go to host->io_write */
struct hvx_mem_slot {
    uint32_t size;
    uint32_t id;
    uint64_t gpa;
    uint64_t bytes; /* 0 removes the slot */
    void *hva;
    int32_t fd; /* memfd behind hva, or -1 */
    uint32_t flags;
    uint64_t fd_offset;
};

enum hvx_exit_reason {
    HVX_EXIT_INTERRUPTED = 1, /* kicked */
    HVX_EXIT_SHUTDOWN = 2,    /* triple fault */
    HVX_EXIT_DEBUG = 3,       /* breakpoint or step, for the gdb stub */
    HVX_EXIT_ERROR = 4,       /* the engine cannot go on: text says why */
};
struct hvx_exit {
    uint32_t size;
    uint32_t reason;
    uint64_t detail;
    char text[200];
};

/* Where a debugger wants vCPUs to stop: with HVX_EXIT_DEBUG, and in
 * hvx_exit.detail the number of the point plus one, or 0 after a step. */
enum hvx_debug_kind {
    HVX_DEBUG_EXEC = 0,   /* before the instruction at lin; 32 bits of it outside 64-bit code */
    HVX_DEBUG_WRITE = 1,  /* after an instruction that wrote any of [lin, lin + bytes) */
    HVX_DEBUG_READ = 2,   /* that read */
    HVX_DEBUG_ACCESS = 3, /* either */
};
struct hvx_debug_point {
    uint64_t lin; /* linear address, in whichever address space */
    uint32_t bytes;
    uint32_t kind;
};
#define HVX_DEBUG_MAX_POINTS 128u
#define HVX_DEBUG_STEP 1u /* run one instruction, without taking interrupts, and stop */
struct hvx_debug {
    uint32_t size;
    uint32_t flags;
    uint32_t n_points;
    uint32_t pad;
    const struct hvx_debug_point *points; /* borrowed for the call */
};

enum hvx_cpu_model { HVX_CPU_MODEL_HOST = 0 };
struct hvx_engine_config {
    uint32_t size;
    uint32_t n_vcpus;
    const char *cpu_model; /* as --cpu has it, such as "host"; NULL: the engine's default */
    const struct hvx_config *options; /* engine's own options from hvx.conf / --engine-option */
    uint64_t tsc_hz; /* 0: the host's */
};

/* One CPU model: why says what keeps it from running here, NULL when it can.
 * name NULL: what is a line of names that may follow a model as +NAME, -NAME. */
typedef void (*hvx_cpu_model_fn)(void *opaque, const char *name, const char *what, const char *why);

struct hvx_engine_vm;
struct hvx_vcpu;

struct hvx_cpu_ops {
    uint32_t size;
    int32_t rank; /* `auto` tries the highest rank first */
    /* Can this engine run a guest here? -errno and the reason if not. */
    int (*probe)(void *plugin_ctx, struct hvx_error *err);
    int (*vm_create)(void *plugin_ctx, struct hvx_vm *vm, const struct hvx_engine_config *cfg,
                     struct hvx_engine_vm **out, struct hvx_error *err);
    void (*vm_destroy)(struct hvx_engine_vm *e);
    /* Add, replace or remove a slot. Called with the VM lock held, also while
     * vCPUs run (PAM, frame buffer moves): the engine synchronises itself and
     * has dropped every use of the old mapping when it returns. */
    int (*set_slot)(struct hvx_engine_vm *e, const struct hvx_mem_slot *slot, struct hvx_error *err);
    int (*vcpu_create)(struct hvx_engine_vm *e, unsigned index, struct hvx_vcpu **out, struct hvx_error *err);
    void (*vcpu_destroy)(struct hvx_vcpu *v);
    void (*vcpu_reset)(struct hvx_vcpu *v); /* power-on state: index 0 at the reset vector, others wait for SIPI */
    int (*vcpu_run)(struct hvx_vcpu *v, struct hvx_exit *exit);
    void (*vcpu_kick)(struct hvx_vcpu *v); /* make run return soon, HVX_EXIT_INTERRUPTED; any thread; sticks until the next run */
    int (*vcpu_get)(struct hvx_vcpu *v, struct hvx_vcpu_regs *r);
    int (*vcpu_set)(struct hvx_vcpu *v, const struct hvx_vcpu_regs *r, struct hvx_error *err);
    void (*irqchip_reset)(struct hvx_engine_vm *e);
    int (*irqchip_state)(struct hvx_engine_vm *e, struct hvx_stream *s); /* I/O APIC, PICs */
    void (*irq_line)(struct hvx_engine_vm *e, unsigned gsi, bool level);
    void (*msi)(struct hvx_engine_vm *e, uint64_t addr, uint32_t data);
    /* A device or the host wrote RAM: drop translations of the range. Cheap
     * when there are none. */
    void (*code_written)(struct hvx_engine_vm *e, uint64_t gpa, uint64_t n);
    void (*stats)(struct hvx_engine_vm *e, hvx_stat_fn fn, void *opaque);
    /* Optional, may be NULL: dirty-page log. */
    int (*dirty_log)(struct hvx_engine_vm *e, uint32_t slot, bool enable);
    int (*dirty_fetch)(struct hvx_engine_vm *e, uint32_t slot, uint64_t *bitmap, size_t words);
    /* Optional, may be NULL: the CPU models that struct hvx_engine_config's cpu_model can name. */
    int (*cpu_models)(void *plugin_ctx, hvx_cpu_model_fn fn, void *opaque);
    /* Optional, may be NULL: what kind of processor the guest has been shown.
     * Saved and restored before everything else; restoring refuses, with the
     * reason, what this host or the chosen model lacks. */
    int (*model_state)(struct hvx_engine_vm *e, struct hvx_stream *s);
    /* Optional, may be NULL: debugging from outside, unseen by the guest, whose
     * own debug registers keep working. Replaces what was set before; stays
     * through resets. This vCPU is not running. -E2BIG: too many points. */
    int (*debug_set)(struct hvx_vcpu *v, const struct hvx_debug *d);
    /* Optional, may be NULL: n edges on a line that is low before and after,
     * none to be lost; see irq_tick in host.h. Any thread. */
    void (*irq_tick)(struct hvx_engine_vm *e, unsigned gsi, unsigned n);
    /* Optional, may be NULL: all slots and vCPUs are there, a saved state is
     * restored, no vCPU has run; afterwards the process confines itself. The
     * last chance to make processes and executable memory. */
    int (*prepare)(struct hvx_engine_vm *e, struct hvx_error *err);
};

HVX_EXTERN_C_END
#endif
