/*
 * qmp.h - the commands of the control socket: what each takes, what it works on, how it is called
 *
 * Layer:     vmm
 * Threading: main context. A command runs as a coroutine there, in the session that sent it.
 * Lifetime:  a QmpTarget belongs to the machine or the export; qmp_target_init() ..
 *            qmp_target_finish(), before its disks close and when no command runs any more.
 * Spec:      the QEMU Machine Protocol, as its users know it: names, arguments and results are
 *            QEMU's where it has the command; what is ours is x-..., or is not there.
 *
 * Invariants:
 *   (1) No command sees arguments that its QmpArg list does not describe: names, types, presence.
 *   (2) A command that only looks never yields: what it answers was true at one moment.
 *   (3) Of the commands that change block graph, queues or threads one runs at a time (`changing`),
 *       whoever sent it. Stop, cont, reset, powerdown and quit do not wait for these: who stops
 *       an ailing machine must get through.
 */
#ifndef VMM_QMP_H
#define VMM_QMP_H

#include <jansson.h>

#include "block/block-backend.h"
#include "io/aio/co-mutex.h"
#include "io/aio/iothread.h"
#include "virtio/virtio-blk.h"
#include "vmm/run-state.h"

#define QMP_DISKS_MAX 64

typedef struct QmpDisk {
    BlockBackend *blk;
    VirtioBlk *vblk;      /* the device that has it; NULL = none */
    IOThread **iothreads; /* of each queue, a reference each; borrowed from the disk's owner */
    /* Filters that commands have put in, with a reference; NULL = none. */
    BlockNode *throttle, *faulty;
} QmpDisk;

/* What commands work on. Filled by who owns it, after qmp_target_init(). */
typedef struct QmpTarget {
    CoMutex changing;
    RunState *run; /* NULL = there is no guest */
    void (*quit)(void *opaque); /* where there is no guest */
    void *opaque;
    unsigned nb_disks;
    QmpDisk disks[QMP_DISKS_MAX];
    IOThread *const *iothreads; /* borrowed */
    unsigned nb_iothreads;
} QmpTarget;

void qmp_target_init(QmpTarget *target) NONNULL(1);
/* Filters stay with their disks, which are still open. */
void qmp_target_finish(QmpTarget *target) NONNULL(1);
/* qmp_target_add_disk - returns it; borrowed. The caller has checked that there is room. */
QmpDisk *qmp_target_add_disk(QmpTarget *target, BlockBackend *blk) NONNULL(1, 2);

/* --- commands --- */

typedef enum QmpType {
    QMP_STRING,
    QMP_NUMBER, /* an integer from 0 */
    QMP_SIZE,   /* the same; people may write K, M, G, T behind it */
    QMP_STRINGS,
    QMP_NB_TYPES,
} QmpType;

typedef struct QmpArg {
    const char *name;
    QmpType type;
    bool optional;
} QmpArg;

#define QMP_ARGS_MAX 32

typedef enum QmpFlags {
    QMP_CHANGES = 1, /* under target->changing */
    QMP_GUEST = 2,   /* where there is a guest */
} QmpFlags;

typedef struct QmpCommand {
    const char *name;
    const char *help; /* a line for people */
    unsigned flags;
    /* @args has passed the check. *ret_result, a new reference, is set on success only; untouched
     * it is {}. */
    int (*co_run)(QmpTarget *target, const json_t *args, json_t **ret_result,
                  Error *err) co_fn_ptr;
    QmpArg args[QMP_ARGS_MAX]; /* ends with a name of NULL */
} QmpCommand;

/* All commands, area by area; each ends with a name of NULL. */
extern const QmpCommand qmp_own_commands[];      /* qmp.c */
extern const QmpCommand qmp_run_commands[];      /* qmp-run.c */
extern const QmpCommand qmp_block_commands[];    /* qmp-block.c */
extern const QmpCommand qmp_iothread_commands[]; /* qmp-iothread.c */

/* qmp_next_command - the first when @command is NULL; NULL after the last */
const QmpCommand *qmp_next_command(const QmpCommand *command);
/* qmp_find_command - NULL when there is none */
const QmpCommand *qmp_find_command(const char *name) NONNULL(1);
/* "a string", "a number from 0" ... */
extern const char *const qmp_type_names[QMP_NB_TYPES];

/* Of arguments that have been checked; the default when it is absent. */
const char *qmp_arg_string(const json_t *args, const char *name, const char *absent) NONNULL(1, 2);
uint64_t qmp_arg_number(const json_t *args, const char *name, uint64_t absent) NONNULL(1, 2);
bool qmp_arg_given(const json_t *args, const char *name) NONNULL(1, 2);

/* qmp_find_disk - the one that "device" names. Errors: -ENODEV */
QmpDisk *qmp_find_disk(QmpTarget *target, const char *id, Error *err) NONNULL(1, 2) WARN_UNUSED;
/* qmp_find_iothread - Errors: -ENODEV naming those that there are */
IOThread *qmp_find_iothread(const QmpTarget *target, const char *id, Error *err)
    NONNULL(1, 2) WARN_UNUSED;

/* qmp_string - for text that was not ours to choose, file names say: what is no UTF-8 becomes '?'.
 * NULL: no memory */
json_t *qmp_string(const char *text) NONNULL(1) WARN_UNUSED;

/* --- messages --- */

/* One connection's state of the protocol. */
typedef struct QmpSession {
    QmpTarget *target;
    bool negotiated; /* qmp_capabilities has been said */
} QmpSession;

/* qmp_greeting - what the server says first; NULL: no memory */
json_t *qmp_greeting(void) WARN_UNUSED;
/* qmp_co_execute - one message from a client, any bytes; its answer, or NULL: no memory */
co_fn json_t *qmp_co_execute(QmpSession *session, const char *text, size_t len_bytes)
    NONNULL(1, 2) WARN_UNUSED;
/* qmp_error - the answer to what is no message. @id is borrowed, may be NULL. */
json_t *qmp_error(const Error *err, json_t *id) NONNULL(1) WARN_UNUSED;
/* qmp_event - @data is taken over, NULL = none. NULL: no memory */
json_t *qmp_event(const char *name, json_t *data) NONNULL(1) WARN_UNUSED;

#endif
