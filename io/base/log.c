/*
 * log.c - messages on standard error, one write(2) a line
 *
 * A line is "area: level: text". Control characters in it are replaced, because parts of the text
 * may come from a guest, a peer or an image and must not drive the user's terminal or forge a
 * second line.
 *
 * Guests and peers can cause messages, and nobody needs to read them. So a thread waits for a reader
 * a moment at most, and not at all once a line was dropped, until there is room again.
 */
#include "io/base/log.h"

#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define LINE_BYTES_MAX    1024
#define LIMIT_PERIOD_NS   (10 * INT64_C(1000000000))
#define READER_WAIT_MS    100

static const char *const level_names[] = {
    [LOG_LEVEL_ERROR] = "error",
    [LOG_LEVEL_WARN] = "warn",
    [LOG_LEVEL_INFO] = "info",
    [LOG_LEVEL_DEBUG] = "debug",
};

static _Atomic int level_max = LOG_LEVEL_WARN;

static pthread_mutex_t out_lock = PTHREAD_MUTEX_INITIALIZER; /* protects the number of lines that
                                                                were dropped, and the output */
static unsigned out_dropped;

void log_set_level(LogLevel level)
{
    atomic_store_explicit(&level_max, (int)level, memory_order_relaxed);
}

bool log_enabled(LogLevel level)
{
    return (int)level <= atomic_load_explicit(&level_max, memory_order_relaxed);
}

int log_level_parse(const char *name, LogLevel *ret_level)
{
    for (size_t i = 0; i < ARRAY_SIZE(level_names); i++) {
        if (strcmp(name, level_names[i]) == 0) {
            *ret_level = (LogLevel)i;
            return 0;
        }
    }
    return -EINVAL;
}

static void replace_control_characters(char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        unsigned char byte = text[i];

        if (byte < 0x20 || byte == 0x7f) {
            text[i] = '?';
        }
    }
}

/* A message that standard error does not take is lost: there is nowhere to complain. */
static void write_all(const char *text, size_t len)
{
    while (len > 0) {
        ssize_t n = write(STDERR_FILENO, text, len);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return;
        }
        text += n;
        len -= (size_t)n;
    }
}

static bool has_room(int timeout_ms)
{
    struct pollfd out = { .fd = STDERR_FILENO, .events = POLLOUT };
    int ret;

    do {
        ret = poll(&out, 1, timeout_ms);
    } while (ret < 0 && errno == EINTR);
    return ret != 0; /* an error is for write(2) to tell */
}

/* Called with the lock held. */
static void tell_dropped(void)
{
    char line[LINE_BYTES_MAX];
    int len = snprintf(line, sizeof(line), "log: warn: %u lines were dropped, nobody read them\n",
                       out_dropped);

    out_dropped = 0;
    write_all(line, (size_t)len);
}

static void write_or_drop(const char *line, size_t len)
{
    pthread_mutex_lock(&out_lock);
    if (out_dropped > 0 && has_room(0)) {
        tell_dropped();
    }
    if (has_room(out_dropped > 0 ? 0 : READER_WAIT_MS)) {
        write_all(line, len);
    } else {
        out_dropped++;
    }
    pthread_mutex_unlock(&out_lock);
}

static PRINTF(3, 0) void write_line(LogLevel level, const char *area, const char *fmt, va_list args)
{
    char line[LINE_BYTES_MAX];
    size_t room = sizeof(line) - 1; /* for the newline */
    int head = snprintf(line, room, "%s: %s: ", area, level_names[level]);
    size_t len = MIN((size_t)MAX(head, 0), room - 1);
    int text = vsnprintf(line + len, room - len, fmt, args);

    len += MIN((size_t)MAX(text, 0), room - len - 1);
    replace_control_characters(line, len);
    line[len++] = '\n';
    write_or_drop(line, len);
}

void log_write(LogLevel level, const char *area, const char *fmt, ...)
{
    if (!log_enabled(level)) {
        return;
    }

    int saved = errno;
    va_list args;

    va_start(args, fmt);
    write_line(level, area, fmt, args);
    va_end(args);
    errno = saved;
}

static int64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

/* Count a message; true when it may be written. */
static bool limit_admits(LogLimit *limit, LogLevel level, const char *area)
{
    int64_t now = now_ns();

    if (limit->in_period == 0 || now - limit->period_start_ns >= LIMIT_PERIOD_NS) {
        unsigned dropped = limit->dropped;

        *limit = (LogLimit){ .period_start_ns = now };
        if (dropped > 0) {
            log_write(level, area, "%u more messages of the next one's source were dropped",
                      dropped);
        }
    }
    if (limit->in_period >= LOG_LIMIT_BURST) {
        limit->dropped++;
        return false;
    }
    limit->in_period++;
    return true;
}

void log_limited(LogLimit *limit, LogLevel level, const char *area, const char *fmt, ...)
{
    if (!log_enabled(level)) {
        return;
    }

    int saved = errno;

    if (limit_admits(limit, level, area)) {
        va_list args;

        va_start(args, fmt);
        write_line(level, area, fmt, args);
        va_end(args);
    }
    errno = saved;
}
