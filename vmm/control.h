/*
 * Control - the control socket: sessions of QMP clients on a unix socket
 *
 * Layer:     vmm
 * Threading: main context; a session is two coroutines there, one that reads and executes, one that
 *            writes. Nothing here waits for a client but these.
 * Lifetime:  control_create() .. control_destroy(); control_stop() in between, after which no
 *            command runs.
 * Spec:      QMP: greeting, qmp_capabilities, {"execute":...} -> {"return":...} or {"error":...},
 *            events in between.
 *
 * What a client can do to the machine is what the commands do. Its own share is bounded: messages
 * by json-frame.h, answers by one at a time (it is read from again when it has taken the last one),
 * events that it does not take by CONTROL_EVENT_BYTES_MAX (then it is cut off: it has missed some),
 * clients by CONTROL_CLIENTS_MAX. What more want to connect wait in the kernel.
 *
 * Invariants:
 *   (1) A session's bytes are written by its writer alone, in the order of queueing; an answer is
 *       queued when its command has ended.
 *   (2) A command that was begun is carried out to its end whether or not its client is still
 *       there.
 *   (3) A session is freed by its reader, when the writer has ended.
 */
#ifndef VMM_CONTROL_H
#define VMM_CONTROL_H

#include "vmm/qmp.h"

#define CONTROL_CLIENTS_MAX     16
#define CONTROL_EVENT_BYTES_MAX 65536

typedef struct Control Control;

/* control_create - listen on the unix socket @path; serves from control_start() on. @target is
 * borrowed. Errors: as channel_listener_create(). */
Control *control_create(const char *path, QmpTarget *target, Error *err)
    NONNULL(1, 2) WARN_UNUSED;
void control_start(Control *control) NONNULL(1);

/* control_event - tell all clients; @data is taken over, NULL = none. Main, in a coroutine or not;
 * never waits. NULL @control: nobody is told. */
void control_event(Control *control, const char *name, json_t *data) NONNULL(2);

/*
 * control_stop - accept nobody, read no more, wait until commands have ended and, for a short time,
 * until clients have taken what they were told. Requests of the run state must have been answered
 * (run_state_end()). Main, not in a coroutine: polls the main context.
 */
no_co_fn void control_stop(Control *control) NONNULL(1);
void control_destroy(Control *control);

#endif
