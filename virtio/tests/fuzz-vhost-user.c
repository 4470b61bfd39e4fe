/*
 * fuzz-vhost-user.c - a vhost-user client that sends anything, with any descriptors
 *
 * The input is a list of actions, 12 bytes each: what, how, which descriptors, and numbers. Most are
 * messages: a request with the payload that belongs to it, made of numbers that make sense and
 * numbers that do not, with the right descriptors or others, more or fewer; cut short, made longer,
 * or any bytes at all. The others are what the driver does: requests and noise in the rings and in
 * the in-flight region, kicks, and memory that is cut off.
 *
 * What has to hold, whatever the input:
 * 1. The session ends when the client has gone, and nothing of it is left: descriptors, mappings,
 *    status of the device, requests.
 * 2. The next client is answered.
 *
 * With libFuzzer:
 *     clang -fsanitize=fuzzer,address,undefined -g -D_GNU_SOURCE -I. -o fuzz-vhost-user \
 *         virtio/tests/{fuzz-vhost-user,vhost-user-client,ring-driver,ring-packed}.c \
 *         block/tests/mem-driver.c guest-tests/harness/harness.c \
 *         $(find virtio block io -maxdepth 2 -name '*.[cS]' ! -path '*tests*' \
 *         ! -name '*aarch64*') -luring -lgnutls -lpthread
 *     ./fuzz-vhost-user -max_len=3072 virtio/tests/corpus-vhost-user
 *
 * With FUZZ_CORPUS_DIR defined it is an ordinary test: it replays that corpus and a few inputs of
 * its own making; FUZZ_ROUNDS in the environment asks for more of these.
 */
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "block/tests/mem-driver.h"
#include "io/base/test.h"
#include "io/base/thread.h"
#include "io/channel/channel-socket.h"
#include "virtio/shared-map.h"
#include "virtio/tests/vhost-user-client.h"
#include "virtio/vhost-user.h"
#include "virtio/virtio-blk.h"

#define QUEUES       3
#define QUEUE_SIZE   16
#define DISK_BYTES   (256u << 10)
#define RAM_BYTES    (256u << 10)
#define ACTION_BYTES 12
#define ACTIONS_MAX  256
#define FDS_MAX      12
#define PASSES       40
#define AWAIT_MS     15000
#define PASSES_MAX   20000 /* until a session has ended */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes);

typedef struct Action {
    uint8_t what, how, fds, index;
    uint32_t b, c;
} Action;

/* Whats that are no request. */
enum {
    NOISE = 48,
    START_QUEUE,
    ADD_REQUEST,
    KICK,
    SCRIBBLE_RING,
    SCRIBBLE_RAM,
    SCRIBBLE_INFLIGHT,
    CUT_MEMORY,
    CHANGE_DISK,
    SHUTDOWN,
    NB_WHATS
};

static MemDisk disk;
static VhuServer *server;
static VirtioBlk *vblk;
static VirtioDevice *vdev;
static VfeClient client; /* its memory, rings and descriptors; the socket is used here */
static VfeSlot slot;
static int inflight_fd = -1; /* memory of ours, or what the server gave */
static int null_fd;
static bool over; /* the session */

/* --- the session --- */

static co_fn void session_entry(void *opaque)
{
    assert_main();
    vhu_server_co_serve(server, opaque);
    over = true;
}

static main_fn void connect_client(void)
{
    int pair[2];
    Error err;

    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    Channel *ch = channel_socket_adopt(pair[1], &err);

    ASSERT_TRUE(ch != NULL);
    client.sock = pair[0];
    ASSERT_EQ(fcntl(client.sock, F_SETFL, O_NONBLOCK), 0);
    over = false;
    co_enter(co_create(session_entry, ch));
}

static void pump(unsigned passes)
{
    for (unsigned i = 0; i < passes; i++) {
        aio_poll(aio_main(), false);
    }
}

static void disconnect_client(void)
{
    close(client.sock);
    client.sock = -1;
    for (unsigned i = 0; i < PASSES_MAX && !over; i++) {
        aio_poll(aio_main(), false);
    }
    ASSERT_TRUE(over);
    ASSERT_EQ(vdev_status(vdev), 0);
    ASSERT_EQ(shared_map_nb(), 0);
    for (unsigned i = 0; i < QUEUES; i++) {
        ASSERT_EQ(vdev_queue(vdev, i)->in_flight, 0);
    }
}

/* --- numbers --- */

static const uint64_t numbers[] = {
    0,
    1,
    2,
    3,
    8,
    16,
    64,
    256,
    1024,
    4096,
    65535,
    65536,
    RAM_BYTES,
    RAM_BYTES / 2,
    INT32_MAX,
    UINT32_MAX,
    1ull << 40,
    INT64_MAX,
    UINT64_MAX - 4095,
    UINT64_MAX,
};

/* What makes sense where @odd is 0; else one of the above, perhaps a little beside it. */
static uint64_t choose(uint8_t odd, uint64_t sensible)
{
    if (odd < 0xa0) {
        return sensible;
    }
    return numbers[odd % ARRAY_SIZE(numbers)] + (odd > 0xf0 ? 1 : 0);
}

static uint8_t byte_of(uint32_t word, unsigned n)
{
    return (uint8_t)(word >> (n * 8));
}

/* --- messages --- */

static void send_bytes(const void *bytes, size_t len_bytes, const int *fds, unsigned nb_fds)
{
    uint8_t reply[4096];
    int ret UNUSED = vfe_send_bytes(client.sock, bytes, len_bytes, fds, nb_fds);

    pump(PASSES);
    while (recv(client.sock, reply, sizeof(reply), MSG_DONTWAIT) > 0) {
        /* what it says does not matter here */
    }
}

/* The descriptor that belongs to @request, unless the input wants another. Not our own end of the
 * socket: the server would wait for itself after we have gone. */
static int choose_fd(const Action *a, uint32_t request, unsigned n)
{
    unsigned index = a->index % QUEUES;
    int others[] = { client.guest.fd, null_fd, client.backend_sock, client.queues[index].kick_fd,
                     inflight_fd };

    if ((a->fds & 0xc0) == 0xc0) {
        return others[(a->fds + n) % ARRAY_SIZE(others)];
    }
    switch (request) {
    case VHOST_USER_SET_VRING_KICK:
        return client.queues[index].kick_fd;
    case VHOST_USER_SET_VRING_CALL:
        return client.queues[index].call_fd;
    case VHOST_USER_SET_VRING_ERR:
        return client.queues[index].err_fd;
    case VHOST_USER_SET_INFLIGHT_FD:
        return inflight_fd;
    case VHOST_USER_SET_BACKEND_REQ_FD:
        return client.backend_sock;
    default:
        return client.guest.fd;
    }
}

static unsigned right_nb_fds(uint32_t request, const VhostUserPayload *payload)
{
    switch (request) {
    case VHOST_USER_SET_MEM_TABLE:
        return payload->memory.nb_regions;
    case VHOST_USER_SET_VRING_KICK:
    case VHOST_USER_SET_VRING_CALL:
    case VHOST_USER_SET_VRING_ERR:
        return payload->u64 & VHOST_USER_VRING_NOFD_MASK ? 0 : 1;
    case VHOST_USER_SET_LOG_BASE:
    case VHOST_USER_SET_LOG_FD:
    case VHOST_USER_ADD_MEM_REG:
    case VHOST_USER_SET_INFLIGHT_FD:
    case VHOST_USER_SET_BACKEND_REQ_FD:
        return 1;
    default:
        return 0;
    }
}

static uint64_t user_address(uint64_t gpa)
{
    return (uint64_t)(uintptr_t)guest_ptr(&client.guest, gpa);
}

static VhostUserRegion make_region(const Action *a, unsigned n)
{
    uint8_t odd = byte_of(a->c, n % 4);
    uint64_t len_bytes = RAM_BYTES / 4, offset = n % 4 * len_bytes;

    return (VhostUserRegion){
        .gpa = choose(n % 4 == 0 ? odd : 0, GUEST_BASE_GPA + offset),
        .len_bytes = choose(n % 4 == 1 ? odd : 0, len_bytes),
        .user_addr = choose(n % 4 == 2 ? odd : 0, user_address(GUEST_BASE_GPA + offset)),
        .mmap_offset = choose(n % 4 == 3 ? odd : 0, offset),
    };
}

static uint32_t make_memory(const Action *a, VhostUserMemory *memory)
{
    *memory = (VhostUserMemory){ .nb_regions = a->index >= 0xc0 ? a->index % 12 : 4 };
    for (unsigned i = 0; i < MIN(memory->nb_regions, (uint32_t)VHOST_USER_TABLE_REGIONS_MAX); i++) {
        memory->regions[i] = make_region(a, i);
    }
    return (uint32_t)offsetof(VhostUserMemory, regions) +
           MIN(memory->nb_regions, (uint32_t)VHOST_USER_TABLE_REGIONS_MAX) *
               (uint32_t)sizeof(VhostUserRegion);
}

static uint32_t make_addr(const Action *a, struct vhost_vring_addr *addr)
{
    const RingDriver *ring = &client.queues[a->index % QUEUES].ring;

    *addr = (struct vhost_vring_addr){
        .index = (uint32_t)choose(byte_of(a->b, 0), a->index % QUEUES),
        .flags = byte_of(a->b, 1) & 1,
        .desc_user_addr = choose(byte_of(a->b, 2), user_address(ring->desc_gpa)),
        .avail_user_addr = choose(byte_of(a->b, 3), user_address(ring->avail_gpa)),
        .used_user_addr = choose(byte_of(a->c, 0), user_address(ring->used_gpa)),
        .log_guest_addr = choose(byte_of(a->c, 1), ring->used_gpa),
    };
    return sizeof(*addr);
}

static uint32_t make_state(const Action *a, uint32_t request, struct vhost_vring_state *state)
{
    uint64_t sensible = request == VHOST_USER_SET_VRING_NUM      ? QUEUE_SIZE
                        : request == VHOST_USER_SET_VRING_ENABLE ? !(a->c & 1)
                                                                 : 0;

    *state =
        (struct vhost_vring_state){ .index = (uint32_t)choose(byte_of(a->b, 0), a->index % QUEUES),
                                    .num = (uint32_t)choose(byte_of(a->b, 1), sensible) };
    return sizeof(*state);
}

static uint32_t make_config(const Action *a, VhostUserConfig *config)
{
    *config = (VhostUserConfig){ .offset = (uint32_t)choose(byte_of(a->b, 0), a->index % 64),
                                 .size = (uint32_t)choose(byte_of(a->b, 1), a->c % 16),
                                 .flags = byte_of(a->b, 2) };
    return (uint32_t)offsetof(VhostUserConfig, data) +
           MIN(config->size, (uint32_t)VHOST_USER_CONFIG_BYTES_MAX);
}

static uint32_t make_inflight(const Action *a, VhostUserInflight *inflight)
{
    *inflight = (VhostUserInflight){
        .mmap_size = choose(byte_of(a->b, 0), 65536),
        .mmap_offset = choose(byte_of(a->b, 1), 0),
        .nb_queues = (uint16_t)choose(byte_of(a->b, 2), QUEUES),
        .queue_size = (uint16_t)choose(byte_of(a->b, 3), QUEUE_SIZE),
    };
    return sizeof(*inflight);
}

static uint32_t make_payload(const Action *a, uint32_t request, VhostUserPayload *payload)
{
    switch (request) {
    case VHOST_USER_SET_FEATURES:
        payload->u64 = choose(a->index, (vdev_features_offered(vdev) & ~((uint64_t)a->c << 20)) |
                                            FEATURE(VHOST_USER_F_PROTOCOL_FEATURES));
        return sizeof(payload->u64);
    case VHOST_USER_SET_PROTOCOL_FEATURES:
        payload->u64 = choose(a->index, client.protocol & ~(uint64_t)a->c);
        return sizeof(payload->u64);
    case VHOST_USER_SET_STATUS:
        payload->u64 = choose(a->index, a->c & 15);
        return sizeof(payload->u64);
    case VHOST_USER_SET_MEM_TABLE:
        return make_memory(a, &payload->memory);
    case VHOST_USER_ADD_MEM_REG:
    case VHOST_USER_REM_MEM_REG:
        payload->mem_reg = (VhostUserMemReg){ .region = make_region(a, a->index % 4) };
        return sizeof(payload->mem_reg);
    case VHOST_USER_SET_LOG_BASE:
        payload->log = (VhostUserLog){ choose(byte_of(a->b, 0), RAM_BYTES), byte_of(a->b, 1) };
        return sizeof(payload->log);
    case VHOST_USER_SET_VRING_ADDR:
        return make_addr(a, &payload->addr);
    case VHOST_USER_SET_VRING_NUM:
    case VHOST_USER_SET_VRING_BASE:
    case VHOST_USER_GET_VRING_BASE:
    case VHOST_USER_SET_VRING_ENABLE:
        return make_state(a, request, &payload->state);
    case VHOST_USER_SET_VRING_KICK:
    case VHOST_USER_SET_VRING_CALL:
    case VHOST_USER_SET_VRING_ERR:
        payload->u64 = choose(byte_of(a->b, 0), a->index % QUEUES) |
                       (byte_of(a->b, 1) >= 0xe0 ? VHOST_USER_VRING_NOFD_MASK : 0);
        return sizeof(payload->u64);
    case VHOST_USER_GET_CONFIG:
    case VHOST_USER_SET_CONFIG:
        return make_config(a, &payload->config);
    case VHOST_USER_GET_INFLIGHT_FD:
    case VHOST_USER_SET_INFLIGHT_FD:
        return make_inflight(a, &payload->inflight);
    default:
        return 0;
    }
}

static void send_request(const Action *a, uint32_t request)
{
    uint8_t bytes[sizeof(VhostUserMsg) + 64] = { 0 };
    VhostUserPayload payload = { 0 };
    uint32_t size = make_payload(a, request, &payload);
    VhostUserHeader hdr = { request, VHOST_USER_VERSION, size };
    unsigned nb_fds = right_nb_fds(request, &payload);
    int fds[FDS_MAX];

    if (a->how & 1) {
        hdr.flags |= VHOST_USER_FLAG_NEED_REPLY;
    }
    if (a->how >= 0xf8) {
        hdr.flags ^= a->how & 7;
    } else if (a->how >= 0xf0) {
        hdr.size = (uint32_t)numbers[byte_of(a->c, 3) % ARRAY_SIZE(numbers)];
    } else if (a->how >= 0xe8) {
        size = size > a->index ? size - a->index : 0; /* the rest comes with the next message */
    }
    if ((a->fds & 0xc0) == 0x80) {
        nb_fds = a->fds & 15;
    }
    nb_fds = MIN(nb_fds, (unsigned)FDS_MAX);
    for (unsigned i = 0; i < nb_fds; i++) {
        fds[i] = choose_fd(a, request, i);
    }
    memcpy(bytes, &hdr, sizeof(hdr));
    memcpy(bytes + sizeof(hdr), &payload, size);
    send_bytes(bytes, sizeof(hdr) + size, fds, nb_fds);
}

/* --- what the driver does --- */

static void start_queue(const Action *a)
{
    static const uint32_t steps[] = { VHOST_USER_SET_VRING_NUM,  VHOST_USER_SET_VRING_BASE,
                                      VHOST_USER_SET_VRING_ADDR, VHOST_USER_SET_VRING_CALL,
                                      VHOST_USER_SET_VRING_KICK, VHOST_USER_SET_VRING_ENABLE };
    Action sensible = { .index = a->index };

    if (a->how & 2) {
        send_request(&sensible, VHOST_USER_SET_FEATURES);
        send_request(&sensible, VHOST_USER_SET_PROTOCOL_FEATURES);
    }
    if (a->how & 4) {
        send_request(&sensible, VHOST_USER_SET_INFLIGHT_FD);
    }
    if (a->how & 8) {
        send_request(&sensible, VHOST_USER_SET_MEM_TABLE);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(steps); i++) {
        send_request(&sensible, steps[i]);
    }
}

/* The ring may be full, or hold noise; the driver does not care. */
static void add_request(const Action *a)
{
    RingDriver *ring = &client.queues[a->index % QUEUES].ring;

    if (ring->nb_free >= 3) {
        vfe_slot_add(&slot, ring, (uint32_t)choose(byte_of(a->b, 0), a->c & 1),
                     choose(byte_of(a->b, 1), a->c % 64), byte_of(a->b, 2) % 9 * 512, a->c & 2);
    } else {
        ring_offer(ring, (uint16_t)(a->c % QUEUE_SIZE));
    }
    ring_publish(ring);
}

static void scribble(uint8_t *area, size_t area_bytes, const Action *a)
{
    for (unsigned i = 0; i < sizeof(a->c); i++) {
        area[(a->b + i) % area_bytes] = byte_of(a->c, i);
    }
}

static void cut_memory(bool cut)
{
    ASSERT_EQ(ftruncate(client.guest.fd, cut ? 0 : RAM_BYTES), 0);
}

static void act(const Action *a)
{
    RingDriver *ring = &client.queues[a->index % QUEUES].ring;

    switch (a->what % NB_WHATS) {
    case NOISE:
        send_bytes(&a->b, 1 + a->how % 8, &client.guest.fd, a->fds & 1);
        break;
    case START_QUEUE:
        start_queue(a);
        break;
    case ADD_REQUEST:
        add_request(a);
        break;
    case KICK:
        eventfd_write(client.queues[a->index % QUEUES].kick_fd, 1);
        break;
    case SCRIBBLE_RING:
        scribble((uint8_t *)ring->desc, (size_t)(ring->used_gpa + 128 - ring->desc_gpa), a);
        break;
    case SCRIBBLE_RAM:
        scribble(client.guest.ram, RAM_BYTES, a);
        break;
    case SCRIBBLE_INFLIGHT:
        scribble(client.inflight_map, 4096, a);
        break;
    case CUT_MEMORY:
        if (a->how >= 0xc0) { /* the one who cuts would fall himself */
            cut_memory(true);
            eventfd_write(client.queues[a->index % QUEUES].kick_fd, 1);
            pump(PASSES);
        }
        cut_memory(false);
        break;
    case CHANGE_DISK:
        mem_release_all(&disk);
        atomic_store(&disk.yield, (MemYield)(a->index % 3));
        break;
    case SHUTDOWN:
        if (a->how >= 0xe0) {
            shutdown(client.sock, SHUT_WR);
        }
        break;
    default:
        send_request(a, a->what % NB_WHATS);
    }
    pump(PASSES);
}

/* --- the world --- */

static main_fn void world_init(void)
{
    VfeClientParams params = { .nb_queues = QUEUES,
                               .queue_size = QUEUE_SIZE,
                               .ram_bytes = RAM_BYTES };
    VirtioBlkParams blk_params = { .id = "fuzz", .nb_queues = QUEUES };
    MemConfig config = { .length_bytes = DISK_BYTES };
    int pair[2];
    Error err;

    log_set_level(LOG_LEVEL_ERROR);
    ASSERT_TRUE(guest_main_context(&err) != NULL);
    mem_open(&disk, &config);
    server = vhu_server_create("fuzz", &err);
    ASSERT_TRUE(server != NULL);
    vblk = virtio_blk_create(&blk_params, disk.blk, vhu_server_memory(server), &err);
    ASSERT_TRUE(vblk != NULL);
    vdev = virtio_blk_device(vblk);
    vhu_server_set_device(server, vdev);
    vfe_client_init(&client, &params);
    vfe_slot_init(&slot, &client.guest, 4096);
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    client.backend_sock = pair[0];
    close(pair[1]);
    client.protocol = UINT32_MAX; /* until the server says which */
    null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    inflight_fd = memfd_create("inflight", MFD_CLOEXEC);
    ASSERT_EQ(ftruncate(inflight_fd, 65536), 0);
    client.inflight_map = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, inflight_fd, 0);
    ASSERT_TRUE(client.inflight_map != MAP_FAILED);
    client.inflight.mmap_size = 65536;
    client.inflight_fd = dup(inflight_fd);
}

static main_fn void world_finish(void)
{
    AioContext *ctx = aio_main();

    vfe_client_finish(&client);
    close(null_fd);
    close(inflight_fd);
    vhu_server_destroy(server);
    virtio_blk_destroy(vblk);
    ASSERT_EQ(atomic_load(&disk.stats.violations), 0);
    mem_close(&disk);
    aio_context_destroy(ctx);
}

/* Ask @request of the server, which has to answer with a number. */
static uint64_t ask(uint32_t request)
{
    VfeReply reply;

    ASSERT_EQ(vfe_send(client.sock, request, 0, NULL, 0, NULL, 0), 0);
    pump(PASSES);
    ASSERT_EQ(vfe_receive(client.sock, &reply), 0);
    ASSERT_EQ(reply.hdr.request, request);
    return reply.payload.u64;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes)
{
    assert_main();
    world_init();
    unsigned nb_fds = test_count_fds();

    connect_client();
    client.protocol = ask(VHOST_USER_GET_PROTOCOL_FEATURES);
    for (size_t n = 0; n < ACTIONS_MAX && (n + 1) * ACTION_BYTES <= len_bytes; n++) {
        const uint8_t *bytes = data + n * ACTION_BYTES;
        Action action = { bytes[0], bytes[1], bytes[2], bytes[3], 0, 0 };

        memcpy(&action.b, bytes + 4, 4);
        memcpy(&action.c, bytes + 8, 4);
        act(&action);
    }
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    mem_release_all(&disk);
    disconnect_client();
    for (int waited_ms = 0; test_count_fds() != nb_fds && waited_ms < AWAIT_MS; waited_ms++) {
        poll(NULL, 0, 1); /* what was refused is closed by another thread */
    }
    ASSERT_EQ(test_count_fds(), nb_fds);
    connect_client();
    ask(VHOST_USER_GET_FEATURES);
    disconnect_client();
    world_finish();
    return 0;
}

#ifdef FUZZ_CORPUS_DIR /* the ordinary test */

#include "io/base/tests/fuzz-replay.h"

TEST(fuzz_vhost_user, corpus_breaks_nothing)
{
    fuzz_replay_corpus(LLVMFuzzerTestOneInput, FUZZ_CORPUS_DIR, 10);
}

TEST(fuzz_vhost_user, random_messages_break_nothing)
{
    fuzz_replay_random(LLVMFuzzerTestOneInput, ACTION_BYTES, 100);
}

TEST_MAIN()

#endif
