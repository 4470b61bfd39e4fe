/*
 * test-nbd-hostile.c - the client against servers that do what the protocol forbids, one thing each
 *
 * The server is a coroutine of the test's own behind a real unix socket. It greets and negotiates
 * as told, then answers the first request it gets with what the test has put together, and all
 * later requests properly. The reaction is always: the connection is closed, that request fails
 * with -EIO or, with reconnect-delay, is sent again; and the next request works.
 */
#include "block/nbd/nbd-proto.h"
#include "block/nbd/tests/nbd-test.h"
#include "io/channel/channel-listener.h"

#define LENGTH_BYTES (1u << 20)

typedef struct Server Server;

/* Answer @req; returns false when the connection is to be closed. */
typedef bool HostileFn(Server *server, Channel *ch, const NbdRequest *req);

struct Server {
    ChannelListener *listener;
    NbdHeaders headers;
    HostileFn *hostile; /* for the first `nb_hostile` requests */
    unsigned nb_hostile;
    const char *greeting; /* instead of all else; NULL = none */
    size_t greeting_bytes;
    bool dribble; /* one byte at a time */
    bool silent;  /* from the first request on nothing is answered */
    unsigned nb_connections, nb_requests;
    uint32_t go_option_bytes; /* GO is answered with this claimed length; 0 = properly */
    NbdBlockSizes sizes;      /* min_bytes 0: not told */
    uint64_t length_bytes;
};

static Server server;

/* --- writing --- */

static co_fn bool put(Channel *ch, const void *buf, size_t len_bytes)
{
    const uint8_t *bytes = buf;

    if (!server.dribble) {
        return channel_co_write_full(ch, buf, len_bytes) == 0;
    }
    for (size_t i = 0; i < len_bytes; i++) {
        if (channel_co_write_full(ch, bytes + i, 1) < 0) {
            return false;
        }
        aio_co_sleep_ns(1);
    }
    return true;
}

static co_fn bool put_option_reply(Channel *ch, uint32_t option, uint32_t type, const void *data,
                                   uint32_t len_bytes)
{
    uint8_t header[NBD_OPTION_REPLY_BYTES];
    NbdOptionReply reply = { option, type, len_bytes };

    nbd_option_reply_encode(header, &reply);
    return put(ch, header, sizeof(header)) && (!data || put(ch, data, len_bytes));
}

static co_fn bool put_chunk(Channel *ch, const NbdRequest *req, uint16_t flags, uint16_t type,
                            const void *payload, uint64_t len_bytes)
{
    uint8_t header[NBD_REPLY_BYTES_MAX];
    NbdReply reply = { .flags = flags,
                       .type = type,
                       .cookie = req->cookie,
                       .offset_bytes = req->offset_bytes,
                       .payload_bytes = len_bytes };
    size_t header_bytes = nbd_reply_encode(header, server.headers, &reply);

    return put(ch, header, header_bytes) && (!payload || put(ch, payload, len_bytes));
}

static co_fn bool put_simple(Channel *ch, uint64_t cookie, uint32_t error)
{
    uint8_t header[NBD_REPLY_BYTES_MAX];
    NbdReply reply = { .simple = true, .cookie = cookie, .error = error };

    return put(ch, header, nbd_reply_encode(header, NBD_HEADERS_SIMPLE, &reply));
}

static co_fn bool put_data(Channel *ch, const NbdRequest *req, uint16_t flags,
                           uint64_t offset_bytes, uint32_t len_bytes)
{
    uint8_t *buf = malloc(8 + len_bytes);
    bool ok;

    nbd_put_be64(buf, offset_bytes);
    memset(buf + 8, 'd', len_bytes);
    ok = put_chunk(ch, req, flags, NBD_REPLY_TYPE_OFFSET_DATA, buf, 8 + len_bytes);
    free(buf);
    return ok;
}

static co_fn bool put_hole(Channel *ch, const NbdRequest *req, uint16_t flags,
                           uint64_t offset_bytes, uint32_t len_bytes)
{
    uint8_t buf[NBD_OFFSET_HOLE_BYTES];

    nbd_put_be64(buf, offset_bytes);
    nbd_put_be32(buf + 8, len_bytes);
    return put_chunk(ch, req, flags, NBD_REPLY_TYPE_OFFSET_HOLE, buf, sizeof(buf));
}

static co_fn bool put_status(Channel *ch, const NbdRequest *req, uint16_t flags, uint32_t context,
                             uint32_t len_bytes)
{
    uint8_t buf[NBD_STATUS_BYTES + NBD_EXTENT_BYTES];

    nbd_put_be32(buf, context);
    nbd_put_be32(buf + 4, len_bytes);
    nbd_put_be32(buf + 8, NBD_STATE_HOLE | NBD_STATE_ZERO);
    return put_chunk(ch, req, flags, NBD_REPLY_TYPE_BLOCK_STATUS, buf, sizeof(buf));
}

/* As it should be. */
static co_fn bool answer(Channel *ch, const NbdRequest *req)
{
    char buf[4096];

    switch (req->type) {
    case NBD_CMD_READ:
        if (server.headers != NBD_HEADERS_SIMPLE) {
            return put_data(ch, req, NBD_REPLY_FLAG_DONE, req->offset_bytes,
                            (uint32_t)req->len_bytes);
        }
        memset(buf, 'd', sizeof(buf));
        return put_simple(ch, req->cookie, 0) && put(ch, buf, req->len_bytes);
    case NBD_CMD_BLOCK_STATUS:
        return put_status(ch, req, NBD_REPLY_FLAG_DONE, 7, (uint32_t)req->len_bytes);
    default:
        return server.headers == NBD_HEADERS_EXTENDED
                   ? put_chunk(ch, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, NULL, 0)
                   : put_simple(ch, req->cookie, 0);
    }
}

/* --- the server --- */

static co_fn bool answer_go(Channel *ch)
{
    uint8_t info[NBD_INFO_BLOCK_SIZE_BYTES];
    NbdExportInfo export = { server.length_bytes, NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH |
                                                      NBD_FLAG_SEND_TRIM |
                                                      NBD_FLAG_CAN_MULTI_CONN };

    if (server.go_option_bytes) {
        return put_option_reply(ch, NBD_OPT_GO, NBD_REP_INFO, NULL, server.go_option_bytes);
    }
    nbd_info_export_encode(info, &export);
    if (!put_option_reply(ch, NBD_OPT_GO, NBD_REP_INFO, info, NBD_INFO_EXPORT_BYTES)) {
        return false;
    }
    if (server.sizes.min_bytes) {
        nbd_info_block_size_encode(info, &server.sizes);
        if (!put_option_reply(ch, NBD_OPT_GO, NBD_REP_INFO, info, sizeof(info))) {
            return false;
        }
    }
    return put_option_reply(ch, NBD_OPT_GO, NBD_REP_ACK, NULL, 0);
}

static co_fn bool answer_option(Channel *ch, uint32_t option)
{
    static const char context[] = "\0\0\0\7base:allocation";

    switch (option) {
    case NBD_OPT_EXTENDED_HEADERS:
        return put_option_reply(
            ch, option, server.headers == NBD_HEADERS_EXTENDED ? NBD_REP_ACK : NBD_REP_ERR_UNSUP,
            NULL, 0);
    case NBD_OPT_STRUCTURED_REPLY:
        return put_option_reply(
            ch, option, server.headers == NBD_HEADERS_STRUCTURED ? NBD_REP_ACK : NBD_REP_ERR_UNSUP,
            NULL, 0);
    case NBD_OPT_SET_META_CONTEXT:
        return put_option_reply(ch, option, NBD_REP_META_CONTEXT, context, sizeof(context) - 1) &&
               put_option_reply(ch, option, NBD_REP_ACK, NULL, 0);
    default:
        return answer_go(ch);
    }
}

static co_fn bool negotiate(Channel *ch)
{
    uint8_t buf[NBD_META_QUERY_BYTES_MAX];
    NbdOptionHeader option = { 0 };

    nbd_greeting_encode(buf, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    if (!put(ch, buf, NBD_GREETING_BYTES) ||
        channel_co_read_full(ch, buf, NBD_CLIENT_FLAGS_BYTES) != 1) {
        return false;
    }
    do {
        if (channel_co_read_full(ch, buf, NBD_OPTION_BYTES) != 1 ||
            nbd_option_decode(buf, &option) < 0 || option.len_bytes > sizeof(buf) ||
            (option.len_bytes && channel_co_read_full(ch, buf, option.len_bytes) != 1) ||
            !answer_option(ch, option.option)) {
            return false;
        }
    } while (option.option != NBD_OPT_GO);
    return true;
}

static co_fn bool receive(Channel *ch, NbdRequest *req)
{
    static uint8_t buf[LENGTH_BYTES];

    if (channel_co_read_full(ch, buf, nbd_request_bytes(server.headers)) != 1) {
        return false;
    }
    ASSERT_EQ(nbd_request_decode(buf, server.headers, req), 0);
    return req->type != NBD_CMD_WRITE || channel_co_read_full(ch, buf, req->len_bytes) == 1;
}

static co_fn void serve(Channel *ch)
{
    NbdRequest req;

    if (server.greeting) {
        char byte;

        (void)put(ch, server.greeting, server.greeting_bytes);
        (void)channel_co_half_close(ch);
        while (channel_co_read(ch, &byte, 1) > 0) { /* whatever the client says */
        }
        return;
    }
    if (!negotiate(ch)) {
        return;
    }
    while (receive(ch, &req)) {
        server.nb_requests++;
        if (req.type == NBD_CMD_DISC) {
            return;
        }
        if (server.silent) {
            continue;
        }
        if (server.nb_hostile > 0) {
            server.nb_hostile--;
            if (!server.hostile(&server, ch, &req)) {
                return;
            }
        } else if (!answer(ch, &req)) {
            return;
        }
    }
}

static void connection_entry(Channel *ch, void *opaque)
{
    assert_in_coroutine();
    server.nb_connections++;
    serve(ch);
    channel_unref(ch);
}

/* --- set-up --- */

static const char *sock(void)
{
    return test_text("%s/sock", test_dir());
}

static main_fn AioContext *server_start(NbdHeaders headers, HostileFn *hostile)
{
    AioContext *main = main_start();
    ChannelListenerParams params = { .connection = connection_entry };
    SocketAddress addr;
    Error err;

    server = (Server){ .headers = headers,
                       .hostile = hostile,
                       .nb_hostile = hostile ? 1 : 0,
                       .length_bytes = LENGTH_BYTES };
    ASSERT_EQ(socket_address_set_unix(&addr, sock(), &err), 0);
    server.listener = channel_listener_create(&addr, &params, &err);
    ASSERT_TRUE(server.listener != NULL);
    channel_listener_start(server.listener);
    return main;
}

static void idle_entry(void *opaque)
{
    assert_in_coroutine();
    EXPECT_EQ(channel_listener_co_wait_idle(server.listener, -1), 0);
}

static main_fn void server_stop(AioContext *main)
{
    channel_listener_stop(server.listener);
    aio_co_run_sync(main, idle_entry, NULL);
    channel_listener_unref(server.listener);
    main_finish(main);
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
static main_fn void expect_closed(NbdHeaders headers, HostileFn *hostile, RequestKind kind)
{
    AioContext *main = server_start(headers, hostile);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s", sock());

    EXPECT_EQ(run(blk, kind), -EIO);
    EXPECT_EQ(server.nb_connections, 1);
    EXPECT_EQ(run(blk, kind), 0);
    EXPECT_EQ(server.nb_connections, 2);
    blk_close(blk);

    server.nb_hostile = 1;
    server.nb_connections = 0;
    blk = disk_open("nbd+unix:///?socket=%s,reconnect-delay=20", sock());
    EXPECT_EQ(run(blk, kind), 0);
    EXPECT_EQ(server.nb_connections, 2);
    blk_close(blk);
    server_stop(main);
}

#define CLOSED(headers_, kind_, sentence, ...)                                                     \
    static bool hostile_##sentence(Server *srv, Channel *ch, const NbdRequest *req)                \
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
CLOSED(STRUCTURED, REQ_READ, a_block_status_for_a_read,
       { return put_status(ch, req, NBD_REPLY_FLAG_DONE, 7, 4096); })

/* --- endings in the middle --- */

static unsigned cut_bytes;

/* The first bytes of a proper reply, then the end. */
static bool cut_short(Server *srv, Channel *ch, const NbdRequest *req)
{
    uint8_t buf[NBD_REPLY_BYTES_MAX + 8 + 16];
    NbdReply reply = { .flags = NBD_REPLY_FLAG_DONE,
                       .type = NBD_REPLY_TYPE_OFFSET_DATA,
                       .cookie = req->cookie,
                       .offset_bytes = req->offset_bytes,
                       .payload_bytes = 8 + req->len_bytes };
    size_t len_bytes = nbd_reply_encode(buf, server.headers, &reply);

    assert_in_coroutine();
    nbd_put_be64(buf + len_bytes, req->offset_bytes);
    memset(buf + len_bytes + 8, 'd', 16);
    (void)put(ch, buf, cut_bytes);
    return false;
}

TEST(nbd_hostile, an_end_in_the_middle_of_any_field_fails_the_request_alone)
{
    for (NbdHeaders h = NBD_HEADERS_STRUCTURED; h <= NBD_HEADERS_EXTENDED; h++) {
        AioContext *main = server_start(h, cut_short);
        BlockBackend *blk = disk_open("nbd+unix:///?socket=%s", sock());

        for (cut_bytes = 0; cut_bytes < 20 + 8 + 16; cut_bytes++) {
            server.nb_hostile = 1;
            EXPECT_EQ(run(blk, REQ_READ), -EIO);
            EXPECT_EQ(run(blk, REQ_READ), 0);
        }
        blk_close(blk);
        server_stop(main);
    }
}

TEST(nbd_hostile, one_byte_at_a_time_is_slow_and_right)
{
    for (NbdHeaders h = NBD_HEADERS_SIMPLE; h <= NBD_HEADERS_EXTENDED; h++) {
        AioContext *main = server_start(h, NULL);
        BlockBackend *blk;

        server.dribble = true;
        blk = disk_open("nbd+unix:///?socket=%s", sock());
        EXPECT_EQ(run(blk, REQ_READ), 0);
        EXPECT_EQ(run(blk, REQ_WRITE), 0);
        EXPECT_EQ(run(blk, REQ_FLUSH), 0);
        EXPECT_EQ(server.nb_connections, 1);
        blk_close(blk);
        server_stop(main);
    }
}

/* --- allowed, and easily got wrong --- */

static bool in_any_order(Server *srv, Channel *ch, const NbdRequest *req)
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
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s", sock());

    EXPECT_EQ(run(blk, REQ_READ), 0);
    EXPECT_EQ(server.nb_connections, 1);
    blk_close(blk);
    server_stop(main);
}

static bool error_after_data(Server *srv, Channel *ch, const NbdRequest *req)
{
    assert_in_coroutine();
    return put_data(ch, req, 0, req->offset_bytes, 4096) &&
           put_chunk(ch, req, 0, NBD_REPLY_TYPE_ERROR, "\0\0\0\x1c\0\2no", 8) &&
           put_chunk(ch, req, NBD_REPLY_FLAG_DONE, 0x8fff, "\0\0\0\5\0\0", 6);
}

TEST(nbd_hostile, an_error_behind_all_the_data_fails_the_read_and_keeps_the_connection)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, error_after_data);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s", sock());

    EXPECT_EQ(run(blk, REQ_READ), -ENOSPC);
    EXPECT_EQ(run(blk, REQ_READ), 0);
    EXPECT_EQ(server.nb_connections, 1);
    blk_close(blk);
    server_stop(main);
}

static bool shuts_down(Server *srv, Channel *ch, const NbdRequest *req)
{
    assert_in_coroutine();
    return put_simple(ch, req->cookie, NBD_ESHUTDOWN);
}

TEST(nbd_hostile, a_server_that_shuts_down_is_left_in_order_and_the_request_sent_again)
{
    AioContext *main = server_start(NBD_HEADERS_SIMPLE, shuts_down);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,reconnect-delay=20", sock());

    EXPECT_EQ(run(blk, REQ_READ), 0);
    EXPECT_EQ(server.nb_connections, 2);
    EXPECT_EQ(server.nb_requests, 3); /* the read, good-bye, the read */
    blk_close(blk);
    server_stop(main);
}

/* --- handshakes --- */

static main_fn void expect_refused(const char *word)
{
    Error err = { 0 };

    EXPECT_LT(disk_try(test_text("nbd+unix:///?socket=%s", sock()), &err), 0);
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

/* --- a server that says nothing --- */

static main_fn void expect_drain_ends(const char *options)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, NULL);
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,drain-timeout=1,%s", sock(), options);
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
    EXPECT_EQ(run(blk, REQ_READ), 0);
    blk_close(blk);
    server_stop(main);
}

TEST(nbd_hostile, a_drained_section_ends_though_the_server_hangs)
{
    expect_drain_ends("reconnect-delay=0");
}

TEST(nbd_hostile, a_drained_section_ends_before_the_time_for_reconnecting)
{
    expect_drain_ends("reconnect-delay=3600");
}

TEST(nbd_hostile, a_drained_section_ends_while_requests_wait_for_a_connection)
{
    AioContext *main = server_start(NBD_HEADERS_STRUCTURED, cut_short);
    BlockBackend *blk =
        disk_open("nbd+unix:///?socket=%s,drain-timeout=1,reconnect-delay=3600", sock());
    char buf[512];
    Request req = { .blk = blk, .kind = REQ_READ, .len_bytes = 512, .buf = buf };

    channel_listener_stop(server.listener);
    request_start(&req, main);
    AIO_WAIT_WHILE(main, server.nb_requests < 1);
    blk_drained_begin(blk);
    EXPECT_TRUE(req.done);
    EXPECT_EQ(req.ret, -EIO);
    blk_drained_end(blk);
    blk_close(blk);
    server_stop(main);
}

TEST_MAIN()
