/*
 * test-nbd-peers.c - the client against servers that others have written
 */
#include <endian.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>

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

TEST(nbd_peers, nbdkit_data)
{
    pid_t pid =
        PEER_START("nbdkit", "-f", "-U", socket_path(), "data", "@33554432 1 2 3", "size=64M");

    verify_both();
    peer_kill(pid);
}

TEST(nbd_peers, nbdkit_that_limits_the_rate)
{
    pid_t pid = PEER_START("nbdkit", "-f", "-U", socket_path(), "--filter=rate", "memory", LENGTH,
                           "rate=4G", "connection-rate=2G");

    verify_both();
    peer_kill(pid);
}

TEST(nbd_peers, nbdkit_that_emulates_multi_conn)
{
    pid_t pid = PEER_START("nbdkit", "-f", "-U", socket_path(), "--filter=multi-conn", "memory",
                           LENGTH, "multi-conn-mode=emulate", "multi-conn-track-dirty=fast");

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

/* Some requests fail, those that do with what the server said, the others are right. */
TEST(nbd_peers, errors_of_some_requests_are_theirs_alone)
{
    pid_t pid = PEER_START("nbdkit", "-f", "-U", socket_path(), "--filter=error", "pattern", LENGTH,
                           "error-pread=ENOMEM", "error-pread-rate=50%");
    AioContext *main = main_start();
    BlockBackend *blk =
        disk_open("nbd+unix:///?socket=%s,open-timeout=20,readonly=on", socket_path());
    static Request req[256];
    static uint64_t buf[256][512];
    unsigned nb_failed = 0;

    for (unsigned i = 0; i < 256; i++) {
        req[i] = (Request){
            .blk = blk, .kind = REQ_READ, .offset_bytes = i * 4096, .len_bytes = 4096, .buf = buf[i]
        };
        request_start(&req[i], main);
    }
    for (unsigned i = 0; i < 256; i++) {
        AIO_WAIT_WHILE(main, !req[i].done);
        for (unsigned w = 0; w < 512 && req[i].ret == 0; w++) {
            EXPECT_EQ(be64toh(buf[i][w]), i * 4096 + w * 8);
        }
        EXPECT_EQ(req[i].ret < 0 ? req[i].ret : -ENOMEM, -ENOMEM);
        nb_failed += req[i].ret < 0;
    }
    EXPECT_GT(nb_failed, 50);
    EXPECT_LT(nb_failed, 206);
    blk_close(blk);
    main_finish(main);
    peer_kill(pid);
}

/* --- a disk with known contents --- */

typedef struct Sweep {
    BlockBackend *blk;
    const char *want; /* all of it */
    uint64_t step_bytes;
    _Atomic unsigned nb_running, nb_wrong, nb_zero;
} Sweep;

typedef struct Sweeper {
    Sweep *sweep;
    uint64_t first_bytes;
    char buf[16384];
} Sweeper;

static bool is_zero(const char *buf, uint64_t len_bytes)
{
    return buf[0] == 0 && memcmp(buf, buf + 1, len_bytes - 1) == 0;
}

/* Reads one piece, and asks whether it is zeroes. */
static co_fn bool sweep_one(Sweeper *s, uint64_t offset_bytes)
{
    struct iovec iov = { s->buf, sizeof(s->buf) };
    const char *want = s->sweep->want + offset_bytes;
    uint64_t len_bytes = 0;
    int status = blk_co_block_status(s->sweep->blk, offset_bytes, sizeof(s->buf), &len_bytes);

    if (status < 0 || ((status & BLK_STATUS_ZERO) && !is_zero(want, len_bytes))) {
        return false;
    }
    atomic_fetch_add(&s->sweep->nb_zero, (status & BLK_STATUS_ZERO) != 0);
    memset(s->buf, 'x', sizeof(s->buf));
    return blk_co_preadv(s->sweep->blk, offset_bytes, sizeof(s->buf), &iov, 1, 0) == 0 &&
           memcmp(s->buf, want, sizeof(s->buf)) == 0;
}

static void sweeper_entry(void *opaque)
{
    Sweeper *s = opaque;

    assert_in_coroutine();
    for (uint64_t at = s->first_bytes; at < blk_length(s->sweep->blk); at += s->sweep->step_bytes) {
        if (!sweep_one(s, at)) {
            atomic_fetch_add(&s->sweep->nb_wrong, 1);
        }
    }
    atomic_fetch_sub(&s->sweep->nb_running, 1);
    aio_notify(aio_main());
    free(s);
}

static main_fn void expect_contents(const char *options, const char *want, unsigned nb_threads)
{
    AioContext *main = main_start();
    IOThread *threads[8];
    Sweep sweep = {
        .blk = disk_open("nbd+unix:///?socket=%s,readonly=on,%s", socket_path(), options),
        .want = want,
        .step_bytes = nb_threads * 4 * sizeof(((Sweeper *)NULL)->buf),
        .nb_running = nb_threads * 4,
    };

    for (unsigned i = 0; i < nb_threads; i++) {
        threads[i] = iothread_create(test_text("t%u", i), NULL, NULL);
        ASSERT_TRUE(threads[i] != NULL);
        for (unsigned d = 0; d < 4; d++) {
            Sweeper *s = malloc(sizeof(*s));

            ASSERT_TRUE(s != NULL);
            s->sweep = &sweep;
            s->first_bytes = (i * 4 + d) * sizeof(s->buf);
            aio_co_schedule(iothread_context(threads[i]), co_create(sweeper_entry, s));
        }
    }
    AIO_WAIT_WHILE(main, sweep.nb_running > 0);
    EXPECT_EQ(sweep.nb_wrong, 0);
    EXPECT_GT(sweep.nb_zero, 0);
    blk_close(sweep.blk);
    for (unsigned i = 0; i < nb_threads; i++) {
        iothread_unref(threads[i]);
    }
    main_finish(main);
}

/* Random data and holes; another client's copy of it says what they are. */
TEST(nbd_peers, nbdkit_sparse_random)
{
    const char *copy = test_text("%s/copy", test_dir());
    pid_t pid = PEER_START("nbdkit", "-f", "-U", socket_path(), "sparse-random", "size=16M",
                           "seed=7", "percent=30", "runlength=65536");
    AioContext *main = main_start();
    BlockBackend *blk =
        disk_open("nbd+unix:///?socket=%s,open-timeout=20,readonly=on", socket_path());

    EXPECT_EQ(blk_length(blk), 16 << 20);
    blk_close(blk);
    main_finish(main);
    pid_t nbdcopy = PEER_START("nbdcopy", test_text("nbd+unix:///?socket=%s", socket_path()), copy);
    int status;

    ASSERT_EQ(waitpid(nbdcopy, &status, 0), nbdcopy);
    ASSERT_EQ(status, 0);
    int fd = open(copy, O_RDONLY);
    const char *want = mmap(NULL, 16 << 20, PROT_READ, MAP_PRIVATE, fd, 0);

    ASSERT_TRUE(want != MAP_FAILED);
    EXPECT_FALSE(is_zero(want, 16 << 20));
    expect_contents("connections=1", want, 1);
    expect_contents("connections=4", want, 8);
    close(fd);
    peer_kill(pid);
}

/* --- a server that is to go --- */

/* It takes no more connections from then on, and serves those that it has to their end. */
TEST(nbd_peers, nbdkit_that_exits_when_told_is_used_until_the_disk_is_closed)
{
    const char *sign = test_text("%s/sign", test_dir());
    pid_t pid =
        PEER_START("nbdkit", "-f", "-U", socket_path(), "--filter=exitwhen", "memory", LENGTH,
                   test_text("exit-when-file-created=%s", sign), "exit-when-poll=1");
    AioContext *main = main_start();
    BlockBackend *blk =
        disk_open("nbd+unix:///?socket=%s,open-timeout=20,connections=2", socket_path());
    char buf[512] = "x";
    Error err;
    int status;

    EXPECT_EQ(run_write(blk, 0, 512, buf, 0), 0);
    close(open(sign, O_CREAT | O_WRONLY, 0600));
    /* It looks at each connection's begin as well. */
    while (disk_try(test_text("nbd+unix:///?socket=%s", socket_path()), &err) == 0) {
    }
    buf[0] = 0;
    EXPECT_EQ(run_read(blk, 0, 512, buf), 0);
    EXPECT_EQ(buf[0], 'x');
    EXPECT_EQ(blk_close(blk), 0);
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    EXPECT_EQ(status, 0);
    main_finish(main);
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
