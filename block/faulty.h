/*
 * faulty.h - rules of the filter `faulty`, one by one while it is in use
 *
 * Layer:     block/ (may use io/)
 * Threading: main thread. Adding and removing are in a drained section of their own.
 */
#ifndef BLOCK_FAULTY_H
#define BLOCK_FAULTY_H

#include "block/block-driver.h"

#define FAULTY_RULES_MAX 10

/*
 * faulty_add_rule - one more rule, at the first free place; the others keep their counts
 * @opts  what faulty.c describes, without "ruleN."
 * Returns its number.
 * Errors: -EINVAL @node is no such filter, or the options are wrong; -ENOSPC there are
 *         FAULTY_RULES_MAX
 */
int faulty_add_rule(BlockNode *node, Opts *opts, Error *err) NONNULL(1, 2) WARN_UNUSED;
/* faulty_remove_rule - Errors: -EINVAL there is no such filter or rule */
int faulty_remove_rule(BlockNode *node, unsigned rule, Error *err) NONNULL(1) WARN_UNUSED;

typedef struct FaultyCounts {
    uint64_t matched; /* requests that the rule is for */
    uint64_t struck;  /* of these, with a fault */
} FaultyCounts;

/* faulty_query - false: @node is no such filter, or has no such rule */
bool faulty_query(const BlockNode *node, unsigned rule, FaultyCounts *ret_counts)
    NONNULL(1, 3) WARN_UNUSED;

#endif
