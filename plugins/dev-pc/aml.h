/* SPDX-License-Identifier: Apache-2.0
 *
 * aml.h - a small builder of ACPI Machine Language (ACPI 6.4, chapter 20).
 *
 * Terms are appended to a pc_buf in the order in which they stand in the
 * source language. What has a PkgLength is opened with a function that
 * returns a mark and closed with aml_end(mark):
 *
 *     size_t dev = aml_device(b, "HPET");
 *     aml_name_eisaid(b, "_HID", "PNP0103");
 *     aml_end(b, dev);
 */
#ifndef DEV_PC_AML_H
#define DEV_PC_AML_H

#include "pc.h"

/* Locals and arguments usable as operands. */
#define AML_LOCAL0 0x60u
#define AML_ARG0 0x68u

void aml_end(struct pc_buf *b, size_t mark);
size_t aml_scope(struct pc_buf *b, const char *path); /* "\\_SB" or "_SB_" */
size_t aml_device(struct pc_buf *b, const char *name);
size_t aml_method(struct pc_buf *b, const char *name, unsigned n_args);
size_t aml_processor(struct pc_buf *b, const char *name, uint8_t id);
size_t aml_package(struct pc_buf *b, unsigned n_elements);
size_t aml_if(struct pc_buf *b); /* the predicate follows */
size_t aml_field(struct pc_buf *b, const char *region); /* bytes, no lock, preserve */
void aml_field_byte(struct pc_buf *b, const char *name);
size_t aml_field_dwords(struct pc_buf *b, const char *region); /* likewise of 32 bits, written whole */
void aml_field_dword(struct pc_buf *b, const char *name);

void aml_path(struct pc_buf *b, const char *path); /* "LNKA", "\\_SB", "PCI0.ISA.PIRQ" */
void aml_integer(struct pc_buf *b, uint64_t v);
void aml_string(struct pc_buf *b, const char *s);
void aml_eisaid(struct pc_buf *b, const char id[8]);
void aml_op(struct pc_buf *b, uint8_t op); /* AML_LOCAL0, AML_ARG0 .. */
void aml_name(struct pc_buf *b, const char *name); /* the value follows */
void aml_name_integer(struct pc_buf *b, const char *name, uint64_t v);
void aml_name_eisaid(struct pc_buf *b, const char *name, const char id[8]);
void aml_name_string(struct pc_buf *b, const char *name, const char *s);
void aml_return(struct pc_buf *b);            /* the value follows */
void aml_store(struct pc_buf *b);             /* source, then target follow */
void aml_or(struct pc_buf *b);                /* two operands, then target follow */
void aml_and(struct pc_buf *b);               /* two operands follow; the result goes nowhere: close with aml_op(0) */
void aml_notify(struct pc_buf *b);            /* object, then value follow */
void aml_less(struct pc_buf *b);              /* two operands follow */
void aml_operation_region(struct pc_buf *b, const char *name, uint8_t space, uint64_t offset, uint64_t n);
void aml_dword_field(struct pc_buf *b); /* buffer, index, then aml_path(name) follow */

/* Resource templates: a Buffer whose size is set by aml_resources_end. */
struct aml_resources {
    struct pc_buf bytes;
};
void aml_res_io(struct aml_resources *r, uint16_t port, uint8_t align, uint8_t n);
void aml_res_irq(struct aml_resources *r, unsigned irq); /* edge, active high, exclusive */
void aml_res_interrupt(struct aml_resources *r, const uint32_t *irqs, unsigned n); /* level, active high, shared */
void aml_res_memory32(struct aml_resources *r, uint32_t base, uint32_t n, bool writable);
void aml_res_bus(struct aml_resources *r, uint16_t first, uint16_t last);
void aml_res_word_io(struct aml_resources *r, uint16_t first, uint16_t last);
void aml_res_dword_memory(struct aml_resources *r, uint32_t first, uint32_t last, bool cached);
void aml_res_qword_memory(struct aml_resources *r, uint64_t first, uint64_t last);
void aml_resources_end(struct pc_buf *b, struct aml_resources *r); /* appends the Buffer, frees r */
#endif
