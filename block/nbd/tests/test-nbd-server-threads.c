/*
 * test-nbd-server-threads.c - connections in several threads: load while they come, go and vanish,
 * drained sections and changes of length meanwhile; stopping
 */
#include <pthread.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "block/nbd/tests/nbd-test-client.h"
#include "io/base/thread.h"

#define WORKERS     6
#define ROUNDS      8
#define AREA_BYTES  65536u /* of the disk, that a worker has for its own */
#define PIECE_BYTES 2048u
#define PIECES      (AREA_BYTES / PIECE_BYTES)

static_assert(WORKERS * AREA_BYTES <= DISK_BYTES / 2, "the other half comes and goes");

static const NbdHeaders all_headers[] = { NBD_HEADERS_SIMPLE, NBD_HEADERS_STRUCTURED,
                                          NBD_HEADERS_EXTENDED };
static char listener_path[64];

static main_fn void leave(Bench *bench, int fd)
{
    close(fd);
    bench_finish(bench);
}

typedef struct Stop {
    NbdServer *server;
    int64_t deadline_ns;
    int ret;
    _Atomic bool done;
} Stop;

static co_fn void stop_entry(void *opaque)
{
    Stop *stop = opaque;

    assert_main();
    stop->ret = nbd_server_co_stop(stop->server, stop->deadline_ns);
    stop->done = true;
}

static main_fn void stop_start(Bench *bench, Stop *stop, int64_t deadline_ns)
{
    *stop = (Stop){ .server = bench->server, .deadline_ns = deadline_ns };
    Coroutine *co = co_create(stop_entry, stop);

    ASSERT_TRUE(co != NULL);
    co_enter(co);
}

/* The first connection makes the listener; nbd_server_co_stop() waits for what came through it. */
static main_fn void listen_once(Bench *bench)
{
    SocketAddress addr;
    Error err;

    if (!nbd_server_listener_name(bench->server, 0)) {
        snprintf(listener_path, sizeof(listener_path), "/tmp/test-nbd-server-%d", (int)getpid());
        ASSERT_EQ(socket_address_set_unix(&addr, listener_path, &err), 0);
        ASSERT_EQ(nbd_server_listen(bench->server, &addr, &err), 0);
        nbd_server_start(bench->server);
    }
}

/* Any thread. -1: nobody listens any more. */
static int connect_to_listener(void)
{
    struct sockaddr_un sa = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strcpy(sa.sun_path, listener_path);
    ASSERT_TRUE(fd >= 0);
    if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static main_fn int open_through_listener(Bench *bench, NbdHeaders headers)
{
    unsigned nb = nbd_server_nb_connections(bench->server);

    listen_once(bench);
    int fd = connect_to_listener();

    ASSERT_TRUE(fd >= 0);
    bench_wait_connections(bench, nb + 1);
    (void)client_enter(fd, headers);
    return fd;
}

/* --- load --- */

typedef struct Worker {
    pthread_t thread;
    unsigned index;
    _Atomic unsigned nb_answered;
    bool written[PIECES]; /* the server said so */
    uint8_t seed[PIECES]; /* of what was written last */
} Worker;

static uint64_t piece_offset(const Worker *w, unsigned piece)
{
    return w->index * AREA_BYTES + piece * PIECE_BYTES;
}

static void piece_fill(uint8_t buf[PIECE_BYTES], unsigned piece, uint8_t seed)
{
    for (unsigned i = 0; i < PIECE_BYTES; i++) {
        buf[i] = (uint8_t)(seed * 31 + piece * 5 + i * 7 + i / 251);
    }
}

static void send_write(const Worker *w, int fd, NbdHeaders headers, unsigned piece, uint8_t seed,
                       size_t part_bytes)
{
    uint16_t flags = headers == NBD_HEADERS_EXTENDED ? NBD_CMD_FLAG_PAYLOAD_LEN : 0;
    uint8_t buf[PIECE_BYTES];

    piece_fill(buf, piece, seed);
    client_request(fd, headers, NBD_CMD_WRITE, flags, piece, piece_offset(w, piece), PIECE_BYTES);
    client_send(fd, buf, part_bytes);
}

/* All pieces at once, then their answers in whichever order. */
static void write_all(Worker *w, int fd, NbdHeaders headers, uint8_t seed)
{
    bool answered[PIECES] = { false };

    for (unsigned i = 0; i < PIECES; i++) {
        send_write(w, fd, headers, i, seed, PIECE_BYTES);
        w->seed[i] = seed;
    }
    for (unsigned i = 0; i < PIECES; i++) {
        NbdReply reply = client_reply(fd, headers);

        ASSERT_TRUE(reply.cookie < PIECES && !answered[reply.cookie]);
        ASSERT_TRUE(reply.simple ? reply.error == 0 : reply.type == NBD_REPLY_TYPE_NONE);
        answered[reply.cookie] = true;
    }
}

static void read_all(const Worker *w, int fd, NbdHeaders headers)
{
    uint8_t in[PIECE_BYTES], expected[PIECE_BYTES];

    for (unsigned i = 0; i < PIECES; i++) {
        ASSERT_EQ(client_read(fd, headers, 0, piece_offset(w, i), in, sizeof(in), NULL), 0u);
        piece_fill(expected, i, w->seed[i]);
        ASSERT_EQ(memcmp(in, expected, sizeof(in)), 0);
    }
}

/* In order, with answers due, in the middle of a header, and in the middle of a payload. */
static void vanish(const Worker *w, int fd, NbdHeaders headers, unsigned how)
{
    switch (how % 4) {
    case 0:
        client_request(fd, headers, NBD_CMD_DISC, 0, 0, 0, 0);
        break;
    case 1:
        for (unsigned i = 0; i < PIECES; i++) {
            client_request(fd, headers, NBD_CMD_READ, 0, i, piece_offset(w, i), PIECE_BYTES);
        }
        break;
    case 2:
        client_send(fd, "\x25\x60\x95", 3);
        break;
    default:
        send_write(w, fd, headers, 3, 0xee, PIECE_BYTES / 2); /* must not be carried out */
    }
    close(fd);
}

static void *come_and_go_thread(void *opaque)
{
    Worker *w = opaque;

    for (unsigned round = 0; round < ROUNDS; round++) {
        NbdHeaders headers = all_headers[(w->index + round) % 3];
        int fd = connect_to_listener();

        ASSERT_TRUE(fd >= 0);
        (void)client_enter(fd, headers);
        if (round > 0) {
            read_all(w, fd, headers);
        }
        write_all(w, fd, headers, (uint8_t)(round * WORKERS + w->index));
        ASSERT_EQ(client_run(fd, headers, NBD_CMD_FLUSH, 0, 0, 0), 0u);
        read_all(w, fd, headers);
        vanish(w, fd, headers, w->index + round);
        atomic_fetch_add(&w->nb_answered, 1);
    }
    return NULL;
}

static void start_workers(Worker workers[WORKERS], void *(*fn)(void *))
{
    memset(workers, 0, WORKERS * sizeof(*workers));
    for (unsigned i = 0; i < WORKERS; i++) {
        workers[i].index = i;
        ASSERT_EQ(pthread_create(&workers[i].thread, NULL, fn, &workers[i]), 0);
    }
}

/* Has each of them got that far? */
static bool have_answered(const Worker workers[WORKERS], unsigned nb)
{
    for (unsigned i = 0; i < WORKERS; i++) {
        if (atomic_load(&workers[i].nb_answered) < nb) {
            return false;
        }
    }
    return true;
}

static void join_workers(Worker workers[WORKERS])
{
    for (unsigned i = 0; i < WORKERS; i++) {
        ASSERT_EQ(pthread_join(workers[i].thread, NULL), 0);
    }
}

/* Every byte that a client reads is what it wrote last, whatever the others and the main thread
 * do. */
TEST(nbd_server_threads, clients_come_load_and_vanish_while_the_disk_is_drained_and_resized)
{
    Worker workers[WORKERS];
    Bench bench;
    Error err;

    bench_init(&bench, &(BenchConfig){ .nb_iothreads = 4 });
    bench.mem.yield = MEM_YIELD_TWICE;
    listen_once(&bench);
    start_workers(workers, come_and_go_thread);
    for (unsigned i = 0; !have_answered(workers, ROUNDS); i++) {
        aio_poll(bench.main, false);
        if (i % 8 == 0) {
            blk_drained_begin(bench.mem.blk);
            EXPECT_EQ(bench.mem.stats.active, 0);
            blk_drained_end(bench.mem.blk);
        } else if (i % 8 == 4) {
            ASSERT_EQ(blk_truncate(bench.mem.blk, i % 16 == 4 ? DISK_BYTES / 2 : DISK_BYTES, &err),
                      0);
        }
        sched_yield();
    }
    join_workers(workers);
    bench_finish(&bench);
}

/* --- stopping --- */

TEST(nbd_server_threads, stopping_finishes_what_is_in_flight_and_refuses_the_rest)
{
    Bench bench;
    Stop stop;

    bench_init(&bench, &(BenchConfig){ .nb_iothreads = 2 });
    int fd = open_through_listener(&bench, NBD_HEADERS_EXTENDED);
    int idle = open_through_listener(&bench, NBD_HEADERS_SIMPLE);

    bench.mem.yield = MEM_YIELD_PARK;
    client_request(fd, NBD_HEADERS_EXTENDED, NBD_CMD_FLUSH, 0, 1, 0, 0);
    bench_wait_parked(&bench, 1);
    stop_start(&bench, &stop, -1);
    EXPECT_TRUE(client_sees_end(idle)); /* nothing to wait for */
    EXPECT_EQ(client_run(fd, NBD_HEADERS_EXTENDED, NBD_CMD_TRIM, 0, 0, 512), NBD_ESHUTDOWN);
    EXPECT_FALSE(stop.done);
    bench.mem.yield = MEM_YIELD_NEVER;
    mem_release_all(&bench.mem);
    EXPECT_EQ(client_error(fd, NBD_HEADERS_EXTENDED, 1), 0u);
    EXPECT_TRUE(client_sees_end(fd));
    AIO_WAIT_WHILE(bench.main, !stop.done);
    EXPECT_EQ(stop.ret, 0);
    EXPECT_EQ(bench.mem.stats.ops[MEM_DISCARD], 0u);
    close(idle);
    leave(&bench, fd);
    EXPECT_FALSE(test_logged(NULL));
}

/* It may be all of the disk: the read under way is the last one. */
TEST(nbd_server_threads, stopping_ends_caching)
{
    Bench bench;
    Stop stop;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = open_through_listener(&bench, NBD_HEADERS_SIMPLE);

    bench.mem.yield = MEM_YIELD_PARK;
    client_request(fd, NBD_HEADERS_SIMPLE, NBD_CMD_CACHE, 0, 1, 0, DISK_BYTES);
    bench_wait_parked(&bench, 1);
    stop_start(&bench, &stop, -1);
    bench.mem.yield = MEM_YIELD_NEVER;
    mem_release_all(&bench.mem);
    EXPECT_EQ(client_error(fd, NBD_HEADERS_SIMPLE, 1), NBD_ESHUTDOWN);
    AIO_WAIT_WHILE(bench.main, !stop.done);
    EXPECT_EQ(stop.ret, 0);
    EXPECT_EQ(bench.mem.stats.ops[MEM_READ], 1u);
    leave(&bench, fd);
}

TEST(nbd_server_threads, stopping_does_not_wait_beyond_its_deadline_for_clients)
{
    static uint8_t in[65536];
    Bench bench;
    Stop stop;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = open_through_listener(&bench, NBD_HEADERS_SIMPLE);

    for (unsigned i = 0; i < 64; i++) { /* more than the socket holds, and none is taken */
        client_request(fd, NBD_HEADERS_SIMPLE, NBD_CMD_READ, 0, i, 0, sizeof(in));
    }
    while (bench.mem.stats.ops[MEM_READ] < 5) {
        sched_yield();
    }
    stop_start(&bench, &stop, aio_now_ns() + 100000000);
    AIO_WAIT_WHILE(bench.main, !stop.done);
    EXPECT_EQ(stop.ret, -ETIMEDOUT);
    leave(&bench, fd);
}

TEST(nbd_server_threads, stopping_ends_handshakes)
{
    Bench bench;
    Stop stop;

    bench_init(&bench, &(BenchConfig){ 0 });
    int listened = open_through_listener(&bench, NBD_HEADERS_SIMPLE);
    int fd = client_connect(&bench);

    client_greet(fd, NBD_FLAG_FIXED_NEWSTYLE);
    stop_start(&bench, &stop, -1);
    EXPECT_TRUE(client_sees_end(fd));
    AIO_WAIT_WHILE(bench.main, !stop.done);
    int late = client_connect(&bench);

    EXPECT_TRUE(client_sees_end(late));
    close(late);
    close(listened);
    leave(&bench, fd);
}

/* While requests come without a pause: each is answered, with success or ESHUTDOWN, in that
 * order. */
TEST(nbd_server_threads, stopping_under_load_answers_what_it_has_taken)
{
    Bench bench;
    Stop stop;

    for (unsigned round = 0; round < 20; round++) {
        unsigned answered = 0;
        uint8_t buf[NBD_SIMPLE_REPLY_BYTES];
        NbdReply reply;

        bench_init(&bench, &(BenchConfig){ .nb_iothreads = 1 });
        int fd = open_through_listener(&bench, NBD_HEADERS_SIMPLE);

        for (unsigned i = 0; i < 100; i++) {
            client_request(fd, NBD_HEADERS_SIMPLE, NBD_CMD_TRIM, 0, i, 0, 512);
        }
        for (unsigned i = 0; i < round; i++) {
            EXPECT_EQ(client_reply(fd, NBD_HEADERS_SIMPLE).error, 0u);
            answered++;
        }
        stop_start(&bench, &stop, -1);
        while (recv(fd, buf, sizeof(buf), MSG_WAITALL) == sizeof(buf)) {
            nbd_reply_decode(buf, &reply);
            EXPECT_TRUE(reply.error == 0 || reply.error == NBD_ESHUTDOWN);
            answered += reply.error == 0;
        }
        AIO_WAIT_WHILE(bench.main, !stop.done);
        EXPECT_EQ(stop.ret, 0);
        EXPECT_EQ(answered, bench.mem.stats.ops[MEM_DISCARD]);
        leave(&bench, fd);
    }
}

/* True: the server answered, and has done it. False: it refused, or ended the connection. */
static bool write_is_answered(const Worker *w, int fd, unsigned piece, uint8_t seed)
{
    uint8_t buf[NBD_REQUEST_BYTES + PIECE_BYTES], in[NBD_SIMPLE_REPLY_BYTES];
    NbdRequest req = { .type = NBD_CMD_WRITE,
                       .cookie = piece,
                       .offset_bytes = piece_offset(w, piece),
                       .len_bytes = PIECE_BYTES };
    NbdReply reply;

    ASSERT_EQ(nbd_request_encode(buf, NBD_HEADERS_SIMPLE, &req), NBD_REQUEST_BYTES);
    piece_fill(buf + NBD_REQUEST_BYTES, piece, seed);
    if (send(fd, buf, sizeof(buf), MSG_NOSIGNAL) != sizeof(buf) ||
        recv(fd, in, sizeof(in), MSG_WAITALL) != sizeof(in)) {
        return false;
    }
    nbd_reply_decode(in, &reply);
    ASSERT_TRUE(reply.error == 0 || reply.error == NBD_ESHUTDOWN);
    return reply.error == 0;
}

static void *write_until_the_end_thread(void *opaque)
{
    Worker *w = opaque;
    int fd = connect_to_listener();
    bool on = true;

    ASSERT_TRUE(fd >= 0);
    (void)client_enter(fd, NBD_HEADERS_SIMPLE);
    for (unsigned n = 0; on; n++) {
        unsigned piece = n % PIECES;
        uint8_t seed = (uint8_t)(n / PIECES + 1);

        w->written[piece] = false;
        on = write_is_answered(w, fd, piece, seed);
        if (on) {
            w->written[piece] = true;
            w->seed[piece] = seed;
            atomic_fetch_add(&w->nb_answered, 1);
        }
    }
    close(fd);
    return NULL;
}

TEST(nbd_server_threads, stopping_under_the_load_of_many_keeps_what_was_answered)
{
    uint8_t expected[PIECE_BYTES];
    Worker workers[WORKERS];
    Bench bench;
    Stop stop;

    bench_init(&bench, &(BenchConfig){ .nb_iothreads = 4 });
    bench.mem.yield = MEM_YIELD_TWICE;
    listen_once(&bench);
    start_workers(workers, write_until_the_end_thread);
    while (!have_answered(workers, 50)) {
        aio_poll(bench.main, false);
    }
    stop_start(&bench, &stop, -1);
    AIO_WAIT_WHILE(bench.main, !stop.done);
    join_workers(workers);
    EXPECT_EQ(stop.ret, 0);
    for (unsigned i = 0; i < WORKERS; i++) {
        for (unsigned piece = 0; piece < PIECES; piece++) {
            if (workers[i].written[piece]) {
                piece_fill(expected, piece, workers[i].seed[piece]);
                EXPECT_EQ(memcmp(bench.mem.data + piece_offset(&workers[i], piece), expected,
                                 PIECE_BYTES),
                          0);
            }
        }
    }
    bench_finish(&bench);
}

/* A second signal: clients that take no answers do not keep the server. */
TEST(nbd_server_threads, aborting_ends_the_wait_for_clients_of_every_thread)
{
    static const unsigned nb = 8;
    int fds[8];
    Bench bench;
    Stop stop;

    bench_init(&bench, &(BenchConfig){ .nb_iothreads = 4 });
    for (unsigned i = 0; i < nb; i++) {
        fds[i] = open_through_listener(&bench, NBD_HEADERS_SIMPLE);
        for (unsigned j = 0; j < 64; j++) { /* more than the socket holds */
            client_request(fds[i], NBD_HEADERS_SIMPLE, NBD_CMD_READ, 0, j, 0, 65536);
        }
    }
    while (bench.mem.stats.ops[MEM_READ] < nb * 5) {
        sched_yield();
    }
    stop_start(&bench, &stop, -1);
    for (unsigned i = 0; i < 20; i++) {
        aio_poll(bench.main, false);
    }
    EXPECT_FALSE(stop.done);
    nbd_server_abort(bench.server);
    AIO_WAIT_WHILE(bench.main, !stop.done);
    EXPECT_EQ(stop.ret, 0);
    for (unsigned i = 0; i < nb; i++) {
        EXPECT_TRUE(client_sees_end(fds[i]));
        close(fds[i]);
    }
    bench_finish(&bench);
}

TEST_MAIN()
