/* SPDX-License-Identifier: Apache-2.0
 *
 * piix4_pm.c - power management of the 82371AB (PIIX4), function 3: the ACPI
 * PM1 event and control block, the 24-bit PM timer, a general-purpose event
 * block, APM command ports 0xb2/0xb3, and an SMBus controller with nothing on
 * its bus.
 *
 * There is no system management mode. The ACPI enable command sets SCI_EN
 * directly, and the SMI enable bit of DEVACTB reads as set after reset: that
 * is how SeaBIOS learns that somebody has done the SMM set-up already.
 *
 * Registers: Intel 82371AB data sheet, chapter 7; ACPI 6.4, section 4.8.
 */
#include "pc.h"

#include <stdlib.h>
#include <string.h>

#define PIIX4_PMBASE 0x40u
#define PIIX4_DEVACTB 0x58u
#define PIIX4_PMREGMISC 0x80u
#define PIIX4_SMBBASE 0x90u
#define PIIX4_SMBHSTCFG 0xd2u
#define DEVACTB_APMC_EN_BYTE 3u /* bit 25 */
#define PM_BYTES 0x40u
#define SMB_BYTES 0x10u
#define GPE_BASE 0xafe0u
#define GPE_BYTES 4u

#define PM1_TMR 0x0001u
#define PM1_GBL 0x0020u
#define PM1_PWRBTN 0x0100u
#define PM1_RTC 0x0400u
#define PM1_WAK 0x8000u
#define PM1_STS_ALL (PM1_TMR | PM1_GBL | PM1_PWRBTN | 0x0200u | PM1_RTC | PM1_WAK)
#define PM1_EN_ALL (PM1_TMR | PM1_GBL | PM1_PWRBTN | 0x0200u | PM1_RTC)
#define CNT_SCI_EN 0x0001u
#define CNT_SLP_EN 0x2000u
#define SLP_TYP(c) (((c) >> 10) & 7u)
#define SLP_TYP_S5 0u /* the DSDT's \_S5 says so */
#define TMR_BITS 24u
#define TMR_MASK ((1u << TMR_BITS) - 1)

#define APM_ACPI_ENABLE 0xf1u /* as the FADT says */
#define APM_ACPI_DISABLE 0xf0u

struct piix4_pm {
    struct pc *pc;
    struct hvx_pci_dev *pci;
    struct hvx_region *pm_region, *smb_region;
    struct hvx_timer *overflow_timer;
    uint64_t timer_base_ns; /* clock_ns when the PM timer was 0 */
    uint16_t pm1_sts, pm1_en, pm1_cnt;
    uint16_t gpe_sts, gpe_en;
    uint8_t other[PM_BYTES]; /* registers without function here: read back */
    uint8_t apm_command, apm_status;
    uint8_t smb[SMB_BYTES];
};

static void sci_update(struct piix4_pm *p)
{
    bool level = (p->pm1_cnt & CNT_SCI_EN) && ((p->pm1_sts & p->pm1_en & PM1_EN_ALL) || (p->gpe_sts & p->gpe_en));
    p->pc->host->irq_set(p->pc->vm, PC_IRQ_SCI, level);
}

/* --- the PM timer ------------------------------------------------------------ */
static uint64_t timer_ticks(const struct piix4_pm *p)
{
    return pc_muldiv(p->pc->host->clock_ns() - p->timer_base_ns, PC_PMTIMER_HZ, PC_NS_PER_SEC);
}

/* TMR_STS is set each time the highest bit changes: every 2^23 ticks, 2.3 s. */
static void overflow_arm(struct piix4_pm *p)
{
    if (!(p->pm1_en & PM1_TMR)) {
        p->pc->host->timer_set(p->overflow_timer, PC_NEVER);
        return;
    }
    uint64_t half = 1ull << (TMR_BITS - 1);
    uint64_t next = (timer_ticks(p) / half + 1) * half;
    uint64_t at = p->timer_base_ns + pc_muldiv(next, PC_NS_PER_SEC, PC_PMTIMER_HZ) + 1;
    p->pc->host->timer_set(p->overflow_timer, at);
}

static void overflow_due(void *opaque)
{
    struct piix4_pm *p = opaque;
    p->pm1_sts |= PM1_TMR;
    sci_update(p);
    overflow_arm(p);
}

/* --- PM I/O block -------------------------------------------------------------- */
static void sleep_requested(struct piix4_pm *p)
{
    unsigned type = SLP_TYP(p->pm1_cnt);
    if (type == SLP_TYP_S5)
        p->pc->host->vm_request(p->pc->vm, HVX_VM_POWEROFF, 0);
    else
        p->pc->host->guest_event(p->pc->vm, "acpi-sleep", "sleep type %u is not offered by this board", type);
}

static uint8_t pm_byte(struct piix4_pm *p, unsigned off)
{
    switch (off) {
    case 0x00: return (uint8_t)p->pm1_sts;
    case 0x01: return (uint8_t)(p->pm1_sts >> 8);
    case 0x02: return (uint8_t)p->pm1_en;
    case 0x03: return (uint8_t)(p->pm1_en >> 8);
    case 0x04: return (uint8_t)p->pm1_cnt;
    case 0x05: return (uint8_t)(p->pm1_cnt >> 8);
    default: return off < PM_BYTES ? p->other[off] : 0xff;
    }
}

static uint64_t pm_read(void *opaque, uint64_t off, unsigned size)
{
    struct piix4_pm *p = opaque;
    if (off >= 0x08 && off < 0x0c)
        return (timer_ticks(p) & TMR_MASK) >> (8 * (off - 8));
    uint64_t v = 0;
    for (unsigned i = 0; i < size; i++)
        v |= (uint64_t)pm_byte(p, (unsigned)off + i) << (8 * i);
    return v;
}

static void pm_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct piix4_pm *p = opaque;
    bool slept = false;
    for (unsigned i = 0; i < size; i++) {
        unsigned reg = (unsigned)off + i;
        uint16_t v = (uint8_t)(value >> (8 * i));
        switch (reg) {
        case 0x00: p->pm1_sts &= (uint16_t)~v; break; /* write one to clear */
        case 0x01: p->pm1_sts &= (uint16_t) ~(v << 8); break;
        case 0x02: p->pm1_en = (uint16_t)((p->pm1_en & 0xff00) | v) & PM1_EN_ALL; break;
        case 0x03: p->pm1_en = (uint16_t)((p->pm1_en & 0x00ff) | v << 8) & PM1_EN_ALL; break;
        case 0x04: p->pm1_cnt = (uint16_t)((p->pm1_cnt & 0xff00) | v); break;
        case 0x05:
            slept = (v << 8) & CNT_SLP_EN;
            p->pm1_cnt = (uint16_t)((p->pm1_cnt & 0x00ff) | ((v << 8) & ~CNT_SLP_EN));
            break;
        case 0x08: case 0x09: case 0x0a: case 0x0b: break; /* the timer is read-only */
        default:
            if (reg < PM_BYTES)
                p->other[reg] = (uint8_t)v;
        }
    }
    overflow_arm(p);
    sci_update(p);
    if (slept)
        sleep_requested(p);
}

static uint64_t gpe_read(void *opaque, uint64_t off, unsigned size)
{
    struct piix4_pm *p = opaque;
    (void)size;
    uint16_t v = off < 2 ? p->gpe_sts : p->gpe_en;
    return (uint8_t)(v >> (8 * (off & 1)));
}

static void gpe_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct piix4_pm *p = opaque;
    unsigned shift = 8 * (off & 1);
    uint16_t v = (uint16_t)((value & 0xff) << shift), mask = (uint16_t)(0xff << shift);
    (void)size;
    if (off < 2)
        p->gpe_sts &= (uint16_t)~v;
    else
        p->gpe_en = (uint16_t)((p->gpe_en & ~mask) | v);
    sci_update(p);
}

/* --- APM command and status ------------------------------------------------------ */
static uint64_t apm_read(void *opaque, uint64_t off, unsigned size)
{
    struct piix4_pm *p = opaque;
    (void)size;
    return off ? p->apm_status : p->apm_command;
}

static void apm_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct piix4_pm *p = opaque;
    (void)size;
    if (off) {
        p->apm_status = (uint8_t)value;
        return;
    }
    p->apm_command = (uint8_t)value;
    if (p->apm_command == APM_ACPI_ENABLE)
        p->pm1_cnt |= CNT_SCI_EN;
    else if (p->apm_command == APM_ACPI_DISABLE)
        p->pm1_cnt &= (uint16_t)~CNT_SCI_EN;
    sci_update(p);
}

/* --- SMBus host controller: every transfer ends with "no such device" -------------- */
#define SMB_STS 0u
#define SMB_CNT 2u
#define SMB_STS_DEV_ERR 0x04u
#define SMB_STS_WRITE_CLEAR 0x1eu
#define SMB_CNT_START 0x40u

static uint64_t smb_read(void *opaque, uint64_t off, unsigned size)
{
    (void)size;
    return ((struct piix4_pm *)opaque)->smb[off % SMB_BYTES];
}

static void smb_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct piix4_pm *p = opaque;
    uint8_t v = (uint8_t)value;
    (void)size;
    if (off == SMB_STS) {
        p->smb[SMB_STS] &= (uint8_t) ~(v & SMB_STS_WRITE_CLEAR);
    } else if (off == SMB_CNT) {
        p->smb[SMB_CNT] = v & (uint8_t)~SMB_CNT_START;
        if (v & SMB_CNT_START)
            p->smb[SMB_STS] |= SMB_STS_DEV_ERR;
    } else {
        p->smb[off % SMB_BYTES] = v;
    }
}

static const struct hvx_region_ops pm_ops = {pm_read, pm_write};
static const struct hvx_region_ops gpe_ops = {gpe_read, gpe_write};
static const struct hvx_region_ops apm_ops = {apm_read, apm_write};
static const struct hvx_region_ops smb_ops = {smb_read, smb_write};

/* --- configuration space ------------------------------------------------------------ */
static uint32_t config32(const struct piix4_pm *p, unsigned off)
{
    uint32_t v;
    memcpy(&v, p->pc->host->pci_config(p->pci) + off, 4);
    return v;
}

static void map_blocks(struct piix4_pm *p)
{
    uint8_t *config = p->pc->host->pci_config(p->pci);
    /* bit 0 of both bases is wired to one: they are I/O */
    config[PIIX4_PMBASE] = (uint8_t)((config[PIIX4_PMBASE] & 0xc0) | 1);
    config[PIIX4_SMBBASE] = (uint8_t)((config[PIIX4_SMBBASE] & 0xf0) | 1);

    uint64_t pm = config32(p, PIIX4_PMBASE) & 0xffc0;
    uint64_t smb = config32(p, PIIX4_SMBBASE) & 0xfff0;
    bool pm_on = (config[PIIX4_PMREGMISC] & 1) && pm;
    bool smb_on = (config[PIIX4_SMBHSTCFG] & 1) && smb;
    if (pm_on)
        acpi_pm_base_changed(p->pc, (uint32_t)pm);
    p->pc->host->region_move(p->pc->vm, p->pm_region, pm_on ? pm : ~0ull);
    p->pc->host->region_move(p->pc->vm, p->smb_region, smb_on ? smb : ~0ull);
}

static bool touches(unsigned off, unsigned size, unsigned reg, unsigned n)
{
    return off < reg + n && off + size > reg;
}

static void pm_config_written(void *opaque, unsigned off, unsigned size)
{
    if (touches(off, size, PIIX4_PMBASE, 4) || touches(off, size, PIIX4_PMREGMISC, 1) ||
        touches(off, size, PIIX4_SMBBASE, 4) || touches(off, size, PIIX4_SMBHSTCFG, 1))
        map_blocks(opaque);
}

static const struct hvx_pci_ops pm_pci_ops = {.size = sizeof(pm_pci_ops), .config_written = pm_config_written};

void piix4_pm_default_base(struct piix4_pm *p)
{
    uint8_t *config = p->pc->host->pci_config(p->pci);
    config[PIIX4_PMBASE] = 1;
    config[PIIX4_PMBASE + 1] = PC_PM_BASE >> 8;
    config[PIIX4_PMREGMISC] = 1;
    config[PIIX4_SMBBASE] = 1;
    config[PIIX4_SMBBASE + 1] = PC_SMB_BASE >> 8;
    config[PIIX4_SMBHSTCFG] = 9;
    config[0x3c] = PC_IRQ_SCI;
    config[0x04] |= 1;
    map_blocks(p);
}

void piix4_pm_power_button(struct piix4_pm *p)
{
    p->pm1_sts |= PM1_PWRBTN;
    sci_update(p);
}

void piix4_pm_rtc_alarm(struct piix4_pm *p)
{
    p->pm1_sts |= PM1_RTC;
    sci_update(p);
}

void piix4_pm_event(struct piix4_pm *p, unsigned n)
{
    p->gpe_sts |= (uint16_t)(1u << n);
    sci_update(p);
}

static void power_button(void *opaque)
{
    piix4_pm_power_button(opaque);
}

int piix4_pm_create(struct pc *pc, struct piix4_pm **out, struct hvx_error *err)
{
    const struct hvx_host *host = pc->host;
    struct piix4_pm *p = calloc(1, sizeof(*p));
    if (!p)
        return hvx_fail(err, -ENOMEM, "pc: no memory for power management");
    p->pc = pc;
    *out = p;

    const struct hvx_pci_desc desc = {
        .size = sizeof(desc),
        .devfn = PC_DEVFN_PM,
        .vendor = 0x8086,
        .device = 0x7113,
        .subsys_vendor = PC_SUBSYS_VENDOR,
        .subsys = PC_SUBSYS_ID,
        .class_code = 0x068000,
        .revision = 3,
        .irq_pin = 1,
    };
    int rc = host->pci_add(pc->vm, &desc, &pm_pci_ops, p, &p->pci, err);
    if (rc)
        return rc;
    rc = host->timer_new(pc->vm, overflow_due, p, &p->overflow_timer);
    if (rc)
        return hvx_fail(err, rc, "pc: no host timer for power management");
    p->timer_base_ns = host->clock_ns();
    host->power_button_set(pc->vm, power_button, p);

    rc = host->region_add(pc->vm, HVX_SPACE_PIO, PC_PM_BASE, PM_BYTES, HVX_REGION_MAX4, "pm", &pm_ops, p,
                          &p->pm_region, err);
    if (rc == 0)
        rc = host->region_add(pc->vm, HVX_SPACE_PIO, PC_SMB_BASE, SMB_BYTES, HVX_REGION_MIN1, "smbus", &smb_ops, p,
                              &p->smb_region, err);
    if (rc == 0)
        rc = pc_region(pc, HVX_SPACE_PIO, GPE_BASE, GPE_BYTES, HVX_REGION_MIN1, "gpe0", &gpe_ops, p, err);
    if (rc == 0)
        rc = pc_region(pc, HVX_SPACE_PIO, 0xb2, 2, HVX_REGION_MIN1, "apm", &apm_ops, p, err);
    return rc;
}

void piix4_pm_destroy(struct piix4_pm *p)
{
    if (!p)
        return;
    const struct hvx_host *host = p->pc->host;
    host->power_button_set(p->pc->vm, NULL, NULL);
    if (p->pm_region)
        host->region_del(p->pc->vm, p->pm_region);
    if (p->smb_region)
        host->region_del(p->pc->vm, p->smb_region);
    if (p->overflow_timer)
        host->timer_del(p->overflow_timer);
    if (p->pci)
        host->pci_del(p->pc->vm, p->pci);
    free(p);
}

void piix4_pm_reset(struct piix4_pm *p)
{
    uint8_t *config = p->pc->host->pci_config(p->pci);
    memset(config + PIIX4_PMBASE, 0, 4);
    memset(config + PIIX4_DEVACTB, 0, 4);
    config[PIIX4_DEVACTB + DEVACTB_APMC_EN_BYTE] = 0x02;
    config[PIIX4_PMREGMISC] = 0;
    memset(config + PIIX4_SMBBASE, 0, 4);
    config[PIIX4_SMBHSTCFG] = 0;
    p->pm1_sts = p->pm1_en = p->pm1_cnt = 0;
    p->gpe_sts = p->gpe_en = 0;
    memset(p->other, 0, sizeof(p->other));
    memset(p->smb, 0, sizeof(p->smb));
    p->apm_command = p->apm_status = 0;
    map_blocks(p);
    overflow_arm(p);
    sci_update(p);
}

int piix4_pm_state(struct piix4_pm *p, struct hvx_stream *s)
{
    uint8_t *config = p->pc->host->pci_config(p->pci);
    uint64_t now = p->pc->host->clock_ns();
    uint64_t gone_ns = now - p->timer_base_ns;
    hvx_state_u64(s, &gone_ns);
    p->timer_base_ns = now - gone_ns;
    hvx_state_u16(s, &p->pm1_sts);
    hvx_state_u16(s, &p->pm1_en);
    hvx_state_u16(s, &p->pm1_cnt);
    hvx_state_u16(s, &p->gpe_sts);
    hvx_state_u16(s, &p->gpe_en);
    hvx_state_bytes(s, p->other, sizeof(p->other));
    hvx_state_bytes(s, p->smb, sizeof(p->smb));
    hvx_state_u8(s, &p->apm_command);
    hvx_state_u8(s, &p->apm_status);
    hvx_state_bytes(s, config + PIIX4_PMBASE, 4);
    hvx_state_bytes(s, config + PIIX4_DEVACTB, 4);
    hvx_state_u8(s, &config[PIIX4_PMREGMISC]);
    hvx_state_bytes(s, config + PIIX4_SMBBASE, 4);
    hvx_state_u8(s, &config[PIIX4_SMBHSTCFG]);
    if (!hvx_stream_is_saving(s)) {
        map_blocks(p);
        overflow_arm(p);
    }
    return hvx_state_error(s);
}
