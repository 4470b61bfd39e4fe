/*
 * vhost-user-proto.h - what goes over a vhost-user socket, and what is in the memory shared with it
 *
 * Layer:     virtio/ (may use io/base)
 * Threading: pure.
 * Spec:      QEMU docs/interop/vhost-user.rst
 *
 * Numbers are in the byte order of the machine: both ends run on one. A message is a header and
 * `size` bytes of payload. Descriptors come with the header's first byte.
 */
#ifndef VIRTIO_VHOST_USER_PROTO_H
#define VIRTIO_VHOST_USER_PROTO_H

#include <linux/vhost_types.h>

#include "io/base/compiler.h"

/* --- features --- */

/* A bit of the device's features that belongs to the protocol, not to the driver; so does
 * VHOST_F_LOG_ALL. */
#define VHOST_USER_F_PROTOCOL_FEATURES 30

enum VhostUserProtocolFeature {
    VHOST_USER_PROTOCOL_F_MQ = 0,
    VHOST_USER_PROTOCOL_F_LOG_SHMFD = 1,
    VHOST_USER_PROTOCOL_F_REPLY_ACK = 3,
    VHOST_USER_PROTOCOL_F_BACKEND_REQ = 5,
    VHOST_USER_PROTOCOL_F_CONFIG = 9,
    VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD = 10,
    VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD = 12,
    VHOST_USER_PROTOCOL_F_RESET_DEVICE = 13,
    VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS = 14,
    VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS = 15,
    VHOST_USER_PROTOCOL_F_STATUS = 16,
    VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT = 20,
};

/* --- messages --- */

typedef enum VhostUserRequest {
    VHOST_USER_NONE = 0,
    VHOST_USER_GET_FEATURES = 1,
    VHOST_USER_SET_FEATURES = 2,
    VHOST_USER_SET_OWNER = 3,
    VHOST_USER_RESET_OWNER = 4,
    VHOST_USER_SET_MEM_TABLE = 5,
    VHOST_USER_SET_LOG_BASE = 6,
    VHOST_USER_SET_LOG_FD = 7,
    VHOST_USER_SET_VRING_NUM = 8,
    VHOST_USER_SET_VRING_ADDR = 9,
    VHOST_USER_SET_VRING_BASE = 10,
    VHOST_USER_GET_VRING_BASE = 11,
    VHOST_USER_SET_VRING_KICK = 12,
    VHOST_USER_SET_VRING_CALL = 13,
    VHOST_USER_SET_VRING_ERR = 14,
    VHOST_USER_GET_PROTOCOL_FEATURES = 15,
    VHOST_USER_SET_PROTOCOL_FEATURES = 16,
    VHOST_USER_GET_QUEUE_NUM = 17,
    VHOST_USER_SET_VRING_ENABLE = 18,
    VHOST_USER_SET_BACKEND_REQ_FD = 21,
    VHOST_USER_GET_CONFIG = 24,
    VHOST_USER_SET_CONFIG = 25,
    VHOST_USER_GET_INFLIGHT_FD = 31,
    VHOST_USER_SET_INFLIGHT_FD = 32,
    VHOST_USER_RESET_DEVICE = 34,
    VHOST_USER_GET_MAX_MEM_SLOTS = 36,
    VHOST_USER_ADD_MEM_REG = 37,
    VHOST_USER_REM_MEM_REG = 38,
    VHOST_USER_SET_STATUS = 39,
    VHOST_USER_GET_STATUS = 40,
    VHOST_USER_REQUEST_MAX,
} VhostUserRequest;

/* From the back end to the front end, on a socket of its own. */
typedef enum VhostUserBackendRequest {
    VHOST_USER_BACKEND_CONFIG_CHANGE_MSG = 2,
} VhostUserBackendRequest;

#define VHOST_USER_VERSION         1u
#define VHOST_USER_VERSION_MASK    3u
#define VHOST_USER_FLAG_REPLY      (1u << 2)
#define VHOST_USER_FLAG_NEED_REPLY (1u << 3)

typedef struct VhostUserHeader {
    uint32_t request;
    uint32_t flags;
    uint32_t size;
} VhostUserHeader;

/* In the u64 of SET_VRING_KICK, _CALL and _ERR. */
#define VHOST_USER_VRING_INDEX_MASK 0xffu
#define VHOST_USER_VRING_NOFD_MASK  (1u << 8)

typedef struct VhostUserRegion {
    uint64_t gpa;
    uint64_t len_bytes;
    uint64_t user_addr; /* in the front end; rings are given by it */
    uint64_t mmap_offset;
} VhostUserRegion;

#define VHOST_USER_TABLE_REGIONS_MAX 8 /* of SET_MEM_TABLE */

typedef struct VhostUserMemory {
    uint32_t nb_regions;
    uint32_t padding;
    VhostUserRegion regions[VHOST_USER_TABLE_REGIONS_MAX]; /* nb_regions are sent */
} VhostUserMemory;

typedef struct VhostUserMemReg {
    uint64_t padding;
    VhostUserRegion region;
} VhostUserMemReg;

typedef struct VhostUserLog {
    uint64_t mmap_size;
    uint64_t mmap_offset;
} VhostUserLog;

#define VHOST_USER_LOG_PAGE_BYTES 4096 /* a bit of the log */

#define VHOST_USER_CONFIG_BYTES_MAX 256

enum VhostUserConfigFlags {
    VHOST_USER_CONFIG_WRITABLE = 0,
    VHOST_USER_CONFIG_MIGRATION = 1,
};

typedef struct VhostUserConfig {
    uint32_t offset;
    uint32_t size;
    uint32_t flags;
    uint8_t data[VHOST_USER_CONFIG_BYTES_MAX]; /* size are sent */
} VhostUserConfig;

/* The last four bytes are padding that not everybody sends. */
typedef struct VhostUserInflight {
    uint64_t mmap_size;
    uint64_t mmap_offset;
    uint16_t nb_queues;
    uint16_t queue_size;
    uint32_t padding;
} VhostUserInflight;

#define VHOST_USER_INFLIGHT_BYTES_MIN 20

typedef union VhostUserPayload {
    uint64_t u64;
    struct vhost_vring_state state;
    struct vhost_vring_addr addr; /* flags: 1 << VHOST_VRING_F_LOG */
    VhostUserMemory memory;
    VhostUserMemReg mem_reg;
    VhostUserLog log;
    VhostUserConfig config;
    VhostUserInflight inflight;
} VhostUserPayload;

/* As it lies in memory here; header and payload follow each other on the socket. */
typedef struct VhostUserMsg {
    VhostUserHeader hdr;
    VhostUserPayload payload;
} VhostUserMsg;

static_assert(sizeof(VhostUserHeader) == 12, "wire format");
static_assert(sizeof(VhostUserRegion) == 32, "wire format");
static_assert(offsetof(VhostUserMemory, regions) == 8, "wire format");
static_assert(sizeof(VhostUserMemReg) == 40, "wire format");
static_assert(sizeof(struct vhost_vring_state) == 8, "wire format");
static_assert(sizeof(struct vhost_vring_addr) == 40, "wire format");
static_assert(sizeof(VhostUserLog) == 16, "wire format");
static_assert(offsetof(VhostUserConfig, data) == 12, "wire format");
static_assert(sizeof(VhostUserInflight) == 24, "wire format");

/* --- requests in flight: memory that outlives the back end --- */

/*
 * One region a queue, each VHOST_USER_INFLIGHT_ALIGN bytes aligned, in the order of the queues. The
 * front end keeps the memory and does not look into it. All zeroes is what it is at first.
 */
#define VHOST_USER_INFLIGHT_ALIGN   64
#define VHOST_USER_INFLIGHT_VERSION 1

typedef struct VhostUserDescSplit {
    uint8_t inflight; /* this is the head of a chain that was taken and not given back */
    uint8_t padding[5];
    uint16_t next;    /* in the list of those that were given back last */
    uint64_t counter; /* order in which they were taken */
} VhostUserDescSplit;

typedef struct VhostUserQueueSplit {
    uint64_t features;
    uint16_t version; /* 0: nobody has used it */
    uint16_t desc_num;
    uint16_t last_batch_head;
    uint16_t used_idx;
    VhostUserDescSplit desc[];
} VhostUserQueueSplit;

typedef struct VhostUserDescPacked {
    uint8_t inflight; /* of the first one of a chain */
    uint8_t padding;
    uint16_t next; /* free ones: the next; else the next one of the chain */
    uint16_t last; /* of the first one of a chain: the last one */
    uint16_t num;  /* and how many there are */
    uint64_t counter;
    uint16_t id; /* these as they stood in the ring */
    uint16_t flags;
    uint32_t len;
    uint64_t addr;
} VhostUserDescPacked;

typedef struct VhostUserQueuePacked {
    uint64_t features;
    uint16_t version;
    uint16_t desc_num;
    uint16_t free_head;
    uint16_t old_free_head;
    uint16_t used_idx;
    uint16_t old_used_idx;
    uint8_t used_wrap_counter;
    uint8_t old_used_wrap_counter;
    uint8_t padding[7];
    VhostUserDescPacked desc[];
} VhostUserQueuePacked;

static_assert(sizeof(VhostUserDescSplit) == 16, "shared format");
static_assert(sizeof(VhostUserQueueSplit) == 16, "shared format");
static_assert(sizeof(VhostUserDescPacked) == 32, "shared format");
static_assert(offsetof(VhostUserQueuePacked, desc) == 32, "shared format");

#endif
