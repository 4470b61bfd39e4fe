/*
 * kvm.c - opening KVM, creating the VM, its memory slots and in-kernel devices
 *
 * The state of the interrupt controllers and the timer right after creation is kept, so that a
 * machine reset can put it back without making a new VM.
 */
#include "vmm/kvm.h"

#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>

#include "io/base/log.h"
#include "vmm/layout.h"

#define KVM_DEVICE "/dev/kvm"

const KvmExtension kvm_extensions[] = {
    { KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP", "interrupt controllers in the kernel", true },
    { KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY", "guest RAM", true },
    { KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR", "real mode on older Intel processors", true },
    { KVM_CAP_PIT2, "KVM_CAP_PIT2", "timer 8254 in the kernel", true },
    { KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING", "MSI-X routes", true },
    { KVM_CAP_IRQFD, "KVM_CAP_IRQFD", "interrupts without user space", true },
    { KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD", "doorbells without user space", true },
    { KVM_CAP_IOEVENTFD_ANY_LENGTH, "KVM_CAP_IOEVENTFD_ANY_LENGTH", "faster doorbells", false },
    { KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI", "message-signalled interrupts", true },
    { KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID", "processor features", true },
    { KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE", "several vCPUs", true },
    { KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT", "pausing a vCPU", true },
    { KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS", "reset", true },
    { KVM_CAP_XSAVE, "KVM_CAP_XSAVE", "reset of the extended state", false },
    { KVM_CAP_XCRS, "KVM_CAP_XCRS", "reset of the extended state", false },
    { KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS", "reset", false },
    { KVM_CAP_TSC_DEADLINE_TIMER, "KVM_CAP_TSC_DEADLINE_TIMER", "precise guest timer", false },
    { KVM_CAP_GET_TSC_KHZ, "KVM_CAP_GET_TSC_KHZ", "telling the guest its clock rate", false },
};
const unsigned kvm_nb_extensions = ARRAY_SIZE(kvm_extensions);

int kvm_ioctl(int fd, unsigned long request, void *arg)
{
    int ret;

    do {
        ret = ioctl(fd, request, arg);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : ret;
}

/* The argument of many KVM ioctls is a number, not a pointer. */
static void *ioctl_number(unsigned long number)
{
    return (void *)number;
}

int kvm_extension(const Kvm *kvm, int cap)
{
    int ret = kvm_ioctl(kvm->dev_fd, KVM_CHECK_EXTENSION, ioctl_number(cap));

    return MAX(ret, 0);
}

static int open_error(int code, Error *err)
{
    switch (code) {
    case -ENOENT:
    case -ENODEV:
    case -ENXIO:
        return error_set(err, code,
                         KVM_DEVICE ": %s; load the kvm_intel or kvm_amd module, or switch "
                                    "virtualization on in the firmware or the outer hypervisor",
                         error_strerror(code));
    case -EACCES:
    case -EPERM:
        return error_set(err, code,
                         KVM_DEVICE ": %s; run as root or as a member of the group that owns it "
                                    "(usually: adduser $USER kvm, then log in again)",
                         error_strerror(code));
    default:
        return error_set(err, code, KVM_DEVICE ": %s", error_strerror(code));
    }
}

/* Asked once: it takes KVM long, and the answer is the same for every vCPU. */
static int get_cpuid(Kvm *kvm, Error *err)
{
    kvm->cpuid = calloc(1, CPUID_LIST_BYTES);
    if (!kvm->cpuid) {
        return error_set(err, -ENOMEM, "CPUID: out of memory");
    }
    kvm->cpuid->nent = CPUID_ENTRIES_MAX - CPUID_ENTRIES_ADDED;
    int ret = kvm_ioctl(kvm->dev_fd, KVM_GET_SUPPORTED_CPUID, kvm->cpuid);

    return ret < 0 ? error_set(err, ret, "KVM_GET_SUPPORTED_CPUID: %s", error_strerror(ret)) : 0;
}

int kvm_open(Kvm *kvm, Error *err)
{
    kvm->dev_fd = open(KVM_DEVICE, O_RDWR | O_CLOEXEC);
    if (kvm->dev_fd < 0) {
        return open_error(-errno, err);
    }
    int version = kvm_ioctl(kvm->dev_fd, KVM_GET_API_VERSION, NULL);

    if (version != KVM_API_VERSION) {
        return error_set(err, -ENOTSUP, KVM_DEVICE ": API version %d, penstock needs %d", version,
                         KVM_API_VERSION);
    }
    int run_bytes = kvm_ioctl(kvm->dev_fd, KVM_GET_VCPU_MMAP_SIZE, NULL);

    if (run_bytes < (int)sizeof(struct kvm_run)) {
        return error_set(err, -ENOTSUP, KVM_DEVICE ": vCPU mapping of %d bytes is too small",
                         run_bytes);
    }
    kvm->run_bytes = run_bytes;
    kvm->max_vcpus = MAX(kvm_extension(kvm, KVM_CAP_MAX_VCPUS), 4);
    return get_cpuid(kvm, err);
}

int kvm_check_extensions(Kvm *kvm, Error *err)
{
    for (unsigned i = 0; i < kvm_nb_extensions; i++) {
        const KvmExtension *ext = &kvm_extensions[i];

        if (ext->required && kvm_extension(kvm, ext->cap) == 0) {
            return error_set(err, -ENOTSUP, KVM_DEVICE ": no %s (%s); a newer kernel is needed",
                             ext->name, ext->purpose);
        }
    }
    return 0;
}

static int save_vm_state(Kvm *kvm, Error *err)
{
    for (unsigned i = 0; i < ARRAY_SIZE(kvm->irqchip); i++) {
        kvm->irqchip[i].chip_id = i;
        int ret = kvm_ioctl(kvm->vm_fd, KVM_GET_IRQCHIP, &kvm->irqchip[i]);

        if (ret < 0) {
            return error_set(err, ret, "KVM_GET_IRQCHIP: %s", error_strerror(ret));
        }
    }
    int ret = kvm_ioctl(kvm->vm_fd, KVM_GET_PIT2, &kvm->pit);

    if (ret < 0) {
        return error_set(err, ret, "KVM_GET_PIT2: %s", error_strerror(ret));
    }
    kvm->has_vm_state = true;
    return 0;
}

int kvm_create_vm(Kvm *kvm, Error *err)
{
    kvm->vm_fd = kvm_ioctl(kvm->dev_fd, KVM_CREATE_VM, NULL);
    if (kvm->vm_fd < 0) {
        return error_set(err, kvm->vm_fd, "KVM_CREATE_VM: %s", error_strerror(kvm->vm_fd));
    }
    uint64_t identity_gpa = LAYOUT_KVM_IDENTITY_GPA;
    struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
    const struct {
        unsigned long request;
        void *arg;
        const char *name;
    } steps[] = {
        { KVM_SET_IDENTITY_MAP_ADDR, &identity_gpa, "KVM_SET_IDENTITY_MAP_ADDR" },
        { KVM_SET_TSS_ADDR, ioctl_number(LAYOUT_KVM_TSS_GPA), "KVM_SET_TSS_ADDR" },
        { KVM_CREATE_IRQCHIP, NULL, "KVM_CREATE_IRQCHIP" },
        { KVM_CREATE_PIT2, &pit, "KVM_CREATE_PIT2" },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(steps); i++) {
        int ret = kvm_ioctl(kvm->vm_fd, steps[i].request, steps[i].arg);

        if (ret < 0) {
            return error_set(err, ret, "%s: %s", steps[i].name, error_strerror(ret));
        }
    }
    return save_vm_state(kvm, err);
}

int kvm_add_memory(Kvm *kvm, uint64_t gpa, uint64_t len_bytes, void *hva, Error *err)
{
    struct kvm_userspace_memory_region region = {
        .slot = kvm->nb_slots,
        .guest_phys_addr = gpa,
        .memory_size = len_bytes,
        .userspace_addr = (uintptr_t)hva,
    };
    int ret = kvm_ioctl(kvm->vm_fd, KVM_SET_USER_MEMORY_REGION, &region);

    if (ret < 0) {
        return error_set(err, ret, "guest RAM of %llu bytes at 0x%llx: %s",
                         (unsigned long long)len_bytes, (unsigned long long)gpa,
                         error_strerror(ret));
    }
    kvm->nb_slots++;
    return 0;
}

int kvm_reset_vm(Kvm *kvm, Error *err)
{
    assert(kvm->has_vm_state);
    for (unsigned i = 0; i < ARRAY_SIZE(kvm->irqchip); i++) {
        int ret = kvm_ioctl(kvm->vm_fd, KVM_SET_IRQCHIP, &kvm->irqchip[i]);

        if (ret < 0) {
            return error_set(err, ret, "KVM_SET_IRQCHIP: %s", error_strerror(ret));
        }
    }
    int ret = kvm_ioctl(kvm->vm_fd, KVM_SET_PIT2, &kvm->pit);

    return ret < 0 ? error_set(err, ret, "KVM_SET_PIT2: %s", error_strerror(ret)) : 0;
}

void kvm_stop_clock(Kvm *kvm)
{
    int ret = kvm_ioctl(kvm->vm_fd, KVM_GET_CLOCK, &kvm->clock);

    kvm->clock_stopped = ret >= 0;
    if (ret < 0) {
        log_debug("kvm", "KVM_GET_CLOCK: %s", error_strerror(ret));
    }
}

void kvm_start_clock(Kvm *kvm)
{
    struct kvm_clock_data clock = { .clock = kvm->clock.clock };
    int ret = kvm->clock_stopped ? kvm_ioctl(kvm->vm_fd, KVM_SET_CLOCK, &clock) : 0;

    kvm->clock_stopped = false;
    if (ret < 0) {
        log_debug("kvm", "KVM_SET_CLOCK: %s", error_strerror(ret));
    }
}

void kvm_close(Kvm *kvm)
{
    if (!kvm) {
        return;
    }
    if (kvm->vm_fd >= 0) {
        close(take_fd(&kvm->vm_fd));
    }
    if (kvm->dev_fd >= 0) {
        close(take_fd(&kvm->dev_fd));
    }
    free(take_ptr(&kvm->cpuid));
}
