/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/space.h - the two address spaces of a VM: ports and guest-physical
 * addresses.
 *
 * A space is a pile of *layers*: RAM, mapped host memory (ROM, frame buffer)
 * and device regions. Where layers overlap the one on top is seen; priority
 * decides first (PCI BARs lie under RAM, everything else over it), then the
 * order in which they were put there, the last one on top. The pile is
 * *flattened* into a sorted array of segments whenever it changes; look-ups
 * only see that array. From the flat array of the memory space follow the
 * RAM slots of the engine, and only slots that changed are handed over.
 *
 * Threads. Changes and device dispatch need the VM lock. hvx_space_lookup is
 * lock-free for readers on any thread: two arrays are used in turn and a
 * sequence number tells a reader that its array was recycled meanwhile.
 */
#ifndef HVX_CORE_SPACE_H
#define HVX_CORE_SPACE_H

#include <hvx/cpu.h>
#include <stdatomic.h>

#define HVX_PAGE 4096u
#define HVX_ADDR_NONE UINT64_MAX
#define HVX_ADDR_MAX (1ull << 52) /* architectural limit of physical addresses */
#define HVX_MAX_LAYERS 480u
#define HVX_MAX_SEGMENTS (2 * HVX_MAX_LAYERS + 64)
#define HVX_MAX_SLOTS 256u
#define HVX_PAM_START 0xc0000u
#define HVX_PAM_PAGES 64u

/* Guest RAM: one memfd, mapped once. The page map says which page of the file
 * a guest frame shows and whether it may be written. It is NULL while it is
 * the identity, which it stays until pages are shared, ballooned or swapped. */
struct hvx_ram {
    int fd;
    uint8_t *hva;
    uint64_t bytes, below_4g, above_4g;
    uint64_t *map; /* per frame: file page << 1 | writable */
};
HVX_WUR int hvx_ram_init(struct hvx_ram *ram, uint64_t bytes, uint64_t below_4g_max, struct hvx_error *err);
void hvx_ram_fini(struct hvx_ram *ram);
/* How many bytes from `offset` (in guest RAM, 0..bytes) are one run of the
 * file, at most n; *hva and *writable describe the run. */
uint64_t hvx_ram_run(const struct hvx_ram *ram, uint64_t offset, uint64_t n, uint8_t **hva, bool *writable);
/* Point one frame at a page of the file. The caller refreshes the space. */
HVX_WUR int hvx_ram_remap(struct hvx_ram *ram, uint64_t frame, uint64_t file_page, bool writable);

enum hvx_layer_kind { HVX_LAYER_RAM = 1, HVX_LAYER_MAP, HVX_LAYER_IO };
enum { HVX_PRIO_BAR = 0, HVX_PRIO_RAM = 1, HVX_PRIO_TOP = 2 };

struct hvx_region {
    struct hvx_address_space *space;
    enum hvx_layer_kind kind;
    int prio;
    uint64_t addr, bytes; /* addr HVX_ADDR_NONE: not mapped */
    uint8_t *hva;         /* MAP */
    uint64_t ram_offset;  /* RAM */
    bool read_only;
    uint32_t flags; /* HVX_REGION_* */
    const struct hvx_region_ops *ops;
    void *opaque;
    uint64_t n_reads, n_writes;
    char name[32];
};

/* A piece of the flat view. */
struct hvx_segment_view {
    uint64_t first, last;
    enum hvx_layer_kind kind; /* 0: a hole whose writes go to RAM (PAM) */
    struct hvx_region *region;
    uint64_t region_off; /* of `first` in the region */
    uint8_t *read_hva;   /* what a read of `first` sees, NULL for IO */
    uint8_t *write_hva;  /* where a write to `first` goes; NULL: to the device, or nowhere */
    struct hvx_region *below; /* of a read-only map: the device region that it covers and that gets its writes */
    uint64_t below_off;
};
struct hvx_flat {
    unsigned n;
    struct hvx_segment_view seg[HVX_MAX_SEGMENTS];
};

struct hvx_address_space {
    enum hvx_space id;
    struct hvx_ram *ram; /* memory space only */
    struct hvx_region *layers[HVX_MAX_LAYERS]; /* bottom to top */
    unsigned n_layers;
    uint8_t pam[HVX_PAM_PAGES]; /* bit 0 chosen, bit 1 reads from RAM, bit 2 writes to RAM */
    struct hvx_flat *flat[2];
    _Atomic(unsigned) sequence; /* flat[sequence & 1] is current */
    unsigned last_hit;
    uint64_t n_reads, n_writes, n_unclaimed, n_rebuilds;
    /* The engine's slots. */
    int (*set_slot)(void *opaque, const struct hvx_mem_slot *slot, struct hvx_error *err);
    void (*code_written)(void *opaque, uint64_t gpa, uint64_t n);
    void *slot_opaque;
    struct hvx_mem_slot slots[HVX_MAX_SLOTS]; /* bytes 0: free */
    uint64_t n_slot_changes;
    char slot_error[200];
};

HVX_WUR int hvx_space_init(struct hvx_address_space *s, enum hvx_space id, struct hvx_ram *ram, struct hvx_error *err);
void hvx_space_fini(struct hvx_address_space *s);
/* Start handing slots to an engine. */
HVX_WUR int hvx_space_attach(struct hvx_address_space *s,
                             int (*set_slot)(void *opaque, const struct hvx_mem_slot *slot, struct hvx_error *err),
                             void (*code_written)(void *opaque, uint64_t gpa, uint64_t n), void *opaque,
                             struct hvx_error *err);
/* The new layer belongs to the space; name is copied. */
HVX_WUR int hvx_space_add(struct hvx_address_space *s, const struct hvx_region *model, struct hvx_region **out,
                          struct hvx_error *err);
/* Takes the layer out; the caller frees it once nobody can be inside it. */
void hvx_space_remove(struct hvx_address_space *s, struct hvx_region *r);
HVX_WUR int hvx_space_move(struct hvx_address_space *s, struct hvx_region *r, uint64_t addr);
void hvx_space_pam(struct hvx_address_space *s, uint64_t gpa, uint64_t n, bool read_ram, bool write_ram);
void hvx_space_refresh(struct hvx_address_space *s);

/* Copies the segment that holds addr; false: nothing there. Any thread. */
bool hvx_space_lookup(struct hvx_address_space *s, uint64_t addr, struct hvx_segment_view *out);
/* Any size; VM lock held. */
void hvx_space_read(struct hvx_address_space *s, uint64_t addr, unsigned size, void *value);
void hvx_space_write(struct hvx_address_space *s, uint64_t addr, unsigned size, const void *value);
/* RAM and mapped memory only; any thread. See mem_read in hvx/host.h. */
int hvx_space_mem_read(struct hvx_address_space *s, uint64_t gpa, void *buf, size_t n);
int hvx_space_mem_write(struct hvx_address_space *s, uint64_t gpa, const void *buf, size_t n);
void *hvx_space_mem_ptr(struct hvx_address_space *s, uint64_t gpa, size_t *n);

#endif
