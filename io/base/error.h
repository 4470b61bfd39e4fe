/*
 * Error - why a control-path function failed, carried by value
 *
 * Layer:     io/base
 * Threading: an Error belongs to whoever declared it; no shared state.
 * Lifetime:  lives in the caller's frame; nothing to free, safe across a coroutine yield.
 *
 * A fallible function returns -errno; on the control path (options, open, connect, commands) it
 * also takes a last parameter `Error *err`, which may be NULL when the caller does not want the
 * text. It is set exactly once, exactly when the function fails. Messages name the object, the
 * value and the reason; no trailing full stop or newline; a hint what to do where one is known.
 */
#ifndef IO_BASE_ERROR_H
#define IO_BASE_ERROR_H

#include "io/base/compiler.h"

typedef struct Error {
    int code;      /* -errno, 0 when unset */
    char msg[256]; /* truncated at a character boundary when longer */
} Error;

/* error_set - fill @err (may be NULL) and return @code, so that a failing path is one statement */
int error_set(Error *err, int code, const char *fmt, ...) PRINTF(3, 4);

/* error_prefix - put text in front of a message already set ("opening 'x': "); NULL is allowed */
void error_prefix(Error *err, const char *fmt, ...) PRINTF(2, 3);

/* error_strerror - text of an -errno or errno value; static storage, any thread */
const char *error_strerror(int code);

#endif
