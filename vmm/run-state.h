/*
 * RunState - whether the guest runs, who may change that, and in which order
 *
 * Layer:     vmm
 * Threading: main thread. run_state_step() and run_state_reset() outside of any callback and
 *            coroutine, by the main loop alone: what they do polls the main context. Everything
 *            else only notes down what is wanted.
 * Lifetime:  embedded; run_state_init() .. run_state_finish(), when nobody waits any more.
 *
 *     PRELAUNCH --launch--> RUNNING <--------cont------- PAUSED
 *                             |  |  \--------stop---------^
 *                             |  +--an error of a disk--> IO_ERROR --cont, SIGCONT--> RUNNING
 *                             +--the end--> SHUTDOWN, from any
 *
 * Invariants:
 *   (1) vCPUs run and queues are served exactly in RUNNING; RunOps.halt and .go alternate.
 *   (2) Requests are carried out one by one in order of arrival; each ends before it is answered.
 *   (3) A reset or a press of the power button changes the guest, not the state: one that was stopped
 *       stays so.
 *   (4) STOP and RESUME are told once for each change, in the order of the changes.
 */
#ifndef VMM_RUN_STATE_H
#define VMM_RUN_STATE_H

#include "io/aio/aio.h"

typedef enum RunStatus {
    RUN_PRELAUNCH,
    RUN_RUNNING,
    RUN_PAUSED,   /* somebody said stop */
    RUN_IO_ERROR, /* a disk holds requests because of an error (rerror=stop, werror=stop) */
    RUN_SHUTDOWN, /* it is over */
    RUN_NB_STATUS,
} RunStatus;

/* "prelaunch", "running", "paused", "io-error", "shutdown" */
extern const char *const run_status_names[RUN_NB_STATUS];

typedef enum RunAction { RUN_STOP, RUN_CONT, RUN_RESET, RUN_POWERDOWN, RUN_QUIT } RunAction;
typedef enum RunEvent {
    RUN_EVENT_STOP,
    RUN_EVENT_RESUME,
    RUN_EVENT_RESET,
    RUN_EVENT_POWERDOWN,
} RunEvent;

typedef struct RunOps {
    /* Park vCPUs, bring the disks to rest, stop the guest's clock. May poll. */
    void (*halt)(void *opaque);
    /* The reverse; requests that were held because of an error are made again. */
    void (*go)(void *opaque);
    /* Reset the machine; it is to run afterwards, or to stay halted. 0; 1 = the run ends instead;
     * or -errno: the machine is of no more use. May poll. */
    int (*reset)(void *opaque, bool running, Error *err);
    /* Press the power button, which is all: the guest may act on it, and may be halted. */
    void (*powerdown)(void *opaque);
    void (*event)(void *opaque, RunEvent event, bool by_guest);
} RunOps;

typedef struct RunState {
    const RunOps *ops;
    void *opaque;
    RunStatus status;
    bool cont_asked, cont_asked_after_error;
    List requests; /* RunRequest, in run-state.c; first come first */
} RunState;

void run_state_init(RunState *run, const RunOps *ops, void *opaque) NONNULL(1, 2);
void run_state_finish(RunState *run) NONNULL(1);

static inline RunStatus run_state_status(const RunState *run)
{
    return run->status;
}

/* run_state_launch - from PRELAUNCH to RUNNING */
void run_state_launch(RunState *run) NONNULL(1);

/* run_state_ask_cont - a person wants the guest to go on; @after_error: only if an error of a disk
 * has stopped it. Any callback in main. */
void run_state_ask_cont(RunState *run, bool after_error) NONNULL(1);

/*
 * run_state_co_request - have the main loop do it, wait until it has
 * Returns at once for RUN_QUIT, which the loop hears of by run_state_step().
 * Errors: -ECANCELED the machine ends first; -EINVAL it has ended; of the reset
 */
co_fn int run_state_co_request(RunState *run, RunAction action, Error *err) NONNULL(1) WARN_UNUSED;

/* run_state_io_error - a disk holds a request: halt, unless it is halted already. Main loop. */
void run_state_io_error(RunState *run) NONNULL(1);

/* run_state_reset - the guest asks for a reset. As RunOps.reset. Main loop. */
int run_state_reset(RunState *run, Error *err) NONNULL(1) WARN_UNUSED;

typedef enum RunStep {
    RUN_IDLE,        /* nothing was asked for */
    RUN_BUSY,        /* something was done: look again before you sleep */
    RUN_ENDS_QUIT,   /* somebody said quit */
    RUN_ENDS_RESET,  /* a reset that ends the run */
    RUN_ENDS_FAILED, /* @err says why */
} RunStep;

/* run_state_step - carry out the oldest thing that was asked for. Main loop. */
RunStep run_state_step(RunState *run, Error *err) NONNULL(1) WARN_UNUSED;

/* run_state_end - SHUTDOWN; who waits is told so. vCPUs and disks are the caller's. */
void run_state_end(RunState *run) NONNULL(1);

#endif
