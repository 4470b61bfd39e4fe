/*
 * IOThread - a thread whose only work is to poll its AioContext
 *
 * Layer:     io/aio
 * Threading: create, ref, unref, query and what changes it in the main thread.
 * Lifetime:  reference counted by what is mapped to it (queues) and by its creator. It runs from
 *            iothread_create() to the last unref, which stops and joins the thread and destroys the
 *            context. Nothing may be attached by then.
 */
#ifndef IO_AIO_IOTHREAD_H
#define IO_AIO_IOTHREAD_H

#include <sched.h>
#include <sys/types.h>

#include "io/aio/aio.h"

typedef struct IOThread IOThread;

#define IOTHREAD_NAME_BYTES 16 /* what the kernel keeps, with the terminator */

/*
 * iothread_create - start a thread with a context of its own
 * @id  the thread's name, "io:" is put in front and 15 bytes are kept: what `top -H` shows
 */
main_fn IOThread *iothread_create(const char *id, const AioParams *params, Error *err) NONNULL(1)
    WARN_UNUSED;
/*
 * iothread_create_on - the same on these CPUs only; it is there before it runs anything
 * Errors: -EINVAL naming the first of @cpus that does not exist, is offline or is not allowed to
 *         this process (its cpuset)
 */
main_fn IOThread *iothread_create_on(const char *id, const AioParams *params,
                                     const cpu_set_t *cpus, Error *err) NONNULL(1, 3) WARN_UNUSED;
main_fn IOThread *iothread_ref(IOThread *iot) NONNULL(1);
main_fn void iothread_unref(IOThread *iot);

AioContext *iothread_context(const IOThread *iot) NONNULL(1);
const char *iothread_id(const IOThread *iot) NONNULL(1);

/* iothread_set_polling - the poll_* of @params from its next pass on */
main_fn void iothread_set_polling(IOThread *iot, const AioParams *params) NONNULL(1, 2);

typedef struct IOThreadInfo {
    const char *id; /* borrowed */
    char name[IOTHREAD_NAME_BYTES];
    pid_t tid;
    cpu_set_t cpus;     /* that the kernel runs it on now, whoever said so */
    AioParams params;   /* as created, with the poll_* that were set last */
    AioStats stats;
} IOThreadInfo;

main_fn void iothread_query(const IOThread *iot, IOThreadInfo *ret_info) NONNULL(1, 2);

#endif
