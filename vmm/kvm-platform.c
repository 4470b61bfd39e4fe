/*
 * kvm-platform.c - devices/platform.h on KVM
 *
 * Invariants
 *   1. The kernel's table holds the fixed lines (PIC and IOAPIC pins) and every attached MSI route,
 *      and nothing else.
 *   2. An eventfd is connected to an MSI GSI only while that route is in the table, so KVM never
 *      drops a signal for want of a route; the route is written first and removed last.
 *   3. Connecting an eventfd that is already signalled injects at once (KVM looks at it), which
 *      is what makes a masked vector's pending interrupt arrive at unmask.
 */
#include "vmm/kvm-platform.h"

#include <string.h>

#include "vmm/layout.h"

#define KVM_PLATFORM_MSI_GSI LAYOUT_NB_GSIS

static void add_line(struct kvm_irq_routing *routing, unsigned gsi, unsigned chip, unsigned pin)
{
    routing->entries[routing->nr++] = (struct kvm_irq_routing_entry){
        .gsi = gsi,
        .type = KVM_IRQ_ROUTING_IRQCHIP,
        .u.irqchip = { .irqchip = chip, .pin = pin },
    };
}

/* GSIs 0-15 reach the PICs; all reach the IOAPIC at the pin of the same number, but for the timer,
 * which the MADT says is at pin 2. */
static void add_fixed_lines(KvmPlatform *kp)
{
    for (unsigned gsi = 0; gsi < LAYOUT_NB_GSIS; gsi++) {
        if (gsi < 16 && gsi != 2) {
            add_line(kp->routing, gsi, gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE,
                     gsi % 8);
        }
        if (gsi == 0) {
            add_line(kp->routing, 0, KVM_IRQCHIP_IOAPIC, 2);
        } else if (gsi != 2) {
            add_line(kp->routing, gsi, KVM_IRQCHIP_IOAPIC, gsi);
        }
    }
    kp->nb_fixed = kp->routing->nr;
}

/* Invariant 1. Called with the lock held. */
static int commit_routes(KvmPlatform *kp)
{
    kp->routing->nr = kp->nb_fixed;
    for (unsigned i = 0; i < kp->nb_routes_max; i++) {
        if (!kp->msi[i].attached) {
            continue;
        }
        kp->routing->entries[kp->routing->nr++] = (struct kvm_irq_routing_entry){
            .gsi = KVM_PLATFORM_MSI_GSI + i,
            .type = KVM_IRQ_ROUTING_MSI,
            .u.msi = {
                .address_lo = (uint32_t)kp->msi[i].address,
                .address_hi = kp->msi[i].address >> 32,
                .data = kp->msi[i].data,
            },
        };
    }
    return kvm_ioctl(kp->kvm->vm_fd, KVM_SET_GSI_ROUTING, kp->routing);
}

static int irqfd(KvmPlatform *kp, unsigned gsi, int fd, bool attach)
{
    struct kvm_irqfd arg = {
        .fd = fd,
        .gsi = gsi,
        .flags = attach ? 0 : KVM_IRQFD_FLAG_DEASSIGN,
    };

    return kvm_ioctl(kp->kvm->vm_fd, KVM_IRQFD, &arg);
}

static void irq_set_level(void *opaque, unsigned gsi, bool level)
{
    KvmPlatform *kp = opaque;
    struct kvm_irq_level arg = { .irq = gsi, .level = level };
    int ret = kvm_ioctl(kp->kvm->vm_fd, KVM_IRQ_LINE, &arg);

    if (ret < 0) {
        log_debug("kvm", "KVM_IRQ_LINE %u: %s", gsi, error_strerror(ret));
    }
}

static int irqfd_attach_gsi(void *opaque, unsigned gsi, int fd)
{
    return irqfd(opaque, gsi, fd, true);
}

static void irqfd_detach_gsi(void *opaque, unsigned gsi, int fd)
{
    irqfd(opaque, gsi, fd, false);
}

static int msi_route_create(void *opaque)
{
    KvmPlatform *kp = opaque;
    int route = -ENOSPC;

    pthread_mutex_lock(&kp->lock);
    for (unsigned i = 0; i < kp->nb_routes_max; i++) {
        if (!kp->msi[i].used) {
            kp->msi[i].used = true;
            kp->msi[i].attached = false;
            route = i;
            break;
        }
    }
    pthread_mutex_unlock(&kp->lock);
    return route;
}

static void msi_route_destroy(void *opaque, int route)
{
    KvmPlatform *kp = opaque;

    pthread_mutex_lock(&kp->lock);
    assert(kp->msi[route].used && !kp->msi[route].attached);
    kp->msi[route].used = false;
    pthread_mutex_unlock(&kp->lock);
}

static int msi_attach(void *opaque, int route, int fd, uint64_t address, uint32_t data)
{
    KvmPlatform *kp = opaque;
    int ret;

    pthread_mutex_lock(&kp->lock);
    bool was_attached = kp->msi[route].attached;

    assert(kp->msi[route].used);
    kp->msi[route].attached = true;
    kp->msi[route].address = address;
    kp->msi[route].data = data;
    ret = commit_routes(kp);
    if (ret == 0 && !was_attached) {
        ret = irqfd(kp, KVM_PLATFORM_MSI_GSI + route, fd, true);
    }
    if (ret < 0 && !was_attached) {
        kp->msi[route].attached = false;
    }
    if (ret < 0) {
        log_limited(&kp->log_limit, LOG_LEVEL_WARN, "kvm", "MSI route %d to 0x%llx: %s", route,
                    (unsigned long long)address, error_strerror(ret));
    }
    pthread_mutex_unlock(&kp->lock);
    return ret < 0 ? ret : 0;
}

static void msi_detach(void *opaque, int route, int fd)
{
    KvmPlatform *kp = opaque;

    pthread_mutex_lock(&kp->lock);
    if (kp->msi[route].attached) {
        irqfd(kp, KVM_PLATFORM_MSI_GSI + route, fd, false);
        kp->msi[route].attached = false;
        commit_routes(kp);
    }
    pthread_mutex_unlock(&kp->lock);
}

static int doorbell(KvmPlatform *kp, uint64_t gpa, unsigned len_bytes, int64_t match, int fd,
                    bool attach)
{
    if (len_bytes == 0 && kvm_extension(kp->kvm, KVM_CAP_IOEVENTFD_ANY_LENGTH) == 0) {
        len_bytes = 2; /* VIRTIO 4.1.5.2: the notification of a driver is 16 bits wide */
    }
    struct kvm_ioeventfd arg = {
        .addr = gpa,
        .len = len_bytes,
        .fd = fd,
        .datamatch = match >= 0 ? (uint64_t)match : 0,
        .flags = (attach ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN) |
                 (match >= 0 ? KVM_IOEVENTFD_FLAG_DATAMATCH : 0),
    };

    return kvm_ioctl(kp->kvm->vm_fd, KVM_IOEVENTFD, &arg);
}

static int doorbell_attach(void *opaque, uint64_t gpa, unsigned len_bytes, int64_t match, int fd)
{
    KvmPlatform *kp = opaque;
    int ret = doorbell(kp, gpa, len_bytes, match, fd, true);

    if (ret < 0) {
        pthread_mutex_lock(&kp->lock);
        log_limited(&kp->log_limit, LOG_LEVEL_WARN, "kvm",
                    "doorbell at 0x%llx: %s; kicks go through user space", (unsigned long long)gpa,
                    error_strerror(ret));
        pthread_mutex_unlock(&kp->lock);
    }
    return ret < 0 ? ret : 0;
}

static void doorbell_detach(void *opaque, uint64_t gpa, unsigned len_bytes, int64_t match, int fd)
{
    doorbell(opaque, gpa, len_bytes, match, fd, false);
}

/* Pairs with the exchange in kvm_platform_take_events(): the bit is set before main is woken. */
static void platform_event(void *opaque, PlatformEvent event)
{
    KvmPlatform *kp = opaque;

    atomic_fetch_or(&kp->events, 1u << event);
    aio_notify(kp->platform.main);
}

unsigned kvm_platform_take_events(KvmPlatform *kp)
{
    return atomic_exchange(&kp->events, 0);
}

static const PlatformOps kvm_platform_ops = {
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

int kvm_platform_init(KvmPlatform *kp, Kvm *kvm, Bus *pio, Bus *mmio, AioContext *main, Error *err)
{
    int nb_gsis = kvm_extension(kvm, KVM_CAP_IRQ_ROUTING);

    memset(kp, 0, sizeof(*kp));
    pthread_mutex_init(&kp->lock, NULL);
    kp->kvm = kvm;
    aio_clock_init(&kp->clock);
    kp->platform = (Platform){ .ops = &kvm_platform_ops,
                               .opaque = kp,
                               .pio = pio,
                               .mmio = mmio,
                               .main = main,
                               .clock = &kp->clock };
    if (nb_gsis <= (int)KVM_PLATFORM_MSI_GSI) {
        return error_set(err, -ENOTSUP, "KVM has %d interrupt routes, too few", nb_gsis);
    }
    kp->nb_routes_max = MIN((unsigned)nb_gsis - KVM_PLATFORM_MSI_GSI, KVM_PLATFORM_ROUTES_MAX);
    kp->routing = calloc(1, sizeof(*kp->routing) + (2 * LAYOUT_NB_GSIS + kp->nb_routes_max) *
                                                       sizeof(kp->routing->entries[0]));
    if (!kp->routing) {
        return error_set(err, -ENOMEM, "interrupt routes: out of memory");
    }
    add_fixed_lines(kp);
    int ret = commit_routes(kp);

    return ret < 0 ? error_set(err, ret, "KVM_SET_GSI_ROUTING: %s", error_strerror(ret)) : 0;
}

void kvm_platform_finish(KvmPlatform *kp)
{
    if (!kp || !kp->kvm) {
        return;
    }
    free(take_ptr(&kp->routing));
    pthread_mutex_destroy(&kp->lock);
    kp->kvm = NULL;
}
