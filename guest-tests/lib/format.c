/*
 * Format - printf's way of writing numbers and strings
 */
#include "guest-tests/lib/format.h"

#include <stdbool.h>
#include <stdint.h>

/* Where the text goes, and how the conversion at hand is written. */
typedef struct {
    void (*put)(void *opaque, char c);
    void *opaque;
    unsigned width;
    char pad;
    bool wide;
} Writer;

static void put_number(const Writer *w, uint64_t value, unsigned base,
                       bool negative)
{
    char digits[24];
    unsigned n = 0;

    do {
        digits[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    if (negative) {
        digits[n++] = '-';
    }
    for (unsigned i = n; i < w->width; i++) {
        w->put(w->opaque, w->pad);
    }
    while (n > 0) {
        w->put(w->opaque, digits[--n]);
    }
}

static void put_signed(const Writer *w, int64_t value)
{
    uint64_t magnitude = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;

    put_number(w, magnitude, 10, value < 0);
}

/* Zeroes, width and size before a conversion; returns where that stands. */
static const char *read_modifiers(Writer *w, const char *fmt)
{
    w->pad = ' ';
    w->width = 0;
    w->wide = false;
    if (*fmt == '0') {
        w->pad = '0';
        fmt++;
    }
    while (*fmt >= '0' && *fmt <= '9') {
        w->width = w->width * 10 + (unsigned)(*fmt++ - '0');
    }
    while (*fmt == 'l' || *fmt == 'z') {
        w->wide = true;
        fmt++;
    }
    return fmt;
}

void format_v(void (*put)(void *opaque, char c), void *opaque, const char *fmt,
              va_list ap)
{
    Writer w = { .put = put, .opaque = opaque };

    for (; *fmt; fmt++) {
        if (*fmt != '%') {
            put(opaque, *fmt);
            continue;
        }
        fmt = read_modifiers(&w, fmt + 1);
        switch (*fmt) {
        case 's':
            for (const char *s = va_arg(ap, const char *); *s; s++) {
                put(opaque, *s);
            }
            break;
        case 'c':
            put(opaque, (char)va_arg(ap, int));
            break;
        case 'd':
            put_signed(&w, w.wide ? va_arg(ap, int64_t) : va_arg(ap, int));
            break;
        case 'u':
        case 'x':
            put_number(&w, w.wide ? va_arg(ap, uint64_t) : va_arg(ap, unsigned),
                       *fmt == 'x' ? 16 : 10, false);
            break;
        case '\0':
            return;
        default:
            put(opaque, *fmt);
            break;
        }
    }
}

typedef struct {
    char *at;
    char *end;
} Span;

static void put_in_span(void *opaque, char c)
{
    Span *span = opaque;

    if (span->at < span->end) {
        *span->at++ = c;
    }
}

void format_string(char *buffer, size_t size_bytes, const char *fmt, va_list ap)
{
    Span span = { buffer, buffer + size_bytes - 1 };

    format_v(put_in_span, &span, fmt, ap);
    *span.at = '\0';
}
