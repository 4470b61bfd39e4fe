/*
 * run-state.c - the run state machine
 *
 * A request lies in the frame of the coroutine that made it and is unlinked before that is woken,
 * so it is answered once.
 */
#include "vmm/run-state.h"

#include <string.h>

typedef struct RunRequest {
    ListNode link;
    RunAction action;
    Coroutine *co;
    int ret;
    Error err;
} RunRequest;

const char *const run_status_names[RUN_NB_STATUS] = {
    [RUN_PRELAUNCH] = "prelaunch", [RUN_RUNNING] = "running",   [RUN_PAUSED] = "paused",
    [RUN_IO_ERROR] = "io-error",   [RUN_SHUTDOWN] = "shutdown",
};

void run_state_init(RunState *run, const RunOps *ops, void *opaque)
{
    memset(run, 0, sizeof(*run));
    run->ops = ops;
    run->opaque = opaque;
    list_init(&run->requests);
}

void run_state_finish(RunState *run)
{
    assert(list_empty(&run->requests));
}

/* --- changes --- */

static void go(RunState *run)
{
    run->ops->go(run->opaque);
    run->status = RUN_RUNNING;
    run->ops->event(run->opaque, RUN_EVENT_RESUME, false);
}

static void halt(RunState *run, RunStatus status)
{
    run->ops->halt(run->opaque);
    run->status = status;
    run->ops->event(run->opaque, RUN_EVENT_STOP, false);
}

static bool is_stopped(const RunState *run)
{
    return run->status == RUN_PAUSED || run->status == RUN_IO_ERROR;
}

static int reset(RunState *run, bool by_guest, Error *err)
{
    int ret = run->ops->reset(run->opaque, run->status == RUN_RUNNING, err);

    if (ret == 0) {
        run->ops->event(run->opaque, RUN_EVENT_RESET, by_guest);
    }
    return ret;
}

void run_state_launch(RunState *run)
{
    assert(run->status == RUN_PRELAUNCH);
    go(run);
}

void run_state_io_error(RunState *run)
{
    if (run->status == RUN_RUNNING) {
        halt(run, RUN_IO_ERROR);
    }
}

int run_state_reset(RunState *run, Error *err)
{
    return reset(run, true, err);
}

/* --- requests --- */

void run_state_ask_cont(RunState *run, bool after_error)
{
    run->cont_asked |= !after_error;
    run->cont_asked_after_error |= after_error;
}

co_fn int run_state_co_request(RunState *run, RunAction action, Error *err)
{
    RunRequest request = { .action = action, .co = co_self() };

    if (run->status == RUN_SHUTDOWN) {
        return error_set(err, -EINVAL, "the machine has ended");
    }
    list_push_back(&run->requests, &request.link);
    co_yield();
    return request.ret < 0 ? error_set(err, request.ret, "%s", request.err.msg) : 0;
}

static void answer(RunRequest *request)
{
    list_remove(&request->link);
    aio_co_wake(request->co);
}

static RunStep carry_out(RunState *run, RunRequest *request, Error *err)
{
    int ret = 0;

    switch (request->action) {
    case RUN_STOP:
        if (run->status == RUN_RUNNING) {
            halt(run, RUN_PAUSED);
        }
        return RUN_BUSY;
    case RUN_CONT:
        if (is_stopped(run)) {
            go(run);
        }
        return RUN_BUSY;
    case RUN_RESET:
        ret = reset(run, false, err);
        if (ret < 0) {
            request->ret = error_set(&request->err, ret, "%s", err->msg);
        }
        return ret < 0 ? RUN_ENDS_FAILED : ret > 0 ? RUN_ENDS_RESET : RUN_BUSY;
    case RUN_POWERDOWN:
        run->ops->powerdown(run->opaque);
        run->ops->event(run->opaque, RUN_EVENT_POWERDOWN, false);
        return RUN_BUSY;
    default:
        return RUN_ENDS_QUIT;
    }
}

RunStep run_state_step(RunState *run, Error *err)
{
    bool wanted = run->cont_asked || (run->cont_asked_after_error && run->status == RUN_IO_ERROR);
    RunRequest *request = list_first_entry(&run->requests, RunRequest, link);

    run->cont_asked = false;
    run->cont_asked_after_error = false;
    if (wanted && is_stopped(run)) {
        go(run);
        return RUN_BUSY;
    }
    if (!request) {
        return RUN_IDLE;
    }
    RunStep step = carry_out(run, request, err);

    answer(request);
    return step;
}

void run_state_end(RunState *run)
{
    RunRequest *request;

    run->status = RUN_SHUTDOWN;
    while ((request = list_first_entry(&run->requests, RunRequest, link))) {
        request->ret = error_set(&request->err, -ECANCELED, "the machine is ending");
        answer(request);
    }
}
