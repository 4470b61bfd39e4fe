/*
 * BlkAcct - what a user of a disk has done in one context: requests, bytes, errors, latencies
 *
 * Layer:     block/ (may use io/)
 * Threading: begin_batch, end and flush in the home context of the queue that it belongs to;
 *            blk_acct_add() in any thread, meanwhile. Nothing is written by two contexts.
 * Lifetime:  blk_acct_init() .. blk_acct_finish(), when all requests have ended and the end-of-pass
 *            calls have been made.
 *
 * Clocks are read once a batch: blk_acct_begin_batch() for the requests that begin next, and the
 * end of the pass for all that have ended in it; what both have in common is counted as one. So a
 * latency reaches from when a request was taken to when its end was told; what its neighbours of
 * the batch took is part of it.
 *
 * Histograms are log-linear: 16 buckets for each power of two, so a percentile is at most 1/16
 * above what was measured, from 0 to BLK_ACCT_NS_MAX.
 */
#ifndef BLOCK_BLOCK_ACCT_H
#define BLOCK_BLOCK_ACCT_H

#include "io/aio/aio.h"

typedef enum BlkAcctOp {
    BLK_ACCT_READ,
    BLK_ACCT_WRITE,
    BLK_ACCT_FLUSH,
    BLK_ACCT_DISCARD,
    BLK_ACCT_WRITE_ZEROES,
    BLK_ACCT_NB_OPS,
} BlkAcctOp;

#define BLK_ACCT_NS_MAX                                                                            \
    (((int64_t)1 << 44) - 1) /* almost five hours; what is longer counts as that */
#define BLK_ACCT_BUCKETS    ((44 - 4 + 1) * 16)
#define BLK_ACCT_GROUPS_MAX 16

typedef _Atomic uint64_t BlkAcctCounter; /* one writer */

typedef struct BlkAcctOpStats {
    BlkAcctCounter bytes; /* of those that succeeded */
    BlkAcctCounter errors;
    BlkAcctCounter sum_ns;
    BlkAcctCounter latency[BLK_ACCT_BUCKETS]; /* their sum is the number of requests */
} BlkAcctOpStats;

/* Requests of one batch and one kind that have ended in this pass. */
typedef struct BlkAcctGroup {
    int64_t start_ns;
    uint64_t bytes; /* of those that succeeded */
    BlkAcctOp op;
    unsigned nb, errors;
} BlkAcctGroup;

typedef struct BlkAcct {
    int64_t batch_ns;
    AioDefer flush;
    BlkAcctGroup *last; /* NULL = there is none */
    unsigned nb_groups;
    BlkAcctGroup groups[BLK_ACCT_GROUPS_MAX];
    BlkAcctOpStats op[BLK_ACCT_NB_OPS];
} CACHE_ALIGNED BlkAcct;

void blk_acct_init(BlkAcct *acct) NONNULL(1);
void blk_acct_finish(BlkAcct *acct);

/* blk_acct_flush - tell what has ended; by itself at the end of the pass. Home. */
void blk_acct_flush(BlkAcct *acct) NONNULL(1);

/* blk_acct_begin_batch - requests that begin from now on begin at this time. Home. */
static inline void blk_acct_begin_batch(BlkAcct *acct)
{
    acct->batch_ns = aio_now_ns();
}

/* blk_acct_batch_ns - a request begins; returns its start_ns for blk_acct_end(). Home. */
static inline int64_t blk_acct_batch_ns(const BlkAcct *acct)
{
    return acct->batch_ns;
}

/* blk_acct_new_group - for blk_acct_end() alone */
BlkAcctGroup *blk_acct_new_group(BlkAcct *acct, BlkAcctOp op, int64_t start_ns) NONNULL(1);

/* blk_acct_end - it has ended. Home. */
static inline void blk_acct_end(BlkAcct *acct, BlkAcctOp op, int64_t start_ns, uint64_t len_bytes,
                                bool failed)
{
    BlkAcctGroup *group = acct->last;

    if (unlikely(!group || group->start_ns != start_ns || group->op != op)) {
        group = blk_acct_new_group(acct, op, start_ns);
    }
    group->nb++;
    group->bytes += unlikely(failed) ? 0 : len_bytes;
    group->errors += failed;
}

/* --- reading --- */

typedef struct BlkAcctOpTotals {
    uint64_t requests; /* with those that failed */
    uint64_t bytes, errors, sum_ns;
    uint64_t latency[BLK_ACCT_BUCKETS];
} BlkAcctOpTotals;

typedef struct BlkAcctTotals {
    BlkAcctOpTotals op[BLK_ACCT_NB_OPS];
} BlkAcctTotals;

/* blk_acct_add - add what @acct has counted to @totals. Each number is right by itself, together
 * they are not a snapshot while requests run. Any thread. */
void blk_acct_add(const BlkAcct *acct, BlkAcctTotals *totals) NONNULL(1, 2);
/* blk_acct_percentile_ns - what that many of 10000 requests did not exceed; 0 when there are
 * none */
int64_t blk_acct_percentile_ns(const BlkAcctOpTotals *op, unsigned of_10000) NONNULL(1);

/* "read", "write", "flush", "discard", "write_zeroes" */
extern const char *const blk_acct_op_names[BLK_ACCT_NB_OPS];

#endif
