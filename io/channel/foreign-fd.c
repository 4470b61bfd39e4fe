/*
 * foreign-fd.c - see foreign-fd.h
 *
 * Threads are started on demand and end when nothing is left to close: it happens seldom. Workers
 * (io/aio/aio-worker.h) would do, but for their number: those that hang are missing elsewhere.
 */
#include "io/channel/foreign-fd.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>

#include "io/base/list.h"
#include "io/base/thread.h"

#define CLOSER_STACK_BYTES (256 * 1024)

typedef struct ForeignFd {
    ListNode node;
    int fd;
} ForeignFd;

static struct {
    pthread_mutex_t lock; /* protects the rest */
    List fds;
    unsigned closers; /* that run, each with a descriptor or about to take one */
} pool = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .fds = LIST_INIT(pool.fds),
};

static void *closer_thread(void *opaque)
{
    ForeignFd *foreign;

    thread_set_name("closer");
    thread_use_main_cpus(); /* whoever had us started */
    pthread_mutex_lock(&pool.lock);
    while ((foreign = list_first_entry(&pool.fds, ForeignFd, node))) {
        list_remove(&foreign->node);
        pthread_mutex_unlock(&pool.lock);
        close(foreign->fd);
        free(foreign);
        pthread_mutex_lock(&pool.lock);
    }
    pool.closers--;
    pthread_mutex_unlock(&pool.lock);
    return NULL;
}

static int closer_start(void)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t saved;

    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, CLOSER_STACK_BYTES);
    thread_block_signals(&saved);
    int ret = -pthread_create(&thread, &attr, closer_thread, NULL);

    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    pthread_attr_destroy(&attr);
    return ret;
}

/* One more for each, as those that run may hang. False: there is none at all. */
static bool hand_over(ForeignFd *foreign)
{
    bool taken = true;

    pthread_mutex_lock(&pool.lock);
    list_push_back(&pool.fds, &foreign->node);
    if (pool.closers < FOREIGN_CLOSERS_MAX) {
        pool.closers++;
        if (closer_start() < 0 && --pool.closers == 0) {
            list_remove(&foreign->node);
            taken = false;
        }
    }
    pthread_mutex_unlock(&pool.lock);
    return taken;
}

/* Memory: asks no file system, and nobody else has such files. */
static bool closes_at_once(int fd)
{
    return fcntl(fd, F_GET_SEALS) >= 0;
}

void fd_close_foreign(int fd)
{
    ForeignFd *foreign = closes_at_once(fd) ? NULL : malloc(sizeof(*foreign));

    if (!foreign) {
        close(fd);
        return;
    }
    *foreign = (ForeignFd){ .fd = fd };
    if (!hand_over(foreign)) {
        close(fd); /* slow at worst, but done */
        free(foreign);
    }
}
