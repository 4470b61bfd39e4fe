/*
 * bench-peers.h - the same work done by well-known libraries, to hold bench-aio's figures against
 *
 * Layer:     io/aio tests
 * Threading: each function starts and joins what threads it needs
 *
 * Each does its thing @n times and returns. uv_* are there only in a build that found libuv
 * (HAVE_LIBUV).
 */
#ifndef IO_AIO_TESTS_BENCH_PEERS_H
#define IO_AIO_TESTS_BENCH_PEERS_H

/* A word handed to a thread and back, both asleep on a pthread condition variable. */
void peer_condvar_round_trip(unsigned n);

#ifdef HAVE_LIBUV
/* uv_async_send() to a loop in another thread, which answers with one */
void peer_uv_round_trip(unsigned n);
/* uv_async_send() to a loop that does not sleep */
void peer_uv_notify_busy(unsigned n);
/* uv_async_send() from the callback to its own loop */
void peer_uv_own_loop(unsigned n);
/* uv_timer_start() of 16 timers in turn, far in the future */
void peer_uv_timer_arm(unsigned n);
/* uv_timer_start() of a timer that is due, and its callback, 16 a pass */
void peer_uv_timer_fire(unsigned n);
#endif

#endif
