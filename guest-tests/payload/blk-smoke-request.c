/*
 * blk-smoke: requests, good and refused
 */
#include "guest-tests/lib/args.h"
#include "guest-tests/lib/layout.h"
#include "guest-tests/lib/smp.h"
#include "guest-tests/lib/str.h"
#include "guest-tests/lib/tsc.h"
#include "guest-tests/payload/blk-smoke.h"

#define SECTOR VIRTIO_BLK_SECTOR_BYTES
#define IN     VRING_DESC_F_WRITE

static VirtioBlkHeader header;
static volatile uint8_t status;

static VblkQueue *first_queue(void)
{
    return &smoke.disk.queues[0];
}

/* A chain of the case's own over queue 0; the header and status above. */
static bool completes(const VringDesc *descs, uint16_t nb_descs, uint32_t type,
                      uint64_t sector, uint32_t *ret_used_len_bytes)
{
    header = (VirtioBlkHeader){ .type = type, .sector = sector };
    status = VBLK_STATUS_PENDING;
    smoke_offer_chain(first_queue(), descs, nb_descs);
    return smoke_outcome(first_queue(), ret_used_len_bytes) ==
           OUTCOME_COMPLETED;
}

static int do_range(uint32_t type, const VirtioBlkRange *ranges, uint32_t n)
{
    memcpy(smoke.out, ranges, n * sizeof(*ranges));
    return vblk_do(first_queue(), type, 0, smoke.out,
                   n * (uint32_t)sizeof(*ranges));
}

static void what_is_written_is_read_back_on_every_queue(void)
{
    static const uint32_t lens_bytes[] = { 512, 4096, 65536,
                                           SMOKE_BUFFER_BYTES };

    SKIP_IF(smoke.read_only, "the disk is read-only");
    CHECK(smoke_start(0));
    for (uint16_t i = 0; i < smoke.nb_queues; i++) {
        for (size_t k = 0; k < sizeof(lens_bytes) / sizeof(lens_bytes[0]);
             k++) {
            CHECK(smoke_round_trip(&smoke.disk.queues[i], 3u + i,
                                   lens_bytes[k], (uint32_t)(i * 10 + k)));
        }
    }
}

static void what_one_queue_writes_another_reads(void)
{
    VblkQueue *last = &smoke.disk.queues[smoke.nb_queues - 1];

    SKIP_IF(smoke.read_only, "the disk is read-only");
    SKIP_IF(smoke.nb_queues < 2, "the device has one queue");
    CHECK(smoke_start(0));
    smoke_fill(smoke.out, 4096, 5);
    CHECK(vblk_do(first_queue(), VIRTIO_BLK_T_OUT, 40, smoke.out, 4096) ==
          VIRTIO_BLK_S_OK);
    CHECK(vblk_do(last, VIRTIO_BLK_T_IN, 40, smoke.in, 4096) ==
          VIRTIO_BLK_S_OK);
    CHECK(smoke_is_filled(smoke.in, 4096, 5));
}

/* Fill every slot of every queue, then take everything back. */
static bool fill_all_queues(uint32_t type, uint8_t *buffer)
{
    uint32_t k = 0;

    for (uint16_t i = 0; i < smoke.nb_queues; i++) {
        VblkQueue *q = &smoke.disk.queues[i];

        for (uint16_t slot = 0; slot < q->nb_slots; slot++, k++) {
            uint32_t at = k * SECTOR % SMOKE_BUFFER_BYTES;

            vblk_offer(q, slot, type, at / SECTOR, buffer + at, SECTOR);
        }
        vring_publish(&q->ring);
    }
    for (uint16_t i = 0; i < smoke.nb_queues; i++) {
        VblkQueue *q = &smoke.disk.queues[i];

        for (uint16_t n = 0; n < q->nb_slots; n++) {
            uint16_t slot;

            if (!vblk_wait(q, SMOKE_WAIT_MS, &slot) ||
                slot >= q->nb_slots || q->slots[slot].status) {
                tap_note("queue %u: request %u of %u is lost or failed", i, n,
                         q->nb_slots);
                return false;
            }
        }
    }
    return true;
}

static void check_full_queues(uint64_t without)
{
    uint32_t total_bytes = 0;

    CHECK(smoke_start(without));
    for (uint16_t i = 0; i < smoke.nb_queues; i++) {
        total_bytes += smoke.disk.queues[i].nb_slots * (uint32_t)SECTOR;
    }
    if (total_bytes > SMOKE_BUFFER_BYTES) {
        total_bytes = SMOKE_BUFFER_BYTES;
    }
    smoke_fill(smoke.out, total_bytes, 6);
    memset(smoke.in, 0, total_bytes);
    if (!smoke.read_only) {
        CHECK(fill_all_queues(VIRTIO_BLK_T_OUT, smoke.out));
    }
    CHECK(fill_all_queues(VIRTIO_BLK_T_IN, smoke.in));
    if (!smoke.read_only) {
        CHECK(smoke_is_filled(smoke.in, total_bytes, 6));
    }
}

static void every_slot_of_every_queue_can_be_in_flight(void)
{
    check_full_queues(VIRTIO_F_INDIRECT_DESC);
}

static void every_slot_works_with_indirect_descriptors(void)
{
    SKIP_IF(!(smoke.offered & VIRTIO_F_INDIRECT_DESC), "not offered");
    check_full_queues(0);
}

static void every_slot_works_without_the_event_index(void)
{
    check_full_queues(VIRTIO_F_EVENT_IDX);
}

static void indexes_pass_65536_and_go_on(void)
{
    VblkQueue *q = first_queue();
    uint32_t left = 70000;

    CHECK(smoke_start(VIRTIO_F_INDIRECT_DESC));
    for (uint16_t slot = 0; slot < q->nb_slots; slot++, left--) {
        vblk_offer(q, slot, VIRTIO_BLK_T_IN, slot, smoke.in, SECTOR);
    }
    vring_publish(&q->ring);
    for (uint32_t waiting = q->nb_slots; waiting > 0;) {
        uint16_t slot;

        CHECK(vblk_wait(q, SMOKE_WAIT_MS, &slot));
        CHECK(slot < q->nb_slots && q->slots[slot].status == 0);
        if (left > 0) {
            left--;
            vblk_offer(q, slot, VIRTIO_BLK_T_IN, slot, smoke.in, SECTOR);
            vring_publish(&q->ring);
        } else {
            waiting--;
        }
    }
    CHECK(q->ring.used->idx == q->ring.avail->idx);
}

static void used_length_counts_data_and_status(void)
{
    const VringDesc read[] = {
        { mem_gpa(&header), 16, 0, 0 },
        { mem_gpa(smoke.in), 4096, IN, 0 },
        { mem_gpa(&status), 1, IN, 0 },
    };
    const VringDesc write[] = {
        { mem_gpa(&header), 16, 0, 0 },
        { mem_gpa(smoke.in), 4096, 0, 0 },
        { mem_gpa(&status), 1, IN, 0 },
    };
    uint32_t used_len;

    CHECK(smoke_start(0));
    CHECK(completes(read, 3, VIRTIO_BLK_T_IN, 0, &used_len));
    CHECK(status == VIRTIO_BLK_S_OK && used_len == 4097);
    SKIP_IF(smoke.read_only, "the disk is read-only");
    CHECK(completes(write, 3, VIRTIO_BLK_T_OUT, 0, &used_len));
    CHECK(status == VIRTIO_BLK_S_OK && used_len == 1);
}

/* VIRTIO 1.2, 2.7.4: where descriptors are cut means nothing. */
static void descriptors_may_be_cut_anywhere(void)
{
    const VringDesc write[] = {
        { mem_gpa(&header), 7, 0, 0 },
        { mem_gpa(&header) + 7, 9, 0, 0 },
        { mem_gpa(smoke.out), 100, 0, 0 },
        { mem_gpa(smoke.out) + 100, 1948, 0, 0 },
        { mem_gpa(&status), 1, IN, 0 },
    };
    const VringDesc read[] = {
        { mem_gpa(&header), 16, 0, 0 },
        { mem_gpa(smoke.in), 1, IN, 0 },
        { mem_gpa(smoke.in) + 1, 1000, IN, 0 },
        { mem_gpa(smoke.in) + 1001, 1048, IN, 0 },
    };
    uint32_t used_len;

    SKIP_IF(smoke.read_only, "the disk is read-only");
    CHECK(smoke_start(0));
    smoke_fill(smoke.out, 2048, 9);
    memset(smoke.in, 0xee, 4096);
    CHECK(completes(write, 5, VIRTIO_BLK_T_OUT, 8, &used_len));
    CHECK(status == VIRTIO_BLK_S_OK);

    /* The status is the last byte of the last descriptor, after the data. */
    CHECK(completes(read, 4, VIRTIO_BLK_T_IN, 8, &used_len));
    CHECK(smoke.in[2048] == VIRTIO_BLK_S_OK && used_len == 2049);
    CHECK(smoke_is_filled(smoke.in, 2048, 9));
    CHECK(smoke_is_all(smoke.in + 2049, 2047, 0xee));
}

static void header_and_data_may_share_a_descriptor(void)
{
    VirtioBlkHeader *joined = (VirtioBlkHeader *)smoke.out;
    const VringDesc write[] = {
        { mem_gpa(joined), 16 + 512, 0, 0 },
        { mem_gpa(&status), 1, IN, 0 },
    };
    uint32_t used_len;

    SKIP_IF(smoke.read_only, "the disk is read-only");
    CHECK(smoke_start(0));
    smoke_fill(smoke.out + 16, 512, 10);
    *joined = (VirtioBlkHeader){ .type = VIRTIO_BLK_T_OUT, .sector = 21 };
    CHECK(completes(write, 2, 0, 0, &used_len));
    CHECK(status == VIRTIO_BLK_S_OK);
    CHECK(vblk_do(first_queue(), VIRTIO_BLK_T_IN, 21, smoke.in, 512) ==
          VIRTIO_BLK_S_OK);
    CHECK(smoke_is_filled(smoke.in, 512, 10));
}

static void flush_succeeds_on_every_queue(void)
{
    SKIP_IF(!(smoke.offered & VIRTIO_BLK_F_FLUSH), "not offered");
    CHECK(smoke_start(0));
    for (uint16_t i = 0; i < smoke.nb_queues; i++) {
        CHECK(vblk_do(&smoke.disk.queues[i], VIRTIO_BLK_T_FLUSH, 0, NULL,
                      0) == VIRTIO_BLK_S_OK);
    }
}

static void the_cache_mode_can_be_changed_while_running(void)
{
    VpciDevice *d = &smoke.disk.pci;

    SKIP_IF(!(smoke.offered & VIRTIO_BLK_F_CONFIG_WCE), "not offered");
    SKIP_IF(smoke.read_only, "the disk is read-only");
    CHECK(smoke_start(0));
    for (uint8_t mode = 0; mode < 2; mode++) {
        mmio_write8(d->config + VIRTIO_BLK_CFG_WRITEBACK, mode);
        CHECK(vpci_config8(d, VIRTIO_BLK_CFG_WRITEBACK) == mode);
        CHECK(smoke_round_trip(first_queue(), 50, 4096, mode + 1u));
    }
}

static void discard_succeeds(void)
{
    const VirtioBlkRange range = { .sector = 128, .nb_sectors = 128 };

    SKIP_IF(smoke.read_only, "the disk is read-only");
    SKIP_IF(!(smoke.offered & VIRTIO_BLK_F_DISCARD), "not offered");
    CHECK(smoke_start(0));
    CHECK(do_range(VIRTIO_BLK_T_DISCARD, &range, 1) == VIRTIO_BLK_S_OK);
    CHECK(smoke_round_trip(first_queue(), 128, 65536, 11));
}

static void write_zeroes_leaves_zeroes_and_nothing_else(void)
{
    SKIP_IF(smoke.read_only, "the disk is read-only");
    SKIP_IF(!(smoke.offered & VIRTIO_BLK_F_WRITE_ZEROES), "not offered");
    for (uint32_t flags = 0; flags <= VIRTIO_BLK_WZ_F_UNMAP; flags++) {
        const VirtioBlkRange range = { 130, 100, flags };

        CHECK(smoke_start(0));
        CHECK(smoke_round_trip(first_queue(), 128, 65536, 12));
        CHECK(do_range(VIRTIO_BLK_T_WRITE_ZEROES, &range, 1) ==
              VIRTIO_BLK_S_OK);
        CHECK(vblk_do(first_queue(), VIRTIO_BLK_T_IN, 128, smoke.in, 65536) ==
              VIRTIO_BLK_S_OK);
        smoke_fill(smoke.out, 65536, 12);
        CHECK(memcmp(smoke.in, smoke.out, 2 * SECTOR) == 0);
        CHECK(smoke_is_all(smoke.in + 2 * SECTOR, 100 * SECTOR, 0));
        CHECK(memcmp(smoke.in + 102 * SECTOR, smoke.out + 102 * SECTOR,
                     26 * SECTOR) == 0);
    }
}

static void write_zeroes_takes_several_ranges(void)
{
    const VirtioBlkRange ranges[] = { { 200, 1, 0 }, { 203, 2, 0 } };

    SKIP_IF(smoke.read_only, "the disk is read-only");
    SKIP_IF(!(smoke.offered & VIRTIO_BLK_F_WRITE_ZEROES), "not offered");
    SKIP_IF(vpci_config32(&smoke.disk.pci, VIRTIO_BLK_CFG_MAX_WZ_SEG) < 2,
            "the device takes one range a request");
    CHECK(smoke_start(0));
    CHECK(smoke_round_trip(first_queue(), 200, 6 * SECTOR, 13));
    CHECK(do_range(VIRTIO_BLK_T_WRITE_ZEROES, ranges, 2) == VIRTIO_BLK_S_OK);
    CHECK(vblk_do(first_queue(), VIRTIO_BLK_T_IN, 200, smoke.in,
                  6 * SECTOR) == VIRTIO_BLK_S_OK);
    smoke_fill(smoke.out, 6 * SECTOR, 13);
    memset(smoke.out, 0, SECTOR);
    memset(smoke.out + 3 * SECTOR, 0, 2 * SECTOR);
    CHECK(memcmp(smoke.in, smoke.out, 6 * SECTOR) == 0);
}

static void bad_discards_and_zeroings_are_refused(void)
{
    const uint64_t end = smoke.disk.capacity_sectors;
    const VirtioBlkRange past_end = { end - 1, 2, 0 };
    const VirtioBlkRange wraps = { UINT64_MAX, 2, 0 };
    const VirtioBlkRange unknown_flag = { 0, 8, 0x80 };
    const VirtioBlkRange discard_unmap = { 0, 8, VIRTIO_BLK_WZ_F_UNMAP };

    SKIP_IF(smoke.read_only, "the disk is read-only");
    SKIP_IF(!(smoke.offered & VIRTIO_BLK_F_DISCARD) ||
                !(smoke.offered & VIRTIO_BLK_F_WRITE_ZEROES),
            "not offered");
    CHECK(smoke_start(0));
    CHECK(do_range(VIRTIO_BLK_T_DISCARD, &past_end, 1) == VIRTIO_BLK_S_IOERR);
    CHECK(do_range(VIRTIO_BLK_T_WRITE_ZEROES, &past_end, 1) ==
          VIRTIO_BLK_S_IOERR);
    CHECK(do_range(VIRTIO_BLK_T_WRITE_ZEROES, &wraps, 1) ==
          VIRTIO_BLK_S_IOERR);
    CHECK(do_range(VIRTIO_BLK_T_WRITE_ZEROES, &unknown_flag, 1) ==
          VIRTIO_BLK_S_UNSUPP);
    CHECK(do_range(VIRTIO_BLK_T_DISCARD, &unknown_flag, 1) ==
          VIRTIO_BLK_S_UNSUPP);
    CHECK(do_range(VIRTIO_BLK_T_DISCARD, &discard_unmap, 1) ==
          VIRTIO_BLK_S_UNSUPP);
}

static void requests_past_the_end_get_an_error(void)
{
    static const uint32_t types[] = { VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT };
    const uint64_t end = smoke.disk.capacity_sectors;
    VblkQueue *q = first_queue();

    CHECK(smoke_start(0));
    for (int i = 0; i < (smoke.read_only ? 1 : 2); i++) {
        CHECK(vblk_do(q, types[i], end, smoke.in, 512) == VIRTIO_BLK_S_IOERR);
        CHECK(vblk_do(q, types[i], end - 1, smoke.in, 1024) ==
              VIRTIO_BLK_S_IOERR);
        CHECK(vblk_do(q, types[i], UINT64_MAX, smoke.in, 512) ==
              VIRTIO_BLK_S_IOERR);
        CHECK(vblk_do(q, types[i], UINT64_MAX / 512, smoke.in, 1024) ==
              VIRTIO_BLK_S_IOERR);
        CHECK(vblk_do(q, types[i], UINT64_MAX / 512 + 1, smoke.in, 512) ==
              VIRTIO_BLK_S_IOERR);
    }
    CHECK(vblk_do(q, VIRTIO_BLK_T_IN, end - 1, smoke.in, 512) ==
          VIRTIO_BLK_S_OK);
}

static void a_length_that_is_no_multiple_of_512_gets_an_error(void)
{
    CHECK(smoke_start(0));
    CHECK(vblk_do(first_queue(), VIRTIO_BLK_T_IN, 0, smoke.in, 513) ==
          VIRTIO_BLK_S_IOERR);
    CHECK(vblk_do(first_queue(), VIRTIO_BLK_T_IN, 0, smoke.in, 100) ==
          VIRTIO_BLK_S_IOERR);
}

static void an_unknown_request_type_is_unsupported(void)
{
    static const uint32_t types[] = { 6, 20, 100, 0x12345678, 0x7ffffffe };

    CHECK(smoke_start(0));
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        CHECK(vblk_do(first_queue(), types[i], 0, smoke.out, 512) ==
              VIRTIO_BLK_S_UNSUPP);
    }
}

static void a_read_only_disk_refuses_writes_but_flushes(void)
{
    const VirtioBlkRange range = { 0, 8, 0 };

    SKIP_IF(!smoke.read_only, "the disk is writable");
    for (int i = 0; i < 2; i++) {
        CHECK(smoke_start(i ? VIRTIO_BLK_F_RO : 0));
        CHECK(vblk_do(first_queue(), VIRTIO_BLK_T_OUT, 0, smoke.out, 512) ==
              VIRTIO_BLK_S_IOERR);
        CHECK(do_range(VIRTIO_BLK_T_WRITE_ZEROES, &range, 1) !=
              VIRTIO_BLK_S_OK);
        CHECK(do_range(VIRTIO_BLK_T_DISCARD, &range, 1) != VIRTIO_BLK_S_OK);
        CHECK(vblk_do(first_queue(), VIRTIO_BLK_T_IN, 0, smoke.in, 512) ==
              VIRTIO_BLK_S_OK);
        if (smoke.offered & VIRTIO_BLK_F_FLUSH) {
            CHECK(vblk_do(first_queue(), VIRTIO_BLK_T_FLUSH, 0, NULL, 0) ==
                  VIRTIO_BLK_S_OK);
        }
    }
}

static void queues_work_with_a_vector_each(void)
{
    const VblkSetup setup = {
        .features = VIRTIO_F_EVENT_IDX | VIRTIO_BLK_F_MQ,
        .nb_queues = smoke.nb_queues,
        .interrupts = true,
    };

    CHECK(smoke_start_with(&setup));
    for (uint32_t i = 0; i < 2000; i++) {
        CHECK(vblk_do(&smoke.disk.queues[i % smoke.nb_queues],
                      VIRTIO_BLK_T_IN, i, smoke.in, 4096) == VIRTIO_BLK_S_OK);
    }
}

/* One processor for each queue; what they count is checked afterwards. */
typedef struct {
    VblkQueue *queue;
    uint8_t *buffer;
    uint32_t nb_ok;
} Driver;

#define DRIVER_REQUESTS 2000

static void drive(void *arg)
{
    Driver *d = arg;

    while (d->nb_ok < DRIVER_REQUESTS &&
           vblk_do(d->queue, VIRTIO_BLK_T_IN, d->nb_ok % 1000, d->buffer,
                   4096) == VIRTIO_BLK_S_OK) {
        d->nb_ok++;
    }
}

static void queues_are_driven_by_several_processors(void)
{
    static Driver drivers[MAX_CPUS];
    uint32_t nb_cpus = (uint32_t)arg_u64("cpus", 1, 1, MAX_CPUS);
    uint64_t start;

    nb_cpus = nb_cpus > smoke.nb_queues ? smoke.nb_queues : nb_cpus;
    SKIP_IF(nb_cpus < 2, "one processor (cpus=) or one queue");
    CHECK(smoke_start(0));
    CHECK(smp_start(nb_cpus) == nb_cpus);
    for (uint32_t i = 0; i < nb_cpus; i++) {
        drivers[i] = (Driver){ .queue = &smoke.disk.queues[i],
                               .buffer = smoke.in + i * 4096 };
        if (i > 0) {
            smp_call(i, drive, &drivers[i]);
        }
    }
    drive(&drivers[0]);
    start = cpu_rdtsc();
    for (uint32_t i = 0; i < nb_cpus; i++) {
        while (i > 0 && !smp_is_idle(i)) {
            CHECK(cpu_rdtsc() - start < tsc_from_ms(20000));
            cpu_pause();
        }
        CHECK(drivers[i].nb_ok == DRIVER_REQUESTS);
    }
}

const TapCase smoke_request_cases[] = {
    TAP_CASE(what_is_written_is_read_back_on_every_queue),
    TAP_CASE(what_one_queue_writes_another_reads),
    TAP_CASE(every_slot_of_every_queue_can_be_in_flight),
    TAP_CASE(every_slot_works_with_indirect_descriptors),
    TAP_CASE(every_slot_works_without_the_event_index),
    TAP_CASE(indexes_pass_65536_and_go_on),
    TAP_CASE(used_length_counts_data_and_status),
    TAP_CASE(descriptors_may_be_cut_anywhere),
    TAP_CASE(header_and_data_may_share_a_descriptor),
    TAP_CASE(flush_succeeds_on_every_queue),
    TAP_CASE(the_cache_mode_can_be_changed_while_running),
    TAP_CASE(discard_succeeds),
    TAP_CASE(write_zeroes_leaves_zeroes_and_nothing_else),
    TAP_CASE(write_zeroes_takes_several_ranges),
    TAP_CASE(bad_discards_and_zeroings_are_refused),
    TAP_CASE(requests_past_the_end_get_an_error),
    TAP_CASE(a_length_that_is_no_multiple_of_512_gets_an_error),
    TAP_CASE(an_unknown_request_type_is_unsupported),
    TAP_CASE(a_read_only_disk_refuses_writes_but_flushes),
    TAP_CASE(queues_work_with_a_vector_each),
    TAP_CASE(queues_are_driven_by_several_processors),
};
const size_t smoke_nb_request_cases =
    sizeof(smoke_request_cases) / sizeof(smoke_request_cases[0]);
