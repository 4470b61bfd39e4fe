/*
 * service.h - what a program that serves does for the one that started it: a shell, or a manager
 *
 * Layer:     vmm
 * Threading: main thread.
 *
 * Going to the background is fork() before any thread or ring exists; the first process stays until
 * the other says that it is ready, or how it failed. A service manager's protocols are those of
 * sd_listen_fds(3) and sd_notify(3).
 */
#ifndef VMM_SERVICE_H
#define VMM_SERVICE_H

#include "io/base/error.h"

#define SERVICE_FDS_MAX 16

typedef struct Service {
    int ready_fd;   /* the process that waits reads its exit status from here; -1 = none does */
    char *pid_file; /* ours to remove; NULL = none */
} Service;

#define SERVICE_INIT                                                                               \
    {                                                                                              \
        .ready_fd = -1                                                                             \
    }

/*
 * service_take_sockets - those that listen and were passed to this very process; closed on exec,
 * and forgotten by the environment
 * Returns how many, 0 when none were; -EINVAL, -EBADF what was passed makes no sense.
 */
int service_take_sockets(int ret_fds[SERVICE_FDS_MAX], Error *err) NONNULL(1) WARN_UNUSED;

/* service_fork - go on in another process, which leads a session of its own; the first one ends
 * here, with what that one says to it */
int service_fork(Service *service, Error *err) NONNULL(1) WARN_UNUSED;
/* service_write_pid - into a file that service_finish() removes. Errors: of open() and write() */
int service_write_pid(Service *service, const char *path, Error *err) NONNULL(1, 2) WARN_UNUSED;
/* service_ready - tell the manager and the process that waits; in the background the standard
 * streams end here */
void service_ready(Service *service) NONNULL(1);
/* service_stopping - tell the manager */
void service_stopping(void);
/* service_finish - @status for the process that waits, if it still does */
void service_finish(Service *service, int status) NONNULL(1);

#endif
