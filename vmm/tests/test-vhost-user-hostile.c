/*
 * test-vhost-user-hostile.c - clients that break the rules of vhost-user, one rule at a time
 *
 * After each of them: the server has closed the connection (where that is the answer), its log says
 * why in the words that are expected here, it has given back every descriptor and every mapping, and
 * the next client is served. One server takes a few of them: it would not log more at a time.
 */
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "vmm/tests/vhost-user-fixture.h"

/* How far the client has come before it does it. */
typedef enum Stage {
    CONNECTED,
    NEGOTIATED, /* features, protocol features */
    WITH_MEMORY,
    RUNNING, /* all queues enabled */
} Stage;

#define CLIENTS_A_SERVER 8

typedef struct Hostile {
    const char *name;
    Stage stage;
    void (*act)(void);
    const char *reason; /* what the log says then; NULL: nothing, and the client leaves by itself */
} Hostile;

/* --- what the cases do it with --- */

static void send_fds(uint32_t request, const void *payload, uint32_t size, const int *fds,
                     unsigned nb_fds)
{
    int ret = vfe_send(client.sock, request, 0, payload, size, fds, nb_fds);

    /* The server may have enough of it already. */
    EXPECT_TRUE(ret == 0 || ret == -EPIPE || ret == -ECONNRESET);
}

static void send_plain(uint32_t request, const void *payload, uint32_t size)
{
    send_fds(request, payload, size, NULL, 0);
}

static void send_header(uint32_t request, uint32_t flags, uint32_t size)
{
    VhostUserHeader hdr = { request, flags, size };
    int ret = vfe_send_bytes(client.sock, &hdr, sizeof(hdr), NULL, 0);

    EXPECT_TRUE(ret == 0 || ret == -EPIPE || ret == -ECONNRESET);
}

static void send_u64(uint32_t request, uint64_t value)
{
    send_plain(request, &value, sizeof(value));
}

static void send_state(uint32_t request, uint32_t index, uint32_t num)
{
    struct vhost_vring_state state = { .index = index, .num = num };

    send_plain(request, &state, sizeof(state));
}

static void send_vring_fd(uint32_t request, uint64_t value, int fd)
{
    send_fds(request, &value, sizeof(value), &fd, fd < 0 ? 0 : 1);
}

static int make_memfd(uint64_t len_bytes)
{
    int fd = memfd_create("hostile", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    ASSERT_GE(fd, 0);
    ASSERT_EQ(ftruncate(fd, (off_t)len_bytes), 0);
    return fd;
}

/* --- messages of the wrong form --- */

static void version_0(void)
{
    send_header(VHOST_USER_GET_FEATURES, 0, 0);
}

static void version_2(void)
{
    send_header(VHOST_USER_GET_FEATURES, 2, 0);
}

static void a_reply(void)
{
    send_header(VHOST_USER_GET_FEATURES, VHOST_USER_VERSION | VHOST_USER_FLAG_REPLY, 0);
}

static void request_0(void)
{
    send_header(0, VHOST_USER_VERSION, 0);
}

static void unknown_request(void)
{
    send_header(99, VHOST_USER_VERSION, 0);
}

static void request_ffffffff(void)
{
    send_header(UINT32_MAX, VHOST_USER_VERSION, 0);
}

static void postcopy(void)
{
    send_header(28, VHOST_USER_VERSION, 0);
}

static void get_with_payload(void)
{
    send_u64(VHOST_USER_GET_FEATURES, 1);
}

static void set_without_payload(void)
{
    send_plain(VHOST_USER_SET_FEATURES, NULL, 0);
}

static void half_a_u64(void)
{
    uint32_t half = 1;

    send_plain(VHOST_USER_SET_FEATURES, &half, sizeof(half));
}

static void payload_of_4_gib(void)
{
    send_header(VHOST_USER_SET_FEATURES, VHOST_USER_VERSION, UINT32_MAX);
}

static void table_longer_than_it_says(void)
{
    VhostUserMemory memory = { .nb_regions = 1, .regions = { client.memory.regions[0] } };

    send_fds(VHOST_USER_SET_MEM_TABLE, &memory, 8 + 64, &client.guest.fd, 1);
}

static void table_shorter_than_it_says(void)
{
    VhostUserMemory memory = { .nb_regions = 2, .regions = { client.memory.regions[0] } };
    int fds[2] = { client.guest.fd, client.guest.fd };

    send_fds(VHOST_USER_SET_MEM_TABLE, &memory, 8 + 32, fds, 2);
}

static void table_of_4_billion(void)
{
    VhostUserMemory memory = { .nb_regions = UINT32_MAX };

    send_fds(VHOST_USER_SET_MEM_TABLE, &memory, 8 + 32, &client.guest.fd, 1);
}

static void ends_in_the_header(void)
{
    uint32_t word = VHOST_USER_GET_FEATURES;

    EXPECT_EQ(vfe_send_bytes(client.sock, &word, sizeof(word), NULL, 0), 0);
    shutdown(client.sock, SHUT_WR);
}

static void ends_in_the_payload(void)
{
    struct {
        VhostUserHeader hdr;
        uint32_t half;
    } bytes = { { VHOST_USER_SET_FEATURES, VHOST_USER_VERSION, 8 }, 0 };

    EXPECT_EQ(vfe_send_bytes(client.sock, &bytes, sizeof(bytes), NULL, 0), 0);
    shutdown(client.sock, SHUT_WR);
}

/* --- descriptors --- */

static void fds_where_none_belong(void)
{
    int fds[3] = { client.guest.fd, client.guest.fd, client.guest.fd };

    send_fds(VHOST_USER_GET_FEATURES, NULL, 0, fds, 3);
}

static void fds_with_a_state(void)
{
    struct vhost_vring_state state = { 0, 1 };

    send_fds(VHOST_USER_SET_VRING_ENABLE, &state, sizeof(state), &client.guest.fd, 1);
}

static void table_without_fds(void)
{
    send_plain(VHOST_USER_SET_MEM_TABLE, &client.memory, 8 + 32);
}

static void table_with_surplus_fds(void)
{
    int fds[VHOST_USER_TABLE_REGIONS_MAX];

    for (unsigned i = 0; i < ARRAY_SIZE(fds); i++) {
        fds[i] = client.guest.fd;
    }
    send_fds(VHOST_USER_SET_MEM_TABLE, &client.memory, 8 + 32, fds, ARRAY_SIZE(fds));
}

static void more_fds_than_any_message(void)
{
    int fds[60];

    for (unsigned i = 0; i < ARRAY_SIZE(fds); i++) {
        fds[i] = client.guest.fd;
    }
    send_fds(VHOST_USER_SET_MEM_TABLE, &client.memory, 8 + 32, fds, ARRAY_SIZE(fds));
}

static void fds_with_header_and_payload(void)
{
    VhostUserHeader hdr = { VHOST_USER_SET_MEM_TABLE, VHOST_USER_VERSION, 8 + 32 };
    int fds[6] = { client.guest.fd, client.guest.fd, client.guest.fd,
                   client.guest.fd, client.guest.fd, client.guest.fd };

    EXPECT_EQ(vfe_send_bytes(client.sock, &hdr, sizeof(hdr), fds, 6), 0);
    EXPECT_EQ(vfe_send_bytes(client.sock, &client.memory, 8 + 32, fds, 6), 0);
}

static void kick_without_fd(void)
{
    send_vring_fd(VHOST_USER_SET_VRING_KICK, 0, -1);
}

static void kick_with_fd_and_without(void)
{
    send_vring_fd(VHOST_USER_SET_VRING_KICK, VHOST_USER_VRING_NOFD_MASK, client.queues[0].kick_fd);
}

static void call_without_fd(void)
{
    send_vring_fd(VHOST_USER_SET_VRING_CALL, 0, -1);
}

static void kick_that_is_a_file(void)
{
    send_vring_fd(VHOST_USER_SET_VRING_KICK, 0, client.guest.fd);
    send_state(VHOST_USER_SET_VRING_ENABLE, 0, 1);
}

static void call_that_is_a_file(void)
{
    send_vring_fd(VHOST_USER_SET_VRING_CALL, 0, client.guest.fd);
    send_state(VHOST_USER_SET_VRING_ENABLE, 0, 1);
}

static void backend_socket_that_is_a_file(void)
{
    send_fds(VHOST_USER_SET_BACKEND_REQ_FD, NULL, 0, &client.guest.fd, 1);
}

/* Connected to itself. */
static void backend_socket_of_tcp(void)
{
    struct sockaddr_in addr = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    AUTO_FD int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t len = sizeof(addr);

    ASSERT_EQ(bind(fd, (struct sockaddr *)&addr, len), 0);
    ASSERT_EQ(getsockname(fd, (struct sockaddr *)&addr, &len), 0);
    ASSERT_EQ(connect(fd, (struct sockaddr *)&addr, len), 0);
    send_fds(VHOST_USER_SET_BACKEND_REQ_FD, NULL, 0, &fd, 1);
}

static void backend_socket_twice(void)
{
    int pair[2];

    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    send_fds(VHOST_USER_SET_BACKEND_REQ_FD, NULL, 0, pair, 2);
    close(pair[0]);
    close(pair[1]);
}

/* An eventfd with no room left, on which a write would wait for somebody to read it. */
static void give_full_eventfd(uint32_t request)
{
    AUTO_FD int fd = eventfd(0, EFD_CLOEXEC);

    ASSERT_EQ(eventfd_write(fd, UINT64_MAX - 1), 0);
    send_vring_fd(request, 0, fd);
}

static void full_call_while_running(void)
{
    VfeReply reply;

    give_full_eventfd(VHOST_USER_SET_VRING_CALL);
    send_plain(VHOST_USER_GET_FEATURES, NULL, 0);
    EXPECT_EQ(vfe_receive(client.sock, &reply), 0);
}

static void full_call_before_the_start(void)
{
    VfeReply reply;

    EXPECT_EQ(vfe_set_vring_state(&client, VHOST_USER_SET_VRING_ENABLE, 0, 0), 0);
    give_full_eventfd(VHOST_USER_SET_VRING_CALL);
    EXPECT_EQ(vfe_set_vring_state(&client, VHOST_USER_SET_VRING_ENABLE, 0, 1), 0);
    send_plain(VHOST_USER_GET_FEATURES, NULL, 0);
    EXPECT_EQ(vfe_receive(client.sock, &reply), 0);
}

/* --- features --- */

static void feature_that_was_not_offered(void)
{
    send_u64(VHOST_USER_SET_FEATURES, client.features | FEATURE(63));
}

static void protocol_feature_that_was_not_offered(void)
{
    send_u64(VHOST_USER_SET_PROTOCOL_FEATURES, FEATURE(63));
}

static void status_of_9_bits(void)
{
    send_u64(VHOST_USER_SET_STATUS, 0x100);
}

/* --- numbers of rings --- */

static void ring_number_out_of_range(void)
{
    send_state(VHOST_USER_SET_VRING_NUM, NB_QUEUES, 64);
}

static void ring_number_of_4_billion(void)
{
    send_state(VHOST_USER_GET_VRING_BASE, UINT32_MAX, 0);
}

static void kick_of_ring_255(void)
{
    send_vring_fd(VHOST_USER_SET_VRING_KICK, 255, client.queues[0].kick_fd);
}

static void ring_of_size(uint32_t size)
{
    send_state(VHOST_USER_SET_VRING_NUM, 0, size);
    (void)!vfe_set_vring_addr(&client, 0, 0);
    send_vring_fd(VHOST_USER_SET_VRING_KICK, 0, client.queues[0].kick_fd);
    send_state(VHOST_USER_SET_VRING_ENABLE, 0, 1);
}

static void ring_of_size_0(void)
{
    ring_of_size(0);
}

static void ring_of_size_65536(void)
{
    ring_of_size(65536);
}

static void ring_of_size_2048(void)
{
    ring_of_size(2048);
}

static void enable_of_2(void)
{
    send_state(VHOST_USER_SET_VRING_ENABLE, 0, 2);
}

/* --- where rings are --- */

static void start_ring_at(uint64_t desc, uint64_t avail, uint64_t used)
{
    struct vhost_vring_addr addr = {
        .index = 0, .desc_user_addr = desc, .avail_user_addr = avail, .used_user_addr = used
    };

    send_state(VHOST_USER_SET_VRING_NUM, 0, QUEUE_SIZE);
    send_plain(VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr));
    send_vring_fd(VHOST_USER_SET_VRING_KICK, 0, client.queues[0].kick_fd);
    send_state(VHOST_USER_SET_VRING_ENABLE, 0, 1);
    eventfd_write(client.queues[0].kick_fd, 1);
}

static uint64_t ram(uint64_t offset)
{
    return (uint64_t)(uintptr_t)client.guest.ram + offset;
}

static void ring_at_0(void)
{
    start_ring_at(0, 0, 0);
}

static void ring_in_no_region(void)
{
    start_ring_at(ram(0), ram(MIB), ram(client.guest.ram_bytes));
}

static void ring_across_the_end(void)
{
    start_ring_at(ram(client.guest.ram_bytes - 16), ram(MIB), ram(2 * MIB));
}

static void ring_that_wraps_around(void)
{
    start_ring_at(UINT64_MAX & ~15ull, UINT64_MAX & ~15ull, UINT64_MAX & ~15ull);
}

static void ring_misaligned(void)
{
    start_ring_at(ram(8), ram(MIB + 1), ram(2 * MIB + 2));
}

static void ring_by_guest_addresses(void)
{
    start_ring_at(GUEST_BASE_GPA, GUEST_BASE_GPA + MIB, GUEST_BASE_GPA + 2 * MIB);
}

/* --- memory --- */

static void set_table(unsigned nb, const VhostUserRegion *regions, const int *fds)
{
    VhostUserMemory memory = { .nb_regions = nb };

    memcpy(memory.regions, regions, nb * sizeof(*regions));
    send_fds(VHOST_USER_SET_MEM_TABLE, &memory, (uint32_t)(8 + nb * sizeof(*regions)), fds, nb);
}

static void set_region(uint64_t gpa, uint64_t len_bytes, uint64_t offset, int fd)
{
    VhostUserRegion region = {
        .gpa = gpa, .len_bytes = len_bytes, .user_addr = ram(0), .mmap_offset = offset
    };

    set_table(1, &region, &fd);
}

static void regions_that_overlap(void)
{
    VhostUserRegion regions[2] = { client.memory.regions[0], client.memory.regions[0] };
    int fds[2] = { client.guest.fd, client.guest.fd };

    regions[1].gpa += MIB;
    set_table(2, regions, fds);
}

static void region_of_no_length(void)
{
    set_region(0, 0, 0, client.guest.fd);
}

static void region_that_wraps_around(void)
{
    set_region(UINT64_MAX - MIB + 1, 2 * MIB, 0, client.guest.fd);
}

static void region_longer_than_its_file(void)
{
    set_region(0, client.guest.ram_bytes + 4096, 0, client.guest.fd);
}

static void region_of_16_exbibytes(void)
{
    set_region(0, UINT64_MAX - 4095, 0, client.guest.fd);
}

static void region_beyond_its_file(void)
{
    set_region(0, MIB, client.guest.ram_bytes, client.guest.fd);
}

static void region_whose_offset_wraps_around(void)
{
    set_region(0, MIB, UINT64_MAX & ~4095ull, client.guest.fd);
}

static void region_of_an_eventfd(void)
{
    set_region(0, 4096, 0, client.queues[0].kick_fd);
}

static void region_of_a_socket(void)
{
    set_region(0, 4096, 0, client.sock);
}

static void region_of_a_process(void)
{
    AUTO_FD int fd = open("/proc/self/comm", O_RDWR | O_CLOEXEC);

    set_region(0, 4096, 0, fd);
}

static void region_of_a_folder(void)
{
    AUTO_FD int fd = open("/", O_RDONLY | O_CLOEXEC);

    set_region(0, 4096, 0, fd);
}

static void region_that_is_sealed(void)
{
    AUTO_FD int fd = make_memfd(MIB);

    ASSERT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
    set_region(0, MIB, 0, fd);
}

static void second_region_bad(void)
{
    VhostUserRegion regions[2] = { client.memory.regions[0], client.memory.regions[0] };
    int fds[2] = { client.guest.fd, client.queues[0].kick_fd };

    regions[1].gpa += client.guest.ram_bytes;
    set_table(2, regions, fds);
}

static void added_region_that_overlaps(void)
{
    VhostUserMemReg reg = { .region = client.memory.regions[0] };

    send_fds(VHOST_USER_ADD_MEM_REG, &reg, sizeof(reg), &client.guest.fd, 1);
}

static void added_region_without_fd(void)
{
    VhostUserMemReg reg = { .region = client.memory.regions[0] };

    send_plain(VHOST_USER_ADD_MEM_REG, &reg, sizeof(reg));
}

static void added_region_too_long(void)
{
    VhostUserMemReg reg = { .region = client.memory.regions[0] };

    reg.region.gpa = 0;
    reg.region.len_bytes = client.guest.ram_bytes + 1;
    send_fds(VHOST_USER_ADD_MEM_REG, &reg, sizeof(reg), &client.guest.fd, 1);
}

static void regions_without_end(void)
{
    VhostUserMemReg reg = { .region = { .len_bytes = 4096 } };

    for (unsigned i = 0; i < 600; i++) {
        reg.region.gpa = (i + 1) * (uint64_t)MIB;
        send_fds(VHOST_USER_ADD_MEM_REG, &reg, sizeof(reg), &client.guest.fd, 1);
    }
}

static void removed_region_that_is_not(void)
{
    VhostUserMemReg reg = { .region = client.memory.regions[0] };

    reg.region.len_bytes -= 4096;
    send_plain(VHOST_USER_REM_MEM_REG, &reg, sizeof(reg));
}

/* The rings are in the region that goes, while they run. */
static void removed_region_with_rings(void)
{
    VhostUserMemReg reg = { .region = client.memory.regions[0] };

    send_plain(VHOST_USER_REM_MEM_REG, &reg, sizeof(reg));
    eventfd_write(client.queues[0].kick_fd, 1);
}

static void memory_cut_under_the_rings(void)
{
    ASSERT_EQ(ftruncate(client.guest.fd, 0), 0);
    for (unsigned i = 0; i < NB_QUEUES; i++) {
        eventfd_write(client.queues[i].kick_fd, 1);
    }
}

/* --- configuration --- */

static void ask_config(uint32_t offset, uint32_t size, uint32_t payload_bytes)
{
    VhostUserConfig config = { .offset = offset, .size = size };

    send_plain(VHOST_USER_GET_CONFIG, &config, payload_bytes);
}

static void config_longer_than_its_message(void)
{
    ask_config(0, 256, 12 + 8);
}

static void config_of_4_gib(void)
{
    ask_config(0, UINT32_MAX, 12 + 8);
}

/* --- requests in flight --- */

static void give_inflight(uint64_t size, uint64_t offset, uint16_t nb_queues, uint16_t queue_size,
                          int fd)
{
    VhostUserInflight inflight = {
        .mmap_size = size, .mmap_offset = offset, .nb_queues = nb_queues, .queue_size = queue_size
    };

    send_fds(VHOST_USER_SET_INFLIGHT_FD, &inflight, sizeof(inflight), &fd, 1);
}

static void inflight_longer_than_its_file(void)
{
    AUTO_FD int fd = make_memfd(4096);

    give_inflight(MIB, 0, NB_QUEUES, QUEUE_SIZE, fd);
}

static void inflight_too_short_for_its_queues(void)
{
    AUTO_FD int fd = make_memfd(4096);

    give_inflight(4096, 0, NB_QUEUES, 1024, fd);
}

static void inflight_of_no_queues(void)
{
    AUTO_FD int fd = make_memfd(4096);

    give_inflight(4096, 0, 0, QUEUE_SIZE, fd);
}

static void inflight_of_65535_queues(void)
{
    AUTO_FD int fd = make_memfd(4096);

    give_inflight(4096, 0, 65535, 65535, fd);
}

static void inflight_whose_offset_wraps_around(void)
{
    AUTO_FD int fd = make_memfd(4096);

    give_inflight(8192, UINT64_MAX & ~4095ull, NB_QUEUES, QUEUE_SIZE, fd);
}

static void inflight_of_an_eventfd(void)
{
    give_inflight(65536, 0, NB_QUEUES, QUEUE_SIZE, client.queues[0].kick_fd);
}

static void inflight_asked_for_65535_queues(void)
{
    VhostUserInflight wish = { .nb_queues = 65535, .queue_size = 65535 };

    send_plain(VHOST_USER_GET_INFLIGHT_FD, &wish, sizeof(wish));
}

/* --- the log of dirty pages --- */

static void give_log(uint64_t size, uint64_t offset)
{
    AUTO_FD int fd = make_memfd(4096);
    VhostUserLog log = { .mmap_size = size, .mmap_offset = offset };

    send_fds(VHOST_USER_SET_LOG_BASE, &log, sizeof(log), &fd, 1);
}

static void log_longer_than_its_file(void)
{
    give_log(MIB, 0);
}

static void log_of_no_length(void)
{
    give_log(0, 0);
}

static void log_of_all_there_could_be(void)
{
    give_log(1ull << 40, 0);
}

static void log_that_wraps_around(void)
{
    give_log(UINT64_MAX, 4096);
}

/* --- who does nothing wrong, or not for long --- */

static void nothing_at_all(void)
{
}

static void leaves_under_load(void)
{
    VfeSlot slots[32];

    for (unsigned i = 0; i < ARRAY_SIZE(slots); i++) {
        VfeQueue *queue = &client.queues[i % NB_QUEUES];

        vfe_slot_init(&slots[i], &client.guest, BLOCK_BYTES);
        vfe_slot_add(&slots[i], &queue->ring, VIRTIO_BLK_T_OUT, i * 8, BLOCK_BYTES, i % 2);
        vfe_queue_submit(queue);
    }
}

static const Hostile hostiles[] = {
    { "version 0", CONNECTED, version_0, "flags 0x0" },
    { "version 2", CONNECTED, version_2, "flags 0x2" },
    { "a reply", CONNECTED, a_reply, "flags 0x5" },
    { "request 0", CONNECTED, request_0, "request 0" },
    { "unknown request", CONNECTED, unknown_request, "request 99" },
    { "request 2^32 - 1", CONNECTED, request_ffffffff, "request 4294967295" },
    { "a request that was not offered", CONNECTED, postcopy, "request 28" },
    { "GET_FEATURES with a payload", CONNECTED, get_with_payload, "GET_FEATURES" },
    { "SET_FEATURES without", CONNECTED, set_without_payload, "SET_FEATURES" },
    { "SET_FEATURES with half of it", CONNECTED, half_a_u64, "SET_FEATURES" },
    { "a payload of 4 GiB", CONNECTED, payload_of_4_gib, "SET_FEATURES" },
    { "a table longer than it says", NEGOTIATED, table_longer_than_it_says, "SET_MEM_TABLE" },
    { "a table shorter than it says", NEGOTIATED, table_shorter_than_it_says, "SET_MEM_TABLE" },
    { "a table of 2^32 - 1 regions", NEGOTIATED, table_of_4_billion, "SET_MEM_TABLE" },
    { "the end within a header", CONNECTED, ends_in_the_header, "" },
    { "the end within a payload", CONNECTED, ends_in_the_payload, "SET_FEATURES" },

    { "descriptors where none belong", CONNECTED, fds_where_none_belong, "GET_FEATURES" },
    { "a descriptor with an enable", WITH_MEMORY, fds_with_a_state, "SET_VRING_ENABLE" },
    { "a table without descriptors", NEGOTIATED, table_without_fds, "SET_MEM_TABLE" },
    { "a table with too many", NEGOTIATED, table_with_surplus_fds, "SET_MEM_TABLE" },
    { "more than any message has", NEGOTIATED, more_fds_than_any_message, "" },
    { "with header and payload", NEGOTIATED, fds_with_header_and_payload, "" },
    { "a kick without one", WITH_MEMORY, kick_without_fd, "SET_VRING_KICK" },
    { "a kick with and without", WITH_MEMORY, kick_with_fd_and_without, "SET_VRING_KICK" },
    { "a call without one", WITH_MEMORY, call_without_fd, "SET_VRING_CALL" },
    { "a kick that is a file", WITH_MEMORY, kick_that_is_a_file, "SET_VRING_KICK" },
    { "a call that is a file", WITH_MEMORY, call_that_is_a_file, "SET_VRING_CALL" },
    { "a back-end channel that is a file", NEGOTIATED, backend_socket_that_is_a_file,
      "SET_BACKEND_REQ_FD" },
    { "a back-end channel of TCP", NEGOTIATED, backend_socket_of_tcp, "no unix connection" },
    { "two back-end channels", NEGOTIATED, backend_socket_twice, "SET_BACKEND_REQ_FD" },

    { "a call that is full already", RUNNING, full_call_while_running, NULL },
    { "a call that is full at the start", RUNNING, full_call_before_the_start, NULL },

    { "a feature not offered", NEGOTIATED, feature_that_was_not_offered, "SET_FEATURES" },
    { "a protocol feature not offered", NEGOTIATED, protocol_feature_that_was_not_offered,
      "SET_PROTOCOL_FEATURES" },
    { "a status of 9 bits", NEGOTIATED, status_of_9_bits, "SET_STATUS" },

    { "a ring that is not there", WITH_MEMORY, ring_number_out_of_range, "SET_VRING_NUM" },
    { "ring 2^32 - 1", WITH_MEMORY, ring_number_of_4_billion, "GET_VRING_BASE" },
    { "a kick of ring 255", WITH_MEMORY, kick_of_ring_255, "SET_VRING_KICK" },
    { "a ring of size 0", WITH_MEMORY, ring_of_size_0, "is no size" },
    { "a ring of size 65536", WITH_MEMORY, ring_of_size_65536, "is no size" },
    { "a ring of size 2048", WITH_MEMORY, ring_of_size_2048, "is no size" },
    { "an enable of 2", WITH_MEMORY, enable_of_2, "SET_VRING_ENABLE" },

    { "a ring at 0", WITH_MEMORY, ring_at_0, "not shared memory" },
    { "a ring in no region", WITH_MEMORY, ring_in_no_region, "" },
    { "a ring across the end", WITH_MEMORY, ring_across_the_end, "" },
    { "a ring that wraps around", WITH_MEMORY, ring_that_wraps_around, "" },
    { "a misaligned ring", WITH_MEMORY, ring_misaligned, "" },
    { "a ring by guest addresses", WITH_MEMORY, ring_by_guest_addresses, "" },
    { "a ring before there is memory", NEGOTIATED, ring_in_no_region, "" },

    { "regions that overlap", NEGOTIATED, regions_that_overlap, "overlaps" },
    { "a region of no length", NEGOTIATED, region_of_no_length, "0x0 bytes" },
    { "a region that wraps around", NEGOTIATED, region_that_wraps_around, "wraps around" },
    { "a region longer than its file", NEGOTIATED, region_longer_than_its_file, "of a file of" },
    { "a region of 16 EiB", NEGOTIATED, region_of_16_exbibytes, "0xfffffffffffff000 bytes" },
    { "a region beyond its file", NEGOTIATED, region_beyond_its_file, "of a file of" },
    { "an offset that wraps around", NEGOTIATED, region_whose_offset_wraps_around, "of a file of" },
    { "a region of an eventfd", NEGOTIATED, region_of_an_eventfd, "no file or memfd" },
    { "a region of a socket", NEGOTIATED, region_of_a_socket, "no file or memfd" },
    { "a region of a file of no disk", NEGOTIATED, region_of_a_process, "nor of a disk" },
    { "a region of a folder", NEGOTIATED, region_of_a_folder, "no file or memfd" },
    { "a region sealed against writing", NEGOTIATED, region_that_is_sealed, "mmap" },
    { "a good region and a bad one", NEGOTIATED, second_region_bad, "no file or memfd" },
    { "a bad table while it runs", RUNNING, second_region_bad, "no file or memfd" },
    { "an added region that overlaps", RUNNING, added_region_that_overlaps, "overlaps" },
    { "an added region without descriptor", RUNNING, added_region_without_fd, "ADD_MEM_REG" },
    { "an added region too long", RUNNING, added_region_too_long, "of a file of" },
    { "regions without end", RUNNING, regions_without_end, "regions" },
    { "a removed region that is none", RUNNING, removed_region_that_is_not, "no memory of" },
    { "a removed region with rings", RUNNING, removed_region_with_rings, "" },
    { "memory cut under the rings", RUNNING, memory_cut_under_the_rings, "" },

    { "a configuration longer than its message", NEGOTIATED, config_longer_than_its_message,
      "GET_CONFIG" },
    { "a configuration of 4 GiB", NEGOTIATED, config_of_4_gib, "GET_CONFIG" },

    { "in-flight memory longer than its file", NEGOTIATED, inflight_longer_than_its_file, "" },
    { "too short for its queues", NEGOTIATED, inflight_too_short_for_its_queues, "" },
    { "of no queues", NEGOTIATED, inflight_of_no_queues, "" },
    { "of 65535 queues", NEGOTIATED, inflight_of_65535_queues, "" },
    { "at an offset that wraps around", NEGOTIATED, inflight_whose_offset_wraps_around, "" },
    { "of an eventfd", NEGOTIATED, inflight_of_an_eventfd, "" },
    { "asked for 65535 queues", NEGOTIATED, inflight_asked_for_65535_queues, "" },

    { "a log longer than its file", NEGOTIATED, log_longer_than_its_file, "" },
    { "a log of no length", NEGOTIATED, log_of_no_length, "" },
    { "a log of 1 TiB", NEGOTIATED, log_of_all_there_could_be, "at most" },
    { "a log that wraps around", NEGOTIATED, log_that_wraps_around, "" },

    { "a client that says nothing", CONNECTED, nothing_at_all, NULL },
    { "a client that negotiates and leaves", NEGOTIATED, nothing_at_all, NULL },
    { "a client that shares memory and leaves", WITH_MEMORY, nothing_at_all, NULL },
    { "a client that starts and leaves", RUNNING, nothing_at_all, NULL },
    { "a client that leaves under load", RUNNING, leaves_under_load, NULL },
};

/* --- how they are tried --- */

static const VfeClientParams params = { .nb_queues = NB_QUEUES,
                                        .queue_size = QUEUE_SIZE,
                                        .ram_bytes = 4 * MIB };

/* As far as @stage; without acknowledgements, so that a refusal is a closed connection. */
static void come_to(Stage stage)
{
    uint64_t features = 0, protocol = 0;

    vfe_client_init(&client, &params);
    ASSERT_EQ(vfe_client_connect(&client, server.socket_path), 0);
    if (stage == RUNNING) {
        ASSERT_EQ(vfe_client_start(&client), 0);
    } else if (stage >= NEGOTIATED) {
        ASSERT_EQ(vfe_get_u64(&client, VHOST_USER_GET_FEATURES, &features), 0);
        ASSERT_EQ(vfe_get_u64(&client, VHOST_USER_GET_PROTOCOL_FEATURES, &protocol), 0);
        client.features = features & ~FEATURE(VHOST_F_LOG_ALL);
        ASSERT_EQ(vfe_set_u64(&client, VHOST_USER_SET_PROTOCOL_FEATURES, protocol), 0);
        ASSERT_EQ(vfe_set_u64(&client, VHOST_USER_SET_FEATURES, client.features), 0);
    }
    if (stage == WITH_MEMORY) {
        ASSERT_EQ(vfe_set_mem_table(&client), 0);
    }
    client.protocol = 0;
}

static void expect_reason(const Hostile *hostile, const char *log)
{
    if (log[0] == '\0' || !strstr(log, hostile->reason)) {
        test_fail(__FILE__, __LINE__, "%s: no '%s' in the log: %s", hostile->name, hostile->reason,
                  log);
    }
}

/* The server does not fear, does not leak, and tells. */
static void try_one(const Hostile *hostile)
{
    AUTO_FREE char *before = server_log(&server);

    come_to(hostile->stage);
    hostile->act();
    if (hostile->reason) {
        int ret = vfe_await_close(client.sock);

        if (ret < 0) {
            test_fail(__FILE__, __LINE__, "%s: not closed: %s", hostile->name, strerror(-ret));
        }
    }
    vfe_client_finish(&client);
    fixture_await_idle();
    AUTO_FREE char *after = server_log(&server);

    if (hostile->reason) {
        expect_reason(hostile, after + strlen(before));
    } else if (strlen(after) != strlen(before)) {
        test_fail(__FILE__, __LINE__, "%s: the log says %s", hostile->name, after + strlen(before));
    }
}

static void next_client_is_served(unsigned i)
{
    fixture_connect(NULL);
    fixture_write(i % NB_QUEUES, 100 + i, i);
    fixture_expect((i + 1) % NB_QUEUES, 100 + i, i);
    vfe_client_finish(&client);
}

static void finish_server(void)
{
    EXPECT_EQ(server_stop(&server), 0);
    server_finish(&server);
}

TEST(vhost_user_hostile, each_rule_broken_ends_one_session_and_nothing_else)
{
    for (unsigned i = 0; i < ARRAY_SIZE(hostiles); i++) {
        if (i % CLIENTS_A_SERVER == 0) {
            fixture_start(SERVER_PENSTOCK, NULL, NULL);
        }
        try_one(&hostiles[i]);
        next_client_is_served(i);
        if (i % CLIENTS_A_SERVER == CLIENTS_A_SERVER - 1 || i + 1 == ARRAY_SIZE(hostiles)) {
            finish_server();
        }
    }
    fprintf(stderr, "# %u clients\n", (unsigned)ARRAY_SIZE(hostiles));
}

TEST_MAIN()
