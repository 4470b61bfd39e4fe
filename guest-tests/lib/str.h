/*
 * The few string functions a freestanding program needs
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: any processor.
 * Lifetime:  none.
 *
 * memcpy, memmove, memset and memcmp are here because the compiler may call
 * them even in freestanding code.
 */
#ifndef GUEST_TESTS_LIB_STR_H
#define GUEST_TESTS_LIB_STR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *to, const void *from, size_t len_bytes);
void *memmove(void *to, const void *from, size_t len_bytes);
void *memset(void *to, int byte, size_t len_bytes);
int memcmp(const void *a, const void *b, size_t len_bytes);
size_t strlen(const char *s);

/* str_equal - whether the first @len_bytes of @s are exactly @word */
bool str_equal(const char *s, size_t len_bytes, const char *word);

/*
 * str_to_u64 - read a number: decimal, or hexadecimal after 0x, then an
 * optional K, M or G
 * Returns the number of characters used, 0 if @s begins with no digit.
 */
size_t str_to_u64(const char *s, uint64_t *ret_value);

#endif
