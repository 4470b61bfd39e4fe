/*
 * VmmioDevice - a virtio device behind a window of registers
 */
#include "guest-tests/lib/virtio-mmio.h"

#include "guest-tests/lib/cpu.h"
#include "guest-tests/lib/irq.h"
#include "guest-tests/lib/mem.h"
#include "guest-tests/lib/virtio.h"

#define MAGIC_VALUE    0x74726976 /* "virt" */
#define VERSION_MODERN 2

uint32_t vmmio_read(VmmioDevice *d, uint32_t offset)
{
    return mmio_read32(d->regs + offset);
}

void vmmio_write(VmmioDevice *d, uint32_t offset, uint32_t value)
{
    mmio_write32(d->regs + offset, value);
}

void vmmio_write_gpa(VmmioDevice *d, uint32_t offset, uint64_t gpa)
{
    vmmio_write(d, offset, (uint32_t)gpa);
    vmmio_write(d, offset + 4, (uint32_t)(gpa >> 32));
}

static bool is_block(VmmioDevice *d)
{
    return vmmio_read(d, VMMIO_MAGIC) == MAGIC_VALUE &&
           vmmio_read(d, VMMIO_VERSION) == VERSION_MODERN &&
           vmmio_read(d, VMMIO_DEVICE_ID) == VIRTIO_ID_BLOCK;
}

bool vmmio_open(VmmioDevice *d, unsigned nth)
{
    for (unsigned i = 0; acpi_find_virtio_mmio(i, &d->where); i++) {
        d->regs = mem_map_device(d->where.gpa);
        if (is_block(d) && nth-- == 0) {
            return true;
        }
    }
    return false;
}

/* Acknowledged at once: a line that is level-triggered would stay up. */
static void acknowledge(void *opaque, IrqFrame *frame)
{
    VmmioDevice *d = opaque;

    (void)frame;
    vmmio_write(d, VMMIO_INTERRUPT_ACK, vmmio_read(d, VMMIO_INTERRUPT_STATUS));
}

void vmmio_enable_interrupts(VmmioDevice *d, uint8_t vector)
{
    d->vector = vector;
    irq_set_handler(vector, acknowledge, d);
    irq_route_gsi(d->where.gsi, vector, d->where.level);
}

void vmmio_disable_interrupts(VmmioDevice *d)
{
    irq_mask_gsi(d->where.gsi);
}
