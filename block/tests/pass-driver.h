/*
 * pass-driver.h - a filter for tests: passes requests on, counts them, holds them back on demand,
 * and does things by itself
 *
 * Layer:     block/tests
 * Threading: requests from any context; the rest in the main thread.
 * Lifetime:  of the node; PassState is the node's.
 */
#ifndef BLOCK_TESTS_PASS_DRIVER_H
#define BLOCK_TESTS_PASS_DRIVER_H

#include <pthread.h>

#include "block/block-backend.h"

typedef struct PassState {
    _Atomic unsigned nb_requests;
    _Atomic unsigned nb_activities; /* that have run */
    unsigned begun, ended;          /* drained_begin and drained_end calls */
    unsigned begun_rank;            /* place among the begun of all filters */
    unsigned ended_rank;            /* likewise */
    bool refused;                   /* activity that waits for drained_end */
    AioContext *activity_ctx;
    pthread_mutex_t lock; /* protects what follows */
    bool drained;
    bool hold;
    List held;
} PassState;

/* fail-open=on: open fails when all else is done. */
extern const BlockDriver pass_driver;

/* Open one, with the caller's reference; NULL when refused. */
BlockNode *pass_open(const char *options, Error *err);
PassState *pass_state(const BlockNode *node);
/* From now on, hold requests back; drained sections let them go. */
void pass_hold(BlockNode *node, bool hold);
unsigned pass_nb_held(const BlockNode *node);
/* Something that the filter does by itself in @ctx: a bottom half. While drained: afterwards. */
void pass_act(BlockNode *node, AioContext *ctx);

/* Insert one at @node; NULL when refused. */
BlockNode *pass_insert(BlockNode *node, const char *options, Error *err);

/* The events of all filters are counted from 1 again. */
void pass_ranks_reset(void);

#endif
