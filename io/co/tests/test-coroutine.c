/*
 * test-coroutine - entering, yielding, ending, waking, and what is refused
 */
#include "io/base/test.h"
#include "io/co/coroutine-int.h"

#include <fenv.h>
#include <link.h>
#include <pthread.h>
#include <stdatomic.h>

/* --- order --- */

typedef struct Trace {
    char text[256];
    size_t len;
} Trace;

static void trace(Trace *t, char step)
{
    ASSERT_LT(t->len, sizeof(t->text) - 1);
    t->text[t->len++] = step;
    t->text[t->len] = '\0';
}

static co_fn void two_yields(void *opaque)
{
    trace(opaque, '1');
    co_yield();
    trace(opaque, '2');
    co_yield();
    trace(opaque, '3');
}

TEST(co, enter_and_yield_alternate)
{
    Trace t = { 0 };
    Coroutine *co = co_create(two_yields, &t);

    trace(&t, 'a');
    co_enter(co);
    trace(&t, 'b');
    co_enter(co);
    trace(&t, 'c');
    co_enter(co);
    trace(&t, 'd');
    EXPECT_STREQ(t.text, "a1b2c3d");
    co_pool_drain();
}

static co_fn void note_self(void *opaque)
{
    Coroutine **ret_self = opaque;

    EXPECT_TRUE(in_coroutine());
    ret_self[0] = co_self();
    co_yield();
    ret_self[1] = co_self();
}

TEST(co, self_is_the_running_coroutine_and_null_outside)
{
    Coroutine *seen[2] = { NULL, NULL };
    Coroutine *co = co_create(note_self, seen);

    EXPECT_FALSE(in_coroutine());
    co_enter(co);
    EXPECT_EQ(co_self(), NULL);
    co_enter(co);
    EXPECT_EQ(seen[0], co);
    EXPECT_EQ(seen[1], co);
    EXPECT_FALSE(in_coroutine());
    co_pool_drain();
}

/* --- nesting --- */

#define NEST_DEPTH 200

typedef struct Nest {
    Coroutine *co[NEST_DEPTH];
    int depth, max_depth, nb_ended;
} Nest;

static co_fn void nest_entry(void *opaque)
{
    Nest *nest = opaque;
    Coroutine *self = co_self();

    nest->depth++;
    nest->max_depth = MAX(nest->max_depth, nest->depth);
    if (nest->depth < NEST_DEPTH) {
        int child = nest->depth;

        nest->co[child] = co_create(nest_entry, nest);
        co_enter(nest->co[child]); /* comes back when the child yields */
        EXPECT_EQ(co_self(), self);
    }
    nest->depth--;
    co_yield();
    nest->nb_ended++;
}

TEST(co, coroutines_nest_and_yield_to_who_entered_them)
{
    static Nest nest;

    nest.co[0] = co_create(nest_entry, &nest);
    co_enter(nest.co[0]);
    EXPECT_EQ(nest.max_depth, NEST_DEPTH);
    EXPECT_EQ(nest.depth, 0);
    for (int i = 0; i < NEST_DEPTH; i++) {
        co_enter(nest.co[i]);
    }
    EXPECT_EQ(nest.nb_ended, NEST_DEPTH);
    co_pool_drain();
}

/* --- many, each with values of its own on its stack --- */

#define MANY (HAVE_TSAN ? 1000 : 4000)

static co_fn void sum_entry(void *opaque)
{
    uint64_t *value = opaque, local[32];

    for (unsigned i = 0; i < ARRAY_SIZE(local); i++) {
        local[i] = *value * i;
        co_yield();
    }
    *value = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(local); i++) {
        *value += local[i];
    }
}

TEST(co, many_coroutines_keep_their_stacks_apart)
{
    static Coroutine *co[MANY];
    static uint64_t value[MANY];

    for (unsigned i = 0; i < MANY; i++) {
        value[i] = i;
        co[i] = co_create(sum_entry, &value[i]);
        ASSERT_NE(co[i], NULL);
    }
    for (unsigned round = 0; round < 32 + 1; round++) {
        for (unsigned i = 0; i < MANY; i++) {
            co_enter(co[i]);
        }
    }
    for (unsigned i = 0; i < MANY; i++) {
        ASSERT_EQ(value[i], (uint64_t)i * (31 * 32 / 2));
    }
    co_pool_drain();
}

/* --- registers and modes --- */

static co_fn void rounding_entry(void *opaque)
{
    volatile double one = 1, three = 3;
    double *ret_quotients = opaque;

    EXPECT_EQ(fegetround(), FE_TONEAREST);
    fesetround(FE_UPWARD);
    ret_quotients[0] = one / three;
    co_yield();
    EXPECT_EQ(fegetround(), FE_UPWARD);
    ret_quotients[1] = one / three;
    fesetround(FE_TONEAREST);
}

TEST(co, floating_point_modes_belong_to_the_coroutine)
{
    volatile double one = 1, three = 3;
    double quotients[2];
    Coroutine *co = co_create(rounding_entry, quotients);

    fesetround(FE_DOWNWARD);
    co_enter(co);
    EXPECT_EQ(fegetround(), FE_DOWNWARD);

    double down = one / three;

    co_enter(co);
    EXPECT_EQ(fegetround(), FE_DOWNWARD);
    EXPECT_TRUE(quotients[0] == quotients[1]);
    EXPECT_TRUE(quotients[0] > down);
    fesetround(FE_TONEAREST);
    co_pool_drain();
}

/* --- waking from inside a coroutine --- */

typedef struct Wakers {
    Trace trace;
    Coroutine *first, *second;
} Wakers;

static co_fn void wakee_entry(void *opaque)
{
    Wakers *w = opaque;

    co_yield();
    trace(&w->trace, 'f');
    co_queue_wakeup(w->second);
    trace(&w->trace, 'g');
}

static co_fn void second_entry(void *opaque)
{
    Wakers *w = opaque;

    co_yield();
    trace(&w->trace, 's');
}

static co_fn void waker_entry(void *opaque)
{
    Wakers *w = opaque;

    trace(&w->trace, 'w');
    co_queue_wakeup(w->first);
    trace(&w->trace, 'x');
    co_yield();
    trace(&w->trace, 'y');
}

TEST(co, woken_coroutine_runs_after_the_waker_has_yielded)
{
    Wakers w = { .trace = { .len = 0 } };
    Coroutine *waker = co_create(waker_entry, &w);

    w.first = co_create(wakee_entry, &w);
    w.second = co_create(second_entry, &w);
    co_enter(w.first);
    co_enter(w.second);
    co_enter(waker);
    EXPECT_STREQ(w.trace.text, "wxfgs");
    co_enter(waker);
    EXPECT_STREQ(w.trace.text, "wxfgsy");
    co_pool_drain();
}

/* Two coroutines that wake each other stay at the same depth of the stack. */
typedef struct PingPong {
    Coroutine *co[2];
    unsigned nb_left;
    uintptr_t lowest, highest; /* stack addresses of the enterer, seen in yield_then functions */
} PingPong;

static void note_depth(Coroutine *co, void *opaque)
{
    PingPong *pp = opaque;
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);

    pp->lowest = MIN(pp->lowest, here);
    pp->highest = MAX(pp->highest, here);
}

static co_fn void ping_entry(void *opaque)
{
    PingPong *pp = opaque;

    while (pp->nb_left > 0) {
        pp->nb_left--;
        co_queue_wakeup(co_self() == pp->co[0] ? pp->co[1] : pp->co[0]);
        co_yield_then(note_depth, pp);
    }
}

TEST(co, wakeups_are_iterative_however_many_there_are)
{
    PingPong pp = { .nb_left = 100000, .lowest = UINTPTR_MAX };

    pp.co[0] = co_create(ping_entry, &pp);
    pp.co[1] = co_create(ping_entry, &pp);
    co_enter(pp.co[0]);
    EXPECT_EQ(pp.nb_left, 0);
    EXPECT_LT(pp.highest - pp.lowest, 512);
    co_enter(pp.co[1]); /* waits; its partner ended last */
    co_pool_drain();
}

static co_fn void inner_entry(void *opaque)
{
    Wakers *w = opaque;

    trace(&w->trace, 'i');
    co_queue_wakeup(w->first); /* which is running, further out */
}

static co_fn void outer_entry(void *opaque)
{
    Wakers *w = opaque;

    trace(&w->trace, 'o');
    co_enter(co_create(inner_entry, w));
    trace(&w->trace, 'p');
    co_yield();
    trace(&w->trace, 'q');
}

TEST(co, wakeup_of_an_entering_coroutine_waits_for_its_yield)
{
    Wakers w = { .trace = { .len = 0 } };

    w.first = co_create(outer_entry, &w);
    co_enter(w.first);
    EXPECT_STREQ(w.trace.text, "oipq");
    co_pool_drain();
}

/* --- yielding and then handing over --- */

static void enter_again(Coroutine *co, void *opaque)
{
    int *count = opaque;

    EXPECT_FALSE(in_coroutine());
    if (++*count < 3) {
        co_enter(co);
    }
}

static co_fn void yield_then_entry(void *opaque)
{
    co_yield_then(enter_again, opaque);
    co_yield_then(enter_again, opaque);
    co_yield_then(enter_again, opaque);
    co_yield(); /* no function is left over for this one */
}

TEST(co, yield_then_may_enter_the_coroutine_at_once)
{
    int count = 0;
    Coroutine *co = co_create(yield_then_entry, &count);

    co_enter(co);
    EXPECT_EQ(count, 3);
    co_enter(co);
    EXPECT_EQ(count, 3);
    co_enter(co);
    co_pool_drain();
}

/* --- what is refused --- */

static co_fn void enter_self_entry(void *opaque)
{
    co_enter(co_self());
}

static void enter_running(void *opaque)
{
    co_enter(co_create(enter_self_entry, NULL));
}

static co_fn void yield_entry(void *opaque)
{
    co_yield();
}

static void empty_entry(void *opaque)
{
}

static void enter_scheduled(void *opaque)
{
    Coroutine *co = co_create(yield_entry, NULL);

    co_enter(co);
    co_mark_scheduled(co, "the test");
    co_enter(co);
}

static void schedule_twice(void *opaque)
{
    Coroutine *co = co_create(yield_entry, NULL);

    co_mark_scheduled(co, "first waker");
    co_mark_scheduled(co, "second waker");
}

static void schedule_ended(void *opaque)
{
    Coroutine *co = co_create(empty_entry, NULL);

    co_enter(co);
    co_mark_scheduled(co, "late waker");
}

static void enter_ended(void *opaque)
{
    Coroutine *co = co_create(empty_entry, NULL);

    co_enter(co);
    co_enter(co);
}

static co_fn void schedule_self_entry(void *opaque)
{
    co_mark_scheduled(co_self(), "itself");
}

static void end_while_scheduled(void *opaque)
{
    co_enter(co_create(schedule_self_entry, NULL));
}

static void clear_unscheduled(void *opaque)
{
    co_clear_scheduled(co_create(yield_entry, NULL));
}

static void yield_outside(void *opaque)
{
    assert_in_coroutine();
    co_yield();
}

static void wake_outside(void *opaque)
{
    co_queue_wakeup(co_create(yield_entry, NULL));
}

TEST(co, entering_a_running_coroutine_aborts_with_its_state)
{
    EXPECT_DEATH(enter_running, NULL, SIGABRT, "to be entered, but it is running");
}

TEST(co, entering_a_scheduled_coroutine_names_its_scheduler)
{
    EXPECT_DEATH(enter_scheduled, NULL, SIGABRT, "is yielded and scheduled by the test");
}

TEST(co, message_names_the_entry_function)
{
    EXPECT_DEATH(enter_scheduled, NULL, SIGABRT, "(entry test-coroutine");
}

static const char *name_of_home(const struct AioContext *ctx)
{
    return ctx == (struct AioContext *)0x1000 ? "io0" : "?";
}

static void enter_scheduled_with_home(void *opaque)
{
    co_name_homes_by(name_of_home);
    co_thread_set_home((struct AioContext *)0x1000);
    pthread_setname_np(pthread_self(), "intruder");
    enter_scheduled(NULL);
}

TEST(co, message_names_the_home_and_who_tried)
{
    EXPECT_DEATH(enter_scheduled, NULL, SIGABRT, ", home none): ");
    EXPECT_DEATH(enter_scheduled_with_home, NULL, SIGABRT, ", home 'io0'): ");
    EXPECT_DEATH(enter_scheduled, NULL, SIGABRT, "; tried by test-coroutine+0x");
    EXPECT_DEATH(enter_scheduled_with_home, NULL, SIGABRT, " in thread 'intruder'");
}

TEST(co, scheduling_twice_names_both)
{
    EXPECT_DEATH(schedule_twice, NULL, SIGABRT,
                 "second waker, but it is created and scheduled by first waker");
}

TEST(co, an_ended_coroutine_cannot_be_scheduled_or_entered)
{
    EXPECT_DEATH(schedule_ended, NULL, SIGABRT, "late waker, but it is ended");
    EXPECT_DEATH(enter_ended, NULL, SIGABRT, "to be entered, but it is ended");
}

TEST(co, a_scheduled_coroutine_cannot_end)
{
    EXPECT_DEATH(end_while_scheduled, NULL, SIGABRT, "returned, but it is ended and scheduled by");
}

TEST(co, taking_an_unscheduled_coroutine_from_a_list_aborts)
{
    EXPECT_DEATH(clear_unscheduled, NULL, SIGABRT, "list of scheduled ones, but it is created");
}

TEST(co, yield_and_wake_abort_outside_of_a_coroutine)
{
    EXPECT_DEATH(yield_outside, NULL, SIGABRT, "outside of a coroutine");
    EXPECT_DEATH(wake_outside, NULL, SIGABRT, "outside of a coroutine");
}

/* --- the guard --- */

/* Recurse until the stack has grown below @limit. */
static NOINLINE int recurse(uintptr_t limit)
{
    volatile char frame[500];

    frame[0] = 1;
    /* Not the array's address: AddressSanitizer may have put that elsewhere. */
    return (uintptr_t)__builtin_frame_address(0) < limit ? 0 : recurse(limit) + frame[0];
}

static void recurse_entry(void *opaque)
{
    const CoStack *stack = &co_self()->stack;

    recurse((uintptr_t)stack->base + *(intptr_t *)opaque);
}

static void overflow(void *opaque)
{
    co_enter(co_create(recurse_entry, opaque));
}

TEST(co, a_stack_overflow_hits_the_guard)
{
    intptr_t fits = 4096, overflows = -4096;

    overflow(&fits);
    EXPECT_DEATH(overflow, &overflows, SIGSEGV, "");
    co_pool_drain();
}

/* --- how deep a stack has been --- */

static void measure_entry(void *opaque)
{
    const CoStack *stack = &co_self()->stack;
    size_t *depth_bytes = opaque;

    recurse((uintptr_t)stack->base + stack->size_bytes - *depth_bytes);
    *depth_bytes = co_stack_use_bytes(co_self());
}

TEST(co, use_of_a_stack_is_what_was_written_however_long_ago)
{
    const size_t slack_bytes = HAVE_ASAN || HAVE_TSAN ? 16384 : 4096;
    size_t deep = 40000, shallow = 0;

    co_enter(co_create(measure_entry, &deep));
    EXPECT_GE(deep, 40000);
    EXPECT_LE(deep, 40000 + slack_bytes);

    co_enter(co_create(measure_entry, &shallow)); /* the same stack, from the pool */
    EXPECT_EQ(shallow, deep);

    EXPECT_EQ(co_max_stack_use_bytes(), 0);
    co_pool_drain();
    EXPECT_EQ(co_max_stack_use_bytes(), deep);

    shallow = 0;
    co_enter(co_create(measure_entry, &shallow)); /* a new stack */
    EXPECT_LT(shallow, 40000);
    co_pool_drain();
    EXPECT_EQ(co_max_stack_use_bytes(), deep);
}

/* --- control-flow protection --- */

#define GNU_PROPERTY_SEGMENT  0x6474e553 /* PT_GNU_PROPERTY */
#define X86_FEATURES_PROPERTY 0xc0000002 /* GNU_PROPERTY_X86_FEATURE_1_AND */

/* The program itself is the first that dl_iterate_phdr() shows. */
static int read_features(struct dl_phdr_info *info, size_t size_bytes, void *opaque)
{
    for (unsigned i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
        const uint32_t *note = (const uint32_t *)(info->dlpi_addr + ph->p_vaddr);

        if (ph->p_type != GNU_PROPERTY_SEGMENT) {
            continue;
        }
        /* name size, size, type, "GNU", then properties: type, size, value, padding to 8 bytes */
        const uint32_t *end = note + 4 + note[1] / 4;

        for (const uint32_t *p = note + 4; p < end; p += 2 + (p[1] + 7) / 8 * 2) {
            if (p[0] == X86_FEATURES_PROPERTY) {
                *(uint32_t *)opaque = p[2];
            }
        }
    }
    return 1;
}

TEST(co, program_does_not_ask_for_shadow_stacks)
{
    uint32_t features = 0;

    dl_iterate_phdr(read_features, &features);
    EXPECT_EQ(features, 0);
}

/* --- moving between threads --- */

#define NB_THREADS 4
#define NB_MOVES   20000

/* A thread's mailbox of one coroutine: full or empty, the way a context's list hands over. */
typedef struct Mailbox {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    Coroutine *co;
    bool stop;
} Mailbox;

static Mailbox mailboxes[NB_THREADS];

static void post(Mailbox *box, Coroutine *co, bool stop)
{
    pthread_mutex_lock(&box->lock);
    if (co) {
        co_mark_scheduled(co, "post");
        assert(!box->co);
        box->co = co;
    }
    box->stop = box->stop || stop;
    pthread_cond_signal(&box->changed);
    pthread_mutex_unlock(&box->lock);
}

static void post_after(Coroutine *co, void *opaque)
{
    post(opaque, co, false);
}

static void *mailbox_thread(void *opaque)
{
    Mailbox *box = opaque;

    pthread_mutex_lock(&box->lock);
    while (!box->stop || box->co) {
        Coroutine *co = take_ptr(&box->co);

        if (!co) {
            pthread_cond_wait(&box->changed, &box->lock);
            continue;
        }
        pthread_mutex_unlock(&box->lock);
        co_clear_scheduled(co);
        co_enter(co);
        pthread_mutex_lock(&box->lock);
    }
    pthread_mutex_unlock(&box->lock);
    co_pool_drain();
    return NULL;
}

static co_fn void mover_entry(void *opaque)
{
    uint64_t *moves = opaque;
    volatile uint64_t on_stack = 0;
    Coroutine *self = co_self();

    for (unsigned i = 0; i < NB_MOVES; i++) {
        co_yield_then(post_after, &mailboxes[(i + 1) % NB_THREADS]);
        EXPECT_EQ(co_self(), self);
        on_stack++;
    }
    *moves = on_stack;
    for (unsigned i = 0; i < NB_THREADS; i++) {
        post(&mailboxes[i], NULL, true);
    }
}

TEST(co, a_coroutine_moves_between_threads)
{
    pthread_t threads[NB_THREADS];
    uint64_t moves = 0;

    for (unsigned i = 0; i < NB_THREADS; i++) {
        pthread_mutex_init(&mailboxes[i].lock, NULL);
        pthread_cond_init(&mailboxes[i].changed, NULL);
        pthread_create(&threads[i], NULL, mailbox_thread, &mailboxes[i]);
    }
    post(&mailboxes[0], co_create(mover_entry, &moves), false);
    for (unsigned i = 0; i < NB_THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    EXPECT_EQ(moves, NB_MOVES);
    co_pool_drain();
}

/* --- home --- */

TEST(co, home_is_the_threads_at_creation_until_it_is_set)
{
    struct AioContext *here = (struct AioContext *)0x1000, *there = (struct AioContext *)0x2000;

    co_thread_set_home(here);

    Coroutine *co = co_create(yield_entry, NULL);

    EXPECT_EQ(co_home(co), here);
    co_set_home(co, there);
    EXPECT_EQ(co_home(co), there);
    co_enter(co);
    EXPECT_EQ(co_home(co), there);
    co_enter(co);

    co = co_create(empty_entry, NULL); /* the same one, from the pool */
    EXPECT_EQ(co_home(co), here);
    co_enter(co);
    co_pool_drain();
}

TEST_MAIN()
