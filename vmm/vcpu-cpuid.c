/*
 * vcpu-cpuid.c - KVM's list of what this host supports, made one vCPU's
 *
 * 1. Topology: one package, in it each vCPU is a core with one thread; APIC id = index. Every leaf
 *    that tells of it says the same: 1, 4, 0xb, 0x1f, 0x80000001, 0x80000008, 0x8000001d and
 *    0x8000001e. Caches up to the second level belong to a core, the third is the package's.
 * 2. Newer KVMs list only the first level of 0xb and 0x1f, so the second is added: without it a
 *    guest takes each vCPU for a package of its own.
 * 3. Sizes in leaf 0xd follow XCR0 and IA32_XSS, which only KVM knows: it writes them itself,
 *    whatever is set here.
 */
#include "vmm/vcpu-cpuid.h"

#define LEAF_TOPOLOGY    0xbu
#define LEAF_TOPOLOGY_V2 0x1fu
#define LEAF_HYPERVISOR  0x40000000u
#define LEAF_TIMING      0x40000010u
#define LEAF_ADDRESSES   0x80000008u

#define VENDOR_EBX_AMD   0x68747541u /* "Auth" */
#define VENDOR_EBX_HYGON 0x6f677948u /* "Hygo" */

#define LEAF1_ECX_TSC_DEADLINE (1u << 24)
#define LEAF1_ECX_HYPERVISOR   (1u << 31)
#define LEAF1_EDX_HTT          (1u << 28)
#define AMD_ECX_CMP_LEGACY     (1u << 1)

#define CACHE_TYPE(eax)  ((eax) & 0x1f)
#define CACHE_LEVEL(eax) ((eax) >> 5 & 7)

#define LEVEL_THREAD 1u
#define LEVEL_CORE   2u

#define APIC_BUS_KHZ       1000000u /* KVM's APIC timer counts nanoseconds */
#define PHYS_BITS_OF_OLD   36u

static struct kvm_cpuid_entry2 *find(const struct kvm_cpuid2 *cpuid, uint32_t function,
                                     uint32_t index)
{
    for (uint32_t i = 0; i < cpuid->nent; i++) {
        const struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];

        if (entry->function == function &&
            (entry->index == index || !(entry->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX))) {
            return (struct kvm_cpuid_entry2 *)entry;
        }
    }
    return NULL;
}

static struct kvm_cpuid_entry2 *find_or_add(struct kvm_cpuid2 *cpuid, uint32_t function,
                                            uint32_t index, uint32_t flags)
{
    struct kvm_cpuid_entry2 *entry = find(cpuid, function, index);

    if (!entry) {
        assert(cpuid->nent < CPUID_ENTRIES_MAX);
        entry = &cpuid->entries[cpuid->nent++];
        *entry = (struct kvm_cpuid_entry2){ .function = function, .index = index, .flags = flags };
    }
    return entry;
}

static bool is_amd(const struct kvm_cpuid2 *cpuid)
{
    const struct kvm_cpuid_entry2 *leaf = find(cpuid, 0, 0);

    return leaf && (leaf->ebx == VENDOR_EBX_AMD || leaf->ebx == VENDOR_EBX_HYGON);
}

/* Bits that hold a number below @count. */
static unsigned bits_for(unsigned count)
{
    return count <= 1 ? 0 : 32 - __builtin_clz(count - 1);
}

/* --- one leaf --- */

static void set_features(struct kvm_cpuid_entry2 *entry, const CpuidVcpu *vcpu)
{
    entry->ebx = (entry->ebx & 0x0000ffff) | vcpu->nb_cpus << 16 | vcpu->index << 24;
    entry->ecx |= LEAF1_ECX_HYPERVISOR;
    if (vcpu->tsc_deadline) {
        entry->ecx |= LEAF1_ECX_TSC_DEADLINE;
    }
    entry->edx &= ~LEAF1_EDX_HTT;
    if (vcpu->nb_cpus > 1) {
        entry->edx |= LEAF1_EDX_HTT;
    }
}

/* How many share the cache, less one, in bits 14 to 25. */
static void set_cache_sharing(struct kvm_cpuid_entry2 *entry, unsigned nb_cpus_less_1)
{
    bool shared = CACHE_LEVEL(entry->eax) >= 3;

    entry->eax = (entry->eax & ~(0xfffu << 14)) | (shared ? nb_cpus_less_1 << 14 : 0);
}

/* Intel's caches: ids are counted, not cores. Above that, the cores of the package. */
static void set_intel_cache(struct kvm_cpuid_entry2 *entry, unsigned nb_cpus)
{
    unsigned last_id = (1u << bits_for(nb_cpus)) - 1;

    set_cache_sharing(entry, last_id);
    entry->eax = (entry->eax & 0x03ffffff) | last_id << 26;
}

static void set_topology_level(struct kvm_cpuid_entry2 *entry, const CpuidVcpu *vcpu)
{
    entry->eax = entry->ebx = 0;
    entry->ecx = entry->index;
    entry->edx = vcpu->index;
    if (entry->index == 0) {
        entry->ebx = 1;
        entry->ecx |= LEVEL_THREAD << 8;
    } else if (entry->index == 1) {
        entry->eax = bits_for(vcpu->nb_cpus);
        entry->ebx = vcpu->nb_cpus;
        entry->ecx |= LEVEL_CORE << 8;
    }
}

static void set_leaf(struct kvm_cpuid_entry2 *entry, const CpuidVcpu *vcpu, bool amd)
{
    switch (entry->function) {
    case 1:
        set_features(entry, vcpu);
        break;
    case 4:
        if (CACHE_TYPE(entry->eax) != 0) {
            set_intel_cache(entry, vcpu->nb_cpus);
        }
        break;
    case LEAF_TOPOLOGY:
    case LEAF_TOPOLOGY_V2:
        set_topology_level(entry, vcpu);
        break;
    case 0x80000001:
        if (amd) { /* HTT means cores, not threads */
            entry->ecx &= ~AMD_ECX_CMP_LEGACY;
            entry->ecx |= vcpu->nb_cpus > 1 ? AMD_ECX_CMP_LEGACY : 0;
        }
        break;
    case LEAF_ADDRESSES:
        if (amd) {
            entry->ecx = bits_for(vcpu->nb_cpus) << 12 | (vcpu->nb_cpus - 1);
        }
        break;
    case 0x8000001d:
        if (CACHE_TYPE(entry->eax) != 0) {
            set_cache_sharing(entry, vcpu->nb_cpus - 1);
        }
        break;
    case 0x8000001e:
        entry->eax = vcpu->index; /* extended APIC id */
        entry->ebx = vcpu->index; /* core id, one thread a core */
        entry->ecx = 0;           /* one node */
        break;
    default:
        break;
    }
}

/* --- the list --- */

static void add_topology(struct kvm_cpuid2 *cpuid)
{
    static const uint32_t leaves[] = { LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2 };
    const struct kvm_cpuid_entry2 *base = find(cpuid, 0, 0);
    uint32_t last = base ? base->eax : 0;

    for (unsigned i = 0; i < ARRAY_SIZE(leaves) && leaves[i] <= last; i++) {
        for (uint32_t level = 0; level < 2; level++) {
            find_or_add(cpuid, leaves[i], level, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
        }
    }
}

/* TSC and bus clock in kHz, which saves the guest its calibration. */
static void add_timing(struct kvm_cpuid2 *cpuid, uint32_t tsc_khz)
{
    struct kvm_cpuid_entry2 *base = find(cpuid, LEAF_HYPERVISOR, 0);

    if (!base || tsc_khz == 0) {
        return;
    }
    base->eax = MAX(base->eax, LEAF_TIMING);
    struct kvm_cpuid_entry2 *timing = find_or_add(cpuid, LEAF_TIMING, 0, 0);

    timing->eax = tsc_khz;
    timing->ebx = APIC_BUS_KHZ;
}

void cpuid_set_vcpu(struct kvm_cpuid2 *cpuid, const CpuidVcpu *vcpu)
{
    bool amd = is_amd(cpuid);

    assert(vcpu->index < vcpu->nb_cpus && vcpu->nb_cpus <= 64);
    add_topology(cpuid);
    add_timing(cpuid, vcpu->tsc_khz);
    for (uint32_t i = 0; i < cpuid->nent; i++) {
        set_leaf(&cpuid->entries[i], vcpu, amd);
    }
}

unsigned cpuid_phys_bits(const struct kvm_cpuid2 *cpuid)
{
    const struct kvm_cpuid_entry2 *leaf = find(cpuid, LEAF_ADDRESSES, 0);

    return leaf ? leaf->eax & 0xff : PHYS_BITS_OF_OLD;
}
