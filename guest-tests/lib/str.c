/*
 * The few string functions a freestanding program needs
 *
 * Copies use the string instructions: they are fast natively and a single
 * instruction where CPL0 code is emulated.
 */
#include "guest-tests/lib/str.h"

void *memcpy(void *to, const void *from, size_t len_bytes)
{
    void *result = to;

    __asm__ volatile("rep movsb"
                     : "+D"(to), "+S"(from), "+c"(len_bytes)
                     :
                     : "memory");
    return result;
}

void *memmove(void *to, const void *from, size_t len_bytes)
{
    uint8_t *d = to;
    const uint8_t *s = from;

    if (d <= s || d >= s + len_bytes) {
        return memcpy(to, from, len_bytes);
    }
    d += len_bytes;
    s += len_bytes;
    while (len_bytes-- > 0) {
        *(volatile uint8_t *)--d = *--s;
    }
    return to;
}

void *memset(void *to, int byte, size_t len_bytes)
{
    void *result = to;

    __asm__ volatile("rep stosb"
                     : "+D"(to), "+c"(len_bytes)
                     : "a"(byte)
                     : "memory");
    return result;
}

int memcmp(const void *a, const void *b, size_t len_bytes)
{
    const volatile uint8_t *x = a;
    const volatile uint8_t *y = b;

    for (size_t i = 0; i < len_bytes; i++) {
        if (x[i] != y[i]) {
            return x[i] < y[i] ? -1 : 1;
        }
    }
    return 0;
}

size_t strlen(const char *s)
{
    const volatile char *p = s;
    size_t len = 0;

    while (p[len]) {
        len++;
    }
    return len;
}

bool str_equal(const char *s, size_t len_bytes, const char *word)
{
    return strlen(word) == len_bytes && memcmp(s, word, len_bytes) == 0;
}

static int digit_value(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }
    return 99;
}

size_t str_to_u64(const char *s, uint64_t *ret_value)
{
    size_t start = 0;
    int base = 10;
    uint64_t value = 0;

    if (s[0] == '0' && s[1] == 'x') {
        base = 16;
        start = 2;
    }
    size_t n = start;
    while (digit_value(s[n]) < base) {
        value = value * (uint64_t)base + (uint64_t)digit_value(s[n]);
        n++;
    }
    if (n == start) {
        return 0;
    }
    switch (s[n]) {
    case 'K':
        value <<= 10;
        n++;
        break;
    case 'M':
        value <<= 20;
        n++;
        break;
    case 'G':
        value <<= 30;
        n++;
        break;
    default:
        break;
    }
    *ret_value = value;
    return n;
}
