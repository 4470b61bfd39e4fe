/*
 * ThrottleLimits - how much may be done in a time, counted exactly
 *
 * Layer:     block/ (may use io/)
 * Threading: none of its own; throttle-group.c locks.
 * Lifetime:  plain values; nothing to free.
 *
 * There are six budgets: requests and bytes, each in total, of reads, and of writes. What is asked
 * of each is a rate and perhaps a burst: `max` units a second for up to `max_seconds` after a
 * pause. throttle-limits.c says how they are counted. Time is given by the caller: nothing here
 * reads a clock.
 */
#ifndef BLOCK_THROTTLE_LIMITS_H
#define BLOCK_THROTTLE_LIMITS_H

#include "io/base/compiler.h"
#include "io/base/error.h"
#include "io/base/opts.h"

typedef enum ThrottleDir {
    THROTTLE_READ,
    THROTTLE_WRITE,
    THROTTLE_NB_DIRS,
} ThrottleDir;

typedef enum ThrottleKind {
    THROTTLE_IOPS_TOTAL,
    THROTTLE_IOPS_READ,
    THROTTLE_IOPS_WRITE,
    THROTTLE_BPS_TOTAL,
    THROTTLE_BPS_READ,
    THROTTLE_BPS_WRITE,
    THROTTLE_NB_KINDS,
} ThrottleKind;

/* The most that one request may be charged with; larger ones are split before. */
#define THROTTLE_UNITS_MAX (1u << 30)

typedef struct ThrottleRate {
    uint64_t rate;        /* units a second; 0 = no limit */
    uint64_t max;         /* units a second in a burst; 0 = no bursts */
    uint64_t max_seconds; /* how long a burst may last; 1 unless said otherwise */
} ThrottleRate;

typedef struct ThrottleConfig {
    ThrottleRate kind[THROTTLE_NB_KINDS];
} ThrottleConfig;

/* One rate. Empty = nothing has been done for long. */
typedef struct ThrottleBucket {
    uint64_t rate;        /* 0 = not in use */
    int64_t tolerance_ns; /* how far paid_ns may be ahead of now */
    int64_t paid_ns;      /* until when what was granted lasts at this rate */
    uint64_t paid_rest;   /* and that many parts of a nanosecond, of `rate` */
} ThrottleBucket;

typedef struct ThrottleLimits {
    ThrottleConfig config;
    bool any; /* there is a limit at all */
    ThrottleBucket sustained[THROTTLE_NB_KINDS];
    ThrottleBucket peak[THROTTLE_NB_KINDS]; /* in use where there is a burst */
} ThrottleLimits;

/*
 * throttle_config_take - iops-total=, iops-total-max=, iops-total-max-length=, and so on for
 * iops-read, iops-write, bps-total, bps-read, bps-write; what is absent stays as it is in @config
 * @ret_given  whether any was there
 * Errors: -EINVAL a burst without a rate, below it, or a length without a burst; @config is
 *         undefined
 */
int throttle_config_take(ThrottleConfig *config, Opts *opts, bool *ret_given, Error *err)
    NONNULL(1, 2, 3) WARN_UNUSED;
bool throttle_config_equal(const ThrottleConfig *a, const ThrottleConfig *b) NONNULL(1, 2);

/* throttle_limits_set - other rates from now on. What was granted and not paid for yet is
 * forgotten: a rate by mistake far too low must not outlast its correction. */
void throttle_limits_set(ThrottleLimits *limits, const ThrottleConfig *config) NONNULL(1, 2);
/* throttle_limits_due_ns - when the next request of this direction may go; <= now_ns: at once */
int64_t throttle_limits_due_ns(const ThrottleLimits *limits, ThrottleDir dir) NONNULL(1);
/* throttle_limits_charge - one request of @len_bytes goes at @now_ns, whether it was due or not */
void throttle_limits_charge(ThrottleLimits *limits, ThrottleDir dir, uint64_t len_bytes,
                            int64_t now_ns) NONNULL(1);

#endif
