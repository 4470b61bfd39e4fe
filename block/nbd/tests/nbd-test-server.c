/*
 * nbd-test-server.c - see nbd-test-server.h
 */
#include "block/nbd/tests/nbd-test-server.h"

#include "io/channel/channel-tls.h"

TestServer server;

/* --- writing --- */

static co_fn bool put_bytes(Channel *ch, const uint8_t *bytes, size_t len_bytes)
{
    if (!server.dribble) {
        return channel_co_write_full(ch, bytes, len_bytes) == 0;
    }
    for (size_t i = 0; i < len_bytes; i++) {
        if (channel_co_write_full(ch, bytes + i, 1) < 0) {
            return false;
        }
        aio_co_sleep_ns(1);
    }
    return true;
}

co_fn bool put(Channel *ch, const void *buf, size_t len_bytes)
{
    size_t now_bytes = MIN(len_bytes, (size_t)server.cut_bytes);

    if (server.cut_bytes != SERVER_NO_CUT) {
        server.cut_bytes -= now_bytes;
    }
    return put_bytes(ch, buf, now_bytes) && now_bytes == len_bytes;
}

static co_fn bool put_option_reply(Channel *ch, uint32_t option, uint32_t type, const void *data,
                                   uint32_t len_bytes)
{
    uint8_t header[NBD_OPTION_REPLY_BYTES];
    NbdOptionReply reply = { option, type, len_bytes };

    nbd_option_reply_encode(header, &reply);
    return put(ch, header, sizeof(header)) && (!data || put(ch, data, len_bytes));
}

co_fn bool put_chunk(Channel *ch, const NbdRequest *req, uint16_t flags, uint16_t type,
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

co_fn bool put_simple(Channel *ch, uint64_t cookie, uint32_t error)
{
    uint8_t header[NBD_REPLY_BYTES_MAX];
    NbdReply reply = { .simple = true, .cookie = cookie, .error = error };

    return put(ch, header, nbd_reply_encode(header, NBD_HEADERS_SIMPLE, &reply));
}

co_fn bool put_data(Channel *ch, const NbdRequest *req, uint16_t flags, uint64_t offset_bytes,
                    uint32_t len_bytes)
{
    uint8_t *buf = malloc(8 + len_bytes);
    bool ok;

    nbd_put_be64(buf, offset_bytes);
    memset(buf + 8, 'd', len_bytes);
    ok = put_chunk(ch, req, flags, NBD_REPLY_TYPE_OFFSET_DATA, buf, 8 + len_bytes);
    free(buf);
    return ok;
}

co_fn bool put_hole(Channel *ch, const NbdRequest *req, uint16_t flags, uint64_t offset_bytes,
                    uint32_t len_bytes)
{
    uint8_t buf[NBD_OFFSET_HOLE_BYTES];

    nbd_put_be64(buf, offset_bytes);
    nbd_put_be32(buf + 8, len_bytes);
    return put_chunk(ch, req, flags, NBD_REPLY_TYPE_OFFSET_HOLE, buf, sizeof(buf));
}

co_fn bool put_status(Channel *ch, const NbdRequest *req, uint16_t flags, uint32_t context,
                      uint64_t len_bytes)
{
    uint8_t buf[NBD_STATUS_EXT_BYTES + NBD_EXTENT_EXT_BYTES];

    nbd_put_be32(buf, context);
    if (server.headers == NBD_HEADERS_EXTENDED) {
        nbd_put_be32(buf + 4, 1);
        nbd_put_be64(buf + 8, len_bytes);
        nbd_put_be64(buf + 16, NBD_STATE_HOLE | NBD_STATE_ZERO);
        return put_chunk(ch, req, flags, NBD_REPLY_TYPE_BLOCK_STATUS_EXT, buf, 24);
    }
    nbd_put_be32(buf + 4, (uint32_t)len_bytes);
    nbd_put_be32(buf + 8, NBD_STATE_HOLE | NBD_STATE_ZERO);
    return put_chunk(ch, req, flags, NBD_REPLY_TYPE_BLOCK_STATUS, buf, 12);
}

static co_fn bool answer_read(Channel *ch, const NbdRequest *req)
{
    char *buf;
    bool ok;

    if (server.headers != NBD_HEADERS_SIMPLE) {
        return put_data(ch, req, NBD_REPLY_FLAG_DONE, req->offset_bytes, (uint32_t)req->len_bytes);
    }
    buf = malloc(req->len_bytes);
    memset(buf, 'd', req->len_bytes);
    ok = put_simple(ch, req->cookie, 0) && put(ch, buf, req->len_bytes);
    free(buf);
    return ok;
}

co_fn bool answer(Channel *ch, const NbdRequest *req)
{
    switch (req->type) {
    case NBD_CMD_READ:
        return answer_read(ch, req);
    case NBD_CMD_BLOCK_STATUS:
        return put_status(ch, req, NBD_REPLY_FLAG_DONE, 7, req->len_bytes);
    default:
        return server.headers == NBD_HEADERS_EXTENDED
                   ? put_chunk(ch, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, NULL, 0)
                   : put_simple(ch, req->cookie, 0);
    }
}

/* --- the handshake --- */

static co_fn bool answer_go(Channel *ch)
{
    uint8_t info[NBD_INFO_BLOCK_SIZE_BYTES];
    NbdExportInfo export = { server.length_bytes, NBD_FLAG_HAS_FLAGS | server.flags };

    if (server.go_error) {
        return put_option_reply(ch, NBD_OPT_GO, server.go_error, "sorry", 5);
    }
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

static co_fn bool answer_context(Channel *ch)
{
    static const char given[] = "\0\0\0\7base:allocation", other[] = "\0\0\0\7base:allocatiom";
    const uint32_t option = NBD_OPT_SET_META_CONTEXT;

    if (server.context == CONTEXT_REFUSED) {
        return put_option_reply(ch, option, NBD_REP_ERR_UNKNOWN, NULL, 0);
    }
    if (server.context != CONTEXT_LEFT_OUT &&
        !put_option_reply(ch, option, NBD_REP_META_CONTEXT,
                          server.context == CONTEXT_GIVEN ? given : other, sizeof(given) - 1)) {
        return false;
    }
    return put_option_reply(ch, option, NBD_REP_ACK, NULL, 0);
}

static co_fn bool answer_yes_or_no(Channel *ch, uint32_t option, bool yes)
{
    return put_option_reply(ch, option, yes ? NBD_REP_ACK : NBD_REP_ERR_UNSUP, NULL, 0);
}

/* Puts the channel over which it goes on into @ch. */
static co_fn bool start_tls(Channel **ch)
{
    Error err;
    Channel *tls;

    if (!answer_yes_or_no(*ch, NBD_OPT_STARTTLS, true) ||
        !put(*ch, server.injected, server.injected_bytes)) {
        return false;
    }
    tls = channel_tls_co_handshake(*ch, server.creds, NULL, -1, &err);
    if (tls) {
        channel_unref(*ch);
        *ch = tls;
    }
    return tls != NULL;
}

static co_fn bool answer_option(Channel **ch, uint32_t option)
{
    switch (option) {
    case NBD_OPT_STARTTLS:
        return server.creds ? start_tls(ch) : answer_yes_or_no(*ch, option, false);
    case NBD_OPT_EXTENDED_HEADERS:
        return answer_yes_or_no(*ch, option, server.headers == NBD_HEADERS_EXTENDED);
    case NBD_OPT_STRUCTURED_REPLY:
        return answer_yes_or_no(*ch, option, server.headers == NBD_HEADERS_STRUCTURED);
    case NBD_OPT_SET_META_CONTEXT:
        return answer_context(*ch);
    default:
        return answer_go(*ch);
    }
}

static co_fn bool negotiate(Channel **ch)
{
    uint8_t buf[NBD_META_QUERY_BYTES_MAX];
    NbdOptionHeader option = { 0 };

    nbd_greeting_encode(buf, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    if (!put(*ch, buf, NBD_GREETING_BYTES) ||
        channel_co_read_full(*ch, buf, NBD_CLIENT_FLAGS_BYTES) != 1) {
        return false;
    }
    do {
        if (channel_co_read_full(*ch, buf, NBD_OPTION_BYTES) != 1 ||
            nbd_option_decode(buf, &option) < 0 || option.len_bytes > sizeof(buf) ||
            (option.len_bytes && channel_co_read_full(*ch, buf, option.len_bytes) != 1)) {
            return false;
        }
        server.nb_options++;
        if (!answer_option(ch, option.option)) {
            return false;
        }
    } while (option.option != NBD_OPT_GO);
    return true;
}

/* --- requests --- */

static co_fn bool receive(Channel *ch, NbdRequest *req)
{
    static uint8_t buf[SERVER_LENGTH_BYTES];

    if (channel_co_read_full(ch, buf, nbd_request_bytes(server.headers)) != 1) {
        return false;
    }
    ASSERT_EQ(nbd_request_decode(buf, server.headers, req), 0);
    if (req->type != NBD_CMD_WRITE) {
        return true;
    }
    ASSERT_LE(req->len_bytes, sizeof(buf));
    return channel_co_read_full(ch, buf, req->len_bytes) == 1;
}

static co_fn bool answer_as_told(Channel *ch, const NbdRequest *req)
{
    if (server.silent) {
        return true;
    }
    if (server.nb_special > 0) {
        server.nb_special--;
        return server.special(ch, req);
    }
    return answer(ch, req);
}

static co_fn void swallow(Channel *ch)
{
    char byte;

    while (channel_co_read(ch, &byte, 1) > 0) { /* whatever the client says */
    }
}

static co_fn void serve(Channel **ch, unsigned connection)
{
    NbdRequest req;

    if (connection >= server.silent_from) {
        swallow(*ch);
        return;
    }
    if (server.greeting) {
        (void)put(*ch, server.greeting, server.greeting_bytes);
        (void)channel_co_half_close(*ch);
        swallow(*ch);
        return;
    }
    if (!negotiate(ch)) {
        return;
    }
    while (receive(*ch, &req)) {
        if (server.nb_requests < SERVER_SEEN_MAX) {
            server.seen[server.nb_requests] = (ServerSeen){ connection, req };
        }
        server.nb_requests++;
        if (req.type == NBD_CMD_DISC || !answer_as_told(*ch, &req)) {
            return;
        }
    }
}

static void connection_entry(Channel *ch, void *opaque)
{
    assert_in_coroutine();
    server.nb_open++;
    serve(&ch, server.nb_connections++);
    server.nb_open--;
    channel_unref(ch);
}

/* --- set-up --- */

const char *server_path(void)
{
    return test_text("%s/sock", test_dir());
}

main_fn void server_show(void)
{
    ChannelListenerParams params = { .connection = connection_entry };
    SocketAddress addr;
    Error err;

    ASSERT_EQ(socket_address_set_unix(&addr, server_path(), &err), 0);
    server.listener = channel_listener_create(&addr, &params, &err);
    ASSERT_TRUE(server.listener != NULL);
    channel_listener_start(server.listener);
}

main_fn void server_hide(void)
{
    channel_listener_stop(server.listener);
    channel_listener_unref(take_ptr(&server.listener));
}

main_fn AioContext *server_start(NbdHeaders headers, SpecialFn *special)
{
    AioContext *main = main_start();

    server = (TestServer){
        .silent_from = UINT_MAX,
        .headers = headers,
        .flags = NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_TRIM | NBD_FLAG_CAN_MULTI_CONN,
        .length_bytes = SERVER_LENGTH_BYTES,
        .special = special,
        .nb_special = special ? 1 : 0,
        .cut_bytes = SERVER_NO_CUT,
    };
    server_show();
    return main;
}

main_fn void server_stop(AioContext *main)
{
    if (server.listener) {
        server_hide();
    }
    AIO_WAIT_WHILE(main, server.nb_open > 0);
    tls_creds_unref(take_ptr(&server.creds));
    main_finish(main);
}
