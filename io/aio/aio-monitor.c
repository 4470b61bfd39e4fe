/*
 * aio-monitor.c - which monitor a context gets
 *
 * io_uring, unless the parameters say epoll or the kernel refuses io_uring and the parameters leave
 * the choice: then epoll, with one warning for the whole process, because disks are slower so.
 */
#include "io/aio/aio-int.h"
#include "io/base/log.h"

AioMonitorKind monitor_auto;

static int monitor_try(AioContext *ctx, const AioMonitor *monitor, const AioParams *params,
                       Error *err)
{
    ctx->monitor = monitor;
    return monitor->init(ctx, params->ring_entries, err);
}

/* The host's decision, in contrast to a passing shortage. */
static bool is_refusal(int code)
{
    return code == -ENOSYS || code == -EPERM || code == -EACCES;
}

int monitor_init(AioContext *ctx, const AioParams *params, Error *err)
{
    static atomic_flag warned = ATOMIC_FLAG_INIT;
    AioMonitorKind kind = params->monitor == AIO_MONITOR_AUTO ? monitor_auto : params->monitor;
    Error refusal;

    if (kind == AIO_MONITOR_EPOLL) {
        return monitor_try(ctx, &epoll_monitor, params, err);
    }
    int ret = monitor_try(ctx, &uring_monitor, params, &refusal);

    if (ret == 0 || kind == AIO_MONITOR_IO_URING || !is_refusal(ret)) {
        return ret == 0 ? 0 : error_set(err, ret, "%s", refusal.msg);
    }
    if (!atomic_flag_test_and_set(&warned)) {
        log_warn("aio", "%s; going on with epoll and worker threads", refusal.msg);
    }
    return monitor_try(ctx, &epoll_monitor, params, err);
}
