/*
 * co-rwlock.c - many readers or one writer, in order of arrival
 *
 * Invariants, under the line's lock:
 *   (1) nb_readers counts those that read, one that is upgrading included; -1 is a writer.
 *   (2) A lock is granted under the line's lock, by the one that gives it up or by the one that
 *       asks and finds the line empty. Who stands in line can therefore not have the lock at once:
 *       the first is a reader behind a writer that has it, or a writer behind readers, or an
 *       upgrader behind other readers. grant_next() restores this after each change.
 *   (3) At most one waiter is an upgrader, and it is the first.
 */
#include "io/aio/co-rwlock.h"

enum { READER, WRITER, UPGRADER };

void co_rwlock_init(CoRwlock *lock)
{
    co_line_init(&lock->line);
    lock->nb_readers = 0;
    lock->writer = NULL;
}

void co_rwlock_finish(CoRwlock *lock)
{
    if (lock) {
        assert(lock->nb_readers == 0);
        co_line_finish(&lock->line);
    }
}

/* --- the state; locked --- */

static void set_writer(CoRwlock *lock, Coroutine *co)
{
    lock->nb_readers = -1;
    lock->writer = co;
}

/* Give the lock to the first in line, and to the readers behind a reader, if it can have it. */
static void grant_next(CoRwlock *lock, CoGrants *grants)
{
    CoWaiter *first;

    while ((first = co_line_first(&lock->line))) {
        if (first->kind == READER && lock->nb_readers >= 0) {
            lock->nb_readers++;
        } else if (first->kind != READER && lock->nb_readers == (first->kind == UPGRADER)) {
            set_writer(lock, first->co);
        } else {
            return;
        }
        co_line_grant(first, grants);
    }
}

static void reader_leaves(CoRwlock *lock)
{
    assert(lock->nb_readers > 0);
    lock->nb_readers--;
}

static void writer_leaves(CoRwlock *lock, int nb_readers)
{
    assert(lock->nb_readers == -1 && lock->writer == co_self());
    lock->nb_readers = nb_readers;
    lock->writer = NULL;
}

/* --- steps --- */

/* Unlock the line, and wake who was granted something. */
static void settle(CoRwlock *lock)
{
    CoGrants grants = { NULL };

    grant_next(lock, &grants);
    co_line_unlock(&lock->line);
    co_grants_wake(&grants);
}

static co_fn void wait(CoWaiter *waiter)
{
    int ret = co_line_wait(waiter, CO_NO_DEADLINE);

    assert(ret == 0);
}

NO_TSA void co_rwlock_rdlock(CoRwlock *lock)
{
    CoWaiter waiter;

    co_line_lock(&lock->line);
    bool taken = lock->nb_readers >= 0 && list_empty(&lock->line.waiters);

    if (taken) {
        lock->nb_readers++;
    } else {
        co_line_append(&lock->line, &waiter, READER);
    }
    co_line_unlock(&lock->line);
    if (!taken) {
        wait(&waiter);
    }
}

NO_TSA void co_rwlock_rdunlock(CoRwlock *lock)
{
    co_line_lock(&lock->line);
    reader_leaves(lock);
    settle(lock);
}

NO_TSA void co_rwlock_wrlock(CoRwlock *lock)
{
    CoWaiter waiter;

    co_line_lock(&lock->line);
    assert(lock->writer != co_self()); /* it would wait for itself */
    bool taken = lock->nb_readers == 0; /* then nobody waits (2) */

    if (taken) {
        set_writer(lock, co_self());
    } else {
        co_line_append(&lock->line, &waiter, WRITER);
    }
    co_line_unlock(&lock->line);
    if (!taken) {
        wait(&waiter);
    }
}

NO_TSA void co_rwlock_wrunlock(CoRwlock *lock)
{
    co_line_lock(&lock->line);
    writer_leaves(lock, 0);
    settle(lock);
}

NO_TSA void co_rwlock_downgrade(CoRwlock *lock)
{
    co_line_lock(&lock->line);
    writer_leaves(lock, 1);
    settle(lock);
}

NO_TSA bool co_rwlock_upgrade(CoRwlock *lock)
{
    CoWaiter waiter;

    co_line_lock(&lock->line);
    assert(lock->nb_readers > 0);
    if (lock->nb_readers == 1) {
        set_writer(lock, co_self());
        co_line_unlock(&lock->line);
        return true;
    }
    CoWaiter *first = co_line_first(&lock->line);
    bool first_to_ask = !first || first->kind != UPGRADER;

    if (first_to_ask) {
        co_line_push_front(&lock->line, &waiter, UPGRADER);
    } else {
        reader_leaves(lock);
        co_line_append(&lock->line, &waiter, WRITER);
    }
    settle(lock);
    wait(&waiter);
    return first_to_ask;
}
