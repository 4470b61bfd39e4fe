/*
 * test-nbd-both.c - the client against the server, which alone among ours speaks extended headers
 */
#include <fcntl.h>

#include "block/nbd/nbd-server.h"
#include "block/nbd/tests/nbd-test.h"
#include "io/base/thread.h"
#include "io/channel/tests/tls-files.h"

#define GIB ((uint64_t)1 << 30)

typedef enum Tls {
    TLS_NONE,
    TLS_X509,
    TLS_PSK,
} Tls;

typedef struct Ends {
    AioContext *main;
    IOThread *threads[4];
    unsigned nb_threads;
    BlockBackend *disk; /* the server's */
    NbdServer *server;
    TlsCreds *creds;
    SocketAddress addr;
    Tls tls;
} Ends;

static void load_creds(Ends *e)
{
    const char *dir = tls_files_path(".");
    Error err;

    e->creds = e->tls == TLS_X509
                   ? tls_creds_create_x509(TLS_SERVER, dir, true, &err)
                   : tls_creds_create_psk(TLS_SERVER, tls_files_path("keys.psk"), NULL, &err);
    ASSERT_TRUE(e->creds != NULL);
}

static void set_address(Ends *e, bool tcp)
{
    const char *path = test_text("%s/sock", test_dir());
    Error err;

    ASSERT_EQ(tcp ? socket_address_set_tcp(&e->addr, "127.0.0.1", peer_port(), &err)
                  : socket_address_set_unix(&e->addr, path, &err),
              0);
}

static main_fn void serve(Ends *e)
{
    AioContext *contexts[4];
    Error err;

    for (unsigned i = 0; i < e->nb_threads; i++) {
        contexts[i] = iothread_context(e->threads[i]);
    }
    e->server = nbd_server_create(&(NbdServerParams){ .tls = e->creds,
                                                      .tls_required = e->tls != TLS_NONE,
                                                      .contexts = contexts,
                                                      .nb_contexts = e->nb_threads },
                                  &err);
    ASSERT_TRUE(e->server != NULL);
    ASSERT_EQ(nbd_server_add_export(e->server, &(NbdExportParams){ .name = "disk", .blk = e->disk },
                                    &err),
              0);
    ASSERT_EQ(nbd_server_listen(e->server, &e->addr, &err), 0);
    nbd_server_start(e->server);
}

/* A server of a sparse file. */
static main_fn void ends_init(Ends *e, bool tcp, Tls tls, unsigned nb_threads,
                              uint64_t length_bytes)
{
    const char *path = test_text("%s/image", test_dir());
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

    ASSERT_GE(fd, 0);
    ASSERT_EQ(ftruncate(fd, (off_t)length_bytes), 0);
    close(fd);
    *e = (Ends){ .main = main_start(), .nb_threads = nb_threads, .tls = tls };
    e->disk = disk_open("%s,cache=writeback", path);
    for (unsigned i = 0; i < nb_threads; i++) {
        e->threads[i] = iothread_create(test_text("s%u", i), NULL, NULL);
        ASSERT_TRUE(e->threads[i] != NULL);
    }
    if (tls != TLS_NONE) {
        load_creds(e);
    }
    set_address(e, tcp);
    serve(e);
}

static void stop_entry(void *opaque)
{
    Ends *e = opaque;

    assert_main();
    assert_in_coroutine();
    EXPECT_EQ(nbd_server_co_stop(e->server, -1), 0);
}

static void abort_entry(void *opaque)
{
    Ends *e = opaque;

    assert_main();
    assert_in_coroutine();
    EXPECT_LE(nbd_server_co_stop(e->server, aio_now_ns()), 0);
}

static main_fn void ends_finish(Ends *e)
{
    aio_co_run_sync(e->main, stop_entry, e);
    nbd_server_destroy(e->server);
    EXPECT_EQ(blk_close(e->disk), 0);
    for (unsigned i = 0; i < e->nb_threads; i++) {
        iothread_unref(e->threads[i]);
    }
    tls_creds_unref(e->creds);
    main_finish(e->main);
}

/* For --disk. */
static const char *ends_disk(const Ends *e, const char *options)
{
    bool tcp = e->addr.type == SOCKET_ADDRESS_TCP;
    const char *where = tcp ? test_text("host=%s,port=%s", e->addr.host, e->addr.port)
                            : test_text("socket=%s", e->addr.path);
    const char *tls =
        e->tls == TLS_X509
            ? test_text(",tls=on,tls-certificates=%s,tls-hostname=localhost", tls_files_path("."))
        : e->tls == TLS_PSK
            ? test_text(",tls=on,tls-psk-file=%s,tls-username=bob", tls_files_path("keys.psk"))
            : "";

    return test_text("driver=nbd,%s,export=disk%s,%s", where, tls, options);
}

static main_fn void verify(bool tcp, Tls tls)
{
    tls_files_make();
    for (unsigned nb_threads = 1; nb_threads <= 4; nb_threads += 3) {
        Ends e;

        ends_init(&e, tcp, tls, nb_threads, 64 << 20);
        for (unsigned nb_connections = 1; nb_connections <= 4; nb_connections += 3) {
            BlockBackend *blk =
                disk_open("%s", ends_disk(&e, test_text("connections=%u", nb_connections)));

            EXPECT_EQ(nbd_server_nb_connections(e.server), nb_connections);
            load_verify_disk(blk, 4, 50);
            EXPECT_EQ(blk_close(blk), 0);
            while (nbd_server_nb_connections(e.server) > 0) {
                aio_poll(e.main, false);
            }
        }
        ends_finish(&e);
    }
    tls_files_remove();
}

TEST(nbd_both, unix_sockets)
{
    verify(false, TLS_NONE);
}

TEST(nbd_both, unix_sockets_with_certificates)
{
    verify(false, TLS_X509);
}

TEST(nbd_both, unix_sockets_with_keys)
{
    verify(false, TLS_PSK);
}

TEST(nbd_both, tcp)
{
    verify(true, TLS_NONE);
}

TEST(nbd_both, tcp_with_certificates)
{
    verify(true, TLS_X509);
}

TEST(nbd_both, tcp_with_keys)
{
    verify(true, TLS_PSK);
}

TEST(nbd_both, one_request_is_of_more_than_4_gib)
{
    uint64_t len_bytes = 0;
    char buf[512] = "x";
    BlockBackend *blk;
    Ends e;

    ends_init(&e, false, TLS_NONE, 1, 16 * GIB);
    blk = disk_open("%s", ends_disk(&e, "connections=1"));
    EXPECT_EQ(blk_limits(blk)->max_discard_bytes > 16 * GIB, true);
    EXPECT_EQ(run_status(blk, 0, 16 * GIB, &len_bytes), BLK_STATUS_ZERO);
    EXPECT_EQ(len_bytes, 16 * GIB);
    EXPECT_EQ(run_write(blk, 9 * GIB, 512, buf, 0), 0);
    EXPECT_EQ(run_status(blk, 0, 16 * GIB, &len_bytes), BLK_STATUS_ZERO);
    EXPECT_EQ(len_bytes, 9 * GIB);
    EXPECT_EQ(run_zeroes(blk, 4096, 10 * GIB, BLK_MAY_UNMAP), 0);
    EXPECT_EQ(run_read(blk, 9 * GIB, 512, buf), 0);
    EXPECT_EQ(buf[0], 0);
    EXPECT_EQ(run_discard(blk, 4096, 15 * GIB), 0);
    EXPECT_EQ(blk_close(blk), 0);
    ends_finish(&e);
}

/* Requests that wait on the server when it stops are answered, or sent again to the next one; when
 * it stops abruptly, all are. */
static main_fn void restart(Ends *e, bool abruptly)
{
    aio_co_run_sync(e->main, abruptly ? abort_entry : stop_entry, e);
    nbd_server_destroy(e->server);
    serve(e);
}

/* The server's disk becomes longer; the client is told when it connects again. */
static main_fn void grow(Ends *e)
{
    Error err;

    EXPECT_EQ(blk_truncate(e->disk, blk_length(e->disk) + (1 << 20), &err), 0);
}

#define ROUNDS 30

/* Servers come and go, the disk is drained and grows, all under load. */
static main_fn void survive(bool tcp, Tls tls)
{
    IOThread *threads[4];
    Load load = { .nb_ctx = 4, .depth = 4, .zeroes = true };
    Random random = { 1 };
    Ends e;

    tls_files_make();
    ends_init(&e, tcp, tls, 2, 64 << 20);
    load.blk = disk_open("%s", ends_disk(&e, "connections=4,reconnect-delay=60"));
    for (unsigned i = 0; i < 4; i++) {
        threads[i] = iothread_create(test_text("t%u", i), NULL, NULL);
        ASSERT_TRUE(threads[i] != NULL);
        load.ctx[i] = iothread_context(threads[i]);
    }
    load_start(&load);
    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned until = load.nb_done + random_below(&random, 200);

        while (load.nb_done < until && load.nb_running == 16) {
            aio_poll(e.main, false);
        }
        switch (random_below(&random, 4)) {
        case 0:
            restart(&e, false);
            break;
        case 1:
            restart(&e, true);
            break;
        case 2:
            grow(&e);
            break;
        default:
            blk_drained_begin(load.blk);
            blk_drained_end(load.blk);
            break;
        }
    }
    restart(&e, false);
    AIO_WAIT_WHILE(e.main, blk_length(load.blk) != blk_length(e.disk));
    load.stop = true;
    load_wait(&load);
    EXPECT_EQ(load.nb_failed, 0);
    EXPECT_EQ(load.nb_wrong, 0);
    EXPECT_EQ(blk_close(load.blk), 0);
    for (unsigned i = 0; i < 4; i++) {
        iothread_unref(threads[i]);
    }
    ends_finish(&e);
    tls_files_remove();
}

TEST(nbd_both, no_byte_and_no_request_is_lost_whatever_happens)
{
    survive(false, TLS_NONE);
}

TEST(nbd_both, nor_with_tls_and_tcp)
{
    survive(true, TLS_PSK);
}

TEST_MAIN()
