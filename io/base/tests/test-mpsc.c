/*
 * test-mpsc.c - the queue of many producers: order, gaps, reuse of nodes, threads, signal handlers
 */
#include "io/base/mpsc.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include "io/base/test.h"

typedef struct Item {
    MpscNode node;
    unsigned producer;
    int number; /* plain: the push must carry it over */
} Item;

static MpscQueue queue;
static MpscList list;

static Item *pop(void)
{
    bool can = mpsc_can_pop(&list);
    MpscNode *node = mpsc_pop(&list);

    EXPECT_EQ(node != NULL, can);
    return node ? container_of(node, Item, node) : NULL;
}

TEST(mpsc, comes_out_in_the_order_of_the_pushes)
{
    Item items[5];

    mpsc_init(&queue);
    mpsc_collect(&queue, &list);
    EXPECT_TRUE(pop() == NULL);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 3; i++) {
            mpsc_push(&queue, &items[i].node);
        }
        EXPECT_TRUE(pop() == NULL); /* not collected */
        mpsc_collect(&queue, &list);
        mpsc_push(&queue, &items[3].node);
        EXPECT_TRUE(pop() == &items[0]);
        mpsc_push(&queue, &items[0].node); /* again, at once */
        mpsc_collect(&queue, &list);
        EXPECT_TRUE(pop() == &items[1]);
        EXPECT_TRUE(pop() == &items[2]);
        mpsc_push(&queue, &items[4].node);
        EXPECT_TRUE(pop() == &items[3]);
        EXPECT_TRUE(pop() == &items[0]);
        EXPECT_TRUE(pop() == NULL);
        mpsc_collect(&queue, &list);
        EXPECT_TRUE(pop() == &items[4]);
        EXPECT_TRUE(pop() == NULL);
    }
}

TEST(mpsc, gap_holds_back_the_one_before_it_and_those_behind)
{
    Item items[6];

    mpsc_init(&queue);
    mpsc_push(&queue, &items[0].node);
    mpsc_push(&queue, &items[1].node);
    MpscLink *place = mpsc_reserve(&queue, &items[2].node);

    mpsc_push(&queue, &items[3].node);
    mpsc_collect(&queue, &list);
    EXPECT_TRUE(pop() == &items[0]);
    EXPECT_TRUE(pop() == NULL); /* its link is still to be written */
    mpsc_push(&queue, &items[4].node);
    mpsc_collect(&queue, &list);
    EXPECT_TRUE(pop() == NULL);
    mpsc_link(place, &items[2].node);
    mpsc_push(&queue, &items[5].node);
    EXPECT_TRUE(pop() == &items[1]);
    EXPECT_TRUE(pop() == &items[2]);
    EXPECT_TRUE(pop() == &items[3]);
    EXPECT_TRUE(pop() == &items[4]);
    EXPECT_TRUE(pop() == NULL);
    mpsc_collect(&queue, &list);
    EXPECT_TRUE(pop() == &items[5]);
}

TEST(mpsc, gap_at_the_beginning_leaves_all_where_it_is)
{
    Item items[2];

    mpsc_init(&queue);
    MpscLink *place = mpsc_reserve(&queue, &items[0].node);

    mpsc_push(&queue, &items[1].node);
    mpsc_collect(&queue, &list);
    EXPECT_TRUE(pop() == NULL);
    mpsc_link(place, &items[0].node);
    mpsc_collect(&queue, &list);
    EXPECT_TRUE(pop() == &items[0]);
    EXPECT_TRUE(pop() == &items[1]);
    EXPECT_TRUE(pop() == NULL);
}

/* --- threads --- */

#define PRODUCERS 3
#define ITEMS     16
#define ROUNDS    20000

static Item items_of[PRODUCERS][ITEMS];
static atomic_bool free_of[PRODUCERS][ITEMS];

static void *producer_thread(void *opaque)
{
    unsigned me = (unsigned)(uintptr_t)opaque;

    for (int i = 0; i < ROUNDS; i++) {
        while (!atomic_load_explicit(&free_of[me][i % ITEMS], memory_order_acquire)) {
            sched_yield();
        }
        atomic_store_explicit(&free_of[me][i % ITEMS], false, memory_order_relaxed);
        items_of[me][i % ITEMS].number = i;
        items_of[me][i % ITEMS].producer = me;
        mpsc_push(&queue, &items_of[me][i % ITEMS].node);
    }
    return NULL;
}

TEST(mpsc, nothing_of_any_thread_is_lost_or_overtakes_its_own)
{
    pthread_t threads[PRODUCERS];
    int next[PRODUCERS] = { 0 };

    mpsc_init(&queue);
    for (unsigned i = 0; i < PRODUCERS; i++) {
        for (unsigned j = 0; j < ITEMS; j++) {
            atomic_store(&free_of[i][j], true);
        }
        ASSERT_EQ(pthread_create(&threads[i], NULL, producer_thread, (void *)(uintptr_t)i), 0);
    }
    for (int left = PRODUCERS * ROUNDS; left > 0;) {
        mpsc_collect(&queue, &list);
        MpscNode *node = mpsc_pop(&list);

        if (!node) {
            sched_yield();
            continue;
        }
        Item *item = container_of(node, Item, node);
        unsigned from = item->producer;

        ASSERT_EQ(item->number, next[from]);
        item->number = -1;
        atomic_store_explicit(&free_of[from][next[from]++ % ITEMS], true, memory_order_release);
        left--;
    }
    for (unsigned i = 0; i < PRODUCERS; i++) {
        pthread_join(threads[i], NULL);
    }
    mpsc_collect(&queue, &list);
    EXPECT_TRUE(pop() == NULL);
}

/* --- a signal handler in the owner's thread --- */

#define SIGNALS 2000

static Item signal_items[SIGNALS];
static atomic_int nb_signals;

static void push_on_signal(int signo)
{
    mpsc_push(&queue, &signal_items[atomic_fetch_add(&nb_signals, 1)].node);
}

static void *signalling_thread(void *opaque)
{
    pthread_t *owner = opaque;

    for (int i = 0; i < SIGNALS; i++) {
        pthread_kill(*owner, SIGUSR1);
        while (atomic_load(&nb_signals) == i) {
            sched_yield();
        }
    }
    return NULL;
}

TEST(mpsc, signal_handler_may_interrupt_the_owner_anywhere)
{
    struct sigaction action = { .sa_handler = push_on_signal };
    pthread_t owner = pthread_self(), thread;
    Item own;
    int own_left = 0, popped = 0, nb_own = 0;

    if (HAVE_TSAN) {
        TEST_SKIP("ThreadSanitizer holds signals back until the next system call");
    }
    mpsc_init(&queue);
    sigaction(SIGUSR1, &action, NULL);
    ASSERT_EQ(pthread_create(&thread, NULL, signalling_thread, &owner), 0);
    while (popped < SIGNALS || own_left > 0) {
        if (own_left == 0) {
            mpsc_push(&queue, &own.node);
            own_left = 1;
        }
        mpsc_collect(&queue, &list);
        for (MpscNode *node; (node = mpsc_pop(&list));) {
            if (node == &own.node) {
                own_left = 0;
                nb_own++;
            } else {
                ASSERT_TRUE(container_of(node, Item, node) == &signal_items[popped]);
                popped++;
            }
        }
        /* No handler stays in its gap while we are here, so our own has come out. */
        ASSERT_EQ(own_left, 0);
    }
    pthread_join(thread, NULL);
    EXPECT_GT(nb_own, 0);
}

TEST_MAIN()
