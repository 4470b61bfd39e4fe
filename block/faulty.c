/*
 * faulty.c - a filter that fails, delays and cuts short what its rules say
 *
 * driver=faulty,file=...[,seed=N][,rule0.KEY=VALUE,...][,rule1.KEY=VALUE,...] up to rule9
 *
 * which requests a rule is for:
 *   op=read|write|flush|discard|write-zeroes|any   default any
 *   offset=SIZE, len=SIZE   those that touch that range; default the whole disk. Not for flushes.
 * how often, of those:
 *   after=N                 the first N are spared
 *   every=N                 of the rest the first, and then each Nth
 *   probability=P           of these, that share: 0 < P <= 1, drawn from the seed
 *   count=N                 N times at most
 * what happens:
 *   error=EIO|ENOSPC|...    fails; the rest says how
 *   short=SIZE              a read or write: that many bytes are done, then it fails (EIO or error=)
 *   torn=SIZE               a write: that many bytes are done, and it succeeds
 *   delay-ns=N              that much later; a drained section ends it early
 *
 * The first rule that strikes decides; none, and the request passes. The counts of each rule begin
 * with it. New rules may be given while the disk is in use: by bdrv_reconfigure() they take the
 * place of all there were, by faulty.h they come and go one by one.
 *
 * Invariants:
 *   (1) Rules are written while the node is drained; what they have counted, under the lock.
 *   (2) Requests are numbered for the rules in order of arrival under the lock: the same requests
 *       in the same order meet the same faults.
 */
#include "block/faulty.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "io/aio/co-sleep.h"

#define DELAY_NS_MAX    3600000000000u
#define PROBABILITY_ONE ((uint64_t)1 << 32)

typedef enum FaultyOp {
    FAULTY_READ,
    FAULTY_WRITE,
    FAULTY_FLUSH,
    FAULTY_DISCARD,
    FAULTY_WRITE_ZEROES,
    FAULTY_ANY,
} FaultyOp;

static const char *const op_names[] = { "read",         "write", "flush", "discard",
                                        "write-zeroes", "any",   NULL };

typedef struct FaultyRule {
    bool in_use;
    FaultyOp op;
    uint64_t offset_bytes, len_bytes;
    uint64_t after, every, count;
    uint64_t probability; /* of PROBABILITY_ONE */
    int error;            /* 0 or -errno */
    bool cuts;            /* after part_bytes */
    uint64_t part_bytes;
    int64_t delay_ns;
    uint64_t nb_matched, nb_struck; /* protected by the lock */
} FaultyRule;

/* A delayed request; in its frame. Who takes it out of the list, other than itself, wakes it. */
typedef struct FaultyDelay {
    ListNode link;
    CoSleep sleep;
} FaultyDelay;

typedef struct FaultyState {
    pthread_mutex_t lock; /* protects the counts of the rules and what follows */
    uint64_t random;
    List delays;
    bool at_once; /* a drained section covers the node */

    FaultyRule rules[FAULTY_RULES_MAX];
} FaultyState;

/* What is to happen to a request. */
typedef struct Fault {
    int error;
    bool cuts;
    uint64_t part_bytes;
} Fault;

/* --- options --- */

static const struct {
    const char *name;
    int error;
} errors[] = {
    { "EIO", EIO },       { "ENOSPC", ENOSPC }, { "EINVAL", EINVAL },         { "ENOMEM", ENOMEM },
    { "EAGAIN", EAGAIN }, { "EBUSY", EBUSY },   { "EOPNOTSUPP", EOPNOTSUPP }, { "EROFS", EROFS },
    { "ENODEV", ENODEV }, { "ENXIO", ENXIO },   { "ETIMEDOUT", ETIMEDOUT },   { "EPERM", EPERM },
    { "EINTR", EINTR },   { "EDQUOT", EDQUOT },
};

static int take_error(FaultyRule *rule, Opts *opts, Error *err)
{
    const char *names[ARRAY_SIZE(errors) + 1] = { NULL };
    int index = -1, ret;

    for (unsigned i = 0; i < ARRAY_SIZE(errors); i++) {
        names[i] = errors[i].name;
    }
    ret = opts_get_enum(opts, "error", names, &index, err);
    if (index >= 0) {
        rule->error = -errors[index].error;
    }
    return ret;
}

static int take_probability(FaultyRule *rule, Opts *opts, Error *err)
{
    const char *text = opts_get(opts, "probability");
    char *end;
    double p;

    rule->probability = PROBABILITY_ONE;
    if (!text) {
        return 0;
    }
    p = strtod(text, &end);
    if (end == text || *end || !(p > 0 && p <= 1)) {
        return error_set(err, -EINVAL, "%s: probability: '%s' is not above 0 and at most 1",
                         opts->what, text);
    }
    rule->probability = (uint64_t)(p * (double)PROBABILITY_ONE);
    return 0;
}

static int take_cut(FaultyRule *rule, Opts *opts, Error *err)
{
    bool is_short = opts_has(opts, "short"), torn = opts_has(opts, "torn");
    int ret;

    if ((ret = opts_get_size(opts, "short", 0, UINT64_MAX, &rule->part_bytes, err)) < 0 ||
        (ret = opts_get_size(opts, "torn", 0, UINT64_MAX, &rule->part_bytes, err)) < 0) {
        return ret;
    }
    rule->cuts = is_short || torn;
    if (is_short && torn) {
        return error_set(err, -EINVAL, "%s: short and torn exclude each other", opts->what);
    }
    if (is_short && rule->op != FAULTY_READ && rule->op != FAULTY_WRITE) {
        return error_set(err, -EINVAL, "%s: short needs op=read or op=write", opts->what);
    }
    if (torn && (rule->op != FAULTY_WRITE || rule->error != 0)) {
        return error_set(err, -EINVAL, "%s: torn needs op=write, and no error", opts->what);
    }
    if (is_short && rule->error == 0) {
        rule->error = -EIO;
    }
    return 0;
}

static int take_rule(FaultyRule *rule, Opts *opts, Error *err)
{
    uint64_t delay_ns = 0;
    int op = FAULTY_ANY, ret;

    *rule =
        (FaultyRule){ .in_use = true, .len_bytes = UINT64_MAX, .every = 1, .count = UINT64_MAX };
    if ((ret = opts_get_enum(opts, "op", op_names, &op, err)) < 0 ||
        (ret = opts_get_size(opts, "offset", 0, UINT64_MAX, &rule->offset_bytes, err)) < 0 ||
        (ret = opts_get_size(opts, "len", 1, UINT64_MAX, &rule->len_bytes, err)) < 0 ||
        (ret = opts_get_u64(opts, "after", 0, UINT64_MAX, &rule->after, err)) < 0 ||
        (ret = opts_get_u64(opts, "every", 1, UINT64_MAX, &rule->every, err)) < 0 ||
        (ret = opts_get_u64(opts, "count", 1, UINT64_MAX, &rule->count, err)) < 0 ||
        (ret = take_probability(rule, opts, err)) < 0 || (ret = take_error(rule, opts, err)) < 0 ||
        (ret = opts_get_u64(opts, "delay-ns", 0, DELAY_NS_MAX, &delay_ns, err)) < 0) {
        return ret;
    }
    rule->op = (FaultyOp)op;
    rule->delay_ns = (int64_t)delay_ns;
    if ((ret = take_cut(rule, opts, err)) < 0 || (ret = opts_check_all_used(opts, err)) < 0) {
        return ret;
    }
    if (rule->error == 0 && !rule->cuts && delay_ns == 0) {
        return error_set(err, -EINVAL, "%s: error, short, torn or delay-ns is missing", opts->what);
    }
    return 0;
}

static int take_rules(FaultyRule *rules, uint64_t *seed, Opts *opts, Error *err)
{
    int ret = opts_get_u64(opts, "seed", 0, UINT64_MAX, seed, err);

    for (unsigned i = 0; i < FAULTY_RULES_MAX && ret == 0; i++) {
        char group[8], what[96];
        Opts rule_opts;

        snprintf(group, sizeof(group), "rule%u", i);
        snprintf(what, sizeof(what), "%s: %s", opts->what, group);
        ret = opts_take_group(opts, group, what, &rule_opts, err);
        if (ret < 0) {
            break;
        }
        if (rule_opts.nb_opts > 0) {
            ret = take_rule(&rules[i], &rule_opts, err);
        }
        opts_finish(&rule_opts);
    }
    return ret;
}

static int faulty_open(BlockNode *node, Opts *opts, Error *err)
{
    FaultyState *s = node->state;
    int ret = take_rules(s->rules, &s->random, opts, err);

    if (ret == 0) {
        pthread_mutex_init(&s->lock, NULL);
        list_init(&s->delays);
    }
    return ret;
}

static void faulty_close(BlockNode *node)
{
    FaultyState *s = node->state;

    assert(list_empty(&s->delays));
    pthread_mutex_destroy(&s->lock);
}

static int faulty_reconfigure(BlockNode *node, Opts *opts, Error *err)
{
    FaultyState *s = node->state;
    FaultyRule rules[FAULTY_RULES_MAX] = { { 0 } };
    uint64_t seed = s->random;
    int ret = take_rules(rules, &seed, opts, err);

    if (ret == 0) {
        ret = opts_check_all_used(opts, err);
    }
    if (ret == 0) {
        memcpy(s->rules, rules, sizeof(rules));
        s->random = seed;
    }
    return ret;
}

/* --- one rule while it is in use --- */

static int check_is_faulty(const BlockNode *node, Error *err)
{
    return node->driver == &bdrv_faulty
               ? 0
               : error_set(err, -EINVAL, "node '%s' is no faulty filter", bdrv_id(node));
}

/* Its number, or FAULTY_RULES_MAX when there is no room. The node is drained. */
static unsigned put_rule(FaultyState *s, const FaultyRule *rule)
{
    unsigned i = 0;

    while (i < FAULTY_RULES_MAX && s->rules[i].in_use) {
        i++;
    }
    if (i < FAULTY_RULES_MAX) {
        s->rules[i] = *rule;
    }
    return i;
}

int faulty_add_rule(BlockNode *node, Opts *opts, Error *err)
{
    FaultyRule rule;
    unsigned index;
    int ret = check_is_faulty(node, err);

    if (ret < 0 || (ret = take_rule(&rule, opts, err)) < 0) {
        return ret;
    }
    bdrv_ref(node);
    bdrv_drained_begin(node);
    index = put_rule(node->state, &rule);
    bdrv_drained_end(node);
    ret = index < FAULTY_RULES_MAX
              ? (int)index
              : error_set(err, -ENOSPC, "node '%s' has %d rules already", bdrv_id(node),
                          FAULTY_RULES_MAX);
    bdrv_unref(node);
    return ret;
}

int faulty_remove_rule(BlockNode *node, unsigned rule, Error *err)
{
    FaultyState *s = node->state;
    int ret = check_is_faulty(node, err);

    if (ret < 0) {
        return ret;
    }
    if (rule >= FAULTY_RULES_MAX || !s->rules[rule].in_use) {
        return error_set(err, -EINVAL, "node '%s' has no rule %u", bdrv_id(node), rule);
    }
    bdrv_ref(node);
    bdrv_drained_begin(node);
    s->rules[rule].in_use = false;
    bdrv_drained_end(node);
    bdrv_unref(node);
    return 0;
}

bool faulty_query(const BlockNode *node, unsigned rule, FaultyCounts *ret_counts)
{
    FaultyState *s = node->state;

    if (node->driver != &bdrv_faulty || rule >= FAULTY_RULES_MAX || !s->rules[rule].in_use) {
        return false;
    }
    pthread_mutex_lock(&s->lock);
    *ret_counts = (FaultyCounts){ s->rules[rule].nb_matched, s->rules[rule].nb_struck };
    pthread_mutex_unlock(&s->lock);
    return true;
}

/* --- rules --- */

/* splitmix64 */
static uint64_t next_random(FaultyState *s)
{
    uint64_t z = s->random += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static bool is_for(const FaultyRule *rule, FaultyOp op, uint64_t offset_bytes, uint64_t len_bytes)
{
    if (!rule->in_use || (rule->op != FAULTY_ANY && rule->op != op)) {
        return false;
    }
    /* Neither sum can overflow: requests lie within the disk, and the rule's end is not formed. */
    return op == FAULTY_FLUSH || (offset_bytes + len_bytes > rule->offset_bytes &&
                                  (offset_bytes < rule->offset_bytes ||
                                   offset_bytes - rule->offset_bytes < rule->len_bytes));
}

/* Under the lock. */
static bool strikes(FaultyState *s, FaultyRule *rule)
{
    uint64_t index = rule->nb_matched++;

    if (index < rule->after || (index - rule->after) % rule->every != 0 ||
        rule->nb_struck == rule->count || (next_random(s) >> 32) >= rule->probability) {
        return false;
    }
    rule->nb_struck++;
    return true;
}

static FaultyRule *find_rule(FaultyState *s, FaultyOp op, uint64_t offset_bytes, uint64_t len_bytes)
{
    for (unsigned i = 0; i < FAULTY_RULES_MAX; i++) {
        FaultyRule *rule = &s->rules[i];

        if (is_for(rule, op, offset_bytes, len_bytes) && strikes(s, rule)) {
            return rule;
        }
    }
    return NULL;
}

static co_fn void delay(FaultyState *s, int64_t delay_ns)
{
    FaultyDelay d = { 0 };
    bool ended;

    pthread_mutex_lock(&s->lock);
    ended = s->at_once;
    if (!ended) {
        co_sleep_init(&d.sleep);
        list_push_back(&s->delays, &d.link);
    }
    pthread_mutex_unlock(&s->lock);
    if (ended) {
        return;
    }
    ended = !co_sleep_ns(&d.sleep, delay_ns);
    pthread_mutex_lock(&s->lock);
    if (list_linked(&d.link)) {
        list_remove(&d.link);
        ended = true;
    }
    pthread_mutex_unlock(&s->lock);
    while (!ended) { /* it has been taken out to be woken; not before that may its frame go */
        ended = !co_sleep_ns(&d.sleep, DELAY_NS_MAX);
    }
}

/* What becomes of a request; the delay has passed. */
static co_fn Fault meet_fault(BlockNode *node, FaultyOp op, uint64_t offset_bytes,
                              uint64_t len_bytes)
{
    FaultyState *s = node->state;
    Fault fault = { 0 };
    int64_t delay_ns = 0;
    FaultyRule *rule;

    pthread_mutex_lock(&s->lock);
    rule = find_rule(s, op, offset_bytes, len_bytes);
    if (rule) {
        delay_ns = rule->delay_ns;
        fault.error = rule->error;
        fault.cuts = rule->cuts;
        fault.part_bytes = MIN(rule->part_bytes, len_bytes);
    }
    pthread_mutex_unlock(&s->lock);
    if (delay_ns > 0) {
        delay(s, delay_ns);
    }
    return fault;
}

static void faulty_drained_begin(BlockNode *node)
{
    FaultyState *s = node->state;

    ListNode *link;

    do {
        pthread_mutex_lock(&s->lock);
        s->at_once = true;
        link = list_pop_front(&s->delays);
        pthread_mutex_unlock(&s->lock);
        if (link) {
            co_sleep_wake(&list_entry(link, FaultyDelay, link)->sleep);
        }
    } while (link);
}

static void faulty_drained_end(BlockNode *node)
{
    FaultyState *s = node->state;

    pthread_mutex_lock(&s->lock);
    s->at_once = false;
    pthread_mutex_unlock(&s->lock);
}

/* --- requests --- */

/* The first @len_bytes of the request, by itself. Not inlined: its list stays out of other
 * frames. */
static NOINLINE co_fn GRAPH_RD int do_part(BlockNode *node, FaultyOp op, uint64_t offset_bytes,
                                           uint64_t len_bytes, const struct iovec *iov,
                                           BlkFlags flags)
{
    BlockNode *child = bdrv_filtered(node);
    int ret = 0;

    while (len_bytes > 0 && ret == 0) {
        struct iovec part = { iov->iov_base, MIN(iov->iov_len, len_bytes) };

        if (part.iov_len > 0) {
            ret = op == FAULTY_READ
                      ? bdrv_co_preadv(child, offset_bytes, part.iov_len, &part, 1, flags)
                      : bdrv_co_pwritev(child, offset_bytes, part.iov_len, &part, 1, flags);
        }
        offset_bytes += part.iov_len;
        len_bytes -= part.iov_len;
        iov++;
    }
    return ret;
}

static co_fn GRAPH_RD int faulty_co_preadv(BlockNode *node, uint64_t offset_bytes,
                                           uint64_t len_bytes, const struct iovec *iov, int niov,
                                           BlkFlags flags)
{
    Fault fault = meet_fault(node, FAULTY_READ, offset_bytes, len_bytes);
    int ret;

    if (fault.cuts) {
        ret = do_part(node, FAULTY_READ, offset_bytes, fault.part_bytes, iov, flags);
        return ret < 0 ? ret : fault.error;
    }
    return fault.error < 0
               ? fault.error
               : bdrv_co_preadv(bdrv_filtered(node), offset_bytes, len_bytes, iov, niov, flags);
}

static co_fn GRAPH_RD int faulty_co_pwritev(BlockNode *node, uint64_t offset_bytes,
                                            uint64_t len_bytes, const struct iovec *iov, int niov,
                                            BlkFlags flags)
{
    Fault fault = meet_fault(node, FAULTY_WRITE, offset_bytes, len_bytes);
    int ret;

    if (fault.cuts) {
        ret = do_part(node, FAULTY_WRITE, offset_bytes, fault.part_bytes, iov, flags);
        return ret < 0 ? ret : fault.error;
    }
    return fault.error < 0
               ? fault.error
               : bdrv_co_pwritev(bdrv_filtered(node), offset_bytes, len_bytes, iov, niov, flags);
}

static co_fn GRAPH_RD int faulty_co_flush(BlockNode *node)
{
    Fault fault = meet_fault(node, FAULTY_FLUSH, 0, 0);

    return fault.error < 0 ? fault.error : bdrv_co_flush(bdrv_filtered(node));
}

static co_fn GRAPH_RD int faulty_co_pdiscard(BlockNode *node, uint64_t offset_bytes,
                                             uint64_t len_bytes)
{
    Fault fault = meet_fault(node, FAULTY_DISCARD, offset_bytes, len_bytes);

    return fault.error < 0 ? fault.error
                           : bdrv_co_pdiscard(bdrv_filtered(node), offset_bytes, len_bytes);
}

static co_fn GRAPH_RD int faulty_co_pwrite_zeroes(BlockNode *node, uint64_t offset_bytes,
                                                  uint64_t len_bytes, BlkFlags flags)
{
    Fault fault = meet_fault(node, FAULTY_WRITE_ZEROES, offset_bytes, len_bytes);

    return fault.error < 0
               ? fault.error
               : bdrv_co_pwrite_zeroes(bdrv_filtered(node), offset_bytes, len_bytes, flags);
}

const BlockDriver bdrv_faulty = {
    .name = "faulty",
    .instance_bytes = sizeof(FaultyState),
    .write_flags = BLK_FUA,
    .is_filter = true,
    .open = faulty_open,
    .close = faulty_close,
    .reconfigure = faulty_reconfigure,
    .drained_begin = faulty_drained_begin,
    .drained_end = faulty_drained_end,
    .co_preadv = faulty_co_preadv,
    .co_pwritev = faulty_co_pwritev,
    .co_flush = faulty_co_flush,
    .co_pdiscard = faulty_co_pdiscard,
    .co_pwrite_zeroes = faulty_co_pwrite_zeroes,
};
