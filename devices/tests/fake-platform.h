/*
 * fake-platform.h - a machine without KVM: two buses, a main context, and a recorder of what
 * devices ask for
 *
 * Layer:     devices/tests
 * Threading: the ops may be called from any thread; everything else from the test's main thread,
 *            which is the home of the main context. Guest accesses may come from there, too:
 *            register accesses that run in the main context then poll it themselves.
 * Lifetime:  fake_init() .. fake_finish(), which checks that devices gave everything back.
 */
#ifndef DEVICES_TESTS_FAKE_PLATFORM_H
#define DEVICES_TESTS_FAKE_PLATFORM_H

#include <pthread.h>

#include "devices/platform.h"
#include "io/base/test.h"

#define FAKE_GSIS      64
#define FAKE_ROUTES    256
#define FAKE_DOORBELLS 256
#define FAKE_MESSAGES  64

typedef struct FakeRoute {
    bool used;
    bool attached;
    int fd;
    uint64_t address;
    uint32_t data;
} FakeRoute;

typedef struct FakeDoorbell {
    uint64_t gpa;
    unsigned len_bytes;
    int64_t match;
    int fd;
} FakeDoorbell;

typedef struct FakeMessage {
    uint64_t address;
    uint32_t data;
} FakeMessage;

typedef struct FakePlatform {
    pthread_mutex_t lock; /* protects the fields below, up to messages */
    bool level[FAKE_GSIS];
    unsigned level_changes[FAKE_GSIS];
    int gsi_fd[FAKE_GSIS]; /* irqfd, -1 = none */
    FakeRoute routes[FAKE_ROUTES];
    FakeDoorbell doorbells[FAKE_DOORBELLS];
    unsigned nb_doorbells;
    unsigned doorbell_calls; /* attach and detach */
    unsigned events[3];      /* by PlatformEvent */
    FakeMessage messages[FAKE_MESSAGES];
    unsigned nb_messages;

    int fail_msi_attach;      /* 0 or what msi_attach returns */
    int fail_doorbell_attach; /* likewise */
    int routes_left;          /* msi_route_create fails when 0; -1 = no limit */
    bool discard_messages;    /* do not keep them: more than FAKE_MESSAGES will come */

    Bus pio, mmio;
    AioClock clock; /* runs from the beginning */
    Platform platform;
} FakePlatform;

void fake_init(FakePlatform *fake);
void fake_finish(FakePlatform *fake);

/* What the guest does. Writes to a doorbell signal it and go nowhere else, as KVM does it. */
uint64_t fake_in(FakePlatform *fake, uint16_t port, unsigned len_bytes);
void fake_out(FakePlatform *fake, uint16_t port, unsigned len_bytes, uint64_t value);
uint64_t fake_read(FakePlatform *fake, uint64_t gpa, unsigned len_bytes);
void fake_write(FakePlatform *fake, uint64_t gpa, unsigned len_bytes, uint64_t value);

/* Collect what attached routes were signalled; returns how many messages came since the last
 * call, which are then in `messages`. */
unsigned fake_take_messages(FakePlatform *fake);
/* The level of a GSI, from any thread. */
bool fake_level(FakePlatform *fake, unsigned gsi);
/* Whether the irqfd of @gsi was signalled since the last call. */
bool fake_take_edge(FakePlatform *fake, unsigned gsi);
/* Poll the main context until nothing moves any more; nothing in a vCPU's thread. */
void fake_settle(FakePlatform *fake);

/* Run fn(opaque) in a second thread, as a vCPU would, polling the main context until it is done. */
void fake_in_vcpu(FakePlatform *fake, void (*fn)(void *opaque), void *opaque);

#endif
