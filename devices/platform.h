/*
 * Platform - what devices need from the machine: interrupts, doorbells, power, panic
 *
 * Layer:     devices/ owns the interface, vmm/ implements it on KVM, tests on a recorder.
 * Threading: marked at each member.
 */
#ifndef DEVICES_PLATFORM_H
#define DEVICES_PLATFORM_H

#include "devices/bus.h"
#include "io/aio/aio.h"

typedef enum PlatformEvent {
    PLATFORM_POWER_OFF,
    PLATFORM_RESET,
    PLATFORM_PANIC,
} PlatformEvent;

typedef struct PlatformOps {
    /* Drive a level-triggered or edge interrupt line (GSI). Any thread. */
    void (*irq_set_level)(void *opaque, unsigned gsi, bool level);

    /* Connect eventfd @fd to an edge-triggered GSI: each signal pulses it. vCPU or main. */
    int (*irqfd_attach_gsi)(void *opaque, unsigned gsi, int fd);
    void (*irqfd_detach_gsi)(void *opaque, unsigned gsi, int fd);

    /*
     * Message-signalled interrupts: a route is a handle for one vector. msi_attach: from now on a
     * signal of @fd sends (@address, @data); if @fd is already signalled the message is sent at
     * once. Attaching an attached route changes it. msi_detach: signals accumulate in the
     * eventfd. vCPU or main; calls for one route are serialised by the caller.
     */
    int (*msi_route_create)(void *opaque); /* a handle >= 0 or -errno */
    void (*msi_route_destroy)(void *opaque, int route);
    int (*msi_attach)(void *opaque, int route, int fd, uint64_t address, uint32_t data);
    void (*msi_detach)(void *opaque, int route, int fd);

    /* A write of any length (or exactly @len_bytes if not 0) to guest-physical @gpa signals @fd
     * without leaving the kernel. @match: only for this value, -1 = any. Main. */
    int (*doorbell_attach)(void *opaque, uint64_t gpa, unsigned len_bytes, int64_t match, int fd);
    void (*doorbell_detach)(void *opaque, uint64_t gpa, unsigned len_bytes, int64_t match, int fd);

    /* The guest asked for something; returns at once, acts later. Any thread. */
    void (*event)(void *opaque, PlatformEvent event);
} PlatformOps;

typedef struct Platform {
    const PlatformOps *ops;
    void *opaque;
    Bus *pio;         /* x86 port space */
    Bus *mmio;        /* guest-physical memory space */
    AioContext *main; /* where devices' control paths run */
    const AioClock *clock; /* the guest's time, which stands while the guest is stopped */
} Platform;

#endif
