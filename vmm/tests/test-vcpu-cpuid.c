/*
 * CPUID: the topology as a guest's kernel works it out, for 1 to 64 vCPUs, from what KVM gives on
 * Intel's and AMD's processors; and that what is not ours to say stays as it was.
 */
#include <stdlib.h>

#include "io/base/test.h"
#include "vmm/vcpu-cpuid.h"

#define INDEXED KVM_CPUID_FLAG_SIGNIFCANT_INDEX

/* As recent KVMs list it: one level of topology, all zero. */
static const struct kvm_cpuid_entry2 intel[] = {
    { .function = 0, .eax = 0x1f, .ebx = 0x756e6547, .ecx = 0x6c65746e, .edx = 0x49656e69 },
    { .function = 1, .eax = 0x806f8, .ebx = 0x12345678, .ecx = 0x00200000, .edx = 0x1fc9fbff },
    { .function = 4, .index = 0, .flags = INDEXED, .eax = 0x7c007121, .ebx = 0x02c0003f },
    { .function = 4, .index = 1, .flags = INDEXED, .eax = 0x7c00c163, .ebx = 0x0380003f },
    { .function = 4, .index = 2, .flags = INDEXED },
    { .function = 0xb, .index = 0, .flags = INDEXED },
    { .function = 0xd, .index = 0, .flags = INDEXED, .eax = 7, .ebx = 0x340, .ecx = 0x340 },
    { .function = 0xd, .index = 1, .flags = INDEXED, .eax = 0xf, .ebx = 0x240, .ecx = 0x1800 },
    { .function = 0x1f, .index = 0, .flags = INDEXED },
    { .function = 0x40000000, .eax = 0x40000001, .ebx = 0x4b4d564b },
    { .function = 0x80000000, .eax = 0x80000008 },
    { .function = 0x80000001, .ecx = 0x121 },
    { .function = 0x80000008, .eax = 0x3934, .ecx = 0 },
};

/* Older KVMs list all of the host's levels; this host has threads and an L2 that two share. */
static const struct kvm_cpuid_entry2 amd[] = {
    { .function = 0, .eax = 0x10, .ebx = 0x68747541, .ecx = 0x444d4163, .edx = 0x69746e65 },
    { .function = 1, .eax = 0xb00f21, .ebx = 0x20800, .ecx = 0x01202000, .edx = 0x178bfbff },
    { .function = 4, .index = 0, .flags = INDEXED },
    { .function = 0xb, .index = 0, .flags = INDEXED, .eax = 1, .ebx = 2, .ecx = 0x100, .edx = 9 },
    { .function = 0xb, .index = 1, .flags = INDEXED, .eax = 7, .ebx = 96, .ecx = 0x201, .edx = 9 },
    { .function = 0xb, .index = 2, .flags = INDEXED, .eax = 9, .ebx = 8, .ecx = 0x302, .edx = 9 },
    { .function = 0x40000000, .eax = 0x40000001, .ebx = 0x4b4d564b },
    { .function = 0x80000000, .eax = 0x80000021 },
    { .function = 0x80000001, .ecx = 0x00400393 },
    { .function = 0x80000008, .eax = 0x3030, .ecx = 0x7001 },
    { .function = 0x8000001d, .index = 0, .flags = INDEXED, .eax = 0x4121, .ebx = 0x2c0003f },
    { .function = 0x8000001d, .index = 2, .flags = INDEXED, .eax = 0x4143, .ebx = 0x3c0003f },
    { .function = 0x8000001d, .index = 3, .flags = INDEXED, .eax = 0x3c163, .ebx = 0x3c0003f },
    { .function = 0x8000001d, .index = 4, .flags = INDEXED },
    { .function = 0x8000001e, .eax = 9, .ebx = 0x104, .ecx = 0x101 },
};

static const unsigned counts[] = { 1, 2, 3, 4, 5, 7, 8, 12, 16, 31, 32, 33, 63, 64 };

static struct kvm_cpuid2 *cpuid;

static void make(const struct kvm_cpuid_entry2 *entries, size_t bytes, CpuidVcpu vcpu)
{
    free(cpuid);
    cpuid = calloc(1, CPUID_LIST_BYTES);
    ASSERT_TRUE(cpuid != NULL);
    cpuid->nent = bytes / sizeof(*entries);
    memcpy(cpuid->entries, entries, bytes);
    cpuid_set_vcpu(cpuid, &vcpu);
}

#define MAKE(entries, ...) make(entries, sizeof(entries), (CpuidVcpu){ __VA_ARGS__ })

/* As KVM looks them up; there must be exactly one. */
static struct kvm_cpuid_entry2 leaf(uint32_t function, uint32_t index)
{
    struct kvm_cpuid_entry2 found = { 0 };
    unsigned nb = 0;

    for (uint32_t i = 0; i < cpuid->nent; i++) {
        const struct kvm_cpuid_entry2 *e = &cpuid->entries[i];

        if (e->function == function && (e->index == index || !(e->flags & INDEXED))) {
            found = *e;
            nb++;
        }
    }
    if (nb != 1) {
        test_fail(__FILE__, __LINE__, "leaf 0x%x.%u is there %u times", function, index, nb);
    }
    return found;
}

/* The width of the ids below the package, and each level's count, type and id. */
static void expect_topology(uint32_t function, unsigned index, unsigned nb_cpus)
{
    struct kvm_cpuid_entry2 threads = leaf(function, 0), cores = leaf(function, 1);

    EXPECT_EQ(threads.eax, 0);
    EXPECT_EQ(threads.ebx, 1);
    EXPECT_EQ(threads.ecx, 1 << 8);
    EXPECT_EQ(threads.edx, index);
    EXPECT_EQ((nb_cpus - 1) >> cores.eax, 0);                        /* all in one package */
    EXPECT_TRUE(cores.eax == 0 || (nb_cpus - 1) >> (cores.eax - 1)); /* no bit too many */
    EXPECT_EQ(cores.ebx, nb_cpus);
    EXPECT_EQ(cores.ecx, 1 | 2 << 8);
    EXPECT_EQ(cores.edx, index);
}

static unsigned sharing(uint32_t eax)
{
    return (eax >> 14 & 0xfff) + 1;
}

/* A power of two, the smallest that is not below the count. */
static void expect_ids(unsigned ids, unsigned nb_cpus)
{
    EXPECT_EQ(ids & (ids - 1), 0);
    EXPECT_TRUE(ids >= nb_cpus && ids < 2 * nb_cpus);
}

TEST(cpuid, intel_cores_are_in_one_package_and_share_the_last_cache)
{
    for (size_t c = 0; c < ARRAY_SIZE(counts); c++) {
        for (unsigned index = 0; index < counts[c]; index++) {
            MAKE(intel, .index = index, .nb_cpus = counts[c]);
            EXPECT_EQ(leaf(1, 0).ebx, index << 24 | counts[c] << 16 | 0x5678);
            EXPECT_EQ(leaf(1, 0).edx >> 28 & 1, counts[c] > 1);
            EXPECT_EQ(sharing(leaf(4, 0).eax), 1);
            expect_ids(sharing(leaf(4, 1).eax), counts[c]);
            expect_ids((leaf(4, 0).eax >> 26) + 1, counts[c]);
            EXPECT_EQ(leaf(4, 1).eax >> 26, leaf(4, 0).eax >> 26);
            EXPECT_EQ(leaf(4, 2).eax, 0); /* the end of the list */
            expect_topology(0xb, index, counts[c]);
            expect_topology(0x1f, index, counts[c]);
            EXPECT_EQ(leaf(0x80000008, 0).ecx, 0); /* AMD's alone */
            EXPECT_EQ(leaf(0x80000001, 0).ecx, 0x121);
        }
    }
}

TEST(cpuid, amd_cores_are_in_one_package_and_share_the_last_cache)
{
    for (size_t c = 0; c < ARRAY_SIZE(counts); c++) {
        for (unsigned index = 0; index < counts[c]; index++) {
            MAKE(amd, .index = index, .nb_cpus = counts[c]);
            EXPECT_EQ(leaf(1, 0).ebx, index << 24 | counts[c] << 16 | 0x0800);
            EXPECT_EQ(leaf(1, 0).edx >> 28 & 1, counts[c] > 1);
            EXPECT_EQ(leaf(4, 0).eax, 0);
            expect_topology(0xb, index, counts[c]);
            EXPECT_EQ(leaf(0xb, 2).eax | leaf(0xb, 2).ebx, 0);
            EXPECT_EQ(leaf(0xb, 2).ecx, 2); /* of no type: the end */
            EXPECT_EQ(leaf(0x80000001, 0).ecx >> 1 & 1, counts[c] > 1);
            EXPECT_EQ((leaf(0x80000008, 0).ecx & 0xff) + 1, counts[c]);
            EXPECT_EQ(leaf(0x80000008, 0).ecx >> 12 & 0xf, leaf(0xb, 1).eax);
            EXPECT_EQ(sharing(leaf(0x8000001d, 0).eax), 1);
            EXPECT_EQ(sharing(leaf(0x8000001d, 2).eax), 1);
            EXPECT_EQ(sharing(leaf(0x8000001d, 3).eax), counts[c]);
            EXPECT_EQ(leaf(0x8000001d, 4).eax, 0);
            EXPECT_EQ(leaf(0x8000001e, 0).eax, index);
            EXPECT_EQ(leaf(0x8000001e, 0).ebx, index); /* one thread a core */
            EXPECT_EQ(leaf(0x8000001e, 0).ecx, 0);     /* one node */
        }
    }
}

TEST(cpuid, levels_are_added_only_where_the_processor_has_the_leaf)
{
    struct kvm_cpuid_entry2 old[] = { intel[0], intel[1] };

    MAKE(amd, .nb_cpus = 2); /* the last leaf is 0x10 */
    for (uint32_t i = 0; i < cpuid->nent; i++) {
        EXPECT_NE(cpuid->entries[i].function, 0x1f);
    }
    old[0].eax = 0xa;
    MAKE(old, .nb_cpus = 2);
    EXPECT_EQ(cpuid->nent, 2);
}

TEST(cpuid, hypervisor_leaves_tell_of_kvm_and_of_the_clocks)
{
    MAKE(intel, .nb_cpus = 1, .tsc_khz = 2596096, .tsc_deadline = true);
    EXPECT_EQ(leaf(0x40000000, 0).eax, 0x40000010);
    EXPECT_EQ(leaf(0x40000000, 0).ebx, 0x4b4d564b);
    EXPECT_EQ(leaf(0x40000010, 0).eax, 2596096);
    EXPECT_EQ(leaf(0x40000010, 0).ebx, 1000000);
    EXPECT_EQ(leaf(1, 0).ecx, 0x00200000 | 1u << 31 | 1 << 24);

    MAKE(intel, .nb_cpus = 1); /* nothing is known of the clocks */
    EXPECT_EQ(leaf(0x40000000, 0).eax, 0x40000001);
    EXPECT_EQ(leaf(1, 0).ecx, 0x00200000 | 1u << 31);
}

TEST(cpuid, what_kvm_knows_better_stays_as_it_was)
{
    MAKE(intel, .index = 5, .nb_cpus = 6, .tsc_khz = 1000);
    for (unsigned i = 0; i < ARRAY_SIZE(intel); i++) {
        if (intel[i].function == 0 || intel[i].function == 0xd) {
            struct kvm_cpuid_entry2 now = leaf(intel[i].function, intel[i].index);

            EXPECT_EQ(memcmp(&now, &intel[i], sizeof(now)), 0);
        }
    }
    EXPECT_LE(cpuid->nent, ARRAY_SIZE(intel) + CPUID_ENTRIES_ADDED);
}

TEST(cpuid, address_width_is_that_of_the_leaf_or_that_of_old_processors)
{
    MAKE(amd, .nb_cpus = 1);
    EXPECT_EQ(cpuid_phys_bits(cpuid), 48);
    cpuid->nent = 2;
    EXPECT_EQ(cpuid_phys_bits(cpuid), 36);
}

TEST_MAIN()
