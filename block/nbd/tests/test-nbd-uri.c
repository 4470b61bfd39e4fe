/*
 * test-nbd-uri.c - addresses as users write them
 */
#include "block/nbd/nbd-uri.h"
#include "io/base/test.h"

static void expect_refused(const char *text, const char *word)
{
    NbdUri uri;
    Error err = { 0 };
    int ret = nbd_uri_parse("--disk", text, &uri, &err);

    EXPECT_LT(ret, 0);
    EXPECT_EQ(err.code, ret);
    if (!strstr(err.msg, word)) {
        test_fail(__FILE__, __LINE__, "'%s': \"%s\" has no \"%s\" in it", text, err.msg, word);
    }
}

static NbdUri parse(const char *text)
{
    NbdUri uri = { 0 };
    Error err = { 0 };

    if (nbd_uri_parse("--disk", text, &uri, &err) < 0) {
        test_fail_abort(__FILE__, __LINE__, "'%s': %s", text, err.msg);
    }
    return uri;
}

TEST(nbd_uri, hosts_ports_and_names)
{
    static const struct {
        const char *text, *host, *port, *name;
    } cases[] = {
        { "nbd://example.com/disk", "example.com", "10809", "disk" },
        { "nbd://example.com", "example.com", "10809", "" },
        { "nbd://example.com/", "example.com", "10809", "" },
        { "nbd://example.com//disk", "example.com", "10809", "/disk" },
        { "nbd://example.com:7/hello%20world", "example.com", "7", "hello world" },
        { "NBD://[::1]:10810/x?", "::1", "10810", "x" },
        { "nbd://[fe80::1%25eth0]", "fe80::1%eth0", "10809", "" },
        { "nbd:///x", "", "10809", "x" },
        { "nbd://h:/x", "h", "10809", "x" },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        NbdUri uri = parse(cases[i].text);

        EXPECT_EQ(uri.addr.type, SOCKET_ADDRESS_TCP);
        EXPECT_STREQ(uri.addr.host, cases[i].host);
        EXPECT_STREQ(uri.addr.port, cases[i].port);
        EXPECT_STREQ(uri.export_name, cases[i].name);
        EXPECT_FALSE(uri.tls);
        nbd_uri_finish(&uri);
    }
}

TEST(nbd_uri, unix_sockets)
{
    NbdUri uri = parse("nbd+unix:///a%2Fb?socket=/run/my%3Fsock%26x");

    EXPECT_EQ(uri.addr.type, SOCKET_ADDRESS_UNIX);
    EXPECT_STREQ(uri.addr.path, "/run/my?sock&x");
    EXPECT_STREQ(uri.export_name, "a/b");
    nbd_uri_finish(&uri);
    uri = parse("nbd+unix://?socket=s");
    EXPECT_STREQ(uri.addr.path, "s");
    EXPECT_STREQ(uri.export_name, "");
    nbd_uri_finish(&uri);
}

TEST(nbd_uri, parameters_of_tls)
{
    NbdUri uri = parse("nbds://alice@h/x?tls-psk-file=/etc/keys%20here&tls-type=psk");

    EXPECT_TRUE(uri.tls);
    EXPECT_TRUE(uri.tls_verify_peer);
    EXPECT_STREQ(uri.tls_username, "alice");
    EXPECT_STREQ(uri.tls_psk_file, "/etc/keys here");
    EXPECT_STREQ(nbd_uri_tls_hostname(&uri), "h");
    nbd_uri_finish(&uri);
    uri = parse("nbds+unix:///?socket=s&tls-certificates=/pki&tls-hostname=srv&tls-verify-peer=0");
    EXPECT_FALSE(uri.tls_verify_peer);
    EXPECT_STREQ(uri.tls_certificates, "/pki");
    EXPECT_STREQ(nbd_uri_tls_hostname(&uri), "srv");
    nbd_uri_finish(&uri);
    uri = parse("nbds+unix:///?socket=s");
    EXPECT_EQ(nbd_uri_tls_hostname(&uri), NULL);
    nbd_uri_finish(&uri);
}

TEST(nbd_uri, mistakes_are_told)
{
    expect_refused("http://x/", "no URI of NBD");
    expect_refused("nbd+unix:///x", "socket=PATH");
    expect_refused("nbd+unix://h/x?socket=s", "on no host");
    expect_refused("nbd://h/x?socket=s", "nbd+unix://");
    expect_refused("nbd://h/%zz", "hexadecimal");
    expect_refused("nbd://h/%4", "hexadecimal");
    expect_refused("nbd://h/%00", "hexadecimal");
    expect_refused("nbd://h/x%", "hexadecimal");
    expect_refused("nbd://h/x?frob=1", "'frob'");
    expect_refused("nbd://h/x#y", "'#'");
    expect_refused("nbd://[::1/x", "']'");
    expect_refused("nbd://[::1]x/x", "']'");
    expect_refused("nbd://h:99999/x", "99999");
    expect_refused("nbd+unix:///?socket=a&socket=b", "twice");
    expect_refused("nbd+unix:///?socket", "no value");
    expect_refused("nbd://h/x?tls-psk-file=f", "without TLS");
    expect_refused("nbd://bob@h/x", "without TLS");
    expect_refused("nbds://h/x?tls-psk-file=f&tls-certificates=d", "exclude");
    expect_refused("nbds://h/x?tls-type=psk", "tls-type");
    expect_refused("nbds://h/x?tls-type=anon", "tls-type");
    expect_refused("nbds://h/x?tls-verify-peer=yes", "0 or 1");
}

TEST(nbd_uri, names_that_are_too_long_are_refused)
{
    static char text[5000] = "nbd://h/";

    memset(text + 8, 'x', 4096);
    NbdUri uri = parse(text);
    EXPECT_EQ(strlen(uri.export_name), 4096);
    nbd_uri_finish(&uri);
    text[8 + 4096] = 'x';
    expect_refused(text, "longer");
}

TEST(nbd_uri, options_say_the_same)
{
    Opts opts;
    NbdUri uri;
    Error err = { 0 };

    ASSERT_EQ(opts_parse(&opts, "--disk", "host=h,export=a,,b,tls=on,tls-username=u,queues=2", NULL,
                         &err),
              0);
    ASSERT_EQ(nbd_uri_from_opts(&opts, &uri, &err), 0);
    EXPECT_STREQ(uri.addr.host, "h");
    EXPECT_STREQ(uri.addr.port, "10809");
    EXPECT_STREQ(uri.export_name, "a,b");
    EXPECT_STREQ(uri.tls_username, "u");
    EXPECT_TRUE(uri.tls);
    nbd_uri_finish(&uri);
    EXPECT_EQ(opts_check_all_used(&opts, &err), -EINVAL);
    EXPECT_TRUE(strstr(err.msg, "queues") != NULL);
    opts_finish(&opts);

    ASSERT_EQ(opts_parse(&opts, "--disk", "nbd+unix:///x?socket=s,queues=2", "path", &err), 0);
    ASSERT_EQ(nbd_uri_from_opts(&opts, &uri, &err), 0);
    EXPECT_STREQ(uri.addr.path, "s");
    nbd_uri_finish(&uri);
    opts_finish(&opts);

    ASSERT_EQ(opts_parse(&opts, "--disk", "driver=nbd", NULL, &err), 0);
    EXPECT_EQ(nbd_uri_from_opts(&opts, &uri, &err), -EINVAL);
    opts_finish(&opts);
}

TEST(nbd_uri, description_can_be_parsed_again)
{
    static const char *const texts[] = {
        "nbd://example.com:10809/a/b%20c", "nbd://[::1]:77/",        "nbds://h:1/x",
        "nbd+unix:///n?socket=/run/a%26b", "nbds+unix:///?socket=s",
    };

    for (unsigned i = 0; i < ARRAY_SIZE(texts); i++) {
        NbdUri uri = parse(texts[i]);
        AUTO_FREE char *text = nbd_uri_describe(&uri);

        EXPECT_STREQ(text, texts[i]);
        nbd_uri_finish(&uri);
    }
}

TEST_MAIN()
