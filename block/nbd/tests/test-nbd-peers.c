/*
 * test-nbd-peers.c - the client against servers that others have written
 */
#include <fcntl.h>
#include <sched.h>

#include "block/nbd/tests/nbd-test.h"

#define LENGTH "64M"

static const char *socket_path(void)
{
    return test_text("%s/sock", test_dir());
}

static const char *image_path(void)
{
    const char *path = test_text("%s/image", test_dir());
    int fd = open(path, O_RDWR | O_CREAT, 0600);

    ASSERT_GE(fd, 0);
    ASSERT_EQ(ftruncate(fd, 64 << 20), 0);
    close(fd);
    return path;
}

static main_fn void verify(const char *options, unsigned nb_threads)
{
    load_verify(nb_threads, "nbd+unix:///?socket=%s,open-timeout=20,%s", socket_path(), options);
}

/* Once from one IOThread and once, over four connections, from eight. */
static main_fn void verify_both(void)
{
    verify("reconnect-delay=0", 1);
    verify("connections=4", 8);
}

TEST(nbd_peers, nbdkit_memory)
{
    pid_t pid = PEER_START("nbdkit", "-f", "-U", socket_path(), "memory", LENGTH);

    verify_both();
    peer_kill(pid);
}

TEST(nbd_peers, nbdkit_without_structured_replies)
{
    pid_t pid = PEER_START("nbdkit", "-f", "--no-sr", "-U", socket_path(), "memory", LENGTH);

    verify_both();
    peer_kill(pid);
}

TEST(nbd_peers, nbdkit_without_fixed_newstyle)
{
    pid_t pid =
        PEER_START("nbdkit", "-f", "--mask-handshake=0", "-U", socket_path(), "memory", LENGTH);

    verify_both();
    peer_kill(pid);
}

TEST(nbd_peers, nbdkit_without_no_zeroes)
{
    pid_t pid =
        PEER_START("nbdkit", "-f", "--mask-handshake=1", "-U", socket_path(), "memory", LENGTH);

    verify_both();
    peer_kill(pid);
}

TEST(nbd_peers, nbdkit_file)
{
    pid_t pid = PEER_START("nbdkit", "-f", "-U", socket_path(), "file", image_path());

    verify_both();
    peer_kill(pid);
}

TEST(nbd_peers, nbdkit_that_delays_and_replies_in_any_order)
{
    pid_t pid = PEER_START("nbdkit", "-f", "-U", socket_path(), "--filter=delay", "memory", LENGTH,
                           "delay-read=1ms", "delay-write=2ms");

    verify_both();
    peer_kill(pid);
}

TEST(nbd_peers, nbdkit_with_a_block_size_policy)
{
    pid_t pid = PEER_START("nbdkit", "-f", "-U", socket_path(), "--filter=blocksize-policy",
                           "memory", LENGTH, "blocksize-minimum=4096", "blocksize-preferred=8192",
                           "blocksize-maximum=8192", "blocksize-error-policy=error");

    verify_both();
    peer_kill(pid);
}

TEST(nbd_peers, nbdkit_without_multi_conn)
{
    pid_t pid = PEER_START("nbdkit", "-f", "-U", socket_path(), "--filter=multi-conn", "memory",
                           LENGTH, "multi-conn-mode=disable");

    verify_both();
    peer_kill(pid);
}

TEST(nbd_peers, qemu_nbd)
{
    pid_t pid = PEER_START("qemu-nbd", "-f", "raw", "-t", "-e", "16", "--cache=unsafe", "-k",
                           socket_path(), image_path());

    verify_both();
    peer_kill(pid);
}

TEST(nbd_peers, nbd_server)
{
    const char *path = test_text("%s/conf", test_dir());
    FILE *conf = fopen(path, "w");
    pid_t pid;

    ASSERT_TRUE(conf != NULL);
    fprintf(conf,
            "[generic]\nunixsock = %s\nlistenaddr = 127.0.0.1\nport = %d\n"
            "[x]\nexportname = %s\nflush = true\nfua = true\ntrim = true\n",
            socket_path(), 20000 + getpid() % 20000, image_path());
    fclose(conf);
    pid = PEER_START("nbd-server", "-d", "-C", path, "-p", test_text("%s/pid", test_dir()));
    AioContext *main = main_start();
    BlockBackend *blk = disk_open("nbd+unix:///x?socket=%s,open-timeout=20", socket_path());
    Load load = {
        .blk = blk, .ctx = { main }, .nb_ctx = 1, .depth = 8, .nb_ops = 100, .zeroes = true
    };

    load_start(&load);
    load_wait(&load);
    EXPECT_EQ(load.nb_failed, 0);
    EXPECT_EQ(load.nb_wrong, 0);
    EXPECT_EQ(blk_close(blk), 0);
    main_finish(main);
    peer_kill(pid);
}

TEST(nbd_peers, an_error_of_the_server_is_the_request_s_error)
{
    pid_t pid = PEER_START("nbdkit", "-f", "-U", socket_path(), "--filter=error", "memory", LENGTH,
                           "error-pwrite=ENOSPC", "error-pwrite-rate=100%");
    AioContext *main = main_start();
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,open-timeout=20", socket_path());
    char buf[512] = "x";

    EXPECT_EQ(run_write(blk, 0, 512, buf, 0), -ENOSPC);
    EXPECT_EQ(run_read(blk, 0, 512, buf), 0);
    EXPECT_EQ(buf[0], 0);
    blk_close(blk);
    main_finish(main);
    peer_kill(pid);
}

TEST(nbd_peers, block_status_of_a_sparse_disk)
{
    pid_t pid = PEER_START("nbdkit", "-f", "-U", socket_path(), "data", "@1048576 1", "size=4M");
    AioContext *main = main_start();
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,open-timeout=20", socket_path());
    uint64_t len_bytes = 0;
    char buf[512];

    EXPECT_EQ(run_status(blk, 0, 4 << 20, &len_bytes), BLK_STATUS_ZERO);
    EXPECT_EQ(len_bytes, 1 << 20);
    EXPECT_EQ(run_status(blk, 1 << 20, 4096, &len_bytes), BLK_STATUS_DATA);
    EXPECT_EQ(len_bytes, 4096);
    EXPECT_EQ(run_read(blk, 1 << 20, 512, buf), 0);
    EXPECT_EQ(buf[0], 1);
    blk_close(blk);
    main_finish(main);
    peer_kill(pid);
}

TEST(nbd_peers, a_tail_that_is_no_sector_reads_as_zeroes_behind_the_end)
{
    pid_t pid = PEER_START("nbdkit", "-f", "-U", socket_path(), "memory", "1000001");
    AioContext *main = main_start();
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,open-timeout=20", socket_path());
    uint64_t last_bytes = 1000001 / 512 * 512;
    char buf[512];

    EXPECT_EQ(blk_length(blk), last_bytes + 512);
    memset(buf, 'x', sizeof(buf));
    EXPECT_EQ(run_write(blk, last_bytes, 512, buf, 0), -ENOSPC);
    memset(buf + 65, 0, sizeof(buf) - 65);
    EXPECT_EQ(run_write(blk, last_bytes, 512, buf, 0), 0);
    memset(buf, 'y', sizeof(buf));
    EXPECT_EQ(run_read(blk, last_bytes, 512, buf), 0);
    EXPECT_EQ(buf[64], 'x');
    EXPECT_EQ(buf[65], 0);
    EXPECT_EQ(buf[511], 0);
    EXPECT_EQ(run_zeroes(blk, last_bytes, 512, 0), 0);
    EXPECT_EQ(run_read(blk, last_bytes, 512, buf), 0);
    EXPECT_EQ(buf[0], 0);
    blk_close(blk);
    main_finish(main);
    peer_kill(pid);
}

TEST(nbd_peers, long_requests_are_split_at_the_server_s_limit)
{
    pid_t pid = PEER_START("nbdkit", "-f", "-U", socket_path(), "memory", "128M");
    AioContext *main = main_start();
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,open-timeout=20", socket_path());
    size_t len = 80 << 20;
    char *buf = malloc(len), *copy = malloc(len);

    ASSERT_TRUE(buf && copy);
    for (size_t i = 0; i < len / 8; i++) {
        ((uint64_t *)buf)[i] = i * 0x9e3779b97f4a7c15;
    }
    EXPECT_EQ(run_write(blk, 4096, len, buf, 0), 0);
    EXPECT_EQ(run_read(blk, 4096, len, copy), 0);
    EXPECT_EQ(memcmp(buf, copy, len), 0);
    free(buf);
    free(copy);
    blk_close(blk);
    main_finish(main);
    peer_kill(pid);
}

TEST(nbd_peers, an_export_that_is_not_there_is_told)
{
    pid_t pid =
        PEER_START("qemu-nbd", "-f", "raw", "-t", "-x", "one", "-k", socket_path(), image_path());
    AioContext *main = main_start();
    BlockBackend *blk = disk_open("nbd+unix:///one?socket=%s,open-timeout=20", socket_path());
    Error err = { 0 };

    blk_close(blk);
    EXPECT_EQ(disk_try(test_text("nbd+unix:///two?socket=%s", socket_path()), &err), -ENOENT);
    EXPECT_TRUE(strstr(err.msg, "no such export") != NULL);
    main_finish(main);
    peer_kill(pid);
}

TEST(nbd_peers, a_read_only_export_is_opened_read_only_or_not_at_all)
{
    pid_t pid = PEER_START("nbdkit", "-f", "-r", "-U", socket_path(), "memory", LENGTH);
    AioContext *main = main_start();
    BlockBackend *blk =
        disk_open("nbd+unix:///?socket=%s,open-timeout=20,readonly=on", socket_path());
    Error err = { 0 };
    char buf[512];

    EXPECT_EQ(run_read(blk, 0, 512, buf), 0);
    blk_close(blk);
    EXPECT_EQ(disk_try(test_text("nbd+unix:///?socket=%s", socket_path()), &err), -EROFS);
    EXPECT_TRUE(strstr(err.msg, "readonly=on") != NULL);
    main_finish(main);
    peer_kill(pid);
}

#define KILLS 20

/* Four queues on their own connections; the server dies in the middle of it again and again. */
TEST(nbd_peers, a_server_that_is_killed_and_restarted_20_times_loses_no_byte_and_no_request)
{
    const char *image = image_path();
    const char *sock = socket_path();
    pid_t pid = PEER_START("nbdkit", "-f", "-U", sock, "file", image);
    AioContext *main = main_start();
    IOThread *threads[4];
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,open-timeout=20,reconnect-delay=60,"
                                  "connections=4",
                                  sock);
    Load load = { .blk = blk, .nb_ctx = 4, .depth = 4, .zeroes = true };

    for (unsigned i = 0; i < 4; i++) {
        threads[i] = iothread_create(test_text("t%u", i), NULL, NULL);
        ASSERT_TRUE(threads[i] != NULL);
        load.ctx[i] = iothread_context(threads[i]);
    }
    load_start(&load);
    for (unsigned i = 0; i < KILLS; i++) {
        unsigned seen = load.nb_done;

        while (load.nb_done < seen + 200 && load.nb_running == 16) {
            aio_poll(main, false);
            sched_yield();
        }
        peer_kill(pid);
        unlink(sock);
        pid = PEER_START("nbdkit", "-f", "-U", sock, "file", image);
    }
    load.stop = true;
    load_wait(&load);
    EXPECT_EQ(load.nb_failed, 0);
    EXPECT_EQ(load.nb_wrong, 0);
    EXPECT_EQ(blk_close(blk), 0);
    for (unsigned i = 0; i < 4; i++) {
        iothread_unref(threads[i]);
    }
    main_finish(main);
    peer_kill(pid);
}

TEST_MAIN()
