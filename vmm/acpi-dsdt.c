/*
 * acpi-dsdt - the DSDT's AML: what a guest cannot find out by asking the hardware
 *
 *     \_SB  PCI0  PCI Express host: windows, interrupt of every slot and pin
 *           MBRD  the ECAM, claimed so that nobody else takes it
 *           Cnnn  a processor each
 *           COM1  RTC0  PEVT (pvpanic)
 *           VRnn  a virtio-mmio device each
 *     \_S5  the value that switches the machine off
 *
 * Numbers come from layout.h and AcpiParams only.
 */
#include "vmm/acpi-dsdt.h"

#include <stdio.h>
#include <string.h>

#include "vmm/aml.h"
#include "vmm/layout.h"

/* _HID is a string of ACPI's own name space, or an EISA id. */
static void begin_device(Aml *aml, const char *name, const char *hid, unsigned uid)
{
    aml_begin_device(aml, name);
    aml_name(aml, "_HID");
    if (strncmp(hid, "PNP", 3) == 0) {
        aml_eisa_id(aml, hid);
    } else {
        aml_string(aml, hid);
    }
    aml_name(aml, "_UID");
    aml_integer(aml, uid);
}

/* For every slot and pin a package {address, pin, no link device, GSI}. */
static void write_pci_routing(Aml *aml)
{
    aml_name(aml, "_PRT");
    aml_begin_package(aml, LAYOUT_PCI_SLOTS * 4);
    for (uint32_t slot = 0; slot < LAYOUT_PCI_SLOTS; slot++) {
        for (uint32_t pin = 0; pin < 4; pin++) {
            aml_begin_package(aml, 4);
            aml_integer(aml, slot << 16 | 0xffff);
            aml_integer(aml, pin);
            aml_integer(aml, 0);
            aml_integer(aml, layout_pci_gsi(slot, pin));
            aml_end(aml);
        }
    }
    aml_end(aml);
}

static void write_pci_host(Aml *aml, const AcpiParams *params)
{
    begin_device(aml, "PCI0", "PNP0A08", 0);
    aml_name(aml, "_CID");
    aml_eisa_id(aml, "PNP0A03");
    aml_name(aml, "_SEG");
    aml_integer(aml, 0);
    aml_name(aml, "_BBN");
    aml_integer(aml, 0);
    aml_name(aml, "_CRS");
    aml_begin_resources(aml);
    aml_bus_window(aml, 0, (uint16_t)(params->ecam_bytes / ACPI_BUS_BYTES));
    aml_io(aml, LAYOUT_PCI_CF8_PORT, 8);
    aml_io_window(aml, 0, LAYOUT_PCI_CF8_PORT);
    aml_io_window(aml, LAYOUT_PCI_CF8_PORT + 8, UINT16_MAX - (LAYOUT_PCI_CF8_PORT + 8) + 1);
    aml_memory32_window(aml, params->mmio32_gpa, params->mmio32_bytes);
    if (params->mmio64_bytes) {
        aml_memory64_window(aml, params->mmio64_gpa, params->mmio64_bytes);
    }
    aml_end(aml);
    write_pci_routing(aml);
    aml_end(aml);
}

/* Memory that no driver claims but that is no PCI device's either: the ECAM. */
static void write_motherboard(Aml *aml, const AcpiParams *params)
{
    begin_device(aml, "MBRD", "PNP0C02", 0);
    aml_name(aml, "_CRS");
    aml_begin_resources(aml);
    aml_memory32_fixed(aml, params->ecam_gpa, params->ecam_bytes);
    aml_end(aml);
    aml_end(aml);
}

static void write_cpus(Aml *aml, const AcpiParams *params)
{
    for (unsigned i = 0; i < params->nb_cpus; i++) {
        char name[8];

        snprintf(name, sizeof(name), "C%03X", i & 0xfff);
        begin_device(aml, name, "ACPI0007", i);
        aml_end(aml);
    }
}

/* The RTC has no interrupt: it tells the time, its alarm is not emulated. */
static void write_legacy_devices(Aml *aml)
{
    begin_device(aml, "COM1", "PNP0501", 1);
    aml_name(aml, "_CRS");
    aml_begin_resources(aml);
    aml_io(aml, LAYOUT_COM1_PORT, 8);
    aml_irq(aml, LAYOUT_COM1_GSI);
    aml_end(aml);
    aml_end(aml);

    begin_device(aml, "RTC0", "PNP0B00", 0);
    aml_name(aml, "_CRS");
    aml_begin_resources(aml);
    aml_io(aml, LAYOUT_RTC_PORT, 2);
    aml_end(aml);
    aml_end(aml);

    begin_device(aml, "PEVT", "QEMU0001", 0);
    aml_name(aml, "_STA");
    aml_integer(aml, 0x0f);
    aml_name(aml, "_CRS");
    aml_begin_resources(aml);
    aml_io(aml, LAYOUT_PVPANIC_PORT, 1);
    aml_end(aml);
    aml_end(aml);
}

static void write_virtio_mmio(Aml *aml, const AcpiParams *params)
{
    for (unsigned i = 0; i < params->nb_mmio_devices; i++) {
        const AcpiMmioDevice *dev = &params->mmio_devices[i];
        char name[8];

        snprintf(name, sizeof(name), "VR%02X", i & 0xff);
        begin_device(aml, name, "LNRO0005", i);
        aml_name(aml, "_CRS");
        aml_begin_resources(aml);
        aml_memory32_fixed(aml, dev->gpa, dev->window_bytes);
        aml_interrupt_edge(aml, dev->gsi);
        aml_end(aml);
        aml_end(aml);
    }
}

/* Soft-off is the one sleeping state: SLP_TYP for PM1a and PM1b. */
static void write_sleep_states(Aml *aml)
{
    aml_name(aml, "\\_S5_");
    aml_begin_package(aml, 4);
    aml_integer(aml, LAYOUT_S5_SLEEP_TYPE);
    aml_integer(aml, LAYOUT_S5_SLEEP_TYPE);
    aml_integer(aml, 0);
    aml_integer(aml, 0);
    aml_end(aml);
}

size_t acpi_write_dsdt(const AcpiParams *params, void *buf, size_t capacity_bytes)
{
    Aml aml;

    aml_init(&aml, buf, capacity_bytes);
    aml_begin_scope(&aml, "\\_SB_");
    write_pci_host(&aml, params);
    write_motherboard(&aml, params);
    write_cpus(&aml, params);
    write_legacy_devices(&aml);
    write_virtio_mmio(&aml, params);
    aml_end(&aml);
    write_sleep_states(&aml);
    return aml_overflowed(&aml) ? 0 : aml.len_bytes;
}
