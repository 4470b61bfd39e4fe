/*
 * coroutine.c - creating, entering, yielding and ending
 *
 * A Coroutine lies at the top of its own stack: one mapping, and what is needed at each switch is
 * on the page that the coroutine's first frames use.
 *
 * Invariants:
 *  1. At most one thread is inside co_enter() for a coroutine; only that one changes its state.
 *  2. While a coroutine is RUNNING, enterer_sp and the sanitizer's notes describe the stack that it
 *     will go back to, in the thread that it runs in. So co_enter() may keep its CoThread across
 *     the switch, while code in the coroutine looks it up again.
 *  3. After the state has been stored as YIELDED and `after` has been called, the coroutine belongs
 *     to somebody else: nothing of it is touched any more.
 *  4. A stack keeps co_main()'s frame for good: the pool holds coroutines that stand in it, ready
 *     for the next entry function, so that reuse prepares nothing.
 */
#include "io/co/coroutine.h"

#include "io/base/log.h"
#include "io/base/thread.h"
#include "io/co/co-pool.h"
#include "io/co/coroutine-int.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

typedef struct CoThread {
    Coroutine *current;
    /* Coroutines to enter when the outermost co_enter() has regained control, oldest first. */
    Coroutine *wake_first, *wake_last;
    struct AioContext *home;
    CoPool pool;
    uint64_t nb_created, nb_pool_hits;
} CoThread;

THREAD_LOCAL(CoThread, this_thread);

static CoHomeName *_Atomic home_name; /* written by io/aio, always with the same value */

void co_main(Coroutine *co) NORETURN;

/* --- bugs of the caller --- */

static const char *state_name(int state)
{
    static const char *const names[] = {
        [CO_CREATED] = "created",
        [CO_YIELDED] = "yielded",
        [CO_RUNNING] = "running",
        [CO_ENDED] = "ended",
    };

    return state >= 0 && state < (int)ARRAY_SIZE(names) ? names[state] : "corrupt";
}

/* "function" or "program+0x1234", as `addr2line -e program 0x1234` wants it */
static void describe_code(const void *code, char *buf, size_t size_bytes)
{
    Dl_info info;

    if (!dladdr(code, &info) || !info.dli_fname) {
        snprintf(buf, size_bytes, "%p", code);
        return;
    }
    const char *slash = strrchr(info.dli_fname, '/');

    snprintf(buf, size_bytes, "%s+0x%zx%s%s", slash ? slash + 1 : info.dli_fname,
             (size_t)((uintptr_t)code - (uintptr_t)info.dli_fbase), info.dli_sname ? " " : "",
             info.dli_sname ? info.dli_sname : "");
}

static void describe_home(const struct AioContext *home, char *buf, size_t size_bytes)
{
    CoHomeName *name = atomic_load(&home_name);

    if (home && name) {
        snprintf(buf, size_bytes, "'%s'", name(home));
    } else {
        snprintf(buf, size_bytes, "%s", home ? "without a name" : "none");
    }
}

/* Abort, naming the coroutine, what was tried with it, its state, who scheduled it, who tried. */
static NORETURN NOINLINE void die(const Coroutine *co, const char *tried, const void *caller)
{
    char entry[128], code[128], home[64], thread[16] = "";
    const char *by = atomic_load(&co->scheduled_by);

    describe_code((const void *)(uintptr_t)co->entry, entry, sizeof(entry));
    describe_code(caller, code, sizeof(code));
    describe_home(co->home, home, sizeof(home));
    pthread_getname_np(pthread_self(), thread, sizeof(thread));
    log_write(LOG_LEVEL_ERROR, "coroutine",
              "%p (entry %s, home %s): %s, but it is %s%s%s; tried by %s in thread '%s'",
              (const void *)co, entry, home, tried, state_name(atomic_load(&co->state)),
              by ? " and scheduled by " : "", by ? by : "", code, thread);
    abort();
}

static NORETURN NOINLINE void die_outside(const char *tried)
{
    log_write(LOG_LEVEL_ERROR, "coroutine", "%s outside of a coroutine", tried);
    abort();
}

/* --- life --- */

static Coroutine *map_new(void)
{
    CoStack stack;

    co_stacks_take();
    if (co_stack_map(&stack) < 0) {
        co_stacks_give();
        return NULL;
    }

    char *end = (char *)stack.base + stack.size_bytes;
    Coroutine *co = (Coroutine *)(end - ALIGN_UP(sizeof(*co), (size_t)CACHE_LINE_BYTES));

    /* The pages come zeroed: what is not set here is 0 or NULL. */
    co->stack = stack;
    co->sp = co_stack_prepare(co, co);
    co_sanitizer_init(&co->sanitizer);
    return co;
}

size_t co_stack_use_bytes(const Coroutine *co)
{
    return co_stack_used(&co->stack);
}

/* The largest use of any stack that was unmapped; read and raised by any thread. */
static _Atomic size_t max_stack_use_bytes;

static void note_stack_use(const Coroutine *co)
{
    size_t use_bytes = co_stack_use_bytes(co);
    size_t max_bytes = atomic_load_explicit(&max_stack_use_bytes, memory_order_relaxed);

    while (use_bytes > max_bytes &&
           !atomic_compare_exchange_weak_explicit(&max_stack_use_bytes, &max_bytes, use_bytes,
                                                  memory_order_relaxed, memory_order_relaxed)) {
    }
}

size_t co_max_stack_use_bytes(void)
{
    return atomic_load_explicit(&max_stack_use_bytes, memory_order_relaxed);
}

void co_free(Coroutine *co)
{
    CoStack stack = co->stack; /* the coroutine itself lies in what is unmapped */

    assert(atomic_load_explicit(&co->state, memory_order_relaxed) == CO_ENDED);
    note_stack_use(co);
    co_sanitizer_finish(&co->sanitizer, &stack);
    co_stack_unmap(&stack);
    co_stacks_give();
}

static ALWAYS_INLINE Coroutine *create(CoThread *self, CoroutineEntry *entry, void *opaque)
{
    Coroutine *co = co_pool_take(&self->pool);

    if (likely(co)) {
        self->nb_pool_hits++;
    } else {
        co = map_new();
        if (!co) {
            return NULL;
        }
    }
    self->nb_created++;
    co->entry = entry;
    co->opaque = opaque;
    co->home = self->home;
    atomic_store_explicit(&co->state, CO_CREATED, memory_order_relaxed);
    return co;
}

Coroutine *co_create(CoroutineEntry *entry, void *opaque)
{
    return create(this_thread(), entry, opaque);
}

Coroutine *co_create_request(CoroutineEntry *entry, void *opaque, unsigned nb_others)
{
    CoThread *self = this_thread();

    if (unlikely(atomic_load_explicit(&co_stacks_left, memory_order_relaxed) <= 0) &&
        !co_stacks_allow_request(&self->pool, nb_others)) {
        return NULL;
    }
    return create(self, entry, opaque);
}

/* The stack is free: @co has ended, or was never entered. */
static ALWAYS_INLINE void pool_or_free(CoThread *self, Coroutine *co)
{
    if (!co_pool_give(&self->pool, co)) {
        co_free(co);
    }
}

void co_discard(Coroutine *co)
{
    assert(atomic_load_explicit(&co->state, memory_order_relaxed) == CO_CREATED);
    atomic_store_explicit(&co->state, CO_ENDED, memory_order_relaxed);
    pool_or_free(this_thread(), co);
}

/* The bottom frame of every coroutine's stack; see invariant 4. */
void co_main(Coroutine *co)
{
    for (;;) {
        co_sanitizer_arrive(&co->sanitizer);
        co->entry(co->opaque);
        co_sanitizer_leave(&co->sanitizer, true);
        co_switch(&co->sp, co->enterer_sp, CO_ENDED);
    }
}

/* --- switching --- */

/* What has to be done, besides going on, when a coroutine has left its stack. */
static NOINLINE void after_leaving(CoThread *self, Coroutine *co, int state)
{
    CoAfterYield *after = co->after;

    co->after = NULL;
    atomic_store_explicit(&co->state, state, memory_order_release); /* pairs with co_enter() */
    if (state == CO_ENDED) {
        if (unlikely(atomic_load_explicit(&co->scheduled_by, memory_order_relaxed))) {
            die(co, "its entry function returned", __builtin_return_address(0));
        }
        pool_or_free(self, co);
    } else {
        after(co, co->after_opaque);
    }
}

/* Run @co until it leaves its stack. */
static ALWAYS_INLINE void run(CoThread *self, Coroutine *co, Coroutine *caller)
{
    int state = atomic_load_explicit(&co->state, memory_order_acquire); /* after_leaving() */

    if (unlikely(state > CO_YIELDED ||
                 atomic_load_explicit(&co->scheduled_by, memory_order_relaxed))) {
        die(co, "it was to be entered", __builtin_return_address(0));
    }
    atomic_store_explicit(&co->state, CO_RUNNING, memory_order_relaxed);
    self->current = co;

    void *fake_stack = NULL;

    co_sanitizer_leave_enterer(&co->sanitizer, &co->stack, &fake_stack);
    state = co_switch(&co->enterer_sp, co->sp, 0);
    co_sanitizer_return(fake_stack);

    self->current = caller;
    if (state == CO_YIELDED && likely(!co->after)) {
        atomic_store_explicit(&co->state, CO_YIELDED, memory_order_release); /* next co_enter() */
    } else {
        after_leaving(self, co, state);
    }
}

static Coroutine *take_wakeup(CoThread *self)
{
    Coroutine *co = self->wake_first;

    self->wake_first = co->next;
    if (!self->wake_first) {
        self->wake_last = NULL;
    }
    return co;
}

static NOINLINE void run_wakeups(CoThread *self)
{
    while (self->wake_first) {
        Coroutine *co = take_wakeup(self);

        co_clear_scheduled(co);
        run(self, co, NULL);
    }
}

void co_enter(Coroutine *co)
{
    CoThread *self = this_thread();
    Coroutine *caller = self->current;

    run(self, co, caller);
    if (unlikely(self->wake_first) && !caller) {
        run_wakeups(self);
    }
    co_jump_back();
}

/* Leave the running coroutine's stack; returns when it is entered again. */
static ALWAYS_INLINE void leave(Coroutine *co)
{
    co_sanitizer_leave(&co->sanitizer, false);
    co_switch(&co->sp, co->enterer_sp, CO_YIELDED);
    co_sanitizer_arrive(&co->sanitizer);
}

void co_yield(void)
{
    Coroutine *co = this_thread()->current;

    if (unlikely(!co)) {
        die_outside("co_yield()");
    }
    leave(co);
}

void co_yield_then(CoAfterYield *after, void *opaque)
{
    Coroutine *co = this_thread()->current;

    if (unlikely(!co)) {
        die_outside("co_yield_then()");
    }
    co->after = after;
    co->after_opaque = opaque;
    leave(co);
}

Coroutine *co_self(void)
{
    return this_thread()->current;
}

void assert_in_coroutine(void)
{
    if (unlikely(!this_thread()->current)) {
        die_outside("a function for coroutines was called");
    }
}

/* --- waking --- */

void co_mark_scheduled(Coroutine *co, const char *by)
{
    const char *nobody = NULL;

    /* Acquire pairs with the release in co_clear_scheduled(): the list links are free again. */
    if (unlikely(!atomic_compare_exchange_strong_explicit(
            &co->scheduled_by, &nobody, by, memory_order_acq_rel, memory_order_relaxed))) {
        die(co, by, __builtin_return_address(0));
    }
    if (unlikely(atomic_load_explicit(&co->state, memory_order_relaxed) == CO_ENDED)) {
        die(co, by, __builtin_return_address(0));
    }
}

void co_clear_scheduled(Coroutine *co)
{
    if (unlikely(!atomic_load_explicit(&co->scheduled_by, memory_order_relaxed))) {
        die(co, "it was to be taken from a list of scheduled ones", __builtin_return_address(0));
    }
    atomic_store_explicit(&co->scheduled_by, NULL, memory_order_release); /* co_mark_scheduled() */
}

void co_queue_wakeup(Coroutine *co)
{
    CoThread *self = this_thread();

    if (unlikely(!self->current)) {
        die_outside("co_queue_wakeup()");
    }
    co_mark_scheduled(co, "co_queue_wakeup");
    co->next = NULL;
    if (self->wake_last) {
        self->wake_last->next = co;
    } else {
        self->wake_first = co;
    }
    self->wake_last = co;
}

/* --- home and pool --- */

struct AioContext *co_home(const Coroutine *co)
{
    return co->home;
}

void co_set_home(Coroutine *co, struct AioContext *ctx)
{
    co->home = ctx;
}

void co_thread_set_home(struct AioContext *ctx)
{
    this_thread()->home = ctx;
}

void co_name_homes_by(CoHomeName *name)
{
    atomic_store_explicit(&home_name, name, memory_order_relaxed);
}

void co_pool_set_limit(unsigned nb_coroutines)
{
    co_pool_limit(&this_thread()->pool, nb_coroutines);
}

void co_pool_drain(void)
{
    co_pool_empty(&this_thread()->pool);
}

void co_stats(CoroutineStats *ret_stats)
{
    const CoThread *self = this_thread();

    *ret_stats = (CoroutineStats){
        .created = self->nb_created,
        .pool_hits = self->nb_pool_hits,
        .pooled = self->pool.nb_pooled,
    };
}
