/*
 * service.c - see service.h
 */
#include "vmm/service.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "io/base/opts.h"

#define FIRST_FD 3 /* of those that are passed */

/* --- sockets that were passed --- */

int service_take_sockets(int ret_fds[SERVICE_FDS_MAX], Error *err)
{
    const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");
    uint64_t pid_value = 0, nb = 0;
    int ret = 0;

    if (!pid || !fds || opts_parse_u64("LISTEN_PID", pid, 1, INT32_MAX, &pid_value, NULL) < 0 ||
        pid_value != (uint64_t)getpid()) {
        return 0; /* meant for another process */
    }
    ret = opts_parse_u64("LISTEN_FDS", fds, 1, SERVICE_FDS_MAX, &nb, err);
    for (unsigned i = 0; ret == 0 && i < nb; i++) {
        ret_fds[i] = FIRST_FD + (int)i;
        if (fcntl(ret_fds[i], F_SETFD, FD_CLOEXEC) < 0) {
            ret = error_set(err, -errno, "LISTEN_FDS=%" PRIu64 ": descriptor %d is not open", nb,
                            ret_fds[i]);
        }
    }
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    return ret < 0 ? ret : (int)nb;
}

/* --- the background --- */

static NORETURN void wait_for_ready(int fd)
{
    uint8_t status = 1; /* what it is when the other process dies */
    ssize_t ret;

    do {
        ret = read(fd, &status, 1);
    } while (ret < 0 && errno == EINTR);
    _exit(status);
}

int service_fork(Service *service, Error *err)
{
    int fds[2];

    if (pipe2(fds, O_CLOEXEC) < 0) {
        return error_set(err, -errno, "--fork: pipe: %s", error_strerror(errno));
    }
    fflush(NULL);
    pid_t pid = fork();

    if (pid < 0) {
        int ret = -errno;

        close(fds[0]);
        close(fds[1]);
        return error_set(err, ret, "--fork: %s", error_strerror(ret));
    }
    close(fds[pid == 0 ? 0 : 1]);
    if (pid > 0) {
        wait_for_ready(fds[0]);
    }
    setsid();
    service->ready_fd = fds[1];
    return 0;
}

static void tell_waiting_process(Service *service, int status)
{
    uint8_t byte = (uint8_t)status;

    if (service->ready_fd >= 0) {
        ssize_t ret = write(service->ready_fd, &byte, 1);

        (void)ret; /* it has gone: nobody is left to tell */
        close(take_fd(&service->ready_fd));
    }
}

static void end_standard_streams(void)
{
    AUTO_FD int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

    for (int i = STDIN_FILENO; fd >= 0 && i <= STDERR_FILENO; i++) {
        dup2(fd, i);
    }
    if (fd >= 0 && fd <= STDERR_FILENO) {
        fd = -1; /* it is one of them */
    }
}

/* --- the pid file --- */

int service_write_pid(Service *service, const char *path, Error *err)
{
    AUTO_FD int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    char text[16];
    int len = snprintf(text, sizeof(text), "%d\n", (int)getpid());

    if (fd < 0 || write(fd, text, (size_t)len) != len) {
        int code = errno ? -errno : -EIO;

        return error_set(err, code, "--pid-file %s: %s", path, error_strerror(code));
    }
    service->pid_file = strdup(path);
    return service->pid_file ? 0 : error_set(err, -ENOMEM, "out of memory");
}

/* --- the manager --- */

static void notify_manager(const char *text)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un sa = { .sun_family = AF_UNIX };
    size_t len_bytes = path ? strlen(path) : 0;

    if (len_bytes < 2 || len_bytes >= sizeof(sa.sun_path) || (path[0] != '/' && path[0] != '@')) {
        return;
    }
    memcpy(sa.sun_path, path, len_bytes);
    if (path[0] == '@') {
        sa.sun_path[0] = '\0'; /* in the abstract namespace */
    }
    AUTO_FD int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd >= 0) {
        ssize_t ret = sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&sa,
                             (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len_bytes));

        (void)ret; /* a manager that does not listen misses it */
    }
}

void service_ready(Service *service)
{
    char text[40];

    snprintf(text, sizeof(text), "READY=1\nMAINPID=%d", (int)getpid());
    notify_manager(text);
    if (service->ready_fd >= 0) {
        end_standard_streams();
        tell_waiting_process(service, 0);
    }
}

void service_stopping(void)
{
    notify_manager("STOPPING=1");
}

void service_finish(Service *service, int status)
{
    if (service->pid_file) {
        unlink(service->pid_file);
        free(take_ptr(&service->pid_file));
    }
    tell_waiting_process(service, status);
}
