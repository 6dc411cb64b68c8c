/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/pci.h - PCI bus 0: configuration space, BARs, INTx, MSI, MSI-X.
 * The functions implement the pci_* entries of hvx/host.h.
 *
 * All need the VM lock, but for the *_notify ones, which any thread may call:
 * what they touch (MSI-X table and PBA) has its own lock.
 */
#ifndef HVX_CORE_PCI_H
#define HVX_CORE_PCI_H

#include "core/vm/space.h"
#include <pthread.h>

struct hvx_pci_bus;

struct hvx_pci_dev {
    struct hvx_pci_bus *bus;
    unsigned devfn;
    struct hvx_pci_desc desc;
    struct hvx_pci_ops ops;
    void *opaque;
    uint8_t config[256], wmask[256], w1c[256];
    uint8_t core_owned[256]; /* capabilities of core: not shown to the device's callbacks */
    unsigned next_cap;
    struct hvx_region *bar_region[6], *rom_region;
    uint8_t *rom;
    uint32_t rom_bytes;
    bool irq_level;
    int irq_gsi; /* where the level is counted now, -1 nowhere */
    /* MSI and MSI-X */
    unsigned msi_cap, msix_cap; /* 0: none */
    pthread_mutex_t msi_lock;
    uint32_t *msix_table; /* 4 words a vector: address, address high, data, control */
    uint64_t *msix_pending;
    uint32_t msix_pba_off, msix_bar_bytes;
    uint64_t n_msi;
};

struct hvx_pci_bus {
    struct hvx_vm *vm;
    struct hvx_address_space *pio, *mem;
    struct hvx_pci_dev *dev[256];
    int last_added; /* devfn of the latest hvx_pci_add */
    unsigned (*gsi_of)(void *opaque, unsigned slot, unsigned pin);
    void *route_opaque;
    /* Level-triggered inputs are shared: the bus counts, the VM merges. */
    void (*irq_count)(struct hvx_vm *vm, unsigned gsi, int delta);
    void (*msi)(struct hvx_vm *vm, uint64_t addr, uint32_t data);
    /* Frees a removed region when nobody is inside it. */
    void (*region_gone)(struct hvx_vm *vm, struct hvx_region *r);
};

void hvx_pci_init(struct hvx_pci_bus *bus);
void hvx_pci_fini(struct hvx_pci_bus *bus);
void hvx_pci_reset(struct hvx_pci_bus *bus);
HVX_WUR int hvx_pci_add(struct hvx_pci_bus *bus, const struct hvx_pci_desc *desc, const struct hvx_pci_ops *ops,
                        void *opaque, struct hvx_pci_dev **out, struct hvx_error *err);
void hvx_pci_del(struct hvx_pci_dev *d);
/* Hot unplug: gone as far as the guest can see. The device deletes it later. */
void hvx_pci_hide(struct hvx_pci_bus *bus, unsigned slot);
int hvx_pci_add_cap(struct hvx_pci_dev *d, uint8_t cap_id, const void *body, const void *wmask, unsigned n);
void hvx_pci_set_irq(struct hvx_pci_dev *d, bool level);
void hvx_pci_reroute(struct hvx_pci_bus *bus);
uint32_t hvx_pci_cfg_read(struct hvx_pci_bus *bus, unsigned bdf, unsigned off, unsigned size);
void hvx_pci_cfg_write(struct hvx_pci_bus *bus, unsigned bdf, unsigned off, unsigned size, uint32_t v);
bool hvx_pci_bus_master(const struct hvx_pci_dev *d);
bool hvx_pci_msi_enabled(struct hvx_pci_dev *d);
bool hvx_pci_msix_enabled(struct hvx_pci_dev *d);
void hvx_pci_msi_notify(struct hvx_pci_dev *d);
void hvx_pci_msix_notify(struct hvx_pci_dev *d, unsigned vector);
void hvx_pci_state(struct hvx_pci_dev *d, struct hvx_stream *s);

/* msix.c, for pci.c */
HVX_WUR int hvx_pci_msi_setup(struct hvx_pci_dev *d, struct hvx_error *err);
void hvx_pci_msi_reset(struct hvx_pci_dev *d);
void hvx_pci_msi_control_written(struct hvx_pci_dev *d);
extern const struct hvx_region_ops hvx_pci_msix_ops;
/* pci.c, for msix.c */
void hvx_pci_update_mappings(struct hvx_pci_dev *d);

static inline uint16_t hvx_pci_get16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}
static inline uint32_t hvx_pci_get32(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static inline void hvx_pci_put16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}
static inline void hvx_pci_put32(uint8_t *p, uint32_t v)
{
    hvx_pci_put16(p, (uint16_t)v);
    hvx_pci_put16(p + 2, (uint16_t)(v >> 16));
}

#endif
