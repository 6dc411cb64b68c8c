/* SPDX-License-Identifier: Apache-2.0
 *
 * hvx/host.h - the table of functions that a plugin receives.
 *
 * Threads. A VM has one event-loop thread, one thread per vCPU, and the block
 * layer's workers. The *VM lock* serialises everything that touches devices:
 * core holds it around every callback into a device (register accesses from a
 * vCPU thread, timers, watches, block completions, network and character
 * input, reset, save). A device therefore needs no lock of its own. Functions
 * below are called with the VM lock held unless their comment says "any
 * thread". None of them may be called from a signal handler.
 *
 * Ownership. What a plugin adds (regions, timers, ...) belongs to the VM and
 * is removed by the matching *_del, or with the VM. Handles stay valid until
 * then. Strings passed in are copied.
 *
 * Addresses. gpa: guest physical; gva: guest virtual; hva: host virtual.
 */
#ifndef HVX_HOST_H
#define HVX_HOST_H

#include <hvx/base.h>
#include <hvx/option.h>
#include <hvx/state.h>

HVX_EXTERN_C_BEGIN

enum hvx_log_level { HVX_LOG_ERROR = 0, HVX_LOG_WARN, HVX_LOG_INFO, HVX_LOG_DEBUG };

enum hvx_space { HVX_SPACE_PIO = 0, HVX_SPACE_MMIO = 1 };

/* Register accesses. `off` is relative to the region's start, size is 1, 2, 4
 * or 8 and never crosses the region's end. Reads return the value in the low
 * bytes; bits above size are ignored. */
struct hvx_region_ops {
    uint64_t (*read)(void *opaque, uint64_t off, unsigned size);
    void (*write)(void *opaque, uint64_t off, unsigned size, uint64_t value);
};
#define HVX_REGION_MIN1 1u /* split wider accesses into bytes */
#define HVX_REGION_MAX4 2u /* split 8-byte accesses into two of 4 */

/* --- PCI ----------------------------------------------------------------- */
enum hvx_bar_type { HVX_BAR_NONE = 0, HVX_BAR_IO = 1, HVX_BAR_MEM32 = 2, HVX_BAR_MEM64 = 3 };
#define HVX_BAR_PREFETCH 1u
struct hvx_pci_bar {
    uint32_t type;  /* enum hvx_bar_type; MEM64 takes two slots, the next must be NONE */
    uint32_t flags; /* HVX_BAR_PREFETCH */
    uint64_t size;  /* power of two; I/O at least 4, memory at least 16 */
    const struct hvx_region_ops *ops; /* NULL when `ram` is given */
    void *ram;      /* page-aligned host memory mapped straight into the guest (VGA frame buffer) */
};
struct hvx_pci_desc {
    uint32_t size;
    int32_t devfn; /* device << 3 | function; -1: core picks a free device */
    uint16_t vendor, device, subsys_vendor, subsys;
    uint32_t class_code; /* 24 bits: class, subclass, programming interface */
    uint8_t revision;
    uint8_t irq_pin;        /* 0 none, 1 INTA .. 4 INTD */
    uint8_t multifunction;  /* header type bit 7 */
    uint8_t msi_vectors;    /* 0 or 1 */
    uint16_t msix_vectors;  /* 0: no MSI-X; at most 2048 */
    uint8_t msix_bar;       /* BAR that core adds for the MSI-X table and PBA (must be NONE above) */
    uint8_t is_bridge_host; /* type 0 header without BARs, device 0 */
    struct hvx_pci_bar bars[6];
    const void *rom;        /* option ROM image, copied; NULL: none */
    uint32_t rom_size;
    uint32_t pad;
};
struct hvx_pci_ops {
    uint32_t size;
    uint32_t pad;
    /* Optional: called after core's own handling of config space for offsets
     * >= 0x40 not claimed by core's capabilities. write sees the new value
     * already merged into the config bytes. */
    void (*config_read)(void *opaque, unsigned off, unsigned size);
    void (*config_written)(void *opaque, unsigned off, unsigned size);
    /* Optional: a BAR was mapped, moved or unmapped (addr = ~0). */
    void (*bar_moved)(void *opaque, unsigned bar, uint64_t addr);
};

/* --- Disks: asynchronous block requests ---------------------------------- */
enum hvx_blk_op { HVX_BLK_READ = 1, HVX_BLK_WRITE, HVX_BLK_FLUSH, HVX_BLK_DISCARD, HVX_BLK_WRITE_ZEROES };
#define HVX_BLK_FUA 1u   /* write is durable before completion */
#define HVX_BLK_UNMAP 2u /* WRITE_ZEROES may deallocate */
#define HVX_BLK_MAX_IOV 1024u
struct hvx_blk_req {
    uint32_t op;
    uint32_t flags;
    uint64_t offset; /* bytes, multiple of 512 */
    uint64_t bytes;  /* multiple of 512; equals the sum of iov for READ/WRITE */
    const struct iovec *iov; /* borrowed until done */
    uint32_t n_iov;
    int32_t result; /* 0 or -errno, set before done */
    void (*done)(struct hvx_blk_req *req); /* on the VM loop, VM lock held; never from inside blk_submit */
    void *opaque;
    uint64_t core[8]; /* core's own, leave alone */
};
struct hvx_blk_info {
    uint32_t size;
    uint32_t logical_block; /* bytes, 512 usually */
    uint64_t bytes;
    uint32_t read_only, can_discard, can_write_zeroes;
    uint32_t is_cdrom;
    uint64_t opt_io_bytes;
    char serial[24];
};

/* --- Networks ------------------------------------------------------------ */
/* Offload metadata of one frame, shaped like virtio_net_hdr (virtio 1.2, 5.1.6). */
struct hvx_net_meta {
    uint8_t flags;    /* bit 0: csum_start/offset valid, checksum partial; bit 1: checksum verified */
    uint8_t gso_type; /* 0 none, 1 TCPv4, 3 UDP (fragment), 4 TCPv6, 5 UDP L4; 0x80 ECN */
    uint16_t hdr_len, gso_size, csum_start, csum_offset;
};
#define HVX_NET_MAX_FRAME 65562u /* largest frame with TSO, bytes */
/* What the receiver side of a port can take. */
#define HVX_NET_CAN_CSUM 1u
#define HVX_NET_CAN_TSO4 2u
#define HVX_NET_CAN_TSO6 4u
struct hvx_nic_ops {
    uint32_t size;
    uint32_t pad;
    /* A frame for the guest; returns 1 taken, 0 no room (core keeps a bounded
     * queue and retries after nic_rx_ready). iov is borrowed. */
    int (*receive)(void *opaque, const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta);
    void (*link_changed)(void *opaque, bool up);
};

/* --- Character streams --------------------------------------------------- */
struct hvx_chr_ops {
    uint32_t size;
    uint32_t pad;
    /* Bytes for the guest; returns how many were taken; the rest is kept and
     * offered again after chr_rx_ready. */
    size_t (*receive)(void *opaque, const uint8_t *buf, size_t n);
};

/* --- Displays ------------------------------------------------------------ */
struct hvx_surface {
    uint32_t width, height, stride; /* pixels, pixels, bytes */
    uint32_t pad;
    uint32_t *pixels; /* XRGB8888; owned by the device, valid until the next call */
};
struct hvx_display_ops {
    uint32_t size;
    uint32_t pad;
    int (*render)(void *opaque, struct hvx_surface *out); /* draw what the guest shows now */
};

/* One figure of `hvx stat`: group such as "vcpu0", name such as "blocks". */
typedef void (*hvx_stat_fn)(void *opaque, const char *group, const char *name, uint64_t value, const char *unit);

/* --- Memory ballooning ---------------------------------------------------- */
struct hvx_balloon_ops {
    uint32_t size;
    uint32_t pad;
    /* The guest shall go on with so many bytes of its RAM (at most all of it). */
    void (*set_target)(void *opaque, uint64_t bytes);
    /* What the guest has now: RAM less what the balloon holds. *ready: a driver serves the balloon. */
    uint64_t (*actual)(void *opaque, bool *ready);
    void (*stats)(void *opaque, hvx_stat_fn fn, void *fn_opaque); /* may be NULL */
};

/* --- PCI hot plug, the machine's side -------------------------------------- */
struct hvx_hotplug_ops {
    uint32_t size;
    uint32_t pad;
    void (*plugged)(void *opaque, unsigned slot);        /* a function appeared on bus 0: tell the guest */
    bool (*unplug_request)(void *opaque, unsigned slot); /* ask the guest to let go; false: this slot cannot be unplugged */
};

/* --- Keyboard and pointer input (VNC, tests) ------------------------------ */
struct hvx_input_ops {
    uint32_t size;
    uint32_t pad;
    void (*key)(void *opaque, uint16_t scancode_set1, bool down); /* 0xe0xx for extended keys */
    void (*pointer)(void *opaque, int dx, int dy, uint32_t buttons);
};

enum hvx_vm_request {
    HVX_VM_RESET = 1,      /* warm reset: devices, then vCPUs */
    HVX_VM_POWEROFF = 2,   /* guest asked for power-off (ACPI S5) */
    HVX_VM_DEBUG_EXIT = 3, /* isa-debug-exit: code is the exit status */
    HVX_VM_PANIC = 4,      /* guest says it panicked (pvpanic) */
};

struct hvx_guest_info {
    uint32_t size;
    uint32_t n_vcpus;
    uint64_t ram_bytes;       /* total RAM */
    uint64_t ram_below_4g;    /* RAM at gpa 0 .. ram_below_4g */
    uint64_t ram_above_4g;    /* RAM at 4 GiB .. */
    uint32_t n_disks, n_nics;
    const char *kernel, *initrd, *append; /* direct boot; NULL: none */
    const char *firmware;                 /* path chosen by the user; NULL: the machine's default */
    const char *boot_order;               /* e.g. "cdn" */
    const char *name;
    uint8_t uuid[16];
    uint64_t tsc_hz;
    const char *pci_hole; /* unused, NULL */
};

#define HVX_TICKS_OWED_MAX 250u

struct hvx_host {
    uint32_t size;
    uint32_t abi_major;

    /* --- general: any thread --- */
    HVX_PRINTF(3, 4) void (*log)(int level, const char *who, const char *fmt, ...);
    /* A guest misbehaved: counted per (vm, what), logged rate-limited. */
    HVX_PRINTF(3, 4) void (*guest_event)(struct hvx_vm *vm, const char *what, const char *fmt, ...);
    uint64_t (*clock_ns)(void);      /* monotonic */
    uint64_t (*wall_clock_ns)(void); /* UTC since 1970 */
    void (*random)(void *buf, size_t n);

    /* --- configuration of an instance: any thread --- */
    bool (*conf_bool)(const struct hvx_config *c, const char *name);
    int64_t (*conf_int)(const struct hvx_config *c, const char *name); /* INT and SIZE */
    const char *(*conf_string)(const struct hvx_config *c, const char *name); /* STRING and ENUM; NULL unset */
    bool (*conf_is_set)(const struct hvx_config *c, const char *name);

    /* --- the VM: any thread --- */
    void (*guest_info)(struct hvx_vm *vm, struct hvx_guest_info *out); /* set out->size first */
    void (*vm_lock)(struct hvx_vm *vm);
    void (*vm_unlock)(struct hvx_vm *vm);
    void (*vm_request)(struct hvx_vm *vm, enum hvx_vm_request what, int code);

    /* --- guest memory: any thread ---
     * Reads of holes give all ones, writes to holes and ROM are dropped;
     * return 0, or -EFAULT when any byte was outside RAM. Writes tell the
     * engine about translated code. */
    int (*mem_read)(struct hvx_vm *vm, uint64_t gpa, void *buf, size_t n);
    int (*mem_write)(struct hvx_vm *vm, uint64_t gpa, const void *buf, size_t n);
    /* Host address of RAM at gpa and in *n how much of it is contiguous (at
     * most the n passed in); NULL outside RAM. The pointer lives as long as
     * the VM. After writing through it call mem_dirty. */
    void *(*mem_ptr)(struct hvx_vm *vm, uint64_t gpa, size_t *n);
    void (*mem_dirty)(struct hvx_vm *vm, uint64_t gpa, size_t n);

    /* --- address-space dispatch --- */
    int (*region_add)(struct hvx_vm *vm, enum hvx_space space, uint64_t addr, uint64_t n, uint32_t flags,
                      const char *name, const struct hvx_region_ops *ops, void *opaque, struct hvx_region **out,
                      struct hvx_error *err);
    void (*region_del)(struct hvx_vm *vm, struct hvx_region *r);
    int (*region_move)(struct hvx_vm *vm, struct hvx_region *r, uint64_t addr); /* ~0: unmap */
    /* Map host memory (page-aligned) at gpa over whatever is there: ROM
     * (read-only, writes dropped), frame buffers. Later maps win. Unmapping
     * shows what was below. Writes to a read-only map over a device region
     * reach that region: a flash chip in read mode. */
    int (*mem_map)(struct hvx_vm *vm, uint64_t gpa, uint64_t n, void *hva, bool read_only, const char *name,
                   struct hvx_region **out, struct hvx_error *err);
    /* PAM registers of the PC: choose what the guest sees in one range of
     * 0xc0000..0xfffff: reads and writes from RAM or from what is mapped. */
    void (*mem_pam)(struct hvx_vm *vm, uint64_t gpa, uint64_t n, bool read_ram, bool write_ram);
    /* Access as a vCPU would: dispatch to RAM, ROM or a device. Used by
     * engines; takes the VM lock itself (call without it): any thread. */
    void (*io_read)(struct hvx_vm *vm, enum hvx_space space, uint64_t addr, unsigned size, void *value);
    void (*io_write)(struct hvx_vm *vm, enum hvx_space space, uint64_t addr, unsigned size, const void *value);

    /* --- interrupts: any thread --- */
    void (*irq_set)(struct hvx_vm *vm, unsigned gsi, bool level); /* 0..15 ISA, 16..23 PCI */
    void (*msi_send)(struct hvx_vm *vm, uint64_t addr, uint32_t data);

    /* --- PCI --- */
    int (*pci_add)(struct hvx_vm *vm, const struct hvx_pci_desc *desc, const struct hvx_pci_ops *ops, void *opaque,
                   struct hvx_pci_dev **out, struct hvx_error *err);
    void (*pci_del)(struct hvx_vm *vm, struct hvx_pci_dev *d);
    uint8_t *(*pci_config)(struct hvx_pci_dev *d); /* the 256 bytes */
    /* Append a capability of n bytes (header included) and make body bytes
     * writable where wmask has ones; returns its offset or -ENOSPC. */
    int (*pci_add_cap)(struct hvx_pci_dev *d, uint8_t cap_id, const void *body, const void *wmask, unsigned n);
    void (*pci_set_irq)(struct hvx_pci_dev *d, bool level); /* INTx, routed by the machine */
    bool (*pci_msix_enabled)(struct hvx_pci_dev *d);
    bool (*pci_msi_enabled)(struct hvx_pci_dev *d);
    void (*pci_msix_notify)(struct hvx_pci_dev *d, unsigned vector); /* latches PBA when masked; any thread */
    void (*pci_msi_notify)(struct hvx_pci_dev *d);
    /* DMA by a PCI function: fails with -EFAULT when bus mastering is off. */
    int (*pci_dma_read)(struct hvx_pci_dev *d, uint64_t gpa, void *buf, size_t n);
    int (*pci_dma_write)(struct hvx_pci_dev *d, uint64_t gpa, const void *buf, size_t n);
    bool (*pci_bus_master)(struct hvx_pci_dev *d);
    /* The machine device tells core how INTx pins reach GSIs, and which ports
     * or windows form configuration space. bus 0 only. */
    void (*pci_set_route)(struct hvx_vm *vm, unsigned (*gsi_of)(void *opaque, unsigned slot, unsigned pin), void *opaque);
    uint32_t (*pci_cfg_read)(struct hvx_vm *vm, unsigned bdf, unsigned off, unsigned size);
    void (*pci_cfg_write)(struct hvx_vm *vm, unsigned bdf, unsigned off, unsigned size, uint32_t v);
    void (*pci_reroute)(struct hvx_vm *vm); /* routing registers changed: re-deliver levels */

    /* --- time and descriptors on the VM's loop; callbacks hold the VM lock --- */
    int (*timer_new)(struct hvx_vm *vm, void (*cb)(void *opaque), void *opaque, struct hvx_timer **out);
    void (*timer_set)(struct hvx_timer *t, uint64_t deadline_ns); /* clock_ns time; ~0 disarms; any thread */
    void (*timer_del)(struct hvx_timer *t);
    int (*watch_new)(struct hvx_vm *vm, int fd, bool want_read, bool want_write,
                     void (*cb)(void *opaque, int fd, bool readable, bool writable), void *opaque,
                     struct hvx_watch **out);
    void (*watch_set)(struct hvx_watch *w, bool want_read, bool want_write);
    void (*watch_del)(struct hvx_watch *w);
    /* Run cb soon on the loop, VM lock held; any thread. */
    int (*defer)(struct hvx_vm *vm, void (*cb)(void *opaque), void *opaque);

    /* --- disks --- */
    struct hvx_blk *(*blk_get)(struct hvx_vm *vm, const char *id); /* "disk0"...; NULL unknown */
    void (*blk_info)(struct hvx_blk *b, struct hvx_blk_info *out);  /* set out->size first */
    /* Always completes through req->done, errors included. */
    void (*blk_submit)(struct hvx_blk *b, struct hvx_blk_req *req);

    /* --- networks --- */
    int (*nic_attach)(struct hvx_vm *vm, const char *id, const struct hvx_nic_ops *ops, void *opaque,
                      struct hvx_nic **out, struct hvx_error *err); /* id "net0"... */
    void (*nic_detach)(struct hvx_nic *n);
    void (*nic_mac)(struct hvx_nic *n, uint8_t mac[6]);
    void (*nic_set_caps)(struct hvx_nic *n, uint32_t can); /* what the guest can take: HVX_NET_CAN_* */
    void (*nic_send)(struct hvx_nic *n, const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta);
    void (*nic_rx_ready)(struct hvx_nic *n);
    uint32_t (*nic_mtu)(struct hvx_nic *n);

    /* --- character streams --- */
    int (*chr_attach)(struct hvx_vm *vm, const char *id, const struct hvx_chr_ops *ops, void *opaque,
                      struct hvx_chr **out); /* "serial0".., "console0"; unconnected ones swallow output */
    void (*chr_detach)(struct hvx_chr *c);
    size_t (*chr_write)(struct hvx_chr *c, const uint8_t *buf, size_t n); /* returns how much was taken; never blocks */
    void (*chr_rx_ready)(struct hvx_chr *c);

    /* --- display and input --- */
    int (*display_add)(struct hvx_vm *vm, const struct hvx_display_ops *ops, void *opaque, struct hvx_display **out);
    void (*display_del)(struct hvx_display *d);
    int (*input_add)(struct hvx_vm *vm, const struct hvx_input_ops *ops, void *opaque);

    /* --- vCPUs, for the machine device --- */
    /* Set the state in which vCPU `index` starts after (this) reset; used by
     * direct boot. Regs: struct hvx_vcpu_regs of cpu.h. */
    int (*vcpu_set_regs)(struct hvx_vm *vm, unsigned index, const void *regs, size_t size);

    /* --- power button, for the machine device --- */
    /* cb runs with the VM lock held when a person asks the guest to shut down
     * (`hvx stop`): the machine raises its ACPI power-button event. NULL
     * removes it. One per VM; the last call wins. */
    void (*power_button_set)(struct hvx_vm *vm, void (*cb)(void *opaque), void *opaque);

    /* --- confinement: any thread --- */
    /* Has this process given up files, sockets, processes and privileges? An
     * engine that lets guest code nearer to the host than its own checks reach
     * wants to know before the first instruction. Set before vcpu_run. */
    bool (*is_confined)(void);

    /* --- memory that the guest does not need --- */
    /* Give back to the host what is behind these whole pages of RAM; they
     * read as zeroes until they are written again. 0; -EINVAL: not whole
     * pages; -EFAULT: not all of it is plain RAM, nothing was done; -errno of
     * the host. Any thread. */
    int (*mem_discard)(struct hvx_vm *vm, uint64_t gpa, uint64_t n);
    /* `hvx balloon` reaches the device through ops, with the VM lock held.
     * NULL removes them. One per VM; the last call wins. */
    void (*balloon_set)(struct hvx_vm *vm, const struct hvx_balloon_ops *ops, void *opaque);

    /* --- hot plug of PCI functions, for the machine device --- */
    /* One per VM; NULL removes it. Without one there is no hot plug. */
    void (*hotplug_set)(struct hvx_vm *vm, const struct hvx_hotplug_ops *ops, void *opaque);
    /* The guest let go of a slot: its device goes away soon afterwards, on the
     * loop. False: nothing there that could go. */
    bool (*pci_eject)(struct hvx_vm *vm, unsigned slot);
    /* --- ticks: any thread --- */
    /* n periods of a timer ended, for which the guest counts n edges on this
     * line (the host may have been too busy for each in its turn). The line is
     * low afterwards. An engine that can delivers what the guest has not taken
     * yet one by one as it takes them, at most HVX_TICKS_OWED_MAX of them; n 0:
     * the timer was stopped or set anew, nothing is owed any more. */
    void (*irq_tick)(struct hvx_vm *vm, unsigned gsi, unsigned n);
};

HVX_EXTERN_C_END
#endif
