/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/msix.c - message-signalled interrupts: MSI with one vector, and
 * MSI-X with its table and pending bits in a BAR of core's.
 * PCI Local Bus Specification 3.0, section 6.8.
 */
#include "core/vm/pci.h"

#include <linux/pci_regs.h>
#include <stdlib.h>
#include <string.h>

#define MSIX_MAX 2048u
#define WORDS 4u /* of a table entry */
#define CONTROL 3u

static void send(struct hvx_pci_dev *d, uint64_t addr, uint32_t data)
{
    d->n_msi++;
    d->bus->msi(d->bus->vm, addr, data);
}

static void send_vector(struct hvx_pci_dev *d, unsigned vector)
{
    const uint32_t *e = d->msix_table + vector * WORDS;

    send(d, e[0] | (uint64_t)e[1] << 32, e[2]);
}

static uint16_t msix_control(const struct hvx_pci_dev *d)
{
    return hvx_pci_get16(d->config + d->msix_cap + PCI_MSIX_FLAGS);
}

static bool vector_open(const struct hvx_pci_dev *d, unsigned vector)
{
    return (msix_control(d) & (PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL)) == PCI_MSIX_FLAGS_ENABLE &&
           !(d->msix_table[vector * WORDS + CONTROL] & PCI_MSIX_ENTRY_CTRL_MASKBIT);
}

static void send_pending_locked(struct hvx_pci_dev *d, unsigned vector)
{
    uint64_t bit = 1ull << (vector % 64);

    if ((d->msix_pending[vector / 64] & bit) && vector_open(d, vector)) {
        d->msix_pending[vector / 64] &= ~bit;
        send_vector(d, vector);
    }
}

bool hvx_pci_msi_enabled(struct hvx_pci_dev *d)
{
    return d->msi_cap && (d->config[d->msi_cap + PCI_MSI_FLAGS] & PCI_MSI_FLAGS_ENABLE);
}

bool hvx_pci_msix_enabled(struct hvx_pci_dev *d)
{
    return d->msix_cap && (msix_control(d) & PCI_MSIX_FLAGS_ENABLE);
}

void hvx_pci_msi_notify(struct hvx_pci_dev *d)
{
    const uint8_t *c = d->config + d->msi_cap;

    if (!hvx_pci_msi_enabled(d) || !hvx_pci_bus_master(d))
        return;
    send(d, hvx_pci_get32(c + PCI_MSI_ADDRESS_LO) | (uint64_t)hvx_pci_get32(c + PCI_MSI_ADDRESS_HI) << 32,
         hvx_pci_get16(c + PCI_MSI_DATA_64));
}

void hvx_pci_msix_notify(struct hvx_pci_dev *d, unsigned vector)
{
    if (!d->msix_cap || vector >= d->desc.msix_vectors || !hvx_pci_msix_enabled(d) || !hvx_pci_bus_master(d))
        return;
    pthread_mutex_lock(&d->msi_lock);
    if (vector_open(d, vector))
        send_vector(d, vector);
    else
        d->msix_pending[vector / 64] |= 1ull << (vector % 64);
    pthread_mutex_unlock(&d->msi_lock);
}

/* A write to configuration space may have unmasked or enabled the function. */
void hvx_pci_msi_control_written(struct hvx_pci_dev *d)
{
    if (!d->msix_cap)
        return;
    pthread_mutex_lock(&d->msi_lock);
    for (unsigned i = 0; i < (d->desc.msix_vectors + 63u) / 64u; i++)
        for (uint64_t bits = d->msix_pending[i]; bits; bits &= bits - 1)
            send_pending_locked(d, i * 64 + (unsigned)__builtin_ctzll(bits));
    pthread_mutex_unlock(&d->msi_lock);
}

/* --- table and PBA --------------------------------------------------------------- */

static uint64_t bar_read(void *opaque, uint64_t off, unsigned size)
{
    struct hvx_pci_dev *d = opaque;
    const uint8_t *from = NULL;
    uint64_t v = 0;

    if (off + size <= d->desc.msix_vectors * 16u)
        from = (const uint8_t *)d->msix_table + off;
    else if (off >= d->msix_pba_off && off - d->msix_pba_off + size <= (d->desc.msix_vectors + 63u) / 64u * 8u)
        from = (const uint8_t *)d->msix_pending + (off - d->msix_pba_off);
    if (!from)
        return 0;
    pthread_mutex_lock(&d->msi_lock);
    memcpy(&v, from, size);
    pthread_mutex_unlock(&d->msi_lock);
    return v;
}

static void bar_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct hvx_pci_dev *d = opaque;

    if (off + size > d->desc.msix_vectors * 16u)
        return; /* the PBA is read-only */
    pthread_mutex_lock(&d->msi_lock);
    memcpy((uint8_t *)d->msix_table + off, &value, size);
    send_pending_locked(d, (unsigned)(off / 16));
    pthread_mutex_unlock(&d->msi_lock);
}

const struct hvx_region_ops hvx_pci_msix_ops = {bar_read, bar_write};

static int msix_setup(struct hvx_pci_dev *d, struct hvx_error *err)
{
    uint8_t body[12] = {0}, wmask[12] = {0};
    unsigned n = d->desc.msix_vectors, bar = d->desc.msix_bar;
    struct hvx_pci_bar *b;
    int cap;

    if (n > MSIX_MAX || bar > 5 || d->desc.bars[bar].type != HVX_BAR_NONE)
        return hvx_fail(err, -EINVAL, "PCI device %04x:%04x: %u MSI-X vectors in BAR %u are not possible",
                        d->desc.vendor, d->desc.device, n, bar);
    b = &d->desc.bars[bar];
    d->msix_pba_off = n * 16 <= 2048 ? 2048 : (n * 16 + 4095) & ~4095u;
    d->msix_bar_bytes = HVX_PAGE;
    while (d->msix_bar_bytes < d->msix_pba_off + (n + 63) / 64 * 8)
        d->msix_bar_bytes *= 2;
    *b = (struct hvx_pci_bar){.type = HVX_BAR_MEM32, .size = d->msix_bar_bytes, .ops = &hvx_pci_msix_ops};
    d->msix_table = calloc(n, 16);
    d->msix_pending = calloc((n + 63) / 64, 8);
    if (!d->msix_table || !d->msix_pending)
        return hvx_fail(err, -ENOMEM, "MSI-X table: out of memory");
    hvx_pci_put16(body + PCI_MSIX_FLAGS, (uint16_t)(n - 1));
    hvx_pci_put32(body + PCI_MSIX_TABLE, bar);
    hvx_pci_put32(body + PCI_MSIX_PBA, d->msix_pba_off | bar);
    hvx_pci_put16(wmask + PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    cap = hvx_pci_add_cap(d, PCI_CAP_ID_MSIX, body, wmask, sizeof(body));
    if (cap < 0)
        return hvx_fail(err, cap, "MSI-X: no room for the capability");
    d->msix_cap = (unsigned)cap;
    memset(d->core_owned + cap, 1, sizeof(body));
    return 0;
}

int hvx_pci_msi_setup(struct hvx_pci_dev *d, struct hvx_error *err)
{
    if (d->desc.msix_vectors) {
        int r = msix_setup(d, err);
        if (r < 0)
            return r;
    }
    if (d->desc.msi_vectors) {
        uint8_t body[14] = {0}, wmask[14] = {0};
        int cap;
        hvx_pci_put16(body + PCI_MSI_FLAGS, PCI_MSI_FLAGS_64BIT);
        hvx_pci_put16(wmask + PCI_MSI_FLAGS, PCI_MSI_FLAGS_ENABLE);
        hvx_pci_put32(wmask + PCI_MSI_ADDRESS_LO, 0xfffffffc);
        hvx_pci_put32(wmask + PCI_MSI_ADDRESS_HI, 0xffffffff);
        hvx_pci_put16(wmask + PCI_MSI_DATA_64, 0xffff);
        cap = hvx_pci_add_cap(d, PCI_CAP_ID_MSI, body, wmask, sizeof(body));
        if (cap < 0)
            return hvx_fail(err, cap, "MSI: no room for the capability");
        d->msi_cap = (unsigned)cap;
        memset(d->core_owned + cap, 1, sizeof(body));
    }
    hvx_pci_msi_reset(d);
    return 0;
}

void hvx_pci_msi_reset(struct hvx_pci_dev *d)
{
    if (d->msi_cap)
        d->config[d->msi_cap + PCI_MSI_FLAGS] &= (uint8_t)~PCI_MSI_FLAGS_ENABLE;
    if (!d->msix_cap)
        return;
    pthread_mutex_lock(&d->msi_lock);
    d->config[d->msix_cap + PCI_MSIX_FLAGS + 1] = (uint8_t)((d->desc.msix_vectors - 1) >> 8);
    memset(d->msix_table, 0, d->desc.msix_vectors * 16u);
    for (unsigned i = 0; i < d->desc.msix_vectors; i++)
        d->msix_table[i * WORDS + CONTROL] = PCI_MSIX_ENTRY_CTRL_MASKBIT;
    memset(d->msix_pending, 0, (d->desc.msix_vectors + 63u) / 64u * 8u);
    pthread_mutex_unlock(&d->msi_lock);
}
