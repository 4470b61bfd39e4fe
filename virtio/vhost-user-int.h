/*
 * vhost-user-int.h - a server and its session, between the files that make them up
 *
 * Layer:     virtio/, private to vhost-user-*.c
 * Threading: main thread, all of it; what queues use in their home contexts is in the VirtQueue.
 * Lifetime:  a session is made and freed by vhu_server_co_serve(). Its queues are stopped before
 *            anything that they use goes away.
 *
 * vhost-user-server.c: sockets, one client after the other, the end. vhost-user-session.c: one
 * client's requests. vhost-user-vring.c: rings, from what the client said of them to a queue that
 * runs. vhost-user-inflight.c, vhost-user-log.c: memory of the client's in which a queue's work is
 * noted. vhost-user-notice.c: what we tell the client unasked.
 */
#ifndef VIRTIO_VHOST_USER_INT_H
#define VIRTIO_VHOST_USER_INT_H

#include "io/base/thread.h"
#include "virtio/vhost-user-memory.h"
#include "virtio/vhost-user-msg.h"
#include "virtio/vhost-user.h"
#include "virtio/virtqueue-track.h"

#define VHU_PROTOCOL_FEATURES                                                                      \
    (1ull << VHOST_USER_PROTOCOL_F_MQ | 1ull << VHOST_USER_PROTOCOL_F_REPLY_ACK |                  \
     1ull << VHOST_USER_PROTOCOL_F_BACKEND_REQ | 1ull << VHOST_USER_PROTOCOL_F_CONFIG |            \
     1ull << VHOST_USER_PROTOCOL_F_RESET_DEVICE | 1ull << VHOST_USER_PROTOCOL_F_STATUS |           \
     1ull << VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS | 1ull << VHOST_USER_PROTOCOL_F_LOG_SHMFD | \
     1ull << VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD |                                                \
     1ull << VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT)

/* What a client has said of a ring. */
typedef struct VhuVring {
    struct vhost_vring_addr addr; /* in its own addresses */
    bool addr_given;
    bool enabled;    /* SET_VRING_ENABLE */
    bool kick_given; /* since the ring was stopped last: that is what starts it */
    uint32_t size;
    VqBase base;     /* while the queue is stopped */
    bool base_given; /* by SET_VRING_BASE or by a queue that has stopped */
    bool base_ours;  /* this session has stopped it there */
    VqTracker tracker;
    int kick_fd, call_fd, err_fd; /* -1 = none */
} VhuVring;

/* What we tell the client on a socket of its own. */
typedef struct VhuNotice {
    Channel *ch;       /* NULL = there is none */
    bool pending;      /* the configuration has changed and it has not been told */
    bool writing;      /* a coroutine is at it */
    Coroutine *waiter; /* until it is not */
} VhuNotice;

typedef struct VhuInflight {
    SharedMap map; /* not open: requests in flight are not kept */
    unsigned nb_queues, queue_size;
} VhuInflight;

typedef struct VhuLog {
    SharedMap map;
    VqLog log;
} VhuLog;

typedef struct VhuSession {
    VhuServer *server;
    Channel *ch;
    uint64_t features; /* that were acknowledged, with those of the protocol */
    uint64_t protocol_features;
    bool features_ok; /* the device accepts them, and runs */
    uint8_t status;   /* as the client wrote it */
    bool lost;        /* memory has gone from below us */
    VhuVring vrings[VIRTIO_QUEUES_MAX];
    VhuInflight inflight;
    VhuLog log;
    VhuNotice notice;
} VhuSession;

struct VhuServer {
    char *name;
    VirtioDevice *vdev;
    VhuMemory memory; /* empty without a session */
    AioBh *lost_bh;
    _Atomic bool memory_lost;  /* queues leave what they have in flight as it is */
    ChannelListener *listener; /* NULL: not listening */
    Channel *connected;        /* the only client there will be, until the start */
    bool only_one;             /* of that kind */
    bool over;                 /* and it has gone */
    VhuSession *session;       /* NULL: nobody is there */
    Coroutine *stopper;        /* waits for the session's end */
    bool stopping;
    LogLimit log_limit;
};

/* vhu_session_co_run - serve until the client has gone (0) or has to go (-errno). Its queues still
 * run then. */
main_fn co_fn int vhu_session_co_run(VhuSession *session, Error *err) NONNULL(1) WARN_UNUSED;

static inline bool vhu_session_has(const VhuSession *session, unsigned protocol_feature)
{
    return session->protocol_features >> protocol_feature & 1;
}

/* --- rings --- */

void vhu_vrings_init(VhuSession *session) NONNULL(1);
/* vhu_vrings_co_update - start the queues that can be, stop those that must not be. -errno: one
 * cannot be started. */
main_fn co_fn int vhu_vrings_co_update(VhuSession *session, Error *err) NONNULL(1) WARN_UNUSED;
/* vhu_vrings_co_reset - stop all of them; they are as at first, but for call, err and base */
main_fn co_fn void vhu_vrings_co_reset(VhuSession *session) NONNULL(1);
/* vhu_vrings_co_disable - SET_VRING_ENABLE 0 for all of them */
main_fn co_fn int vhu_vrings_co_disable(VhuSession *session, Error *err) NONNULL(1) WARN_UNUSED;
/* vhu_vrings_co_stop - stop all of them and close their descriptors */
main_fn co_fn void vhu_vrings_co_stop(VhuSession *session) NONNULL(1);
/* vhu_vrings_co_park, vhu_vrings_co_unpark - the client's memory is changed in between; the rings
 * are looked up by the client's addresses anew */
main_fn co_fn void vhu_vrings_co_park(VhuSession *session) NONNULL(1);
main_fn co_fn int vhu_vrings_co_unpark(VhuSession *session, Error *err) NONNULL(1) WARN_UNUSED;
/* vhu_vring_broken - the driver has broken the rules of this queue */
void vhu_vring_broken(VhuSession *session, unsigned index) NONNULL(1);
bool vhu_vrings_any_started(const VhuSession *session) NONNULL(1);

/* Requests; 0, or -errno: the client has to go. */
main_fn co_fn int vhu_vring_co_set_num(VhuSession *session, VhuMsg *msg, Error *err);
main_fn co_fn int vhu_vring_co_set_addr(VhuSession *session, VhuMsg *msg, Error *err);
main_fn co_fn int vhu_vring_co_set_base(VhuSession *session, VhuMsg *msg, Error *err);
main_fn co_fn int vhu_vring_co_get_base(VhuSession *session, VhuMsg *msg, Error *err);
main_fn co_fn int vhu_vring_co_set_enable(VhuSession *session, VhuMsg *msg, Error *err);
main_fn co_fn int vhu_vring_co_set_kick(VhuSession *session, VhuMsg *msg, Error *err);
main_fn co_fn int vhu_vring_co_set_call(VhuSession *session, VhuMsg *msg, Error *err);
main_fn co_fn int vhu_vring_co_set_err(VhuSession *session, VhuMsg *msg, Error *err);

/* --- requests in flight, and the log --- */

main_fn co_fn int vhu_inflight_co_get(VhuSession *session, VhuMsg *msg, Error *err);
main_fn co_fn int vhu_inflight_co_set(VhuSession *session, VhuMsg *msg, Error *err);
main_fn void vhu_inflight_close(VhuSession *session) NONNULL(1);
/* vhu_inflight_begin - make the tracker of a queue that is about to start, and find its base: what
 * another process has left is in both. Errors: -EINVAL region or base make no sense; -ENOMEM */
int vhu_inflight_begin(VhuSession *session, unsigned index, VirtQueue *vq, Error *err)
    NONNULL(1, 3) WARN_UNUSED;

main_fn co_fn int vhu_log_co_set_base(VhuSession *session, VhuMsg *msg, Error *err);
main_fn co_fn int vhu_log_co_set_fd(VhuSession *session, VhuMsg *msg, Error *err);
main_fn void vhu_log_close(VhuSession *session) NONNULL(1);
bool vhu_log_is_on(const VhuSession *session) NONNULL(1);
/* vhu_log_apply - let the ring's tracker log what is to be logged; the queue is stopped or parked
 */
void vhu_log_apply(VhuSession *session, unsigned index) NONNULL(1);

/* --- notices --- */

/* vhu_notice_co_set_channel - send them on @ch from now on, whose reference is taken over; NULL =
 * nowhere. Returns when the old one is not used any more. */
main_fn co_fn void vhu_notice_co_set_channel(VhuSession *session, Channel *ch) NONNULL(1);
/* vhu_notice_config - the device's configuration has changed */
void vhu_notice_config(VhuSession *session) NONNULL(1);

#endif
