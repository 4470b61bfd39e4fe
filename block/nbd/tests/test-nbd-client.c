/*
 * test-nbd-client.c - which requests go to a server, over which connection, and what becomes of
 * them when that is lost or the server says nothing
 */
#include <sched.h>

#include "block/nbd/tests/nbd-test-server.h"
#include "io/base/thread.h"

#define GIB ((uint64_t)1 << 30)

/* --- requests in other threads --- */

typedef struct Threads {
    IOThread *iothread[4];
    AioContext *ctx[4];
    unsigned nb;
} Threads;

static main_fn void threads_start(Threads *t, unsigned nb)
{
    t->nb = nb;
    for (unsigned i = 0; i < nb; i++) {
        t->iothread[i] = iothread_create(test_text("t%u", i), NULL, NULL);
        ASSERT_TRUE(t->iothread[i] != NULL);
        t->ctx[i] = iothread_context(t->iothread[i]);
    }
}

static main_fn void threads_stop(Threads *t)
{
    for (unsigned i = 0; i < t->nb; i++) {
        iothread_unref(t->iothread[i]);
    }
}

static void await(const Request *req)
{
    while (!req->done) {
        aio_poll(aio_main(), false);
        sched_yield();
    }
}

static int run_in(AioContext *ctx, Request req)
{
    request_start(&req, ctx);
    await(&req);
    return req.ret;
}

static int read_in(AioContext *ctx, BlockBackend *blk, uint64_t offset_bytes)
{
    static char buf[4096];

    return run_in(ctx, (Request){ .blk = blk,
                                  .kind = REQ_READ,
                                  .offset_bytes = offset_bytes,
                                  .len_bytes = sizeof(buf),
                                  .buf = buf });
}

static int read_at(BlockBackend *blk, uint64_t offset_bytes)
{
    static char buf[512];

    return run_read(blk, offset_bytes, sizeof(buf), buf);
}

/* --- several connections --- */

TEST(nbd_client, each_thread_keeps_to_its_connection)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, NULL);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,connections=3", server_path());
    unsigned of_thread[4], nb_used[3] = { 0 };
    Threads t;

    threads_start(&t, 4);
    EXPECT_EQ(server.nb_connections, 3);
    for (unsigned i = 0; i < 4 * 8; i++) {
        EXPECT_EQ(read_in(t.ctx[i % 4], blk, i * 4096), 0);
    }
    ASSERT_EQ(server.nb_requests, 4 * 8);
    for (unsigned i = 0; i < 4 * 8; i++) {
        unsigned connection = server.seen[i].connection;

        ASSERT_LT(connection, 3);
        EXPECT_EQ(server.seen[i].req.offset_bytes, i * 4096);
        of_thread[i % 4] = i < 4 ? connection : of_thread[i % 4];
        EXPECT_EQ(connection, of_thread[i % 4]);
        nb_used[connection]++;
    }
    for (unsigned c = 0; c < 3; c++) {
        EXPECT_GT(nb_used[c], 0);
    }
    threads_stop(&t);
    blk_close(blk);
    server_stop(main);
}

/* The server has said that it covers what others have written. */
TEST(nbd_client, a_flush_goes_over_the_connection_of_its_own_thread_alone)
{
    static char buf[4096];
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, NULL);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,connections=2", server_path());
    Threads t;

    threads_start(&t, 2);
    EXPECT_EQ(
        run_in(t.ctx[0], (Request){ .blk = blk, .kind = REQ_WRITE, .len_bytes = 4096, .buf = buf }),
        0);
    EXPECT_EQ(run_in(t.ctx[1], (Request){ .blk = blk, .kind = REQ_FLUSH }), 0);
    EXPECT_EQ(server.nb_requests, 2);
    EXPECT_EQ(server.seen[0].req.type, NBD_CMD_WRITE);
    EXPECT_EQ(server.seen[1].req.type, NBD_CMD_FLUSH);
    EXPECT_NE(server.seen[0].connection, server.seen[1].connection);
    threads_stop(&t);
    blk_close(blk);
    server_stop(main);
}

TEST(nbd_client, there_is_one_connection_where_several_are_not_coherent)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, NULL);
    BlockBackend *blk;
    Threads t;

    server.flags = NBD_FLAG_SEND_FLUSH;
    blk = disk_open("nbd+unix:///?socket=%s,connections=4", server_path());
    threads_start(&t, 4);
    for (unsigned i = 0; i < 8; i++) {
        EXPECT_EQ(read_in(t.ctx[i % 4], blk, 0), 0);
    }
    EXPECT_EQ(server.nb_connections, 1);
    threads_stop(&t);
    blk_close(blk);
    server_stop(main);
}

TEST(nbd_client, a_server_that_serves_fewer_connections_is_used_over_these)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, NULL);
    BlockBackend *blk;

    server.silent_from = 2;
    blk = disk_open("nbd+unix:///?socket=%s,connections=8", server_path());
    EXPECT_EQ(server.nb_connections, 3);
    EXPECT_EQ(read_at(blk, 0), 0);
    blk_close(blk);
    server_stop(main);
}

static Channel *held_ch;
static NbdRequest held;

/* The first request is held; the second one costs its connection, which is another one. */
static bool hold_then_close(Channel *ch, const NbdRequest *req)
{
    if (server.nb_special > 0) {
        held = *req;
        held_ch = ch;
        return true;
    }
    return false;
}

static void answer_held(void *opaque)
{
    assert_in_coroutine();
    EXPECT_TRUE(answer(held_ch, &held));
}

TEST(nbd_client, a_connection_that_is_lost_disturbs_no_other)
{
    static char buf[512];
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, hold_then_close);
    BlockBackend *blk =
        disk_open("nbd+unix:///?socket=%s,connections=2,reconnect-delay=20", server_path());
    Request req = { .blk = blk, .kind = REQ_READ, .len_bytes = 512, .buf = buf };
    Threads t;

    threads_start(&t, 2);
    server.nb_special = 2;
    request_start(&req, t.ctx[0]);
    AIO_WAIT_WHILE(main, server.nb_requests < 1);
    EXPECT_EQ(read_in(t.ctx[1], blk, 4096), 0);
    EXPECT_EQ(server.nb_connections, 3);
    EXPECT_FALSE(req.done);
    aio_co_run_sync(main, answer_held, NULL);
    await(&req);
    EXPECT_EQ(req.ret, 0);
    EXPECT_EQ(server.nb_requests, 3);
    threads_stop(&t);
    blk_close(blk);
    server_stop(main);
}

/* --- many at once --- */

#define MANY 300

static NbdRequest many[MANY];

/* All are answered when the last one is there, the last one first. */
static bool answer_backwards(Channel *ch, const NbdRequest *req)
{
    assert_in_coroutine();
    many[server.nb_special] = *req;
    for (unsigned i = 0; server.nb_special == 0 && i < MANY; i++) {
        if (!answer(ch, &many[i])) {
            return false;
        }
    }
    return true;
}

TEST(nbd_client, as_many_requests_as_there_are_are_in_flight_on_one_connection)
{
    static char buf[MANY][512];
    static Request req[MANY];
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, answer_backwards);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s", server_path());
    Threads t;

    threads_start(&t, 4);
    server.nb_special = MANY;
    for (unsigned i = 0; i < MANY; i++) {
        req[i] = (Request){
            .blk = blk, .kind = REQ_READ, .offset_bytes = i * 512, .len_bytes = 512, .buf = buf[i]
        };
        request_start(&req[i], t.ctx[i % 4]);
    }
    for (unsigned i = 0; i < MANY; i++) {
        await(&req[i]);
        EXPECT_EQ(req[i].ret, 0);
        EXPECT_EQ(buf[i][511], 'd');
    }
    EXPECT_EQ(server.nb_requests, MANY);
    threads_stop(&t);
    blk_close(blk);
    server_stop(main);
}

/* --- which requests --- */

TEST(nbd_client, requests_are_what_the_block_sizes_allow)
{
    static char buf[SERVER_LENGTH_BYTES];
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, NULL);
    BlockBackend *blk;
    uint64_t at = 0;

    server.sizes = (NbdBlockSizes){ 4096, 65536, 131072 };
    server.length_bytes = SERVER_LENGTH_BYTES + 512;
    blk = disk_open("nbd+unix:///?socket=%s", server_path());
    EXPECT_EQ(blk_length(blk), SERVER_LENGTH_BYTES); /* nobody can ask for the rest */
    EXPECT_EQ(run_read(blk, 0, sizeof(buf), buf), 0);
    EXPECT_EQ(server.nb_requests, 8);
    for (unsigned i = 0; i < server.nb_requests; i++) {
        EXPECT_EQ(server.seen[i].req.offset_bytes, at);
        EXPECT_EQ(server.seen[i].req.len_bytes, 131072);
        at += server.seen[i].req.len_bytes;
    }
    server.nb_requests = 0;
    EXPECT_EQ(run_write(blk, SERVER_LENGTH_BYTES - 100, 100, buf, 0), 0);
    EXPECT_EQ(server.nb_requests, 2);
    for (unsigned i = 0; i < 2; i++) {
        EXPECT_EQ(server.seen[i].req.type, i == 0 ? NBD_CMD_READ : NBD_CMD_WRITE);
        EXPECT_EQ(server.seen[i].req.offset_bytes, SERVER_LENGTH_BYTES - 4096);
        EXPECT_EQ(server.seen[i].req.len_bytes, 4096);
    }
    blk_close(blk);
    server_stop(main);
}

/* Of @len_bytes from 4096 on, in how many requests; the server takes @headers. */
static main_fn unsigned count_pieces(NbdHeaders headers, NbdCommand type, uint64_t len_bytes)
{
    AioContext *main = server_start(headers, NULL);
    uint64_t at = 4096, status_bytes = 0;
    BlockBackend *blk;

    server.flags |= NBD_FLAG_SEND_WRITE_ZEROES;
    server.length_bytes = 16 * GIB;
    blk = disk_open("nbd+unix:///?socket=%s", server_path());
    switch (type) {
    case NBD_CMD_TRIM:
        EXPECT_EQ(run_discard(blk, at, len_bytes), 0);
        break;
    case NBD_CMD_WRITE_ZEROES:
        EXPECT_EQ(run_zeroes(blk, at, len_bytes, BLK_MAY_UNMAP), 0);
        break;
    default:
        EXPECT_EQ(run_status(blk, at, len_bytes, &status_bytes), BLK_STATUS_ZERO);
        break;
    }
    unsigned nb = server.nb_requests;

    for (unsigned i = 0; i < nb; i++) {
        EXPECT_EQ(server.seen[i].req.type, type);
        EXPECT_EQ(server.seen[i].req.offset_bytes, at);
        at += server.seen[i].req.len_bytes;
    }
    EXPECT_EQ(at, 4096 + (status_bytes ? status_bytes : len_bytes));
    blk_close(blk);
    server_stop(main);
    return nb;
}

TEST(nbd_client, lengths_of_64_bits_go_where_the_headers_have_them)
{
    EXPECT_EQ(count_pieces(NBD_HEADERS_EXTENDED, NBD_CMD_TRIM, 9 * GIB), 1);
    EXPECT_EQ(count_pieces(NBD_HEADERS_EXTENDED, NBD_CMD_WRITE_ZEROES, 9 * GIB), 1);
    EXPECT_EQ(count_pieces(NBD_HEADERS_EXTENDED, NBD_CMD_BLOCK_STATUS, 9 * GIB), 1);
    EXPECT_EQ(count_pieces(NBD_HEADERS_STRUCTURED, NBD_CMD_TRIM, 9 * GIB), 3);
    EXPECT_EQ(count_pieces(NBD_HEADERS_STRUCTURED, NBD_CMD_WRITE_ZEROES, 9 * GIB), 3);
    EXPECT_EQ(count_pieces(NBD_HEADERS_STRUCTURED, NBD_CMD_BLOCK_STATUS, 9 * GIB), 1);
    EXPECT_EQ(count_pieces(NBD_HEADERS_SIMPLE, NBD_CMD_TRIM, 4 * GIB), 2);
}

typedef struct Prefetch {
    BlockBackend *blk;
    uint64_t offset_bytes, len_bytes;
    int ret;
} Prefetch;

static void prefetch_entry(void *opaque)
{
    Prefetch *p = opaque;

    assert_in_coroutine();
    p->ret = blk_co_prefetch(p->blk, p->offset_bytes, p->len_bytes);
}

static int prefetch(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes)
{
    Prefetch p = { blk, offset_bytes, len_bytes };

    aio_co_run_sync(aio_main(), prefetch_entry, &p);
    return p.ret;
}

TEST(nbd_client, the_longest_export_is_a_disk_up_to_its_last_whole_sector)
{
    const uint64_t length_bytes = (uint64_t)INT64_MAX - 511;
    AioContext *main = server_start(NBD_HEADERS_EXTENDED, NULL);
    BlockBackend *blk;

    server.length_bytes = INT64_MAX;
    blk = disk_open("nbd+unix:///?socket=%s", server_path());
    EXPECT_EQ(blk_length(blk), length_bytes);
    EXPECT_EQ(read_at(blk, length_bytes - 512), 0);
    EXPECT_EQ(read_at(blk, length_bytes), -EINVAL);
    blk_close(blk);
    server_stop(main);
}

TEST(nbd_client, a_server_that_caches_is_told_what_will_be_read)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, NULL);
    BlockBackend *blk;

    server.length_bytes = 16 * GIB + 100;
    blk = disk_open("nbd+unix:///?socket=%s", server_path());
    EXPECT_EQ(prefetch(blk, 0, 4096), -EOPNOTSUPP);
    EXPECT_EQ(server.nb_requests, 0);
    blk_close(blk);

    server.flags |= NBD_FLAG_SEND_CACHE;
    server.sizes = (NbdBlockSizes){ 4, 4096, 65536 };
    blk = disk_open("nbd+unix:///?socket=%s", server_path());
    server.nb_requests = 0;
    EXPECT_EQ(prefetch(blk, 1001, 100001), 0); /* it has no payload */
    EXPECT_EQ(server.nb_requests, 1);
    EXPECT_EQ(server.seen[0].req.type, NBD_CMD_CACHE);
    EXPECT_EQ(server.seen[0].req.flags, 0);
    EXPECT_EQ(server.seen[0].req.offset_bytes, 1000);
    EXPECT_EQ(server.seen[0].req.len_bytes, 100004);
    server.nb_requests = 0;
    EXPECT_EQ(prefetch(blk, 10 * GIB, blk_length(blk) - 10 * GIB), 0);
    EXPECT_EQ(server.nb_requests, 2);
    EXPECT_EQ(server.seen[1].req.offset_bytes + server.seen[1].req.len_bytes, 16 * GIB + 100);
    EXPECT_EQ(prefetch(blk, 16 * GIB, GIB), -EINVAL);
    blk_close(blk);
    server_stop(main);
}

static bool not_so_fast(Channel *ch, const NbdRequest *req)
{
    assert_in_coroutine();
    return put_simple(ch, req->cookie, NBD_ENOTSUP);
}

/* The flags of the request that a write-zeroes with @flags becomes, -1: of none. */
static int zeroes_flags(BlockBackend *blk, BlkFlags flags)
{
    int ret;

    server.nb_requests = 0;
    ret = run_zeroes(blk, 0, 4096, flags);
    if (server.nb_requests == 0) {
        EXPECT_EQ(ret, -EOPNOTSUPP);
        return -1;
    }
    EXPECT_EQ(ret, 0);
    EXPECT_EQ(server.seen[0].req.type, NBD_CMD_WRITE_ZEROES);
    return server.seen[0].req.flags;
}

TEST(nbd_client, zeroes_make_holes_or_not_and_are_fast_or_not)
{
    AioContext *main = server_start(NBD_HEADERS_SIMPLE, NULL);
    BlockBackend *blk;

    server.flags |= NBD_FLAG_SEND_WRITE_ZEROES;
    blk = disk_open("nbd+unix:///?socket=%s", server_path());
    EXPECT_EQ(zeroes_flags(blk, 0), NBD_CMD_FLAG_NO_HOLE);
    EXPECT_EQ(zeroes_flags(blk, BLK_MAY_UNMAP), 0);
    EXPECT_EQ(zeroes_flags(blk, BLK_NO_FALLBACK), -1);
    blk_close(blk);

    server.flags |= NBD_FLAG_SEND_FAST_ZERO;
    blk = disk_open("nbd+unix:///?socket=%s", server_path());
    EXPECT_EQ(zeroes_flags(blk, 0), NBD_CMD_FLAG_NO_HOLE);
    EXPECT_EQ(zeroes_flags(blk, BLK_NO_FALLBACK), NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO);
    EXPECT_EQ(zeroes_flags(blk, BLK_NO_FALLBACK | BLK_MAY_UNMAP), NBD_CMD_FLAG_FAST_ZERO);
    server.special = not_so_fast;
    server.nb_special = 1;
    EXPECT_EQ(run_zeroes(blk, 0, 4096, BLK_NO_FALLBACK), -EOPNOTSUPP);
    /* who does not insist gets them written */
    server.nb_special = 1;
    server.nb_requests = 0;
    EXPECT_EQ(run_zeroes(blk, 0, 4096, 0), 0);
    EXPECT_EQ(server.nb_requests, 2);
    EXPECT_EQ(server.seen[1].req.type, NBD_CMD_WRITE);
    blk_close(blk);
    server_stop(main);
}

TEST(nbd_client, a_stable_write_has_the_flag_or_a_flush_behind_it)
{
    static char buf[512];
    AioContext *main = server_start(NBD_HEADERS_SIMPLE, NULL);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s", server_path());

    EXPECT_EQ(run_write(blk, 0, 512, buf, BLK_FUA), 0);
    EXPECT_EQ(server.nb_requests, 2);
    EXPECT_EQ(server.seen[0].req.flags, 0);
    EXPECT_EQ(server.seen[1].req.type, NBD_CMD_FLUSH);
    blk_close(blk);

    server.flags |= NBD_FLAG_SEND_FUA;
    blk = disk_open("nbd+unix:///?socket=%s", server_path());
    server.nb_requests = 0;
    EXPECT_EQ(run_write(blk, 0, 512, buf, BLK_FUA), 0);
    EXPECT_EQ(server.nb_requests, 1);
    EXPECT_EQ(server.seen[0].req.flags, NBD_CMD_FLAG_FUA);
    blk_close(blk);
    server_stop(main);
}

TEST(nbd_client, without_the_context_nothing_is_asked_and_all_is_data)
{
    for (ServerContext c = CONTEXT_LEFT_OUT; c <= CONTEXT_REFUSED; c++) {
        AioContext *main = server_start(NBD_HEADERS_STRUCTURED, NULL);
        uint64_t len_bytes = 0;
        BlockBackend *blk;

        server.context = c;
        blk = disk_open("nbd+unix:///?socket=%s", server_path());
        EXPECT_EQ(run_status(blk, 0, SERVER_LENGTH_BYTES, &len_bytes), BLK_STATUS_DATA);
        EXPECT_EQ(len_bytes, SERVER_LENGTH_BYTES);
        EXPECT_EQ(server.nb_requests, 0);
        blk_close(blk);
        server_stop(main);
    }
}

/* --- a connection that is lost --- */

static bool gone(Channel *ch, const NbdRequest *req)
{
    return false;
}

TEST(nbd_client, requests_wait_for_a_server_that_is_away)
{
    static char buf[8][512];
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, gone);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,reconnect-delay=20", server_path());
    Request req[8];

    server_hide();
    for (unsigned i = 0; i < 8; i++) {
        req[i] = (Request){ .blk = blk, .kind = REQ_WRITE, .len_bytes = 512, .buf = buf[i] };
        request_start(&req[i], main);
    }
    AIO_WAIT_WHILE(main, server.nb_requests < 1 || server.nb_open > 0);
    server_show();
    for (unsigned i = 0; i < 8; i++) {
        await(&req[i]);
        EXPECT_EQ(req[i].ret, 0);
    }
    EXPECT_EQ(server.nb_connections, 2);
    EXPECT_GE(server.nb_requests, 9);
    blk_close(blk);
    server_stop(main);
}

static _Atomic bool go_on;

/* Nothing is read meanwhile. */
static bool stuck_then_gone(Channel *ch, const NbdRequest *req)
{
    assert_in_coroutine();
    while (!go_on) {
        aio_co_sleep_ns(1000000);
    }
    return false;
}

#define STUCK 17

/*
 * One request waits for its reply and reads, another one is on its way and fills the socket, the
 * rest waits to be sent: all of that on a connection that then ends.
 */
static main_fn void lose_in_each_state(const char *options, bool give_up, int ret)
{
    static char buf[STUCK][256 * 1024];
    static Request req[STUCK];
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, stuck_then_gone);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,%s", server_path(), options);
    Threads t;

    threads_start(&t, 4);
    go_on = false;
    for (unsigned i = 0; i < STUCK; i++) {
        req[i] = (Request){ .blk = blk,
                            .kind = i == 0 ? REQ_READ : REQ_WRITE,
                            .len_bytes = i == 0 ? 512 : sizeof(buf[i]),
                            .buf = buf[i] };
        request_start(&req[i], t.ctx[i % 4]);
        while (blk_in_flight(blk) < i + 1 || server.nb_requests < 1) {
            aio_poll(main, false);
        }
    }
    if (give_up) {
        blk_drained_begin(blk);
        blk_drained_end(blk);
    }
    go_on = true;
    for (unsigned i = 0; i < STUCK; i++) {
        await(&req[i]);
        EXPECT_EQ(req[i].ret, ret);
    }
    EXPECT_EQ(read_at(blk, 0), 0);
    EXPECT_EQ(server.nb_connections, 2);
    threads_stop(&t);
    blk_close(blk);
    server_stop(main);
}

TEST(nbd_client, a_connection_is_lost_with_requests_in_each_state)
{
    lose_in_each_state("reconnect-delay=20", false, 0);
    lose_in_each_state("reconnect-delay=0", false, -EIO);
}

TEST(nbd_client, requests_in_each_state_are_given_up)
{
    lose_in_each_state("reconnect-delay=20,drain-timeout=0", true, -EIO);
}

/* Each connection is lost at once. A busy machine makes fewer attempts, none makes more. */
TEST(nbd_client, attempts_become_rare_when_they_lead_to_nothing)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, gone);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,reconnect-delay=1", server_path());

    server.nb_special = UINT_MAX;
    EXPECT_EQ(read_at(blk, 0), -EIO);
    EXPECT_GE(server.nb_connections, 2);
    EXPECT_LE(server.nb_connections, 8); /* 0, 50, 150, 350, 750 ms */
    server.nb_special = 0;
    blk_close(blk);
    server_stop(main);
}

TEST(nbd_client, an_attempt_that_fails_is_for_all_who_have_waited_for_it)
{
    static char buf[8][512];
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, gone);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s", server_path());
    Request req[8];

    server.silent_from = 1;
    EXPECT_EQ(read_at(blk, 0), -EIO);
    for (unsigned i = 0; i < 8; i++) {
        req[i] = (Request){ .blk = blk, .kind = REQ_READ, .len_bytes = 512, .buf = buf[i] };
        request_start(&req[i], main);
    }
    for (unsigned i = 0; i < 8; i++) {
        await(&req[i]);
        EXPECT_EQ(req[i].ret, -EIO);
    }
    EXPECT_EQ(server.nb_connections, 2);
    blk_close(blk);
    server_stop(main);
}

/* What an export had when it was first connected to, and what it has after that. */
typedef struct ComeBack {
    NbdHeaders headers_first, headers;
    uint16_t flags_first, flags;
    ServerContext context;
    NbdBlockSizes sizes;
} ComeBack;

#define FIRST_FLAGS                                                                                \
    (NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |   \
     NBD_FLAG_SEND_CACHE | NBD_FLAG_SEND_FAST_ZERO)

static const ComeBack as_it_was = {
    .headers_first = NBD_HEADERS_STRUCTURED,
    .headers = NBD_HEADERS_STRUCTURED,
    .flags_first = FIRST_FLAGS,
    .flags = FIRST_FLAGS,
};

/* The disk is open, and its first connection lost. */
static main_fn BlockBackend *come_back(const ComeBack *c)
{
    BlockBackend *blk;

    server_start(c->headers_first, gone);
    server.flags = c->flags_first;
    blk = disk_open("nbd+unix:///?socket=%s", server_path());
    EXPECT_EQ(read_at(blk, 0), -EIO);
    server.headers = c->headers;
    server.flags = c->flags;
    server.context = c->context;
    server.sizes = c->sizes;
    return blk;
}

static main_fn void come_back_finish(BlockBackend *blk)
{
    blk_close(blk);
    server_stop(aio_main());
}

static main_fn void expect_come_back(const ComeBack *c, bool usable)
{
    BlockBackend *blk = come_back(c);
    unsigned nb_requests = server.nb_requests;

    EXPECT_EQ(read_at(blk, 0), usable ? 0 : -EIO);
    EXPECT_EQ(server.nb_connections, 2);
    EXPECT_EQ(server.nb_requests, nb_requests + usable);
    come_back_finish(blk);
}

TEST(nbd_client, an_export_that_comes_back_with_less_than_writes_rely_on_is_not_used)
{
    static const uint16_t relied[] = { NBD_FLAG_SEND_FLUSH, NBD_FLAG_SEND_FUA, NBD_FLAG_SEND_TRIM,
                                       NBD_FLAG_SEND_WRITE_ZEROES };
    ComeBack c = as_it_was;

    expect_come_back(&c, true);
    for (unsigned i = 0; i < ARRAY_SIZE(relied); i++) {
        c.flags = FIRST_FLAGS & ~relied[i];
        expect_come_back(&c, false);
    }
    c.flags = FIRST_FLAGS | NBD_FLAG_READ_ONLY;
    expect_come_back(&c, false);
    c = as_it_was;
    c.sizes = (NbdBlockSizes){ 512, 4096, NBD_PAYLOAD_BYTES_DEFAULT };
    expect_come_back(&c, false);
    c.sizes = (NbdBlockSizes){ 1, 4096, NBD_PAYLOAD_BYTES_DEFAULT / 2 };
    expect_come_back(&c, false);
    c = as_it_was;
    c.headers_first = NBD_HEADERS_EXTENDED;
    expect_come_back(&c, false);
    c = as_it_was; /* more than before */
    c.headers = NBD_HEADERS_EXTENDED;
    c.flags_first = NBD_FLAG_SEND_FLUSH;
    expect_come_back(&c, true);
}

/* A server is not asked for what it did not offer on this connection. */
static main_fn void expect_done_without(const ComeBack *c)
{
    BlockBackend *blk = come_back(c);
    uint64_t len_bytes = 0;
    unsigned nb_requests;

    EXPECT_EQ(read_at(blk, 0), 0);
    nb_requests = server.nb_requests;
    EXPECT_EQ(run_status(blk, 512, SERVER_LENGTH_BYTES - 512, &len_bytes), BLK_STATUS_DATA);
    EXPECT_EQ(len_bytes, SERVER_LENGTH_BYTES - 512);
    EXPECT_EQ(run_zeroes(blk, 0, 512, BLK_NO_FALLBACK), -EOPNOTSUPP);
    EXPECT_EQ(prefetch(blk, 0, 512), -EOPNOTSUPP);
    EXPECT_EQ(server.nb_requests, nb_requests);
    EXPECT_EQ(run_zeroes(blk, 0, 512, 0), 0);
    EXPECT_EQ(server.nb_requests, nb_requests + 1);
    EXPECT_EQ(server.nb_connections, 2);
    come_back_finish(blk);
}

TEST(nbd_client, what_an_export_lacks_when_it_comes_back_is_done_without)
{
    ComeBack c = as_it_was;

    c.flags &= ~(NBD_FLAG_SEND_CACHE | NBD_FLAG_SEND_FAST_ZERO);
    c.context = CONTEXT_REFUSED;
    expect_done_without(&c);
    c.headers = NBD_HEADERS_SIMPLE;
    expect_done_without(&c);
    c.headers_first = c.headers = NBD_HEADERS_EXTENDED;
    expect_done_without(&c);
}

/* --- opening --- */

static void show_cb(void *opaque)
{
    assert_main();
    server_show();
}

TEST(nbd_client, opening_waits_for_a_server_that_is_not_there_yet)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, NULL);
    BlockBackend *blk;
    Error err = { 0 };
    AioTimer timer;

    server_hide();
    EXPECT_EQ(disk_try(test_text("nbd+unix:///?socket=%s", server_path()), &err), -ENOENT);
    aio_timer_init(&timer, main, show_cb, NULL);
    aio_timer_arm(&timer, aio_now_ns() + 100000000);
    blk = disk_open("nbd+unix:///?socket=%s,open-timeout=20", server_path());
    EXPECT_EQ(read_at(blk, 0), 0);
    blk_close(blk);
    server_stop(main);
}

TEST(nbd_client, opening_ends_though_the_server_does_not_greet)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, NULL);
    Error err = { 0 };

    server.silent_from = 0;
    EXPECT_EQ(disk_try(test_text("nbd+unix:///?socket=%s,open-timeout=1", server_path()), &err),
              -ETIMEDOUT);
    EXPECT_TRUE(strstr(err.msg, "greeting") != NULL);
    server_stop(main);
}

/* --- an attempt that hangs, though the next one would not --- */

static void greet_others_entry(void *opaque)
{
    unsigned silent = *(unsigned *)opaque;

    assert_in_coroutine();
    while (server.nb_connections <= silent) {
        aio_co_sleep_ns(1000000);
    }
    server.silent_from = UINT_MAX;
}

/* The connection with that number is never greeted, those after it are. */
static main_fn void do_not_greet(unsigned number)
{
    static unsigned silent;

    silent = server.silent_from = number;
    co_enter(co_create(greet_others_entry, &silent));
}

TEST(nbd_client, requests_do_not_wait_for_an_attempt_that_hangs_until_all_their_time_is_up)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, gone);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,reconnect-delay=20", server_path());

    do_not_greet(1);
    EXPECT_EQ(read_at(blk, 0), 0);
    EXPECT_EQ(server.nb_connections, 3);
    blk_close(blk);
    server_stop(main);
}

TEST(nbd_client, nor_does_opening)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, NULL);

    do_not_greet(0);
    blk_close(disk_open("nbd+unix:///?socket=%s,open-timeout=20", server_path()));
    EXPECT_EQ(server.nb_connections, 2);
    server_stop(main);
}

/* --- a server that says nothing --- */

static main_fn void expect_drain_ends(const char *options)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, NULL);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,%s", server_path(), options);
    char buf[4][512];
    Request req[4];

    server.silent = true;
    for (unsigned i = 0; i < 4; i++) {
        req[i] = (Request){ .blk = blk, .kind = REQ_READ, .len_bytes = 512, .buf = buf[i] };
        request_start(&req[i], main);
    }
    AIO_WAIT_WHILE(main, server.nb_requests < 4);
    blk_drained_begin(blk);
    for (unsigned i = 0; i < 4; i++) {
        EXPECT_TRUE(req[i].done);
        EXPECT_EQ(req[i].ret, -EIO);
    }
    blk_drained_end(blk);
    server.silent = false;
    EXPECT_EQ(read_at(blk, 0), 0);
    blk_close(blk);
    server_stop(main);
}

TEST(nbd_client, a_drained_section_ends_though_the_server_hangs)
{
    expect_drain_ends("drain-timeout=1");
}

TEST(nbd_client, a_drained_section_ends_before_the_time_for_reconnecting)
{
    expect_drain_ends("drain-timeout=0,reconnect-delay=3600");
}

TEST(nbd_client, a_drained_section_ends_while_requests_wait_for_a_connection)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, gone);
    BlockBackend *blk =
        disk_open("nbd+unix:///?socket=%s,drain-timeout=0,reconnect-delay=3600", server_path());
    char buf[512];
    Request req = { .blk = blk, .kind = REQ_READ, .len_bytes = 512, .buf = buf };

    server_hide();
    request_start(&req, main);
    AIO_WAIT_WHILE(main, server.nb_requests < 1);
    blk_drained_begin(blk);
    EXPECT_TRUE(req.done);
    EXPECT_EQ(req.ret, -EIO);
    blk_drained_end(blk);
    blk_close(blk);
    server_stop(main);
}

TEST(nbd_client, a_drained_section_ends_in_the_middle_of_a_handshake)
{
    static char buf[512];
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, gone);
    BlockBackend *blk =
        disk_open("nbd+unix:///?socket=%s,drain-timeout=0,reconnect-delay=3600", server_path());
    Request req = { .blk = blk, .kind = REQ_READ, .len_bytes = 512, .buf = buf };

    server.silent_from = 1;
    request_start(&req, main);
    AIO_WAIT_WHILE(main, server.nb_connections < 2);
    blk_drained_begin(blk);
    EXPECT_TRUE(req.done);
    EXPECT_EQ(req.ret, -EIO);
    blk_drained_end(blk);
    server.silent_from = UINT_MAX;
    EXPECT_EQ(read_at(blk, 0), 0);
    blk_close(blk);
    server_stop(main);
}

TEST(nbd_client, a_disk_is_closed_though_the_server_hangs)
{
    static char buf[512];
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, NULL);
    BlockBackend *blk =
        disk_open("nbd+unix:///?socket=%s,drain-timeout=0,reconnect-delay=3600", server_path());
    Request req = { .blk = blk, .kind = REQ_READ, .len_bytes = 512, .buf = buf };

    server.silent = true;
    request_start(&req, main);
    AIO_WAIT_WHILE(main, server.nb_requests < 1);
    server.nb_special = UINT_MAX; /* nor does it let others in */
    server.special = gone;
    server.silent = false;
    EXPECT_LT(blk_close(blk), 0); /* the flush */
    EXPECT_EQ(req.ret, -EIO);
    server_stop(main);
}

/* --- another length --- */

static unsigned nb_resized;

static void resized_cb(void *opaque)
{
    nb_resized++;
}

static const BlkUserOps user_ops = { .resized = resized_cb };

/* The connection is lost; the next one is told @length_bytes. */
static void come_back_with(BlockBackend *blk, uint64_t length_bytes)
{
    server.nb_special = 1;
    server.length_bytes = length_bytes;
    EXPECT_EQ(read_at(blk, 0), 0);
}

static main_fn void expect_resized(const char *text)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, gone);
    BlockBackend *blk = disk_open("%s", text);

    server.nb_special = 0;
    nb_resized = 0;
    blk_set_user(blk, &user_ops, NULL);
    come_back_with(blk, SERVER_LENGTH_BYTES);
    come_back_with(blk, 4 * SERVER_LENGTH_BYTES);
    AIO_WAIT_WHILE(main, nb_resized < 1);
    EXPECT_EQ(blk_length(blk), 4 * SERVER_LENGTH_BYTES);
    EXPECT_EQ(read_at(blk, 4 * SERVER_LENGTH_BYTES - 512), 0);
    come_back_with(blk, SERVER_LENGTH_BYTES / 2 + 100);
    AIO_WAIT_WHILE(main, nb_resized < 2);
    EXPECT_EQ(blk_length(blk), SERVER_LENGTH_BYTES / 2 + 512);
    EXPECT_EQ(read_at(blk, SERVER_LENGTH_BYTES), -EINVAL);
    EXPECT_EQ(read_at(blk, SERVER_LENGTH_BYTES / 2), 0);
    /* nothing is no disk's length: it is what it was */
    come_back_with(blk, 0);
    while (aio_poll(main, false)) {
    }
    EXPECT_EQ(blk_length(blk), SERVER_LENGTH_BYTES / 2 + 512);
    EXPECT_EQ(nb_resized, 2);
    blk_close(blk);
    server_stop(main);
}

TEST(nbd_client, an_export_that_comes_back_longer_or_shorter_is_a_disk_that_does)
{
    expect_resized(test_text("nbd+unix:///?socket=%s,reconnect-delay=20", server_path()));
}

TEST(nbd_client, a_new_length_is_told_through_filters)
{
    expect_resized(test_text("driver=throttle,file.driver=nbd,file.socket=%s,"
                             "file.reconnect-delay=20",
                             server_path()));
}

/* The request that finds out is what a drained section waits for: the length changes after it. */
TEST(nbd_client, a_length_that_is_found_out_in_a_drained_section_is_set_after_it)
{
    static char buf[512];
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, gone);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,reconnect-delay=20", server_path());
    Request req = { .blk = blk, .kind = REQ_READ, .len_bytes = 512, .buf = buf };

    server_hide();
    server.length_bytes = 2 * SERVER_LENGTH_BYTES;
    request_start(&req, main);
    AIO_WAIT_WHILE(main, server.nb_requests < 1 || server.nb_open > 0);
    server_show();
    blk_drained_begin(blk);
    EXPECT_EQ(req.ret, 0);
    EXPECT_EQ(server.nb_connections, 2);
    while (aio_poll(main, false)) {
    }
    EXPECT_EQ(blk_length(blk), SERVER_LENGTH_BYTES);
    blk_drained_end(blk);
    AIO_WAIT_WHILE(main, blk_length(blk) == SERVER_LENGTH_BYTES);
    EXPECT_EQ(blk_length(blk), 2 * SERVER_LENGTH_BYTES);
    blk_close(blk);
    server_stop(main);
}

/* The main thread has not looked yet. */
TEST(nbd_client, a_disk_that_is_closed_at_once_has_no_length_to_be_set)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, gone);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,reconnect-delay=20", server_path());
    Threads t;

    threads_start(&t, 1);
    server.length_bytes = 2 * SERVER_LENGTH_BYTES;
    EXPECT_EQ(read_in(t.ctx[0], blk, 0), 0);
    EXPECT_EQ(blk_close(blk), 0);
    threads_stop(&t);
    server_stop(main);
}

TEST(nbd_client, the_length_is_asked_for_again_when_somebody_wants_it)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, NULL);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s", server_path());
    Error err;

    server.length_bytes = 3 * SERVER_LENGTH_BYTES;
    EXPECT_EQ(blk_refresh_length(blk, &err), 0);
    EXPECT_EQ(blk_length(blk), 3 * SERVER_LENGTH_BYTES);
    EXPECT_EQ(server.nb_connections, 2);
    EXPECT_EQ(read_at(blk, 3 * SERVER_LENGTH_BYTES - 512), 0);
    server.go_error = NBD_REP_ERR_UNKNOWN;
    EXPECT_LT(blk_refresh_length(blk, &err), 0);
    EXPECT_EQ(blk_length(blk), 3 * SERVER_LENGTH_BYTES);
    blk_close(blk);
    server_stop(main);
}

TEST_MAIN()
