/*
 * nbd-test-client.h - a client that sends what a test tells it to, right or wrong, to a server in
 * another thread
 *
 * Layer:     block/nbd/tests
 * Threading: main thread, with blocking sockets; the server's connections are in IOThreads.
 */
#ifndef BLOCK_NBD_TESTS_NBD_TEST_CLIENT_H
#define BLOCK_NBD_TESTS_NBD_TEST_CLIENT_H

#include "block/nbd/nbd-proto.h"
#include "block/nbd/nbd-server.h"
#include "block/tests/mem-driver.h"
#include "io/aio/iothread.h"
#include "io/base/test.h"

#define BENCH_IOTHREADS_MAX 4
#define DISK_BYTES          (1u << 20)

/* A server with an export "disk" of a MemDisk. */
typedef struct Bench {
    AioContext *main;
    IOThread *iothreads[BENCH_IOTHREADS_MAX];
    unsigned nb_iothreads;
    MemDisk mem;
    NbdServer *server;
} Bench;

/* What bench_init() makes; zero is good. */
typedef struct BenchConfig {
    NbdServerParams params;
    MemConfig mem;
    unsigned nb_iothreads; /* 0 = 1 */
    bool read_only;
    bool no_export; /* the test adds them */
} BenchConfig;

main_fn void bench_init(Bench *bench, const BenchConfig *config);
/* Every connection has ended, or will at once as its client has. */
main_fn void bench_finish(Bench *bench);
/* Run the main context until no connection is left; mem requests that are parked have been let
 * go. */
main_fn void bench_wait_idle(Bench *bench);
main_fn void bench_wait_connections(Bench *bench, unsigned nb);
/* Has that been logged about a client (NULL: anything)? The program is linked with
 * --wrap=log_limited. */
bool test_logged(const char *text);
/* Calls of sendmsg() in this process: those of the servers. It is wrapped, likewise. */
unsigned bench_nb_sends(void);
/* Until the disk has that many requests parked. */
void bench_wait_parked(Bench *bench, unsigned nb);

/* A connected socket whose other end is served; nothing has been read. */
main_fn int client_connect(Bench *bench);

void client_send(int fd, const void *buf, size_t len_bytes);
void client_receive(int fd, void *buf, size_t len_bytes);
/* The server has ended the connection, perhaps after some more bytes. */
bool client_sees_end(int fd);

/* Greeting and flags. */
void client_greet(int fd, uint32_t flags);
void client_option(int fd, uint32_t option, const void *data, size_t len_bytes);
/* Header of an option's reply, its data in @buf (NUL added). Returns its type. */
#define REPLY_BYTES_MAX 8192
uint32_t client_option_reply(int fd, uint32_t option, char buf[REPLY_BYTES_MAX], uint32_t *ret_len);
/* The same, discarding the data. */
uint32_t client_option_type(int fd, uint32_t option);
/* Option without data, answered with @type. */
void client_expect_option(int fd, uint32_t option, uint32_t type);
/* GO or INFO with what @infos asks for; replies are left to be read. */
void client_send_go(int fd, uint32_t option, const char *name, uint32_t infos);
/* SET or LIST_META_CONTEXT; @query NULL: none. */
void client_send_meta(int fd, uint32_t option, const char *name, const char *query);
/* GO; returns what NBD_INFO_EXPORT says. */
NbdExportInfo client_go(int fd, const char *name);
/* All of it: greeting, headers, base:allocation where the headers allow, GO "disk". */
NbdExportInfo client_enter(int fd, NbdHeaders headers);
/* client_connect() and client_enter() */
main_fn int client_open(Bench *bench, NbdHeaders headers);

/* A request; the payload, if any, is the caller's to send. */
void client_request(int fd, NbdHeaders headers, uint16_t type, uint16_t flags, uint64_t cookie,
                    uint64_t offset_bytes, uint64_t len_bytes);
/* The next reply, without payload. */
NbdReply client_reply(int fd, NbdHeaders headers);
/* The error in the next reply, which is whole then; 0 = success without data. */
uint32_t client_error(int fd, NbdHeaders headers, uint64_t cookie);
/* One request without payload and its error. */
uint32_t client_run(int fd, NbdHeaders headers, uint16_t type, uint16_t flags,
                    uint64_t offset_bytes, uint64_t len_bytes);
uint32_t client_write(int fd, NbdHeaders headers, uint16_t flags, uint64_t offset_bytes,
                      const void *buf, size_t len_bytes);
/* Reads, in whichever chunks; @ret_holes may be NULL: bytes that came as holes. */
uint32_t client_read(int fd, NbdHeaders headers, uint16_t flags, uint64_t offset_bytes, void *buf,
                     size_t len_bytes, uint64_t *ret_holes);

#endif
