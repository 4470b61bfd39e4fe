/*
 * fuzz-virtio-pci.c - a guest that does anything to a virtio-pci function and its neighbours
 *
 * The input is a list of actions, 12 bytes each: what, length, place (32 bits), value (48 bits).
 * The actions are port accesses, configuration space, BARs (common structure first, so that
 * mutation finds it), ring memory, honest set-up steps and kicks. Whatever it does, afterwards the
 * device must reset and serve an honest request.
 *
 * With libFuzzer:
 *     clang -fsanitize=fuzzer,address,undefined -g -D_GNU_SOURCE -I. -o fuzz-virtio-pci \
 *         devices/tests/{fuzz-virtio-pci,fake-platform,blk-guest}.c $(find devices virtio block \
 *         io -maxdepth 2 -name '*.[cS]' ! -path '*tests*' ! -name '*aarch64*') -luring -lpthread
 *     ./fuzz-virtio-pci -max_len=4800 devices/tests/corpus-virtio-pci
 *
 * With FUZZ_CORPUS_DIR defined it is an ordinary test: it replays that corpus and a few inputs of
 * its own making; FUZZ_ROUNDS in the environment asks for more of these.
 */
#include <linux/pci_regs.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <stdio.h>

#include "devices/tests/blk-guest.h"
#include "devices/virtio-pci.h"

#define ECAM         0xe0000000ull
#define MMIO32       0xc0000000ull
#define MMIO32_BYTES 0x00100000ull
#define SLOT         1
#define QUEUES       2

#define ACTION_BYTES 12
#define ACTIONS_MAX  400

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes);

typedef struct World {
    FakePlatform fake;
    PciHost *host;
    BlkGuest blk;
    VirtioPci *vpci;
} World;

typedef struct Action {
    unsigned what, len_bytes;
    uint32_t place;
    uint64_t value;
} Action;

static unsigned intx_gsi(unsigned slot, unsigned pin)
{
    return 16;
}

static void world_init(World *world)
{
    static const PciHostParams params = { ECAM, MMIO32, MMIO32_BYTES, 0, 0, intx_gsi };

    *world = (World){ .host = NULL };
    fake_init(&world->fake);
    world->fake.discard_messages = true;
    world->host = pci_host_create(&world->fake.platform, &params, NULL);
    blk_guest_init(&world->blk, &world->fake, QUEUES, "driver=null,size=1M");
    world->vpci = virtio_pci_create(&world->fake.platform, world->host, SLOT, world->blk.vdev,
                                    NULL);
    ASSERT_TRUE(world->vpci);
    ASSERT_EQ(pci_host_assign_bars(world->host, NULL), 0);
}

static co_fn void reset_co(void *opaque)
{
    virtio_pci_co_reset(opaque);
}

static void world_finish(World *world)
{
    aio_co_run_sync(world->fake.platform.main, reset_co, world->vpci);
    virtio_pci_destroy(world->vpci);
    blk_guest_finish(&world->blk);
    fake_settle(&world->fake);
    pci_host_destroy(world->host);
    fake_finish(&world->fake);
}

static uint64_t bar_gpa(World *world, unsigned bar)
{
    return fake_read(&world->fake, ECAM + SLOT * 0x8000 + PCI_BASE_ADDRESS_0 + 4 * bar, 4) &
           ~0xfull;
}

static void set_common(World *world, unsigned offset, unsigned len_bytes, uint64_t value)
{
    fake_write(&world->fake, bar_gpa(world, 0) + offset, len_bytes, value);
}

static void honest_start(World *world)
{
    uint8_t status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;

    set_common(world, VIRTIO_PCI_COMMON_STATUS, 1, 0);
    set_common(world, VIRTIO_PCI_COMMON_STATUS, 1, status);
    set_common(world, VIRTIO_PCI_COMMON_GFSELECT, 4, 1);
    set_common(world, VIRTIO_PCI_COMMON_GF, 4, 1u << (VIRTIO_F_VERSION_1 - 32) |
                                                    1u << (VIRTIO_F_RING_RESET - 32));
    set_common(world, VIRTIO_PCI_COMMON_STATUS, 1, status |= VIRTIO_CONFIG_S_FEATURES_OK);
    for (unsigned q = 0; q < QUEUES; q++) {
        blk_guest_clear_ring(&world->blk, q);
        set_common(world, VIRTIO_PCI_COMMON_Q_SELECT, 2, q);
        set_common(world, VIRTIO_PCI_COMMON_Q_DESCLO, 8, BLK_GUEST_DESC(q));
        set_common(world, VIRTIO_PCI_COMMON_Q_AVAILLO, 8, BLK_GUEST_AVAIL(q));
        set_common(world, VIRTIO_PCI_COMMON_Q_USEDLO, 8, BLK_GUEST_USED(q));
        set_common(world, VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
    }
    set_common(world, VIRTIO_PCI_COMMON_STATUS, 1, status | VIRTIO_CONFIG_S_DRIVER_OK);
}

static void touch(World *world, uint64_t gpa, const Action *action, bool write)
{
    if (write) {
        fake_write(&world->fake, gpa, action->len_bytes, action->value);
    } else {
        fake_read(&world->fake, gpa, action->len_bytes);
    }
}

static void write_ram(World *world, const Action *action)
{
    for (unsigned i = 0; i < action->len_bytes; i++) {
        unsigned at = action->place % (QUEUES * BLK_GUEST_AREA_BYTES) + i;

        world->blk.ram[at % BLK_GUEST_RAM_BYTES] = (uint8_t)(action->value >> 8 * i);
    }
}

static void act(World *world, const Action *action)
{
    bool write = action->what & 0x80;

    switch (action->what & 0xf) {
    case 0 ... 3:
        touch(world, bar_gpa(world, 0) + action->place % 64, action, write);
        break;
    case 4:
        touch(world, bar_gpa(world, 0) + action->place % 0x4000, action, write);
        break;
    case 5:
        touch(world, bar_gpa(world, 2) + action->place % 0x1000, action, write);
        break;
    case 6:
    case 7:
        touch(world, ECAM + SLOT * 0x8000 + action->place % 256, action, write);
        break;
    case 8:
        touch(world, ECAM + action->place % 0x100000, action, write);
        break;
    case 9:
        if (write) {
            fake_out(&world->fake, 0xcf8 + action->place % 8, action->len_bytes, action->value);
        } else {
            fake_in(&world->fake, 0xcf8 + action->place % 8, action->len_bytes);
        }
        break;
    case 10:
        write_ram(world, action);
        break;
    case 11:
        blk_guest_offer_read(&world->blk, action->place % QUEUES);
        break;
    case 12:
        honest_start(world);
        break;
    case 13:
        vdev_config_changed(world->blk.vdev);
        break;
    default:
        fake_take_messages(&world->fake);
        fake_settle(&world->fake);
        break;
    }
}

/* After all that: power-on, and one honest request. */
static void expect_service(World *world)
{
    aio_co_run_sync(world->fake.platform.main, reset_co, world->vpci);
    pci_host_reset(world->host);
    honest_start(world);
    blk_guest_offer_read(&world->blk, 1);
    fake_write(&world->fake, bar_gpa(world, 0) + 0x3000 + 4, 2, 1);
    fake_settle(&world->fake);
    ASSERT_EQ(blk_guest_used(&world->blk, 1), 1);
    ASSERT_EQ(blk_guest_status(&world->blk, 1), 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes)
{
    World world;

    world_init(&world);
    for (size_t n = 0; n < ACTIONS_MAX && (n + 1) * ACTION_BYTES <= len_bytes; n++) {
        const uint8_t *bytes = data + n * ACTION_BYTES;
        Action action = { .what = bytes[0], .len_bytes = 1u << (bytes[1] & 3) };

        memcpy(&action.place, bytes + 2, 4);
        memcpy(&action.value, bytes + 6, 6);
        act(&world, &action);
    }
    expect_service(&world);
    world_finish(&world);
    return 0;
}

#ifdef FUZZ_CORPUS_DIR /* the ordinary test */

#include "io/base/tests/fuzz-replay.h"

#define ROUNDS_DEFAULT 60

TEST(fuzz_virtio_pci, corpus_breaks_nothing)
{
    fuzz_replay_corpus(LLVMFuzzerTestOneInput, FUZZ_CORPUS_DIR, 10);
}

TEST(fuzz_virtio_pci, random_actions_break_nothing)
{
    static uint8_t input[ACTIONS_MAX * ACTION_BYTES];
    const char *asked = getenv("FUZZ_ROUNDS");
    unsigned long rounds = asked ? strtoul(asked, NULL, 0) : ROUNDS_DEFAULT;
    uint64_t seed = 1;

    for (unsigned long round = 0; round < rounds; round++) {
        for (size_t i = 0; i < sizeof(input); i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            input[i] = (uint8_t)(seed >> 56);
            if (i % ACTION_BYTES >= 4 && i % ACTION_BYTES != 6 && seed >> 40 & 3) {
                input[i] = 0; /* small places and values are where things happen */
            }
        }
        LLVMFuzzerTestOneInput(input, sizeof(input));
    }
}

TEST_MAIN()

#endif
