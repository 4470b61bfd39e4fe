/*
 * block-test.c - contexts stepped by hand, and requests to start in them
 */
#include "block/tests/block-test.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

/* --- contexts --- */

void env_init(Env *env, unsigned nb_ctx)
{
    Error err;

    *env = (Env){ .nb_ctx = nb_ctx };
    env->main = aio_context_create("main", NULL, &err);
    ASSERT_TRUE(env->main != NULL);
    aio_context_enter(env->main);
    aio_context_set_main(env->main);
    for (unsigned i = 0; i < nb_ctx; i++) {
        char name[16];

        snprintf(name, sizeof(name), "ctx%u", i);
        env->ctx[i] = aio_context_create(name, NULL, &err);
        ASSERT_TRUE(env->ctx[i] != NULL);
    }
}

static bool step_others(Env *env)
{
    bool progress = false;

    for (unsigned i = 0; i < env->nb_ctx; i++) {
        aio_context_enter(env->ctx[i]);
        progress |= aio_poll(env->ctx[i], false);
    }
    aio_context_enter(env->main);
    return progress;
}

void env_step(Env *env)
{
    aio_poll(env->main, false);
    step_others(env);
}

void env_settle(Env *env)
{
    bool progress;

    do {
        progress = aio_poll(env->main, false);
        progress |= step_others(env);
    } while (progress);
}

static void stepper_bh(void *opaque)
{
    Env *env = opaque;

    step_others(env);
    aio_bh_schedule(env->stepper);
}

void env_step_along(Env *env, bool on)
{
    if (on) {
        env->stepper = aio_bh_create(env->main, stepper_bh, env);
        aio_bh_schedule(env->stepper);
    } else {
        aio_bh_destroy(env->stepper);
        env->stepper = NULL;
    }
}

void env_finish(Env *env)
{
    if (env->stepper) {
        env_step_along(env, false);
    }
    env_settle(env);
    for (unsigned i = 0; i < env->nb_ctx; i++) {
        aio_context_enter(env->ctx[i]);
        aio_context_destroy(env->ctx[i]);
    }
    aio_context_enter(env->main);
    aio_context_set_main(NULL);
    aio_context_destroy(env->main);
    aio_context_enter(NULL);
    co_pool_drain();
}

/* --- requests --- */

static co_fn int request_perform(Request *req)
{
    struct iovec one = { .iov_base = req->buf, .iov_len = req->len_bytes };
    const struct iovec *iov = req->iov ? req->iov : &one;
    int niov = req->iov ? req->niov : 1;

    switch (req->kind) {
    case REQ_READ:
        return blk_co_preadv(req->blk, req->offset_bytes, req->len_bytes, iov, niov, req->flags);
    case REQ_WRITE:
        return blk_co_pwritev(req->blk, req->offset_bytes, req->len_bytes, iov, niov, req->flags);
    case REQ_FLUSH:
        return blk_co_flush(req->blk);
    case REQ_DISCARD:
        return blk_co_pdiscard(req->blk, req->offset_bytes, req->len_bytes);
    case REQ_ZEROES:
        return blk_co_pwrite_zeroes(req->blk, req->offset_bytes, req->len_bytes, req->flags);
    case REQ_STATUS:
        return blk_co_block_status(req->blk, req->offset_bytes, req->len_bytes, req->ret_len_bytes);
    }
    abort();
}

static void request_entry(void *opaque)
{
    Request *req = opaque;

    assert_in_coroutine();
    req->ret = request_perform(req);
    if (req->order) {
        req->rank = ++*req->order;
    }
    atomic_store(&req->done, true);
}

void request_start(Request *req, AioContext *ctx)
{
    Coroutine *co = co_create(request_entry, req);

    ASSERT_TRUE(co != NULL);
    req->done = false;
    aio_co_schedule(ctx, co);
}

int request_run(Request *req)
{
    req->done = false;
    aio_co_run_sync(aio_main(), request_entry, req);
    return req->ret;
}

int run_read(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes, void *buf)
{
    return request_run(&(Request){ .blk = blk,
                                   .kind = REQ_READ,
                                   .offset_bytes = offset_bytes,
                                   .len_bytes = len_bytes,
                                   .buf = buf });
}

int run_write(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes, const void *buf,
              BlkFlags flags)
{
    return request_run(&(Request){ .blk = blk,
                                   .kind = REQ_WRITE,
                                   .offset_bytes = offset_bytes,
                                   .len_bytes = len_bytes,
                                   .buf = (void *)buf,
                                   .flags = flags });
}

int run_flush(BlockBackend *blk)
{
    return request_run(&(Request){ .blk = blk, .kind = REQ_FLUSH });
}

int run_discard(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes)
{
    return request_run(&(Request){
        .blk = blk, .kind = REQ_DISCARD, .offset_bytes = offset_bytes, .len_bytes = len_bytes });
}

int run_zeroes(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes, BlkFlags flags)
{
    return request_run(&(Request){ .blk = blk,
                                   .kind = REQ_ZEROES,
                                   .offset_bytes = offset_bytes,
                                   .len_bytes = len_bytes,
                                   .flags = flags });
}

int run_status(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
               uint64_t *ret_len_bytes)
{
    return request_run(&(Request){ .blk = blk,
                                   .kind = REQ_STATUS,
                                   .offset_bytes = offset_bytes,
                                   .len_bytes = len_bytes,
                                   .ret_len_bytes = ret_len_bytes });
}

/* --- the rest --- */

uint32_t random_below(Random *r, uint32_t limit)
{
    r->state = r->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((r->state >> 33) % limit);
}

void random_fill(Random *r, void *buf, size_t len_bytes)
{
    for (size_t i = 0; i < len_bytes; i++) {
        ((char *)buf)[i] = (char)random_below(r, 256);
    }
}

bool refuse_membarrier(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = { .len = ARRAY_SIZE(code), .filter = code };

    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}
