/*
 * vhost-user-client.h - the front end of vhost-user, in the manner of a driver library
 *
 * Layer:     virtio/ tests and benchmarks
 * Threading: a client's messages in one thread; each queue's ring in any one thread.
 * Lifetime:  vfe_client_init() .. vfe_client_finish(); connected from vfe_client_connect() to
 *            vfe_client_disconnect(). Memory, rings and the in-flight region outlive connections.
 * Spec:      QEMU docs/interop/vhost-user.rst
 *
 * Three floors, each of use alone: messages (any bytes with any descriptors, for hostile clients),
 * a function for each request of the protocol, and vfe_client_start(), which does what a
 * hypervisor does from the first message to enabled rings, with a server that is new or has
 * died in the midst of requests.
 *
 * Errors are -errno throughout, for a server may be gone at any moment: -ECONNRESET or -EPIPE closed
 * by the other end, -ETIMEDOUT no answer in VFE_ANSWER_MS, -EPROTO an answer that does not fit,
 * -EREMOTEIO a request that was refused.
 */
#ifndef VIRTIO_TESTS_VHOST_USER_CLIENT_H
#define VIRTIO_TESTS_VHOST_USER_CLIENT_H

#include "virtio/tests/ring-driver.h"
#include "virtio/vhost-user-proto.h"

#define VFE_ANSWER_MS     20000
#define VFE_REPLY_FDS_MAX 8
#define VFE_QUEUES_MAX    16

/* --- messages --- */

typedef struct VfeReply {
    VhostUserHeader hdr;
    VhostUserPayload payload;
    int fds[VFE_REPLY_FDS_MAX]; /* the receiver's to close */
    unsigned nb_fds;
} VfeReply;

/* vfe_connect - a socket that is connected to @path, or -errno */
int vfe_connect(const char *path) WARN_UNUSED;
/* vfe_send_bytes - all of @bytes, with the descriptors on the first one. Keeps the descriptors. */
int vfe_send_bytes(int sock, const void *bytes, size_t len_bytes, const int *fds,
                   unsigned nb_fds) WARN_UNUSED;
int vfe_send(int sock, uint32_t request, uint32_t flags, const void *payload, uint32_t size,
             const int *fds, unsigned nb_fds) WARN_UNUSED;
/* vfe_receive - one whole message */
int vfe_receive(int sock, VfeReply *ret_reply) WARN_UNUSED;
/* vfe_await_close - 0 when the other end closes without another message, -EPROTO when one comes */
int vfe_await_close(int sock) WARN_UNUSED;
void vfe_reply_close_fds(VfeReply *reply);

/* --- a client --- */

typedef struct VfeQueue {
    RingDriver ring;
    int kick_fd, call_fd, err_fd;
} CACHE_ALIGNED VfeQueue;

typedef struct VfeClientParams {
    unsigned nb_queues;
    uint16_t queue_size;
    uint64_t ram_bytes;
    unsigned nb_regions;        /* the RAM is told of in so many pieces; 0 = 1 */
    uint64_t features;          /* taken of those offered; 0 = all that is known here */
    uint64_t protocol_features; /* likewise */
    bool packed;                /* take packed rings, too, if they are offered */
    bool without_base;          /* SET_VRING_BASE is not sent */
    bool without_size;          /* SET_VRING_NUM is not sent */
    bool polls;                 /* no call descriptors: somebody looks at the rings */
} VfeClientParams;

typedef struct VfeClient {
    VfeClientParams params;
    int sock;         /* -1 = not connected */
    int backend_sock; /* requests of the server come in here; -1 = none */
    Guest guest;
    VhostUserMemory memory;
    uint64_t features_offered, features;
    uint64_t protocol_offered, protocol;
    VfeQueue queues[VFE_QUEUES_MAX];
    VhostUserInflight inflight;
    int inflight_fd; /* -1 = none yet */
    void *inflight_map;
    /* Called before each message is sent, and once more after that, before an answer is awaited;
     * NULL = not. */
    void (*on_message)(void *opaque, uint32_t request, bool sent);
    void *opaque;
} VfeClient;

/* vfe_client_init - memory and rings; aborts when there is no memory for them */
void vfe_client_init(VfeClient *client, const VfeClientParams *params);
void vfe_client_finish(VfeClient *client);
int vfe_client_connect(VfeClient *client, const char *path) WARN_UNUSED;
void vfe_client_disconnect(VfeClient *client);

/*
 * vfe_client_start - from the first message to enabled rings
 * Features and protocol features are those offered and wanted; the in-flight region is asked for
 * the first time and given back afterwards. A ring's base is its used index, as hypervisors do
 * it after a server has died; the in-flight region tells the rest.
 */
int vfe_client_start(VfeClient *client) WARN_UNUSED;
/* vfe_client_stop - GET_VRING_BASE of each queue, which waits for what is in flight */
int vfe_client_stop(VfeClient *client) WARN_UNUSED;
bool vfe_has_protocol(const VfeClient *client, unsigned bit);

/* Requests without their own function below. Those that set await the acknowledgement where
 * REPLY_ACK was agreed on. */
int vfe_request(VfeClient *client, uint32_t request) WARN_UNUSED;
int vfe_get_u64(VfeClient *client, uint32_t request, uint64_t *ret_value) WARN_UNUSED;
int vfe_set_u64(VfeClient *client, uint32_t request, uint64_t value) WARN_UNUSED;
int vfe_set_vring_state(VfeClient *client, uint32_t request, unsigned index,
                        uint32_t num) WARN_UNUSED;
/* SET_VRING_KICK, _CALL, _ERR; @fd -1 = none: poll */
int vfe_set_vring_fd(VfeClient *client, uint32_t request, unsigned index, int fd) WARN_UNUSED;
int vfe_get_vring_base(VfeClient *client, unsigned index, uint32_t *ret_base) WARN_UNUSED;
/* @flags as in struct vhost_vring_addr; used ring writes are logged at its guest address */
int vfe_set_vring_addr(VfeClient *client, unsigned index, uint32_t flags) WARN_UNUSED;
/* NUM, BASE, ADDR, KICK, CALL, ERR, and ENABLE where protocol features are agreed on */
int vfe_start_queue(VfeClient *client, unsigned index, uint32_t base) WARN_UNUSED;
int vfe_set_mem_table(VfeClient *client) WARN_UNUSED;
int vfe_add_region(VfeClient *client, const VhostUserRegion *region, int fd) WARN_UNUSED;
int vfe_remove_region(VfeClient *client, const VhostUserRegion *region) WARN_UNUSED;
/* -EREMOTEIO when the server says that it cannot (size 0) */
int vfe_get_config(VfeClient *client, uint32_t offset, void *ret_data,
                   uint32_t len_bytes) WARN_UNUSED;
int vfe_set_config(VfeClient *client, uint32_t offset, const void *data, uint32_t len_bytes,
                   uint32_t flags) WARN_UNUSED;
/* GET_INFLIGHT_FD: replaces what the client has */
int vfe_get_inflight(VfeClient *client) WARN_UNUSED;
int vfe_set_inflight(VfeClient *client) WARN_UNUSED;
int vfe_set_backend_fd(VfeClient *client) WARN_UNUSED;
int vfe_set_log_base(VfeClient *client, int fd, uint64_t len_bytes, uint64_t offset) WARN_UNUSED;

/* --- queues --- */

/* The region of @index in the in-flight memory; NULL = there is none. */
VhostUserQueueSplit *vfe_inflight_split(VfeClient *client, unsigned index);
/* vfe_queue_submit - publish what was added, and kick if the device asks for it */
void vfe_queue_submit(VfeQueue *queue);
/* vfe_queue_await - sleep until the call descriptor is signalled, having asked for that at the next
 * used entry; returns at once when there is one. -ETIMEDOUT. */
int vfe_queue_await(VfeQueue *queue, int timeout_ms) WARN_UNUSED;

/* --- block requests --- */

/* Memory of one request at a time. */
typedef struct VfeSlot {
    uint64_t header_gpa, status_gpa, table_gpa, data_gpa;
    uint32_t data_bytes_max;
    uint16_t head; /* while it is in flight */
} VfeSlot;

void vfe_slot_init(VfeSlot *slot, Guest *guest, uint32_t data_bytes_max);
/* Add a request to the ring; vfe_queue_submit() sends it. @indirect: through the slot's table. */
void vfe_slot_add(VfeSlot *slot, RingDriver *ring, uint32_t type, uint64_t sector,
                  uint32_t data_bytes, bool indirect);
uint8_t vfe_slot_status(const VfeSlot *slot, const Guest *guest);
void *vfe_slot_data(const VfeSlot *slot, const Guest *guest);

/* vfe_do_block - one request from beginning to end while nothing else is in flight on @queue
 * Returns its status byte, -EPROTO when something else was used, or -ETIMEDOUT. */
int vfe_do_block(VfeClient *client, unsigned queue, VfeSlot *slot, uint32_t type, uint64_t sector,
                 uint32_t data_bytes) WARN_UNUSED;

#endif
