/*
 * main.c - the program: which subcommand, and what holds for all of them
 *
 * Management programs start vhost-user back ends without a subcommand, so under another name it is
 * `penstock export`.
 *
 * Who starts it may have closed stdin, stdout or stderr. What is opened first would then take that
 * number: the guest's console would be written to a disk, or the wake-up of the event loop be read
 * as the guest's keyboard. So each of the three is open from the start, and not usable if it was
 * not.
 *
 * A queue takes four descriptors, a connection two, and the limit that processes are given is meant
 * for programs that use select(2). This one does not, so it takes what it may have.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "vmm/cmd.h"
#include "vmm/machine.h"
#include "vmm/version.h"

static const char help[] =
    "usage: penstock COMMAND [options]\n"
    "\n"
    "  run      boot a Linux guest, or any PVH payload, with virtio-blk disks\n"
    "  export   serve disks to other programs over NBD and vhost-user\n"
    "  ctl      talk to a running penstock: query, stop, continue, change\n"
    "  info     tell what a disk is, and how much of it is allocated\n"
    "  copy     copy a disk\n"
    "  bench    measure a disk without a guest\n"
    "  check    tell what this host offers: KVM, io_uring, limits, and what to do about them\n"
    "\n"
    "penstock COMMAND --help tells the options; penstock(1) has the whole manual.\n";

static const struct {
    const char *name;
    int (*fn)(int argc, char **argv);
} commands[] = {
    { "run", cmd_run },
    { "export", cmd_export },
    { "ctl", cmd_ctl },
    { "info", cmd_info },
    { "copy", cmd_copy },
    { "bench", cmd_bench },
    { "check", cmd_check },
};

void cmd_complain(const char *fmt, ...)
{
    va_list ap;

    fflush(stdout);
    fputs("penstock: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

static bool is_back_end(const char *path)
{
    const char *slash = strrchr(path, '/');

    return strcmp(slash ? slash + 1 : path, "penstock-vhost-user-blk") == 0;
}

/* /dev/null in the direction that nobody uses: a read of stdin or a write to the others fails, as
 * it should. */
static void hold_standard_descriptors(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) < 0 &&
            open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0) {
            exit(MACHINE_EXIT_HOST_FAILURE); /* there may be nowhere to say why */
        }
    }
}

static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static int run_command(int argc, char **argv)
{
    if (argc > 0 && is_back_end(argv[0])) {
        return cmd_export(argc, argv);
    }
    if (argc < 2) {
        fputs(help, stderr);
        return MACHINE_EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        fputs(help, stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        puts("penstock " PENSTOCK_VERSION);
        return 0;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            return commands[i].fn(argc - 1, argv + 1);
        }
    }
    cmd_complain("there is no command '%s'; see penstock --help", argv[1]);
    return MACHINE_EXIT_USAGE;
}

/* Results that nobody has got are no success. */
static int check_output(int status)
{
    int ret = fflush(stdout) < 0 ? -errno : ferror(stdout) ? -EIO : 0;

    if (ret < 0 && status == 0) {
        cmd_complain("stdout: %s", error_strerror(ret));
        return MACHINE_EXIT_HOST_FAILURE;
    }
    return status;
}

int main(int argc, char **argv)
{
    hold_standard_descriptors();
    raise_descriptor_limit();
    return check_output(run_command(argc, argv));
}
