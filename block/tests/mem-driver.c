/*
 * mem-driver.c - a disk in memory for tests
 */
#include "block/tests/mem-driver.h"

#include <limits.h>
#include <string.h>

#include "block/iov.h"
#include "io/base/test.h"

typedef struct ParkedOp {
    ListNode node;
    MemParked what;
    Coroutine *co;
} ParkedOp;

static const MemConfig *opening_config;
static MemDisk *opening_disk;

static MemDisk *disk_of(const BlockNode *node)
{
    return *(MemDisk **)node->state;
}

/* --- yields --- */

static void wake_bh(void *opaque)
{
    aio_co_wake(opaque);
}

static co_fn void yield_to_later_pass(void)
{
    aio_bh_schedule_oneshot(aio_current(), wake_bh, co_self());
    co_yield();
}

static co_fn void park(MemDisk *disk, MemOp op, uint64_t offset_bytes, uint64_t len_bytes)
{
    ParkedOp parked = { .what = { op, offset_bytes, len_bytes }, .co = co_self() };

    pthread_mutex_lock(&disk->lock);
    list_push_back(&disk->parked, &parked.node);
    pthread_mutex_unlock(&disk->lock);
    co_yield();
}

static ParkedOp *parked_at(MemDisk *disk, unsigned index)
{
    list_for_each(it, &disk->parked) {
        if (index-- == 0) {
            return list_entry(it, ParkedOp, node);
        }
    }
    return NULL;
}

unsigned mem_nb_parked(MemDisk *disk)
{
    unsigned nb = 0;

    pthread_mutex_lock(&disk->lock);
    list_for_each(it, &disk->parked) {
        nb++;
    }
    pthread_mutex_unlock(&disk->lock);
    return nb;
}

MemParked mem_parked(MemDisk *disk, unsigned index)
{
    ParkedOp *op;
    MemParked what;

    pthread_mutex_lock(&disk->lock);
    op = parked_at(disk, index);
    ASSERT_TRUE(op != NULL);
    what = op->what;
    pthread_mutex_unlock(&disk->lock);
    return what;
}

void mem_release(MemDisk *disk, unsigned index)
{
    ParkedOp *op;

    pthread_mutex_lock(&disk->lock);
    op = parked_at(disk, index);
    ASSERT_TRUE(op != NULL);
    list_remove(&op->node);
    pthread_mutex_unlock(&disk->lock);
    aio_co_wake(op->co);
}

void mem_release_all(MemDisk *disk)
{
    while (mem_nb_parked(disk) > 0) {
        mem_release(disk, 0);
    }
}

/* --- begin and end of each operation --- */

static co_fn int op_begin(MemDisk *disk, MemOp op, uint64_t offset_bytes, uint64_t len_bytes)
{
    int active = atomic_fetch_add(&disk->stats.active, 1) + 1;
    int max = atomic_load(&disk->stats.active_max);

    while (active > max && !atomic_compare_exchange_weak(&disk->stats.active_max, &max, active)) {
    }
    atomic_fetch_add(&disk->stats.ops[op], 1);
    if (atomic_load(&disk->yield) == MEM_YIELD_PARK) {
        park(disk, op, offset_bytes, len_bytes);
    } else if (atomic_load(&disk->yield) == MEM_YIELD_TWICE) {
        yield_to_later_pass();
    }
    if (disk->move_to) {
        aio_co_reschedule_self(disk->move_to);
    }
    if (atomic_load(&disk->fail_nth) > 0 && atomic_fetch_sub(&disk->fail_nth, 1) == 1) {
        return disk->fail_code;
    }
    return 0;
}

static void op_end(MemDisk *disk)
{
    atomic_fetch_sub(&disk->stats.active, 1);
}

static void check(MemDisk *disk, bool ok)
{
    if (!ok) {
        atomic_fetch_add(&disk->stats.violations, 1);
    }
}

static void check_range(const BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes)
{
    MemDisk *disk = disk_of(node);
    uint32_t a = node->limits.request_alignment;
    uint64_t end_bytes = ALIGN_UP(atomic_load(&node->length_bytes), (uint64_t)a);

    check(disk, len_bytes > 0);
    check(disk, offset_bytes % a == 0 && len_bytes % a == 0);
    check(disk, offset_bytes < end_bytes && len_bytes <= end_bytes - offset_bytes);
}

static void check_transfer(const BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                           const struct iovec *iov, int niov)
{
    MemDisk *disk = disk_of(node);
    const BlockLimits *l = &node->limits;

    check_range(node, offset_bytes, len_bytes);
    check(disk, len_bytes <= l->max_transfer_bytes);
    check(disk, niov > 0 && niov <= (int)l->max_iov);
    check(disk, iov_total(iov, niov) == len_bytes);
    for (int i = 0; i < niov; i++) {
        check(disk, (uintptr_t)iov[i].iov_base % l->buffer_alignment == 0);
        check(disk, iov[i].iov_len % l->request_alignment == 0);
    }
}

/* --- the driver --- */

/* A disk may be read while it is written: single bytes are whole, nothing more is promised. */
static void disk_read(const char *from, const struct iovec *iov, int niov)
{
    for (int i = 0; i < niov; i++) {
        char *to = iov[i].iov_base;

        for (size_t k = 0; k < iov[i].iov_len; k++) {
            to[k] = __atomic_load_n(from++, __ATOMIC_RELAXED);
        }
    }
}

static void disk_write(char *to, IovCursor *cur, uint64_t len_bytes)
{
    for (uint64_t k = 0; k < len_bytes; k++) {
        char byte;

        iov_cursor_read(cur, &byte, 1);
        __atomic_store_n(to + k, byte, __ATOMIC_RELAXED);
    }
}

static void disk_fill(char *to, char byte, uint64_t len_bytes)
{
    for (uint64_t k = 0; k < len_bytes; k++) {
        __atomic_store_n(to + k, byte, __ATOMIC_RELAXED);
    }
}

static int mem_driver_open(BlockNode *node, Opts *opts, Error *err)
{
    const MemConfig *config = opening_config;
    BlockLimits *l = &node->limits;

    *(MemDisk **)node->state = opening_disk;
    node->name = strdup("mem");
    if (node->cache == BLK_CACHE_AUTO) {
        node->cache = BLK_CACHE_NONE;
    }
    *l = config->limits;
    l->request_alignment = MAX(l->request_alignment, 1u);
    l->buffer_alignment = MAX(l->buffer_alignment, 1u);
    l->max_transfer_bytes = l->max_transfer_bytes ? l->max_transfer_bytes : 1u << 30;
    l->max_iov = l->max_iov ? l->max_iov : IOV_MAX;
    l->discard_alignment = MAX(l->discard_alignment, l->request_alignment);
    l->max_discard_bytes = l->max_discard_bytes ? l->max_discard_bytes : 1u << 30;
    l->max_write_zeroes_bytes = l->max_write_zeroes_bytes ? l->max_write_zeroes_bytes : 1u << 30;
    l->logical_block_bytes = l->physical_block_bytes = 512;
    atomic_store(&node->length_bytes, config->length_bytes);
    return 0;
}

static void mem_driver_close(BlockNode *node)
{
}

static co_fn int mem_co_preadv(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                               const struct iovec *iov, int niov, BlkFlags flags)
{
    MemDisk *disk = disk_of(node);
    int ret;

    check_transfer(node, offset_bytes, len_bytes, iov, niov);
    ret = op_begin(disk, MEM_READ, offset_bytes, len_bytes);
    if (ret == 0) {
        disk_read(disk->data + offset_bytes, iov, niov);
        if (atomic_load(&disk->yield) == MEM_YIELD_TWICE) {
            yield_to_later_pass();
        }
    }
    op_end(disk);
    return ret;
}

static co_fn int mem_co_pwritev(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                const struct iovec *iov, int niov, BlkFlags flags)
{
    MemDisk *disk = disk_of(node);
    IovCursor cur;
    int ret;

    check_transfer(node, offset_bytes, len_bytes, iov, niov);
    check(disk, !node->read_only);
    if (flags & BLK_FUA) {
        atomic_fetch_add(&disk->stats.fua, 1);
    }
    ret = op_begin(disk, MEM_WRITE, offset_bytes, len_bytes);
    if (ret == 0) {
        iov_cursor_init(&cur, iov, niov);
        disk_write(disk->data + offset_bytes, &cur, len_bytes / 2);
        if (atomic_load(&disk->yield) == MEM_YIELD_TWICE) {
            yield_to_later_pass();
        }
        disk_write(disk->data + offset_bytes + len_bytes / 2, &cur, len_bytes - len_bytes / 2);
    }
    op_end(disk);
    return ret;
}

static co_fn int mem_co_flush(BlockNode *node)
{
    MemDisk *disk = disk_of(node);
    int ret = op_begin(disk, MEM_FLUSH, 0, 0);

    op_end(disk);
    return ret;
}

static co_fn int mem_co_pdiscard(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes)
{
    MemDisk *disk = disk_of(node);
    const BlockLimits *l = &node->limits;
    int ret;

    check_range(node, offset_bytes, len_bytes);
    check(disk, offset_bytes % l->discard_alignment == 0 && len_bytes % l->discard_alignment == 0);
    check(disk, len_bytes <= l->max_discard_bytes);
    ret = op_begin(disk, MEM_DISCARD, offset_bytes, len_bytes);
    if (ret == 0) {
        disk_fill(disk->data + offset_bytes, (char)0xdd, len_bytes);
    }
    op_end(disk);
    return ret;
}

static co_fn int mem_no_pdiscard(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes)
{
    atomic_fetch_add(&disk_of(node)->stats.ops[MEM_DISCARD], 1);
    return -EOPNOTSUPP;
}

static co_fn int mem_co_pwrite_zeroes(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                      BlkFlags flags)
{
    MemDisk *disk = disk_of(node);
    int ret;

    check_range(node, offset_bytes, len_bytes);
    check(disk, len_bytes <= node->limits.max_write_zeroes_bytes);
    check(disk, (flags & ~(BLK_MAY_UNMAP | BLK_NO_FALLBACK)) == 0);
    if (flags & BLK_MAY_UNMAP) {
        atomic_fetch_add(&disk->stats.unmap, 1);
    }
    ret = op_begin(disk, MEM_ZEROES, offset_bytes, len_bytes);
    if (ret == 0) {
        disk_fill(disk->data + offset_bytes, 0, len_bytes);
    }
    op_end(disk);
    return ret;
}

static co_fn int mem_no_pwrite_zeroes(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                      BlkFlags flags)
{
    atomic_fetch_add(&disk_of(node)->stats.ops[MEM_ZEROES], 1);
    return -EOPNOTSUPP;
}

static co_fn int mem_co_truncate(BlockNode *node, uint64_t length_bytes, Error *err)
{
    MemDisk *disk = disk_of(node);
    uint64_t old_bytes = atomic_load(&node->length_bytes);
    int ret = op_begin(disk, MEM_TRUNCATE, length_bytes, 0);

    check(disk, atomic_load(&disk->stats.active) == 1);
    if (ret == 0 && length_bytes > disk->data_bytes) {
        ret = -ENOSPC;
    }
    if (ret < 0) {
        error_set(err, ret, "mem: no");
    } else {
        atomic_store(&disk->real_length_bytes, length_bytes);
        if (length_bytes > old_bytes) {
            disk_fill(disk->data + old_bytes, 0, length_bytes - old_bytes);
        }
    }
    op_end(disk);
    return ret;
}

static co_fn int mem_co_get_length(BlockNode *node, uint64_t *ret_length_bytes)
{
    *ret_length_bytes = atomic_load(&disk_of(node)->real_length_bytes);
    return 0;
}

/* Runs of equal kind: zeroes and others. */
static co_fn int mem_co_block_status(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                     uint64_t *ret_len_bytes)
{
    const char *data = disk_of(node)->data + offset_bytes;
    uint64_t len = 1;

    while (len < len_bytes && (data[len] == 0) == (data[0] == 0)) {
        len++;
    }
    *ret_len_bytes = len;
    return data[0] == 0 ? BLK_STATUS_ZERO : BLK_STATUS_DATA;
}

static const BlockDriver *make_driver(MemDisk *disk, const MemConfig *config)
{
    disk->driver = (BlockDriver){
        .name = "mem",
        .instance_bytes = sizeof(MemDisk *),
        .write_flags = config->honours_fua ? BLK_FUA : 0,
        .open = mem_driver_open,
        .close = mem_driver_close,
        .co_preadv = mem_co_preadv,
        .co_pwritev = mem_co_pwritev,
        .co_flush = mem_co_flush,
        .co_pdiscard = config->no_discard ? mem_no_pdiscard : mem_co_pdiscard,
        .co_pwrite_zeroes = config->no_zeroes ? mem_no_pwrite_zeroes : mem_co_pwrite_zeroes,
        .co_block_status = mem_co_block_status,
        .co_truncate = mem_co_truncate,
        .co_get_length = mem_co_get_length,
    };
    return &disk->driver;
}

void mem_open(MemDisk *disk, const MemConfig *config)
{
    Opts opts = { .what = "--disk" };
    Error err = { 0 };

    *disk = (MemDisk){ .fail_code = -EIO };
    pthread_mutex_init(&disk->lock, NULL);
    list_init(&disk->parked);
    /* Room for the whole last block; bytes past the length are as the driver makes them: 0. */
    disk->data_bytes = ALIGN_UP(config->length_bytes, (uint64_t)65536);
    disk->data = calloc(1, disk->data_bytes);
    atomic_store(&disk->real_length_bytes, config->length_bytes);
    ASSERT_TRUE(disk->data != NULL);

    if (config->options) {
        ASSERT_EQ(opts_parse(&opts, "--disk", config->options, NULL, &err), 0);
    }
    opening_config = config;
    opening_disk = disk;
    disk->node = bdrv_open_driver(make_driver(disk, config), &opts, &err);
    ASSERT_TRUE(disk->node != NULL);
    if (!config->no_backend) {
        disk->blk =
            blk_create("mem0", disk->node, blk_default_perm(disk->node), BLK_PERM_READ, &err);
        ASSERT_TRUE(disk->blk != NULL);
    }
    opts_finish(&opts);
}

int mem_close(MemDisk *disk)
{
    int ret = blk_close(disk->blk);

    bdrv_unref(disk->node);
    ASSERT_EQ(atomic_load(&disk->stats.active), 0);
    free(disk->data);
    pthread_mutex_destroy(&disk->lock);
    return ret;
}
