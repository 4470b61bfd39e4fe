/*
 * vhost-user-fixture.c - what every test with a vhost-user server begins and ends with
 */
#include "vmm/tests/vhost-user-fixture.h"

#include <poll.h>

#define AWAIT_MS 15000

ServerProcess server;
VfeClient client;
VfeSlot slot;

static unsigned idle_fds, idle_maps; /* of a server without a client */

/* An answer says that the server has come to its loop; then it has its own and the connection. */
static void count_idle(void)
{
    VfeReply reply;
    AUTO_FD int sock = vfe_connect(server.socket_path);

    ASSERT_GE(sock, 0);
    ASSERT_EQ(vfe_send(sock, VHOST_USER_GET_FEATURES, 0, NULL, 0, NULL, 0), 0);
    ASSERT_EQ(vfe_receive(sock, &reply), 0);
    idle_fds = server_count_fds(&server) - 1;
    idle_maps = server_count_shared_maps(&server);
}

void fixture_start(ServerProgram program, const char *disk, const char *options)
{
    if (program == SERVER_QEMU && system("qemu-storage-daemon --version >/dev/null 2>&1") != 0) {
        TEST_SKIP("qemu-storage-daemon is not installed");
    }
    server_init(&server, program, DISK_BYTES);
    server_start(&server, NB_QUEUES, disk, options);
    if (program == SERVER_PENSTOCK) {
        count_idle();
    }
}

void fixture_connect(const VfeClientParams *params)
{
    VfeClientParams p = params ? *params : (VfeClientParams){ 0 };

    p.nb_queues = p.nb_queues ? p.nb_queues : NB_QUEUES;
    p.queue_size = p.queue_size ? p.queue_size : QUEUE_SIZE;
    p.ram_bytes = p.ram_bytes ? p.ram_bytes : 4 * MIB;
    vfe_client_init(&client, &p);
    vfe_slot_init(&slot, &client.guest, 64 * BLOCK_BYTES);
    ASSERT_EQ(vfe_client_connect(&client, server.socket_path), 0);
    ASSERT_EQ(vfe_client_start(&client), 0);
}

void fixture_finish(void)
{
    vfe_client_finish(&client);
    if (server.program == SERVER_PENSTOCK) {
        fixture_await_idle();
    }
    int status = server_stop(&server);

    if (status != 0) {
        AUTO_FREE char *log = server_log(&server);

        test_fail(__FILE__, __LINE__, "the server ended with status %d: %s", status, log);
    }
    server_finish(&server);
}

static void expect_alive(void)
{
    int status;

    if (server_has_ended(&server, &status)) {
        AUTO_FREE char *log = server_log(&server);

        test_fail_abort(__FILE__, __LINE__, "the server has ended with status %d: %s", status, log);
    }
}

void fixture_await_idle(void)
{
    unsigned fds = 0, maps = 0;

    for (int waited_ms = 0; waited_ms < AWAIT_MS; waited_ms++) {
        expect_alive();
        fds = server_count_fds(&server);
        maps = server_count_shared_maps(&server);
        if (fds == idle_fds && maps == idle_maps) {
            return;
        }
        poll(NULL, 0, 1);
    }
    EXPECT_EQ(fds, idle_fds);
    EXPECT_EQ(maps, idle_maps);
}

/* --- blocks --- */

void fill_block(void *block, uint32_t seed)
{
    uint32_t *words = block;

    for (unsigned i = 0; i < BLOCK_BYTES / 4; i++) {
        words[i] = seed * 2654435761u + i;
    }
}

bool block_is(const void *block, uint32_t seed)
{
    const uint32_t *words = block;

    for (unsigned i = 0; i < BLOCK_BYTES / 4; i++) {
        if (words[i] != seed * 2654435761u + i) {
            return false;
        }
    }
    return true;
}

void fixture_write(unsigned queue, unsigned block, uint32_t seed)
{
    fill_block(vfe_slot_data(&slot, &client.guest), seed);
    ASSERT_EQ(vfe_do_block(&client, queue, &slot, VIRTIO_BLK_T_OUT,
                           (uint64_t)block * (BLOCK_BYTES / 512), BLOCK_BYTES),
              VIRTIO_BLK_S_OK);
}

void fixture_expect(unsigned queue, unsigned block, uint32_t seed)
{
    memset(vfe_slot_data(&slot, &client.guest), 0x5a, BLOCK_BYTES);
    ASSERT_EQ(vfe_do_block(&client, queue, &slot, VIRTIO_BLK_T_IN,
                           (uint64_t)block * (BLOCK_BYTES / 512), BLOCK_BYTES),
              VIRTIO_BLK_S_OK);
    EXPECT_TRUE(block_is(vfe_slot_data(&slot, &client.guest), seed));
}
