/*
 * log.h - one line per message, with the subsystem that speaks
 *
 * Layer:     io/base
 * Threading: any thread; a line is written with one write(2) so lines do not mix. errno is kept.
 *            Who logs does not wait for a reader: lines that find no room are dropped and counted.
 *
 * A line is cut at 1024 bytes; control characters in it become '?'.
 * Library code (io, block, virtio, devices) logs at debug only, except for what a guest or a peer
 * did wrong (warn, rate-limited by log_limited) and for a fall-back taken (info; a warning, once,
 * where the user had better do something about it). vmm/ prints.
 */
#ifndef IO_BASE_LOG_H
#define IO_BASE_LOG_H

#include "io/base/compiler.h"

typedef enum LogLevel {
    LOG_LEVEL_ERROR,
    LOG_LEVEL_WARN,
    LOG_LEVEL_INFO,
    LOG_LEVEL_DEBUG,
} LogLevel;

/* Messages above this level (at first LOG_LEVEL_WARN) are dropped before they are formatted. */
void log_set_level(LogLevel level);
bool log_enabled(LogLevel level);

/* log_level_parse - "error", "warn", "info" or "debug"; -EINVAL otherwise */
int log_level_parse(const char *name, LogLevel *ret_level) NONNULL(1, 2) WARN_UNUSED;

void log_write(LogLevel level, const char *area, const char *fmt, ...) PRINTF(3, 4);

#define log_error(area, ...) log_write(LOG_LEVEL_ERROR, area, __VA_ARGS__)
#define log_warn(area, ...)  log_write(LOG_LEVEL_WARN, area, __VA_ARGS__)
#define log_info(area, ...)  log_write(LOG_LEVEL_INFO, area, __VA_ARGS__)
#define log_debug(area, ...)                                                                       \
    do {                                                                                           \
        if (unlikely(log_enabled(LOG_LEVEL_DEBUG))) {                                              \
            log_write(LOG_LEVEL_DEBUG, area, __VA_ARGS__);                                         \
        }                                                                                          \
    } while (0)

/*
 * LogLimit - at most LOG_LIMIT_BURST messages in a period of ten seconds, for what guests and peers
 * can provoke. What was dropped is counted, and told before the first message of the next period.
 * One for each source; the owner's thread only. Zero-initialised is ready for use.
 */
#define LOG_LIMIT_BURST 10

typedef struct LogLimit {
    int64_t period_start_ns;
    unsigned in_period;
    unsigned dropped;
} LogLimit;

void log_limited(LogLimit *limit, LogLevel level, const char *area, const char *fmt, ...)
    PRINTF(4, 5) NONNULL(1);

#endif
