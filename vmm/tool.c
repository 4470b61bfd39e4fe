/*
 * tool.c - what the commands that work on disks without a guest share
 */
#include "vmm/tool.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "vmm/cmd.h"
#include "vmm/ending-signals.h"
#include "vmm/machine.h"

static void signal_cb(void *opaque)
{
    Tool *tool = opaque;
    struct signalfd_siginfo info;

    if (read(tool->signal_fd, &info, sizeof(info)) == sizeof(info)) {
        tool->signal_received = (int)info.ssi_signo;
        ending_signals_release();
    }
}

int tool_init(Tool *tool, Error *err)
{
    static const AioHandlerOps ops = { .read = signal_cb };
    sigset_t set;

    ending_signals_fill(&set);
    ending_signals_block(); /* before the first thread, so that none gets them */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    tool->main = aio_context_create("main", NULL, err);
    if (!tool->main) {
        return -EIO;
    }
    aio_context_enter(tool->main);
    aio_context_set_main(tool->main);
    tool->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (tool->signal_fd < 0) {
        return error_set(err, -errno, "signalfd: %s", error_strerror(errno));
    }
    aio_set_fd_handler(tool->main, tool->signal_fd, &ops, tool);
    return 0;
}

void tool_finish(Tool *tool)
{
    if (tool->signal_fd >= 0) {
        aio_set_fd_handler(tool->main, tool->signal_fd, NULL, NULL);
        close(tool->signal_fd);
    }
    if (tool->main) {
        aio_context_set_main(NULL);
        aio_context_enter(NULL);
        aio_context_destroy(tool->main);
    }
}

int tool_fail(const Tool *tool, const char *msg)
{
    cmd_complain("%s: %s", tool->name, msg);
    return tool->usage ? MACHINE_EXIT_USAGE : MACHINE_EXIT_HOST_FAILURE;
}

/* --- disks --- */

int tool_parse_disk(Tool *tool, Opts *opts, const char *what, const char *text, Error *err)
{
    int ret = opts_parse(opts, what, text, "path", err);

    tool->usage |= ret == -EINVAL;
    return ret;
}

BlockBackend *tool_open_disk(Tool *tool, const char *id, Opts *opts, bool writable, Error *err)
{
    if (!writable && !opts_has(opts, "readonly") && opts_add(opts, "readonly", "on", err) < 0) {
        return NULL;
    }
    Error reason;

    if (!tool->begun) {
        ending_signals_release();
    }
    BlockBackend *blk = blk_open(id, opts, &reason);

    if (!tool->signal_received) {
        ending_signals_block();
    }
    int ret = blk ? opts_check_all_used(opts, &reason) : reason.code;

    if (ret == 0) {
        return blk;
    }
    tool->usage |= ret == -EINVAL; /* a bad value; files fail with other codes */
    error_set(err, ret, "%s", reason.msg);
    if (blk && blk_close(blk) < 0) {
        cmd_complain("%s: '%s': the flush failed", tool->name, id);
    }
    return NULL;
}

/* --- output --- */

void tool_put_json_string(const char *text)
{
    putchar('"');
    for (; *text; text++) {
        unsigned char c = *text;

        if (c == '"' || c == '\\') {
            printf("\\%c", c);
        } else if (c < 0x20) {
            printf("\\u%04x", c);
        } else {
            putchar(c);
        }
    }
    putchar('"');
}

const char *tool_format_bytes(char *text, double bytes)
{
    static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
    unsigned unit = 0;

    while (bytes >= 1024 && unit + 1 < ARRAY_SIZE(units)) {
        bytes /= 1024;
        unit++;
    }
    snprintf(text, TOOL_BYTES_TEXT, unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
    return text;
}
