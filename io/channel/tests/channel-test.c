/*
 * channel-test.c - pairs of channels, and operations on them as coroutines
 */
#include "io/channel/tests/channel-test.h"

#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>

#include "io/channel/channel-file.h"

static Channel *adopted(int fd)
{
    Error err = { 0 };
    Channel *ch = channel_socket_adopt(fd, &err);

    if (!ch) {
        test_fail_abort(__FILE__, __LINE__, "%s", err.msg);
    }
    return ch;
}

void pair_unix(Channel *ends[2])
{
    int fds[2];

    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    ends[0] = adopted(fds[0]);
    ends[1] = adopted(fds[1]);
}

void pair_tcp(Channel *ends[2])
{
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    socklen_t len = sizeof(in);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    ASSERT_EQ(bind(listener, (struct sockaddr *)&in, len), 0);
    ASSERT_EQ(listen(listener, 1), 0);
    ASSERT_EQ(getsockname(listener, (struct sockaddr *)&in, &len), 0);
    ASSERT_EQ(connect(fd, (struct sockaddr *)&in, len), 0);
    ends[0] = adopted(fd);
    ends[1] = adopted(accept(listener, NULL, NULL));
    close(listener);
}

void pair_buffer(Channel *ends[2])
{
    ASSERT_EQ(channel_buffer_pair(10000, 0, ends, NULL), 0);
}

void pair_pipes(Channel *ends[2])
{
    int there[2], back[2];

    ASSERT_EQ(pipe2(there, O_CLOEXEC), 0);
    ASSERT_EQ(pipe2(back, O_CLOEXEC), 0);
    ends[0] = channel_file_adopt(back[0], there[1], "pipe 0", NULL);
    ends[1] = channel_file_adopt(there[0], back[1], "pipe 1", NULL);
    ASSERT_TRUE(ends[0] && ends[1]);
}

void test_spawn(CoroutineEntry *entry, void *opaque)
{
    Coroutine *co = co_create(entry, opaque);

    ASSERT_TRUE(co);
    co_enter(co);
}

void test_settle(AioContext *ctx)
{
    for (int quiet = 0; quiet < 3;) {
        quiet = aio_poll(ctx, false) ? 0 : quiet + 1;
    }
}

unsigned test_count_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    unsigned nb = 0;

    ASSERT_TRUE(dir);
    while (readdir(dir)) {
        nb++;
    }
    closedir(dir);
    return nb - 3; /* ".", ".." and that of the folder itself */
}

static char pattern_byte(uint64_t at)
{
    return (char)((at * 0x9e3779b97f4a7c15ULL) >> 56);
}

void test_pattern(char *buf, uint64_t offset, size_t len_bytes)
{
    for (size_t i = 0; i < len_bytes; i++) {
        buf[i] = pattern_byte(offset + i);
    }
}

bool test_pattern_matches(const char *buf, uint64_t offset, size_t len_bytes)
{
    for (size_t i = 0; i < len_bytes; i++) {
        if (buf[i] != pattern_byte(offset + i)) {
            return false;
        }
    }
    return true;
}

/* --- operations --- */

static co_fn void read_entry(void *opaque)
{
    Op *op = opaque;

    op->ret = channel_co_read(op->ch, op->buf, op->len_bytes);
    op->done = true;
}

static co_fn void read_full_entry(void *opaque)
{
    Op *op = opaque;

    op->ret = channel_co_read_full(op->ch, op->buf, op->len_bytes);
    op->done = true;
}

static co_fn void write_full_entry(void *opaque)
{
    Op *op = opaque;

    op->ret = channel_co_write_full(op->ch, op->buf, op->len_bytes);
    op->done = true;
}

static co_fn void half_close_entry(void *opaque)
{
    Op *op = opaque;

    op->ret = channel_co_half_close(op->ch);
    op->done = true;
}

static co_fn void wait_readable_entry(void *opaque)
{
    Op *op = opaque;

    op->ret = channel_yield(op->ch, CHANNEL_READ);
    op->done = true;
}

static void op_start(Op *op, CoroutineEntry *entry)
{
    op->done = false;
    test_spawn(entry, op);
}

void op_read(Op *op)
{
    op_start(op, read_entry);
}

void op_read_full(Op *op)
{
    op_start(op, read_full_entry);
}

void op_write_full(Op *op)
{
    op_start(op, write_full_entry);
}

void op_half_close(Op *op)
{
    op_start(op, half_close_entry);
}

void op_wait_readable(Op *op)
{
    op_start(op, wait_readable_entry);
}
