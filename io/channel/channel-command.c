/*
 * channel-command.c - a child process behind two pipes
 *
 * The pipes are a file channel, to which everything is passed on; this adds the child. It is
 * awaited by its pidfd, which becomes readable when it has ended, and reaped exactly once: by
 * channel_command_co_wait() or by the last unref.
 */
#include "io/channel/channel-command.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "io/channel/channel-file.h"
#include "io/channel/channel-int.h"

typedef struct CommandChannel {
    Channel base;
    Channel *pipes;
    pid_t pid;
    int pidfd;
    int status;
    bool reaped;
    WaitSlot slot; /* who waits for the end */
} CommandChannel;

static CommandChannel *command_of(Channel *ch)
{
    return container_of(ch, CommandChannel, base);
}

static co_fn ssize_t command_co_readv(Channel *ch, const struct iovec *iov, int niov,
                                      ChannelFds *fds)
{
    return channel_co_try_readv(command_of(ch)->pipes, iov, niov, fds);
}

static co_fn ssize_t command_co_writev(Channel *ch, const struct iovec *iov, int niov,
                                       const ChannelFds *fds)
{
    return channel_co_try_writev(command_of(ch)->pipes, iov, niov, fds);
}

static co_fn int command_co_wait(Channel *ch, ChannelCondition condition)
{
    return channel_yield(command_of(ch)->pipes, condition);
}

static void command_set_deadline(Channel *ch, unsigned directions, int64_t deadline_ns)
{
    channel_set_deadline(command_of(ch)->pipes, directions, deadline_ns);
}

static void command_shutdown(Channel *ch, unsigned directions)
{
    channel_shutdown(command_of(ch)->pipes, directions);
}

/* False while the child runs. */
static bool command_reap(CommandChannel *cmd, int flags)
{
    pid_t ret;

    if (cmd->reaped) {
        return true;
    }
    do {
        ret = waitpid(cmd->pid, &cmd->status, flags);
    } while (ret < 0 && errno == EINTR);
    /* -ECHILD: the process ignores SIGCHLD, and the kernel has reaped it */
    cmd->reaped = ret != 0;
    return cmd->reaped;
}

static void command_destroy(Channel *ch)
{
    CommandChannel *cmd = command_of(ch);

    channel_unref(cmd->pipes);
    if (cmd->pid > 0 && !cmd->reaped) {
        kill(cmd->pid, SIGKILL);
        command_reap(cmd, 0);
    }
    if (cmd->pidfd >= 0) {
        close(cmd->pidfd);
    }
    free(cmd);
}

static const ChannelOps command_ops = {
    .co_readv = command_co_readv,
    .co_writev = command_co_writev,
    .co_wait = command_co_wait,
    .shutdown = command_shutdown,
    .set_deadline = command_set_deadline,
    .destroy = command_destroy,
};

/* Signals as at the start of a process: nothing blocked, nothing ignored. */
static void default_signals(posix_spawnattr_t *attr)
{
    sigset_t set;

    sigfillset(&set);
    posix_spawnattr_setsigdefault(attr, &set);
    sigemptyset(&set);
    posix_spawnattr_setsigmask(attr, &set);
    posix_spawnattr_setflags(attr, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
}

static int spawn(const char *const argv[], int child_in, int child_out, pid_t *ret_pid)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    int ret = -posix_spawn_file_actions_init(&actions);

    if (ret < 0) {
        return ret;
    }
    posix_spawnattr_init(&attr);
    default_signals(&attr);
    ret = -posix_spawn_file_actions_adddup2(&actions, child_in, STDIN_FILENO);
    if (ret == 0) {
        ret = -posix_spawn_file_actions_adddup2(&actions, child_out, STDOUT_FILENO);
    }
    if (ret == 0) {
        ret = -posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1);
    }
    if (ret == 0) {
        ret = -posix_spawnp(ret_pid, argv[0], &actions, &attr, (char *const *)argv, environ);
    }
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&actions);
    return ret;
}

/* A pipe whose ends are not numbered like standard streams: those are dup2()'s targets. */
static int pipe_above_stdio(int fds[2])
{
    int low[2];

    if (pipe2(low, O_CLOEXEC) < 0) {
        return -errno;
    }
    for (int i = 0; i < 2; i++) {
        fds[i] = fcntl(low[i], F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    }
    int ret = fds[0] < 0 || fds[1] < 0 ? -errno : 0;

    close(low[0]);
    close(low[1]);
    return ret;
}

static int command_start(CommandChannel *cmd, const char *const argv[])
{
    AUTO_FD int in_read = -1, in_write = -1, out_read = -1, out_write = -1;
    int fds[2] = { -1, -1 };
    int ret = pipe_above_stdio(fds);

    in_read = fds[0];
    in_write = fds[1];
    if (ret == 0) {
        fds[0] = fds[1] = -1;
        ret = pipe_above_stdio(fds);
        out_read = fds[0];
        out_write = fds[1];
    }
    if (ret == 0) {
        ret = spawn(argv, in_read, out_write, &cmd->pid);
    }
    if (ret < 0) {
        return ret;
    }
    cmd->pidfd = syscall(SYS_pidfd_open, cmd->pid, 0);
    if (cmd->pidfd < 0) {
        return -errno;
    }
    cmd->pipes = channel_file_adopt(take_fd(&out_read), take_fd(&in_write), argv[0], NULL);
    return cmd->pipes ? 0 : -ENOMEM;
}

Channel *channel_command_open(const char *const argv[], Error *err)
{
    CommandChannel *cmd = channel_alloc(sizeof(*cmd));
    int ret = -ENOMEM;

    if (cmd) {
        channel_init(&cmd->base, &command_ops, "command %s", argv[0]);
        cmd->pidfd = -1;
        ret = command_start(cmd, argv);
    }
    if (ret < 0) {
        error_set(err, ret, "starting '%s': %s", argv[0], error_strerror(ret));
        if (cmd) {
            command_destroy(&cmd->base);
        }
        return NULL;
    }
    return &cmd->base;
}

int channel_command_co_wait(Channel *ch, int64_t deadline_ns, int *ret_status)
{
    CommandChannel *cmd = command_of(ch);

    assert(ch->ops == &command_ops);
    channel_shutdown(ch, CHANNEL_READ | CHANNEL_WRITE);
    while (!command_reap(cmd, WNOHANG)) {
        wait_slot_prepare(&cmd->slot);
        if (!wait_slot_yield_fd(&cmd->slot, cmd->pidfd, POLLIN, deadline_ns)) {
            return -ETIMEDOUT;
        }
    }
    if (ret_status) {
        *ret_status = cmd->status;
    }
    return 0;
}
