/*
 * limits.h - the bounds of everything that a guest's numbers drive
 *
 * Layer:     virtio/
 */
#ifndef VIRTIO_LIMITS_H
#define VIRTIO_LIMITS_H

#define VIRTIO_QUEUES_MAX 64   /* queues of a device */
#define VQ_SIZE_MAX       1024 /* largest ring this device offers */
#define VQ_ELEM_IOV_MAX   256  /* pieces of one chain; a longer one breaks the queue */
#define VQ_BATCH_MAX      64   /* chains taken in one call of a queue's handler */
#define VQ_PUBLISH_MAX    8    /* pushed elements that the driver is not yet told of */
#define VQ_REASON_BYTES   128  /* text of what the guest did wrong */

#define VHU_MEMORY_BYTES_MAX (1ull << 44) /* of a vhost-user client, in all its regions */
#define VHU_MEMORY_BYTES_ALL (1ull << 46) /* of all together; each has the same share */
#define VHU_LOG_BYTES_MAX    (1ull << 29) /* for as much guest memory as a client may have */

#define VIRTIO_CONFIG_BYTES_MAX 256 /* a device type's configuration structure */

#define VIRTIO_BLK_SEG_MAX_DEFAULT   126
#define VIRTIO_BLK_SEG_BYTES_MAX     (4u << 20) /* size_max offered */
#define VIRTIO_BLK_RANGES_MAX        32         /* discard or write-zeroes segments of a request */
#define VIRTIO_BLK_RANGE_SECTORS_MAX ((1u << 22) - 1) /* of such a segment; just under 2 GiB */

#endif
