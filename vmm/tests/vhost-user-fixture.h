/*
 * vhost-user-fixture.h - a server, a client that is connected to it, and a request's memory
 *
 * Layer:     vmm/ tests
 * Threading: main thread. One fixture a test: each runs in a process of its own.
 */
#ifndef VMM_TESTS_VHOST_USER_FIXTURE_H
#define VMM_TESTS_VHOST_USER_FIXTURE_H

#include "io/base/test.h"
#include "virtio/tests/server-process.h"
#include "virtio/tests/vhost-user-client.h"

#define MIB         (1u << 20)
#define BLOCK_BYTES 4096u
#define DISK_BYTES  (16 * MIB)
#define NB_QUEUES   4
#define QUEUE_SIZE  64

extern ServerProcess server;
extern VfeClient client;
extern VfeSlot slot;

/* A server with NB_QUEUES queues; skips the test when @program is not there. */
void fixture_start(ServerProgram program, const char *disk, const char *options);
/* Memory and rings as @params say, with the numbers above where they say 0; connected, started. */
void fixture_connect(const VfeClientParams *params);
/* The client goes; the server must give back what it had of it, and end with status 0. */
void fixture_finish(void);

/* Write blocks with a pattern of @seed, and look whether they are there. */
void fixture_write(unsigned queue, unsigned block, uint32_t seed);
void fixture_expect(unsigned queue, unsigned block, uint32_t seed);
void fill_block(void *block, uint32_t seed);
bool block_is(const void *block, uint32_t seed);

/* Wait until the server has as many descriptors and shared mappings as without a client; it may
 * still be closing them. Fails the test when that does not come. */
void fixture_await_idle(void);

#endif
