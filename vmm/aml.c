/*
 * Aml - writes ACPI Machine Language, as much of it as the DSDT of this machine needs
 *
 * 1. len_bytes never exceeds capacity_bytes; the first byte that does not fit sets overflowed, and
 *    nothing is appended from then on.
 * 2. A block's length (PkgLength, 1 to 4 bytes, counting itself) is put in at its end by moving the
 *    contents up. Blocks opened earlier start before it, so their places stay right.
 */
#include "vmm/aml.h"

#include <ctype.h>
#include <string.h>

/* Opcodes (20.3) */
#define OP_ZERO     0x00
#define OP_ONE      0x01
#define OP_NAME     0x08
#define OP_BYTE     0x0a
#define OP_WORD     0x0b
#define OP_DWORD    0x0c
#define OP_STRING   0x0d
#define OP_QWORD    0x0e
#define OP_SCOPE    0x10
#define OP_BUFFER   0x11
#define OP_PACKAGE  0x12
#define OP_EXT      0x5b
#define OP_EXT_DEV  0x82
#define ROOT_PREFIX '\\'
#define NAME_BYTES  4u

/* Resource descriptors (6.4) */
#define RES_IRQ_NO_FLAGS  0x22
#define RES_IO            0x47
#define RES_END_TAG       0x79
#define RES_MEMORY32      0x86
#define RES_DWORD         0x87
#define RES_WORD          0x88
#define RES_INTERRUPT     0x89
#define RES_QWORD         0x8a
#define IO_DECODE16       0x01
#define MEMORY_READ_WRITE 0x01
#define INTERRUPT_EDGE    0x03 /* consumer, edge, active high, exclusive */
#define ADDRESS_MEMORY    0
#define ADDRESS_IO        1
#define ADDRESS_BUS       2
#define ADDRESS_FIXED     0x0c /* producer, positive decode, both ends fixed */
#define IO_ENTIRE_RANGE   0x03
/* Of a window of an address space: flags (3 bytes) and five numbers follow the length. */
#define ADDRESS_FLAG_BYTES 3
#define ADDRESS_NUMBERS    5

void aml_init(Aml *aml, void *buf, size_t capacity_bytes)
{
    *aml = (Aml){ .buf = buf, .capacity_bytes = capacity_bytes };
}

static void put_bytes(Aml *aml, const void *bytes, size_t len)
{
    if (aml->overflowed || len > aml->capacity_bytes - aml->len_bytes) {
        aml->overflowed = true;
        return;
    }
    memcpy(aml->buf + aml->len_bytes, bytes, len);
    aml->len_bytes += len;
}

/* Little-endian, @len bytes of @value. */
static void put(Aml *aml, uint64_t value, unsigned len)
{
    uint8_t bytes[8];

    assert(len <= sizeof(bytes));
    for (unsigned i = 0; i < len; i++) {
        bytes[i] = (uint8_t)(value >> (8 * i));
    }
    put_bytes(aml, bytes, len);
}

static void put_name(Aml *aml, const char *name)
{
    if (*name == ROOT_PREFIX) {
        put(aml, ROOT_PREFIX, 1);
        name++;
    }
    assert(strlen(name) == NAME_BYTES);
    put_bytes(aml, name, NAME_BYTES);
}

static void begin(Aml *aml, AmlKind kind)
{
    assert(aml->depth < AML_MAX_DEPTH);
    aml->open[aml->depth].kind = kind;
    aml->open[aml->depth].start = aml->len_bytes;
    aml->depth++;
}

void aml_begin_scope(Aml *aml, const char *name)
{
    put(aml, OP_SCOPE, 1);
    begin(aml, AML_BLOCK);
    put_name(aml, name);
}

void aml_begin_device(Aml *aml, const char *name)
{
    put(aml, OP_EXT, 1);
    put(aml, OP_EXT_DEV, 1);
    begin(aml, AML_BLOCK);
    put_name(aml, name);
}

void aml_begin_package(Aml *aml, uint8_t nb_elements)
{
    put(aml, OP_PACKAGE, 1);
    begin(aml, AML_BLOCK);
    put(aml, nb_elements, 1);
}

void aml_begin_resources(Aml *aml)
{
    put(aml, OP_BUFFER, 1);
    begin(aml, AML_RESOURCES);
}

/* Opens a gap in front of what was written since @start and fills it. */
static void insert(Aml *aml, size_t start, const Aml *piece)
{
    size_t moved = aml->len_bytes - start;

    if (aml->overflowed || piece->len_bytes > aml->capacity_bytes - aml->len_bytes) {
        aml->overflowed = true;
        return;
    }
    memmove(aml->buf + start + piece->len_bytes, aml->buf + start, moved);
    memcpy(aml->buf + start, piece->buf, piece->len_bytes);
    aml->len_bytes += piece->len_bytes;
}

/* PkgLength (20.2.4): the shortest form that holds @contents and itself. */
static void put_pkg_length(Aml *piece, size_t contents)
{
    unsigned extra = 0; /* bytes after the first */
    size_t total = contents + 1;

    if (total >= 1u << 6) {
        do {
            extra++;
            total = contents + 1 + extra;
        } while (total >= 1u << (4 + 8 * extra));
        assert(extra <= 3);
    }
    if (extra == 0) {
        put(piece, total, 1);
        return;
    }
    put(piece, extra << 6 | (total & 0x0f), 1);
    put(piece, total >> 4, extra);
}

void aml_end(Aml *aml)
{
    uint8_t bytes[16], size_bytes[16];
    Aml piece, size;
    size_t start;

    assert(aml->depth > 0);
    aml->depth--;
    start = aml->open[aml->depth].start;

    aml_init(&piece, bytes, sizeof(bytes));
    aml_init(&size, size_bytes, sizeof(size_bytes));
    if (aml->open[aml->depth].kind == AML_RESOURCES) {
        put(aml, RES_END_TAG, 1);
        put(aml, 0, 1); /* a checksum of 0 counts as right */
        aml_integer(&size, aml->len_bytes - start);
    }
    put_pkg_length(&piece, aml->len_bytes - start + size.len_bytes);
    put_bytes(&piece, size.buf, size.len_bytes);
    insert(aml, start, &piece);
}

void aml_name(Aml *aml, const char *name)
{
    put(aml, OP_NAME, 1);
    put_name(aml, name);
}

void aml_integer(Aml *aml, uint64_t value)
{
    if (value <= 1) {
        put(aml, value ? OP_ONE : OP_ZERO, 1);
    } else if (value <= UINT8_MAX) {
        put(aml, OP_BYTE, 1);
        put(aml, value, 1);
    } else if (value <= UINT16_MAX) {
        put(aml, OP_WORD, 1);
        put(aml, value, 2);
    } else if (value <= UINT32_MAX) {
        put(aml, OP_DWORD, 1);
        put(aml, value, 4);
    } else {
        put(aml, OP_QWORD, 1);
        put(aml, value, 8);
    }
}

void aml_string(Aml *aml, const char *text)
{
    put(aml, OP_STRING, 1);
    put_bytes(aml, text, strlen(text) + 1);
}

static unsigned hex_digit(char c)
{
    assert(isxdigit((unsigned char)c));
    return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
}

void aml_eisa_id(Aml *aml, const char *id)
{
    uint8_t bytes[4];
    unsigned vendor = 0;

    assert(strlen(id) == 7);
    for (unsigned i = 0; i < 3; i++) {
        assert(id[i] >= 'A' && id[i] <= 'Z');
        vendor = vendor << 5 | (unsigned)(id[i] - 'A' + 1);
    }
    bytes[0] = vendor >> 8;
    bytes[1] = vendor & 0xff;
    bytes[2] = hex_digit(id[3]) << 4 | hex_digit(id[4]);
    bytes[3] = hex_digit(id[5]) << 4 | hex_digit(id[6]);
    put(aml, OP_DWORD, 1);
    put_bytes(aml, bytes, sizeof(bytes));
}

void aml_io(Aml *aml, uint16_t port, uint8_t len_bytes)
{
    put(aml, RES_IO, 1);
    put(aml, IO_DECODE16, 1);
    put(aml, port, 2);
    put(aml, port, 2);
    put(aml, 1, 1);
    put(aml, len_bytes, 1);
}

void aml_irq(Aml *aml, uint8_t irq)
{
    assert(irq < 16);
    put(aml, RES_IRQ_NO_FLAGS, 1);
    put(aml, 1u << irq, 2);
}

void aml_interrupt_edge(Aml *aml, uint32_t gsi)
{
    put(aml, RES_INTERRUPT, 1);
    put(aml, 6, 2);
    put(aml, INTERRUPT_EDGE, 1);
    put(aml, 1, 1);
    put(aml, gsi, 4);
}

void aml_memory32_fixed(Aml *aml, uint32_t gpa, uint32_t len_bytes)
{
    put(aml, RES_MEMORY32, 1);
    put(aml, 9, 2);
    put(aml, MEMORY_READ_WRITE, 1);
    put(aml, gpa, 4);
    put(aml, len_bytes, 4);
}

/* A window of address space with numbers of @width bytes (6.4.3.5). */
static void put_window(Aml *aml, uint8_t tag, unsigned width, uint8_t space, uint8_t specific,
                       uint64_t first, uint64_t len)
{
    uint64_t last = first + len - 1;

    assert(len > 0 && last >= first);
    assert(width == 8 || last >> (8 * width) == 0);
    put(aml, tag, 1);
    put(aml, ADDRESS_FLAG_BYTES + ADDRESS_NUMBERS * width, 2);
    put(aml, space, 1);
    put(aml, ADDRESS_FIXED, 1);
    put(aml, specific, 1);
    put(aml, 0, width); /* granularity */
    put(aml, first, width);
    put(aml, last, width);
    put(aml, 0, width); /* translation */
    put(aml, len, width);
}

void aml_bus_window(Aml *aml, uint16_t first, uint16_t len)
{
    put_window(aml, RES_WORD, 2, ADDRESS_BUS, 0, first, len);
}

void aml_io_window(Aml *aml, uint16_t first, uint16_t len)
{
    put_window(aml, RES_WORD, 2, ADDRESS_IO, IO_ENTIRE_RANGE, first, len);
}

void aml_memory32_window(Aml *aml, uint32_t gpa, uint32_t len_bytes)
{
    put_window(aml, RES_DWORD, 4, ADDRESS_MEMORY, MEMORY_READ_WRITE, gpa, len_bytes);
}

void aml_memory64_window(Aml *aml, uint64_t gpa, uint64_t len_bytes)
{
    put_window(aml, RES_QWORD, 8, ADDRESS_MEMORY, MEMORY_READ_WRITE, gpa, len_bytes);
}
