/*
 * test-co-pool - reuse, limits, and running out of mappings
 */
#include "io/base/test.h"
#include "io/co/coroutine.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>

static void count_entry(void *opaque)
{
    ++*(unsigned *)opaque;
}

static co_fn void yield_entry(void *opaque)
{
    co_yield();
}

static unsigned nb_pooled(void)
{
    CoroutineStats stats;

    co_stats(&stats);
    return stats.pooled;
}

/* Lines of /proc/self/maps: one for each mapping. */
static unsigned nb_mappings(void)
{
    FILE *file = fopen("/proc/self/maps", "re");
    unsigned nb = 0;
    int c;

    ASSERT_NE(file, NULL);
    while ((c = getc(file)) != EOF) {
        nb += c == '\n';
    }
    fclose(file);
    return nb;
}

/* Address space in use, whatever the number of mappings. */
static unsigned nb_pages(void)
{
    FILE *file = fopen("/proc/self/statm", "re");
    unsigned nb = 0;

    ASSERT_NE(file, NULL);
    ASSERT_EQ(fscanf(file, "%u", &nb), 1);
    fclose(file);
    return nb;
}

static unsigned max_map_count(void)
{
    FILE *file = fopen("/proc/sys/vm/max_map_count", "re");
    unsigned nb = 0;

    if (!file || fscanf(file, "%u", &nb) != 1) {
        TEST_SKIP("/proc/sys/vm/max_map_count cannot be read");
    }
    fclose(file);
    return nb;
}

/* @nb coroutines alive at the same time, then ended: as many as that go to the pool. */
static void fill(Coroutine **co, unsigned nb)
{
    for (unsigned i = 0; i < nb; i++) {
        co[i] = co_create(yield_entry, NULL);
        ASSERT_NE(co[i], NULL);
        co_enter(co[i]);
    }
    for (unsigned i = 0; i < nb; i++) {
        co_enter(co[i]);
    }
}

TEST(co_pool, a_hundred_thousand_in_turn_use_one_stack)
{
    unsigned count = 0;
    CoroutineStats stats;

    co_enter(co_create(count_entry, &count));

    unsigned mappings = nb_mappings();

    for (unsigned i = 1; i < 100000; i++) {
        co_enter(co_create(count_entry, &count));
    }
    EXPECT_LE(nb_mappings(), mappings + 10); /* sanitizers map for themselves */
    EXPECT_EQ(count, 100000);
    co_stats(&stats);
    EXPECT_EQ(stats.created, 100000);
    EXPECT_EQ(stats.pool_hits, 99999);
    EXPECT_EQ(stats.pooled, 1);
    co_pool_drain();
    EXPECT_EQ(nb_pooled(), 0);
}

TEST(co_pool, keeps_at_most_its_limit)
{
    Coroutine *co[200];

    co_pool_set_limit(100);
    fill(co, 200);
    EXPECT_EQ(nb_pooled(), 100);
    co_pool_set_limit(30);
    EXPECT_EQ(nb_pooled(), 30);
    co_pool_set_limit(0);
    EXPECT_EQ(nb_pooled(), 0);
    fill(co, 10);
    EXPECT_EQ(nb_pooled(), 0);
}

TEST(co_pool, drain_gives_all_mappings_back)
{
    Coroutine *co[200];

    if (HAVE_TSAN) {
        TEST_SKIP("ThreadSanitizer keeps mappings of its own for fibers that are gone");
    }
    co_enter(co_create(count_entry, &(unsigned){ 0 }));
    co_pool_drain();

    unsigned mappings = nb_mappings();

    fill(co, 200);
    EXPECT_GE(nb_mappings(), mappings + 200);
    co_pool_drain();
    EXPECT_LE(nb_mappings(), mappings + 2); /* malloc and the sanitizers have their own */
}

/* --- all threads together --- */

#define NB_THREADS 3

typedef struct Filler {
    pthread_t thread;
    pthread_barrier_t *barrier;
    unsigned nb_coroutines;
    unsigned pooled;
    atomic_bool full; /* its coroutines have ended */
} Filler;

static void *filler_thread(void *opaque)
{
    Filler *filler = opaque;
    Coroutine **co = calloc(filler->nb_coroutines, sizeof(*co));

    co_pool_set_limit(UINT32_MAX);
    fill(co, filler->nb_coroutines);
    filler->pooled = nb_pooled();
    atomic_store(&filler->full, true);
    pthread_barrier_wait(filler->barrier); /* until here each keeps its own */
    co_pool_drain();
    free(co);
    return NULL;
}

TEST(co_pool, all_threads_together_keep_at_most_an_eighth_of_max_map_count)
{
    Filler fillers[NB_THREADS] = { 0 };
    pthread_barrier_t barrier;
    unsigned limit = max_map_count() / 8, sum = 0;
    Coroutine *co;

    if (HAVE_TSAN || limit > 20000) {
        TEST_SKIP("%s", HAVE_TSAN ? "ThreadSanitizer has too few fibers"
                                  : "vm.max_map_count is too large to be used up");
    }
    pthread_barrier_init(&barrier, NULL, NB_THREADS + 1);
    for (unsigned i = 0; i < NB_THREADS; i++) {
        fillers[i].barrier = &barrier;
        fillers[i].nb_coroutines = limit * 2 / 5; /* together more than the limit */
        pthread_create(&fillers[i].thread, NULL, filler_thread, &fillers[i]);
    }
    pthread_barrier_wait(&barrier);
    for (unsigned i = 0; i < NB_THREADS; i++) {
        pthread_join(fillers[i].thread, NULL);
        sum += fillers[i].pooled;
    }
    EXPECT_LE(sum, limit);
    EXPECT_GE(sum, limit - NB_THREADS * 64);

    /* The drained parts are free again. */
    fill(&co, 1);
    EXPECT_EQ(nb_pooled(), 1);
    co_pool_drain();
}

#define NB_QUEUES   64
#define QUEUE_DEPTH 256

TEST(co_pool, full_pools_leave_room_for_64_queues_of_depth_256)
{
    Filler fillers[NB_THREADS] = { 0 };
    pthread_barrier_t barrier;
    unsigned max = max_map_count();
    Coroutine **co = calloc(NB_QUEUES * QUEUE_DEPTH, sizeof(*co));

    if (HAVE_ASAN || HAVE_TSAN || max < 65530 || max > 100000) {
        TEST_SKIP("%s", HAVE_ASAN || HAVE_TSAN ? "a sanitizer needs mappings of its own"
                                               : "vm.max_map_count is not what kernels begin with");
    }
    pthread_barrier_init(&barrier, NULL, NB_THREADS + 1);
    for (unsigned i = 0; i < NB_THREADS; i++) {
        fillers[i].barrier = &barrier;
        fillers[i].nb_coroutines = max / 8; /* more than all may keep */
        pthread_create(&fillers[i].thread, NULL, filler_thread, &fillers[i]);
        while (!atomic_load(&fillers[i].full)) {
            sched_yield();
        }
    }
    fill(co, NB_QUEUES * QUEUE_DEPTH);
    pthread_barrier_wait(&barrier);
    for (unsigned i = 0; i < NB_THREADS; i++) {
        pthread_join(fillers[i].thread, NULL);
    }
    co_pool_drain();
    free(co);
}

TEST(co_pool, running_out_of_mappings_gives_null_and_no_harm)
{
    unsigned max = max_map_count();
    Coroutine **co;
    unsigned nb = 0;

    if (HAVE_TSAN || max > 100000) {
        TEST_SKIP("%s", HAVE_TSAN ? "ThreadSanitizer has too few fibers"
                                  : "vm.max_map_count is too large to be used up");
    }
    co = calloc(max, sizeof(*co));
    while (nb < max && (co[nb] = co_create(yield_entry, NULL)) != NULL) {
        nb++;
    }
    EXPECT_LT(nb, max);
    EXPECT_GT(nb, max / 4);

    unsigned pages = nb_pages();

    for (unsigned i = 0; i < 1000; i++) {
        EXPECT_EQ(co_create(yield_entry, NULL), NULL);
    }
    EXPECT_LE(nb_pages(), pages + 1000); /* nothing is left behind */
    for (unsigned i = 0; i < nb; i++) {
        co_enter(co[i]);
    }
    for (unsigned i = 0; i < nb; i++) {
        co_enter(co[i]);
    }
    co_pool_drain();
    EXPECT_LT(nb_mappings(), 1000);
    free(co);
}

/* --- stacks for requests --- */

#define STACKS_MAX 40

/* As a request of a queue that has @nb_others: it waits until it is entered once more. */
static Coroutine *begin_request(unsigned nb_others)
{
    Coroutine *co = co_create_request(yield_entry, NULL, nb_others);

    if (co) {
        co_enter(co);
    }
    return co;
}

/* How many one queue gets that asks for more and more. */
static unsigned flood(Coroutine **co, unsigned nb_max)
{
    unsigned nb = 0;

    while (nb < nb_max && (co[nb] = begin_request(nb)) != NULL) {
        nb++;
    }
    return nb;
}

static void end_all(Coroutine **co, unsigned nb)
{
    for (unsigned i = 0; i < nb; i++) {
        co_enter(co[i]);
    }
}

TEST(co_requests, one_queue_gets_all_there_are_and_another_still_its_few)
{
    Coroutine *a[100], *b[100];

    co_set_stacks_max(STACKS_MAX);
    EXPECT_EQ(flood(a, 100), STACKS_MAX);
    EXPECT_EQ(flood(b, 100), CO_REQUESTS_GUARANTEED);
    co_enter(a[0]); /* its stack is beyond the bound now: nobody may have it beyond his few */
    EXPECT_EQ(begin_request(STACKS_MAX - 1), NULL);
    EXPECT_EQ(begin_request(CO_REQUESTS_GUARANTEED), NULL);
    a[0] = begin_request(CO_REQUESTS_GUARANTEED - 1);
    ASSERT_NE(a[0], NULL);
    end_all(b, CO_REQUESTS_GUARANTEED);
    end_all(a, STACKS_MAX);
    EXPECT_LE(nb_pooled(), STACKS_MAX / 2);
    EXPECT_EQ(flood(a, 100), STACKS_MAX); /* as before */
    end_all(a, STACKS_MAX);
    co_pool_drain();
}

TEST(co_requests, what_is_guaranteed_is_bounded_too_but_for_one_each)
{
    Coroutine *co[STACKS_MAX + STACKS_MAX / 2], *one[30];
    unsigned nb = STACKS_MAX;

    co_set_stacks_max(STACKS_MAX);
    ASSERT_EQ(flood(co, STACKS_MAX), STACKS_MAX);
    while (nb < ARRAY_SIZE(co) && (co[nb] = begin_request(1)) != NULL) {
        nb++;
    }
    EXPECT_EQ(nb, ARRAY_SIZE(co));
    EXPECT_EQ(begin_request(1), NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(one); i++) {
        one[i] = begin_request(0);
        ASSERT_NE(one[i], NULL);
    }
    end_all(one, ARRAY_SIZE(one));
    end_all(co, nb);
    co_pool_drain();
}

/* Those in pools count: what they hold is as little free as what runs. */
TEST(co_requests, all_stacks_count_and_only_while_they_are_mapped)
{
    Coroutine *others[STACKS_MAX], *co[100];

    co_set_stacks_max(STACKS_MAX);
    for (unsigned i = 0; i < STACKS_MAX; i++) {
        others[i] = co_create(yield_entry, NULL);
        ASSERT_NE(others[i], NULL);
        co_enter(others[i]);
    }
    EXPECT_EQ(flood(co, 100), CO_REQUESTS_GUARANTEED);
    end_all(co, CO_REQUESTS_GUARANTEED);
    end_all(others, STACKS_MAX);
    co_pool_drain();
    EXPECT_EQ(flood(co, 100), STACKS_MAX);
    end_all(co, STACKS_MAX);
    co_pool_drain();
}

TEST(co_requests, a_discarded_coroutine_has_not_run_and_can_be_had_again)
{
    unsigned count = 0;

    co_discard(co_create_request(count_entry, &count, 0)); /* a new stack */
    EXPECT_EQ(nb_pooled(), 1);
    co_discard(co_create(count_entry, &count)); /* the same */
    EXPECT_EQ(nb_pooled(), 1);
    EXPECT_EQ(count, 0);
    co_enter(co_create(count_entry, &count));
    EXPECT_EQ(count, 1);
    co_discard(co_create(count_entry, &count)); /* one that has run before */
    EXPECT_EQ(count, 1);
    co_pool_set_limit(0);
    co_discard(co_create(count_entry, &count));
    EXPECT_EQ(nb_pooled(), 0);
    EXPECT_EQ(count, 1);
}

TEST(co_requests, the_bound_is_a_quarter_of_max_map_count)
{
    unsigned max = max_map_count();
    Coroutine **co;

    if (HAVE_ASAN || HAVE_TSAN || max > 100000) {
        TEST_SKIP("%s", HAVE_ASAN || HAVE_TSAN ? "a sanitizer needs mappings of its own"
                                               : "vm.max_map_count is too large to be used up");
    }
    co = calloc(max, sizeof(*co));
    EXPECT_EQ(flood(co, max), max / 4);
    EXPECT_LE(nb_mappings(), max / 2 + 1000);
    end_all(co, max / 4);
    co_pool_drain();
    free(co);
}

TEST_MAIN()
