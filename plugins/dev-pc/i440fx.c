/* SPDX-License-Identifier: Apache-2.0
 *
 * i440fx.c - the host bridge 82441FX: configuration mechanism 1 at ports
 * 0xcf8/0xcfc, the PAM registers that open shadow RAM, and SMRAM (kept, but
 * there is no system management mode behind it).
 *
 * Register numbers: Intel 82441FX data sheet, section 3.2.
 */
#include "pc.h"

#include <stdlib.h>
#include <string.h>

#define I440FX_PAM0 0x59u
#define I440FX_N_PAM 7u
#define I440FX_SMRAM 0x72u
#define PAM_READ_RAM 1u
#define PAM_WRITE_RAM 2u
#define CONFIG_ENABLE 0x80000000u

struct i440fx {
    struct pc *pc;
    struct hvx_pci_dev *pci;
    uint32_t address; /* port 0xcf8 */
    uint8_t pam[I440FX_N_PAM]; /* what core has been told */
};

/* PAM0's high nibble is the BIOS area 0xf0000..0xfffff; PAM1..6 hold two 16 KiB pieces each from 0xc0000 up. */
static void pam_apply_nibble(struct i440fx *h, uint64_t gpa, uint64_t n, unsigned nibble)
{
    h->pc->host->mem_pam(h->pc->vm, gpa, n, nibble & PAM_READ_RAM, nibble & PAM_WRITE_RAM);
}

static void pam_update(struct i440fx *h, bool force)
{
    const uint8_t *config = h->pc->host->pci_config(h->pci);

    for (unsigned i = 0; i < I440FX_N_PAM; i++) {
        uint8_t now = config[I440FX_PAM0 + i] & 0x33;
        uint8_t was = h->pam[i];
        if (now == was && !force)
            continue;
        h->pam[i] = now;
        if (i == 0) {
            if (force || (now >> 4) != (was >> 4))
                pam_apply_nibble(h, 0xf0000, 0x10000, now >> 4);
            continue;
        }
        uint64_t base = 0xc0000 + (i - 1) * 0x8000ull;
        if (force || (now & 3) != (was & 3))
            pam_apply_nibble(h, base, 0x4000, now & 3);
        if (force || (now >> 4) != (was >> 4))
            pam_apply_nibble(h, base + 0x4000, 0x4000, now >> 4);
    }
}

static void i440fx_config_written(void *opaque, unsigned off, unsigned size)
{
    if (off < I440FX_PAM0 + I440FX_N_PAM && off + size > I440FX_PAM0)
        pam_update(opaque, false);
}

static const struct hvx_pci_ops i440fx_pci_ops = {
    .size = sizeof(i440fx_pci_ops), .config_written = i440fx_config_written};

/* Ports 0xcf8..0xcfb. Only a dword access reaches the address register
 * (PCI local bus specification 3.0, section 3.2.2.3.2); 0xcf9 as a byte is
 * the reset control register of the south bridge. */
static uint64_t address_read(void *opaque, uint64_t off, unsigned size)
{
    struct i440fx *h = opaque;
    if (off == 0 && size == 4)
        return h->address;
    if (off == 1 && size == 1)
        return piix3_rcr_read(h->pc->piix3);
    return ~0ull;
}

static void address_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct i440fx *h = opaque;
    if (off == 0 && size == 4)
        h->address = (uint32_t)value & 0x80fffffcu;
    else if (off == 1 && size == 1)
        piix3_rcr_write(h->pc->piix3, (uint8_t)value);
}

/* Ports 0xcfc..0xcff. */
static uint64_t data_read(void *opaque, uint64_t off, unsigned size)
{
    struct i440fx *h = opaque;
    if (!(h->address & CONFIG_ENABLE) || size > 4)
        return ~0ull;
    unsigned reg = (h->address & 0xfc) + (unsigned)off;
    return h->pc->host->pci_cfg_read(h->pc->vm, (h->address >> 8) & 0xffff, reg, size);
}

static void data_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct i440fx *h = opaque;
    if (!(h->address & CONFIG_ENABLE) || size > 4)
        return;
    unsigned reg = (h->address & 0xfc) + (unsigned)off;
    h->pc->host->pci_cfg_write(h->pc->vm, (h->address >> 8) & 0xffff, reg, size, (uint32_t)value);
}

static const struct hvx_region_ops address_ops = {address_read, address_write};
static const struct hvx_region_ops data_ops = {data_read, data_write};

int i440fx_create(struct pc *pc, struct i440fx **out, struct hvx_error *err)
{
    struct i440fx *h = calloc(1, sizeof(*h));
    if (!h)
        return hvx_fail(err, -ENOMEM, "pc: no memory for the host bridge");
    h->pc = pc;
    *out = h;

    const struct hvx_pci_desc desc = {
        .size = sizeof(desc),
        .devfn = PC_DEVFN_HOST,
        .vendor = 0x8086,
        .device = 0x1237,
        .subsys_vendor = PC_SUBSYS_VENDOR,
        .subsys = PC_SUBSYS_ID,
        .class_code = 0x060000,
        .revision = 2,
        .is_bridge_host = 1,
    };
    int rc = pc->host->pci_add(pc->vm, &desc, &i440fx_pci_ops, h, &h->pci, err);
    if (rc)
        return rc;
    rc = pc_region(pc, HVX_SPACE_PIO, 0xcf8, 4, 0, "pci-address", &address_ops, h, err);
    if (rc)
        return rc;
    return pc_region(pc, HVX_SPACE_PIO, 0xcfc, 4, HVX_REGION_MAX4, "pci-data", &data_ops, h, err);
}

void i440fx_destroy(struct i440fx *h)
{
    if (!h)
        return;
    if (h->pci)
        h->pc->host->pci_del(h->pc->vm, h->pci);
    free(h);
}

void i440fx_reset(struct i440fx *h)
{
    uint8_t *config = h->pc->host->pci_config(h->pci);
    h->address = 0;
    memset(config + I440FX_PAM0, 0, I440FX_N_PAM);
    config[I440FX_SMRAM] = 0x02;
    pam_update(h, true);
}

void i440fx_open_shadow(struct i440fx *h)
{
    uint8_t *config = h->pc->host->pci_config(h->pci);
    config[I440FX_PAM0] = 0x30;
    memset(config + I440FX_PAM0 + 1, 0x33, I440FX_N_PAM - 1);
    pam_update(h, false);
}

/* Core saves the configuration bytes themselves. */
int i440fx_state(struct i440fx *h, struct hvx_stream *s)
{
    hvx_state_u32(s, &h->address);
    hvx_state_bytes(s, h->pam, sizeof(h->pam));
    if (!hvx_stream_is_saving(s) && !hvx_state_error(s)) {
        uint8_t *config = h->pc->host->pci_config(h->pci);
        memcpy(config + I440FX_PAM0, h->pam, sizeof(h->pam));
        pam_update(h, true);
    }
    return hvx_state_error(s);
}
