/*
 * ring-driver.c - the driver's side, as the specification tells a driver to do it
 */
#include "virtio/tests/ring-driver.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* --- guest memory --- */

void guest_init(Guest *guest, uint64_t ram_bytes)
{
    guest->fd = memfd_create("guest", MFD_CLOEXEC);
    assert(guest->fd >= 0 && ftruncate(guest->fd, (off_t)ram_bytes) == 0);
    guest->ram = mmap(NULL, ram_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, guest->fd, 0);
    assert(guest->ram != MAP_FAILED);
    guest->ram_bytes = ram_bytes;
    guest->next_gpa = GUEST_BASE_GPA;
    gm_init(&guest->gm);
    int ret = gm_add(&guest->gm, GUEST_BASE_GPA, ram_bytes, guest->ram, NULL);

    assert(ret == 0);
}

void guest_finish(Guest *guest)
{
    gm_finish(&guest->gm);
    munmap(guest->ram, guest->ram_bytes);
    close(guest->fd);
}

void guest_rewind(Guest *guest)
{
    guest->next_gpa = GUEST_BASE_GPA;
}

uint64_t guest_alloc(Guest *guest, uint64_t len_bytes, uint64_t align_bytes)
{
    uint64_t gpa = ALIGN_UP(guest->next_gpa, align_bytes);

    guest->next_gpa = gpa + len_bytes;
    assert(guest->next_gpa <= GUEST_BASE_GPA + guest->ram_bytes);
    return gpa;
}

void *guest_ptr(const Guest *guest, uint64_t gpa)
{
    assert(gpa - GUEST_BASE_GPA < guest->ram_bytes);
    return guest->ram + (gpa - GUEST_BASE_GPA);
}

/* --- main context and transport --- */

AioContext *guest_main_context(Error *err)
{
    AioContext *ctx = aio_context_create("main", NULL, err);

    if (ctx) {
        aio_context_enter(ctx);
        aio_context_set_main(ctx);
    }
    return ctx;
}

bool guest_wants_packed(void)
{
    const char *name = getenv("TEST_RING");

    return name && strcmp(name, "packed") == 0;
}

static int attach_doorbell(void *opaque, unsigned index, EventNotifier *en)
{
    GuestTransport *transport = opaque;

    if (transport->attach_result == 0) {
        transport->nb_attached++;
    }
    return transport->attach_result;
}

static void detach_doorbell(void *opaque, unsigned index, EventNotifier *en)
{
    GuestTransport *transport = opaque;

    assert(transport->nb_attached > 0);
    transport->nb_attached--;
}

static void notify_queue(void *opaque, unsigned index)
{
    GuestTransport *transport = opaque;

    atomic_fetch_add(&transport->queue_interrupts[index], 1);
}

static void notify_config(void *opaque)
{
    GuestTransport *transport = opaque;

    transport->config_interrupts++;
}

static const VirtioTransportOps guest_transport_ops = {
    .attach_doorbell = attach_doorbell,
    .detach_doorbell = detach_doorbell,
    .notify_queue = notify_queue,
    .notify_config = notify_config,
};

void guest_transport_init(GuestTransport *transport, VirtioDevice *vdev)
{
    memset(transport, 0, sizeof(*transport));
    vdev_set_transport(vdev, &guest_transport_ops, transport);
}

/* --- control --- */

typedef struct ControlCall {
    VirtioDevice *vdev;
    VirtQueue *vq;
    AioContext *ctx;
    uint64_t value;
    size_t offset, len_bytes;
    const void *data;
    int ret;
} ControlCall;

static void set_status_entry(void *opaque)
{
    ControlCall *call = opaque;

    assert_in_coroutine();
    vdev_co_set_status(call->vdev, (uint8_t)call->value);
}

void dev_set_status(VirtioDevice *vdev, uint8_t status)
{
    ControlCall call = { .vdev = vdev, .value = status };

    aio_co_run_sync(aio_main(), set_status_entry, &call);
}

static void write_features_entry(void *opaque)
{
    ControlCall *call = opaque;

    assert_in_coroutine();
    vdev_co_driver_features_write(call->vdev, 0, (uint32_t)call->value);
    vdev_co_driver_features_write(call->vdev, 1, (uint32_t)(call->value >> 32));
}

void dev_write_features(VirtioDevice *vdev, uint64_t features)
{
    ControlCall call = { .vdev = vdev, .value = features };

    aio_co_run_sync(aio_main(), write_features_entry, &call);
}

static void enable_queue_entry(void *opaque)
{
    ControlCall *call = opaque;

    assert_in_coroutine();
    vdev_co_queue_enable(call->vdev, call->vq);
}

void dev_enable_queue(VirtioDevice *vdev, unsigned index)
{
    ControlCall call = { .vdev = vdev, .vq = vdev_queue(vdev, index) };

    aio_co_run_sync(aio_main(), enable_queue_entry, &call);
}

static void reset_queue_entry(void *opaque)
{
    ControlCall *call = opaque;

    assert_in_coroutine();
    vdev_co_queue_reset(call->vdev, call->vq);
}

void dev_reset_queue(VirtioDevice *vdev, unsigned index)
{
    ControlCall call = { .vdev = vdev, .vq = vdev_queue(vdev, index) };

    aio_co_run_sync(aio_main(), reset_queue_entry, &call);
}

static void move_queue_entry(void *opaque)
{
    ControlCall *call = opaque;

    assert_in_coroutine();
    call->ret = vdev_co_move_queue(call->vdev, call->vq->index, call->ctx);
}

int dev_move_queue(VirtioDevice *vdev, unsigned index, AioContext *ctx)
{
    ControlCall call = { .vdev = vdev, .vq = vdev_queue(vdev, index), .ctx = ctx };

    aio_co_run_sync(aio_main(), move_queue_entry, &call);
    return call.ret;
}

static void write_config_entry(void *opaque)
{
    ControlCall *call = opaque;

    assert_in_coroutine();
    vdev_co_config_write(call->vdev, call->offset, call->data, call->len_bytes);
}

void dev_write_config(VirtioDevice *vdev, size_t offset, const void *data, size_t len_bytes)
{
    ControlCall call = { .vdev = vdev, .offset = offset, .data = data, .len_bytes = len_bytes };

    aio_co_run_sync(aio_main(), write_config_entry, &call);
}

bool dev_negotiate(VirtioDevice *vdev, uint64_t features)
{
    uint8_t status = VIRTIO_CONFIG_S_ACKNOWLEDGE;

    dev_set_status(vdev, 0);
    dev_set_status(vdev, status);
    dev_set_status(vdev, status |= VIRTIO_CONFIG_S_DRIVER);
    dev_write_features(vdev, features);
    dev_set_status(vdev, status |= VIRTIO_CONFIG_S_FEATURES_OK);
    return vdev_status(vdev) & VIRTIO_CONFIG_S_FEATURES_OK;
}

void dev_driver_ok(VirtioDevice *vdev)
{
    dev_set_status(vdev, vdev_status(vdev) | VIRTIO_CONFIG_S_DRIVER_OK);
}

void dev_settle(void)
{
    for (int i = 0; i < 1000 && aio_poll(aio_main(), false); i++) {
    }
}

/* --- the ring --- */

void ring_place(RingDriver *ring, Guest *guest, uint16_t size)
{
    size_t desc_bytes = sizeof(struct vring_desc) * size;
    size_t avail_bytes = sizeof(struct vring_avail) + sizeof(uint16_t) * (size + 1u);
    size_t used_bytes =
        sizeof(struct vring_used) + sizeof(struct vring_used_elem) * size + sizeof(uint16_t);

    memset(ring, 0, sizeof(*ring));
    ring->guest = guest;
    ring->size = size;
    ring->desc_gpa = guest_alloc(guest, desc_bytes, 64);
    ring->avail_gpa = guest_alloc(guest, avail_bytes, 64);
    ring->used_gpa = guest_alloc(guest, used_bytes, 64);
    ring->desc = guest_ptr(guest, ring->desc_gpa);
    ring->avail = guest_ptr(guest, ring->avail_gpa);
    ring->used = guest_ptr(guest, ring->used_gpa);
    memset(ring->desc, 0, desc_bytes);
    memset(ring->avail, 0, avail_bytes);
    memset(ring->used, 0, used_bytes);
    ring->next_free = calloc(size, sizeof(*ring->next_free));
    for (unsigned i = 0; i < size; i++) {
        ring->next_free[i] = (uint16_t)(i + 1);
    }
    ring->nb_free = size;
}

void ring_set_features(RingDriver *ring, uint64_t features)
{
    ring->event_idx = features & FEATURE(VIRTIO_RING_F_EVENT_IDX);
    ring->is_packed = features & FEATURE(VIRTIO_F_RING_PACKED);
    if (ring->is_packed && !ring->packed.desc) {
        ring_packed_init(&ring->packed, ring->desc, ring->avail, ring->used, ring->size);
    }
}

void ring_init(RingDriver *ring, Guest *guest, VirtioDevice *vdev, unsigned index, uint16_t size)
{
    ring_place(ring, guest, size);
    ring_set_features(ring,
                      vdev_status(vdev) & VIRTIO_CONFIG_S_FEATURES_OK ? vdev->driver_features : 0);
    ring->vdev = vdev;
    ring->vq = vdev_queue(vdev, index);
    ring->index = index;
    vdev_queue_set_size(vdev, ring->vq, size);
    for (int high = 0; high <= 1; high++) {
        vdev_queue_set_address(vdev, ring->vq, VQ_RING_DESC, high,
                               (uint32_t)(ring->desc_gpa >> (32 * high)));
        vdev_queue_set_address(vdev, ring->vq, VQ_RING_AVAIL, high,
                               (uint32_t)(ring->avail_gpa >> (32 * high)));
        vdev_queue_set_address(vdev, ring->vq, VQ_RING_USED, high,
                               (uint32_t)(ring->used_gpa >> (32 * high)));
    }
}

void ring_finish(RingDriver *ring)
{
    free(ring->next_free);
    ring_packed_finish(&ring->packed);
}

void ring_write_desc(void *desc, uint64_t gpa, uint32_t len, uint16_t flags, uint16_t next)
{
    struct vring_desc value = {
        .addr = htole64(gpa), .len = htole32(len), .flags = htole16(flags), .next = htole16(next)
    };

    memcpy(desc, &value, sizeof(value));
}

void ring_set_desc(RingDriver *ring, unsigned i, uint64_t gpa, uint32_t len, uint16_t flags,
                   uint16_t next)
{
    ring_write_desc(&ring->desc[i], gpa, len, flags, next);
}

/* A descriptor, or of a packed ring an id with @nb slots. */
static uint16_t take_free(RingDriver *ring, unsigned nb)
{
    uint16_t i = ring->free_head;

    assert(ring->nb_free >= nb);
    ring->nb_free -= (uint16_t)nb;
    ring->free_head = ring->next_free[i];
    return i;
}

static uint16_t buf_flags(const RingBuf *bufs, unsigned nb_bufs, unsigned i)
{
    return (bufs[i].writable ? VRING_DESC_F_WRITE : 0) | (i + 1 < nb_bufs ? VRING_DESC_F_NEXT : 0);
}

static uint16_t packed_add(RingDriver *ring, const RingBuf *bufs, unsigned nb_bufs)
{
    uint16_t id = take_free(ring, nb_bufs);

    for (unsigned b = 0; b < nb_bufs; b++) {
        ring_packed_put(&ring->packed, bufs[b].gpa, bufs[b].len, buf_flags(bufs, nb_bufs, b), id);
    }
    ring->packed.nb_slots[id] = (uint16_t)nb_bufs;
    ring->avail_idx++;
    return id;
}

uint16_t ring_add(RingDriver *ring, const RingBuf *bufs, unsigned nb_bufs)
{
    if (ring->is_packed) {
        return packed_add(ring, bufs, nb_bufs);
    }
    uint16_t head = take_free(ring, 1), i = head;

    for (unsigned b = 0; b < nb_bufs; b++) {
        bool last = b + 1 == nb_bufs;
        uint16_t next = last ? 0 : take_free(ring, 1);

        ring_set_desc(ring, i, bufs[b].gpa, bufs[b].len, buf_flags(bufs, nb_bufs, b), next);
        if (!last) {
            i = next;
        }
    }
    ring_offer(ring, head);
    return head;
}

static uint16_t packed_add_indirect(RingDriver *ring, uint64_t table_gpa, const RingBuf *bufs,
                                    unsigned nb_bufs)
{
    struct vring_packed_desc *table = guest_ptr(ring->guest, table_gpa);
    uint16_t id = take_free(ring, 1);

    for (unsigned b = 0; b < nb_bufs; b++) {
        ring_packed_write_desc(&table[b], bufs[b].gpa, bufs[b].len,
                               bufs[b].writable ? VRING_DESC_F_WRITE : 0, 0);
    }
    ring_packed_put(&ring->packed, table_gpa, nb_bufs * (uint32_t)sizeof(*table),
                    VRING_DESC_F_INDIRECT, id);
    ring->packed.nb_slots[id] = 1;
    ring->avail_idx++;
    return id;
}

uint16_t ring_add_indirect(RingDriver *ring, uint64_t table_gpa, const RingBuf *bufs,
                           unsigned nb_bufs)
{
    if (ring->is_packed) {
        return packed_add_indirect(ring, table_gpa, bufs, nb_bufs);
    }
    struct vring_desc *table = guest_ptr(ring->guest, table_gpa);
    uint16_t head = take_free(ring, 1);

    for (unsigned b = 0; b < nb_bufs; b++) {
        ring_write_desc(&table[b], bufs[b].gpa, bufs[b].len, buf_flags(bufs, nb_bufs, b),
                        (uint16_t)(b + 1));
    }
    ring_set_desc(ring, head, table_gpa, nb_bufs * (uint32_t)sizeof(*table), VRING_DESC_F_INDIRECT,
                  0);
    ring_offer(ring, head);
    return head;
}

void ring_free(RingDriver *ring, uint16_t head)
{
    if (ring->is_packed) {
        ring->next_free[head] = ring->free_head;
        ring->free_head = head;
        ring->nb_free += ring->packed.nb_slots[head];
        return;
    }
    for (uint16_t i = head;;) {
        uint16_t flags = le16toh(ring->desc[i].flags), next = le16toh(ring->desc[i].next);

        ring->next_free[i] = ring->free_head;
        ring->free_head = i;
        ring->nb_free++;
        if (!(flags & VRING_DESC_F_NEXT)) {
            return;
        }
        i = next;
    }
}

void ring_offer(RingDriver *ring, uint16_t head)
{
    __atomic_store_n(&ring->avail->ring[ring->avail_idx % ring->size], htole16(head),
                     __ATOMIC_RELAXED);
    ring->avail_idx++;
}

void ring_publish_index(RingDriver *ring, uint16_t idx)
{
    __atomic_store_n(&ring->avail->idx, htole16(idx), __ATOMIC_RELEASE);
}

void ring_publish(RingDriver *ring)
{
    if (ring->is_packed) {
        ring_packed_publish(&ring->packed);
        return;
    }
    ring_publish_index(ring, ring->avail_idx);
}

uint16_t ring_avail_event(const RingDriver *ring)
{
    const uint16_t *event = (const uint16_t *)&ring->used->ring[ring->size];

    return le16toh(__atomic_load_n(event, __ATOMIC_RELAXED));
}

bool ring_wants_kick(RingDriver *ring)
{
    uint16_t old = ring->avail_kicked;

    if (ring->is_packed) {
        return ring_packed_wants_kick(&ring->packed, ring->event_idx);
    }
    ring->avail_kicked = ring->avail_idx;
    __sync_synchronize();
    if (ring->event_idx) {
        return vring_need_event(ring_avail_event(ring), ring->avail_idx, old);
    }
    return !(le16toh(__atomic_load_n(&ring->used->flags, __ATOMIC_RELAXED)) &
             VRING_USED_F_NO_NOTIFY);
}

void ring_kick(RingDriver *ring)
{
    event_notifier_set(&ring->vq->doorbell);
}

uint16_t ring_used_index(const RingDriver *ring)
{
    if (ring->is_packed) {
        return (uint16_t)(ring->used_seen + ring_packed_nb_used(&ring->packed));
    }
    return le16toh(__atomic_load_n(&ring->used->idx, __ATOMIC_ACQUIRE));
}

bool ring_next_used(RingDriver *ring, uint32_t *ret_head, uint32_t *ret_len)
{
    if (ring->is_packed) {
        bool any = ring_packed_next_used(&ring->packed, ret_head, ret_len);

        ring->used_seen += any;
        return any;
    }
    if (ring_used_index(ring) == ring->used_seen) {
        return false;
    }
    const struct vring_used_elem *entry = &ring->used->ring[ring->used_seen % ring->size];

    *ret_head = le32toh(__atomic_load_n(&entry->id, __ATOMIC_RELAXED));
    *ret_len = le32toh(__atomic_load_n(&entry->len, __ATOMIC_RELAXED));
    ring->used_seen++;
    return true;
}

static void packed_want_interrupt(RingDriver *ring, bool on)
{
    uint16_t flags = VRING_PACKED_EVENT_FLAG_DISABLE;

    if (on) {
        flags = ring->event_idx ? VRING_PACKED_EVENT_FLAG_DESC : VRING_PACKED_EVENT_FLAG_ENABLE;
    }
    ring_packed_set_event(&ring->packed, flags,
                          ring_packed_name(&ring->packed, ring->packed.next_used));
}

void ring_want_interrupt(RingDriver *ring, bool on)
{
    if (ring->is_packed) {
        packed_want_interrupt(ring, on);
    } else if (ring->event_idx) {
        ring_set_used_event(ring, (uint16_t)(ring->used_seen + (on ? 0 : 0x8000)));
    } else {
        __atomic_store_n(&ring->avail->flags, htole16(on ? 0 : VRING_AVAIL_F_NO_INTERRUPT),
                         __ATOMIC_RELAXED);
        __sync_synchronize();
    }
}

void ring_set_used_event(RingDriver *ring, uint16_t idx)
{
    __atomic_store_n(&ring->avail->ring[ring->size], htole16(idx), __ATOMIC_RELAXED);
    __sync_synchronize();
}
