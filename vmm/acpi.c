/*
 * acpi - the ACPI tables that tell the guest what machine this is
 *
 *     RSDP ─► XSDT ─┬► FADT ─┬► FACS
 *                   ├► MADT  └► DSDT (acpi-dsdt.c)
 *                   └► MCFG
 *
 * 1. The RSDP is the first thing in the area, where a kernel that is not told of it looks.
 * 2. A table is complete, checksum included, before one that points to it is written.
 * 3. Numbers come from layout.h and AcpiParams only; what devices/ and the machine put there is
 *    made from the same.
 * 4. This half of vmm/ runs on x86-64 hosts only, so structures in host byte order are right.
 */
#include "vmm/acpi.h"

#include <inttypes.h>
#include <string.h>

#include "vmm/acpi-dsdt.h"
#include "vmm/layout.h"

#define TABLE_ALIGN 64u /* what the FACS needs, and good enough for all */
#define MAX_BUSES   256u

typedef struct PACKED AcpiHeader {
    char signature[4];
    uint32_t len_bytes;
    uint8_t revision;
    uint8_t checksum;
    char oem_id[6];
    char oem_table_id[8];
    uint32_t oem_revision;
    char creator_id[4];
    uint32_t creator_revision;
} AcpiHeader;
static_assert(sizeof(AcpiHeader) == 36, "ACPI 5.2.6");

typedef struct PACKED AcpiRsdp {
    char signature[8];
    uint8_t checksum; /* of the first 20 bytes */
    char oem_id[6];
    uint8_t revision;
    uint32_t rsdt_gpa;
    uint32_t len_bytes;
    uint64_t xsdt_gpa;
    uint8_t extended_checksum;
    uint8_t reserved[3];
} AcpiRsdp;
static_assert(sizeof(AcpiRsdp) == 36, "ACPI 5.2.5.3");
#define RSDP_V1_BYTES 20

typedef struct PACKED AcpiAddress {
    uint8_t space;
    uint8_t bit_width;
    uint8_t bit_offset;
    uint8_t access_size;
    uint64_t address;
} AcpiAddress;
static_assert(sizeof(AcpiAddress) == 12, "ACPI 5.2.3.2");
#define ADDRESS_SPACE_IO 1

typedef struct PACKED AcpiFadt {
    AcpiHeader header;
    uint32_t facs_gpa32;
    uint32_t dsdt_gpa32;
    uint8_t reserved0;
    uint8_t preferred_pm_profile;
    uint16_t sci_int;
    uint32_t smi_cmd;
    uint8_t acpi_enable, acpi_disable, s4bios_req, pstate_cnt;
    uint32_t pm1a_evt_blk, pm1b_evt_blk, pm1a_cnt_blk, pm1b_cnt_blk;
    uint32_t pm2_cnt_blk, pm_tmr_blk, gpe0_blk, gpe1_blk;
    uint8_t pm1_evt_len, pm1_cnt_len, pm2_cnt_len, pm_tmr_len;
    uint8_t gpe0_len, gpe1_len, gpe1_base, cst_cnt;
    uint16_t c2_latency, c3_latency;
    uint16_t flush_size, flush_stride;
    uint8_t duty_offset, duty_width;
    uint8_t day_alarm, month_alarm, century;
    uint16_t iapc_boot_arch;
    uint8_t reserved1;
    uint32_t flags;
    AcpiAddress reset_reg;
    uint8_t reset_value;
    uint16_t arm_boot_arch;
    uint8_t minor_version;
    uint64_t facs_gpa;
    uint64_t dsdt_gpa;
    AcpiAddress x_pm1a_evt_blk, x_pm1b_evt_blk, x_pm1a_cnt_blk, x_pm1b_cnt_blk;
    AcpiAddress x_pm2_cnt_blk, x_pm_tmr_blk, x_gpe0_blk, x_gpe1_blk;
    AcpiAddress sleep_control_reg, sleep_status_reg;
    char hypervisor_vendor[8];
} AcpiFadt;
static_assert(sizeof(AcpiFadt) == 276, "ACPI 5.2.9");
static_assert(offsetof(AcpiFadt, flags) == 112, "ACPI 5.2.9");
static_assert(offsetof(AcpiFadt, x_pm1a_evt_blk) == 148, "ACPI 5.2.9");

#define FADT_REVISION       6
#define FADT_MINOR_REVISION 3
#define PM_PROFILE_SERVER   4
#define NO_C2_LATENCY_US    101  /* more than 100: no such state */
#define NO_C3_LATENCY_US    1001 /* more than 1000: no such state */

#define FADT_WBINVD        (1u << 0)
#define FADT_PROC_C1       (1u << 2)
#define FADT_SLP_BUTTON    (1u << 5) /* set: not a fixed feature; as is the power button, bit 4 */
#define FADT_FIX_RTC       (1u << 6) /* set: no RTC wake-up status in PM1 */
#define FADT_RESET_REG_SUP (1u << 10)

#define IAPC_LEGACY_DEVICES (1u << 0)
#define IAPC_NO_VGA         (1u << 2)
#define IAPC_NO_ASPM        (1u << 4)

typedef struct PACKED AcpiFacs {
    char signature[4];
    uint32_t len_bytes;
    uint32_t hardware_signature;
    uint32_t waking_vector;
    uint32_t global_lock;
    uint32_t flags;
    uint64_t x_waking_vector;
    uint8_t version;
    uint8_t reserved[31];
} AcpiFacs;
static_assert(sizeof(AcpiFacs) == 64, "ACPI 5.2.10");
#define FACS_VERSION 2

typedef struct PACKED AcpiMadt {
    AcpiHeader header;
    uint32_t lapic_gpa;
    uint32_t flags;
} AcpiMadt;
#define MADT_REVISION    4
#define MADT_PCAT_COMPAT 1u

typedef struct PACKED MadtLapic {
    uint8_t type, len_bytes;
    uint8_t processor_uid;
    uint8_t apic_id;
    uint32_t flags;
} MadtLapic;
static_assert(sizeof(MadtLapic) == 8, "ACPI 5.2.12.2");
#define MADT_LAPIC_ENABLED 1u

typedef struct PACKED MadtIoapic {
    uint8_t type, len_bytes;
    uint8_t ioapic_id;
    uint8_t reserved;
    uint32_t gpa;
    uint32_t gsi_base;
} MadtIoapic;
static_assert(sizeof(MadtIoapic) == 12, "ACPI 5.2.12.3");

typedef struct PACKED MadtOverride {
    uint8_t type, len_bytes;
    uint8_t bus;
    uint8_t irq;
    uint32_t gsi;
    uint16_t flags;
} MadtOverride;
static_assert(sizeof(MadtOverride) == 10, "ACPI 5.2.12.5");
#define MADT_ACTIVE_HIGH 0x1u
#define MADT_LEVEL       0xcu

typedef struct PACKED MadtLapicNmi {
    uint8_t type, len_bytes;
    uint8_t processor_uid;
    uint16_t flags;
    uint8_t lint;
} MadtLapicNmi;
static_assert(sizeof(MadtLapicNmi) == 6, "ACPI 5.2.12.7");
#define MADT_ALL_PROCESSORS 0xff

enum {
    MADT_TYPE_LAPIC = 0,
    MADT_TYPE_IOAPIC = 1,
    MADT_TYPE_OVERRIDE = 2,
    MADT_TYPE_LAPIC_NMI = 4,
};

#define TIMER_IRQ 0
#define TIMER_GSI 2

typedef struct PACKED AcpiMcfg {
    AcpiHeader header;
    uint64_t reserved0;
    uint64_t ecam_gpa;
    uint16_t segment;
    uint8_t first_bus, last_bus;
    uint32_t reserved1;
} AcpiMcfg;
static_assert(sizeof(AcpiMcfg) == 60, "PCI Firmware 4.1.2");

#define MAX_XSDT_TABLES 3

/* The area that tables are taken from, one behind the other; it starts zeroed. */
typedef struct AcpiArea {
    uint8_t *hva;
    uint64_t gpa;
    size_t capacity_bytes;
    size_t used_bytes;
    bool full;
} AcpiArea;

/* Room for a table; NULL when there is none. */
static void *area_take(AcpiArea *area, size_t len_bytes)
{
    size_t start = ALIGN_UP(area->used_bytes, (size_t)TABLE_ALIGN);

    if (area->full || start > area->capacity_bytes || len_bytes > area->capacity_bytes - start) {
        area->full = true;
        return NULL;
    }
    area->used_bytes = start + len_bytes;
    return area->hva + start;
}

static uint64_t area_gpa(const AcpiArea *area, const void *table)
{
    return area->gpa + (uint64_t)((const uint8_t *)table - area->hva);
}

static uint8_t checksum(const void *data, size_t len_bytes)
{
    const uint8_t *bytes = data;
    uint8_t sum = 0;

    for (size_t i = 0; i < len_bytes; i++) {
        sum += bytes[i];
    }
    return (uint8_t)-sum;
}

/* Fills the header in and closes the table: nothing is changed in it afterwards. */
static void finish_table(void *table, const char *signature, uint8_t revision, size_t len_bytes)
{
    AcpiHeader *header = table;

    memcpy(header->signature, signature, sizeof(header->signature));
    header->len_bytes = (uint32_t)len_bytes;
    header->revision = revision;
    memcpy(header->oem_id, "PNSTCK", sizeof(header->oem_id));
    memcpy(header->oem_table_id, "PENSTOCK", sizeof(header->oem_table_id));
    header->oem_revision = 1;
    memcpy(header->creator_id, "PNSK", sizeof(header->creator_id));
    header->creator_revision = 1;
    header->checksum = 0;
    header->checksum = checksum(table, len_bytes);
}

static const void *write_dsdt(AcpiArea *area, const AcpiParams *params)
{
    AcpiHeader *header = area_take(area, sizeof(*header));
    size_t len_bytes;

    if (!header) {
        return NULL;
    }
    len_bytes = acpi_write_dsdt(params, header + 1, area->capacity_bytes - area->used_bytes);
    if (len_bytes == 0) {
        area->full = true;
        return NULL;
    }
    area->used_bytes += len_bytes;
    /* revision 2: integers have 64 bits */
    finish_table(header, "DSDT", 2, sizeof(*header) + len_bytes);
    return header;
}

static const void *write_facs(AcpiArea *area)
{
    AcpiFacs *facs = area_take(area, sizeof(*facs));

    if (facs) {
        memcpy(facs->signature, "FACS", sizeof(facs->signature));
        facs->len_bytes = sizeof(*facs);
        facs->version = FACS_VERSION;
    }
    return facs;
}

static AcpiAddress io_address(uint16_t port, uint8_t len_bytes)
{
    return (AcpiAddress){
        .space = ADDRESS_SPACE_IO,
        .bit_width = (uint8_t)(len_bytes * 8),
        .access_size = len_bytes == 1   ? 1
                       : len_bytes == 2 ? 2
                                        : 3, /* byte, word, dword */
        .address = port,
    };
}

static const void *write_fadt(AcpiArea *area, const void *facs, const void *dsdt)
{
    AcpiFadt *fadt = area_take(area, sizeof(*fadt));

    if (!fadt || !facs || !dsdt) {
        return NULL;
    }
    fadt->facs_gpa32 = (uint32_t)area_gpa(area, facs);
    fadt->dsdt_gpa32 = (uint32_t)area_gpa(area, dsdt);
    fadt->dsdt_gpa = area_gpa(area, dsdt);
    fadt->preferred_pm_profile = PM_PROFILE_SERVER;
    fadt->sci_int = LAYOUT_SCI_GSI;
    fadt->pm1a_evt_blk = LAYOUT_PM1_EVT_PORT;
    fadt->pm1a_cnt_blk = LAYOUT_PM1_CNT_PORT;
    fadt->pm_tmr_blk = LAYOUT_PM_TMR_PORT;
    fadt->pm1_evt_len = 4;
    fadt->pm1_cnt_len = 2;
    fadt->pm_tmr_len = 4;
    fadt->x_pm1a_evt_blk = io_address(LAYOUT_PM1_EVT_PORT, 4);
    fadt->x_pm1a_cnt_blk = io_address(LAYOUT_PM1_CNT_PORT, 2);
    fadt->x_pm_tmr_blk = io_address(LAYOUT_PM_TMR_PORT, 4);
    fadt->c2_latency = NO_C2_LATENCY_US;
    fadt->c3_latency = NO_C3_LATENCY_US;
    fadt->iapc_boot_arch = IAPC_LEGACY_DEVICES | IAPC_NO_VGA | IAPC_NO_ASPM;
    fadt->flags = FADT_WBINVD | FADT_PROC_C1 | FADT_SLP_BUTTON | FADT_FIX_RTC | FADT_RESET_REG_SUP;
    fadt->reset_reg = io_address(LAYOUT_RESET_PORT, 1);
    fadt->reset_value = LAYOUT_RESET_VALUE;
    fadt->minor_version = FADT_MINOR_REVISION;
    memcpy(fadt->hypervisor_vendor, "PENSTOCK", sizeof(fadt->hypervisor_vendor));
    finish_table(fadt, "FACP", FADT_REVISION, sizeof(*fadt));
    return fadt;
}

static const void *write_madt(AcpiArea *area, const AcpiParams *params)
{
    size_t len_bytes = sizeof(AcpiMadt) + params->nb_cpus * sizeof(MadtLapic) + sizeof(MadtIoapic) +
                       2 * sizeof(MadtOverride) + sizeof(MadtLapicNmi);
    AcpiMadt *madt = area_take(area, len_bytes);
    MadtLapic *lapic;
    MadtIoapic *ioapic;
    MadtOverride *override;
    MadtLapicNmi *nmi;

    if (!madt) {
        return NULL;
    }
    madt->lapic_gpa = LAYOUT_LAPIC_GPA;
    madt->flags = MADT_PCAT_COMPAT;
    lapic = (MadtLapic *)(madt + 1);
    for (unsigned i = 0; i < params->nb_cpus; i++) {
        *lapic++ = (MadtLapic){ .type = MADT_TYPE_LAPIC,
                                .len_bytes = sizeof(*lapic),
                                .processor_uid = (uint8_t)i,
                                .apic_id = (uint8_t)i,
                                .flags = MADT_LAPIC_ENABLED };
    }
    ioapic = (MadtIoapic *)lapic;
    *ioapic++ = (MadtIoapic){ .type = MADT_TYPE_IOAPIC,
                              .len_bytes = sizeof(*ioapic),
                              .gpa = LAYOUT_IOAPIC_GPA };
    override = (MadtOverride *)ioapic;
    *override++ = (MadtOverride){ .type = MADT_TYPE_OVERRIDE,
                                  .len_bytes = sizeof(*override),
                                  .irq = TIMER_IRQ,
                                  .gsi = TIMER_GSI };
    *override++ = (MadtOverride){ .type = MADT_TYPE_OVERRIDE,
                                  .len_bytes = sizeof(*override),
                                  .irq = LAYOUT_SCI_GSI,
                                  .gsi = LAYOUT_SCI_GSI,
                                  .flags = MADT_ACTIVE_HIGH | MADT_LEVEL };
    nmi = (MadtLapicNmi *) override;
    *nmi++ = (MadtLapicNmi){ .type = MADT_TYPE_LAPIC_NMI,
                             .len_bytes = sizeof(*nmi),
                             .processor_uid = MADT_ALL_PROCESSORS,
                             .lint = 1 };
    assert((uint8_t *)nmi == (uint8_t *)madt + len_bytes);
    finish_table(madt, "APIC", MADT_REVISION, len_bytes);
    return madt;
}

static const void *write_mcfg(AcpiArea *area, const AcpiParams *params)
{
    AcpiMcfg *mcfg = area_take(area, sizeof(*mcfg));

    if (mcfg) {
        mcfg->ecam_gpa = params->ecam_gpa;
        mcfg->last_bus = (uint8_t)(params->ecam_bytes / ACPI_BUS_BYTES - 1);
        finish_table(mcfg, "MCFG", 1, sizeof(*mcfg));
    }
    return mcfg;
}

static const void *write_xsdt(AcpiArea *area, const void *const tables[MAX_XSDT_TABLES])
{
    size_t len_bytes = sizeof(AcpiHeader) + MAX_XSDT_TABLES * sizeof(uint64_t);
    uint8_t *xsdt = area_take(area, len_bytes);

    if (!xsdt) {
        return NULL;
    }
    for (unsigned i = 0; i < MAX_XSDT_TABLES; i++) {
        uint64_t gpa = area_gpa(area, tables[i]);

        memcpy(xsdt + sizeof(AcpiHeader) + i * sizeof(gpa), &gpa, sizeof(gpa));
    }
    finish_table(xsdt, "XSDT", 1, len_bytes);
    return xsdt;
}

static void write_rsdp(AcpiRsdp *rsdp, uint64_t xsdt_gpa)
{
    memcpy(rsdp->signature, "RSD PTR ", sizeof(rsdp->signature));
    memcpy(rsdp->oem_id, "PNSTCK", sizeof(rsdp->oem_id));
    rsdp->revision = 2;
    rsdp->len_bytes = sizeof(*rsdp);
    rsdp->xsdt_gpa = xsdt_gpa;
    rsdp->checksum = checksum(rsdp, RSDP_V1_BYTES);
    rsdp->extended_checksum = checksum(rsdp, sizeof(*rsdp));
}

/* --- */

void acpi_params_init(AcpiParams *params, unsigned nb_cpus)
{
    *params = (AcpiParams){
        .nb_cpus = nb_cpus,
        .ecam_gpa = LAYOUT_ECAM_GPA,
        .ecam_bytes = LAYOUT_ECAM_BYTES,
        .mmio32_gpa = LAYOUT_PCI_MMIO32_GPA,
        .mmio32_bytes = LAYOUT_PCI_MMIO32_BYTES,
    };
}

static int check_params(const AcpiParams *params, Error *err)
{
    uint32_t end32;
    uint64_t end64;

    if (params->nb_cpus == 0 || params->nb_cpus > ACPI_MAX_CPUS) {
        return error_set(err, -EINVAL, "ACPI: %u CPUs, 1 to %u are possible", params->nb_cpus,
                         ACPI_MAX_CPUS);
    }
    if (params->ecam_bytes == 0 || params->ecam_bytes % ACPI_BUS_BYTES ||
        params->ecam_bytes / ACPI_BUS_BYTES > MAX_BUSES ||
        !checked_add(params->ecam_gpa, params->ecam_bytes - 1, &end32)) {
        return error_set(err, -EINVAL, "ACPI: ECAM of 0x%" PRIx32 " bytes at 0x%" PRIx32,
                         params->ecam_bytes, params->ecam_gpa);
    }
    if (params->mmio32_bytes == 0 ||
        !checked_add(params->mmio32_gpa, params->mmio32_bytes - 1, &end32) ||
        (params->mmio64_bytes &&
         !checked_add(params->mmio64_gpa, params->mmio64_bytes - 1, &end64))) {
        return error_set(err, -EINVAL, "ACPI: a PCI window is empty or wraps around");
    }
    if (params->nb_mmio_devices > LAYOUT_VIRTIO_MMIO_MAX) {
        return error_set(err, -EINVAL, "ACPI: %u virtio-mmio devices, %u are possible",
                         params->nb_mmio_devices, LAYOUT_VIRTIO_MMIO_MAX);
    }
    return 0;
}

int acpi_build(const AcpiParams *params, const GuestImage *image, uint64_t *ret_rsdp_gpa,
               Error *err)
{
    AcpiArea area = { .gpa = LAYOUT_ACPI_GPA, .capacity_bytes = LAYOUT_ACPI_BYTES };
    const void *facs, *dsdt, *xsdt, *tables[MAX_XSDT_TABLES];
    AcpiRsdp *rsdp;
    int r = check_params(params, err);

    if (r < 0) {
        return r;
    }
    area.hva = guest_image_at(image, LAYOUT_ACPI_GPA, LAYOUT_ACPI_BYTES);
    if (!area.hva) {
        return error_set(err, -ENOSPC, "ACPI: the guest has less than 1 MiB of memory");
    }
    memset(area.hva, 0, LAYOUT_ACPI_BYTES);

    rsdp = area_take(&area, sizeof(*rsdp));
    facs = write_facs(&area);
    dsdt = write_dsdt(&area, params);
    tables[0] = write_fadt(&area, facs, dsdt);
    tables[1] = write_madt(&area, params);
    tables[2] = write_mcfg(&area, params);
    xsdt = write_xsdt(&area, tables);
    if (area.full) {
        return error_set(err, -ENOSPC, "ACPI: the tables do not fit in %u bytes",
                         LAYOUT_ACPI_BYTES);
    }
    write_rsdp(rsdp, area_gpa(&area, xsdt));
    *ret_rsdp_gpa = area_gpa(&area, rsdp);
    return 0;
}
