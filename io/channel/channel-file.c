/*
 * channel-file.c - pipes, character devices and files
 *
 * Each direction has a descriptor of its own, which it closes when it is shut down and nobody is in
 * it any more (channel.c says why that is safe). What cannot be polled, a regular file, never gives
 * EAGAIN; its reads and writes block and are done by worker threads.
 */
#include "io/channel/channel-file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>

#include "io/aio/aio-worker.h"
#include "io/channel/channel-int.h"

typedef struct FileEnd {
    int fd; /* -1 = none, or closed */
    bool blocks;
} FileEnd;

typedef struct FileChannel {
    Channel base;
    FileEnd in, out;
} FileChannel;

typedef struct FileTransfer {
    int fd;
    bool write;
    const struct iovec *iov;
    int niov;
    ssize_t ret;
} FileTransfer;

static FileChannel *file_of(Channel *ch)
{
    return container_of(ch, FileChannel, base);
}

static FileEnd *end_of(Channel *ch, ChannelCondition direction)
{
    return direction == CHANNEL_READ ? &file_of(ch)->in : &file_of(ch)->out;
}

static int transfer(void *opaque)
{
    FileTransfer *t = opaque;

    do {
        t->ret = t->write ? writev(t->fd, t->iov, t->niov) : readv(t->fd, t->iov, t->niov);
    } while (t->ret < 0 && errno == EINTR);
    if (t->ret < 0) {
        t->ret = -errno;
    }
    return 0;
}

static co_fn ssize_t co_transfer(const FileEnd *end, bool write, const struct iovec *iov, int niov)
{
    FileTransfer t = { end->fd, write, iov, niov, 0 };
    int ret = end->blocks ? aio_co_run_blocking(transfer, &t) : transfer(&t);

    return ret < 0 ? ret : t.ret;
}

static co_fn ssize_t file_co_readv(Channel *ch, const struct iovec *iov, int niov, ChannelFds *fds)
{
    return co_transfer(&file_of(ch)->in, false, iov, niov);
}

static co_fn ssize_t file_co_writev(Channel *ch, const struct iovec *iov, int niov,
                                    const ChannelFds *fds)
{
    if (fds) {
        return -EINVAL;
    }
    ssize_t ret = co_transfer(&file_of(ch)->out, true, iov, niov);

    return ret == 0 ? -EIO : ret; /* a device that takes nothing and says no reason */
}

static void file_watch(Channel *ch, ChannelCondition condition, bool on)
{
    const FileEnd *end = end_of(ch, condition);

    channel_watch_fd(ch, condition, end->fd, false, on);
}

static bool file_ready(Channel *ch, ChannelCondition condition)
{
    return end_of(ch, condition)->blocks;
}

static void file_vacated(Channel *ch, ChannelCondition direction)
{
    FileEnd *end = end_of(ch, direction);

    if (end->fd >= 0) {
        close(end->fd);
        end->fd = -1;
    }
}

static void file_destroy(Channel *ch)
{
    file_vacated(ch, CHANNEL_READ);
    file_vacated(ch, CHANNEL_WRITE);
    free(ch);
}

static const ChannelOps file_ops = {
    .co_readv = file_co_readv,
    .co_writev = file_co_writev,
    .watch = file_watch,
    .ready = file_ready,
    .vacated = file_vacated,
    .destroy = file_destroy,
};

static void ignore_sigpipe(void)
{
    struct sigaction action;

    if (sigaction(SIGPIPE, NULL, &action) == 0 && !(action.sa_flags & SA_SIGINFO) &&
        action.sa_handler == SIG_DFL) {
        action.sa_handler = SIG_IGN;
        sigaction(SIGPIPE, &action, NULL);
    }
}

static int end_open(FileEnd *end, int fd)
{
    struct stat st;

    if (fd < 0) {
        return 0;
    }
    int ret = fstat(fd, &st) < 0 ? -errno : fd_prepare(fd);

    if (ret == 0) {
        end->blocks = S_ISREG(st.st_mode) || S_ISBLK(st.st_mode);
    }
    return ret;
}

Channel *channel_file_adopt(int in_fd, int out_fd, const char *name, Error *err)
{
    AUTO_FD int owned_in = in_fd, owned_out = out_fd;
    FileEnd in = { .fd = -1 }, out = { .fd = -1 };

    assert(in_fd < 0 || in_fd != out_fd);
    int ret = end_open(&in, in_fd);

    if (ret == 0) {
        ret = end_open(&out, out_fd);
    }
    FileChannel *file = ret == 0 ? channel_alloc(sizeof(*file)) : NULL;

    if (!file) {
        ret = ret ? ret : -ENOMEM;
        error_set(err, ret, "'%s': %s", name, error_strerror(ret));
        return NULL;
    }
    channel_init(&file->base, &file_ops, "%s", name);
    in.fd = take_fd(&owned_in);
    out.fd = take_fd(&owned_out);
    file->in = in;
    file->out = out;
    if (out.fd >= 0) {
        ignore_sigpipe();
    }
    channel_shutdown(&file->base,
                     (in.fd < 0 ? CHANNEL_READ : 0) | (out.fd < 0 ? CHANNEL_WRITE : 0));
    return &file->base;
}

Channel *channel_file_open(const char *path, int flags, mode_t mode, Error *err)
{
    int access = flags & O_ACCMODE;
    int fd = open(path, flags | O_CLOEXEC, mode);
    int out_fd = -1;

    if (fd >= 0 && access == O_RDWR) {
        out_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    }
    if (fd < 0 || (access == O_RDWR && out_fd < 0)) {
        error_set(err, -errno, "'%s': %s", path, error_strerror(errno));
        if (fd >= 0) {
            close(fd);
        }
        return NULL;
    }
    if (access == O_WRONLY) {
        return channel_file_adopt(-1, fd, path, err);
    }
    return channel_file_adopt(fd, out_fd, path, err);
}
