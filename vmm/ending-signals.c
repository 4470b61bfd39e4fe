/*
 * ending-signals.c - see ending-signals.h
 */
#include "vmm/ending-signals.h"

#include <stddef.h>
#include <unistd.h>

#include "vmm/machine.h"

static const int ending_signals[] = { SIGTERM, SIGINT, SIGQUIT, SIGHUP };

void ending_signals_fill(sigset_t *ret_set)
{
    struct sigaction hangup;
    bool ignored = sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler == SIG_IGN;

    sigemptyset(ret_set);
    for (unsigned i = 0; i < ARRAY_SIZE(ending_signals); i++) {
        if (ending_signals[i] != SIGHUP || !ignored) {
            sigaddset(ret_set, ending_signals[i]);
        }
    }
}

void ending_signals_block(void)
{
    sigset_t set;

    ending_signals_fill(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

/* The first process of a container is not ended by a signal that it does not handle. */
static void end_cb(int signo)
{
    _exit(MACHINE_EXIT_SIGNAL + signo);
}

void ending_signals_release(void)
{
    sigset_t set;

    ending_signals_fill(&set);
    for (unsigned i = 0; getpid() == 1 && i < ARRAY_SIZE(ending_signals); i++) {
        if (sigismember(&set, ending_signals[i])) {
            signal(ending_signals[i], end_cb);
        }
    }
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}
