/*
 * Aml - writes ACPI Machine Language, as much of it as the DSDT of this machine needs
 *
 * Layer:     vmm, pure half (io/base only)
 * Threading: an Aml belongs to its creator.
 * Lifetime:  aml_init() borrows a buffer; nothing is allocated, nothing to finish.
 * Spec:      ACPI 6.3 chapters 20 (AML grammar) and 6.4 (resource descriptors)
 *
 * Terms are appended in order. What has a length (scope, device, package, resource template) is
 * opened by aml_begin_*() and closed by aml_end(), which goes back and puts the length in. When the
 * buffer is full everything further is dropped and aml_overflowed() says so: check it once, at the
 * end.
 *
 *     aml_begin_device(&aml, "COM1");
 *     aml_name(&aml, "_HID");
 *     aml_eisa_id(&aml, "PNP0501");
 *     aml_end(&aml);
 */
#ifndef VMM_AML_H
#define VMM_AML_H

#include "io/base/compiler.h"

#define AML_MAX_DEPTH 8

typedef enum AmlKind {
    AML_BLOCK,     /* length, then terms */
    AML_RESOURCES, /* a buffer that ends with an end tag and has its size in front */
} AmlKind;

typedef struct Aml {
    uint8_t *buf;
    size_t capacity_bytes;
    size_t len_bytes;
    bool overflowed;
    unsigned depth;
    struct {
        AmlKind kind;
        size_t start; /* where the length belongs */
    } open[AML_MAX_DEPTH];
} Aml;

void aml_init(Aml *aml, void *buf, size_t capacity_bytes) NONNULL(1, 2);

/* Everything is closed and nothing was dropped: len_bytes is the whole. */
static inline bool aml_overflowed(const Aml *aml)
{
    assert(aml->depth == 0);
    return aml->overflowed;
}

/* --- structure. A name is one segment of four characters, with an optional "\" in front --- */

void aml_begin_scope(Aml *aml, const char *name) NONNULL(1, 2);
void aml_begin_device(Aml *aml, const char *name) NONNULL(1, 2);
void aml_begin_package(Aml *aml, uint8_t nb_elements) NONNULL(1);
void aml_begin_resources(Aml *aml) NONNULL(1);
void aml_end(Aml *aml) NONNULL(1);

/* aml_name - Name(@name, ...): the term that is appended next is its value */
void aml_name(Aml *aml, const char *name) NONNULL(1, 2);

/* --- data --- */

void aml_integer(Aml *aml, uint64_t value) NONNULL(1);
void aml_string(Aml *aml, const char *text) NONNULL(1, 2);
/* "PNP0A08": three capitals, four hexadecimal digits */
void aml_eisa_id(Aml *aml, const char *id) NONNULL(1, 2);

/* --- resource descriptors, between aml_begin_resources() and aml_end() --- */

void aml_io(Aml *aml, uint16_t port, uint8_t len_bytes) NONNULL(1);
/* ISA interrupt: edge, active high, not shared */
void aml_irq(Aml *aml, uint8_t irq) NONNULL(1);
/* any GSI: edge, active high, not shared */
void aml_interrupt_edge(Aml *aml, uint32_t gsi) NONNULL(1);
void aml_memory32_fixed(Aml *aml, uint32_t gpa, uint32_t len_bytes) NONNULL(1);

/* Windows that a bridge passes on; @len not 0. */
void aml_bus_window(Aml *aml, uint16_t first, uint16_t len) NONNULL(1);
void aml_io_window(Aml *aml, uint16_t first, uint16_t len) NONNULL(1);
void aml_memory32_window(Aml *aml, uint32_t gpa, uint32_t len_bytes) NONNULL(1);
void aml_memory64_window(Aml *aml, uint64_t gpa, uint64_t len_bytes) NONNULL(1);

#endif
