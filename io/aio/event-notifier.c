/*
 * event-notifier.c - an eventfd as a flag that wakes a loop
 */
#include "io/aio/aio.h"

#include <sys/eventfd.h>

int event_notifier_open(EventNotifier *en, Error *err)
{
    en->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (en->fd < 0) {
        return error_set(err, -errno, "eventfd: %s", error_strerror(errno));
    }
    return 0;
}

void event_notifier_close(EventNotifier *en)
{
    if (en && en->fd >= 0) {
        close(take_fd(&en->fd));
    }
}

void event_notifier_set(EventNotifier *en)
{
    static const uint64_t one = 1;
    int saved = errno;
    ssize_t ret;

    do {
        ret = write(en->fd, &one, sizeof(one));
    } while (ret < 0 && errno == EINTR);
    /* EAGAIN: the counter is full, so it is set */
    assert(ret == sizeof(one) || errno == EAGAIN);
    errno = saved;
}

bool event_notifier_test_and_clear(EventNotifier *en)
{
    uint64_t count;
    ssize_t ret;

    do {
        ret = read(en->fd, &count, sizeof(count));
    } while (ret < 0 && errno == EINTR);
    return ret == sizeof(count);
}

void aio_set_event_notifier(AioContext *ctx, EventNotifier *en, const AioHandlerOps *ops,
                            void *opaque)
{
    aio_set_fd_handler(ctx, en->fd, ops, opaque);
}
