/*
 * test-monitor.c - has every test program run on the monitor that TEST_MONITOR in the environment
 * names, where its contexts leave the choice
 */
#include <stdio.h>
#include <string.h>

#include "io/aio/aio-int.h"

static void __attribute__((constructor)) choose_monitor(void)
{
    const char *name = getenv("TEST_MONITOR");

    if (!name) {
        return;
    }
    if (strcmp(name, epoll_monitor.name) == 0) {
        monitor_auto = AIO_MONITOR_EPOLL;
    } else if (strcmp(name, uring_monitor.name) == 0) {
        monitor_auto = AIO_MONITOR_IO_URING;
    } else {
        fprintf(stderr, "TEST_MONITOR=%s is not a monitor\n", name);
        exit(2);
    }
}
