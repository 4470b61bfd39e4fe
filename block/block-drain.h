/*
 * block-drain.h - drained sections: nothing is in flight, and nothing starts
 *
 * Layer:     block/ (may use io/)
 * Threading: sections begin and end in the main thread, in a coroutine or not; what they wait for
 *            runs in any context. inflight_enter() and inflight_leave() on a DrainPoint: any.
 * Lifetime:  a DrainPoint is embedded in what it belongs to.
 *
 * A section begins at a node, at a BlockBackend, or everywhere. It covers
 *   - the subtree: where it begins and all that is below;
 *   - all that can send requests there: whatever has a covered node below it.
 * Each node and each backend has a DrainPoint: a count with a gate. A backend counts its requests,
 * from their beginning until their callback has returned; a node counts what it does by itself
 * (background work, bottom halves that it has scheduled), not the requests that pass through it.
 *
 * begin:  closes the gates of all that is newly covered, parents before children, and tells those
 *         concerned (BlkUserOps.drained_begin, BlockDriver.drained_begin); then waits until nothing
 *         covered is in flight. Requests that arrive meanwhile are queued in their backend.
 * end:    what no other section covers opens, children before parents; queued requests go on in
 *         order of arrival, each in its own context; those concerned are told.
 *
 * Sections nest and overlap freely: they need not end in the order of beginning, and the graph may
 * change in between. A change of the graph may extend a section to what it has newly attached; who
 * changes has drained that before.
 *
 * Who waits in begin must not be waited for: no counted request or activity begins a section that
 * covers itself.
 *
 * A node that would have to let go what it holds back, should a section begin, may ask for peace:
 * the users of all backends above it are told to make no requests, as in a section. But none is
 * queued: those that come all the same pass.
 */
#ifndef BLOCK_BLOCK_DRAIN_H
#define BLOCK_BLOCK_DRAIN_H

#include "block/block-graph.h"
#include "block/in-flight.h"

typedef struct DrainPoint {
    InFlight in_flight;
    unsigned sections; /* main: that begin here */
    bool covered;      /* main: the gate is closed */
    bool quiet;        /* main: and nothing was in flight after that */
    bool marked;       /* main: block-drain.c's, while it walks the graph */
    bool wants_peace;  /* main: of a node */
} DrainPoint;

/* Context: main, in a coroutine or not. begin waits; end does not, and runs no request itself. */
void bdrv_drained_begin(BlockNode *node) NONNULL(1);
void bdrv_drained_end(BlockNode *node) NONNULL(1);
void bdrv_drain_all_begin(void);
void bdrv_drain_all_end(void);

/*
 * bdrv_activity_begin - count something that @node does by itself, before it can run: before the
 * bottom half is scheduled, before the coroutine is started. True: counted; end it, perhaps in
 * another context. False: a section covers the node; leave it until BlockDriver.drained_end().
 * Any context.
 */
bool bdrv_activity_begin(BlockNode *node) NONNULL(1) WARN_UNUSED;
void bdrv_activity_end(BlockNode *node) NONNULL(1);

/* bdrv_want_peace - from now on, or no longer; ends with the node, too. May be called in
 * BlockDriver.drained_end(): then the users are not told to go on in between. Main. */
void bdrv_want_peace(BlockNode *node, bool on) NONNULL(1);

/* --- for the rest of block/ --- */

int drain_point_init(DrainPoint *point) NONNULL(1) WARN_UNUSED; /* -ENOMEM */
void drain_point_finish(DrainPoint *point) NONNULL(1);
/* drain_update - the graph has changed: cover and uncover accordingly. Main; does not wait. */
void drain_update(void);
/* A section that begins at a backend. */
void drain_backend_begin(BlockBackend *blk) NONNULL(1);
void drain_backend_end(BlockBackend *blk) NONNULL(1);

#endif
