/*
 * ring-fixture.h - one device with two queues, and the driver of the first, for the tests of rings
 *
 * Layer:     virtio/ tests
 * Threading: main context only.
 */
#ifndef VIRTIO_TESTS_RING_FIXTURE_H
#define VIRTIO_TESTS_RING_FIXTURE_H

#include "io/base/test.h"
#include "virtio/tests/test-device.h"

#define QUEUE_SIZE 16

extern TestDevice dev;
extern Guest guest;
extern RingDriver ring;
extern uint64_t buf_gpa; /* 64 KiB */

/* Ready to start: the map of memory may still be changed. VERSION_1 is negotiated, and packed
 * rings if this run of the program is meant for them or @features has them. */
void configure_with(uint64_t features, unsigned max_size, uint16_t size);
void configure(void); /* with INDIRECT_DESC, QUEUE_SIZE */
void start(void);
void begin_with(uint64_t features, unsigned max_size, uint16_t size); /* configure and start */
void begin(void);
void end(void);

bool broken(void);
void publish_and_kick(void);
/* A chain of one writable buffer of @len at the beginning of buf_gpa; its head. */
uint16_t add_small(uint32_t len);
void settle_broken(void); /* publish, kick, and expect_broken_until_reset() */

/* The device took nothing, said so, and goes on once it has been reset. */
void expect_broken_until_reset(void);
/* Starting what is configured fails; then end(). */
void expect_start_refused(void);

/* vq_co_stop() on the first queue. */
void stop_queue(void);

#define SEAM_UPPER (3 << 20) /* where in the RAM the two regions are */
#define SEAM_LOWER (2 << 20)
/* Start with two regions side by side in guest memory that are apart in ours; where they meet. */
uint64_t begin_with_seam(void);

/* Complete @nb requests of one descriptor in one pass; the number of interrupts that made. */
unsigned interrupts_for(unsigned nb);

#endif
