/*
 * nbd-test.h - what the tests of this folder share: folders, peers that are started, verified load
 *
 * Layer:     block/nbd tests
 * Threading: all in the main thread; the load runs in the contexts that it is given.
 */
#ifndef BLOCK_NBD_TESTS_NBD_TEST_H
#define BLOCK_NBD_TESTS_NBD_TEST_H

#include "block/tests/block-test.h"
#include "io/aio/iothread.h"

/* A folder of the test's own, emptied and removed at the end of the process. */
const char *test_dir(void);
/* Text into a buffer that lasts as long as the test. */
const char *test_text(const char *fmt, ...) PRINTF(1, 2);

/* Start a program, which dies with the test; skips the test when there is none. @argv[0] is looked
 * for in PATH. */
pid_t peer_start(const char *const *argv);
#define PEER_START(...) peer_start((const char *const[]){ __VA_ARGS__, NULL })
/* SIGKILL, and wait for its end. */
void peer_kill(pid_t pid);
/* A port of 127.0.0.1 that nobody listens on just now. */
const char *peer_port(void);

/* Open --disk's text, or fail; the other way round, or fail. */
BlockBackend *disk_open(const char *fmt, ...) PRINTF(1, 2);
int disk_try(const char *text, Error *err);

/*
 * Verified load: in each context `depth` coroutines, each with a part of the disk of its own, of
 * which it knows what each block must hold. Started, waited for.
 */
typedef struct Load {
    BlockBackend *blk;
    AioContext *ctx[16];
    unsigned nb_ctx, depth;
    unsigned nb_ops; /* of each coroutine; 0 = until `stop` */
    bool zeroes;     /* write-zeroes, too */
    _Atomic bool stop;
    _Atomic unsigned nb_running, nb_failed, nb_wrong, nb_done;
} Load;

void load_start(Load *load);
void load_wait(Load *load);

/* All of that from so many IOThreads, each with 8 coroutines of @nb_ops: no failure, no wrong byte. */
main_fn void load_verify_disk(BlockBackend *blk, unsigned nb_threads, unsigned nb_ops);
/* Open --disk's text, of 64 MiB, and load it from so many IOThreads: no failure, no wrong byte. */
main_fn void load_verify(unsigned nb_threads, const char *fmt, ...) PRINTF(2, 3);

/* A main context. */
AioContext *main_start(void);
void main_finish(AioContext *main);

#endif
