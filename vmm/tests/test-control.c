/*
 * Tests of the control socket, from the client's side of it
 *
 * One thread is everybody: it polls the main context, carries out what was asked of the run state,
 * and is the clients, whose sockets do not block. The machine is a count of halts and a disk in
 * memory, which no guest has; queues of guests are the business of test-control-guest.
 */
#include "vmm/control.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "block/faulty.h"
#include "block/tests/block-test.h"
#include "block/tests/mem-driver.h"
#include "io/base/test.h"
#include "io/base/thread.h"
#include "vmm/json-frame.h"

#define DISK_BYTES 131072

static AioContext *ctx;
static QmpTarget target;
static RunState run;
static Control *control;
static char path[64];
static unsigned nb_halts, nb_goes, nb_powerdowns;
static const char *disk_id;
static MemDisk disk;
static IOThread *iothread;
static bool quit_seen, frozen; /* frozen: requests of the run state are not carried out */

static void halt_cb(void *opaque)
{
    nb_halts++;
}

static void go_cb(void *opaque)
{
    nb_goes++;
}

static int reset_cb(void *opaque, bool running, Error *err)
{
    return 0;
}

static void powerdown_cb(void *opaque)
{
    nb_powerdowns++;
}

static void event_cb(void *opaque, RunEvent event, bool by_guest)
{
    static const char *const names[] = { "STOP", "RESUME", "RESET", "POWERDOWN" };

    control_event(control, names[event],
                  event == RUN_EVENT_RESET ? json_pack("{s:b}", "guest", by_guest) : NULL);
}

static const RunOps ops = {
    .halt = halt_cb,
    .go = go_cb,
    .reset = reset_cb,
    .powerdown = powerdown_cb,
    .event = event_cb,
};

static void poll_once(void)
{
    Error err;

    if (!frozen) {
        quit_seen |= run_state_step(&run, &err) == RUN_ENDS_QUIT;
    }
    aio_poll(ctx, false);
}

static main_fn void setup(void)
{
    Error err;

    signal(SIGPIPE, SIG_IGN);
    ctx = aio_context_create("main", NULL, &err);
    ASSERT_TRUE(ctx != NULL);
    aio_context_enter(ctx);
    aio_context_set_main(ctx);
    qmp_target_init(&target);
    run_state_init(&run, &ops, NULL);
    target.run = &run;
    mem_open(&disk, &(MemConfig){ .length_bytes = DISK_BYTES, .honours_fua = true });
    iothread = iothread_create("io0", NULL, &err);
    ASSERT_TRUE(iothread != NULL);
    target.iothreads = &iothread;
    target.nb_iothreads = 1;
    disk_id = blk_id(qmp_target_add_disk(&target, disk.blk)->blk);
    snprintf(path, sizeof(path), "/tmp/penstock-test-control.%d", (int)getpid());
    control = control_create(path, &target, &err);
    ASSERT_TRUE(control != NULL);
    control_start(control);
    run_state_launch(&run);
}

static main_fn void teardown(void)
{
    run_state_end(&run);
    control_stop(control);
    qmp_target_finish(&target);
    control_destroy(take_ptr(&control));
    mem_close(&disk);
    iothread_unref(iothread);
    run_state_finish(&run);
    EXPECT_TRUE(access(path, F_OK) < 0);
    aio_context_set_main(NULL);
    aio_context_enter(NULL);
    aio_context_destroy(ctx);
}

/* --- a client --- */

typedef struct Peer {
    int fd;
    char in[1 << 18];
    size_t len;
    json_t *message; /* the last one that was heard */
} Peer;

static void peer_connect(Peer *peer)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };

    memset(peer, 0, sizeof(*peer));
    strcpy(addr.sun_path, path);
    peer->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    ASSERT_EQ(connect(peer->fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    fcntl(peer->fd, F_SETFL, O_NONBLOCK);
}

static void peer_close(Peer *peer)
{
    json_decref(take_ptr(&peer->message));
    close(peer->fd);
}

static void say_bytes(Peer *peer, const char *text, size_t len)
{
    while (len > 0) {
        ssize_t n = send(peer->fd, text, len, MSG_NOSIGNAL);

        if (n < 0) {
            ASSERT_EQ(errno, EAGAIN);
            poll_once();
            continue;
        }
        text += n;
        len -= (size_t)n;
    }
}

static void say(Peer *peer, const char *text)
{
    say_bytes(peer, text, strlen(text));
}

/* The next line; false at the end of the stream. */
static bool hear(Peer *peer)
{
    char *end;

    json_decref(take_ptr(&peer->message));
    while (!(end = memchr(peer->in, '\n', peer->len))) {
        ssize_t n = recv(peer->fd, peer->in + peer->len, sizeof(peer->in) - peer->len, 0);

        if (n == 0 || (n < 0 && errno == ECONNRESET)) {
            EXPECT_EQ(peer->len, 0); /* nothing in halves */
            return false;
        }
        if (n < 0) {
            ASSERT_EQ(errno, EAGAIN);
            poll_once();
            continue;
        }
        peer->len += (size_t)n;
    }
    size_t len = (size_t)(end + 1 - peer->in);

    ASSERT_TRUE(len >= 2 && end[-1] == '\r');
    peer->message = json_loadb(peer->in, len, JSON_REJECT_DUPLICATES, NULL);
    ASSERT_TRUE(json_is_object(peer->message));
    memmove(peer->in, peer->in + len, peer->len - len);
    peer->len -= len;
    return true;
}

/* Member @a, or @b of that. */
static const char *heard(const Peer *peer, const char *a, const char *b)
{
    const json_t *value = json_object_get(peer->message, a);
    const char *text = json_string_value(b ? json_object_get(value, b) : value);

    return text ? text : "(none)";
}

#define EXPECT_RETURN(peer)                                                                        \
    do {                                                                                           \
        ASSERT_TRUE(hear(peer));                                                                   \
        EXPECT_STREQ(heard(peer, "error", "desc"), "(none)");                                      \
        EXPECT_TRUE(json_object_get((peer)->message, "return") != NULL);                           \
    } while (0)
#define EXPECT_ERROR(peer, class, desc)                                                            \
    do {                                                                                           \
        ASSERT_TRUE(hear(peer));                                                                   \
        EXPECT_STREQ(heard(peer, "error", "class"), class);                                        \
        EXPECT_STREQ(heard(peer, "error", "desc"), desc);                                          \
    } while (0)
#define EXPECT_EVENT(peer, name)                                                                   \
    do {                                                                                           \
        ASSERT_TRUE(hear(peer));                                                                   \
        EXPECT_STREQ(heard(peer, "event", NULL), name);                                            \
    } while (0)

static void peer_begin(Peer *peer)
{
    peer_connect(peer);
    ASSERT_TRUE(hear(peer));
    EXPECT_STREQ(json_string_value(json_object_get(
                     json_object_get(json_object_get(peer->message, "QMP"), "version"),
                     "package")),
                 "penstock 0.1.0");
    say(peer, "{\"execute\": \"qmp_capabilities\"}");
    EXPECT_RETURN(peer);
}

/* --- honest clients --- */

TEST(control, a_client_asks_stops_and_continues)
{
    Peer peer;

    setup();
    peer_begin(&peer);
    say(&peer, "{\"execute\": \"query-status\"}");
    EXPECT_RETURN(&peer);
    EXPECT_STREQ(heard(&peer, "return", "status"), "running");
    say(&peer, "{\"execute\": \"stop\", \"arguments\": {}, \"id\": {\"n\": [1, null]}}\r\n");
    EXPECT_EVENT(&peer, "STOP");
    EXPECT_TRUE(json_is_integer(json_object_get(json_object_get(peer.message, "timestamp"),
                                                "microseconds")));
    EXPECT_RETURN(&peer);
    json_t *id = json_loads("{\"n\": [1, null]}", 0, NULL);
    EXPECT_TRUE(json_equal(json_object_get(peer.message, "id"), id));
    json_decref(id);
    say(&peer, "{\"execute\": \"query-status\"}");
    EXPECT_RETURN(&peer);
    EXPECT_STREQ(heard(&peer, "return", "status"), "paused");
    say(&peer, "{\"execute\": \"system_reset\"}");
    EXPECT_EVENT(&peer, "RESET");
    EXPECT_RETURN(&peer);
    say(&peer, "{\"execute\": \"system_powerdown\"}");
    EXPECT_EVENT(&peer, "POWERDOWN");
    EXPECT_TRUE(json_object_get(peer.message, "data") == NULL);
    EXPECT_RETURN(&peer);
    EXPECT_EQ(json_object_size(json_object_get(peer.message, "return")), 0);
    say(&peer, "{\"execute\": \"cont\"}");
    EXPECT_EVENT(&peer, "RESUME");
    EXPECT_RETURN(&peer);
    EXPECT_EQ(nb_halts, 1);
    EXPECT_EQ(nb_goes, 2);
    EXPECT_EQ(nb_powerdowns, 1);
    peer_close(&peer);
    teardown();
}

TEST(control, quit_is_answered_and_the_end_is_told)
{
    Peer peer;

    setup();
    peer_begin(&peer);
    say(&peer, "{\"execute\": \"quit\"}");
    EXPECT_RETURN(&peer);
    EXPECT_TRUE(quit_seen);
    control_event(control, "SHUTDOWN", json_pack("{s:s}", "reason", "host-qmp-quit"));
    teardown();
    EXPECT_EVENT(&peer, "SHUTDOWN");
    EXPECT_STREQ(heard(&peer, "data", "reason"), "host-qmp-quit");
    EXPECT_FALSE(hear(&peer));
    peer_close(&peer);
}

TEST(control, a_client_that_only_writes_gets_all_answers)
{
    Peer peer;

    setup();
    peer_connect(&peer);
    say(&peer, "{\"execute\": \"qmp_capabilities\"}{\"execute\": \"stop\"}"
               "{\"execute\": \"query-status\", \"id\": 7}");
    shutdown(peer.fd, SHUT_WR);
    ASSERT_TRUE(hear(&peer));
    EXPECT_RETURN(&peer);
    EXPECT_EVENT(&peer, "STOP");
    EXPECT_RETURN(&peer);
    EXPECT_RETURN(&peer);
    EXPECT_EQ(json_integer_value(json_object_get(peer.message, "id")), 7);
    EXPECT_FALSE(hear(&peer));
    peer_close(&peer);
    teardown();
}

TEST(control, clients_see_what_others_have_done)
{
    Peer one, other;

    setup();
    peer_begin(&one);
    peer_begin(&other);
    say(&one, "{\"execute\": \"stop\"}");
    EXPECT_EVENT(&other, "STOP");
    say(&other, "{\"execute\": \"cont\"}");
    EXPECT_EVENT(&other, "RESUME");
    EXPECT_RETURN(&other);
    EXPECT_EVENT(&one, "STOP");
    EXPECT_RETURN(&one);
    EXPECT_EVENT(&one, "RESUME");
    peer_close(&one);
    peer_close(&other);
    teardown();
}

/* --- what is refused --- */

TEST(control, nothing_is_done_before_capabilities)
{
    Peer peer;

    setup();
    peer_connect(&peer);
    ASSERT_TRUE(hear(&peer));
    say(&peer, "{\"execute\": \"stop\", \"id\": 1}");
    EXPECT_ERROR(&peer, "CommandNotFound",
                 "the first command of a connection is qmp_capabilities");
    EXPECT_EQ(json_integer_value(json_object_get(peer.message, "id")), 1);
    control_event(control, "STOP", NULL); /* it is told no events either */
    say(&peer, "{\"execute\": \"qmp_capabilities\"}");
    EXPECT_RETURN(&peer);
    say(&peer, "{\"execute\": \"qmp_capabilities\"}");
    EXPECT_ERROR(&peer, "CommandNotFound", "capabilities have been negotiated already");
    EXPECT_EQ(nb_halts, 0);
    peer_close(&peer);
    teardown();
}

TEST(control, capabilities_that_are_not_offered_are_refused)
{
    Peer peer;

    setup();
    peer_connect(&peer);
    ASSERT_TRUE(hear(&peer));
    say(&peer, "{\"execute\": \"qmp_capabilities\", \"arguments\": {\"enable\": [\"oob\"]}}");
    EXPECT_ERROR(&peer, "GenericError", "capability 'oob' is not offered");
    say(&peer, "{\"execute\": \"qmp_capabilities\", \"arguments\": {\"enable\": [1]}}");
    EXPECT_ERROR(&peer, "GenericError", "qmp_capabilities: argument 'enable' is not a list of strings");
    say(&peer, "{\"execute\": \"qmp_capabilities\", \"arguments\": {\"enable\": []}}");
    EXPECT_RETURN(&peer);
    say(&peer, "{\"execute\": \"query-status\"}");
    EXPECT_RETURN(&peer);
    peer_close(&peer);
    teardown();
}

TEST(control, commands_are_taken_strictly)
{
    static const struct {
        const char *text, *class, *desc;
    } cases[] = {
        { "[]", "GenericError", "a command is an object" },
        { "{}", "GenericError", "member 'execute' is missing" },
        { "{\"execute\": 1}", "GenericError", "member 'execute' is no string" },
        { "{\"execute\": \"stop\", \"argument\": {}}", "GenericError",
          "a command has no member 'argument'" },
        { "{\"execute\": \"stop\", \"arguments\": []}", "GenericError",
          "member 'arguments' is no object" },
        { "{\"execute\": \"stop\", \"arguments\": {\"now\": true}}", "GenericError",
          "stop: there is no argument 'now'" },
        { "{\"execute\": \"stopp\"}", "CommandNotFound",
          "there is no command 'stopp'; see query-commands" },
        { "{\"execute\": \"\"}", "CommandNotFound",
          "there is no command ''; see query-commands" },
        { "{\"execute\": \"st\\u00f6p\"}", "CommandNotFound",
          "there is no command 'st\xc3\xb6p'; see query-commands" },
    };
    Peer peer;

    setup();
    peer_begin(&peer);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        say(&peer, cases[i].text);
        EXPECT_ERROR(&peer, cases[i].class, cases[i].desc);
    }
    EXPECT_EQ(nb_halts, 0);
    peer_close(&peer);
    teardown();
}

TEST(control, what_is_no_json_is_an_error_and_the_next_line_is_taken)
{
    static const char *const lines[] = {
        "hello",
        "{\"execute\" \"stop\"}",
        "{\"execute\": stop}",
        "{'execute': 'stop'}",
        "{\"execute\": \"stop\",}",
        "{\"execute\": \"stop\", \"execute\": \"stop\"}",
        "{\"execute\": \"st\xc3\x28op\"}",
        "{\"execute\": \"stop\\u0000\"}",
        "{\"execute\": \"\\ud800\"}",
        "{\"execute\": 1e999}",
        "{\"execute\": 123456789012345678901234567890}",
        "{\"execute\": \"stop",
        "{\"\xed\xa0\x80\": 1}",
        "}",
    };
    Peer peer;

    setup();
    peer_begin(&peer);
    for (unsigned i = 0; i < ARRAY_SIZE(lines); i++) {
        say(&peer, lines[i]);
        say(&peer, "\n{\"execute\": \"query-status\"}\n");
        ASSERT_TRUE(hear(&peer));
        EXPECT_STREQ(heard(&peer, "error", "class"), "GenericError");
        EXPECT_RETURN(&peer);
        EXPECT_STREQ(heard(&peer, "return", "status"), "running");
    }
    peer_close(&peer);
    teardown();
}

TEST(control, a_message_may_come_byte_by_byte)
{
    const char *text = "{\"execute\": \"query-status\"}";
    Peer peer;

    setup();
    peer_begin(&peer);
    for (const char *c = text; *c; c++) {
        say_bytes(&peer, c, 1);
        for (unsigned i = 0; i < 3; i++) {
            poll_once();
        }
    }
    EXPECT_RETURN(&peer);
    peer_close(&peer);
    teardown();
}

static void expect_cut_off(char c, size_t nb, const char *why)
{
    Peer peer;

    peer_begin(&peer);
    say(&peer, "{\"execute\": ");
    for (size_t i = 0; i < nb; i++) {
        say_bytes(&peer, &c, 1);
    }
    EXPECT_ERROR(&peer, "GenericError", why);
    EXPECT_FALSE(hear(&peer));
    peer_close(&peer);
}

TEST(control, messages_that_are_too_long_or_too_deep_end_the_connection)
{
    Peer peer;

    setup();
    expect_cut_off(' ', JSON_FRAME_BYTES_MAX - 11, "the message is too long");
    expect_cut_off('[', JSON_FRAME_DEPTH_MAX, "the message is nested too deeply");
    peer_begin(&peer); /* others are served */
    peer_close(&peer);
    teardown();
}

/* --- clients that go, stay away, or are too many --- */

TEST(control, a_command_is_carried_out_though_its_client_has_gone)
{
    Peer peer;

    setup();
    for (unsigned i = 1; i <= 5; i++) {
        frozen = true;
        peer_begin(&peer);
        say(&peer, i % 2 ? "{\"execute\": \"stop\"}" : "{\"execute\": \"cont\"}");
        for (unsigned k = 0; k < i; k++) { /* it goes at one moment or another */
            poll_once();
        }
        peer_close(&peer);
        frozen = false;
        while (run_state_status(&run) != (i % 2 ? RUN_PAUSED : RUN_RUNNING)) {
            poll_once();
        }
    }
    EXPECT_EQ(nb_halts, 3);
    teardown();
}

TEST(control, the_end_comes_though_a_command_waits)
{
    Peer peer;

    setup();
    frozen = true;
    peer_begin(&peer);
    say(&peer, "{\"execute\": \"stop\"}");
    for (unsigned i = 0; i < 5; i++) {
        poll_once();
    }
    teardown();
    EXPECT_ERROR(&peer, "GenericError", "the machine is ending");
    EXPECT_FALSE(hear(&peer));
    EXPECT_EQ(nb_halts, 0);
    peer_close(&peer);
}

static bool is_cut_off(const Peer *peer)
{
    struct pollfd pfd = { .fd = peer->fd, .events = POLLIN };

    return poll(&pfd, 1, 0) == 1 && pfd.revents & POLLHUP;
}

TEST(control, a_client_that_reads_no_events_is_cut_off)
{
    Peer lazy, good;
    unsigned nb = 0;

    setup();
    peer_begin(&lazy);
    peer_begin(&good);
    while (!is_cut_off(&lazy) && nb < 100000) {
        control_event(control, "RESET", json_pack("{s:b, s:i}", "guest", true, "n", (int)nb++));
        EXPECT_EVENT(&good, "RESET");
    }
    EXPECT_LT(nb, 100000);
    EXPECT_GT(nb * 100, CONTROL_EVENT_BYTES_MAX);
    peer_close(&lazy);
    say(&good, "{\"execute\": \"query-status\"}");
    EXPECT_RETURN(&good);
    peer_close(&good);
    teardown();
}

TEST(control, a_client_that_reads_no_answers_is_not_read_from)
{
    const char *text = "{\"execute\": \"query-commands\"}\n";
    size_t len = strlen(text), sent = 0;
    unsigned idle = 0;
    Peer peer;

    setup();
    peer_begin(&peer);
    while (idle < 1000) { /* until nothing moves any more */
        ssize_t n = send(peer.fd, text + sent % len, len - sent % len, MSG_NOSIGNAL);

        idle = n < 0 ? idle + 1 : 0;
        sent += n > 0 ? (size_t)n : 0;
        poll_once();
        ASSERT_LT(sent, 16 << 20);
    }
    for (size_t i = 0; i < sent / len; i++) { /* none is lost */
        EXPECT_RETURN(&peer);
    }
    peer_close(&peer);
    teardown();
}

TEST(control, more_clients_than_there_may_be_wait_for_others_to_go)
{
    static Peer peers[CONTROL_CLIENTS_MAX], late;

    setup();
    for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++) {
        peer_begin(&peers[i]);
    }
    peer_connect(&late);
    for (unsigned i = 0; i < 50; i++) {
        poll_once();
    }
    EXPECT_TRUE(recv(late.fd, late.in, 1, MSG_PEEK) < 0 && errno == EAGAIN);
    peer_close(&peers[3]);
    ASSERT_TRUE(hear(&late));
    EXPECT_TRUE(json_object_get(late.message, "QMP") != NULL);
    peer_close(&late);
    for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++) {
        if (i != 3) {
            peer_close(&peers[i]);
        }
    }
    teardown();
}

/* --- disks --- */

/* Send a command with arguments in the manner of json_pack(). */
static void command(Peer *peer, const char *name, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    json_t *message = json_pack("{s:s, s:o}", "execute", name, "arguments",
                                json_vpack_ex(NULL, 0, fmt, ap));
    char *text = json_dumps(message, 0);

    va_end(ap);
    ASSERT_TRUE(text != NULL);
    say(peer, text);
    free(text);
    json_decref(message);
}

/* Of the only disk in the last answer. */
static const json_t *of_disk(const Peer *peer, const char *key)
{
    return json_object_get(json_array_get(json_object_get(peer->message, "return"), 0), key);
}

static const char *node_driver(const Peer *peer, unsigned index)
{
    const char *name = json_string_value(
        json_object_get(json_array_get(of_disk(peer, "x-nodes"), index), "driver"));

    return name ? name : "(none)";
}

static json_int_t limit(const Peer *peer, const char *name)
{
    return json_integer_value(json_object_get(of_disk(peer, "inserted"), name));
}

static void query_block(Peer *peer)
{
    command(peer, "query-block", "{}");
    EXPECT_RETURN(peer);
    EXPECT_EQ(json_array_size(json_object_get(peer->message, "return")), 1);
    EXPECT_STREQ(json_string_value(of_disk(peer, "device")), disk_id);
}

TEST(control_block, a_disk_is_resized)
{
    Peer peer;

    setup();
    peer_begin(&peer);
    command(&peer, "block_resize", "{s:s, s:i}", "device", disk_id, "size", DISK_BYTES / 2);
    EXPECT_RETURN(&peer);
    EXPECT_EQ(blk_length(disk.blk), DISK_BYTES / 2);
    query_block(&peer);
    EXPECT_EQ(json_integer_value(json_object_get(
                  json_object_get(of_disk(&peer, "inserted"), "image"), "virtual-size")),
              DISK_BYTES / 2);
    command(&peer, "block_resize", "{s:s, s:i}", "node-name", bdrv_id(blk_node(disk.blk)), "size",
            DISK_BYTES);
    EXPECT_RETURN(&peer);
    EXPECT_EQ(blk_length(disk.blk), DISK_BYTES);
    command(&peer, "block_resize", "{s:s, s:i}", "device", disk_id, "size", 1000);
    ASSERT_TRUE(hear(&peer));
    EXPECT_STREQ(heard(&peer, "error", "class"), "GenericError");
    command(&peer, "block_resize", "{s:s, s:i}", "device", "d9", "size", 512);
    EXPECT_ERROR(&peer, "DeviceNotFound", "there is no disk 'd9'");
    command(&peer, "block_resize", "{s:s, s:i}", "node-name", "n9", "size", 512);
    EXPECT_ERROR(&peer, "DeviceNotFound", "there is no node 'n9'");
    command(&peer, "block_resize", "{s:i}", "size", 512);
    EXPECT_ERROR(&peer, "GenericError", "one of device and node-name says which disk");
    command(&peer, "block_resize", "{s:s, s:i}", "device", disk_id, "size", -512);
    EXPECT_ERROR(&peer, "GenericError",
                 "block_resize: argument 'size' is not a number of bytes");
    EXPECT_EQ(blk_length(disk.blk), DISK_BYTES);
    peer_close(&peer);
    teardown();
}

TEST(control_block, a_throttle_comes_changes_and_goes)
{
    Peer peer;

    setup();
    peer_begin(&peer);
    command(&peer, "block_set_io_throttle", "{s:s, s:i, s:i, s:i, s:i}", "device", disk_id,
            "iops", 100, "bps_rd", 4096, "bps_rd_max", 8192, "bps_rd_max_length", 3);
    EXPECT_RETURN(&peer);
    query_block(&peer);
    EXPECT_STREQ(node_driver(&peer, 0), "throttle");
    EXPECT_EQ(limit(&peer, "iops"), 100);
    EXPECT_EQ(limit(&peer, "bps_rd"), 4096);
    EXPECT_EQ(limit(&peer, "bps_rd_max"), 8192);
    EXPECT_EQ(limit(&peer, "bps_rd_max_length"), 3);
    command(&peer, "block_set_io_throttle", "{s:s, s:i}", "id", disk_id, "iops_wr", 7);
    EXPECT_RETURN(&peer);
    query_block(&peer);
    EXPECT_STREQ(node_driver(&peer, 0), "throttle");
    EXPECT_STREQ(node_driver(&peer, 1), "mem");
    EXPECT_EQ(limit(&peer, "iops"), 0);
    EXPECT_EQ(limit(&peer, "bps_rd"), 0);
    EXPECT_EQ(limit(&peer, "iops_wr"), 7);
    command(&peer, "block_set_io_throttle", "{s:s, s:i, s:s}", "device", disk_id, "iops", 5,
            "group", "slow");
    EXPECT_RETURN(&peer);
    command(&peer, "block_set_io_throttle", "{s:s}", "device", disk_id);
    EXPECT_RETURN(&peer);
    query_block(&peer);
    EXPECT_STREQ(node_driver(&peer, 0), "mem");
    peer_close(&peer);
    teardown();
}

TEST(control_block, limits_that_cannot_be_leave_no_filter)
{
    Peer peer;

    setup();
    peer_begin(&peer);
    command(&peer, "block_set_io_throttle", "{s:s, s:i, s:i}", "device", disk_id, "iops", 100,
            "iops_max", 50);
    ASSERT_TRUE(hear(&peer));
    EXPECT_STREQ(heard(&peer, "error", "class"), "GenericError");
    query_block(&peer);
    EXPECT_STREQ(node_driver(&peer, 0), "mem");
    peer_close(&peer);
    teardown();
}

TEST(control_block, faults_are_added_counted_and_removed)
{
    char buf[512];
    Peer peer;

    setup();
    peer_begin(&peer);
    command(&peer, "x-fault-add", "{s:s, s:s, s:s, s:i}", "device", disk_id, "op", "write",
            "error", "ENOSPC", "count", 1);
    EXPECT_RETURN(&peer);
    EXPECT_EQ(json_integer_value(
                  json_object_get(json_object_get(peer.message, "return"), "rule")),
              0);
    command(&peer, "x-fault-add", "{s:s, s:s, s:s}", "device", disk_id, "op", "read", "error",
            "EIO");
    EXPECT_RETURN(&peer);
    memset(buf, 1, sizeof(buf));
    EXPECT_EQ(run_write(disk.blk, 0, 512, buf, 0), -ENOSPC);
    EXPECT_EQ(run_write(disk.blk, 0, 512, buf, 0), 0);
    EXPECT_EQ(run_read(disk.blk, 0, 512, buf), -EIO);
    command(&peer, "x-query-faults", "{s:s}", "device", disk_id);
    EXPECT_RETURN(&peer);
    const json_t *rules = json_object_get(peer.message, "return");
    EXPECT_EQ(json_array_size(rules), 2);
    EXPECT_EQ(json_integer_value(json_object_get(json_array_get(rules, 0), "matched")), 2);
    EXPECT_EQ(json_integer_value(json_object_get(json_array_get(rules, 0), "struck")), 1);
    command(&peer, "x-fault-remove", "{s:s}", "device", disk_id);
    EXPECT_ERROR(&peer, "GenericError", "x-fault-remove: argument 'rule' is missing");
    command(&peer, "x-fault-remove", "{s:s, s:i}", "device", disk_id, "rule", 1);
    EXPECT_RETURN(&peer);
    EXPECT_EQ(run_read(disk.blk, 0, 512, buf), 0);
    command(&peer, "x-fault-remove", "{s:s, s:i}", "device", disk_id, "rule", 0);
    EXPECT_RETURN(&peer);
    query_block(&peer);
    EXPECT_STREQ(node_driver(&peer, 0), "mem");
    command(&peer, "x-fault-remove", "{s:s, s:i}", "device", disk_id, "rule", 0);
    ASSERT_TRUE(hear(&peer));
    EXPECT_STREQ(heard(&peer, "error", "class"), "GenericError");
    command(&peer, "x-fault-add", "{s:s, s:s}", "device", disk_id, "op", "erase");
    ASSERT_TRUE(hear(&peer));
    EXPECT_STREQ(heard(&peer, "error", "class"), "GenericError");
    query_block(&peer);
    EXPECT_STREQ(node_driver(&peer, 0), "mem");
    peer_close(&peer);
    teardown();
}

TEST(control_block, a_change_waits_for_requests_and_queries_do_not_wait_for_it)
{
    char buf[512];
    Peer one, other;

    setup();
    peer_begin(&one);
    peer_begin(&other);
    Request request = { .blk = disk.blk, .kind = REQ_READ, .len_bytes = 512, .buf = buf };
    atomic_store(&disk.yield, MEM_YIELD_PARK);
    request_start(&request, ctx);
    command(&one, "block_resize", "{s:s, s:i}", "device", disk_id, "size", DISK_BYTES / 2);
    for (unsigned i = 0; i < 20; i++) {
        poll_once();
    }
    EXPECT_EQ(blk_length(disk.blk), DISK_BYTES);
    command(&other, "query-status", "{}");
    EXPECT_RETURN(&other);
    command(&other, "stop", "{}");
    EXPECT_EVENT(&other, "STOP");
    EXPECT_RETURN(&other);
    peer_close(&one); /* who asked is gone, the change comes all the same */
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    mem_release_all(&disk);
    while (blk_length(disk.blk) != DISK_BYTES / 2) {
        poll_once();
    }
    EXPECT_EQ(request.ret, 0);
    peer_close(&other);
    teardown();
}

/* --- IOThreads --- */

TEST(control_iothread, polling_is_asked_for_and_set)
{
    Peer peer;
    IOThreadInfo info;

    setup();
    peer_begin(&peer);
    command(&peer, "iothread-set", "{s:s, s:i, s:i}", "id", "io0", "poll-max-ns", 4000,
            "poll-grow", 4);
    EXPECT_RETURN(&peer);
    iothread_query(iothread, &info);
    EXPECT_EQ(info.params.poll_max_ns, 4000);
    EXPECT_EQ(info.params.poll_grow, 4);
    command(&peer, "iothread-set", "{s:s, s:I}", "id", "io0", "poll-max-ns",
            (json_int_t)1000000001);
    EXPECT_ERROR(&peer, "GenericError",
                 "iothread-set: poll-max-ns=1000000001 is above 1000000000");
    command(&peer, "iothread-set", "{s:s}", "id", "io7");
    EXPECT_ERROR(&peer, "DeviceNotFound", "there is no iothread 'io7'; there are: io0");
    command(&peer, "query-iothreads", "{}");
    EXPECT_RETURN(&peer);
    EXPECT_STREQ(json_string_value(of_disk(&peer, "id")), "io0");
    EXPECT_EQ(json_integer_value(of_disk(&peer, "poll-max-ns")), 4000);
    EXPECT_EQ(json_integer_value(of_disk(&peer, "poll-grow")), 4);
    EXPECT_TRUE(json_string_length(of_disk(&peer, "x-cpus")) > 0);
    peer_close(&peer);
    teardown();
}

/* --- no memory --- */

static unsigned fail_nth; /* counts down at each allocation for JSON; that which makes it 0 fails */
static unsigned nb_allocations;

static void *scarce_malloc(size_t len_bytes)
{
    nb_allocations++;
    return fail_nth > 0 && --fail_nth == 0 ? NULL : malloc(len_bytes);
}

typedef struct Execution {
    QmpSession session;
    const char *text;
    json_t *answer;
} Execution;

static void execution_entry(void *opaque)
{
    Execution *execution = opaque;

    assert_in_coroutine();
    execution->answer =
        qmp_co_execute(&execution->session, execution->text, strlen(execution->text));
}

/* Of the library's parser, which does not stand it when one of them fails (jansson 2.14). */
static unsigned count_parsing(const char *text)
{
    nb_allocations = 0;
    json_decref(json_loads(text, JSON_REJECT_DUPLICATES, NULL));
    return nb_allocations;
}

TEST(control_memory, each_allocation_of_a_command_may_fail)
{
    static const char *const texts[] = {
        "{\"execute\": \"query-status\", \"id\": [1, {\"a\": \"b\"}]}",
        "{\"execute\": \"query-block\"}",
        "{\"execute\": \"query-iothreads\"}",
        "{\"execute\": \"query-commands\"}",
        "{\"execute\": \"query-version\"}",
        "{\"execute\": \"no-such-command\", \"id\": 1}",
        "{\"execute\": ",
        "{\"execute\": \"block_set_io_throttle\", \"arguments\": {\"device\": \"mem0\", "
        "\"iops\": 1000}}",
        "{\"execute\": \"block_set_io_throttle\", \"arguments\": {\"device\": \"mem0\"}}",
        "{\"execute\": \"x-fault-add\", \"arguments\": {\"device\": \"mem0\", "
        "\"op\": \"discard\", \"error\": \"EIO\"}}",
        "{\"execute\": \"x-query-faults\", \"arguments\": {\"device\": \"mem0\"}}",
        "{\"execute\": \"x-fault-remove\", \"arguments\": {\"device\": \"mem0\", \"rule\": 0}}",
    };

    setup();
    ASSERT_STREQ(disk_id, "mem0");
    json_set_alloc_funcs(scarce_malloc, free);
    for (unsigned i = 0; i < ARRAY_SIZE(texts); i++) {
        Execution execution = { { &target, true }, texts[i], NULL };
        unsigned nb_parsing = count_parsing(texts[i]), nth = 0;
        bool is_query = strstr(texts[i], "query-block") || strstr(texts[i], "query-commands");

        aio_co_run_sync(ctx, execution_entry, &execution);
        json_t *whole = execution.answer;

        ASSERT_TRUE(json_is_object(whole));
        do {
            fail_nth = nb_parsing + ++nth;
            aio_co_run_sync(ctx, execution_entry, &execution);
            if (is_query && json_object_get(execution.answer, "return")) {
                EXPECT_TRUE(json_equal(execution.answer, whole)); /* all or nothing */
            }
            json_decref(execution.answer);
            ASSERT_LT(nth, 10000);
        } while (fail_nth == 0); /* it was reached */
        EXPECT_GT(nth, 3);
        json_decref(whole);
        fail_nth = 0;
    }
    fail_nth = 1;
    EXPECT_TRUE(qmp_event("STOP", NULL) == NULL);
    fail_nth = 0;
    json_set_alloc_funcs(malloc, free);
    /* What could not be answered may have been done. */
    Peer peer;

    peer_begin(&peer);
    for (int rule = 0; rule < FAULTY_RULES_MAX; rule++) {
        command(&peer, "x-fault-remove", "{s:s, s:i}", "device", disk_id, "rule", rule);
        ASSERT_TRUE(hear(&peer));
    }
    EXPECT_STREQ(blk_node(disk.blk)->driver->name, "mem");
    peer_close(&peer);
    teardown();
}

TEST(control_memory, a_client_for_whose_answer_there_is_none_is_cut_off)
{
    Peer peer;

    setup();
    peer_begin(&peer);
    json_set_alloc_funcs(scarce_malloc, free);
    fail_nth = 1;
    control_event(control, "STOP", NULL);
    json_set_alloc_funcs(malloc, free);
    EXPECT_FALSE(hear(&peer));
    peer_close(&peer);
    peer_begin(&peer);
    peer_close(&peer);
    teardown();
}

/* --- the socket --- */

TEST(control, a_path_that_is_in_use_is_refused)
{
    Error err;

    setup();
    EXPECT_TRUE(control_create(path, &target, &err) == NULL);
    EXPECT_EQ(err.code, -EADDRINUSE);
    EXPECT_EQ(strncmp(err.msg, "--control: ", 11), 0);
    teardown();
}

TEST_MAIN()
