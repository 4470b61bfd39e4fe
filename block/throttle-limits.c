/*
 * throttle-limits.c - the arithmetic of rates
 *
 * A bucket remembers up to when the units that were granted last at its rate, `paid`. A request may
 * go while paid is at most `tolerance` ahead of now, and then moves paid on by units / rate, from
 * now if paid lies in the past. So a request of any size goes as a whole, and what comes after
 * waits for it.
 *
 *     sustained  the rate; tolerance SLACK_NS, or with a burst the time that max * max_seconds units
 *                last at this rate
 *     peak       only with a burst: the rate `max`; tolerance SLACK_NS
 *
 * SLACK_NS is for timers and threads that are late: what was due meanwhile goes at once, nothing of
 * the rate is lost. It allows that much too early after a pause, no more however long the pause
 * was.
 *
 * Invariants:
 *   (1) 0 <= paid_rest < rate. What does not make a whole nanosecond is kept: rates are exact,
 *       100000 units at a rate of 3 end within a nanosecond of where they should.
 *   (2) paid <= now + AHEAD_NS_MAX after each charge, so no sum overflows.
 */
#include "block/throttle-limits.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define NS_PER_S     1000000000u
#define SLACK_NS     20000000
#define AHEAD_NS_MAX ((int64_t)1 << 60) /* 36 years */

#define RATE_MAX        1000000000000000u
#define MAX_SECONDS_MAX 1000000

static_assert((uint64_t)THROTTLE_UNITS_MAX * NS_PER_S + RATE_MAX < UINT64_MAX, "charge()");

typedef struct KindName {
    const char *rate, *max, *max_seconds;
} KindName;

#define KIND(name)                                                                                 \
    {                                                                                              \
        name, name "-max", name "-max-length"                                                      \
    }

static const KindName kind_names[THROTTLE_NB_KINDS] = {
    [THROTTLE_IOPS_TOTAL] = KIND("iops-total"), [THROTTLE_IOPS_READ] = KIND("iops-read"),
    [THROTTLE_IOPS_WRITE] = KIND("iops-write"), [THROTTLE_BPS_TOTAL] = KIND("bps-total"),
    [THROTTLE_BPS_READ] = KIND("bps-read"),     [THROTTLE_BPS_WRITE] = KIND("bps-write"),
};

/* What requests of a direction are charged to: first requests, then bytes. */
static const ThrottleKind kinds_of[THROTTLE_NB_DIRS][4] = {
    [THROTTLE_READ] = { THROTTLE_IOPS_TOTAL, THROTTLE_IOPS_READ, THROTTLE_BPS_TOTAL,
                        THROTTLE_BPS_READ },
    [THROTTLE_WRITE] = { THROTTLE_IOPS_TOTAL, THROTTLE_IOPS_WRITE, THROTTLE_BPS_TOTAL,
                         THROTTLE_BPS_WRITE },
};

/* --- options --- */

static int get_rate(Opts *opts, ThrottleKind kind, const char *key, uint64_t *value, Error *err)
{
    /* bytes may have a suffix */
    return kind >= THROTTLE_BPS_TOTAL ? opts_get_size(opts, key, 0, RATE_MAX, value, err)
                                      : opts_get_u64(opts, key, 0, RATE_MAX, value, err);
}

static int check_rate(const Opts *opts, const KindName *name, const ThrottleRate *r,
                      bool length_given, Error *err)
{
    if (r->max > 0 && r->rate == 0) {
        return error_set(err, -EINVAL, "%s: %s needs %s", opts->what, name->max, name->rate);
    }
    if (r->max > 0 && r->max < r->rate) {
        return error_set(err, -EINVAL, "%s: %s=%" PRIu64 " is below %s=%" PRIu64, opts->what,
                         name->max, r->max, name->rate, r->rate);
    }
    if (length_given && r->max == 0) {
        return error_set(err, -EINVAL, "%s: %s needs %s", opts->what, name->max_seconds, name->max);
    }
    return 0;
}

static int take_kind(ThrottleRate *r, ThrottleKind kind, Opts *opts, bool *given, Error *err)
{
    const KindName *name = &kind_names[kind];
    bool rate_given = opts_has(opts, name->rate), max_given = opts_has(opts, name->max);
    bool length_given = opts_has(opts, name->max_seconds);
    int ret;

    *given |= rate_given || max_given || length_given;
    r->max_seconds = MAX(r->max_seconds, (uint64_t)1);
    if ((ret = get_rate(opts, kind, name->rate, &r->rate, err)) < 0 ||
        (ret = get_rate(opts, kind, name->max, &r->max, err)) < 0 ||
        (ret = opts_get_u64(opts, name->max_seconds, 1, MAX_SECONDS_MAX, &r->max_seconds, err)) <
            0) {
        return ret;
    }
    if (rate_given && r->rate == 0 && !max_given) {
        r->max = 0; /* the limit is taken away, its burst with it */
    }
    ret = check_rate(opts, name, r, length_given, err);
    if (r->max == 0) {
        r->max_seconds = 1;
    }
    return ret;
}

int throttle_config_take(ThrottleConfig *config, Opts *opts, bool *ret_given, Error *err)
{
    int ret = 0;

    *ret_given = false;
    for (unsigned k = 0; k < THROTTLE_NB_KINDS && ret == 0; k++) {
        ret = take_kind(&config->kind[k], (ThrottleKind)k, opts, ret_given, err);
    }
    return ret;
}

bool throttle_config_equal(const ThrottleConfig *a, const ThrottleConfig *b)
{
    for (unsigned k = 0; k < THROTTLE_NB_KINDS; k++) {
        const ThrottleRate *x = &a->kind[k], *y = &b->kind[k];

        if (x->rate != y->rate || x->max != y->max || x->max_seconds != y->max_seconds) {
            return false;
        }
    }
    return true;
}

/* --- buckets --- */

/* How long max * max_seconds units last at the sustained rate. */
static int64_t burst_ns(const ThrottleRate *r)
{
    double ns = (double)r->max * (double)r->max_seconds / (double)r->rate * NS_PER_S;

    return ns < (double)AHEAD_NS_MAX ? (int64_t)ns : AHEAD_NS_MAX;
}

void throttle_limits_set(ThrottleLimits *limits, const ThrottleConfig *config)
{
    *limits = (ThrottleLimits){ .config = *config };
    for (unsigned k = 0; k < THROTTLE_NB_KINDS; k++) {
        const ThrottleRate *r = &config->kind[k];

        if (r->rate == 0) {
            continue;
        }
        limits->any = true;
        limits->sustained[k] =
            (ThrottleBucket){ .rate = r->rate,
                              .tolerance_ns = r->max > 0 ? MAX(burst_ns(r), SLACK_NS) : SLACK_NS };
        if (r->max > 0) {
            limits->peak[k] = (ThrottleBucket){ .rate = r->max, .tolerance_ns = SLACK_NS };
        }
    }
}

static int64_t bucket_due_ns(const ThrottleBucket *b)
{
    return b->rate == 0 ? 0 : b->paid_ns - b->tolerance_ns;
}

int64_t throttle_limits_due_ns(const ThrottleLimits *limits, ThrottleDir dir)
{
    int64_t due_ns = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(kinds_of[dir]); i++) {
        ThrottleKind kind = kinds_of[dir][i];

        due_ns = MAX(due_ns, bucket_due_ns(&limits->sustained[kind]));
        due_ns = MAX(due_ns, bucket_due_ns(&limits->peak[kind]));
    }
    return due_ns;
}

static void charge(ThrottleBucket *b, uint64_t units, int64_t now_ns)
{
    uint64_t parts;

    if (b->rate == 0) {
        return;
    }
    if (b->paid_ns < now_ns) {
        b->paid_ns = now_ns;
        b->paid_rest = 0;
    }
    parts = units * NS_PER_S + b->paid_rest;
    b->paid_ns += (int64_t)(parts / b->rate);
    b->paid_rest = parts % b->rate;
    b->paid_ns = MIN(b->paid_ns, now_ns + AHEAD_NS_MAX);
}

void throttle_limits_charge(ThrottleLimits *limits, ThrottleDir dir, uint64_t len_bytes,
                            int64_t now_ns)
{
    assert(len_bytes <= THROTTLE_UNITS_MAX);
    for (unsigned i = 0; i < ARRAY_SIZE(kinds_of[dir]); i++) {
        ThrottleKind kind = kinds_of[dir][i];
        uint64_t units = kind < THROTTLE_BPS_TOTAL ? 1 : len_bytes;

        charge(&limits->sustained[kind], units, now_ns);
        charge(&limits->peak[kind], units, now_ns);
    }
}
