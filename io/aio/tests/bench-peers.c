/*
 * bench-peers.c - see bench-peers.h
 */
#include "io/aio/tests/bench-peers.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "io/base/compiler.h"

#define TIMERS 16

/* --- a condition variable --- */

typedef struct Court {
    pthread_mutex_t lock;
    pthread_cond_t turned;
    bool theirs; /* under lock: whose turn it is */
    unsigned left;
} Court;

static void *condvar_thread(void *opaque)
{
    Court *court = opaque;

    pthread_mutex_lock(&court->lock);
    for (unsigned n = court->left; n > 0; n--) {
        while (!court->theirs) {
            pthread_cond_wait(&court->turned, &court->lock);
        }
        court->theirs = false;
        pthread_cond_signal(&court->turned);
    }
    pthread_mutex_unlock(&court->lock);
    return NULL;
}

void peer_condvar_round_trip(unsigned n)
{
    Court court = { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, n };
    pthread_t thread;

    if (pthread_create(&thread, NULL, condvar_thread, &court) != 0) {
        abort();
    }
    pthread_mutex_lock(&court.lock);
    for (; n > 0; n--) {
        court.theirs = true;
        pthread_cond_signal(&court.turned);
        while (court.theirs) {
            pthread_cond_wait(&court.turned, &court.lock);
        }
    }
    pthread_mutex_unlock(&court.lock);
    pthread_join(thread, NULL);
}

#ifdef HAVE_LIBUV

#include <uv.h>

/* --- libuv --- */

typedef struct Side {
    uv_loop_t loop;
    uv_async_t async;
    struct Side *peer; /* who is answered; NULL = nobody */
    unsigned left;     /* calls to come */
} Side;

static void side_called(uv_async_t *async)
{
    Side *side = async->data;

    if (--side->left == 0) {
        uv_close((uv_handle_t *)async, NULL);
    }
    if (side->peer) {
        uv_async_send(&side->peer->async);
    }
}

static void side_init(Side *side, Side *peer, unsigned calls)
{
    side->peer = peer;
    side->left = calls;
    if (uv_loop_init(&side->loop) < 0 ||
        uv_async_init(&side->loop, &side->async, side_called) < 0) {
        abort();
    }
    side->async.data = side;
}

static void side_finish(Side *side)
{
    if (!uv_is_closing((uv_handle_t *)&side->async)) {
        uv_close((uv_handle_t *)&side->async, NULL);
    }
    uv_run(&side->loop, UV_RUN_DEFAULT);
    if (uv_loop_close(&side->loop) < 0) {
        abort();
    }
}

static void *side_thread(void *opaque)
{
    uv_run(&((Side *)opaque)->loop, UV_RUN_DEFAULT);
    return NULL;
}

static void home_called(uv_async_t *async)
{
    Side *side = async->data;

    if (--side->left > 0) {
        uv_async_send(&side->peer->async);
    }
}

void peer_uv_round_trip(unsigned n)
{
    pthread_t thread;
    Side home, away;

    side_init(&home, &away, n);
    home.async.async_cb = home_called;
    side_init(&away, &home, n);
    if (pthread_create(&thread, NULL, side_thread, &away) != 0) {
        abort();
    }
    uv_async_send(&away.async);
    while (home.left > 0) {
        uv_run(&home.loop, UV_RUN_ONCE);
    }
    pthread_join(thread, NULL);
    side_finish(&home);
    side_finish(&away);
}

void peer_uv_notify_busy(unsigned n)
{
    Side side;

    side_init(&side, NULL, 2);
    for (; n > 0; n--) {
        uv_async_send(&side.async);
    }
    uv_run(&side.loop, UV_RUN_NOWAIT);
    side_finish(&side);
}

void peer_uv_own_loop(unsigned n)
{
    Side side;

    side_init(&side, &side, n);
    side.async.async_cb = home_called;
    uv_async_send(&side.async);
    while (side.left > 0) {
        uv_run(&side.loop, UV_RUN_ONCE);
    }
    side_finish(&side);
}

static void timer_called(uv_timer_t *timer)
{
    ++*(unsigned *)timer->data;
}

static void timers_close(uv_loop_t *loop, uv_timer_t *timers)
{
    for (unsigned i = 0; i < TIMERS; i++) {
        uv_close((uv_handle_t *)&timers[i], NULL);
    }
    uv_run(loop, UV_RUN_DEFAULT);
    if (uv_loop_close(loop) < 0) {
        abort();
    }
}

static void timers_init(uv_loop_t *loop, uv_timer_t *timers, unsigned *called)
{
    if (uv_loop_init(loop) < 0) {
        abort();
    }
    for (unsigned i = 0; i < TIMERS; i++) {
        uv_timer_init(loop, &timers[i]);
        timers[i].data = called;
    }
}

void peer_uv_timer_arm(unsigned n)
{
    uv_timer_t timers[TIMERS];
    unsigned called = 0;
    uv_loop_t loop;

    timers_init(&loop, timers, &called);
    for (unsigned i = 0; i < n; i++) {
        uv_timer_start(&timers[i % TIMERS], timer_called, 1000000 - (i * 7919) % 1000, 0);
    }
    timers_close(&loop, timers);
}

void peer_uv_timer_fire(unsigned n)
{
    uv_timer_t timers[TIMERS];
    unsigned called = 0;
    uv_loop_t loop;

    timers_init(&loop, timers, &called);
    while (called < n) {
        for (unsigned i = 0; i < TIMERS; i++) {
            uv_timer_start(&timers[i], timer_called, 0, 0);
        }
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    timers_close(&loop, timers);
}

#endif
