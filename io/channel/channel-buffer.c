/*
 * channel-buffer.c - a pair of channels in memory
 *
 * Two streams, one for each way; end 0 writes streams[0] and reads streams[1]. Both ends lie in one
 * allocation that goes when both are closed, so that an end may always wake the other.
 *
 * A stream's lock is never held while somebody is woken.
 */
#include "io/channel/channel-buffer.h"

#include <pthread.h>
#include <string.h>

#include "io/channel/channel-int.h"

typedef struct Stream {
    pthread_mutex_t lock; /* protects the fields below */
    size_t first;         /* offset of the oldest byte */
    size_t used_bytes;
    bool ended;  /* nothing more will be written */
    bool broken; /* nothing more will be read */
    char *data;
} Stream;

typedef struct BufferPair BufferPair;

typedef struct BufferEnd {
    Channel base;
    BufferPair *pair;
    Stream *in, *out;
    struct BufferEnd *peer;
} BufferEnd;

struct BufferPair {
    BufferEnd ends[2]; /* first: cache lines */
    Stream streams[2];
    _Atomic unsigned nb_open;
    size_t capacity_bytes;
    size_t chunk_bytes;
};

static BufferEnd *end_of(Channel *ch)
{
    return container_of(ch, BufferEnd, base);
}

/* Copy between the stream, from @offset behind its oldest byte on, and @buf. */
static size_t stream_copy(const BufferPair *pair, Stream *stream, size_t offset, char *buf,
                          size_t len_bytes, bool to_stream)
{
    size_t at = (stream->first + offset) % pair->capacity_bytes;
    size_t n = MIN(len_bytes, pair->capacity_bytes - at);

    memcpy(to_stream ? stream->data + at : buf, to_stream ? buf : stream->data + at, n);
    return n;
}

/* Move up to @max_bytes; returns how many. Called with the lock held. */
static size_t stream_move(const BufferPair *pair, Stream *stream, const struct iovec *iov, int niov,
                          size_t max_bytes, bool write)
{
    size_t moved = 0;

    for (int i = 0; i < niov; i++) {
        for (size_t done = 0; done < iov[i].iov_len && moved < max_bytes;) {
            size_t n = stream_copy(pair, stream, write ? stream->used_bytes : 0,
                                   (char *)iov[i].iov_base + done,
                                   MIN(iov[i].iov_len - done, max_bytes - moved), write);

            if (write) {
                stream->used_bytes += n;
            } else {
                stream->used_bytes -= n;
                stream->first = (stream->first + n) % pair->capacity_bytes;
            }
            done += n;
            moved += n;
        }
    }
    return moved;
}

static ssize_t buffer_co_readv(Channel *ch, const struct iovec *iov, int niov, ChannelFds *fds)
{
    BufferEnd *end = end_of(ch);
    Stream *stream = end->in;
    ssize_t ret = -EAGAIN;

    pthread_mutex_lock(&stream->lock);
    if (stream->used_bytes > 0) {
        ret = stream_move(end->pair, stream, iov, niov,
                          MIN(stream->used_bytes, end->pair->chunk_bytes), false);
    } else if (stream->ended) {
        ret = 0;
    }
    pthread_mutex_unlock(&stream->lock);
    if (ret > 0) {
        channel_wake(&end->peer->base, CHANNEL_WRITE);
    }
    return ret;
}

static ssize_t buffer_co_writev(Channel *ch, const struct iovec *iov, int niov,
                                const ChannelFds *fds)
{
    BufferEnd *end = end_of(ch);
    Stream *stream = end->out;
    ssize_t ret = -EAGAIN;

    if (fds) {
        return -EINVAL;
    }
    pthread_mutex_lock(&stream->lock);
    size_t room_bytes = end->pair->capacity_bytes - stream->used_bytes;

    if (stream->broken) {
        ret = -EPIPE;
    } else if (room_bytes > 0) {
        ret = stream_move(end->pair, stream, iov, niov, MIN(room_bytes, end->pair->chunk_bytes),
                          true);
    }
    pthread_mutex_unlock(&stream->lock);
    if (ret > 0) {
        channel_wake(&end->peer->base, CHANNEL_READ);
    }
    return ret;
}

static bool buffer_ready(Channel *ch, ChannelCondition condition)
{
    BufferEnd *end = end_of(ch);
    Stream *stream = condition == CHANNEL_READ ? end->in : end->out;

    pthread_mutex_lock(&stream->lock);
    bool ready = condition == CHANNEL_READ
                     ? stream->used_bytes > 0 || stream->ended
                     : stream->used_bytes < end->pair->capacity_bytes || stream->broken;

    pthread_mutex_unlock(&stream->lock);
    return ready;
}

static void buffer_shutdown(Channel *ch, unsigned directions)
{
    BufferEnd *end = end_of(ch);

    if (directions & CHANNEL_READ) {
        pthread_mutex_lock(&end->in->lock);
        end->in->broken = true;
        pthread_mutex_unlock(&end->in->lock);
        channel_wake(&end->peer->base, CHANNEL_WRITE);
    }
    if (directions & CHANNEL_WRITE) {
        pthread_mutex_lock(&end->out->lock);
        end->out->ended = true;
        pthread_mutex_unlock(&end->out->lock);
        channel_wake(&end->peer->base, CHANNEL_READ);
    }
}

static void pair_free(BufferPair *pair)
{
    for (int i = 0; i < 2; i++) {
        pthread_mutex_destroy(&pair->streams[i].lock);
        free(pair->streams[i].data);
    }
    free(pair);
}

static void buffer_destroy(Channel *ch)
{
    BufferEnd *end = end_of(ch);

    buffer_shutdown(ch, CHANNEL_READ | CHANNEL_WRITE);
    if (atomic_fetch_sub_explicit(&end->pair->nb_open, 1, memory_order_acq_rel) == 1) {
        pair_free(end->pair);
    }
}

static const ChannelOps buffer_ops = {
    .co_readv = buffer_co_readv,
    .co_writev = buffer_co_writev,
    .ready = buffer_ready,
    .shutdown = buffer_shutdown,
    .destroy = buffer_destroy,
};

int channel_buffer_pair(size_t capacity_bytes, size_t chunk_bytes, Channel *ret_ends[2], Error *err)
{
    assert(capacity_bytes > 0);
    BufferPair *pair = channel_alloc(sizeof(*pair));

    if (!pair) {
        return error_set(err, -ENOMEM, "buffer channels: out of memory");
    }
    pair->capacity_bytes = capacity_bytes;
    pair->chunk_bytes = chunk_bytes ? chunk_bytes : SIZE_MAX;
    pair->nb_open = 2;
    for (int i = 0; i < 2; i++) {
        pthread_mutex_init(&pair->streams[i].lock, NULL);
        pair->streams[i].data = malloc(capacity_bytes);
        pair->ends[i].pair = pair;
        pair->ends[i].out = &pair->streams[i];
        pair->ends[i].in = &pair->streams[1 - i];
        pair->ends[i].peer = &pair->ends[1 - i];
        channel_init(&pair->ends[i].base, &buffer_ops, "buffer");
    }
    if (!pair->streams[0].data || !pair->streams[1].data) {
        pair_free(pair);
        return error_set(err, -ENOMEM, "buffer channels: out of memory");
    }
    ret_ends[0] = &pair->ends[0].base;
    ret_ends[1] = &pair->ends[1].base;
    return 0;
}
