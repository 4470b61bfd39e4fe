/*
 * test-channel-tls.c - credentials, handshakes that succeed and fail, what peers may do afterwards
 */
#include <fcntl.h>
#include <gnutls/gnutls.h>
#include <pthread.h>
#include <sys/stat.h>

#include "io/channel/psk-file.h"
#include "io/channel/tests/channel-test.h"
#include "io/channel/tests/tls-files.h"

/* --- helpers --- */

static TlsCreds *x509(TlsRole role, const char *dir, bool verify_peer)
{
    Error err = { 0 };
    TlsCreds *creds = tls_creds_create_x509(role, dir, verify_peer, &err);

    if (!creds) {
        test_fail_abort(__FILE__, __LINE__, "%s", err.msg);
    }
    return creds;
}

static TlsCreds *psk(TlsRole role, const char *username)
{
    Error err = { 0 };
    TlsCreds *creds = tls_creds_create_psk(role, tls_files_path("keys.psk"), username, &err);

    if (!creds) {
        test_fail_abort(__FILE__, __LINE__, "%s", err.msg);
    }
    return creds;
}

typedef struct Pair {
    AioContext *ctx;
    TlsEnd client, server;
} Pair;

/* Takes the credentials over. */
static Pair shake(AioContext *ctx, TlsCreds *client, TlsCreds *server, const char *hostname)
{
    Channel *lower[2];

    pair_unix(lower);
    Pair pair = {
        .ctx = ctx,
        .client = { .lower = lower[0],
                    .creds = client,
                    .hostname = hostname,
                    .deadline_ns = -1 },
        .server = { .lower = lower[1], .creds = server, .deadline_ns = -1 },
    };

    tls_handshake(ctx, &pair.client, &pair.server);
    return pair;
}

static void end_drop(TlsEnd *end)
{
    channel_unref(end->ch);
    channel_unref(end->lower);
    tls_creds_unref(end->creds);
}

static void pair_drop(Pair *pair)
{
    end_drop(&pair->client);
    end_drop(&pair->server);
}

static void expect_connected(Pair *pair)
{
    char out[6] = "hello", in[6] = "";

    if (!pair->client.ch || !pair->server.ch) {
        test_fail_abort(__FILE__, __LINE__, "'%s' and '%s'", pair->client.err.msg,
                        pair->server.err.msg);
    }
    Op write = { .ch = pair->client.ch, .buf = out, .len_bytes = 6 };
    Op read = { .ch = pair->server.ch, .buf = in, .len_bytes = 6 };

    op_write_full(&write);
    op_read_full(&read);
    AIO_WAIT_WHILE(pair->ctx, !write.done || !read.done);
    EXPECT_EQ(write.ret, 0);
    EXPECT_EQ(read.ret, 1);
    EXPECT_STREQ(in, "hello");
}

static void expect_text(const Error *err, const char *text)
{
    if (!strstr(err->msg, text)) {
        test_fail(__FILE__, __LINE__, "'%s' is not in '%s'", text, err->msg);
    }
}

/* --- handshakes --- */

TEST(channel_tls, certificates_are_checked_against_the_name_that_was_asked_for)
{
    static const char *const names[] = { "localhost", "server.test", "127.0.0.1", NULL };
    AioContext *ctx = test_context(NULL);
    const char *dir = tls_files_make();

    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        Pair pair = shake(ctx, x509(TLS_CLIENT, dir, true), x509(TLS_SERVER, dir, true), names[i]);

        expect_connected(&pair);
        EXPECT_STREQ(channel_name(pair.client.ch), "tls over unix:");
        pair_drop(&pair);
    }
    Pair other = shake(ctx, x509(TLS_CLIENT, dir, true), x509(TLS_SERVER, dir, false),
                       "other.test");

    EXPECT_FALSE(other.client.ch);
    EXPECT_EQ(other.client.err.code, -EACCES);
    expect_text(&other.client.err, "name in the certificate does not match");
    pair_drop(&other);

    Pair careless = shake(ctx, x509(TLS_CLIENT, dir, false), x509(TLS_SERVER, dir, false),
                          "other.test");

    expect_connected(&careless);
    pair_drop(&careless);
    tls_files_remove();
    aio_context_destroy(ctx);
}

TEST(channel_tls, server_that_verifies_refuses_a_client_without_certificate)
{
    AioContext *ctx = test_context(NULL);
    const char *dir = tls_files_make();
    char in[4];

    unlink(tls_files_path("client-cert.pem"));
    Pair pair = shake(ctx, x509(TLS_CLIENT, dir, true), x509(TLS_SERVER, dir, true), "localhost");

    EXPECT_FALSE(pair.server.ch);
    EXPECT_EQ(pair.server.err.code, -EACCES);
    expect_text(&pair.server.err, "TLS handshake with 'unix:'");
    /* In TLS 1.3 the client was through before the server looked: it learns when it reads. */
    if (pair.client.ch) {
        Op read = { .ch = pair.client.ch, .buf = in, .len_bytes = 4 };

        op_read(&read);
        AIO_WAIT_WHILE(ctx, !read.done);
        EXPECT_EQ(read.ret, -EACCES);
        op_read(&read);
        EXPECT_EQ(read.ret, -EACCES);
    }
    pair_drop(&pair);
    tls_files_remove();
    aio_context_destroy(ctx);
}

TEST(channel_tls, server_of_an_unknown_authority_is_refused)
{
    AioContext *ctx = test_context(NULL);
    const char *dir = tls_files_make();
    TlsCreds *server = x509(TLS_SERVER, dir, false);

    /* The client trusts somebody else. */
    rename(tls_files_path("client-cert.pem"), tls_files_path("ca-cert.pem"));
    Pair pair = shake(ctx, x509(TLS_CLIENT, dir, true), server, "localhost");

    EXPECT_FALSE(pair.client.ch);
    EXPECT_EQ(pair.client.err.code, -EACCES);
    expect_text(&pair.client.err, "issuer is unknown");
    EXPECT_FALSE(pair.server.ch);
    EXPECT_EQ(pair.server.err.code, -EACCES); /* by our alert */
    expect_text(&pair.server.err, "the peer says");
    pair_drop(&pair);
    tls_files_remove();
    aio_context_destroy(ctx);
}

TEST(channel_tls, pre_shared_key_of_a_user_is_enough)
{
    AioContext *ctx = test_context(NULL);

    tls_files_make();
    Pair alice = shake(ctx, psk(TLS_CLIENT, "alice"), psk(TLS_SERVER, NULL), NULL);
    Pair bob = shake(ctx, psk(TLS_CLIENT, "bob"), psk(TLS_SERVER, NULL), NULL);

    expect_connected(&alice);
    expect_connected(&bob);
    pair_drop(&alice);
    pair_drop(&bob);
    tls_files_remove();
    aio_context_destroy(ctx);
}

TEST(channel_tls, wrong_key_and_unknown_user_are_refused)
{
    AioContext *ctx = test_context(NULL);

    tls_files_make();
    TlsCreds *server = psk(TLS_SERVER, NULL);

    tls_files_write("keys.psk", "alice:01\nmallory:02\n");
    Pair wrong = shake(ctx, psk(TLS_CLIENT, "alice"), tls_creds_ref(server), NULL);
    Pair unknown = shake(ctx, psk(TLS_CLIENT, "mallory"), server, NULL);

    EXPECT_FALSE(wrong.server.ch);
    EXPECT_FALSE(wrong.client.ch);
    EXPECT_FALSE(unknown.server.ch);
    EXPECT_FALSE(unknown.client.ch);
    EXPECT_EQ(wrong.server.err.code, -EACCES);
    EXPECT_EQ(unknown.server.err.code, -EACCES);
    EXPECT_EQ(wrong.client.err.code, -EACCES);
    /* who tries does not learn which users there are */
    EXPECT_STREQ(wrong.client.err.msg, unknown.client.err.msg);
    pair_drop(&wrong);
    pair_drop(&unknown);
    tls_files_remove();
    aio_context_destroy(ctx);
}

TEST(channel_tls, certificates_and_keys_have_nothing_in_common)
{
    AioContext *ctx = test_context(NULL);
    const char *dir = tls_files_make();
    Pair pair = shake(ctx, psk(TLS_CLIENT, "alice"), x509(TLS_SERVER, dir, false), NULL);

    EXPECT_FALSE(pair.client.ch);
    EXPECT_FALSE(pair.server.ch);
    EXPECT_EQ(pair.client.err.code, -EPROTO);
    EXPECT_EQ(pair.server.err.code, -EPROTO);
    pair_drop(&pair);
    tls_files_remove();
    aio_context_destroy(ctx);
}

TEST(channel_tls, handshake_of_single_bytes_succeeds)
{
    AioContext *ctx = test_context(NULL);
    const char *dir = tls_files_make();
    Channel *lower[2];

    ASSERT_EQ(channel_buffer_pair(4096, 1, lower, NULL), 0);
    Pair pair = {
        .ctx = ctx,
        .client = { .lower = lower[0],
                    .creds = x509(TLS_CLIENT, dir, true),
                    .hostname = "localhost",
                    .deadline_ns = -1 },
        .server = { .lower = lower[1], .creds = x509(TLS_SERVER, dir, true), .deadline_ns = -1 },
    };

    tls_handshake(ctx, &pair.client, &pair.server);
    expect_connected(&pair);
    pair_drop(&pair);
    tls_files_remove();
    aio_context_destroy(ctx);
}

/* A server end whose peer is a plain socket of the test. */
static TlsEnd raw_server(int *ret_peer, int64_t deadline_ns)
{
    int fds[2];

    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    *ret_peer = fds[1];
    return (TlsEnd){
        .lower = channel_socket_adopt(fds[0], NULL),
        .creds = psk(TLS_SERVER, NULL),
        .deadline_ns = deadline_ns,
    };
}

TEST(channel_tls, peer_that_speaks_no_tls_is_refused)
{
    static const char *const hellos[] = { "NBDMAGICIHAVEOPT", "GET / HTTP/1.0\r\n\r\n",
                                          "\x16\x03\x01\xff\xff" };
    AioContext *ctx = test_context(NULL);

    tls_files_make();
    for (unsigned i = 0; i < ARRAY_SIZE(hellos); i++) {
        int peer;
        TlsEnd server = raw_server(&peer, -1);
        size_t len = strlen(hellos[i]);

        tls_end_start(&server);
        ASSERT_EQ(write(peer, hellos[i], len), len);
        shutdown(peer, SHUT_WR);
        AIO_WAIT_WHILE(ctx, !server.done);
        EXPECT_FALSE(server.ch);
        EXPECT_EQ(server.err.code, -EPROTO);
        close(peer);
        end_drop(&server);
    }
    tls_files_remove();
    aio_context_destroy(ctx);
}

TEST(channel_tls, handshake_has_a_deadline_and_a_bound)
{
    AioContext *ctx = test_context(NULL);
    /* a long message of the client, a byte a record */
    char record[6] = "\x16\x03\x01\x00\x01";
    static const char message[] = "\x01\x01\x00\x00";
    size_t sent = 0;
    int peer;

    tls_files_make();
    TlsEnd silent = raw_server(&peer, aio_now_ns() + 5000000);

    tls_end_start(&silent);
    ASSERT_EQ(write(peer, "\x16\x03", 2), 2);
    AIO_WAIT_WHILE(ctx, !silent.done);
    EXPECT_EQ(silent.err.code, -ETIMEDOUT);
    end_drop(&silent);
    close(peer);

    TlsEnd noisy = raw_server(&peer, -1);

    tls_end_start(&noisy);
    while (!noisy.done) {
        record[5] = sent < sizeof(message) ? message[sent] : 0;
        sent += send(peer, record, sizeof(record), MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(record);
        aio_poll(ctx, false);
    }
    EXPECT_EQ(noisy.err.code, -EPROTO);
    expect_text(&noisy.err, "no end");
    end_drop(&noisy);
    close(peer);
    tls_files_remove();
    aio_context_destroy(ctx);
}

TEST(channel_tls, handshake_ends_when_the_lower_channel_is_shut_down_or_cut_off)
{
    AioContext *ctx = test_context(NULL);
    int peer;

    tls_files_make();
    TlsEnd server = raw_server(&peer, -1);

    tls_end_start(&server);
    test_settle(ctx);
    channel_shutdown(server.lower, CHANNEL_READ | CHANNEL_WRITE);
    AIO_WAIT_WHILE(ctx, !server.done);
    EXPECT_EQ(server.err.code, -ESHUTDOWN);
    end_drop(&server);
    close(peer);

    server = raw_server(&peer, -1);
    tls_end_start(&server);
    close(peer);
    AIO_WAIT_WHILE(ctx, !server.done);
    EXPECT_EQ(server.err.code, -ECONNABORTED);
    end_drop(&server);
    tls_files_remove();
    aio_context_destroy(ctx);
}

/* --- afterwards: a peer that uses the library by itself, in a thread that blocks --- */

typedef struct RawPeer {
    int fd;
    const char *priority;
    gnutls_session_t session;
    gnutls_psk_client_credentials_t creds;
    pthread_t thread;
    void (*script)(struct RawPeer *peer);
} RawPeer;

static void *raw_peer_thread(void *opaque)
{
    static const gnutls_datum_t key = { (unsigned char *)"00112233445566778899aabbccddeeff", 32 };
    RawPeer *peer = opaque;

    gnutls_psk_allocate_client_credentials(&peer->creds);
    gnutls_psk_set_client_credentials(peer->creds, "alice", &key, GNUTLS_PSK_KEY_HEX);
    gnutls_init(&peer->session, GNUTLS_CLIENT);
    EXPECT_EQ(gnutls_priority_set_direct(peer->session, peer->priority, NULL), 0);
    gnutls_credentials_set(peer->session, GNUTLS_CRD_PSK, peer->creds);
    gnutls_transport_set_int(peer->session, peer->fd);
    EXPECT_EQ(gnutls_handshake(peer->session), 0);
    peer->script(peer);
    gnutls_deinit(peer->session);
    gnutls_psk_free_client_credentials(peer->creds);
    close(peer->fd);
    return NULL;
}

#define TLS13 "NORMAL:-VERS-ALL:+VERS-TLS1.3:+ECDHE-PSK"
#define TLS12 "NORMAL:-VERS-ALL:+VERS-TLS1.2:+ECDHE-PSK"

/* A server channel with such a peer. */
static TlsEnd with_raw_peer(AioContext *ctx, RawPeer *peer)
{
    TlsEnd server = raw_server(&peer->fd, -1);

    ASSERT_EQ(pthread_create(&peer->thread, NULL, raw_peer_thread, peer), 0);
    tls_end_start(&server);
    AIO_WAIT_WHILE(ctx, !server.done);
    if (!server.ch) {
        test_fail_abort(__FILE__, __LINE__, "%s", server.err.msg);
    }
    return server;
}

#define REKEYS 6 /* the library allows eight in a second */

static void rekey_script(RawPeer *peer)
{
    char byte;

    for (int i = 0; i < REKEYS; i++) {
        byte = (char)i;
        EXPECT_EQ(gnutls_session_key_update(peer->session, GNUTLS_KU_PEER), 0);
        EXPECT_EQ(gnutls_record_send(peer->session, &byte, 1), 1);
        ssize_t got;

        do {
            got = gnutls_record_recv(peer->session, &byte, 1);
        } while (got == GNUTLS_E_AGAIN); /* that was the answer to the key update */
        EXPECT_EQ(got, 1);
        EXPECT_EQ(byte, (char)i);
    }
    EXPECT_EQ(gnutls_bye(peer->session, GNUTLS_SHUT_WR), 0);
}

static co_fn void echo_until_end_entry(void *opaque)
{
    Op *op = opaque;
    char byte;

    while ((op->ret = channel_co_read(op->ch, &byte, 1)) == 1) {
        EXPECT_EQ(channel_co_write_full(op->ch, &byte, 1), 0);
    }
    op->done = true;
}

TEST(channel_tls, key_updates_of_the_peer_are_followed_both_ways)
{
    AioContext *ctx = test_context(NULL);
    RawPeer peer = { .script = rekey_script, .priority = TLS13 };

    tls_files_make();
    TlsEnd server = with_raw_peer(ctx, &peer);
    Op echo = { .ch = server.ch };

    test_spawn(echo_until_end_entry, &echo);
    AIO_WAIT_WHILE(ctx, !echo.done);
    EXPECT_EQ(echo.ret, 0); /* it said good-bye */
    pthread_join(peer.thread, NULL);
    end_drop(&server);
    tls_files_remove();
    aio_context_destroy(ctx);
}

static void renegotiate_script(RawPeer *peer)
{
    char byte = 'x';

    EXPECT_EQ(gnutls_record_send(peer->session, &byte, 1), 1);
    /* The server neither agrees nor stops serving others because of it. */
    EXPECT_NE(gnutls_handshake(peer->session), 0);
}

TEST(channel_tls, renegotiation_is_refused)
{
    AioContext *ctx = test_context(NULL);
    RawPeer peer = { .script = renegotiate_script, .priority = TLS12 };
    char in;

    tls_files_make();
    TlsEnd server = with_raw_peer(ctx, &peer);
    Op read = { .ch = server.ch, .buf = &in, .len_bytes = 1 };

    op_read(&read);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_EQ(read.ret, 1);
    op_read(&read);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_EQ(read.ret, -EPROTO);
    channel_shutdown(server.ch, CHANNEL_READ | CHANNEL_WRITE);
    pthread_join(peer.thread, NULL);
    end_drop(&server);
    tls_files_remove();
    aio_context_destroy(ctx);
}

static void empty_records_script(RawPeer *peer)
{
    /* Records without data, hidden in ones that have padding only. */
    for (int i = 0; i < 2000; i++) {
        if (gnutls_record_send2(peer->session, "", 0, 20, 0) < 0) {
            break;
        }
    }
    gnutls_record_send(peer->session, "x", 1);
}

TEST(channel_tls, records_without_data_do_not_keep_the_thread)
{
    AioContext *ctx = test_context(NULL);
    RawPeer peer = { .script = empty_records_script, .priority = TLS13 };
    char in = 0;

    tls_files_make();
    TlsEnd server = with_raw_peer(ctx, &peer);
    Op read = { .ch = server.ch, .buf = &in, .len_bytes = 1 };

    op_read(&read);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_EQ(read.ret, 1);
    EXPECT_EQ(in, 'x');
    pthread_join(peer.thread, NULL);
    end_drop(&server);
    tls_files_remove();
    aio_context_destroy(ctx);
}

static void tamper_script(RawPeer *peer)
{
    EXPECT_EQ(gnutls_record_send(peer->session, "good", 4), 4);
    /* a record that nobody has made a seal for */
    EXPECT_EQ(write(peer->fd, "\x17\x03\x03\x00\x20" "01234567890123456789012345678901", 37), 37);
}

TEST(channel_tls, forged_record_ends_the_stream_behind_the_good_ones)
{
    AioContext *ctx = test_context(NULL);
    RawPeer peer = { .script = tamper_script, .priority = TLS13 };
    char in[8];

    tls_files_make();
    TlsEnd server = with_raw_peer(ctx, &peer);
    Op read = { .ch = server.ch, .buf = in, .len_bytes = 8 };

    pthread_join(peer.thread, NULL);
    op_read(&read);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_EQ(read.ret, 4);
    for (int i = 0; i < 2; i++) {
        op_read(&read);
        AIO_WAIT_WHILE(ctx, !read.done);
        EXPECT_EQ(read.ret, -EPROTO);
    }
    end_drop(&server);
    tls_files_remove();
    aio_context_destroy(ctx);
}

/* --- contexts --- */

typedef struct Follower {
    Channel *ch;
    AioContext *first, *second;
    int reads;
} Follower;

static co_fn void follow_entry(void *opaque)
{
    Follower *f = opaque;

    for (int i = 0; i < 4; i++) {
        char byte;

        aio_co_reschedule_self(i % 2 ? f->second : f->first);
        EXPECT_EQ(channel_co_read_full(f->ch, &byte, 1), 1);
        EXPECT_TRUE(aio_current() == (i % 2 ? f->second : f->first));
        f->reads++;
    }
}

/* A wrapper that waits where it was made would be found in the wrong context here. */
TEST(channel_tls, wait_follows_the_coroutine_through_the_wrapper)
{
    AioContext *first = test_context(NULL), *second;
    char byte = 'x';

    tls_files_make();
    Pair pair = shake(first, psk(TLS_CLIENT, "alice"), psk(TLS_SERVER, NULL), NULL);

    expect_connected(&pair);
    second = aio_context_create("second", NULL, NULL);
    Follower f = { .ch = pair.server.ch, .first = first, .second = second };
    Op write = { .ch = pair.client.ch, .buf = &byte, .len_bytes = 1 };

    test_spawn(follow_entry, &f);
    for (int i = 0; i < 4; i++) {
        AioContext *here = i % 2 ? second : first, *there = i % 2 ? first : second;

        aio_context_enter(here);
        test_settle(here);
        aio_context_enter(there);
        op_write_full(&write);
        EXPECT_TRUE(write.done);
        EXPECT_FALSE(aio_poll(there, false));
        EXPECT_EQ(f.reads, i);
        aio_context_enter(here);
        AIO_WAIT_WHILE(here, f.reads == i);
    }
    aio_context_enter(first);
    pair_drop(&pair);
    tls_files_remove();
    aio_context_enter(second);
    aio_context_destroy(second);
    aio_context_enter(first);
    aio_context_destroy(first);
}

/* What the upgrade finds unread on the wire is taken for TLS, never for data of the new channel. */
TEST(channel_tls, plain_bytes_sent_before_the_handshake_are_not_let_through)
{
    AioContext *ctx = test_context(NULL);
    char injected[] = "injected command";
    Channel *lower[2];

    tls_files_make();
    pair_unix(lower);
    Op write = { .ch = lower[0], .buf = injected, .len_bytes = sizeof(injected) };

    op_write_full(&write);
    Pair pair = {
        .ctx = ctx,
        .client = { .lower = lower[0], .creds = psk(TLS_CLIENT, "alice"), .deadline_ns = -1 },
        .server = { .lower = lower[1], .creds = psk(TLS_SERVER, NULL), .deadline_ns = -1 },
    };

    tls_end_start(&pair.client);
    tls_end_start(&pair.server);
    AIO_WAIT_WHILE(ctx, !pair.server.done);
    EXPECT_FALSE(pair.server.ch);
    EXPECT_EQ(pair.server.err.code, -EPROTO);
    channel_shutdown(pair.server.lower, CHANNEL_READ | CHANNEL_WRITE);
    AIO_WAIT_WHILE(ctx, !pair.client.done);
    EXPECT_FALSE(pair.client.ch);
    pair_drop(&pair);
    tls_files_remove();
    aio_context_destroy(ctx);
}

/* --- credentials --- */

static void expect_no_x509(TlsRole role, const char *dir, int code, const char *text)
{
    Error err = { 0 };

    EXPECT_FALSE(tls_creds_create_x509(role, dir, true, &err));
    EXPECT_EQ(err.code, code);
    expect_text(&err, text);
}

TEST(tls_creds, messages_name_the_file_that_is_missing_or_broken)
{
    const char *dir = tls_files_make();

    expect_no_x509(TLS_SERVER, "/nonexistent", -ENOENT, "/nonexistent/ca-cert.pem");
    rename(tls_files_path("server-key.pem"), tls_files_path("hidden"));
    expect_no_x509(TLS_SERVER, dir, -ENOENT, "server-key.pem");
    tls_files_write("server-key.pem", "no key");
    expect_no_x509(TLS_SERVER, dir, -EINVAL, "server-key.pem");
    rename(tls_files_path("client-key.pem"), tls_files_path("server-key.pem"));
    expect_no_x509(TLS_SERVER, dir, -EINVAL, "server-cert.pem");
    expect_no_x509(TLS_CLIENT, dir, -ENOENT, "client-key.pem");
    rename(tls_files_path("hidden"), tls_files_path("server-key.pem"));
    tls_creds_unref(x509(TLS_SERVER, dir, true));
    tls_files_write("ca-crl.pem", "no list");
    expect_no_x509(TLS_SERVER, dir, -EINVAL, "ca-crl.pem");
    unlink(tls_files_path("ca-crl.pem"));
    tls_files_write("ca-cert.pem", "no certificate");
    expect_no_x509(TLS_CLIENT, dir, -EINVAL, "ca-cert.pem");
    unlink(tls_files_path("ca-cert.pem"));
    expect_no_x509(TLS_SERVER, dir, -ENOENT, "ca-cert.pem");
    tls_creds_unref(x509(TLS_SERVER, dir, false)); /* who does not verify needs none */
    tls_files_expire_server();
    Error err = { 0 };

    EXPECT_FALSE(tls_creds_create_x509(TLS_SERVER, dir, false, &err));
    EXPECT_EQ(err.code, -EKEYEXPIRED);
    expect_text(&err, "server-cert.pem");
    tls_files_remove();
}

TEST(tls_creds, key_file_is_read_as_psktool_writes_it)
{
    Error err = { 0 };
    PskFile file;

    tls_files_make();
    tls_files_write("keys.psk", "\n# comment:00\nalice:00FFa5\nwith:colon:1234");
    ASSERT_EQ(psk_file_load(&file, tls_files_path("keys.psk"), &err), 0);
    EXPECT_EQ(file.nb, 2);
    const PskKey *alice = psk_file_find(&file, "alice");

    ASSERT_TRUE(alice);
    EXPECT_EQ(alice->len_bytes, 3);
    EXPECT_EQ(memcmp(alice->key, "\x00\xff\xa5", 3), 0);
    EXPECT_TRUE(psk_file_find(&file, "with:colon"));
    EXPECT_FALSE(psk_file_find(&file, "bob"));
    psk_file_finish(&file);
    tls_files_remove();
}

TEST(tls_creds, broken_key_files_are_refused_with_the_line)
{
    static const struct {
        const char *text;
        const char *why;
    } bad[] = {
        { "", "has no key" },
        { "# nothing\n", "has no key" },
        { "alice:00\nbob\n", "line 2" },
        { "alice:\n", "line 1" },
        { ":00\n", "line 1" },
        { "alice:0\n", "line 1" },
        { "alice:0g\n", "line 1" },
    };
    static char much[2 * PSK_KEY_BYTES_MAX + 16];
    Error err = { 0 };
    PskFile file;

    tls_files_make();
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        tls_files_write("keys.psk", bad[i].text);
        EXPECT_EQ(psk_file_load(&file, tls_files_path("keys.psk"), &err), -EINVAL);
        expect_text(&err, bad[i].why);
        expect_text(&err, "keys.psk");
    }
    memset(much, '0', sizeof(much) - 1);
    memcpy(much, "a:", 2);
    tls_files_write("keys.psk", much);
    EXPECT_EQ(psk_file_load(&file, tls_files_path("keys.psk"), &err), -EINVAL);
    EXPECT_EQ(truncate(tls_files_path("keys.psk"), 10), 0);
    EXPECT_EQ(psk_file_load(&file, tls_files_path("keys.psk"), &err), 0);
    psk_file_finish(&file);
    EXPECT_EQ(truncate(tls_files_path("keys.psk"), 20), 0); /* NULs at the end */
    EXPECT_EQ(psk_file_load(&file, tls_files_path("keys.psk"), &err), -EINVAL);
    EXPECT_EQ(truncate(tls_files_path("keys.psk"), PSK_FILE_BYTES_MAX + 1), 0);
    EXPECT_EQ(psk_file_load(&file, tls_files_path("keys.psk"), &err), -EFBIG);

    tls_files_write("keys.psk", "alice:00\n");
    EXPECT_FALSE(tls_creds_create_psk(TLS_CLIENT, tls_files_path("keys.psk"), "bob", &err));
    EXPECT_EQ(err.code, -ENOENT);
    expect_text(&err, "'bob'");
    EXPECT_FALSE(tls_creds_create_psk(TLS_SERVER, "/nonexistent.psk", NULL, &err));
    EXPECT_EQ(err.code, -ENOENT);
    expect_text(&err, "/nonexistent.psk");
    tls_files_remove();
}

TEST_MAIN()
