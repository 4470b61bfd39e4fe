/*
 * channel.c - what all channels have in common: references, the two directions, waiting, ending
 *
 * A direction's state is a set of bits that are only changed by atomic read-modify-writes:
 *
 *     BUSY     a coroutine is in an operation [side_enter .. side_leave]
 *     SHUT     channel_shutdown() was called; stays
 *     VACATED  SHUT, and ops->vacated() has been called or is being called; stays
 *
 * Invariants:
 *   (1) BUSY is set by one coroutine at a time; a second one is a bug of the caller and aborts.
 *   (2) Who enters and finds SHUT does not touch what is below. So whoever makes the state SHUT
 *       without BUSY, the one who shuts down or the coroutine that leaves, is sure that nobody uses
 *       the direction any more, and the first of them to set VACATED may close its descriptor.
 *   (3) SHUT is set before the slot is woken, and looked at after the coroutine has been published
 *       in the slot. [channel_shutdown() pairs with side_wait(); see wait-slot.h]
 *   (4) side.watched_in is the context in which the coroutine of that direction waits for a
 *       descriptor, NULL when none does. It is written in that context's thread. So the thread of
 *       context C may ask "does the other direction wait in C?": the answer yes or no can only
 *       change in this very thread, whatever else the word may become meanwhile.
 *   (5) A handler is in the context of the coroutine that waits and is gone, or reduced to what the
 *       other direction waits for, before that coroutine runs on.
 *
 * A peer that always has more to read, or room for more, must not keep a thread from its other
 * work: after BURST_MAX operations without a wait there is one of no length.
 */
#include "io/channel/channel-int.h"
#include "io/channel/foreign-fd.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define SIDE_BUSY    1u
#define SIDE_SHUT    2u
#define SIDE_VACATED 4u

#define BURST_MAX 64

/* --- life --- */

void *channel_alloc(size_t size_bytes)
{
    void *mem;

    if (posix_memalign(&mem, CACHE_LINE_BYTES, size_bytes) != 0) {
        return NULL;
    }
    return memset(mem, 0, size_bytes);
}

void channel_init(Channel *ch, const ChannelOps *ops, const char *fmt, ...)
{
    va_list args;

    ch->ops = ops;
    ch->refs = 1;
    ch->read.deadline_ns = ch->write.deadline_ns = -1;
    va_start(args, fmt);
    vsnprintf(ch->name, sizeof(ch->name), fmt, args);
    va_end(args);
}

Channel *channel_ref(Channel *ch)
{
    atomic_fetch_add_explicit(&ch->refs, 1, memory_order_relaxed);
    return ch;
}

void channel_unref(Channel *ch)
{
    /* acq_rel: the last owner sees all that the others have done */
    if (!ch || atomic_fetch_sub_explicit(&ch->refs, 1, memory_order_acq_rel) > 1) {
        return;
    }
    assert(!(atomic_load(&ch->read.state) & SIDE_BUSY));
    assert(!(atomic_load(&ch->write.state) & SIDE_BUSY));
    ch->ops->destroy(ch);
}

const char *channel_name(const Channel *ch)
{
    return ch->name;
}

void channel_fds_close(ChannelFds *fds)
{
    for (unsigned i = 0; i < fds->nb; i++) {
        if (fds->fds[i] >= 0) {
            fd_close_foreign(fds->fds[i]);
        }
    }
    fds->nb = 0;
}

int fd_prepare(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
        return -errno;
    }
    return 0;
}

/* --- directions --- */

static void side_vacate(Channel *ch, ChannelCondition direction)
{
    unsigned old = atomic_fetch_or(&channel_side(ch, direction)->state, SIDE_VACATED);

    if (!(old & SIDE_VACATED) && ch->ops->vacated) {
        ch->ops->vacated(ch, direction);
    }
}

static void side_leave(Channel *ch, ChannelCondition direction)
{
    unsigned old = atomic_fetch_and(&channel_side(ch, direction)->state, ~SIDE_BUSY);

    if (unlikely((old & (SIDE_SHUT | SIDE_VACATED)) == SIDE_SHUT)) {
        side_vacate(ch, direction);
    }
}

/* 0 or -ESHUTDOWN. */
static int side_enter(Channel *ch, ChannelCondition direction)
{
    unsigned old = atomic_fetch_or(&channel_side(ch, direction)->state, SIDE_BUSY);

    assert(!(old & SIDE_BUSY)); /* one coroutine in each direction */
    if (unlikely(old & SIDE_SHUT)) {
        side_leave(ch, direction);
        return -ESHUTDOWN;
    }
    return 0;
}

bool channel_is_shut(Channel *ch, ChannelCondition direction)
{
    return atomic_load(&channel_side(ch, direction)->state) & SIDE_SHUT;
}

void channel_wake(Channel *ch, ChannelCondition direction)
{
    wait_slot_wake(&channel_side(ch, direction)->slot);
}

static unsigned side_shut(Channel *ch, unsigned directions, ChannelCondition direction)
{
    if (!(directions & direction)) {
        return 0;
    }
    unsigned old = atomic_fetch_or(&channel_side(ch, direction)->state, SIDE_SHUT);

    return old & SIDE_SHUT ? 0 : direction;
}

void channel_shutdown(Channel *ch, unsigned directions)
{
    static const ChannelCondition each[] = { CHANNEL_READ, CHANNEL_WRITE };
    unsigned shut = side_shut(ch, directions, CHANNEL_READ) |
                    side_shut(ch, directions, CHANNEL_WRITE);

    if (!shut) {
        return;
    }
    channel_ref(ch); /* whom we wake may drop the last one but ours */
    if (ch->ops->shutdown) {
        ch->ops->shutdown(ch, shut);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(each); i++) {
        if (!(shut & each[i])) {
            continue;
        }
        channel_wake(ch, each[i]);
        if (!(atomic_load(&channel_side(ch, each[i])->state) & SIDE_BUSY)) {
            side_vacate(ch, each[i]);
        }
    }
    channel_unref(ch);
}

void channel_set_deadline(Channel *ch, unsigned directions, int64_t deadline_ns)
{
    if (directions & CHANNEL_READ) {
        ch->read.deadline_ns = deadline_ns;
    }
    if (directions & CHANNEL_WRITE) {
        ch->write.deadline_ns = deadline_ns;
    }
    if (ch->ops->set_deadline) {
        ch->ops->set_deadline(ch, directions, deadline_ns);
    }
}

/* --- waiting --- */

static void readable_cb(void *opaque)
{
    channel_wake(opaque, CHANNEL_READ);
}

static void writable_cb(void *opaque)
{
    channel_wake(opaque, CHANNEL_WRITE);
}

void channel_watch_fd(Channel *ch, ChannelCondition condition, int fd, bool shared, bool on)
{
    static const AioHandlerOps ops[] = {
        [CHANNEL_READ] = { .read = readable_cb },
        [CHANNEL_WRITE] = { .write = writable_cb },
        [CHANNEL_READ | CHANNEL_WRITE] = { .read = readable_cb, .write = writable_cb },
    };
    ChannelCondition other = CHANNEL_READ + CHANNEL_WRITE - condition;
    AioContext *ctx = aio_current();
    unsigned wanted = on ? condition : 0;

    /* relaxed: see (4) */
    atomic_store_explicit(&channel_side(ch, condition)->watched_in, on ? ctx : NULL,
                          memory_order_relaxed);
    if (shared && atomic_load_explicit(&channel_side(ch, other)->watched_in,
                                       memory_order_relaxed) == ctx) {
        wanted |= other;
    }
    aio_set_fd_handler(ctx, fd, wanted ? &ops[wanted] : NULL, ch);
}

static co_fn int slot_wait(Channel *ch, ChannelCondition condition)
{
    ChannelSide *side = channel_side(ch, condition);

    wait_slot_prepare(&side->slot);
    if (channel_is_shut(ch, condition) || (ch->ops->ready && ch->ops->ready(ch, condition))) {
        wait_slot_abandon(&side->slot);
        return 0;
    }
    if (ch->ops->watch) {
        ch->ops->watch(ch, condition, true);
    }
    bool woken = wait_slot_yield(&side->slot, side->deadline_ns);

    if (ch->ops->watch) {
        ch->ops->watch(ch, condition, false);
    }
    return woken ? 0 : -ETIMEDOUT;
}

static co_fn int side_wait(Channel *ch, ChannelCondition condition)
{
    channel_side(ch, condition)->burst = 0;
    int ret = ch->ops->co_wait ? ch->ops->co_wait(ch, condition) : slot_wait(ch, condition);

    return channel_is_shut(ch, condition) ? -ESHUTDOWN : ret;
}

/* An operation gave @ret. Returns true when it is to be tried again, else *ret is final. */
static co_fn bool side_again(Channel *ch, ChannelCondition direction, ssize_t *ret)
{
    ChannelSide *side = channel_side(ch, direction);

    if (*ret == -EAGAIN) {
        *ret = side_wait(ch, direction);
        return *ret == 0;
    }
    if (*ret <= 0 && channel_is_shut(ch, direction)) {
        *ret = -ESHUTDOWN; /* what came of that, not of the peer */
    }
    if (unlikely(++side->burst >= BURST_MAX)) {
        side->burst = 0;
        aio_co_sleep_ns(0);
    }
    return false;
}

int channel_yield(Channel *ch, ChannelCondition condition)
{
    assert(condition == CHANNEL_READ || condition == CHANNEL_WRITE);
    int ret = side_enter(ch, condition);

    if (ret < 0) {
        return ret;
    }
    ret = side_wait(ch, condition);
    side_leave(ch, condition);
    return ret;
}

/* --- reading and writing --- */

ssize_t channel_co_try_readv(Channel *ch, const struct iovec *iov, int niov, ChannelFds *fds)
{
    ssize_t ret = side_enter(ch, CHANNEL_READ);

    if (ret == 0) {
        ret = ch->ops->co_readv(ch, iov, niov, fds);
        side_leave(ch, CHANNEL_READ);
    }
    return ret;
}

ssize_t channel_co_try_writev(Channel *ch, const struct iovec *iov, int niov,
                              const ChannelFds *fds)
{
    ssize_t ret = side_enter(ch, CHANNEL_WRITE);

    if (ret == 0) {
        ret = ch->ops->co_writev(ch, iov, niov, fds);
        side_leave(ch, CHANNEL_WRITE);
    }
    return ret;
}

void window_init(IovWindow *window, const struct iovec *iov, int niov)
{
    window->iov = iov;
    window->niov = niov;
    window->skip_bytes = 0;
    window_advance(window, 0);
}

int window_get(IovWindow *window)
{
    size_t skip_bytes = window->skip_bytes;
    int n = 0;

    for (int i = 0; i < window->niov && n < IOV_WINDOW; i++) {
        if (window->iov[i].iov_len > skip_bytes) {
            window->part[n].iov_base = (char *)window->iov[i].iov_base + skip_bytes;
            window->part[n].iov_len = window->iov[i].iov_len - skip_bytes;
            n++;
        }
        skip_bytes = 0;
    }
    return n;
}

void window_advance(IovWindow *window, size_t len_bytes)
{
    window->skip_bytes += len_bytes;
    while (window->niov > 0 && window->skip_bytes >= window->iov->iov_len) {
        window->skip_bytes -= window->iov->iov_len;
        window->iov++;
        window->niov--;
    }
    assert(window->niov > 0 || window->skip_bytes == 0);
}

static co_fn ssize_t read_some(Channel *ch, IovWindow *window, ChannelFds *fds)
{
    int n = window_get(window);
    ssize_t ret;

    if (n == 0) {
        return 0;
    }
    do {
        ret = ch->ops->co_readv(ch, window->part, n, fds);
    } while (side_again(ch, CHANNEL_READ, &ret));
    return ret;
}

ssize_t channel_co_readv(Channel *ch, const struct iovec *iov, int niov, ChannelFds *fds)
{
    IovWindow window;
    ssize_t ret = side_enter(ch, CHANNEL_READ);

    if (ret < 0) {
        return ret;
    }
    window_init(&window, iov, niov);
    ret = read_some(ch, &window, fds);
    side_leave(ch, CHANNEL_READ);
    return ret;
}

int channel_co_readv_full(Channel *ch, const struct iovec *iov, int niov, ChannelFds *fds)
{
    IovWindow window;
    bool any = false;
    ssize_t ret = side_enter(ch, CHANNEL_READ);

    if (ret < 0) {
        return ret;
    }
    window_init(&window, iov, niov);
    ret = 1;
    while (window.niov > 0) {
        ret = read_some(ch, &window, fds);
        if (ret <= 0) {
            break;
        }
        any = true;
        window_advance(&window, ret);
        ret = 1;
    }
    side_leave(ch, CHANNEL_READ);
    return ret == 0 && any ? -ECONNRESET : ret;
}

int channel_co_writev_full(Channel *ch, const struct iovec *iov, int niov, const ChannelFds *fds)
{
    IovWindow window;
    ssize_t ret = side_enter(ch, CHANNEL_WRITE);

    if (ret < 0) {
        return ret;
    }
    window_init(&window, iov, niov);
    if (fds && fds->nb > 0 && window.niov == 0) {
        ret = -EINVAL;
    } else if (fds && fds->nb == 0) {
        fds = NULL;
    }
    while (ret >= 0 && window.niov > 0) {
        int n = window_get(&window);

        do {
            ret = ch->ops->co_writev(ch, window.part, n, fds);
        } while (side_again(ch, CHANNEL_WRITE, &ret));
        if (ret > 0) {
            window_advance(&window, ret);
            fds = NULL;
        }
    }
    side_leave(ch, CHANNEL_WRITE);
    return ret < 0 ? ret : 0;
}

int channel_co_half_close(Channel *ch)
{
    ssize_t ret = side_enter(ch, CHANNEL_WRITE);

    if (ret < 0) {
        return ret;
    }
    if (ch->ops->co_half_close) {
        do {
            ret = ch->ops->co_half_close(ch);
        } while (side_again(ch, CHANNEL_WRITE, &ret));
    }
    side_leave(ch, CHANNEL_WRITE);
    channel_shutdown(ch, CHANNEL_WRITE);
    return ret;
}
