/*
 * Pci - configuration space through ports 0xcf8/0xcfc, bus 0
 *
 * Firmware, or a VMM that stands in for it, has usually given BARs their
 * addresses.  Where it has not, they are packed into a window below 4 GiB,
 * around whatever other functions already have there.
 */
#include "guest-tests/lib/pci.h"

#include "guest-tests/lib/console.h"
#include "guest-tests/lib/cpu.h"

#include <stddef.h>

#define PORT_ADDRESS 0xcf8
#define PORT_DATA    0xcfc
#define ADDRESS_ON   0x80000000u

#define NB_DEVICES        32
#define NB_FUNCTIONS      8
#define MAX_CAPS          64
#define HEADER_MULTI      0x80
#define HEADER_TYPE_MASK  0x7f
#define BAR_IO            0x1
#define BAR_TYPE_MASK     0x6
#define BAR_TYPE_64       0x4
#define BAR_FLAGS         0xf

/* Where addresses are taken from: what both penstock and QEMU's q35 leave to
 * PCI between RAM, the configuration window and the interrupt controllers. */
#define WINDOW_START_GPA 0xc8000000ull
#define WINDOW_END_GPA   0xdc000000ull

static uint64_t window_next_gpa = WINDOW_START_GPA;

static void select(PciFunction f, unsigned offset)
{
    cpu_outl(PORT_ADDRESS, ADDRESS_ON | (uint32_t)f.dev << 11 |
                               (uint32_t)f.func << 8 | (offset & 0xfc));
}

uint32_t pci_read32(PciFunction f, unsigned offset)
{
    select(f, offset);
    return cpu_inl(PORT_DATA);
}

uint16_t pci_read16(PciFunction f, unsigned offset)
{
    return (uint16_t)(pci_read32(f, offset) >> 8 * (offset & 2));
}

uint8_t pci_read8(PciFunction f, unsigned offset)
{
    return (uint8_t)(pci_read32(f, offset) >> 8 * (offset & 3));
}

void pci_write32(PciFunction f, unsigned offset, uint32_t value)
{
    select(f, offset);
    cpu_outl(PORT_DATA, value);
}

void pci_write16(PciFunction f, unsigned offset, uint16_t value)
{
    uint16_t port = (uint16_t)(PORT_DATA + (offset & 2));

    select(f, offset);
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static bool is_present(PciFunction f)
{
    return pci_read16(f, PCI_VENDOR_ID) != 0xffff;
}

/* The next function after *f that is there; start with { 0, 0 } and first. */
static bool next_function(PciFunction *f, bool first)
{
    if (first && is_present(*f)) {
        return true;
    }
    for (;;) {
        if (f->func == 0 &&
            (!is_present(*f) ||
             !(pci_read8(*f, PCI_HEADER_TYPE) & HEADER_MULTI))) {
            f->func = NB_FUNCTIONS - 1;
        }
        if (++f->func >= NB_FUNCTIONS) {
            f->func = 0;
            if (++f->dev >= NB_DEVICES) {
                return false;
            }
        }
        if (is_present(*f)) {
            return true;
        }
    }
}

bool pci_find(bool (*match)(PciFunction f), unsigned nth,
              PciFunction *ret_function)
{
    PciFunction f = { 0, 0 };

    for (bool more = next_function(&f, true); more;
         more = next_function(&f, false)) {
        if (match(f) && nth-- == 0) {
            *ret_function = f;
            return true;
        }
    }
    return false;
}

unsigned pci_find_cap(PciFunction f, uint8_t cap_id, unsigned after)
{
    unsigned at;

    if (!(pci_read16(f, PCI_STATUS) & PCI_STATUS_CAP_LIST)) {
        return 0;
    }
    at = pci_read8(f, after ? after + 1 : PCI_CAP_POINTER) & 0xfc;
    for (int i = 0; at && i < MAX_CAPS; i++) {
        if (pci_read8(f, at) == cap_id) {
            return at;
        }
        at = pci_read8(f, at + 1) & 0xfc;
    }
    return 0;
}

static bool bar_is_64(uint32_t low)
{
    return !(low & BAR_IO) && (low & BAR_TYPE_MASK) == BAR_TYPE_64;
}

uint64_t pci_bar_gpa(PciFunction f, unsigned bar)
{
    uint32_t low = pci_read32(f, PCI_BAR0 + 4 * bar);
    uint64_t gpa = low & ~(uint32_t)BAR_FLAGS;

    if (low & BAR_IO) {
        return 0;
    }
    if (bar_is_64(low)) {
        gpa |= (uint64_t)pci_read32(f, PCI_BAR0 + 4 * bar + 4) << 32;
    }
    return gpa;
}

/* Sizing disturbs the BAR; the value is put back.  0: no BAR here. */
static uint64_t bar_size_bytes(PciFunction f, unsigned bar)
{
    unsigned offset = PCI_BAR0 + 4 * bar;
    uint32_t low = pci_read32(f, offset);
    uint32_t mask;

    pci_write32(f, offset, 0xffffffff);
    mask = pci_read32(f, offset);
    pci_write32(f, offset, low);
    if (mask == 0 || (low & BAR_IO)) {
        return 0;
    }
    return (uint32_t)(~(mask & ~(uint32_t)BAR_FLAGS) + 1);
}

/* If an assigned BAR overlaps the range, where the range may start instead. */
static uint64_t end_of_overlap(uint64_t start_gpa, uint64_t size_bytes)
{
    PciFunction f = { 0, 0 };

    for (bool more = next_function(&f, true); more;
         more = next_function(&f, false)) {
        if (pci_read8(f, PCI_HEADER_TYPE) & HEADER_TYPE_MASK) {
            continue;
        }

        uint16_t command = pci_read16(f, PCI_COMMAND);
        uint64_t end_gpa = 0;

        pci_write16(f, PCI_COMMAND, command & ~PCI_COMMAND_MEMORY);
        for (unsigned bar = 0; bar < PCI_NB_BARS; bar++) {
            uint64_t gpa = pci_bar_gpa(f, bar);
            uint64_t size = gpa ? bar_size_bytes(f, bar) : 0;

            if (size && gpa < start_gpa + size_bytes &&
                start_gpa < gpa + size) {
                end_gpa = gpa + size;
            }
            bar += bar_is_64(pci_read32(f, PCI_BAR0 + 4 * bar));
        }
        pci_write16(f, PCI_COMMAND, command);
        if (end_gpa) {
            return end_gpa;
        }
    }
    return 0;
}

static void assign_bar(PciFunction f, unsigned bar, uint64_t size_bytes)
{
    unsigned offset = PCI_BAR0 + 4 * bar;
    uint64_t gpa = window_next_gpa;
    uint64_t moved_gpa;

    do {
        gpa = (gpa + size_bytes - 1) & ~(size_bytes - 1);
        moved_gpa = end_of_overlap(gpa, size_bytes);
        gpa = moved_gpa ? moved_gpa : gpa;
    } while (moved_gpa);
    if (gpa + size_bytes > WINDOW_END_GPA) {
        con_printf("Bail out! no room for a BAR of %lu bytes\n", size_bytes);
        con_reset_machine();
    }
    window_next_gpa = gpa + size_bytes;
    pci_write32(f, offset, (uint32_t)gpa);
    if (bar_is_64(pci_read32(f, offset))) {
        pci_write32(f, offset + 4, 0);
    }
}

void pci_enable(PciFunction f, bool reassign)
{
    uint16_t command = pci_read16(f, PCI_COMMAND);

    pci_write16(f, PCI_COMMAND, command & ~PCI_COMMAND_MEMORY);
    for (unsigned bar = 0; bar < PCI_NB_BARS; bar++) {
        uint64_t size_bytes = bar_size_bytes(f, bar);

        if (size_bytes && (reassign || pci_bar_gpa(f, bar) == 0)) {
            assign_bar(f, bar, size_bytes);
        }
        bar += bar_is_64(pci_read32(f, PCI_BAR0 + 4 * bar));
    }
    pci_write16(f, PCI_COMMAND, command | PCI_COMMAND_MEMORY |
                                    PCI_COMMAND_MASTER | PCI_COMMAND_INTX_OFF);
}
