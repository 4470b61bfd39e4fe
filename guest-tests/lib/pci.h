/*
 * Pci - configuration space through ports 0xcf8/0xcfc, bus 0
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: the first processor (the port pair is one register).
 * Lifetime:  a PciFunction is a plain address.
 * Spec:      PCI Local Bus 3.0, 3.2.2.3.2 and 6.2.5
 */
#ifndef GUEST_TESTS_LIB_PCI_H
#define GUEST_TESTS_LIB_PCI_H

#include <stdbool.h>
#include <stdint.h>

#define PCI_VENDOR_ID     0x00
#define PCI_DEVICE_ID     0x02
#define PCI_COMMAND       0x04
#define PCI_STATUS        0x06
#define PCI_HEADER_TYPE   0x0e
#define PCI_BAR0          0x10
#define PCI_CAP_POINTER   0x34
#define PCI_NB_BARS       6

#define PCI_COMMAND_MEMORY    0x0002
#define PCI_COMMAND_MASTER    0x0004
#define PCI_COMMAND_INTX_OFF  0x0400
#define PCI_STATUS_CAP_LIST   0x0010

#define PCI_CAP_VENDOR 0x09
#define PCI_CAP_MSIX   0x11

typedef struct {
    uint8_t dev;
    uint8_t func;
} PciFunction;

uint32_t pci_read32(PciFunction f, unsigned offset);
uint16_t pci_read16(PciFunction f, unsigned offset);
uint8_t pci_read8(PciFunction f, unsigned offset);
void pci_write32(PciFunction f, unsigned offset, uint32_t value);
void pci_write16(PciFunction f, unsigned offset, uint16_t value);

/*
 * pci_find - the @nth function for which @match says yes
 * Returns false if there are fewer.
 */
bool pci_find(bool (*match)(PciFunction f), unsigned nth,
              PciFunction *ret_function);

/*
 * pci_find_cap - walk the capability list
 * @after  0 to begin, or the offset of the capability to go on from
 * Returns the offset in configuration space, 0 at the end.
 */
unsigned pci_find_cap(PciFunction f, uint8_t cap_id, unsigned after);

/*
 * pci_enable - give every memory BAR an address if it has none, then switch
 * memory decoding and bus mastering on and INTx off
 * @reassign  give them new addresses even if they have one
 */
void pci_enable(PciFunction f, bool reassign);

/* pci_bar_gpa - where a memory BAR is; 0 if it is none or has no address */
uint64_t pci_bar_gpa(PciFunction f, unsigned bar);

#endif
