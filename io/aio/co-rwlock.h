/*
 * CoRwlock - a lock for many readers or one writer, held across yields, fair to both
 *
 * Layer:     io/aio
 * Threading: coroutines of any contexts. The lock is granted in order of arrival: a reader that
 *            comes while a writer waits stands behind it, so readers that keep coming do not starve
 *            a writer; readers next to each other in line get it together. Whoever gets it owns it
 *            already when it is woken.
 * Lifetime:  embedded, co_rwlock_init() .. co_rwlock_finish(), when it is free.
 *
 * A coroutine that reads must not lock for reading again: a writer in line between the two would
 * wait for it, and it for the writer.
 */
#ifndef IO_AIO_CO_RWLOCK_H
#define IO_AIO_CO_RWLOCK_H

#include "io/aio/co-wait.h"

typedef struct CAPABILITY("CoRwlock") CoRwlock {
    CoLine line;       /* its lock protects the two below */
    int nb_readers;    /* -1 = a writer has it */
    Coroutine *writer; /* that one */
} CoRwlock;

void co_rwlock_init(CoRwlock *lock) NONNULL(1);
void co_rwlock_finish(CoRwlock *lock);

co_fn void co_rwlock_rdlock(CoRwlock *lock) NONNULL(1) ACQUIRES_SHARED(lock);
co_fn void co_rwlock_rdunlock(CoRwlock *lock) NONNULL(1) RELEASES_SHARED(lock);
co_fn void co_rwlock_wrlock(CoRwlock *lock) NONNULL(1) ACQUIRES(lock);
/* co_rwlock_wrunlock - by the writer itself, anything else aborts */
co_fn void co_rwlock_wrunlock(CoRwlock *lock) NONNULL(1) RELEASES(lock);

/* co_rwlock_downgrade - the writer becomes a reader; readers that are first in line join it */
co_fn void co_rwlock_downgrade(CoRwlock *lock) NONNULL(1) RELEASES(lock) ACQUIRES_SHARED(lock);
/*
 * co_rwlock_upgrade - a reader becomes the writer
 * Returns true when nobody wrote in between: it waited, before everybody in line, for the other
 *         readers to leave. False: another reader was upgrading already, so this one let go and
 *         stood in line, and what it has read may be out of date.
 */
co_fn bool co_rwlock_upgrade(CoRwlock *lock) NONNULL(1) WARN_UNUSED RELEASES_SHARED(lock)
    ACQUIRES(lock);

#endif
