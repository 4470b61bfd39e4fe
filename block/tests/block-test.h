/*
 * block-test.h - contexts stepped by hand, and requests to start in them
 *
 * Layer:     block/tests
 * Threading: env_ functions in the main thread; a request runs in the context it is started in.
 */
#ifndef BLOCK_TESTS_BLOCK_TEST_H
#define BLOCK_TESTS_BLOCK_TEST_H

#include "block/block-backend.h"
#include "io/base/test.h"

#define ENV_CONTEXTS_MAX 4

/* A main context and others that env_step() polls, all in this thread. */
typedef struct Env {
    AioContext *main;
    AioContext *ctx[ENV_CONTEXTS_MAX];
    unsigned nb_ctx;
    AioBh *stepper; /* while the main context is polled, the others are, too */
} Env;

void env_init(Env *env, unsigned nb_ctx);
void env_finish(Env *env);
/* One pass of each context without blocking. */
void env_step(Env *env);
/* Until nothing moves any more. */
void env_settle(Env *env);
/* From now on, or no longer, polling the main context polls the others: for functions of the main
 * thread that wait. */
void env_step_along(Env *env, bool on);

typedef enum RequestKind {
    REQ_READ,
    REQ_WRITE,
    REQ_FLUSH,
    REQ_DISCARD,
    REQ_ZEROES,
    REQ_STATUS,
} RequestKind;

typedef struct Request {
    BlockBackend *blk;
    RequestKind kind;
    uint64_t offset_bytes, len_bytes;
    const struct iovec *iov; /* NULL: one segment at buf */
    int niov;
    void *buf;
    BlkFlags flags;
    uint64_t *ret_len_bytes;
    int ret;
    _Atomic bool done;
    unsigned *order; /* where to count the requests done, may be NULL */
    unsigned rank;   /* the count at its end */
} Request;

/* Start in @ctx, at its next pass. */
void request_start(Request *req, AioContext *ctx);
/* Start, and poll the main context until it has ended; returns its result. */
int request_run(Request *req);

int run_read(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes, void *buf);
int run_write(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes, const void *buf,
              BlkFlags flags);
int run_flush(BlockBackend *blk);
int run_discard(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes);
int run_zeroes(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes, BlkFlags flags);

/* BlkStatus of the range, or -errno */
int run_status(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
               uint64_t *ret_len_bytes);

/* A small generator, the same on every run. */
typedef struct Random {
    uint64_t state;
} Random;
uint32_t random_below(Random *r, uint32_t limit);
void random_fill(Random *r, void *buf, size_t len_bytes);

/* Refuse membarrier(2) to this process from now on; false when seccomp cannot. */
bool refuse_membarrier(void);

#endif
