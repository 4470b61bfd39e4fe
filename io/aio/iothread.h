/*
 * IOThread - a thread whose only work is to poll its AioContext
 *
 * Layer:     io/aio
 * Threading: create, ref, unref and query in the main thread.
 * Lifetime:  reference counted by what is mapped to it (queues) and by its creator; the last unref
 *            stops and joins the thread, destroys the context. Nothing may be attached by then.
 */
#ifndef IO_AIO_IOTHREAD_H
#define IO_AIO_IOTHREAD_H

#include "io/aio/aio.h"

typedef struct IOThread IOThread;

/*
 * iothread_create - start a thread with a context of its own
 * @id  the thread's name, "io:" is put in front and 15 bytes are kept: what `top -H` shows
 */
main_fn IOThread *iothread_create(const char *id, const AioParams *params, Error *err) NONNULL(1)
    WARN_UNUSED;
main_fn IOThread *iothread_ref(IOThread *iot) NONNULL(1);
main_fn void iothread_unref(IOThread *iot);

AioContext *iothread_context(const IOThread *iot) NONNULL(1);
const char *iothread_id(const IOThread *iot) NONNULL(1);

#endif
