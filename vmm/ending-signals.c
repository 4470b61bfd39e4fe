/*
 * ending-signals.c - see ending-signals.h
 */
#include "vmm/ending-signals.h"

#include <stddef.h>

void ending_signals_fill(sigset_t *ret_set)
{
    struct sigaction hangup;

    sigemptyset(ret_set);
    sigaddset(ret_set, SIGTERM);
    sigaddset(ret_set, SIGINT);
    sigaddset(ret_set, SIGQUIT);
    if (sigaction(SIGHUP, NULL, &hangup) < 0 || hangup.sa_handler != SIG_IGN) {
        sigaddset(ret_set, SIGHUP);
    }
}

void ending_signals_block(void)
{
    sigset_t set;

    ending_signals_fill(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

void ending_signals_release(void)
{
    sigset_t set;

    ending_signals_fill(&set);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}
