/*
 * block-acct.c - counting requests and their latencies
 *
 * Bucket numbers: latencies below 16 ns have one each; of any other, e being the number of its
 * highest bit, the 16 buckets of e hold 2^(e - 4) each. So number = (e - 3) * 16 + the four bits
 * below the highest.
 */
#include "block/block-acct.h"

#include <string.h>

#define SUB_BITS 4
#define SUB      (1u << SUB_BITS)

static_assert(BLK_ACCT_BUCKETS == (44 - SUB_BITS + 1) * SUB,
              "the bucket of BLK_ACCT_NS_MAX is last");

const char *const blk_acct_op_names[BLK_ACCT_NB_OPS] = {
    [BLK_ACCT_READ] = "read",
    [BLK_ACCT_WRITE] = "write",
    [BLK_ACCT_FLUSH] = "flush",
    [BLK_ACCT_DISCARD] = "discard",
    [BLK_ACCT_WRITE_ZEROES] = "write_zeroes",
};

static void count(BlkAcctCounter *counter, uint64_t n)
{
    /* one writer: no locked instruction is needed */
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

static unsigned bucket_of(int64_t ns)
{
    uint64_t value = (uint64_t)MIN(MAX(ns, 0), BLK_ACCT_NS_MAX);
    unsigned shift;

    if (value < SUB) {
        return (unsigned)value;
    }
    shift = 63 - SUB_BITS - (unsigned)__builtin_clzll(value);
    return shift * SUB + (unsigned)(value >> shift);
}

/* The longest latency that is counted there. */
static int64_t bucket_last_ns(unsigned bucket)
{
    unsigned shift;

    if (bucket < SUB) {
        return bucket;
    }
    shift = bucket / SUB - 1;
    return (((int64_t)(SUB + bucket % SUB) + 1) << shift) - 1;
}

void blk_acct_flush(BlkAcct *acct)
{
    int64_t now_ns;

    if (acct->nb_groups == 0) {
        return;
    }
    now_ns = aio_now_ns();
    for (unsigned i = 0; i < acct->nb_groups; i++) {
        const BlkAcctGroup *group = &acct->groups[i];
        BlkAcctOpStats *op = &acct->op[group->op];
        int64_t ns = now_ns - group->start_ns;

        count(&op->latency[bucket_of(ns)], group->nb);
        count(&op->sum_ns, (uint64_t)ns * group->nb);
        count(&op->errors, group->errors);
        count(&op->bytes, group->bytes);
    }
    acct->nb_groups = 0;
    acct->last = NULL;
}

BlkAcctGroup *blk_acct_new_group(BlkAcct *acct, BlkAcctOp op, int64_t start_ns)
{
    BlkAcctGroup *group;

    if (acct->nb_groups == BLK_ACCT_GROUPS_MAX) {
        blk_acct_flush(acct);
    }
    if (!acct->flush.queued) {
        aio_defer(aio_current(), &acct->flush);
    }
    group = &acct->groups[acct->nb_groups++];
    *group = (BlkAcctGroup){ .start_ns = start_ns, .op = op };
    acct->last = group;
    return group;
}

static void flush_cb(void *opaque)
{
    blk_acct_flush(opaque);
}

void blk_acct_init(BlkAcct *acct)
{
    memset(acct, 0, sizeof(*acct));
    aio_defer_init(&acct->flush, flush_cb, acct);
}

void blk_acct_finish(BlkAcct *acct)
{
    assert(acct->nb_groups == 0 && !acct->flush.queued);
}

/* --- reading --- */

static uint64_t load(const BlkAcctCounter *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

void blk_acct_add(const BlkAcct *acct, BlkAcctTotals *totals)
{
    for (unsigned i = 0; i < BLK_ACCT_NB_OPS; i++) {
        const BlkAcctOpStats *from = &acct->op[i];
        BlkAcctOpTotals *to = &totals->op[i];

        to->bytes += load(&from->bytes);
        to->errors += load(&from->errors);
        to->sum_ns += load(&from->sum_ns);
        for (unsigned b = 0; b < BLK_ACCT_BUCKETS; b++) {
            uint64_t nb = load(&from->latency[b]);

            to->latency[b] += nb;
            to->requests += nb;
        }
    }
}

int64_t blk_acct_percentile_ns(const BlkAcctOpTotals *op, unsigned of_10000)
{
    /* rounded up without a product that could overflow */
    uint64_t wanted =
        op->requests / 10000 * of_10000 + (op->requests % 10000 * of_10000 + 9999) / 10000;
    uint64_t seen = 0;

    for (unsigned b = 0; b < BLK_ACCT_BUCKETS; b++) {
        seen += op->latency[b];
        if (seen > 0 && seen >= wanted) {
            return bucket_last_ns(b);
        }
    }
    return 0;
}
