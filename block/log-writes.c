/*
 * log-writes.c - a filter that writes down all that changes its disk
 *
 * driver=log-writes,file=...,log=PATH
 *
 * PATH is made, and must not exist: it becomes a trace (write-log.h) of writes with their data,
 * zeroes, discards and flushes, with begin and end of each. A request begins when it is in the
 * trace, and ends for who made it when its end is there, so that what the trace allows is what a
 * crash may have left. An error of the trace is an error of the request, and of all that follow: a
 * trace with a gap would say that nothing was written after it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/block-driver.h"
#include "block/write-log.h"

typedef struct LogWritesState {
    char *path;
    int fd;
    WriteLogWriter writer;
} LogWritesState;

static int create_log(BlockNode *node, LogWritesState *s)
{
    int ret;

    s->fd = open(s->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (s->fd < 0) {
        return -errno;
    }
    ret = write_log_writer_init(&s->writer, s->fd, atomic_load(&node->length_bytes));
    if (ret < 0) {
        close(s->fd);
        unlink(s->path);
    }
    return ret;
}

static int log_writes_open(BlockNode *node, Opts *opts, Error *err)
{
    LogWritesState *s = node->state;
    const char *path = opts_get(opts, "log");
    int ret;

    if (!path) {
        return error_set(err, -EINVAL, "%s: log=PATH is missing", opts->what);
    }
    s->path = strdup(path);
    if (!s->path) {
        return error_set(err, -ENOMEM, "%s: out of memory", opts->what);
    }
    ret = create_log(node, s);
    if (ret < 0) {
        free(s->path);
        return error_set(err, ret, "%s: log: %s: %s", opts->what, path, error_strerror(ret));
    }
    return 0;
}

/* A disk that could be written has been flushed at its end at least. A trace without any request is
 * that of one whose opening failed further up, and would be in the way of the next try. */
static void log_writes_close(BlockNode *node)
{
    LogWritesState *s = node->state;

    if (s->writer.last_serial == 0) {
        unlink(s->path);
    }
    write_log_writer_finish(&s->writer);
    close(s->fd);
    free(s->path);
}

static co_fn GRAPH_RD int log_writes_co_pwritev(BlockNode *node, uint64_t offset_bytes,
                                                uint64_t len_bytes, const struct iovec *iov,
                                                int niov, BlkFlags flags)
{
    LogWritesState *s = node->state;
    uint64_t serial;
    int ret = write_log_co_begin(&s->writer, WRITE_LOG_WRITE, flags & BLK_FUA ? WRITE_LOG_FUA : 0,
                                 offset_bytes, len_bytes, iov, niov, &serial);

    if (ret < 0) {
        return ret;
    }
    ret = bdrv_co_pwritev(bdrv_filtered(node), offset_bytes, len_bytes, iov, niov, flags);
    return write_log_co_done(&s->writer, serial, ret);
}

static co_fn GRAPH_RD int log_writes_co_flush(BlockNode *node)
{
    LogWritesState *s = node->state;
    uint64_t serial;
    int ret = write_log_co_begin(&s->writer, WRITE_LOG_FLUSH, 0, 0, 0, NULL, 0, &serial);

    if (ret < 0) {
        return ret;
    }
    ret = bdrv_co_flush(bdrv_filtered(node));
    return write_log_co_done(&s->writer, serial, ret);
}

static co_fn GRAPH_RD int log_writes_co_pdiscard(BlockNode *node, uint64_t offset_bytes,
                                                 uint64_t len_bytes)
{
    LogWritesState *s = node->state;
    uint64_t serial;
    int ret = write_log_co_begin(&s->writer, WRITE_LOG_DISCARD, 0, offset_bytes, len_bytes, NULL, 0,
                                 &serial);

    if (ret < 0) {
        return ret;
    }
    ret = bdrv_co_pdiscard(bdrv_filtered(node), offset_bytes, len_bytes);
    return write_log_co_done(&s->writer, serial, ret);
}

static co_fn GRAPH_RD int log_writes_co_pwrite_zeroes(BlockNode *node, uint64_t offset_bytes,
                                                      uint64_t len_bytes, BlkFlags flags)
{
    LogWritesState *s = node->state;
    uint64_t serial;
    int ret = write_log_co_begin(&s->writer, WRITE_LOG_ZEROES, 0, offset_bytes, len_bytes, NULL, 0,
                                 &serial);

    if (ret < 0) {
        return ret;
    }
    ret = bdrv_co_pwrite_zeroes(bdrv_filtered(node), offset_bytes, len_bytes, flags);
    return write_log_co_done(&s->writer, serial, ret);
}

const BlockDriver bdrv_log_writes = {
    .name = "log-writes",
    .instance_bytes = sizeof(LogWritesState),
    .write_flags = BLK_FUA,
    .is_filter = true,
    .open = log_writes_open,
    .close = log_writes_close,
    .co_preadv = bdrv_pass_co_preadv,
    .co_pwritev = log_writes_co_pwritev,
    .co_flush = log_writes_co_flush,
    .co_pdiscard = log_writes_co_pdiscard,
    .co_pwrite_zeroes = log_writes_co_pwrite_zeroes,
};
