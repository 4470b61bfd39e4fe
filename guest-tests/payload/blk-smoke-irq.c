/*
 * blk-smoke: interrupts - when they come, and when they must not
 *
 * These cases poll the ring and look at how many interrupts the processor has taken, so they mean
 * the same whether irq=on or off.
 */
#include "guest-tests/lib/args.h"
#include "guest-tests/lib/irq.h"
#include "guest-tests/lib/layout.h"
#include "guest-tests/lib/smp.h"
#include "guest-tests/lib/tsc.h"
#include "guest-tests/payload/blk-smoke.h"

#define SECTOR        VIRTIO_BLK_SECTOR_BYTES
#define ARRIVAL_MS    5000 /* in which an interrupt that is due arrives */
#define QUIET_MS      5    /* in which one that is not would have */
#define NB_BATCH      8
#define WRAP_REQUESTS (65536 - 9)

static VblkQueue *queue(void)
{
    return &smoke.disk.queues[0];
}

static uint64_t count(void)
{
    return irq_count(vdev_vector(&smoke.disk.dev, 0));
}

static void start(uint64_t features, uint16_t nb_queues)
{
    const VblkSetup setup = { .features = features, .nb_queues = nb_queues, .interrupts = true };

    TEST_SKIP_IF(features & ~smoke.offered, "not offered");
    ASSERT_TRUE(smoke_start_with(&setup));
}

static void poll(VblkQueue *q)
{
    uint64_t begin = cpu_rdtsc();
    uint16_t slot;

    while (!vblk_take(q, &slot)) {
        ASSERT_LT(cpu_rdtsc() - begin, tsc_from_ms(SMOKE_WAIT_MS));
        cpu_pause();
    }
    ASSERT_EQ(q->slots[slot].status, VIRTIO_BLK_S_OK);
}

static void request(VblkQueue *q)
{
    vblk_offer(q, 0, VIRTIO_BLK_T_IN, 0, smoke.in, SECTOR);
    vring_publish(&q->ring);
    poll(q);
}

/* Ask for an interrupt at the @nth completion from now; 0 is the next. */
static void ask_for(VblkQueue *q, uint16_t nth)
{
    VringPacked *p = &q->ring.packed;
    uint32_t slot = p->used_slot + nth;
    uint16_t flags = p->used_flags;

    if (!smoke.packed) {
        *vring_used_event(&q->ring) = (uint16_t)(q->ring.used_next + nth);
    } else {
        if (slot >= p->size) {
            slot -= p->size;
            flags ^= VRING_PACKED_OWNER;
        }
        *p->driver_event =
            VRING_PACKED_EVENT_DESC << 16 | slot | (flags ? VRING_PACKED_EVENT_WRAP : 0u);
    }
    cpu_mb();
}

static bool arrives(uint8_t vector, uint64_t wanted)
{
    uint64_t begin = cpu_rdtsc();

    while (irq_count(vector) < wanted) {
        if (cpu_rdtsc() - begin > tsc_from_ms(ARRIVAL_MS)) {
            return false;
        }
        cpu_pause();
    }
    return true;
}

static bool one_arrives(uint64_t before)
{
    return arrives(vdev_vector(&smoke.disk.dev, 0), before + 1);
}

/* --- event index and flags --- */

/*
 * One slot of a packed ring for each request, too. The first completion interrupts, as a ring is
 * set up, and on QEMU whatever the index says; none is under way afterwards.
 */
static void start_with_event_index(void)
{
    uint64_t before;

    start(VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC, 1);
    before = count();
    request(queue());
    ASSERT_TRUE(one_arrives(before));
}

TEST(irq, the_event_index_asks_for_one_completion_and_not_those_before)
{
    uint64_t before;

    start_with_event_index();
    ask_for(queue(), 3);
    before = count();
    for (int i = 0; i < 3; i++) {
        request(queue());
    }
    tsc_wait_ms(QUIET_MS);
    EXPECT_EQ(count(), before);
    request(queue());
    EXPECT_TRUE(one_arrives(before));
    tsc_wait_ms(QUIET_MS); /* over MMIO QEMU may repeat it */
    before = count();
    for (int i = 0; i < 3; i++) {
        request(queue());
    }
    tsc_wait_ms(QUIET_MS);
    EXPECT_EQ(count(), before);
}

TEST(irq, a_batch_that_crosses_the_event_index_interrupts)
{
    VblkQueue *q = queue();
    uint64_t before;

    start_with_event_index();
    ask_for(q, NB_BATCH / 2);
    before = count();
    for (uint16_t i = 0; i < NB_BATCH; i++) {
        vblk_offer(q, i, VIRTIO_BLK_T_IN, i, smoke.in + i * SECTOR, SECTOR);
    }
    vring_publish(&q->ring);
    for (uint16_t i = 0; i < NB_BATCH; i++) {
        poll(q);
    }
    EXPECT_TRUE(one_arrives(before));
}

static void run_requests(VblkQueue *q, uint32_t nb)
{
    while (nb > 0) {
        uint16_t batch = (uint16_t)(nb < q->nb_slots ? nb : q->nb_slots);

        for (uint16_t i = 0; i < batch; i++) {
            vblk_offer(q, i, VIRTIO_BLK_T_IN, i, smoke.in, SECTOR);
        }
        vring_publish(&q->ring);
        for (uint16_t i = 0; i < batch; i++) {
            poll(q);
        }
        nb -= batch;
    }
}

/* Each time exactly the second of two. In a packed ring the wrap is that of its slots. */
TEST(irq, the_event_index_wraps)
{
    start_with_event_index();
    run_requests(queue(), smoke.packed ? queue()->ring.size - 9u : WRAP_REQUESTS);
    for (int i = 0; i < 8; i++) {
        uint64_t before;

        ask_for(queue(), 1);
        before = count();
        request(queue());
        tsc_wait_ms(1);
        EXPECT_EQ(count(), before);
        request(queue());
        ASSERT_TRUE(one_arrives(before));
    }
}

TEST(irq, flags_mean_nothing_beside_the_event_index)
{
    uint64_t before;

    smoke_need_split("flags beside the event index");
    start_with_event_index();
    queue()->ring.avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
    ask_for(queue(), 0);
    before = count();
    request(queue());
    EXPECT_TRUE(one_arrives(before));
}

TEST(irq, without_the_event_index_the_flag_decides)
{
    Vring *r = &queue()->ring;
    uint64_t before;

    start(0, 1);
    if (smoke.packed) {
        *r->packed.driver_event = VRING_PACKED_EVENT_DISABLE << 16;
    } else {
        r->avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
    }
    cpu_mb();
    before = count();
    request(queue());
    tsc_wait_ms(QUIET_MS);
    EXPECT_EQ(count(), before);
    vring_ask_interrupts(r);
    cpu_mb();
    request(queue());
    EXPECT_TRUE(one_arrives(before));
}

TEST(irq, every_queue_interrupts_through_its_own_vector)
{
    start(VIRTIO_F_EVENT_IDX | (smoke.offered & VIRTIO_BLK_F_MQ), smoke.nb_queues);
    for (uint16_t i = 0; i < smoke.nb_queues; i++) {
        uint8_t vector = vdev_vector(&smoke.disk.dev, i);
        uint64_t before = irq_count(vector);

        request(&smoke.disk.queues[i]);
        ASSERT_TRUE(arrives(vector, before + 1));
    }
}

/* --- the configuration --- */

TEST(irq, needs_reset_raises_the_vector_of_the_configuration)
{
    const VringDesc empty[] = { { mem_gpa(smoke.in), 0, 0, 0 } };
    Vdev *d = &smoke.disk.dev;
    uint8_t vector;
    uint64_t before;
    uint32_t used_len;

    TEST_SKIP_IF(smoke.qemu && (smoke.packed || d->transport == VDEV_MMIO),
                 "QEMU spins on a broken ring there");
    start(0, 1);
    vector = vdev_vector(d, 1); /* behind that of the only queue */
    before = irq_count(vector);
    smoke_offer_chain(queue(), empty, 1);
    ASSERT_EQ(smoke_outcome(queue(), &used_len), OUTCOME_NEEDS_RESET);
    EXPECT_TRUE(arrives(vector, before + 1));
    EXPECT_TRUE(smoke_works());
}

/* --- MSI-X --- */

static void select_queue_vector(VpciDevice *d, uint16_t vector)
{
    mmio_write16(d->common + VIRTIO_PCI_QUEUE_SELECT, 0);
    mmio_write16(d->common + VIRTIO_PCI_QUEUE_VECTOR, vector);
}

static void set_masked(VpciDevice *d, bool masked)
{
    vpci_set_message(d, 0, IRQ_MSI_ADDRESS, d->first_vector, masked);
}

static bool becomes_pending(VpciDevice *d)
{
    uint64_t begin = cpu_rdtsc();

    while (!vpci_is_pending(d, 0)) {
        if (cpu_rdtsc() - begin > tsc_from_ms(ARRIVAL_MS)) {
            return false;
        }
    }
    return true;
}

TEST(msix, a_queue_without_a_vector_interrupts_nobody)
{
    VpciDevice *d = smoke_pci();
    uint64_t before;

    TEST_SKIP_IF(smoke.qemu, "QEMU's IOThread keeps to the vector of DRIVER_OK");
    start(0, 1);
    select_queue_vector(d, VIRTIO_NO_VECTOR);
    before = count();
    request(queue());
    tsc_wait_ms(QUIET_MS);
    EXPECT_EQ(count(), before);
    EXPECT_FALSE(vpci_is_pending(d, 0));
    select_queue_vector(d, 0);
    request(queue());
    EXPECT_TRUE(one_arrives(before));
}

static void check_mask(VpciDevice *d, void (*set)(VpciDevice *d, bool masked))
{
    uint64_t before;

    start(0, 1);
    set(d, true);
    before = count();
    EXPECT_FALSE(vpci_is_pending(d, 0));
    request(queue());
    EXPECT_TRUE(becomes_pending(d));
    EXPECT_EQ(count(), before);
    set(d, false);
    EXPECT_TRUE(one_arrives(before));
    EXPECT_FALSE(vpci_is_pending(d, 0));
    request(queue());
    EXPECT_TRUE(arrives(d->first_vector, before + 2));
}

TEST(msix, a_masked_vector_is_pending_and_comes_when_it_is_unmasked)
{
    check_mask(smoke_pci(), set_masked);
}

static void set_all_masked(VpciDevice *d, bool masked)
{
    vpci_set_msix(d, true, masked);
}

TEST(msix, a_masked_function_is_pending_and_comes_when_it_is_unmasked)
{
    check_mask(smoke_pci(), set_all_masked);
}

TEST(msix, a_reset_forgets_what_is_pending)
{
    VpciDevice *d = smoke_pci();
    uint64_t before;

    start(0, 1);
    set_masked(d, true);
    before = count();
    request(queue());
    ASSERT_TRUE(becomes_pending(d));
    ASSERT_TRUE(vdev_reset(&smoke.disk.dev));
    EXPECT_FALSE(vpci_is_pending(d, 0));
    set_masked(d, false);
    tsc_wait_ms(QUIET_MS);
    EXPECT_EQ(count(), before);
}

TEST(msix, a_message_that_changes_while_masked_goes_where_it_says_now)
{
    VpciDevice *d = smoke_pci();
    uint8_t other = (uint8_t)(d->first_vector + 1);
    uint64_t before, before_other;

    start(0, 1);
    set_masked(d, true);
    before = count();
    before_other = irq_count(other);
    request(queue());
    ASSERT_TRUE(becomes_pending(d));
    vpci_set_message(d, 0, IRQ_MSI_ADDRESS, other, false);
    EXPECT_TRUE(arrives(other, before_other + 1));
    EXPECT_EQ(count(), before);
}

TEST(msix, a_message_can_go_to_another_processor)
{
    VpciDevice *d = smoke_pci();
    uint64_t before;

    TEST_SKIP_IF(arg_u64("cpus", 1, 1, MAX_CPUS) < 2, "one processor (cpus=)");
    ASSERT_EQ(smp_start(2), 2);
    start(0, 1);
    vpci_set_message(d, 0, irq_msi_address(1), d->first_vector, false);
    before = count();
    request(queue());
    ASSERT_TRUE(one_arrives(before));
    EXPECT_EQ(irq_processor_of_last(d->first_vector), 1);
}

TEST(msix, queues_can_share_a_vector)
{
    VpciDevice *d = smoke_pci();

    TEST_SKIP_IF(smoke.nb_queues < 2, "the device has one queue");
    TEST_SKIP_IF(smoke.qemu, "QEMU's IOThread keeps to the vector of DRIVER_OK");
    start(VIRTIO_BLK_F_MQ, 2);
    mmio_write16(d->common + VIRTIO_PCI_QUEUE_SELECT, 1);
    mmio_write16(d->common + VIRTIO_PCI_QUEUE_VECTOR, 0);
    for (int i = 0; i < 2; i++) {
        uint64_t before = count();

        request(&smoke.disk.queues[i]);
        EXPECT_TRUE(one_arrives(before));
    }
}

/* Writes to the read-only pending bits and odd accesses of the table. */
TEST(msix, odd_accesses_of_the_table_do_no_harm)
{
    VpciDevice *d = smoke_pci();
    uint64_t before;

    start(0, 1);
    before = count();
    for (uint32_t i = 1; i < 16; i += 3) {
        mmio_write8(d->msix_table + i, 0xff);
        mmio_write16(d->msix_table + i, 0xffff);
        mmio_read32(d->msix_table + i);
    }
    mmio_write32(d->msix_pba, 0xffffffff);
    EXPECT_FALSE(vpci_is_pending(d, 0));
    set_masked(d, false);
    request(queue());
    EXPECT_TRUE(one_arrives(before));
    EXPECT_TRUE(smoke_works());
}
