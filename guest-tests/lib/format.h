/*
 * Format - printf's way of writing numbers and strings
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: any processor.
 * Lifetime:  none.
 *
 * Knows %s %c %d %u %x %% with the sizes l and z, a width, and 0 padding.
 */
#ifndef GUEST_TESTS_LIB_FORMAT_H
#define GUEST_TESTS_LIB_FORMAT_H

#include <stdarg.h>
#include <stddef.h>

/* format_v - hand the text to @put, a character at a time */
void format_v(void (*put)(void *opaque, char c), void *opaque, const char *fmt,
              va_list ap) __attribute__((format(printf, 3, 0)));

/* format_string - the same into @buffer; what does not fit is left out */
void format_string(char *buffer, size_t size_bytes, const char *fmt,
                   va_list ap) __attribute__((format(printf, 3, 0)));

#endif
