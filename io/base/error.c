/*
 * error.c - filling and extending Error values
 *
 * Text is formatted into a local buffer first, so that an argument may point into the very message
 * that is replaced ("%s" of err->msg).
 */
#include "io/base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Cut @len bytes of UTF-8 back to where a character that was cut in two begins. */
static size_t whole_characters(const char *text, size_t len)
{
    size_t start = len;

    while (start > 0 && len - start < 4) {
        unsigned char byte = text[--start];

        if ((byte & 0xc0) != 0x80) {
            size_t need = byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;

            return len - start >= need ? len : start;
        }
    }
    return len;
}

/* vsnprintf() that never leaves half a character at the end; returns the length kept. */
static PRINTF(3, 0) size_t format(char *buf, size_t size_bytes, const char *fmt, va_list args)
{
    int len = vsnprintf(buf, size_bytes, fmt, args);

    if (len < 0) {
        len = 0;
    }
    if ((size_t)len >= size_bytes) {
        len = (int)whole_characters(buf, size_bytes - 1);
    }
    buf[len] = '\0';
    return (size_t)len;
}

int error_set(Error *err, int code, const char *fmt, ...)
{
    assert(code < 0);
    if (!err) {
        return code;
    }

    char msg[sizeof(err->msg)];
    va_list args;

    va_start(args, fmt);
    size_t len = format(msg, sizeof(msg), fmt, args);
    va_end(args);

    memcpy(err->msg, msg, len + 1);
    err->code = code;
    return code;
}

void error_prefix(Error *err, const char *fmt, ...)
{
    if (!err) {
        return;
    }
    assert(err->code < 0);

    char prefix[sizeof(err->msg)];
    va_list args;

    va_start(args, fmt);
    size_t prefix_len = format(prefix, sizeof(prefix), fmt, args);
    va_end(args);

    size_t room = sizeof(err->msg) - 1 - prefix_len;
    size_t len = strlen(err->msg);

    if (len > room) {
        len = whole_characters(err->msg, room);
    }
    memmove(err->msg + prefix_len, err->msg, len);
    memcpy(err->msg, prefix, prefix_len);
    err->msg[prefix_len + len] = '\0';
}

const char *error_strerror(int code)
{
    const char *text = strerrordesc_np(code < 0 ? -code : code);

    if (code == EMFILE || code == -EMFILE) {
        return "Too many open files; raise the limit, ulimit -n or LimitNOFILE=";
    }
    return text ? text : "Unknown error";
}
