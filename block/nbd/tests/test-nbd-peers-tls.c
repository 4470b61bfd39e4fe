/*
 * test-nbd-peers-tls.c - the client against servers of others: over TCP, and with TLS
 *
 * Certificates and keys are made anew for each test (tls_files_make()).
 */
#include <fcntl.h>

#include "block/nbd/tests/nbd-test.h"
#include "io/channel/tests/tls-files.h"

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

static const char *psk_option(const char *file, const char *user)
{
    return test_text("tls-psk-file=%s&tls-username=%s", tls_files_path(file), user);
}

/* A folder for a client, with another certificate instead of the CA's, or with the CA's alone. */
static const char *client_folder(const char *ca)
{
    const char *path = test_text("%s/ca-cert.pem", test_dir());
    char text[8192];
    FILE *from = fopen(tls_files_path(ca), "r"), *to = fopen(path, "w");

    ASSERT_TRUE(from && to);
    size_t len = fread(text, 1, sizeof(text), from);

    ASSERT_EQ(fwrite(text, 1, len, to), len);
    fclose(from);
    fclose(to);
    return test_dir();
}

/* The disk cannot be opened, and the message says why. @code 0: any. The server runs already. */
static main_fn void expect_refused(const char *text, int code, const char *word)
{
    AioContext *main = main_start();
    Error err = { 0 };
    int ret = disk_try(text, &err);

    EXPECT_LT(ret, 0);
    EXPECT_EQ(code ? ret : 0, code);
    if (!strstr(err.msg, word)) {
        test_fail(__FILE__, __LINE__, "\"%s\" has no \"%s\" in it", err.msg, word);
    }
    main_finish(main);
}

/* --- TCP --- */

/* Few requests, for a server that waits for acknowledgements of TCP, which a client delays by 40 ms:
 * it does not ask for TCP_NODELAY. */
static main_fn void verify_slow(unsigned nb_threads, const char *text)
{
    AioContext *main = main_start();
    BlockBackend *blk = disk_open("%s", text);

    load_verify_disk(blk, nb_threads, 5);
    EXPECT_EQ(blk_close(blk), 0);
    main_finish(main);
}

TEST(nbd_peers_tls, nbdkit_over_tcp)
{
    const char *port = peer_port();
    pid_t pid = PEER_START("nbdkit", "-f", "-i", "127.0.0.1", "-p", port, "memory", LENGTH);

    load_verify(1, "nbd://127.0.0.1:%s,open-timeout=20", port);
    load_verify(8, "nbd://localhost:%s/,open-timeout=20,connections=4", port);
    load_verify(4, "driver=nbd,host=127.0.0.1,port=%s,connections=1", port);
    peer_kill(pid);
}

TEST(nbd_peers_tls, qemu_nbd_over_tcp)
{
    const char *port = peer_port();
    pid_t pid = PEER_START("qemu-nbd", "-f", "raw", "--cache=unsafe", "-t", "-e", "16", "-b",
                           "127.0.0.1", "-p", port, "-x", "disk", image_path());

    verify_slow(8, test_text("nbd://127.0.0.1:%s/disk,open-timeout=20,connections=4", port));
    peer_kill(pid);
}

/* It serves one connection and ends. @tls: more lines of its configuration */
static pid_t start_nbd_server(const char *port, const char *tls)
{
    const char *path = test_text("%s/conf", test_dir());
    FILE *conf = fopen(path, "w");

    ASSERT_TRUE(conf != NULL);
    fprintf(conf,
            "[generic]\nlistenaddr = 127.0.0.1\nport = %s\n%s\n"
            "[disk]\nexportname = %s\nflush = true\nfua = true\ntrim = true\n",
            port, tls, image_path());
    fclose(conf);
    return PEER_START("nbd-server", "-d", "-C", path, "-p", test_text("%s/pid", test_dir()));
}

TEST(nbd_peers_tls, nbd_server_over_tcp)
{
    const char *port = peer_port();
    pid_t pid = start_nbd_server(port, "");

    verify_slow(8, test_text("nbd://127.0.0.1:%s/disk,open-timeout=20", port));
    peer_kill(pid);
}

/* --- certificates --- */

static pid_t start_nbdkit_x509(const char *port, const char *dir, const char *verify)
{
    return PEER_START("nbdkit", "-f", "-i", "127.0.0.1", "-p", port, "--tls=require",
                      test_text("--tls-certificates=%s", dir), verify, "memory", LENGTH);
}

TEST(nbd_peers_tls, nbdkit_with_certificates)
{
    const char *dir = tls_files_make(), *port = peer_port();
    pid_t pid = start_nbdkit_x509(port, dir, "--tls-verify-peer");

    load_verify(1, "nbds://127.0.0.1:%s/?tls-certificates=%s,open-timeout=20", port, dir);
    load_verify(8, "nbds://localhost:%s/?tls-certificates=%s,connections=4", port, dir);
    load_verify(4, "driver=nbd,host=127.0.0.1,port=%s,tls=on,tls-certificates=%s", port, dir);
    load_verify(1, "nbds://127.0.0.1:%s/?tls-certificates=%s&tls-hostname=server.test", port, dir);
    expect_refused(test_text("nbd://127.0.0.1:%s", port), -EACCES, "nbds://");
    expect_refused(
        test_text("nbds://127.0.0.1:%s/?tls-certificates=%s&tls-hostname=other.test", port, dir),
        -EACCES, "name in the certificate does not match");
    peer_kill(pid);
    tls_files_remove();
}

TEST(nbd_peers_tls, a_server_that_nobody_vouches_for_is_refused)
{
    const char *dir = tls_files_make(), *port = peer_port();
    pid_t pid = start_nbdkit_x509(port, dir, "--log=stderr");
    const char *other = client_folder("client-cert.pem");

    load_verify(1, "nbds://127.0.0.1:%s/?tls-certificates=%s,open-timeout=20", port, dir);
    expect_refused(test_text("nbds://127.0.0.1:%s/?tls-certificates=%s", port, other), -EACCES,
                   "certificate");
    /* nor by what the system trusts */
    expect_refused(test_text("nbds://127.0.0.1:%s/", port), -EACCES, "certificate");
    load_verify(1, "nbds://127.0.0.1:%s/?tls-verify-peer=0", port);
    peer_kill(pid);
    tls_files_remove();
}

TEST(nbd_peers_tls, a_server_whose_certificate_has_expired_is_refused)
{
    const char *dir = tls_files_make(), *port = peer_port();

    tls_files_expire_server();
    pid_t pid = start_nbdkit_x509(port, dir, "--log=stderr");

    load_verify(1, "nbds://127.0.0.1:%s/?tls-certificates=%s&tls-verify-peer=0,open-timeout=20",
                port, dir);
    expect_refused(test_text("nbds://127.0.0.1:%s/?tls-certificates=%s", port, dir), -EACCES,
                   "expired");
    peer_kill(pid);
    tls_files_remove();
}

TEST(nbd_peers_tls, a_client_without_the_certificate_that_is_asked_for_is_told)
{
    const char *dir = tls_files_make(), *port = peer_port();
    pid_t pid = start_nbdkit_x509(port, dir, "--tls-verify-peer");
    const char *without = client_folder("ca-cert.pem");

    load_verify(1, "nbds://127.0.0.1:%s/?tls-certificates=%s,open-timeout=20", port, dir);
    expect_refused(test_text("nbds://127.0.0.1:%s/?tls-certificates=%s", port, without),
                   -ECONNRESET, "certificate");
    peer_kill(pid);
    tls_files_remove();
}

/* Over a unix socket: see verify_slow(). */
static pid_t start_qemu_nbd(const char *creds)
{
    return PEER_START("qemu-nbd", "-f", "raw", "--cache=unsafe", "-t", "-e", "16", "-k",
                      socket_path(), "--object", creds, "--tls-creds", "t", image_path());
}

TEST(nbd_peers_tls, qemu_nbd_with_certificates)
{
    const char *dir = tls_files_make();
    pid_t pid =
        start_qemu_nbd(test_text("tls-creds-x509,id=t,endpoint=server,verify-peer=on,dir=%s", dir));
    const char *more = test_text("tls-certificates=%s&tls-hostname=server.test", dir);

    load_verify(1, "nbds+unix:///?socket=%s&%s,open-timeout=20", socket_path(), more);
    load_verify(8, "nbds+unix:///?socket=%s&%s,connections=4", socket_path(), more);
    expect_refused(test_text("nbd+unix:///?socket=%s", socket_path()), -EACCES, "nbds+unix://");
    peer_kill(pid);
    tls_files_remove();
}

TEST(nbd_peers_tls, nbd_server_with_certificates)
{
    const char *dir = tls_files_make(), *port = peer_port();
    const char *tls = test_text("force_tls = true\ncertfile = %s/server-cert.pem\n"
                                "keyfile = %s/server-key.pem\ncacertfile = %s/ca-cert.pem\n",
                                dir, dir, dir);
    pid_t pid = start_nbd_server(port, tls);

    verify_slow(
        4, test_text("nbds://127.0.0.1:%s/disk?tls-certificates=%s,open-timeout=20", port, dir));
    peer_kill(pid);
    tls_files_remove();
}

TEST(nbd_peers_tls, certificates_over_a_unix_socket_are_for_the_name_that_was_said)
{
    const char *dir = tls_files_make();
    pid_t pid = PEER_START("nbdkit", "-f", "-U", socket_path(), "--tls=require",
                           test_text("--tls-certificates=%s", dir), "memory", LENGTH);

    load_verify(4,
                "nbds+unix:///?socket=%s&tls-certificates=%s&tls-hostname=localhost,"
                "open-timeout=20",
                socket_path(), dir);
    expect_refused(test_text("nbds+unix:///?socket=%s&tls-certificates=%s&tls-hostname=other.test",
                             socket_path(), dir),
                   -EACCES, "name in the certificate does not match");
    peer_kill(pid);
    tls_files_remove();
}

/* --- keys --- */

TEST(nbd_peers_tls, nbdkit_with_a_key)
{
    const char *port = peer_port();

    tls_files_make();
    pid_t pid = PEER_START("nbdkit", "-f", "-i", "127.0.0.1", "-p", port, "--tls=require",
                           test_text("--tls-psk=%s", tls_files_path("keys.psk")), "memory", LENGTH);

    load_verify(1, "nbds://127.0.0.1:%s/?%s,open-timeout=20", port,
                psk_option("keys.psk", "alice"));
    load_verify(8, "nbds://bob@127.0.0.1:%s/?tls-psk-file=%s,connections=4", port,
                tls_files_path("keys.psk"));
    expect_refused(test_text("nbd://127.0.0.1:%s", port), -EACCES, "nbds://");
    expect_refused(test_text("nbds://127.0.0.1:%s/?%s", port, psk_option("keys.psk", "carol")),
                   -ENOENT, "carol");
    tls_files_write("wrong.psk", "alice:01020304\ncarol:01020304\n");
    expect_refused(test_text("nbds://127.0.0.1:%s/?%s", port, psk_option("wrong.psk", "alice")), 0,
                   "accept our key");
    expect_refused(test_text("nbds://127.0.0.1:%s/?%s", port, psk_option("wrong.psk", "carol")), 0,
                   "accept our key");
    peer_kill(pid);
    tls_files_remove();
}

TEST(nbd_peers_tls, nbdkit_with_a_key_over_a_unix_socket)
{
    tls_files_make();
    pid_t pid = PEER_START("nbdkit", "-f", "-U", socket_path(), "--tls=require",
                           test_text("--tls-psk=%s", tls_files_path("keys.psk")), "memory", LENGTH);

    load_verify(4, "nbds+unix://alice@/?socket=%s&tls-psk-file=%s,open-timeout=20,connections=1",
                socket_path(), tls_files_path("keys.psk"));
    load_verify(4, "nbds+unix:///?socket=%s&%s,connections=4", socket_path(),
                psk_option("keys.psk", "bob"));
    expect_refused(test_text("nbd+unix:///?socket=%s", socket_path()), -EACCES, "nbds+unix://");
    peer_kill(pid);
    tls_files_remove();
}

TEST(nbd_peers_tls, qemu_nbd_with_a_key)
{
    const char *dir = tls_files_make();
    pid_t pid = start_qemu_nbd(test_text("tls-creds-psk,id=t,endpoint=server,dir=%s", dir));

    load_verify(1, "nbds+unix:///?socket=%s&%s,open-timeout=20", socket_path(),
                psk_option("keys.psk", "alice"));
    load_verify(8, "nbds+unix:///?socket=%s&%s,connections=4", socket_path(),
                psk_option("keys.psk", "bob"));
    tls_files_write("wrong.psk", "alice:01020304\n");
    expect_refused(
        test_text("nbds+unix:///?socket=%s&%s", socket_path(), psk_option("wrong.psk", "alice")), 0,
        "accept our key");
    peer_kill(pid);
    tls_files_remove();
}

TEST(nbd_peers_tls, a_key_is_no_certificate)
{
    const char *dir = tls_files_make(), *port = peer_port();
    pid_t pid = start_nbdkit_x509(port, dir, "--log=stderr");

    load_verify(1, "nbds://127.0.0.1:%s/?tls-certificates=%s,open-timeout=20", port, dir);
    expect_refused(test_text("nbds://127.0.0.1:%s/?%s", port, psk_option("keys.psk", "alice")),
                   -EPROTO, "TLS handshake");
    peer_kill(pid);
    tls_files_remove();
}

/* --- TLS or not --- */

/* A server that shows something else to those who come without. */
TEST(nbd_peers_tls, nbdkit_that_falls_back_shows_the_disk_with_tls_alone)
{
    static const char message[] = "This NBD server requires TLS";
    char buf[512];

    tls_files_make();
    pid_t pid = PEER_START("nbdkit", "-f", "-U", socket_path(), "--tls=on",
                           test_text("--tls-psk=%s", tls_files_path("keys.psk")),
                           "--filter=tls-fallback", "memory", LENGTH);

    load_verify(4, "nbds+unix:///?socket=%s&%s,open-timeout=20,connections=2", socket_path(),
                psk_option("keys.psk", "alice"));
    AioContext *main = main_start();
    BlockBackend *blk = disk_open("nbd+unix:///?socket=%s,readonly=on", socket_path());

    EXPECT_EQ(blk_length(blk), 512);
    EXPECT_EQ(run_read(blk, 0, 512, buf), 0);
    EXPECT_EQ(memcmp(buf, message, sizeof(message) - 1), 0);
    blk_close(blk);
    main_finish(main);
    peer_kill(pid);
    tls_files_remove();
}

TEST(nbd_peers_tls, tls_that_a_server_does_not_have_is_not_done_without)
{
    pid_t pid = PEER_START("nbdkit", "-f", "-U", socket_path(), "memory", LENGTH);
    pid_t old = PEER_START("nbdkit", "-f", "--mask-handshake=0", "-U",
                           test_text("%s/old", test_dir()), "memory", LENGTH);

    load_verify(1, "nbd+unix:///?socket=%s,open-timeout=20", socket_path());
    load_verify(1, "nbd+unix:///?socket=%s/old,open-timeout=20", test_dir());
    expect_refused(test_text("nbds+unix:///?socket=%s&tls-verify-peer=0", socket_path()), -EACCES,
                   "STARTTLS");
    expect_refused(test_text("nbds+unix:///?socket=%s/old&tls-verify-peer=0", test_dir()), -ENOTSUP,
                   "TLS is asked for");
    peer_kill(pid);
    peer_kill(old);
}

TEST_MAIN()
