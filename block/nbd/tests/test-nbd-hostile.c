/*
 * test-nbd-hostile.c - the client against servers that do what the protocol forbids, one thing each
 *
 * nbd-test-server.h answers the first request with what the test has put together. The reaction is
 * always: the connection is closed, that request fails with -EIO or, with reconnect-delay, is sent
 * again; and the next request works.
 */
#include <stdarg.h>

#include "block/nbd/tests/nbd-test-server.h"
#include "io/base/log.h"
#include "io/channel/tests/tls-files.h"

static char logged[256]; /* last */

void __wrap_log_limited(LogLimit *limit, LogLevel level, const char *area, const char *fmt, ...)
    PRINTF(4, 5);

/* In the place of log.c's: see meson.build. All of this runs in the main thread. */
void __wrap_log_limited(LogLimit *limit, LogLevel level, const char *area, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(logged, sizeof(logged), fmt, ap);
    va_end(ap);
}

static int run(BlockBackend *blk, RequestKind kind)
{
    char buf[4096];
    uint64_t len_bytes;
    int ret;

    memset(buf, 0, sizeof(buf));
    ret = request_run(&(Request){ .blk = blk,
                                  .kind = kind,
                                  .offset_bytes = 8192,
                                  .len_bytes = sizeof(buf),
                                  .buf = buf,
                                  .ret_len_bytes = &len_bytes });
    if (kind == REQ_READ && ret == 0) {
        EXPECT_EQ(buf[0], 'd');
        EXPECT_EQ(buf[4095], 'd');
    }
    return kind == REQ_STATUS && ret > 0 ? 0 : ret;
}

/* The request that is answered so fails and costs the connection; the next one works over a new
 * one. With reconnect-delay it does not even fail. */
static main_fn void expect_closed(NbdHeaders headers, SpecialFn *special, RequestKind kind)
{
    AioContext *main = server_start(headers, special);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s", server_path());

    EXPECT_EQ(run(blk, kind), -EIO);
    EXPECT_EQ(server.nb_connections, 1);
    EXPECT_TRUE(strstr(logged, server_path()) != NULL);
    EXPECT_TRUE(strstr(logged, "': connection closed: ") != NULL);
    EXPECT_EQ(run(blk, kind), 0);
    EXPECT_EQ(server.nb_connections, 2);
    blk_close(blk);

    server.nb_special = 1;
    server.nb_connections = 0;
    blk = disk_open("nbd+unix:///?socket=%s,reconnect-delay=20", server_path());
    EXPECT_EQ(run(blk, kind), 0);
    EXPECT_EQ(server.nb_connections, 2);
    blk_close(blk);
    server_stop(main);
}

#define CLOSED(headers_, kind_, sentence, ...)                                                     \
    static bool hostile_##sentence(Channel *ch, const NbdRequest *req)                             \
    {                                                                                              \
        assert_in_coroutine();                                                                     \
        __VA_ARGS__                                                                                \
    }                                                                                              \
    TEST(nbd_hostile, sentence##_closes_the_connection)                                            \
    {                                                                                              \
        expect_closed(NBD_HEADERS_##headers_, hostile_##sentence, kind_);                          \
    }

/* --- replies --- */

CLOSED(SIMPLE, REQ_READ, a_reply_to_no_request, { return put_simple(ch, req->cookie + 1, 0); })
CLOSED(SIMPLE, REQ_READ, a_cookie_out_of_range,
       { return put_simple(ch, req->cookie | 0xffffffff, 0); })
CLOSED(SIMPLE, REQ_FLUSH, a_cookie_of_an_earlier_request,
       { return put_simple(ch, req->cookie - (UINT64_C(1) << 32), 0); })
CLOSED(SIMPLE, REQ_READ, a_wrong_magic, { return put(ch, "rubbish, 16 byte", 16); })
CLOSED(SIMPLE, REQ_READ, a_structured_reply_that_was_not_agreed_on, {
    server.headers = NBD_HEADERS_STRUCTURED;
    bool ok = put_data(ch, req, NBD_REPLY_FLAG_DONE, req->offset_bytes, 4096);
    server.headers = NBD_HEADERS_SIMPLE;
    return ok;
})
CLOSED(STRUCTURED, REQ_READ, a_simple_reply_to_a_read, { return put_simple(ch, req->cookie, 0); })
CLOSED(STRUCTURED, REQ_READ, a_simple_error_to_a_read,
       { return put_simple(ch, req->cookie, NBD_EINVAL); })
CLOSED(STRUCTURED, REQ_STATUS, a_simple_reply_to_block_status,
       { return put_simple(ch, req->cookie, 0); })
CLOSED(EXTENDED, REQ_FLUSH, a_simple_reply_with_extended_headers,
       { return put_simple(ch, req->cookie, 0); })
CLOSED(EXTENDED, REQ_READ, a_reply_with_another_offset, {
    NbdRequest other = *req;
    other.offset_bytes++;
    return put_data(ch, &other, NBD_REPLY_FLAG_DONE, req->offset_bytes, 4096);
})
CLOSED(STRUCTURED, REQ_READ, a_part_before_the_read,
       { return put_data(ch, req, NBD_REPLY_FLAG_DONE, req->offset_bytes - 1, 4096); })
CLOSED(STRUCTURED, REQ_READ, a_part_behind_the_read,
       { return put_data(ch, req, NBD_REPLY_FLAG_DONE, req->offset_bytes + 4096, 1); })
CLOSED(STRUCTURED, REQ_READ, a_part_longer_than_the_read,
       { return put_data(ch, req, NBD_REPLY_FLAG_DONE, req->offset_bytes, 4097); })
CLOSED(STRUCTURED, REQ_READ, an_offset_that_overflows,
       { return put_data(ch, req, NBD_REPLY_FLAG_DONE, UINT64_MAX - 10, 512); })
CLOSED(STRUCTURED, REQ_READ, a_part_that_comes_twice, {
    return put_data(ch, req, 0, req->offset_bytes, 2048) &&
           put_data(ch, req, NBD_REPLY_FLAG_DONE, req->offset_bytes + 2047, 2049);
})
CLOSED(STRUCTURED, REQ_READ, a_hole_over_data, {
    return put_data(ch, req, 0, req->offset_bytes + 1024, 1024) &&
           put_hole(ch, req, NBD_REPLY_FLAG_DONE, req->offset_bytes, 4096);
})
CLOSED(STRUCTURED, REQ_READ, a_hole_of_no_bytes,
       { return put_hole(ch, req, NBD_REPLY_FLAG_DONE, req->offset_bytes, 0); })
CLOSED(STRUCTURED, REQ_READ, a_hole_behind_the_read,
       { return put_hole(ch, req, NBD_REPLY_FLAG_DONE, req->offset_bytes, 1u << 30); })
CLOSED(STRUCTURED, REQ_READ, a_part_without_data,
       { return put_data(ch, req, NBD_REPLY_FLAG_DONE, req->offset_bytes, 0); })
CLOSED(STRUCTURED, REQ_READ, something_left_out, {
    return put_data(ch, req, 0, req->offset_bytes, 2048) &&
           put_data(ch, req, NBD_REPLY_FLAG_DONE, req->offset_bytes + 2049, 2047);
})
CLOSED(STRUCTURED, REQ_READ, an_end_without_any_data,
       { return put_chunk(ch, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, NULL, 0); })
CLOSED(STRUCTURED, REQ_READ, an_empty_part_in_the_middle,
       { return put_chunk(ch, req, 0, NBD_REPLY_TYPE_NONE, NULL, 0); })
CLOSED(STRUCTURED, REQ_READ, an_empty_part_with_a_payload,
       { return put_chunk(ch, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, "x", 1); })
CLOSED(STRUCTURED, REQ_READ, an_unknown_type_of_part,
       { return put_chunk(ch, req, NBD_REPLY_FLAG_DONE, 99, NULL, 0); })
CLOSED(STRUCTURED, REQ_READ, a_part_over_4_gigabytes, {
    return put_chunk(ch, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_OFFSET_DATA, NULL, UINT32_MAX) &&
           put(ch, "12345678", 8);
})
CLOSED(EXTENDED, REQ_READ, a_part_of_all_64_bits, {
    return put_chunk(ch, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_OFFSET_DATA, NULL, UINT64_MAX) &&
           put(ch, "12345678", 8);
})
CLOSED(STRUCTURED, REQ_FLUSH, data_for_a_flush,
       { return put_data(ch, req, NBD_REPLY_FLAG_DONE, 0, 512); })
CLOSED(STRUCTURED, REQ_READ, an_error_that_is_too_long,
       { return put_chunk(ch, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR, NULL, 1u << 20); })
CLOSED(STRUCTURED, REQ_READ, an_error_that_is_too_short,
       { return put_chunk(ch, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR, "\0\0\0\5\0", 5); })
CLOSED(STRUCTURED, REQ_READ, an_error_with_a_message_beyond_its_end, {
    return put_chunk(ch, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR, "\0\0\0\5\0\2x", 7);
})
CLOSED(STRUCTURED, REQ_READ, an_error_that_is_none,
       { return put_chunk(ch, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR, "\0\0\0\0\0\0", 6); })
CLOSED(STRUCTURED, REQ_READ, errors_without_end, {
    for (unsigned i = 0; i < 1000; i++) {
        if (!put_chunk(ch, req, 0, NBD_REPLY_TYPE_ERROR, "\0\0\0\5\0\0", 6)) {
            return false;
        }
    }
    return true;
})
CLOSED(STRUCTURED, REQ_READ, a_reply_that_comes_twice,
       { return put_data(ch, req, 0, req->offset_bytes, 4095) && put_simple(ch, req->cookie, 0); })
CLOSED(STRUCTURED, REQ_STATUS, a_block_status_of_no_bytes,
       { return put_status(ch, req, NBD_REPLY_FLAG_DONE, 7, 0); })
CLOSED(STRUCTURED, REQ_STATUS, a_block_status_of_another_context,
       { return put_status(ch, req, NBD_REPLY_FLAG_DONE, 8, 4096); })
CLOSED(STRUCTURED, REQ_STATUS, a_block_status_twice, {
    return put_status(ch, req, 0, 7, 4096) && put_status(ch, req, NBD_REPLY_FLAG_DONE, 7, 4096);
})
CLOSED(STRUCTURED, REQ_STATUS, a_block_status_without_any,
       { return put_chunk(ch, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, NULL, 0); })
CLOSED(STRUCTURED, REQ_STATUS, a_long_block_status_with_short_headers, {
    return put_chunk(ch, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
                     "\0\0\0\7\0\0\0\1\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\0", 24);
})
CLOSED(STRUCTURED, REQ_STATUS, a_block_status_of_two_extents, {
    return put_chunk(ch, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS,
                     "\0\0\0\7\0\0\2\0\0\0\0\0\0\0\2\0\0\0\0\1", 20);
})
CLOSED(EXTENDED, REQ_STATUS, a_block_status_of_no_extent, {
    return put_chunk(ch, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
                     "\0\0\0\7\0\0\0\0", 8);
})
CLOSED(EXTENDED, REQ_STATUS, a_block_status_that_miscounts_its_extents, {
    return put_chunk(ch, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
                     "\0\0\0\7\xff\xff\xff\xff\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\0", 24);
})
CLOSED(STRUCTURED, REQ_READ, data_without_an_end, {
    (void)put_data(ch, req, 0, req->offset_bytes, 4096);
    return false;
})
CLOSED(STRUCTURED, REQ_READ, a_block_status_for_a_read,
       { return put_status(ch, req, NBD_REPLY_FLAG_DONE, 7, 4096); })

/* --- endings in the middle --- */

static bool in_parts(Channel *ch, const NbdRequest *req)
{
    assert_in_coroutine();
    return put_data(ch, req, 0, req->offset_bytes, 16) &&
           put_hole(ch, req, 0, req->offset_bytes + 16, 4064) &&
           put_data(ch, req, 0, req->offset_bytes + 4080, 16) &&
           put_chunk(ch, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, NULL, 0);
}

static bool with_an_error(Channel *ch, const NbdRequest *req)
{
    assert_in_coroutine();
    return put_chunk(ch, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR_OFFSET,
                     "\0\0\0\x1c\0\2no\0\0\0\0\0\0\x20\0", 16);
}

static bool properly(Channel *ch, const NbdRequest *req)
{
    assert_in_coroutine();
    return answer(ch, req);
}

static int run_plain(BlockBackend *blk, RequestKind kind)
{
    static char buf[4096];
    uint64_t len_bytes;
    int ret = request_run(&(Request){ .blk = blk,
                                      .kind = kind,
                                      .offset_bytes = 8192,
                                      .len_bytes = sizeof(buf),
                                      .buf = buf,
                                      .ret_len_bytes = &len_bytes });

    return MIN(ret, 0);
}

/* The reply is cut off after 0, 1, 2, ... bytes, until it is whole; returns its length. */
static main_fn unsigned cut_reply(BlockBackend *blk, RequestKind kind, int whole)
{
    for (unsigned cut = 0; cut < 8192; cut += cut < 128 ? 1 : 397) {
        unsigned before = server.nb_connections;
        int ret;

        server.nb_special = 1;
        server.cut_bytes = cut;
        ret = run_plain(blk, kind);
        cut -= server.cut_bytes;
        if (server.cut_bytes > 0) {
            EXPECT_EQ(ret, whole);
            EXPECT_EQ(server.nb_connections, before);
            server.cut_bytes = SERVER_NO_CUT;
            return cut;
        }
        server.cut_bytes = SERVER_NO_CUT;
        EXPECT_EQ(run(blk, REQ_READ), 0);
        if (ret == whole) {
            return cut;
        }
        EXPECT_EQ(ret, -EIO);
        EXPECT_EQ(server.nb_connections, before + 1);
    }
    return 0;
}

TEST(nbd_hostile, an_end_in_the_middle_of_any_field_fails_the_request_alone)
{
    static const struct {
        NbdHeaders headers;
        SpecialFn *special;
        RequestKind kind;
        int whole;
        unsigned len_bytes;
    } cases[] = {
        { NBD_HEADERS_SIMPLE, properly, REQ_FLUSH, 0, 16 },
        { NBD_HEADERS_SIMPLE, properly, REQ_READ, 0, 16 + 4096 },
        { NBD_HEADERS_STRUCTURED, properly, REQ_READ, 0, 20 + 8 + 4096 },
        { NBD_HEADERS_STRUCTURED, in_parts, REQ_READ, 0, 2 * (20 + 8 + 16) + 20 + 12 + 20 },
        { NBD_HEADERS_STRUCTURED, with_an_error, REQ_READ, -ENOSPC, 20 + 16 },
        { NBD_HEADERS_STRUCTURED, properly, REQ_STATUS, 0, 20 + 12 },
        { NBD_HEADERS_EXTENDED, properly, REQ_FLUSH, 0, 32 },
        { NBD_HEADERS_EXTENDED, in_parts, REQ_READ, 0, 2 * (32 + 8 + 16) + 32 + 12 + 32 },
        { NBD_HEADERS_EXTENDED, with_an_error, REQ_READ, -ENOSPC, 32 + 16 },
        { NBD_HEADERS_EXTENDED, properly, REQ_STATUS, 0, 32 + 24 },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        AioContext *main = server_start(cases[i].headers, cases[i].special);
        BlockBackend *blk = disk_open("nbd+unix:///?socket=%s", server_path());

        EXPECT_EQ(cut_reply(blk, cases[i].kind, cases[i].whole), cases[i].len_bytes);
        blk_close(blk);
        server_stop(main);
    }
}

TEST(nbd_hostile, an_end_in_the_middle_of_the_handshake_is_told)
{
    for (NbdHeaders h = NBD_HEADERS_SIMPLE; h <= NBD_HEADERS_EXTENDED; h++) {
        AioContext *main = server_start(h, NULL);
        Error err = { 0 };
        unsigned cut = 0;

        for (server.cut_bytes = 0;
             disk_try(test_text("nbd+unix:///?socket=%s", server_path()), &err) < 0;
             server.cut_bytes = ++cut) {
            EXPECT_EQ(err.code, -ECONNRESET);
            EXPECT_TRUE(strstr(err.msg, "closed the connection") != NULL);
            ASSERT_LT(cut, 1000);
        }
        EXPECT_EQ(server.cut_bytes, 0);
        EXPECT_GE(cut, 18 + 3 * 20 + 12);
        server_stop(main);
    }
}

TEST(nbd_hostile, one_byte_at_a_time_is_slow_and_right)
{
    for (NbdHeaders h = NBD_HEADERS_SIMPLE; h <= NBD_HEADERS_EXTENDED; h++) {
        AioContext *main = server_start(h, NULL);
        BlockBackend *blk;

        server.dribble = true;
        blk = disk_open("nbd+unix:///?socket=%s", server_path());
        EXPECT_EQ(run(blk, REQ_READ), 0);
        EXPECT_EQ(run(blk, REQ_WRITE), 0);
        EXPECT_EQ(run(blk, REQ_FLUSH), 0);
        EXPECT_EQ(run(blk, REQ_STATUS), 0);
        EXPECT_EQ(server.nb_connections, 1);
        blk_close(blk);
        server_stop(main);
    }
}

/* --- allowed, and easily got wrong --- */

static bool in_any_order(Channel *ch, const NbdRequest *req)
{
    uint64_t at = req->offset_bytes;

    assert_in_coroutine();
    return put_data(ch, req, 0, at + 3000, 1096) && put_data(ch, req, 0, at, 1000) &&
           put_data(ch, req, 0, at + 2000, 500) && put_data(ch, req, 0, at + 1000, 1000) &&
           put_data(ch, req, 0, at + 2500, 500) &&
           put_chunk(ch, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, NULL, 0);
}

TEST(nbd_hostile, parts_in_any_order_make_a_read)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, in_any_order);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s", server_path());

    EXPECT_EQ(run(blk, REQ_READ), 0);
    EXPECT_EQ(server.nb_connections, 1);
    blk_close(blk);
    server_stop(main);
}

static bool error_after_data(Channel *ch, const NbdRequest *req)
{
    assert_in_coroutine();
    return put_data(ch, req, 0, req->offset_bytes, 4096) &&
           put_chunk(ch, req, 0, NBD_REPLY_TYPE_ERROR, "\0\0\0\x1c\0\2no", 8) &&
           put_chunk(ch, req, NBD_REPLY_FLAG_DONE, 0x8fff, "\0\0\0\5\0\0", 6);
}

TEST(nbd_hostile, an_error_behind_all_the_data_fails_the_read_and_keeps_the_connection)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, error_after_data);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s", server_path());

    EXPECT_EQ(run(blk, REQ_READ), -ENOSPC);
    EXPECT_EQ(run(blk, REQ_READ), 0);
    EXPECT_EQ(server.nb_connections, 1);
    blk_close(blk);
    server_stop(main);
}

TEST(nbd_hostile, a_hole_in_a_read_is_zeroes)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, in_parts);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s", server_path());
    char buf[4096];

    memset(buf, 'x', sizeof(buf));
    EXPECT_EQ(run_read(blk, 0, sizeof(buf), buf), 0);
    EXPECT_EQ(buf[15], 'd');
    EXPECT_EQ(buf[16], 0);
    EXPECT_TRUE(memcmp(buf + 16, buf + 17, 4063) == 0);
    EXPECT_EQ(buf[4080], 'd');
    blk_close(blk);
    server_stop(main);
}

static NbdRequest held;

/* The first one waits for the second one; then they are answered chunk by chunk in turn. */
static bool in_turn(Channel *ch, const NbdRequest *req)
{
    assert_in_coroutine();
    if (server.nb_special > 0) {
        held = *req;
        return true;
    }
    return put_data(ch, req, 0, req->offset_bytes + 2048, 2048) &&
           put_hole(ch, &held, 0, held.offset_bytes, 2048) &&
           put_data(ch, req, NBD_REPLY_FLAG_DONE, req->offset_bytes, 2048) &&
           put_data(ch, &held, 0, held.offset_bytes + 2048, 2048) &&
           put_chunk(ch, &held, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, NULL, 0);
}

TEST(nbd_hostile, chunks_of_two_reads_may_come_in_turn)
{
    AioContext *main = server_start(NBD_HEADERS_EXTENDED, in_turn);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s", server_path());
    static char buf[2][4096];
    Request req[2];

    server.nb_special = 2;
    for (unsigned i = 0; i < 2; i++) {
        memset(buf[i], 'x', sizeof(buf[i]));
        req[i] = (Request){
            .blk = blk, .kind = REQ_READ, .offset_bytes = i * 4096, .len_bytes = 4096, .buf = buf[i]
        };
        request_start(&req[i], main);
    }
    AIO_WAIT_WHILE(main, !req[0].done || !req[1].done);
    EXPECT_EQ(req[0].ret, 0);
    EXPECT_EQ(req[1].ret, 0);
    EXPECT_EQ(buf[0][0], 0);
    EXPECT_EQ(buf[0][2047], 0);
    EXPECT_EQ(buf[0][2048], 'd');
    EXPECT_EQ(buf[0][4095], 'd');
    EXPECT_EQ(buf[1][0], 'd');
    EXPECT_EQ(buf[1][4095], 'd');
    EXPECT_EQ(server.nb_connections, 1);
    blk_close(blk);
    server_stop(main);
}

static bool twice(Channel *ch, const NbdRequest *req)
{
    assert_in_coroutine();
    return answer(ch, req) && answer(ch, req);
}

TEST(nbd_hostile, a_whole_reply_that_comes_twice_costs_the_connection_and_not_the_request)
{
    for (NbdHeaders h = NBD_HEADERS_SIMPLE; h <= NBD_HEADERS_EXTENDED; h++) {
        AioContext *main = server_start(h, twice);
        BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,reconnect-delay=20", server_path());

        EXPECT_EQ(run(blk, REQ_READ), 0);
        EXPECT_EQ(run(blk, REQ_READ), 0);
        EXPECT_EQ(server.nb_connections, 2);
        blk_close(blk);
        server_stop(main);
    }
}

/* Nothing at first; then, over another connection, to the request of the first one. */
static bool late(Channel *ch, const NbdRequest *req)
{
    assert_in_coroutine();
    if (server.nb_connections == 1) {
        held = *req;
        return false;
    }
    return answer(ch, &held);
}

TEST(nbd_hostile, a_reply_to_a_request_of_an_earlier_connection_closes_the_connection)
{
    for (NbdHeaders h = NBD_HEADERS_SIMPLE; h <= NBD_HEADERS_EXTENDED; h++) {
        AioContext *main = server_start(h, late);
        BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,reconnect-delay=20", server_path());

        server.nb_special = 2;
        EXPECT_EQ(run(blk, REQ_READ), 0);
        EXPECT_EQ(server.nb_connections, 3);
        blk_close(blk);
        server_stop(main);
    }
}

static bool shuts_down(Channel *ch, const NbdRequest *req)
{
    assert_in_coroutine();
    return put_simple(ch, req->cookie, NBD_ESHUTDOWN);
}

TEST(nbd_hostile, a_server_that_shuts_down_is_left_in_order_and_the_request_sent_again)
{
    AioContext *main = server_start(NBD_HEADERS_SIMPLE, shuts_down);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,reconnect-delay=20", server_path());

    EXPECT_EQ(run(blk, REQ_READ), 0);
    EXPECT_EQ(server.nb_connections, 2);
    EXPECT_EQ(server.nb_requests, 3); /* the read, good-bye, the read */
    blk_close(blk);
    server_stop(main);
}

/* The first one gets its answer though the second one is told that it is too late. */
static bool shuts_down_after(Channel *ch, const NbdRequest *req)
{
    assert_in_coroutine();
    if (server.nb_special > 0) {
        held = *req;
        return true;
    }
    return put_simple(ch, req->cookie, NBD_ESHUTDOWN) && answer(ch, &held);
}

TEST(nbd_hostile, a_server_that_shuts_down_still_answers_what_it_had)
{
    AioContext *main = server_start(NBD_HEADERS_SIMPLE, shuts_down_after);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,reconnect-delay=20", server_path());
    Request req[2];
    static char buf[512];

    server.nb_special = 2;
    for (unsigned i = 0; i < 2; i++) {
        req[i] = (Request){ .blk = blk, .kind = REQ_WRITE, .len_bytes = 512, .buf = buf };
        request_start(&req[i], main);
    }
    AIO_WAIT_WHILE(main, !req[0].done || !req[1].done);
    EXPECT_EQ(req[0].ret, 0);
    EXPECT_EQ(req[1].ret, 0);
    /* two writes, good-bye, the second one again */
    EXPECT_EQ(server.nb_requests, 4);
    EXPECT_EQ(server.seen[2].req.type, NBD_CMD_DISC);
    EXPECT_EQ(server.seen[2].connection, 0);
    EXPECT_EQ(server.seen[3].connection, 1);
    blk_close(blk);
    server_stop(main);
}

/* --- handshakes --- */

static main_fn void expect_refused(const char *word)
{
    Error err = { 0 };

    EXPECT_LT(disk_try(test_text("nbd+unix:///?socket=%s", server_path()), &err), 0);
    if (!strstr(err.msg, word)) {
        test_fail(__FILE__, __LINE__, "\"%s\" has no \"%s\" in it", err.msg, word);
    }
}

TEST(nbd_hostile, greetings_that_are_none_are_refused)
{
    static const struct {
        const char *text;
        size_t len_bytes;
        const char *word;
    } cases[] = {
        { "SSH-2.0-OpenSSH_9.2p1\r\n", 23, "no NBD server" },
        { "NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0", 18, "oldstyle" },
        { "NBDMAGICIHAVE", 13, "closed" },
        { "", 0, "closed" },
        { "NBDMAGICIHAVEOPT\0\1", 18, "closed" },
        { "NBDMAGICIHAVEOPT\0\1rubbish instead of a reply", 44, "wrong magic" },
        { "NBDMAGICIHAVEOPT\0\1\0\3\xe8\x89\4\x55\x65\xa9\0\0\0\7\0\0\0\1\0\0\0\0", 38,
          "another option" },
        { "NBDMAGICIHAVEOPT\0\1\0\3\xe8\x89\4\x55\x65\xa9\0\0\0\x0b\0\0\0\1\xff\xff\xff\xff", 38,
          "too long" },
        { "NBDMAGICIHAVEOPT\0\1\0\3\xe8\x89\4\x55\x65\xa9\0\0\0\x0b\0\0\0\2\0\0\0\0", 38,
          "neither" },
        { "NBDMAGICIHAVEOPT\0\1\0\3\xe8\x89\4\x55\x65\xa9\0\0\0\x0b\x80\0\0\5\0\0\0\2ab", 40,
          "TLS is required: ab (nbds://" },
    };
    AioContext *main = server_start(NBD_HEADERS_SIMPLE, NULL);

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        server.greeting = cases[i].text;
        server.greeting_bytes = cases[i].len_bytes;
        expect_refused(cases[i].word);
    }
    server_stop(main);
}

TEST(nbd_hostile, an_answer_to_go_that_claims_4_gigabytes_is_refused)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, NULL);

    server.go_option_bytes = UINT32_MAX;
    expect_refused("too long");
    server_stop(main);
}

TEST(nbd_hostile, a_server_that_will_not_go_on_is_refused_with_its_own_words)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, NULL);

    server.go_error = NBD_REP_ERR_SHUTDOWN;
    expect_refused("shutting down: sorry");
    server.go_error = NBD_REP_ERR_BLOCK_SIZE_REQD;
    expect_refused("sorry");
    server.go_error = NBD_REP_ERROR_BIT + 1000;
    expect_refused("unknown: sorry");
    server_stop(main);
}

/* The greeting, an answer to EXTENDED_HEADERS, and replies of one kind without end. */
static main_fn void expect_bounded(uint32_t option, uint32_t type, const char *word)
{
    static uint8_t text[16384];
    bool context = option == NBD_OPT_SET_META_CONTEXT;
    NbdOptionReply reply = { NBD_OPT_EXTENDED_HEADERS, NBD_REP_ACK, 0 };
    size_t at = NBD_GREETING_BYTES;

    nbd_greeting_encode(text, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    nbd_option_reply_encode(text + at, &reply);
    at += NBD_OPTION_REPLY_BYTES;
    if (!context) {
        reply = (NbdOptionReply){ NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK, 0 };
        nbd_option_reply_encode(text + at, &reply);
        at += NBD_OPTION_REPLY_BYTES;
    }
    reply = (NbdOptionReply){ option, type, 6 };
    while (at + NBD_OPTION_REPLY_BYTES + 6 <= sizeof(text)) {
        nbd_option_reply_encode(text + at, &reply);
        memcpy(text + at + NBD_OPTION_REPLY_BYTES, "\x7f\xff..ab", 6);
        at += NBD_OPTION_REPLY_BYTES + 6;
    }
    server.greeting = (const char *)text;
    server.greeting_bytes = at;
    expect_refused(word);
}

TEST(nbd_hostile, answers_to_one_option_without_end_are_refused)
{
    AioContext *main = server_start(NBD_HEADERS_SIMPLE, NULL);

    expect_bounded(NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT, "not a list of contexts");
    expect_bounded(NBD_OPT_GO, NBD_REP_INFO, "too many answers");
    server_stop(main);
}

/* --- TLS --- */

static main_fn AioContext *tls_server_start(void)
{
    AioContext *main = server_start(NBD_HEADERS_SIMPLE, NULL);
    Error err;

    tls_files_make();
    server.creds = tls_creds_create_psk(TLS_SERVER, tls_files_path("keys.psk"), NULL, &err);
    ASSERT_TRUE(server.creds != NULL);
    return main;
}

static const char *tls_disk(void)
{
    return test_text("nbds+unix://alice@/?socket=%s&tls-psk-file=%s", server_path(),
                     tls_files_path("keys.psk"));
}

/* All that the client will ask for, answered in advance: a disk of somebody else's. */
static size_t injected_handshake(uint8_t *text)
{
    static const uint32_t options[] = { NBD_OPT_EXTENDED_HEADERS, NBD_OPT_STRUCTURED_REPLY };
    NbdExportInfo info = { 512, NBD_FLAG_HAS_FLAGS };
    NbdOptionReply reply;
    size_t at = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(options); i++) {
        reply = (NbdOptionReply){ options[i], NBD_REP_ERR_UNSUP, 0 };
        nbd_option_reply_encode(text + at, &reply);
        at += NBD_OPTION_REPLY_BYTES;
    }
    reply = (NbdOptionReply){ NBD_OPT_GO, NBD_REP_INFO, NBD_INFO_EXPORT_BYTES };
    nbd_option_reply_encode(text + at, &reply);
    at += NBD_OPTION_REPLY_BYTES;
    nbd_info_export_encode(text + at, &info);
    at += NBD_INFO_EXPORT_BYTES;
    reply = (NbdOptionReply){ NBD_OPT_GO, NBD_REP_ACK, 0 };
    nbd_option_reply_encode(text + at, &reply);
    return at + NBD_OPTION_REPLY_BYTES;
}

TEST(nbd_hostile, plain_bytes_behind_the_answer_to_starttls_are_not_believed)
{
    AioContext *main = tls_server_start();
    uint8_t text[256];
    Error err = { 0 };
    BlockBackend *blk = disk_open("%s", tls_disk());

    /* as it should be: nothing but TLS follows the option, the server would choke on it */
    EXPECT_EQ(blk_length(blk), SERVER_LENGTH_BYTES);
    EXPECT_EQ(run(blk, REQ_READ), 0);
    blk_close(blk);
    server.injected = (const char *)text;
    for (server.injected_bytes = injected_handshake(text); server.injected_bytes > 0;
         server.injected_bytes /= 2) {
        server.nb_options = 0;
        EXPECT_LT(disk_try(tls_disk(), &err), 0);
        EXPECT_TRUE(strstr(err.msg, "TLS handshake") != NULL);
        EXPECT_EQ(server.nb_options, 1);
    }
    server_stop(main);
    tls_files_remove();
}

/* Somebody in between answers STARTTLS with what would do for something else. */
TEST(nbd_hostile, starttls_that_is_not_acknowledged_ends_it)
{
    static const struct {
        uint32_t option, type, len_bytes;
        const char *word;
    } cases[] = {
        { NBD_OPT_STARTTLS, NBD_REP_ERR_UNSUP, 0, "unsupported" },
        { NBD_OPT_STARTTLS, NBD_REP_ERR_TLS_REQD, 0, "TLS is required" },
        { NBD_OPT_STARTTLS, NBD_REP_ACK, 4, "neither" },
        { NBD_OPT_STARTTLS, NBD_REP_INFO, 0, "neither" },
        { NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK, 0, "another option" },
        { NBD_OPT_GO, NBD_REP_ACK, 0, "another option" },
    };
    AioContext *main = tls_server_start();

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        uint8_t text[512] = { 0 };
        NbdOptionReply reply = { cases[i].option, cases[i].type, cases[i].len_bytes };
        Error err = { 0 };

        nbd_greeting_encode(text, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
        nbd_option_reply_encode(text + NBD_GREETING_BYTES, &reply);
        injected_handshake(text + NBD_GREETING_BYTES + NBD_OPTION_REPLY_BYTES + cases[i].len_bytes);
        server.greeting = (const char *)text;
        server.greeting_bytes = sizeof(text);
        EXPECT_LT(disk_try(tls_disk(), &err), 0);
        if (!strstr(err.msg, cases[i].word)) {
            test_fail(__FILE__, __LINE__, "\"%s\" has no \"%s\" in it", err.msg, cases[i].word);
        }
    }
    server_stop(main);
    tls_files_remove();
}

TEST(nbd_hostile, block_sizes_and_lengths_that_make_no_sense_are_refused)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, NULL);

    server.sizes = (NbdBlockSizes){ 3, 4096, 1 << 20 };
    expect_refused("no sense");
    server.sizes = (NbdBlockSizes){ 512, 4096, 1 << 20 };
    server.length_bytes = UINT64_MAX;
    expect_refused("bytes");
    server.length_bytes = 0;
    expect_refused("too few");
    server_stop(main);
}

TEST_MAIN()
