/*
 * fake-platform.c - see fake-platform.h
 */
#include "devices/tests/fake-platform.h"

/* eventfds of devices may be blocking: read only what is there */
static bool take_fd_signal(int fd)
{
    EventNotifier en = { .fd = fd };

    return event_notifier_test_and_clear(&en);
}

/* --- ops --- */

static void irq_set_level(void *opaque, unsigned gsi, bool level)
{
    FakePlatform *fake = opaque;

    pthread_mutex_lock(&fake->lock);
    ASSERT_LT(gsi, FAKE_GSIS);
    fake->level[gsi] = level;
    fake->level_changes[gsi]++;
    pthread_mutex_unlock(&fake->lock);
}

static int irqfd_attach_gsi(void *opaque, unsigned gsi, int fd)
{
    FakePlatform *fake = opaque;

    pthread_mutex_lock(&fake->lock);
    ASSERT_EQ(fake->gsi_fd[gsi], -1);
    fake->gsi_fd[gsi] = fd;
    pthread_mutex_unlock(&fake->lock);
    return 0;
}

static void irqfd_detach_gsi(void *opaque, unsigned gsi, int fd)
{
    FakePlatform *fake = opaque;

    pthread_mutex_lock(&fake->lock);
    ASSERT_EQ(fake->gsi_fd[gsi], fd);
    fake->gsi_fd[gsi] = -1;
    pthread_mutex_unlock(&fake->lock);
}

static int msi_route_create(void *opaque)
{
    FakePlatform *fake = opaque;
    int route = -ENOSPC;

    pthread_mutex_lock(&fake->lock);
    for (int i = 0; i < FAKE_ROUTES && fake->routes_left != 0; i++) {
        if (!fake->routes[i].used) {
            fake->routes[i] = (FakeRoute){ .used = true };
            fake->routes_left -= fake->routes_left > 0;
            route = i;
            break;
        }
    }
    pthread_mutex_unlock(&fake->lock);
    return route;
}

static void msi_route_destroy(void *opaque, int route)
{
    FakePlatform *fake = opaque;

    pthread_mutex_lock(&fake->lock);
    ASSERT_TRUE(fake->routes[route].used && !fake->routes[route].attached);
    fake->routes[route].used = false;
    pthread_mutex_unlock(&fake->lock);
}

/* Messages of a route go to where it points when they are collected, so collect before a change. */
static void collect_route(FakePlatform *fake, FakeRoute *route)
{
    if (route->attached && take_fd_signal(route->fd) && !fake->discard_messages) {
        ASSERT_LT(fake->nb_messages, FAKE_MESSAGES);
        fake->messages[fake->nb_messages++] = (FakeMessage){ route->address, route->data };
    }
}

static int msi_attach(void *opaque, int index, int fd, uint64_t address, uint32_t data)
{
    FakePlatform *fake = opaque;
    FakeRoute *route = &fake->routes[index];
    int ret = fake->fail_msi_attach;

    pthread_mutex_lock(&fake->lock);
    ASSERT_TRUE(route->used);
    ASSERT_TRUE(!route->attached || route->fd == fd);
    if (ret == 0) {
        collect_route(fake, route);
        *route = (FakeRoute){ true, true, fd, address, data };
        collect_route(fake, route);
    }
    pthread_mutex_unlock(&fake->lock);
    return ret;
}

static void msi_detach(void *opaque, int index, int fd)
{
    FakePlatform *fake = opaque;
    FakeRoute *route = &fake->routes[index];

    pthread_mutex_lock(&fake->lock);
    ASSERT_TRUE(route->attached && route->fd == fd);
    collect_route(fake, route);
    route->attached = false;
    pthread_mutex_unlock(&fake->lock);
}

static int find_doorbell(const FakePlatform *fake, const FakeDoorbell *wanted)
{
    for (unsigned i = 0; i < fake->nb_doorbells; i++) {
        const FakeDoorbell *bell = &fake->doorbells[i];

        if (bell->gpa == wanted->gpa && bell->len_bytes == wanted->len_bytes &&
            bell->match == wanted->match) {
            return (int)i;
        }
    }
    return -1;
}

static int doorbell_attach(void *opaque, uint64_t gpa, unsigned len_bytes, int64_t match, int fd)
{
    FakePlatform *fake = opaque;
    FakeDoorbell bell = { gpa, len_bytes, match, fd };

    ASSERT_TRUE(aio_current() == fake->platform.main);
    if (fake->fail_doorbell_attach < 0) {
        return fake->fail_doorbell_attach;
    }
    pthread_mutex_lock(&fake->lock);
    ASSERT_EQ(find_doorbell(fake, &bell), -1);
    ASSERT_LT(fake->nb_doorbells, FAKE_DOORBELLS);
    fake->doorbells[fake->nb_doorbells++] = bell;
    fake->doorbell_calls++;
    pthread_mutex_unlock(&fake->lock);
    return 0;
}

static void doorbell_detach(void *opaque, uint64_t gpa, unsigned len_bytes, int64_t match, int fd)
{
    FakePlatform *fake = opaque;
    FakeDoorbell bell = { gpa, len_bytes, match, fd };

    ASSERT_TRUE(aio_current() == fake->platform.main);
    pthread_mutex_lock(&fake->lock);
    int at = find_doorbell(fake, &bell);

    ASSERT_GE(at, 0);
    ASSERT_EQ(fake->doorbells[at].fd, fd);
    fake->doorbells[at] = fake->doorbells[--fake->nb_doorbells];
    fake->doorbell_calls++;
    pthread_mutex_unlock(&fake->lock);
}

static void platform_event(void *opaque, PlatformEvent event)
{
    FakePlatform *fake = opaque;

    pthread_mutex_lock(&fake->lock);
    fake->events[event]++;
    pthread_mutex_unlock(&fake->lock);
}

static const PlatformOps fake_ops = {
    .irq_set_level = irq_set_level,
    .irqfd_attach_gsi = irqfd_attach_gsi,
    .irqfd_detach_gsi = irqfd_detach_gsi,
    .msi_route_create = msi_route_create,
    .msi_route_destroy = msi_route_destroy,
    .msi_attach = msi_attach,
    .msi_detach = msi_detach,
    .doorbell_attach = doorbell_attach,
    .doorbell_detach = doorbell_detach,
    .event = platform_event,
};

/* --- life --- */

void fake_init(FakePlatform *fake)
{
    Error err = { 0 };
    AioContext *main_ctx = aio_context_create("main", NULL, &err);

    if (!main_ctx) {
        TEST_SKIP("no AioContext: %s", err.msg);
    }
    aio_context_enter(main_ctx);
    aio_context_set_main(main_ctx);
    *fake = (FakePlatform){ .routes_left = -1 };
    pthread_mutex_init(&fake->lock, NULL);
    for (unsigned i = 0; i < FAKE_GSIS; i++) {
        fake->gsi_fd[i] = -1;
    }
    ASSERT_EQ(bus_init(&fake->pio, "port"), 0);
    ASSERT_EQ(bus_init(&fake->mmio, "memory"), 0);
    aio_clock_init(&fake->clock);
    aio_clock_start(&fake->clock);
    fake->platform = (Platform){ .ops = &fake_ops,
                                 .opaque = fake,
                                 .pio = &fake->pio,
                                 .mmio = &fake->mmio,
                                 .main = main_ctx,
                                 .clock = &fake->clock };
}

void fake_finish(FakePlatform *fake)
{
    EXPECT_EQ(fake->pio.nb_ranges, 0);
    EXPECT_EQ(fake->mmio.nb_ranges, 0);
    EXPECT_EQ(fake->nb_doorbells, 0);
    for (unsigned i = 0; i < FAKE_ROUTES; i++) {
        EXPECT_FALSE(fake->routes[i].used);
    }
    for (unsigned i = 0; i < FAKE_GSIS; i++) {
        EXPECT_EQ(fake->gsi_fd[i], -1);
        EXPECT_FALSE(fake->level[i]);
    }
    bus_finish(&fake->pio);
    bus_finish(&fake->mmio);
    aio_context_set_main(NULL);
    aio_context_enter(NULL);
    aio_context_destroy(fake->platform.main);
    pthread_mutex_destroy(&fake->lock);
}

/* --- accesses --- */

uint64_t fake_in(FakePlatform *fake, uint16_t port, unsigned len_bytes)
{
    uint64_t value = 0;

    bus_read(&fake->pio, port, &value, len_bytes);
    return value;
}

void fake_out(FakePlatform *fake, uint16_t port, unsigned len_bytes, uint64_t value)
{
    bus_write(&fake->pio, port, &value, len_bytes);
}

uint64_t fake_read(FakePlatform *fake, uint64_t gpa, unsigned len_bytes)
{
    uint64_t value = 0;

    bus_read(&fake->mmio, gpa, &value, len_bytes);
    return value;
}

static bool ring_doorbell(FakePlatform *fake, uint64_t gpa, unsigned len_bytes, uint64_t value)
{
    EventNotifier en = { .fd = -1 };

    pthread_mutex_lock(&fake->lock);
    for (unsigned i = 0; i < fake->nb_doorbells; i++) {
        const FakeDoorbell *bell = &fake->doorbells[i];

        if (bell->gpa == gpa && (bell->len_bytes == 0 || bell->len_bytes == len_bytes) &&
            (bell->match < 0 || (uint64_t)bell->match == value)) {
            en.fd = bell->fd;
        }
    }
    pthread_mutex_unlock(&fake->lock);
    if (en.fd >= 0) {
        event_notifier_set(&en);
    }
    return en.fd >= 0;
}

void fake_write(FakePlatform *fake, uint64_t gpa, unsigned len_bytes, uint64_t value)
{
    if (!ring_doorbell(fake, gpa, len_bytes, value)) {
        bus_write(&fake->mmio, gpa, &value, len_bytes);
    }
}

unsigned fake_take_messages(FakePlatform *fake)
{
    unsigned nb_messages;

    pthread_mutex_lock(&fake->lock);
    for (unsigned i = 0; i < FAKE_ROUTES; i++) {
        collect_route(fake, &fake->routes[i]);
    }
    nb_messages = fake->nb_messages;
    fake->nb_messages = 0;
    pthread_mutex_unlock(&fake->lock);
    return nb_messages;
}

bool fake_level(FakePlatform *fake, unsigned gsi)
{
    bool level;

    pthread_mutex_lock(&fake->lock);
    level = fake->level[gsi];
    pthread_mutex_unlock(&fake->lock);
    return level;
}

bool fake_take_edge(FakePlatform *fake, unsigned gsi)
{
    return take_fd_signal(fake->gsi_fd[gsi]);
}

void fake_settle(FakePlatform *fake)
{
    if (aio_current() != fake->platform.main) {
        return; /* a vCPU's thread: whoever waits for it polls */
    }
    for (unsigned idle = 0; idle < 3;) {
        idle = aio_poll(fake->platform.main, false) ? 0 : idle + 1;
    }
}

typedef struct VcpuCall {
    FakePlatform *fake;
    void (*fn)(void *opaque);
    void *opaque;
    _Atomic bool done;
} VcpuCall;

static void *vcpu_thread(void *opaque)
{
    VcpuCall *call = opaque;

    call->fn(call->opaque);
    atomic_store(&call->done, true);
    aio_notify(call->fake->platform.main);
    return NULL;
}

void fake_in_vcpu(FakePlatform *fake, void (*fn)(void *opaque), void *opaque)
{
    VcpuCall call = { .fake = fake, .fn = fn, .opaque = opaque };
    pthread_t thread;

    ASSERT_EQ(pthread_create(&thread, NULL, vcpu_thread, &call), 0);
    AIO_WAIT_WHILE(fake->platform.main, !atomic_load(&call.done));
    pthread_join(thread, NULL);
}
