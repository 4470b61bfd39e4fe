/*
 * vcpu.c - vCPU threads: run, answer exits, park
 *
 * How a thread is got out of the guest: vcpus_pause() sets run->immediate_exit, then sends
 * SIGUSR1. The signal interrupts a KVM_RUN under way; the flag makes the next one return
 * at once if the signal came before it. Either way KVM_RUN says EINTR, and only then the thread
 * looks at `pause`. The flag is cleared by the thread when it goes on.
 */
#include "vmm/vcpu.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "io/base/log.h"
#include "io/base/thread.h"
#include "vmm/vcpu-int.h"

#define VCPU_SIGNAL SIGUSR1

static void vcpu_signal_cb(int sig)
{
    (void)sig; /* its only work is to interrupt KVM_RUN */
}

/* --- exits --- */

static void handle_io(Vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    Bus *pio = vcpu->vcpus->platform->pio;

    for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
        if (run->io.direction == KVM_EXIT_IO_OUT) {
            bus_write(pio, run->io.port, data, run->io.size);
        } else {
            bus_read(pio, run->io.port, data, run->io.size);
        }
    }
}

static void handle_mmio(Vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    Bus *mmio = vcpu->vcpus->platform->mmio;

    if (run->mmio.is_write) {
        bus_write(mmio, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
    } else {
        bus_read(mmio, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
    }
}

static void send_event(Vcpu *vcpu, PlatformEvent event)
{
    Platform *platform = vcpu->vcpus->platform;

    platform->ops->event(platform->opaque, event);
}

/* Wait as PAUSED while the group is paused. False: the thread shall end. */
static bool park(Vcpu *vcpu)
{
    Vcpus *vcpus = vcpu->vcpus;
    bool go_on;

    pthread_mutex_lock(&vcpus->lock);
    if (vcpus->pause) {
        atomic_fetch_sub(&vcpus->nb_running, 1);
        aio_notify(vcpus->platform->main);
        while (vcpus->pause && !vcpus->stop) {
            pthread_cond_wait(&vcpus->resumed, &vcpus->lock);
        }
        atomic_fetch_add(&vcpus->nb_running, 1);
    }
    go_on = !vcpus->stop;
    vcpu->run->immediate_exit = vcpus->pause;
    pthread_mutex_unlock(&vcpus->lock);
    return go_on;
}

/* This vCPU cannot run until the machine has been reset or stopped: wait for the pause that the
 * machine will ask for. */
static void wait_for_pause(Vcpu *vcpu)
{
    Vcpus *vcpus = vcpu->vcpus;

    pthread_mutex_lock(&vcpus->lock);
    while (!vcpus->pause && !vcpus->stop) {
        pthread_cond_wait(&vcpus->resumed, &vcpus->lock);
    }
    pthread_mutex_unlock(&vcpus->lock);
}

static void fail(Vcpu *vcpu, int run_result)
{
    Vcpus *vcpus = vcpu->vcpus;

    pthread_mutex_lock(&vcpus->lock);
    if (!atomic_load(&vcpus->failed)) {
        vcpu_report_failure(vcpu, run_result, vcpus->report, sizeof(vcpus->report));
        atomic_store(&vcpus->failed, true);
    }
    pthread_mutex_unlock(&vcpus->lock);
    aio_notify(vcpus->platform->main);
    wait_for_pause(vcpu);
}

static void handle_system_event(Vcpu *vcpu)
{
    switch (vcpu->run->system_event.type) {
    case KVM_SYSTEM_EVENT_SHUTDOWN:
        send_event(vcpu, PLATFORM_POWER_OFF);
        break;
    case KVM_SYSTEM_EVENT_CRASH:
        send_event(vcpu, PLATFORM_PANIC);
        break;
    default:
        send_event(vcpu, PLATFORM_RESET);
        break;
    }
    wait_for_pause(vcpu);
}

static void handle_exit(Vcpu *vcpu)
{
    switch (vcpu->run->exit_reason) {
    case KVM_EXIT_IO:
        handle_io(vcpu);
        break;
    case KVM_EXIT_MMIO:
        handle_mmio(vcpu);
        break;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
    case KVM_EXIT_HLT: /* with controllers in the kernel only after a spurious wake */
        break;
    case KVM_EXIT_SHUTDOWN: /* triple fault */
        log_debug("vcpu", "vcpu%u: triple fault", vcpu->index);
        send_event(vcpu, PLATFORM_RESET);
        wait_for_pause(vcpu);
        break;
    case KVM_EXIT_SYSTEM_EVENT:
        handle_system_event(vcpu);
        break;
    default:
        fail(vcpu, 0);
        break;
    }
}

static void *vcpu_thread(void *opaque)
{
    Vcpu *vcpu = opaque;

    thread_set_name("vcpu%u", vcpu->index);
    while (park(vcpu)) {
        for (;;) {
            int ret = ioctl(vcpu->fd, KVM_RUN, NULL);

            if (ret == 0) {
                handle_exit(vcpu);
            } else if (errno == EINTR) {
                break;
            } else if (errno != EAGAIN) {
                fail(vcpu, -errno);
                break;
            }
        }
    }
    return NULL;
}

/* --- group --- */

static int create_vcpu(Vcpus *vcpus, unsigned index, Error *err)
{
    Vcpu *vcpu = &vcpus->vcpu[index];

    vcpu->vcpus = vcpus;
    vcpu->index = index;
    vcpu->fd = kvm_ioctl(vcpus->kvm->vm_fd, KVM_CREATE_VCPU, (void *)(uintptr_t)index);
    if (vcpu->fd < 0) {
        return error_set(err, vcpu->fd, "KVM_CREATE_VCPU %u: %s", index,
                         error_strerror(vcpu->fd));
    }
    void *run = mmap(NULL, vcpus->kvm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);

    if (run == MAP_FAILED) {
        int ret = -errno;

        return error_set(err, ret, "vcpu%u: mapping kvm_run: %s", index, error_strerror(ret));
    }
    vcpu->run = run;
    int ret = vcpu_setup_cpuid(vcpu, err);

    return ret < 0 ? ret : vcpu_save_power_on(vcpu, err);
}

static int start_threads(Vcpus *vcpus, Error *err)
{
    struct sigaction action = { .sa_handler = vcpu_signal_cb };

    sigaction(VCPU_SIGNAL, &action, NULL);
    for (unsigned i = 0; i < vcpus->nb_vcpus; i++) {
        Vcpu *vcpu = &vcpus->vcpu[i];

        atomic_fetch_add(&vcpus->nb_running, 1);
        int ret = -pthread_create(&vcpu->thread, NULL, vcpu_thread, vcpu);

        if (ret < 0) {
            atomic_fetch_sub(&vcpus->nb_running, 1);
            return error_set(err, ret, "vcpu%u: starting the thread: %s", i, thread_strerror(ret));
        }
        vcpu->thread_started = true;
    }
    return 0;
}

Vcpus *vcpus_create(Kvm *kvm, Platform *platform, const GuestImage *image, unsigned nb_vcpus,
                    Error *err)
{
    assert(nb_vcpus >= 1 && nb_vcpus <= VCPUS_MAX);
    if (nb_vcpus > kvm->max_vcpus) {
        error_set(err, -EINVAL, "--cpus: %u wanted, this host's KVM allows %u", nb_vcpus,
                  kvm->max_vcpus);
        return NULL;
    }
    Vcpus *vcpus = calloc(1, sizeof(*vcpus));

    if (!vcpus) {
        error_set(err, -ENOMEM, "vCPUs: out of memory");
        return NULL;
    }
    pthread_mutex_init(&vcpus->lock, NULL);
    pthread_cond_init(&vcpus->resumed, NULL);
    vcpus->kvm = kvm;
    vcpus->platform = platform;
    vcpus->image = image;
    vcpus->nb_vcpus = nb_vcpus; /* each vCPU tells its guest of all */
    vcpus->pause = true;
    for (unsigned i = 0; i < VCPUS_MAX; i++) {
        vcpus->vcpu[i].fd = -1;
    }
    for (unsigned i = 0; i < nb_vcpus; i++) {
        if (create_vcpu(vcpus, i, err) < 0) {
            vcpus_destroy(vcpus);
            return NULL;
        }
    }
    if (start_threads(vcpus, err) < 0) {
        vcpus_destroy(vcpus);
        return NULL;
    }
    return vcpus;
}

static void kick_all(Vcpus *vcpus)
{
    for (unsigned i = 0; i < vcpus->nb_vcpus; i++) {
        Vcpu *vcpu = &vcpus->vcpu[i];

        if (vcpu->thread_started) {
            __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_RELEASE);
            pthread_kill(vcpu->thread, VCPU_SIGNAL);
        }
    }
}

void vcpus_pause(Vcpus *vcpus)
{
    pthread_mutex_lock(&vcpus->lock);
    vcpus->pause = true;
    pthread_cond_broadcast(&vcpus->resumed);
    kick_all(vcpus);
    pthread_mutex_unlock(&vcpus->lock);
    AIO_WAIT_WHILE(vcpus->platform->main, atomic_load(&vcpus->nb_running) != 0);
}

void vcpus_tell_paused(Vcpus *vcpus)
{
    for (unsigned i = 0; i < vcpus->nb_vcpus; i++) {
        int ret UNUSED = kvm_ioctl(vcpus->vcpu[i].fd, KVM_KVMCLOCK_CTRL, NULL);
        /* It fails when the guest does not use kvmclock, and then has nobody to tell. */
    }
}

void vcpus_resume(Vcpus *vcpus)
{
    pthread_mutex_lock(&vcpus->lock);
    vcpus->pause = false;
    pthread_cond_broadcast(&vcpus->resumed);
    pthread_mutex_unlock(&vcpus->lock);
}

int vcpus_reset(Vcpus *vcpus, const BootEntry *entry, Error *err)
{
    assert(vcpus->pause);
    for (unsigned i = 0; i < vcpus->nb_vcpus; i++) {
        int ret = vcpu_load_power_on(&vcpus->vcpu[i], err);

        if (ret < 0) {
            return ret;
        }
    }
    return vcpu_load_entry(&vcpus->vcpu[0], entry, err);
}

const char *vcpus_failure(Vcpus *vcpus)
{
    return atomic_load(&vcpus->failed) ? vcpus->report : NULL;
}

void vcpus_destroy(Vcpus *vcpus)
{
    if (!vcpus) {
        return;
    }
    vcpus_pause(vcpus);
    pthread_mutex_lock(&vcpus->lock);
    vcpus->stop = true;
    pthread_cond_broadcast(&vcpus->resumed);
    pthread_mutex_unlock(&vcpus->lock);
    for (unsigned i = 0; i < vcpus->nb_vcpus; i++) {
        Vcpu *vcpu = &vcpus->vcpu[i];

        if (vcpu->thread_started) {
            pthread_join(vcpu->thread, NULL);
        }
        if (vcpu->run) {
            munmap(vcpu->run, vcpus->kvm->run_bytes);
        }
        if (vcpu->fd >= 0) {
            close(vcpu->fd);
        }
    }
    pthread_cond_destroy(&vcpus->resumed);
    pthread_mutex_destroy(&vcpus->lock);
    free(vcpus);
}
