/*
 * Acpi - the tables, as far as a payload looks into them
 *
 * There is no interpreter of AML here.  What a device's _CRS gives is a buffer
 * of resource descriptors whatever the code around it, so the DSDT is searched
 * for the _HID and then for the first two descriptors behind it.
 */
#include "guest-tests/lib/acpi.h"

#include "guest-tests/lib/boot.h"
#include "guest-tests/lib/cpu.h"
#include "guest-tests/lib/mem.h"
#include "guest-tests/lib/str.h"
#include "guest-tests/lib/tsc.h"

#include <stddef.h>

#define HEADER_BYTES          36
#define HEADER_LENGTH         4
#define RSDP_BYTES            20
#define RSDP_REVISION         15
#define RSDP_RSDT             16
#define RSDP_XSDT             24
#define FADT_DSDT             40
#define FADT_SCI_INT          46
#define FADT_SMI_CMD          48
#define FADT_ACPI_ENABLE      52
#define FADT_PM1A_EVENT       56
#define FADT_PM1A_CONTROL     64
#define FADT_PM1_EVENT_LENGTH 88
#define FADT_X_DSDT           140
#define FADT_FLAGS            112
#define FADT_RESET_REGISTER   116
#define FADT_RESET_VALUE      128
#define FADT_NO_FIXED_BUTTON  (1u << 4)
#define FADT_HAS_RESET        (1u << 10)
#define FADT_HW_REDUCED       (1u << 20)
#define PM1_SCI_ENABLED       1u
#define ENABLE_WAIT_MS        2000
#define MADT_ENTRIES          44
#define MADT_OVERRIDE         2
#define OVERRIDE_BYTES        10
#define OVERRIDE_IRQ          3
#define OVERRIDE_GSI          4
#define OVERRIDE_FLAGS        8
#define OVERRIDE_TRIGGER(flags) ((flags) >> 2 & 3)
#define TRIGGER_EDGE          1
#define GAS_ADDRESS           4
#define GAS_SPACE_MEMORY      0
#define GAS_SPACE_IO          1
#define HID_BYTES             8
#define CRS_SEARCH_BYTES      256
#define RES_MEMORY32_FIXED    0x86
#define RES_EXTENDED_IRQ      0x89
#define RES_MEMORY32_LENGTH   9
#define RES_MEMORY32_BYTES    12
#define RES_EXTENDED_IRQ_FLAGS 3
#define RES_EXTENDED_IRQ_GSI  5
#define IRQ_FLAG_EDGE         0x02

static uint32_t read32(const uint8_t *p)
{
    uint32_t value;

    memcpy(&value, p, sizeof(value));
    return value;
}

static uint64_t read64(const uint8_t *p)
{
    return read32(p) | (uint64_t)read32(p + 4) << 32;
}

static const uint8_t *at(uint64_t gpa)
{
    return (const uint8_t *)(uintptr_t)gpa;
}

static bool sums_to_0(const uint8_t *p, uint32_t len_bytes)
{
    uint8_t sum = 0;

    while (len_bytes-- > 0) {
        sum = (uint8_t)(sum + *p++);
    }
    return sum == 0;
}

static bool is_table(const uint8_t *table, const char *signature)
{
    return memcmp(table, signature, 4) == 0 &&
           read32(table + HEADER_LENGTH) >= HEADER_BYTES &&
           sums_to_0(table, read32(table + HEADER_LENGTH));
}

/* The table that the root table names under @signature, or NULL. */
static const uint8_t *find_table(const char *signature)
{
    const uint8_t *rsdp = at(boot_info.rsdp_gpa);
    bool wide;

    if (!rsdp || !sums_to_0(rsdp, RSDP_BYTES)) {
        return NULL;
    }
    wide = rsdp[RSDP_REVISION] >= 2 && read64(rsdp + RSDP_XSDT);

    const uint8_t *root =
        at(wide ? read64(rsdp + RSDP_XSDT) : read32(rsdp + RSDP_RSDT));
    uint32_t entry_bytes = wide ? 8 : 4;

    if (!is_table(root, wide ? "XSDT" : "RSDT")) {
        return NULL;
    }
    for (uint32_t i = HEADER_BYTES; i < read32(root + HEADER_LENGTH);
         i += entry_bytes) {
        const uint8_t *table =
            at(wide ? read64(root + i) : read32(root + i));

        if (is_table(table, signature)) {
            return table;
        }
    }
    return NULL;
}

bool acpi_is_sound(void)
{
    return find_table("FACP") != NULL;
}

void acpi_reset_machine(void)
{
    const uint8_t *fadt = find_table("FACP");

    if (!fadt || read32(fadt + HEADER_LENGTH) <= FADT_RESET_VALUE ||
        !(read32(fadt + FADT_FLAGS) & FADT_HAS_RESET)) {
        return;
    }

    const uint8_t *reg = fadt + FADT_RESET_REGISTER;
    uint64_t address = read64(reg + GAS_ADDRESS);
    if (reg[0] == GAS_SPACE_MEMORY) {
        mmio_write8(mem_map_device(address), fadt[FADT_RESET_VALUE]);
    } else if (reg[0] == GAS_SPACE_IO) {
        cpu_outb((uint16_t)address, fadt[FADT_RESET_VALUE]);
    }
}

/* Where the MADT says that an interrupt of the ISA bus goes; else it is level-
 * triggered, as an SCI is, at the input of its number. */
static void override_sci(AcpiFixed *fixed)
{
    const uint8_t *madt = find_table("APIC");
    uint32_t len = madt ? read32(madt + HEADER_LENGTH) : 0;

    for (uint32_t i = MADT_ENTRIES; i + OVERRIDE_BYTES <= len && madt[i + 1];
         i += madt[i + 1]) {
        if (madt[i] == MADT_OVERRIDE &&
            madt[i + OVERRIDE_IRQ] == fixed->sci_gsi) {
            fixed->sci_gsi = read32(madt + i + OVERRIDE_GSI);
            fixed->sci_level =
                OVERRIDE_TRIGGER(madt[i + OVERRIDE_FLAGS]) != TRIGGER_EDGE;
            return;
        }
    }
}

bool acpi_find_fixed(AcpiFixed *ret_fixed)
{
    const uint8_t *fadt = find_table("FACP");

    if (!fadt || read32(fadt + FADT_FLAGS) & FADT_HW_REDUCED ||
        !read32(fadt + FADT_PM1A_EVENT) || fadt[FADT_PM1_EVENT_LENGTH] < 4) {
        return false;
    }
    ret_fixed->status_port = (uint16_t)read32(fadt + FADT_PM1A_EVENT);
    ret_fixed->enable_port = (uint16_t)(ret_fixed->status_port +
                                        fadt[FADT_PM1_EVENT_LENGTH] / 2);
    ret_fixed->control_port = (uint16_t)read32(fadt + FADT_PM1A_CONTROL);
    ret_fixed->power_button =
        !(read32(fadt + FADT_FLAGS) & FADT_NO_FIXED_BUTTON);
    ret_fixed->sci_gsi = fadt[FADT_SCI_INT];
    ret_fixed->sci_level = true;
    override_sci(ret_fixed);
    return true;
}

bool acpi_enable(const AcpiFixed *fixed)
{
    const uint8_t *fadt = find_table("FACP");
    uint64_t start = cpu_rdtsc();

    if (!(cpu_inw(fixed->control_port) & PM1_SCI_ENABLED) && fadt &&
        read32(fadt + FADT_SMI_CMD)) {
        cpu_outb((uint16_t)read32(fadt + FADT_SMI_CMD), fadt[FADT_ACPI_ENABLE]);
    }
    while (!(cpu_inw(fixed->control_port) & PM1_SCI_ENABLED)) {
        if (cpu_rdtsc() - start > tsc_from_ms(ENABLE_WAIT_MS)) {
            return false;
        }
        cpu_pause();
    }
    return true;
}

static const uint8_t *find_dsdt(void)
{
    const uint8_t *fadt = find_table("FACP");
    uint64_t gpa = 0;

    if (fadt && read32(fadt + HEADER_LENGTH) >= FADT_X_DSDT + 8) {
        gpa = read64(fadt + FADT_X_DSDT);
    }
    if (fadt && !gpa) {
        gpa = read32(fadt + FADT_DSDT);
    }
    return gpa && is_table(at(gpa), "DSDT") ? at(gpa) : NULL;
}

/* Both descriptors between @p and @end; false if one is missing. */
static bool read_resources(const uint8_t *p, const uint8_t *end,
                           AcpiVirtioMmio *ret_device)
{
    bool has_memory = false;

    for (; p + RES_MEMORY32_BYTES <= end; p++) {
        if (!has_memory && p[0] == RES_MEMORY32_FIXED &&
            p[1] == RES_MEMORY32_LENGTH && p[2] == 0) {
            ret_device->gpa = read32(p + 4);
            ret_device->size_bytes = read32(p + 8);
            has_memory = true;
            p += RES_MEMORY32_BYTES - 1;
        } else if (has_memory && p[0] == RES_EXTENDED_IRQ) {
            ret_device->level = !(p[RES_EXTENDED_IRQ_FLAGS] & IRQ_FLAG_EDGE);
            ret_device->gsi = read32(p + RES_EXTENDED_IRQ_GSI);
            return true;
        }
    }
    return false;
}

bool acpi_find_virtio_mmio(unsigned nth, AcpiVirtioMmio *ret_device)
{
    const uint8_t *dsdt = find_dsdt();

    if (!dsdt) {
        return false;
    }

    const uint8_t *end = dsdt + read32(dsdt + HEADER_LENGTH);
    for (const uint8_t *p = dsdt; p + HID_BYTES <= end; p++) {
        if (memcmp(p, "LNRO0005", HID_BYTES) == 0 && nth-- == 0) {
            const uint8_t *stop = p + CRS_SEARCH_BYTES;

            return read_resources(p, stop < end ? stop : end, ret_device);
        }
    }
    return false;
}
