/*
 * throttle.h - what the filter `throttle` tells about itself
 *
 * Layer:     block/ (may use io/)
 * Threading: main thread.
 */
#ifndef BLOCK_THROTTLE_H
#define BLOCK_THROTTLE_H

#include "block/block-driver.h"
#include "block/throttle-limits.h"

/* throttle_query - the limits of its group; all zero when @node is no throttle */
ThrottleConfig throttle_query(const BlockNode *node) NONNULL(1);

#endif
