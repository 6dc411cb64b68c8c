/* SPDX-License-Identifier: Apache-2.0
 *
 * What the parts of libhvxtest share: the fake VM.
 */
#ifndef HVXTEST_INTERNAL_H
#define HVXTEST_INTERNAL_H

#include <hvx/test.h>

#include <pthread.h>

#define TEST_GSIS 64u
#define TEST_MAX_MSI 65536u
#define TEST_PAM_BASE 0xc0000u
#define TEST_PAM_PAGES 64u

struct hvx_region {
    struct hvx_region *next; /* newest first: the first match wins */
    struct hvx_vm *vm;
    enum hvx_space space;
    uint64_t addr, n; /* addr ~0: unmapped */
    uint32_t flags;
    char name[48];
    const struct hvx_region_ops *ops; /* NULL: memory at hva */
    void *opaque;
    uint8_t *hva;
    bool read_only;
};

struct ram_block {
    uint64_t gpa, n;
    uint8_t *hva;
    void *map; /* with its guard pages */
    size_t map_n;
};

struct test_event {
    struct test_event *next;
    char what[64];
    unsigned count;
};

struct hvx_vm {
    pthread_mutex_t lock; /* the VM lock; recursive */
    int lock_depth;       /* guarded by lock */
    struct hvxtest_params params;
    struct ram_block ram[2];
    struct hvx_region *regions;
    uint8_t pam[TEST_PAM_PAGES]; /* bit 0 read RAM, bit 1 write RAM, 0x80 set explicitly */
    uint64_t dirty_bytes;
    unsigned fail_in; /* 0: off */

    pthread_mutex_t irq_lock;
    bool irq_level[TEST_GSIS];
    unsigned irq_rises[TEST_GSIS];
    struct hvxtest_msi *msis;
    unsigned n_msis;

    struct hvx_pci_dev *pci; /* in order of pci_add */
    unsigned (*gsi_of)(void *opaque, unsigned slot, unsigned pin);
    void *gsi_opaque;
    uint64_t next_io, next_mem; /* where hvxtest_pci_enable places the next BAR */

    pthread_mutex_t loop_lock; /* guards timers' deadlines and the deferred list */
    struct hvx_timer *timers;
    struct hvx_watch *watches;
    struct deferred *deferred, **deferred_end;

    struct hvx_blk *disks;
    struct test_port *ports; /* networks */
    struct hvx_chr *chrs;
    struct hvx_display *displays;
    const struct hvx_input_ops *inputs[8];
    void *input_opaques[8];
    unsigned n_inputs;
    void (*power_cb)(void *opaque);
    void *power_opaque;
    const struct hvx_balloon_ops *balloon;
    void *balloon_opaque;
    const struct hvx_hotplug_ops *hotplug;
    void *hotplug_opaque;
    uint32_t ejected; /* slots */
    uint64_t discarded_bytes;
    int request, request_code;
    struct test_event *events;
    void *regs[64];
    size_t regs_n[64];
};

/* Print a sentence and abort: the plugin or the test broke the contract. */
_Noreturn void test_bug(const char *fmt, ...) HVX_PRINTF(1, 2);
void *test_alloc(size_t n); /* zeroed; aborts */
bool test_should_fail(struct hvx_vm *vm);

void test_mem_init(struct hvx_vm *vm);
void test_mem_done(struct hvx_vm *vm);
void test_pci_done(struct hvx_vm *vm);
void test_loop_done(struct hvx_vm *vm);
void test_io_done(struct hvx_vm *vm);
unsigned test_io_run(struct hvx_vm *vm); /* completions that are due */
unsigned test_loop_leftovers(struct hvx_vm *vm, char *buf, size_t n);
unsigned test_pci_leftovers(struct hvx_vm *vm, char *buf, size_t n);
unsigned test_io_leftovers(struct hvx_vm *vm, char *buf, size_t n);
void test_note(char *buf, size_t n, const char *fmt, ...) HVX_PRINTF(3, 4);

void test_host_mem(struct hvx_host *h); /* each fills in its part of the table */
void test_host_pci(struct hvx_host *h);
void test_host_loop(struct hvx_host *h);
void test_host_io(struct hvx_host *h);

/* Regions, for pci.c. */
int test_region_add(struct hvx_vm *vm, enum hvx_space space, uint64_t addr, uint64_t n, uint32_t flags,
                    const char *name, const struct hvx_region_ops *ops, void *opaque, struct hvx_region **out,
                    struct hvx_error *err);
void test_region_del(struct hvx_vm *vm, struct hvx_region *r);
int test_region_move(struct hvx_vm *vm, struct hvx_region *r, uint64_t addr);
struct hvx_region *test_map_new(struct hvx_vm *vm, uint64_t gpa, uint64_t n, void *hva, bool read_only,
                                const char *name);
int test_mem_read(struct hvx_vm *vm, uint64_t gpa, void *buf, size_t n);
int test_mem_write(struct hvx_vm *vm, uint64_t gpa, const void *buf, size_t n);
void test_irq_set(struct hvx_vm *vm, unsigned gsi, bool level);
void test_msi_send(struct hvx_vm *vm, uint64_t addr, uint32_t data);

void test_lock(struct hvx_vm *vm);
void test_unlock(struct hvx_vm *vm);
#endif
