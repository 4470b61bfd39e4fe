/*
 * blk-smoke - does a virtio-blk device do what it should, and survive what it
 * should not be asked
 *
 * Command line (all optional): queues=N, cpus=N, serial=TEXT, size=BYTES are
 * what the VMM was told, and are checked; vmm=qemu where the VMM is QEMU;
 * transport=pci|mmio (default pci); irq=on has every case that does not say
 * otherwise wait for interrupts instead of polling; packed=on has them use
 * packed rings;
 * disk=N, bars=reassign, tsc_khz=N as for blk-perf; only=PART of a case's name.
 *
 * The disk is written to.  Results are TAP; the machine is reset at the end.
 */
#include "guest-tests/payload/blk-smoke.h"

#include "guest-tests/lib/args.h"
#include "guest-tests/lib/boot.h"
#include "guest-tests/lib/console.h"
#include "guest-tests/lib/str.h"
#include "guest-tests/lib/tsc.h"

#define PAGE_BYTES       4096
#define WORKS_LEN_BYTES  8192
#define MIN_DISK_SECTORS 8192

Smoke smoke;

bool smoke_start_with(const VblkSetup *setup)
{
    VblkSetup own = *setup;
    const char *problem;

    own.features |= smoke.packed ? VIRTIO_F_RING_PACKED : 0;
    problem = vblk_start(&smoke.disk, &own);

    if (problem) {
        harness_note("%s", problem);
    }
    return problem == NULL;
}

#define EVERY_FEATURE                                                                              \
    (VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | VIRTIO_BLK_F_SEG_MAX | VIRTIO_BLK_F_SIZE_MAX |  \
     VIRTIO_BLK_F_RO | VIRTIO_BLK_F_BLK_SIZE | VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_TOPOLOGY |        \
     VIRTIO_BLK_F_CONFIG_WCE | VIRTIO_BLK_F_MQ | VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES)

static bool start(uint64_t features)
{
    const VblkSetup setup = {
        .features = features,
        .nb_queues = smoke.nb_queues,
        .interrupts = smoke.irq,
    };

    return smoke_start_with(&setup);
}

bool smoke_start(uint64_t without)
{
    return start(EVERY_FEATURE & ~without);
}

bool smoke_start_plus(uint64_t more)
{
    return start(EVERY_FEATURE | more);
}

void smoke_need_split(const char *what)
{
    TEST_SKIP_IF(smoke.packed, "packed rings have no %s", what);
}

void smoke_need_packed(void)
{
    TEST_SKIP_IF(!smoke.packed, "of packed rings alone");
}

VpciDevice *smoke_pci(void)
{
    TEST_SKIP_IF(smoke.disk.dev.transport != VDEV_PCI, "of virtio-pci alone");
    return &smoke.disk.dev.pci;
}

void smoke_fill(uint8_t *p, uint32_t len_bytes, uint32_t seed)
{
    uint32_t x = seed * 2654435761u + 1;

    for (uint32_t i = 0; i < len_bytes; i++) {
        x = x * 1664525u + 1013904223u;
        p[i] = (uint8_t)(x >> 24);
    }
}

bool smoke_is_filled(const uint8_t *p, uint32_t len_bytes, uint32_t seed)
{
    uint32_t x = seed * 2654435761u + 1;

    for (uint32_t i = 0; i < len_bytes; i++) {
        x = x * 1664525u + 1013904223u;
        if (p[i] != (uint8_t)(x >> 24)) {
            harness_note("byte %u is %02x, not %02x", i, p[i], x >> 24);
            return false;
        }
    }
    return true;
}

bool smoke_is_all(const uint8_t *p, uint32_t len_bytes, uint8_t byte)
{
    for (uint32_t i = 0; i < len_bytes; i++) {
        if (p[i] != byte) {
            harness_note("byte %u is %02x, not %02x", i, p[i], byte);
            return false;
        }
    }
    return true;
}

bool smoke_round_trip(VblkQueue *q, uint64_t sector, uint32_t len_bytes, uint32_t seed)
{
    int status;

    smoke_fill(smoke.out, len_bytes, seed);
    memset(smoke.in, 0, len_bytes);
    status = vblk_do(q, VIRTIO_BLK_T_OUT, sector, smoke.out, len_bytes);
    if (status != VIRTIO_BLK_S_OK) {
        harness_note("queue %u: write has status %d", q->ring.index, status);
        return false;
    }
    status = vblk_do(q, VIRTIO_BLK_T_IN, sector, smoke.in, len_bytes);
    if (status != VIRTIO_BLK_S_OK) {
        harness_note("queue %u: read has status %d", q->ring.index, status);
        return false;
    }
    return smoke_is_filled(smoke.in, len_bytes, seed);
}

bool smoke_works(void)
{
    if (!smoke_start(0)) {
        return false;
    }
    for (uint16_t i = 0; i < smoke.nb_queues; i++) {
        VblkQueue *q = &smoke.disk.queues[i];
        bool ok;

        if (smoke.read_only) {
            ok = vblk_do(q, VIRTIO_BLK_T_IN, 0, smoke.in, WORKS_LEN_BYTES) == VIRTIO_BLK_S_OK;
        } else {
            ok = smoke_round_trip(q, 16u * i, WORKS_LEN_BYTES, i + 77u);
        }
        if (!ok) {
            return false;
        }
    }
    return true;
}

void smoke_offer_chain(VblkQueue *q, const VringDesc *descs, uint16_t nb_descs)
{
    for (uint16_t i = 0; i < nb_descs; i++) {
        bool last = i + 1 == nb_descs;
        uint16_t flags = descs[i].flags | (last ? 0 : VRING_DESC_F_NEXT);

        if (smoke.packed) {
            vring_packed_put(&q->ring.packed, descs[i].addr, descs[i].len, flags, 0);
        } else {
            vring_set_desc(&q->ring, i, descs[i].addr, descs[i].len, flags,
                           last ? 0 : (uint16_t)(i + 1));
        }
    }
    if (smoke.packed) {
        vring_packed_chain(&q->ring.packed, 0, nb_descs);
    } else {
        vring_offer(&q->ring, 0);
    }
    vring_publish(&q->ring);
}

Outcome smoke_outcome(VblkQueue *q, uint32_t *ret_used_len_bytes)
{
    uint64_t start = cpu_rdtsc();
    uint32_t head;

    do {
        bool taken = vring_take(&q->ring, &head, ret_used_len_bytes);

        /* A device that found the ring broken still completes what it had taken before. */
        if (vdev_get_status(&smoke.disk.dev) & VIRTIO_STATUS_NEEDS_RESET) {
            return OUTCOME_NEEDS_RESET;
        }
        if (taken) {
            vring_taken_all(&q->ring);
            return OUTCOME_COMPLETED;
        }
        cpu_pause();
    } while (cpu_rdtsc() - start < tsc_from_ms(SMOKE_WAIT_MS));
    return OUTCOME_SILENCE;
}

static void prepare(void)
{
    VdevTransport transport = arg_is("transport", "mmio") ? VDEV_MMIO : VDEV_PCI;

    smoke.nth = (unsigned)arg_u64("disk", 0, 0, 255);
    smoke.qemu = arg_is("vmm", "qemu");
    smoke.irq = arg_is("irq", "on");
    smoke.packed = arg_is("packed", "on");
    if (!vblk_open(&smoke.disk, transport, smoke.nth, arg_is("bars", "reassign"))) {
        con_printf("Bail out! no virtio-blk device on this transport\n");
        con_reset_machine();
    }
    smoke.offered = vdev_get_features(&smoke.disk.dev);
    if (smoke.packed && !(smoke.offered & VIRTIO_F_RING_PACKED)) {
        con_printf("Bail out! packed=on, but no packed rings are offered\n");
        con_reset_machine();
    }
    smoke.read_only = smoke.offered & VIRTIO_BLK_F_RO;
    smoke.nb_queues = smoke.disk.max_queues;
    if (smoke.nb_queues == 0 || smoke.nb_queues > VBLK_MAX_QUEUES ||
        smoke.disk.capacity_sectors < MIN_DISK_SECTORS) {
        con_printf("Bail out! %u queues, %lu sectors: not a disk to test\n", smoke.nb_queues,
                   smoke.disk.capacity_sectors);
        con_reset_machine();
    }
    smoke.out = mem_alloc(SMOKE_BUFFER_BYTES, PAGE_BYTES);
    smoke.in = mem_alloc(SMOKE_BUFFER_BYTES, PAGE_BYTES);
    harness_note("features %lx, %u queues, %lu sectors, tsc %lu kHz", smoke.offered,
                 smoke.nb_queues, smoke.disk.capacity_sectors, boot_info.tsc_khz);
}

void payload_main(void)
{
    harness_run(prepare);
}
