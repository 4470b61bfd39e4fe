/*
 * server-process.h - a vhost-user-blk server as a process of its own, to be killed at any moment
 *
 * Layer:     virtio/ tests and benchmarks
 * Threading: any one thread; before others are started, for it forks.
 * Lifetime:  server_init() .. server_finish(), which leaves no process and no file behind. A
 *            server dies with the thread that has started it.
 *
 * The program is penstock, as PENSTOCK in the environment names it, or QEMU's storage daemon.
 * Everything here aborts the test when the machine does not give what it needs.
 */
#ifndef VIRTIO_TESTS_SERVER_PROCESS_H
#define VIRTIO_TESTS_SERVER_PROCESS_H

#include <sys/types.h>

#include "io/base/compiler.h"

typedef enum ServerProgram { SERVER_PENSTOCK, SERVER_QEMU } ServerProgram;

#define SERVER_PATH_BYTES 96

typedef struct ServerProcess {
    ServerProgram program;
    char dir[SERVER_PATH_BYTES]; /* all files of this server, which may live several times */
    char socket_path[SERVER_PATH_BYTES], image_path[SERVER_PATH_BYTES], log_path[SERVER_PATH_BYTES];
    int notify_fd; /* where penstock says that it is ready */
    int listen_fd; /* what QEMU listens on */
    pid_t pid;     /* 0 = it does not run */
} ServerProcess;

/* server_init - a folder with an image of zeroes */
void server_init(ServerProcess *server, ServerProgram program, uint64_t image_bytes) NONNULL(1);
void server_finish(ServerProcess *server) NONNULL(1);

/*
 * server_start - returns when it listens
 * @disk     penstock: what --disk takes, with "IMAGE" for the image's path; NULL = just that.
 *           QEMU: the properties of a block node. NULL = the image, through the page cache.
 * @options  more words of the command line, divided by blanks; NULL = none
 */
void server_start(ServerProcess *server, unsigned nb_queues, const char *disk, const char *options)
    NONNULL(1);
/* server_kill - SIGKILL; returns when it is gone */
void server_kill(ServerProcess *server) NONNULL(1);
/* server_stop - SIGTERM; what it exits with, or 128 and the signal that ended it */
int server_stop(ServerProcess *server) NONNULL(1);

/* server_has_ended - true when it did so by itself; what server_stop() would return is in
 * *ret_status */
bool server_has_ended(ServerProcess *server, int *ret_status) NONNULL(1, 2);

/* What it has open, and mapped with other processes. */
unsigned server_count_fds(const ServerProcess *server) NONNULL(1);
unsigned server_count_shared_maps(const ServerProcess *server) NONNULL(1);
/* All its mappings. */
unsigned server_count_maps(const ServerProcess *server) NONNULL(1);
/* Processor time of all its threads so far. */
uint64_t server_cpu_ns(const ServerProcess *server) NONNULL(1);

/* server_log - all that it has written to standard error since the folder was made; the caller
 * frees it */
char *server_log(const ServerProcess *server) NONNULL(1) WARN_UNUSED;

#endif
