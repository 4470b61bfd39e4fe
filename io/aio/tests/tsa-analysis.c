/*
 * tsa-analysis.c - what clang's thread safety analysis says of locks and roles
 *
 * Only compiled, with -Werror=thread-safety -Xclang -verify: the compiler fails the test unless it
 * gives exactly the errors that the comments below expect. io/co/tests/co-fn-analysis.c does that
 * for coroutine context.
 */
#include "io/aio/co-mutex.h"
#include "io/aio/iothread.h"
#include "io/base/thread.h"

/* --- a CoMutex: in an object, and one that guards data --- */

typedef struct Device {
    CoMutex lock;
    int state;
} Device;

static CoMutex table_lock;
static int table GUARDED_BY(table_lock);

static co_fn void device_step(Device *dev) REQUIRES(dev->lock);
static co_fn void device_step(Device *dev)
{
    dev->state++;
}

co_fn int holds_what_it_needs(Device *dev);
co_fn int holds_what_it_needs(Device *dev)
{
    co_mutex_lock(&dev->lock);
    device_step(dev);
    co_yield();
    co_mutex_unlock(&dev->lock);
    co_mutex_lock(&table_lock);
    int copy = table++;

    co_mutex_unlock(&table_lock);
    if (co_mutex_trylock(&table_lock)) {
        copy += table;
        co_mutex_unlock(&table_lock);
    }
    return copy;
}

co_fn void holds_nothing(Device *dev);
co_fn void holds_nothing(Device *dev)
{
    device_step(dev);             /* expected-error {{requires holding CoMutex 'dev->lock'}} */
    co_mutex_unlock(&dev->lock);  /* expected-error {{releasing CoMutex 'dev->lock' that was}} */
    table = 0;                    /* expected-error {{requires holding CoMutex 'table_lock'}} */
    (void)co_mutex_trylock(&table_lock);
    table = 1;                    /* expected-error {{requires holding CoMutex 'table_lock'}} */
}

co_fn void holds_the_wrong_one(Device *dev, Device *other);
co_fn void holds_the_wrong_one(Device *dev, Device *other)
{
    co_mutex_lock(&other->lock);
    device_step(dev); /* expected-error {{requires holding CoMutex 'dev->lock'}}
                         expected-note {{found near match 'other->lock'}} */
    co_mutex_unlock(&other->lock);
}

co_fn void forgets_to_unlock(Device *dev, bool early);
co_fn void forgets_to_unlock(Device *dev, bool early)
{
    co_mutex_lock(&dev->lock); /* expected-note {{mutex acquired here}} */
    if (early) {
        return;
    }
    co_mutex_unlock(&dev->lock);
} /* expected-error {{mutex 'dev->lock' is not held on every path}} */

co_fn void locks_twice(Device *dev);
co_fn void locks_twice(Device *dev)
{
    co_mutex_lock(&dev->lock); /* expected-note {{CoMutex acquired here}} */
    co_mutex_lock(&dev->lock); /* expected-error {{CoMutex 'dev->lock' that is already held}} */
    co_mutex_unlock(&dev->lock);
}

void plain_code_locks(Device *dev);
void plain_code_locks(Device *dev)
{
    co_mutex_lock(&dev->lock);   /* expected-error {{requires holding role 'tsa_role_coroutine'}} */
    co_mutex_unlock(&dev->lock); /* expected-error {{requires holding role 'tsa_role_coroutine'}} */
}

/* --- a table of functions --- */

typedef struct DeviceOps {
    void (*co_step)(Device *dev) co_fn_ptr;
} DeviceOps;

static co_fn void wait_step(Device *dev)
{
    co_yield();
}

static const DeviceOps device_ops = { .co_step = wait_step };

co_fn void calls_the_slot(Device *dev);
co_fn void calls_the_slot(Device *dev)
{
    device_ops.co_step(dev);
}

void plain_code_calls_the_slot(Device *dev);
void plain_code_calls_the_slot(Device *dev)
{
    device_ops.co_step(dev); /* expected-error {{requires holding role 'tsa_role_coroutine'}} */
}

/* --- the main thread --- */

static unsigned nb_threads GUARDED_BY(tsa_role_main);

main_fn void starts_a_thread(void);
void starts_a_thread(void)
{
    nb_threads++;
    iothread_unref(iothread_create("t", NULL, NULL));
}

void callback_in_the_main_thread(void *opaque);
void callback_in_the_main_thread(void *opaque)
{
    assert_main();
    starts_a_thread();
}

void callback_in_some_thread(void *opaque);
void callback_in_some_thread(void *opaque)
{
    starts_a_thread(); /* expected-error {{requires holding role 'tsa_role_main'}} */
    nb_threads++;      /* expected-error {{requires holding role 'tsa_role_main'}} */
}

/* --- the graph --- */

typedef struct Node {
    struct Node *file GUARDED_BY(tsa_graph_lock);
} Node;

void graph_rdlock(void) ACQUIRES_SHARED(tsa_graph_lock);
void graph_rdunlock(void) RELEASES_SHARED(tsa_graph_lock);
void graph_wrlock(void) ACQUIRES(tsa_graph_lock);
void graph_wrunlock(void) RELEASES(tsa_graph_lock);

static GRAPH_RD Node *node_file(const Node *node)
{
    return node->file;
}

static GRAPH_WR void node_attach(Node *node, Node *file)
{
    node->file = file;
}

void uses_the_graph(Node *node);
void uses_the_graph(Node *node)
{
    graph_rdlock();
    Node *file = node_file(node);

    node_attach(node, file); /* expected-error {{'tsa_graph_lock' exclusively}} */
    graph_rdunlock();
    graph_wrlock();
    node_attach(node, node_file(file));
    graph_wrunlock();
    node_file(node); /* expected-error {{requires holding role 'tsa_graph_lock'}} */
}
