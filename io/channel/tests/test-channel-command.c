/*
 * test-channel-command.c - child processes, and files
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

#include "io/channel/channel-command.h"
#include "io/channel/channel-file.h"
#include "io/channel/tests/channel-test.h"

typedef struct Wait {
    Channel *ch;
    int64_t deadline_ns;
    int status;
    int ret;
    bool done;
} Wait;

static co_fn void wait_entry(void *opaque)
{
    Wait *w = opaque;

    w->ret = channel_command_co_wait(w->ch, w->deadline_ns, &w->status);
    w->done = true;
}

static Channel *command(const char *script)
{
    const char *argv[] = { "sh", "-c", script, NULL };
    Error err = { 0 };
    Channel *ch = channel_command_open(argv, &err);

    if (!ch) {
        test_fail_abort(__FILE__, __LINE__, "%s", err.msg);
    }
    return ch;
}

static bool has_children(void)
{
    return waitpid(-1, NULL, WNOHANG) >= 0 || errno != ECHILD;
}

TEST(channel_command, is_written_to_and_read_from_and_its_end_is_told)
{
    AioContext *ctx = test_context(NULL);
    unsigned before = test_count_fds();
    char in[32], out[] = "hello\n";
    Op write = { .ch = command("tr a-z A-Z; exit 7"), .buf = out, .len_bytes = 6 };
    Op end = { .ch = write.ch }, read = { .ch = write.ch, .buf = in, .len_bytes = 6 };

    op_write_full(&write);
    op_half_close(&end);
    op_read_full(&read);
    AIO_WAIT_WHILE(ctx, !read.done || !write.done || !end.done);
    EXPECT_EQ(read.ret, 1);
    EXPECT_EQ(memcmp(in, "HELLO\n", 6), 0);
    op_read(&read);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_EQ(read.ret, 0);

    Wait w = { .ch = write.ch, .deadline_ns = -1 };

    test_spawn(wait_entry, &w);
    AIO_WAIT_WHILE(ctx, !w.done);
    EXPECT_EQ(w.ret, 0);
    EXPECT_TRUE(WIFEXITED(w.status));
    EXPECT_EQ(WEXITSTATUS(w.status), 7);
    EXPECT_FALSE(has_children());
    channel_unref(write.ch);
    EXPECT_EQ(test_count_fds(), before);
    aio_context_destroy(ctx);
}

TEST(channel_command, one_that_does_not_exist_is_an_error_that_names_it)
{
    static const char *const argv[] = { "/nonexistent/program", NULL };
    Error err = { 0 };
    unsigned before = test_count_fds();

    EXPECT_FALSE(channel_command_open(argv, &err));
    EXPECT_EQ(err.code, -ENOENT);
    EXPECT_TRUE(strstr(err.msg, "/nonexistent/program"));
    EXPECT_EQ(test_count_fds(), before);
    EXPECT_FALSE(has_children());
}

TEST(channel_command, last_unref_kills_and_reaps_one_that_goes_on)
{
    AioContext *ctx = test_context(NULL);
    Channel *ch = command("trap '' TERM HUP; exec sleep 1000");
    Wait w = { .ch = ch, .deadline_ns = aio_now_ns() + 1000000 };

    test_spawn(wait_entry, &w);
    AIO_WAIT_WHILE(ctx, !w.done);
    EXPECT_EQ(w.ret, -ETIMEDOUT);
    EXPECT_TRUE(has_children());
    channel_unref(ch);
    EXPECT_FALSE(has_children());
    aio_context_destroy(ctx);
}

TEST(channel_command, shutdown_wakes_the_reader_and_closes_the_pipe)
{
    AioContext *ctx = test_context(NULL);
    char in[4];
    Op read = { .ch = command("cat > /dev/null; exit 3"), .buf = in, .len_bytes = 4 };
    Wait w = { .ch = read.ch, .deadline_ns = -1 };

    op_read(&read);
    test_settle(ctx);
    EXPECT_FALSE(read.done);
    channel_shutdown(read.ch, CHANNEL_READ);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_EQ(read.ret, -ESHUTDOWN);
    test_spawn(wait_entry, &w); /* its standard input ends by this */
    AIO_WAIT_WHILE(ctx, !w.done);
    EXPECT_EQ(WEXITSTATUS(w.status), 3);
    channel_unref(read.ch);
    aio_context_destroy(ctx);
}

TEST(channel_command, inherits_no_descriptor_and_no_signal_settings)
{
    AioContext *ctx = test_context(NULL);
    sigset_t all;
    char in[400] = "";
    size_t len = 0;

    signal(SIGPIPE, SIG_IGN);
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    Op read = { .ch = command("ls /proc/$$/fd; exec grep -E 'Sig(Blk|Ign)' /proc/self/status") };

    do {
        read.buf = in + len;
        read.len_bytes = sizeof(in) - 1 - len;
        op_read(&read);
        AIO_WAIT_WHILE(ctx, !read.done);
        len += MAX(read.ret, 0);
    } while (read.ret > 0);
    EXPECT_TRUE(strstr(in, "SigBlk:\t0000000000000000"));
    const char *ignored = strstr(in, "SigIgn:\t");

    ASSERT_TRUE(ignored);
    /* the C library keeps two real-time signals for itself */
    EXPECT_EQ(strtoull(ignored + 8, NULL, 16) & 0x7fffffff, 0);
    in[strcspn(in, "S")] = '\0';
    EXPECT_STREQ(in, "0\n1\n2\n");
    channel_unref(read.ch);
    aio_context_destroy(ctx);
}

TEST(channel_command, deadline_ends_a_read)
{
    AioContext *ctx = test_context(NULL);
    char in[4];
    Op read = { .ch = command("exec sleep 1000"), .buf = in, .len_bytes = 4 };

    channel_set_deadline(read.ch, CHANNEL_READ, aio_now_ns() + 1000000);
    op_read(&read);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_EQ(read.ret, -ETIMEDOUT);
    channel_unref(read.ch);
    aio_context_destroy(ctx);
}

/* --- files --- */

TEST(channel_file, regular_file_is_written_and_read)
{
    AioContext *ctx = test_context(NULL);
    char path[64], in[64], out[] = "what is in the file";
    Error err = { 0 };

    snprintf(path, sizeof(path), "/tmp/penstock-test-%d", getpid());
    Op write = { .ch = channel_file_open(path, O_CREAT | O_EXCL | O_WRONLY, 0600, &err),
                 .buf = out,
                 .len_bytes = sizeof(out) };

    ASSERT_TRUE(write.ch);
    EXPECT_STREQ(channel_name(write.ch), path);
    op_write_full(&write);
    AIO_WAIT_WHILE(ctx, !write.done);
    EXPECT_EQ(write.ret, 0);
    channel_unref(write.ch);

    Op read = { .ch = channel_file_open(path, O_RDWR, 0, &err), .buf = in };

    read.len_bytes = sizeof(in);
    op_wait_readable(&read);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_EQ(read.ret, 0);
    op_read(&read);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_EQ(read.ret, sizeof(out));
    EXPECT_STREQ(in, out);
    op_read(&read);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_EQ(read.ret, 0);
    op_write_full(&read);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_EQ(read.ret, 0);
    channel_unref(read.ch);
    unlink(path);
    EXPECT_FALSE(channel_file_open(path, O_RDONLY, 0, &err));
    EXPECT_EQ(err.code, -ENOENT);
    EXPECT_TRUE(strstr(err.msg, path));
    aio_context_destroy(ctx);
}

TEST(channel_file, missing_direction_is_shut_and_a_closed_pipe_breaks)
{
    AioContext *ctx = test_context(NULL);
    unsigned before = test_count_fds();
    char byte = 'x';
    int fds[2];

    ASSERT_EQ(pipe2(fds, O_CLOEXEC), 0);
    Op read = { .ch = channel_file_adopt(fds[0], -1, "in", NULL), .buf = &byte, .len_bytes = 1 };
    Op write = { .ch = channel_file_adopt(-1, fds[1], "out", NULL), .buf = &byte, .len_bytes = 1 };
    Op wrong_way = { .ch = read.ch, .buf = &byte, .len_bytes = 1 };

    op_write_full(&wrong_way);
    EXPECT_EQ(wrong_way.ret, -ESHUTDOWN);
    op_read(&read);
    /* a reader that waits keeps the descriptor until it has left */
    channel_shutdown(read.ch, CHANNEL_READ);
    EXPECT_FALSE(read.done && fcntl(fds[0], F_GETFD) >= 0);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_LT(fcntl(fds[0], F_GETFD), 0);
    op_write_full(&write);
    EXPECT_EQ(write.ret, -EPIPE);
    channel_unref(read.ch);
    channel_unref(write.ch);
    EXPECT_EQ(test_count_fds(), before);

    Error err = { 0 };

    EXPECT_FALSE(channel_file_adopt(1000, -1, "nothing", &err));
    EXPECT_EQ(err.code, -EBADF);
    aio_context_destroy(ctx);
}

TEST_MAIN()
