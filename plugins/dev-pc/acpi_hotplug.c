/* SPDX-License-Identifier: Apache-2.0
 *
 * acpi_hotplug.c - PCI functions that come and go: three registers at port
 * 0xae00, the general-purpose event that says "look there", and the AML by
 * which the guest does (ACPI 6.4, 5.6.4 and 6.3.3).
 *
 *   +0  slots with something new      read: bits, cleared by reading
 *   +4  slots that shall be let go    read: bits, cleared by reading
 *   +8  eject                         write: bits of slots whose driver is gone
 *
 * The AML is ours, so this layout is nobody's business but this file's.
 */
#include "aml.h"

#include <stdlib.h>

#define HOTPLUG_PORT 0xae00u
#define HOTPLUG_BYTES 0x0cu
#define HOTPLUG_GPE 1u /* \_GPE._E01 */
#define FIRST_SLOT 3u  /* host bridge, south bridge, display stay */
#define LAST_SLOT 31u

enum { REG_UP = 0, REG_DOWN = 4, REG_EJECT = 8 };

struct acpi_hotplug {
    struct pc *pc;
    uint32_t up, down;
};

/* --- registers ---------------------------------------------------------------------- */
static uint64_t hotplug_read(void *opaque, uint64_t off, unsigned size)
{
    struct acpi_hotplug *h = opaque;
    uint32_t v = 0;
    if (size != 4)
        return 0;
    if (off == REG_UP) {
        v = h->up;
        h->up = 0;
    } else if (off == REG_DOWN) {
        v = h->down;
        h->down = 0;
    }
    return v;
}

static void hotplug_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct acpi_hotplug *h = opaque;
    if (off != REG_EJECT || size != 4)
        return;
    for (unsigned slot = FIRST_SLOT; slot <= LAST_SLOT; slot++) {
        if (!(value & 1u << slot))
            continue;
        h->down &= ~(1u << slot);
        if (!h->pc->host->pci_eject(h->pc->vm, slot))
            h->pc->host->guest_event(h->pc->vm, "acpi-hotplug", "ejected slot %u, which has nothing that could go",
                                     slot);
    }
}

static const struct hvx_region_ops hotplug_region = {hotplug_read, hotplug_write};

/* --- the host's side ------------------------------------------------------------------- */
static void plugged(void *opaque, unsigned slot)
{
    struct acpi_hotplug *h = opaque;
    if (slot < FIRST_SLOT || slot > LAST_SLOT)
        return;
    h->up |= 1u << slot;
    h->down &= ~(1u << slot);
    piix4_pm_event(h->pc->pm, HOTPLUG_GPE);
}

static bool unplug_request(void *opaque, unsigned slot)
{
    struct acpi_hotplug *h = opaque;
    if (slot < FIRST_SLOT || slot > LAST_SLOT)
        return false;
    h->down |= 1u << slot;
    piix4_pm_event(h->pc->pm, HOTPLUG_GPE);
    return true;
}

static const struct hvx_hotplug_ops hotplug_ops = {
    .size = sizeof(struct hvx_hotplug_ops),
    .plugged = plugged,
    .unplug_request = unplug_request,
};

/* --- AML ----------------------------------------------------------------------------------- */
static void slot_name(char name[5], unsigned slot)
{
    snprintf(name, 5, "S%02X_", slot & 0xff);
}

static void dsdt_slot(struct pc_buf *b, unsigned slot)
{
    char name[5];
    slot_name(name, slot);
    size_t dev = aml_device(b, name);
    aml_name_integer(b, "_SUN", slot);
    aml_name_integer(b, "_ADR", (uint64_t)slot << 16);
    size_t m = aml_method(b, "_EJ0", 1);
    aml_store(b);
    aml_integer(b, 1u << slot);
    aml_path(b, "PCEJ");
    aml_end(b, m);
    aml_end(b, dev);
}

/* If (local & bit) { Notify (slot, event) } */
static void dsdt_notify(struct pc_buf *b, unsigned slot, uint8_t local, unsigned event)
{
    char name[5];
    slot_name(name, slot);
    size_t i = aml_if(b);
    aml_and(b);
    aml_op(b, local);
    aml_integer(b, 1u << slot);
    aml_op(b, 0);
    aml_notify(b);
    aml_path(b, name);
    aml_integer(b, event);
    aml_end(b, i);
}

/* Inside \_SB.PCI0. */
void acpi_hotplug_dsdt(struct pc_buf *b)
{
    struct aml_resources r = {0};
    aml_operation_region(b, "PCHP", 1, HOTPLUG_PORT, HOTPLUG_BYTES);
    size_t f = aml_field_dwords(b, "PCHP");
    aml_field_dword(b, "PCUP");
    aml_field_dword(b, "PCDN");
    aml_field_dword(b, "PCEJ");
    aml_end(b, f);

    size_t dev = aml_device(b, "PHPR"); /* keeps the ports from being given to somebody */
    aml_name_eisaid(b, "_HID", "PNP0A06");
    aml_name_string(b, "_UID", "PCI hot plug");
    aml_name_integer(b, "_STA", 0x0b);
    aml_name(b, "_CRS");
    aml_res_io(&r, HOTPLUG_PORT, 1, HOTPLUG_BYTES);
    aml_resources_end(b, &r);
    aml_end(b, dev);

    for (unsigned slot = FIRST_SLOT; slot <= LAST_SLOT; slot++)
        dsdt_slot(b, slot);
    size_t m = aml_method(b, "PCNT", 0);
    aml_store(b);
    aml_path(b, "PCUP");
    aml_op(b, AML_LOCAL0);
    aml_store(b);
    aml_path(b, "PCDN");
    aml_op(b, AML_LOCAL0 + 1);
    for (unsigned slot = FIRST_SLOT; slot <= LAST_SLOT; slot++) {
        dsdt_notify(b, slot, AML_LOCAL0, 1);     /* device check */
        dsdt_notify(b, slot, AML_LOCAL0 + 1, 3); /* eject request */
    }
    aml_end(b, m);
}

/* At the top of the table. */
void acpi_hotplug_event(struct pc_buf *b)
{
    size_t scope = aml_scope(b, "\\_GPE");
    aml_name_string(b, "_HID", "ACPI0006");
    size_t m = aml_method(b, "_E01", 0);
    aml_path(b, "\\_SB.PCI0.PCNT"); /* a call without arguments */
    aml_end(b, m);
    aml_end(b, scope);
}

/* --- life ------------------------------------------------------------------------------------ */
int acpi_hotplug_create(struct pc *pc, struct acpi_hotplug **out, struct hvx_error *err)
{
    struct acpi_hotplug *h = calloc(1, sizeof(*h));
    if (!h)
        return hvx_fail(err, -ENOMEM, "pc: no memory for hot plug");
    h->pc = pc;
    *out = h;
    int rc = pc_region(pc, HVX_SPACE_PIO, HOTPLUG_PORT, HOTPLUG_BYTES, 0, "pci-hotplug", &hotplug_region, h, err);
    if (rc == 0)
        pc->host->hotplug_set(pc->vm, &hotplug_ops, h);
    return rc;
}

void acpi_hotplug_destroy(struct acpi_hotplug *h)
{
    if (h)
        h->pc->host->hotplug_set(h->pc->vm, NULL, NULL);
    free(h);
}

void acpi_hotplug_reset(struct acpi_hotplug *h)
{
    h->up = h->down = 0; /* firmware finds what is there */
}

int acpi_hotplug_state(struct acpi_hotplug *h, struct hvx_stream *s)
{
    hvx_state_u32(s, &h->up);
    hvx_state_u32(s, &h->down);
    return hvx_state_error(s);
}
