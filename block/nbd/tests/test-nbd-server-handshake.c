/*
 * test-nbd-server-handshake.c - options, as clients should and should not send them
 */
#include <sched.h>
#include <sys/socket.h>

#include "block/nbd/tests/nbd-test-client.h"
#include "io/channel/channel-tls.h"
#include "io/channel/tests/tls-files.h"

#define FLAGS (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)

static main_fn int greeted(Bench *bench)
{
    int fd = client_connect(bench);

    client_greet(fd, FLAGS);
    return fd;
}

static main_fn void add_export(Bench *bench, const char *name, const char *description)
{
    NbdExportParams params = { .name = name, .description = description, .blk = bench->mem.blk };
    Error err;

    ASSERT_EQ(nbd_server_add_export(bench->server, &params, &err), 0);
}

/* The client's end is closed, and with it the bench. */
static main_fn void leave(Bench *bench, int fd)
{
    close(fd);
    bench_finish(bench);
}

/* --- what there is --- */

TEST(nbd_handshake, list_tells_names_and_descriptions)
{
    Bench bench;
    char buf[REPLY_BYTES_MAX];
    uint32_t len;

    bench_init(&bench, &(BenchConfig){ .no_export = true });
    add_export(&bench, "first", "the first one");
    add_export(&bench, "", NULL);
    int fd = greeted(&bench);

    client_option(fd, NBD_OPT_LIST, NULL, 0);
    ASSERT_EQ(client_option_reply(fd, NBD_OPT_LIST, buf, &len), NBD_REP_SERVER);
    EXPECT_EQ(len, 4u + 5 + 13);
    EXPECT_EQ(nbd_get_be32(buf), 5u);
    EXPECT_STREQ(buf + 4, "firstthe first one");
    ASSERT_EQ(client_option_reply(fd, NBD_OPT_LIST, buf, &len), NBD_REP_SERVER);
    EXPECT_EQ(len, 4u);
    EXPECT_EQ(nbd_get_be32(buf), 0u);
    EXPECT_EQ(client_option_type(fd, NBD_OPT_LIST), NBD_REP_ACK);
    client_option(fd, NBD_OPT_LIST, "x", 1);
    EXPECT_EQ(client_option_type(fd, NBD_OPT_LIST), NBD_REP_ERR_INVALID);
    leave(&bench, fd);
}

/* CVE-2017-2630: a name as long as the protocol allows, in both directions. */
TEST(nbd_handshake, list_and_go_with_the_longest_name)
{
    Bench bench;
    char buf[REPLY_BYTES_MAX], name[NBD_STRING_BYTES + 2];
    uint32_t len;
    Error err;

    bench_init(&bench, &(BenchConfig){ .no_export = true });
    memset(name, 'n', sizeof(name));
    name[NBD_STRING_BYTES + 1] = '\0';
    EXPECT_EQ(nbd_server_add_export(bench.server,
                                    &(NbdExportParams){ .name = name, .blk = bench.mem.blk }, &err),
              -EINVAL);
    name[NBD_STRING_BYTES] = '\0';
    add_export(&bench, name, NULL);
    int fd = greeted(&bench);

    client_option(fd, NBD_OPT_LIST, NULL, 0);
    ASSERT_EQ(client_option_reply(fd, NBD_OPT_LIST, buf, &len), NBD_REP_SERVER);
    EXPECT_EQ(len, 4u + NBD_STRING_BYTES);
    EXPECT_STREQ(buf + 4, name);
    EXPECT_EQ(client_option_type(fd, NBD_OPT_LIST), NBD_REP_ACK);
    EXPECT_EQ(client_go(fd, name).length_bytes, DISK_BYTES);
    leave(&bench, fd);
}

TEST(nbd_handshake, info_tells_what_is_asked_for_and_go_begins)
{
    Bench bench;
    char buf[REPLY_BYTES_MAX];
    uint32_t len;
    NbdBlockSizes sizes;
    NbdExportInfo info;

    bench_init(&bench, &(BenchConfig){ .params = { .memory_bytes = 2 << 20 } });
    int fd = greeted(&bench);

    client_send_go(fd, NBD_OPT_INFO, "disk",
                   1 << NBD_INFO_NAME | 1 << NBD_INFO_DESCRIPTION | 1 << NBD_INFO_BLOCK_SIZE);
    ASSERT_EQ(client_option_reply(fd, NBD_OPT_INFO, buf, &len), NBD_REP_INFO);
    ASSERT_EQ(nbd_info_export_decode((uint8_t *)buf, len, &info), 0);
    EXPECT_EQ(info.length_bytes, DISK_BYTES);
    EXPECT_EQ(info.flags, NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
                              NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
                              NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE |
                              NBD_FLAG_SEND_FAST_ZERO);
    ASSERT_EQ(client_option_reply(fd, NBD_OPT_INFO, buf, &len), NBD_REP_INFO);
    EXPECT_EQ(nbd_get_be16(buf), NBD_INFO_NAME);
    EXPECT_STREQ(buf + 2, "disk");
    ASSERT_EQ(client_option_reply(fd, NBD_OPT_INFO, buf, &len), NBD_REP_INFO);
    EXPECT_EQ(nbd_get_be16(buf), NBD_INFO_DESCRIPTION);
    EXPECT_STREQ(buf + 2, "a disk");
    ASSERT_EQ(client_option_reply(fd, NBD_OPT_INFO, buf, &len), NBD_REP_INFO);
    ASSERT_EQ(nbd_info_block_size_decode((uint8_t *)buf, len, &sizes), 0);
    EXPECT_EQ(sizes.min_bytes, 1u);
    EXPECT_EQ(sizes.preferred_bytes, 4096u);
    EXPECT_EQ(sizes.max_payload_bytes, 2u << 20); /* what the server has memory for */
    EXPECT_EQ(client_option_type(fd, NBD_OPT_INFO), NBD_REP_ACK);
    client_expect_option(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
    info = client_go(fd, "disk");
    EXPECT_TRUE(info.flags & NBD_FLAG_SEND_DF); /* only now */
    leave(&bench, fd);
}

/* A disk likes requests that are longer than there is memory for; what is told instead has to be
 * a power of two all the same. */
TEST(nbd_handshake, block_sizes_are_such_as_clients_take_whatever_memory_there_is)
{
    static const uint64_t memory_bytes[] = { 1 << 20, (1 << 20) + 4096, 33000000, 1 << 26 };

    for (unsigned i = 0; i < ARRAY_SIZE(memory_bytes); i++) {
        Bench bench;
        char buf[REPLY_BYTES_MAX];
        uint32_t len;
        NbdBlockSizes sizes;

        bench_init(&bench, &(BenchConfig){ .params = { .memory_bytes = memory_bytes[i] },
                                           .mem.limits.optimal_io_bytes = 1 << 26 });
        int fd = greeted(&bench);

        client_send_go(fd, NBD_OPT_INFO, "disk", 1 << NBD_INFO_BLOCK_SIZE);
        ASSERT_EQ(client_option_reply(fd, NBD_OPT_INFO, buf, &len), NBD_REP_INFO);
        ASSERT_EQ(client_option_reply(fd, NBD_OPT_INFO, buf, &len), NBD_REP_INFO);
        ASSERT_EQ(nbd_info_block_size_decode((uint8_t *)buf, len, &sizes), 0);
        EXPECT_LE(sizes.preferred_bytes, sizes.max_payload_bytes);
        EXPECT_GT(sizes.preferred_bytes, sizes.max_payload_bytes / 2);
        EXPECT_EQ(client_option_type(fd, NBD_OPT_INFO), NBD_REP_ACK);
        leave(&bench, fd);
    }
}

TEST(nbd_handshake, one_connection_at_most_is_no_multi_conn_and_read_only_is_told)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ .params = { .connections_max = 1 }, .read_only = true });
    int fd = greeted(&bench);

    EXPECT_EQ(client_go(fd, "disk").flags, NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY |
                                               NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
                                               NBD_FLAG_SEND_CACHE);
    leave(&bench, fd);
}

TEST(nbd_handshake, the_empty_name_is_the_only_export_and_none_among_several)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = greeted(&bench);

    EXPECT_EQ(client_go(fd, "").length_bytes, DISK_BYTES);
    close(fd);
    bench_wait_idle(&bench);
    add_export(&bench, "second", NULL);
    fd = greeted(&bench);
    client_send_go(fd, NBD_OPT_GO, "", 0);
    EXPECT_EQ(client_option_type(fd, NBD_OPT_GO), NBD_REP_ERR_UNKNOWN);
    client_send_go(fd, NBD_OPT_GO, "dis", 0);
    EXPECT_EQ(client_option_type(fd, NBD_OPT_GO), NBD_REP_ERR_UNKNOWN);
    EXPECT_EQ(client_go(fd, "second").length_bytes, DISK_BYTES); /* the connection goes on */
    leave(&bench, fd);
}

static main_fn void expect_export_name(Bench *bench, uint32_t flags, size_t zeroes_bytes)
{
    uint8_t buf[NBD_EXPORT_NAME_REPLY_BYTES + NBD_EXPORT_NAME_ZEROES_BYTES];
    NbdExportInfo info;
    int fd = client_connect(bench);

    client_greet(fd, flags);
    client_option(fd, NBD_OPT_EXPORT_NAME, "disk", 4);
    client_receive(fd, buf, NBD_EXPORT_NAME_REPLY_BYTES + zeroes_bytes);
    nbd_export_name_reply_decode(buf, &info);
    EXPECT_EQ(info.length_bytes, DISK_BYTES);
    EXPECT_EQ(client_run(fd, NBD_HEADERS_SIMPLE, NBD_CMD_FLUSH, 0, 0, 0), 0u);
    close(fd);
}

TEST(nbd_handshake, export_name_serves_old_clients)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    expect_export_name(&bench, FLAGS, 0);
    expect_export_name(&bench, NBD_FLAG_FIXED_NEWSTYLE, NBD_EXPORT_NAME_ZEROES_BYTES);
    expect_export_name(&bench, 0, NBD_EXPORT_NAME_ZEROES_BYTES);
    bench_finish(&bench);
    EXPECT_FALSE(test_logged(NULL));
}

TEST(nbd_handshake, abort_is_acknowledged_and_ends)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = greeted(&bench);

    client_expect_option(fd, 1234, NBD_REP_ERR_UNSUP);
    client_expect_option(fd, NBD_OPT_ABORT, NBD_REP_ACK);
    EXPECT_TRUE(client_sees_end(fd));
    leave(&bench, fd);
    EXPECT_FALSE(test_logged(NULL));
}

/* --- headers and metadata --- */

TEST(nbd_handshake, structured_replies_do_not_follow_extended_headers)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = greeted(&bench);

    client_expect_option(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
    client_expect_option(fd, NBD_OPT_EXTENDED_HEADERS, NBD_REP_ACK);
    client_expect_option(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_EXT_HEADER_REQD);
    client_option(fd, NBD_OPT_EXTENDED_HEADERS, "x", 1);
    EXPECT_EQ(client_option_type(fd, NBD_OPT_EXTENDED_HEADERS), NBD_REP_ERR_INVALID);
    client_option(fd, NBD_OPT_EXPORT_NAME, "disk", 4); /* must not be used with them */
    EXPECT_TRUE(client_sees_end(fd));
    leave(&bench, fd);
    EXPECT_TRUE(test_logged("EXPORT_NAME after extended headers"));
}

static void expect_contexts(int fd, uint32_t option, const char *query, bool found)
{
    char buf[REPLY_BYTES_MAX];
    uint32_t len;

    client_send_meta(fd, option, "disk", query);
    if (found) {
        ASSERT_EQ(client_option_reply(fd, option, buf, &len), NBD_REP_META_CONTEXT);
        EXPECT_EQ(nbd_get_be32(buf), option == NBD_OPT_SET_META_CONTEXT ? 1u : 0u);
        EXPECT_STREQ(buf + 4, "base:allocation");
    }
    ASSERT_EQ(client_option_type(fd, option), NBD_REP_ACK);
}

TEST(nbd_handshake, metadata_contexts_are_listed_and_set)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = greeted(&bench);

    client_send_meta(fd, NBD_OPT_LIST_META_CONTEXT, "disk", NULL);
    EXPECT_EQ(client_option_type(fd, NBD_OPT_LIST_META_CONTEXT), NBD_REP_ERR_INVALID);
    client_expect_option(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
    expect_contexts(fd, NBD_OPT_LIST_META_CONTEXT, NULL, true);
    expect_contexts(fd, NBD_OPT_LIST_META_CONTEXT, "base:", true);
    expect_contexts(fd, NBD_OPT_LIST_META_CONTEXT, "other:", false);
    expect_contexts(fd, NBD_OPT_SET_META_CONTEXT, "base:", false);
    expect_contexts(fd, NBD_OPT_SET_META_CONTEXT, NULL, false);
    expect_contexts(fd, NBD_OPT_SET_META_CONTEXT, "base:allocation", true);
    client_send_meta(fd, NBD_OPT_SET_META_CONTEXT, "nothing", "base:allocation");
    EXPECT_EQ(client_option_type(fd, NBD_OPT_SET_META_CONTEXT), NBD_REP_ERR_UNKNOWN);
    (void)client_go(fd, "disk");
    /* The one that failed took away the one before. */
    EXPECT_EQ(client_run(fd, NBD_HEADERS_STRUCTURED, NBD_CMD_BLOCK_STATUS, 0, 0, 512), NBD_EINVAL);
    leave(&bench, fd);
}

TEST(nbd_handshake, a_context_of_another_export_is_not_in_force)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    add_export(&bench, "second", NULL);
    int fd = greeted(&bench);

    client_expect_option(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
    expect_contexts(fd, NBD_OPT_SET_META_CONTEXT, "base:allocation", true);
    (void)client_go(fd, "second");
    EXPECT_EQ(client_run(fd, NBD_HEADERS_STRUCTURED, NBD_CMD_BLOCK_STATUS, 0, 0, 512), NBD_EINVAL);
    leave(&bench, fd);
}

/* --- what no client should send --- */

TEST(nbd_handshake, malformed_data_is_an_error_and_the_connection_goes_on)
{
    static const struct {
        uint32_t option;
        const char *data;
        size_t len_bytes;
    } cases[] = {
        { NBD_OPT_GO, "", 0 },
        { NBD_OPT_GO, "\0\0\0\4dis", 7 },
        { NBD_OPT_GO, "\0\0\0\4disk", 8 },              /* no number of infos */
        { NBD_OPT_GO, "\0\0\0\4disk\0\2\0\1", 12 },     /* one of two */
        { NBD_OPT_GO, "\377\377\377\377disk\0\0", 10 }, /* a length that wraps */
        { NBD_OPT_INFO, "\177\377\377\377disk\0\0", 10 },
        { NBD_OPT_LIST_META_CONTEXT, "\0\0\0\4disk", 8 },
        { NBD_OPT_SET_META_CONTEXT, "\0\0\0\4disk\377\377\377\377", 12 },
        { NBD_OPT_SET_META_CONTEXT, "\0\0\0\4disk\0\0\0\1\377\377\377\377", 16 },
        { NBD_OPT_SET_META_CONTEXT, "\0\0\0\4disk\0\0\0\0x", 13 }, /* something behind it */
    };
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = greeted(&bench);

    client_expect_option(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        client_option(fd, cases[i].option, cases[i].data, cases[i].len_bytes);
        EXPECT_EQ(client_option_type(fd, cases[i].option), NBD_REP_ERR_INVALID);
    }
    EXPECT_EQ(client_go(fd, "disk").length_bytes, DISK_BYTES);
    leave(&bench, fd);
}

/* CVE-2017-15119: the announced size neither is allocated nor waited for. */
TEST(nbd_handshake, an_option_of_four_gigabytes_ends_the_connection)
{
    uint8_t head[NBD_OPTION_BYTES];
    NbdOptionHeader header = { 4242, UINT32_MAX };
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = greeted(&bench);

    nbd_option_encode(head, &header);
    client_send(fd, head, sizeof(head));
    EXPECT_TRUE(client_sees_end(fd));
    leave(&bench, fd);
    EXPECT_TRUE(test_logged("4294967295 bytes of data"));
}

static main_fn void expect_end(Bench *bench, const void *data, size_t len_bytes, const char *text)
{
    int fd = client_connect(bench);

    client_send(fd, data, len_bytes);
    EXPECT_TRUE(client_sees_end(fd));
    EXPECT_TRUE(test_logged(text));
    close(fd);
}

TEST(nbd_handshake, what_is_no_nbd_ends_the_connection)
{
    static const uint8_t old_client[] = "\0\0\0\0IHAVEOPT\0\0\0\3\0\0\0\0";
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    expect_end(&bench, "GET / HTTP/1.1\r\n", 16, "unknown flags 0x47455420");
    expect_end(&bench, "\0\0\0\3IHAVEOPQ\0\0\0\3\0\0\0\0", 20, "no option");
    expect_end(&bench, old_client, 20, "knows no errors"); /* LIST without fixed newstyle */
    expect_end(&bench, "\0\0\0\3IHAVEOPT\0\0\0\1\0\0\0\1x", 21, "does not exist");
    bench_finish(&bench);
}

TEST(nbd_handshake, options_without_end_end_the_connection)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = greeted(&bench);

    for (unsigned i = 0; i < 256; i++) {
        client_expect_option(fd, 99, NBD_REP_ERR_UNSUP);
    }
    EXPECT_TRUE(client_sees_end(fd));
    leave(&bench, fd);
    EXPECT_TRUE(test_logged("256 options"));
}

TEST(nbd_handshake, silence_ends_the_connection_and_only_before_the_choice)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ .params = { .handshake_ns = 200000000 } });
    int served = client_open(&bench, NBD_HEADERS_SIMPLE);
    int silent = client_connect(&bench);
    int half = greeted(&bench);

    client_send(half, "IHAVEO", 6);
    EXPECT_TRUE(client_sees_end(silent));
    EXPECT_TRUE(client_sees_end(half));
    EXPECT_TRUE(test_logged("takes too long"));
    EXPECT_EQ(client_run(served, NBD_HEADERS_SIMPLE, NBD_CMD_FLUSH, 0, 0, 0), 0u);
    close(silent);
    close(half);
    leave(&bench, served);
}

/* A whole session, for the two that follow. */
static size_t session_bytes(uint8_t *buf)
{
    static const char head[] =
        "\0\0\0\3"
        "IHAVEOPT\0\0\0\10\0\0\0\0"
        "IHAVEOPT\0\0\0\12\0\0\0\37\0\0\0\4disk\0\0\0\1\0\0\0\17base:allocation"
        "IHAVEOPT\0\0\0\7\0\0\0\12\0\0\0\4disk\0\0";
    size_t len_bytes = sizeof(head) - 1;
    NbdRequest req = { .type = NBD_CMD_WRITE, .cookie = 1, .len_bytes = 600 };

    memcpy(buf, head, len_bytes);
    len_bytes += nbd_request_encode(buf + len_bytes, NBD_HEADERS_STRUCTURED, &req);
    memset(buf + len_bytes, 'w', 600);
    len_bytes += 600;
    req.type = NBD_CMD_READ;
    len_bytes += nbd_request_encode(buf + len_bytes, NBD_HEADERS_STRUCTURED, &req);
    req.type = NBD_CMD_DISC;
    len_bytes += nbd_request_encode(buf + len_bytes, NBD_HEADERS_STRUCTURED, &req);
    return len_bytes;
}

TEST(nbd_handshake, a_client_that_leaves_in_the_middle_of_each_field_is_forgotten)
{
    uint8_t session[2048];
    size_t len_bytes = session_bytes(session);
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    for (size_t cut = 0; cut <= len_bytes; cut++) {
        int fd = client_connect(&bench);

        client_send(fd, session, cut);
        ASSERT_EQ(shutdown(fd, SHUT_WR), 0);
        ASSERT_TRUE(client_sees_end(fd));
        close(fd);
    }
    bench_wait_idle(&bench);
    EXPECT_EQ(bench.mem.data[0], 'w');
    bench_finish(&bench);
    EXPECT_FALSE(test_logged(NULL)); /* leaving is nobody's fault */
}

TEST(nbd_handshake, a_session_byte_by_byte_is_served)
{
    uint8_t session[2048], answer[4096];
    size_t len_bytes = session_bytes(session);
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = client_connect(&bench);

    for (size_t i = 0; i < len_bytes; i++) {
        client_send(fd, session + i, 1);
        sched_yield();
    }
    size_t answer_bytes = 0;
    ssize_t ret;

    while ((ret = recv(fd, answer + answer_bytes, sizeof(answer) - answer_bytes, 0)) > 0) {
        answer_bytes += (size_t)ret;
    }
    ASSERT_TRUE(answer_bytes > 600);
    EXPECT_EQ(answer[answer_bytes - 1], 'w');
    EXPECT_EQ(answer[answer_bytes - 600], 'w');
    leave(&bench, fd);
}

/* --- connections --- */

/* CVE-2017-9524, CVE-2017-7539: clients that vanish before, in and after the greeting. */
TEST(nbd_handshake, clients_that_vanish_at_once_do_not_disturb_the_others)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ .nb_iothreads = 2 });
    int served = client_open(&bench, NBD_HEADERS_SIMPLE);

    for (unsigned i = 0; i < 300; i++) {
        int fd = client_connect(&bench);

        if (i % 3 == 1) {
            client_greet(fd, FLAGS);
        } else if (i % 3 == 2) {
            ASSERT_EQ(setsockopt(fd, SOL_SOCKET, SO_LINGER,
                                 &(struct linger){ .l_onoff = 1, .l_linger = 0 },
                                 sizeof(struct linger)),
                      0);
        }
        close(fd);
    }
    EXPECT_EQ(client_run(served, NBD_HEADERS_SIMPLE, NBD_CMD_FLUSH, 0, 0, 0), 0u);
    leave(&bench, served);
}

TEST(nbd_handshake, a_connection_too_many_is_turned_away)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ .params = { .connections_max = 2 } });
    int first = client_open(&bench, NBD_HEADERS_SIMPLE);
    int second = client_connect(&bench);
    int third = client_connect(&bench);

    EXPECT_TRUE(client_sees_end(third));
    EXPECT_TRUE(test_logged("turned away"));
    close(second);
    bench_wait_connections(&bench, 1);
    close(third);
    third = client_open(&bench, NBD_HEADERS_SIMPLE); /* there is a place again */
    EXPECT_EQ(client_run(first, NBD_HEADERS_SIMPLE, NBD_CMD_FLUSH, 0, 0, 0), 0u);
    close(first);
    leave(&bench, third);
}

/* --- TLS --- */

static main_fn TlsCreds *init_with_tls(Bench *bench, bool required)
{
    Error err;

    (void)tls_files_make();
    TlsCreds *creds = tls_creds_create_psk(TLS_SERVER, tls_files_path("keys.psk"), NULL, &err);

    ASSERT_TRUE(creds != NULL);
    bench_init(bench, &(BenchConfig){ .params = { .tls = creds, .tls_required = required } });
    return creds;
}

static main_fn void finish_with_tls(Bench *bench, TlsCreds *creds, int fd)
{
    leave(bench, fd);
    tls_creds_unref(creds);
    tls_files_remove();
}

TEST(nbd_handshake, without_tls_nothing_is_told_where_it_is_required)
{
    Bench bench;
    TlsCreds *creds = init_with_tls(&bench, true);
    int fd = greeted(&bench);

    client_expect_option(fd, NBD_OPT_LIST, NBD_REP_ERR_TLS_REQD);
    client_expect_option(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_TLS_REQD);
    client_expect_option(fd, 1234, NBD_REP_ERR_TLS_REQD);
    client_send_go(fd, NBD_OPT_GO, "disk", 0);
    EXPECT_EQ(client_option_type(fd, NBD_OPT_GO), NBD_REP_ERR_TLS_REQD);
    client_send_go(fd, NBD_OPT_INFO, "nothing", 0);
    EXPECT_EQ(client_option_type(fd, NBD_OPT_INFO), NBD_REP_ERR_TLS_REQD);
    client_option(fd, NBD_OPT_EXPORT_NAME, "disk", 4);
    EXPECT_TRUE(client_sees_end(fd));
    EXPECT_TRUE(test_logged("without TLS"));
    finish_with_tls(&bench, creds, fd);
}

TEST(nbd_handshake, optional_tls_can_be_left_and_starttls_takes_no_data)
{
    Bench bench;
    TlsCreds *creds = init_with_tls(&bench, false);
    int fd = greeted(&bench);

    client_option(fd, NBD_OPT_STARTTLS, "x", 1);
    EXPECT_EQ(client_option_type(fd, NBD_OPT_STARTTLS), NBD_REP_ERR_INVALID);
    EXPECT_EQ(client_go(fd, "disk").length_bytes, DISK_BYTES);
    finish_with_tls(&bench, creds, fd);
}

TEST(nbd_handshake, a_server_without_tls_refuses_it_and_goes_on)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = greeted(&bench);

    client_expect_option(fd, NBD_OPT_STARTTLS, NBD_REP_ERR_POLICY);
    EXPECT_EQ(client_go(fd, "disk").length_bytes, DISK_BYTES);
    leave(&bench, fd);
}

/* CVE-2021-3716: an option in the clear behind STARTTLS is not taken for one of the TLS session. */
TEST(nbd_handshake, options_injected_behind_starttls_end_the_connection)
{
    static const char both[] = "IHAVEOPT\0\0\0\5\0\0\0\0"
                               "IHAVEOPT\0\0\0\10\0\0\0\0";
    uint8_t head[NBD_OPTION_REPLY_BYTES];
    NbdOptionReply reply;
    Bench bench;
    TlsCreds *creds = init_with_tls(&bench, false);
    int fd = greeted(&bench);

    client_send(fd, both, sizeof(both) - 1);
    client_receive(fd, head, sizeof(head));
    ASSERT_EQ(nbd_option_reply_decode(head, &reply), 0);
    EXPECT_EQ(reply.option, NBD_OPT_STARTTLS);
    EXPECT_EQ(reply.type, NBD_REP_ACK);
    EXPECT_TRUE(client_sees_end(fd));
    EXPECT_TRUE(test_logged("TLS: "));
    finish_with_tls(&bench, creds, fd);
}

typedef struct TlsClient {
    Channel *lower;
    TlsCreds *creds;
    uint32_t type; /* of the answer to LIST_META_CONTEXT after STARTTLS */
    _Atomic bool done;
} TlsClient;

/* Structured replies first, then TLS, then an option that needs them. */
static co_fn void tls_client_entry(void *opaque)
{
    TlsClient *client = opaque;
    uint8_t buf[NBD_OPTION_REPLY_BYTES];
    NbdOptionReply reply;
    Error err;
    Channel *ch = channel_tls_co_handshake(client->lower, client->creds, NULL, -1, &err);

    ASSERT_TRUE(ch != NULL);
    ASSERT_EQ(channel_co_write_full(ch, "IHAVEOPT\0\0\0\11\0\0\0\14\0\0\0\4disk\0\0\0\0", 28), 0);
    ASSERT_EQ(channel_co_read_full(ch, buf, sizeof(buf)), 1);
    ASSERT_EQ(nbd_option_reply_decode(buf, &reply), 0);
    client->type = reply.type;
    channel_unref(ch);
    channel_unref(client->lower);
    client->done = true;
}

TEST(nbd_handshake, tls_forgets_what_was_agreed_on_before)
{
    Bench bench;
    Error err;
    TlsCreds *creds = init_with_tls(&bench, false);
    TlsClient client = { 0 };
    int fd = greeted(&bench);

    client_expect_option(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
    client_expect_option(fd, NBD_OPT_STARTTLS, NBD_REP_ACK);
    client.creds = tls_creds_create_psk(TLS_CLIENT, tls_files_path("keys.psk"), "alice", &err);
    ASSERT_TRUE(client.creds != NULL);
    client.lower = channel_socket_adopt(dup(fd), &err);
    ASSERT_TRUE(client.lower != NULL);
    aio_co_run_sync(bench.main, tls_client_entry, &client);
    EXPECT_TRUE(client.done);
    EXPECT_EQ(client.type, NBD_REP_ERR_INVALID);
    tls_creds_unref(client.creds);
    finish_with_tls(&bench, creds, fd);
}

TEST_MAIN()
