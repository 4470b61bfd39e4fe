/*
 * msix.c - table, pending bits and when a vector's eventfd is attached to its route
 *
 * 1. A vector is attached exactly when MSI-X is enabled, neither the function nor the vector is
 *    masked, and the platform agreed; vector_update() is the only place that changes it.
 * 2. The pending bit of a detached vector is its eventfd's state. An attached one has none: the
 *    platform sends at once.
 * 3. Table and PBA take aligned accesses of 4 or 8 bytes (PCI 3.0 section 6.8.2); others read all
 *    ones and write nothing. The PBA is read-only.
 * 4. `lock` is a leaf but for the platform's own lock: nothing is waited for under it.
 */
#include "devices/msix.h"

#include <poll.h>

#include "devices/pci-int.h"
#include "io/base/log.h"

#define CONTROL_MASK (PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL)

static bool fd_is_signalled(int fd)
{
    struct pollfd pollfd = { .fd = fd, .events = POLLIN };

    return poll(&pollfd, 1, 0) == 1 && pollfd.revents & POLLIN;
}

static bool vector_wanted(const Msix *msix, const MsixVector *vector)
{
    uint16_t control = atomic_load(&msix->control);

    return control & PCI_MSIX_FLAGS_ENABLE && !(control & PCI_MSIX_FLAGS_MASKALL) &&
           !(vector->control & PCI_MSIX_ENTRY_CTRL_MASKBIT);
}

/* Bring `attached` in line with the registers; @message_changed: address or data are new.
 * Locked. */
static void vector_update(Msix *msix, MsixVector *vector, bool message_changed)
{
    const PlatformOps *ops = msix->platform->ops;
    void *opaque = msix->platform->opaque;
    bool wanted = vector_wanted(msix, vector);

    if (wanted && (!vector->attached || message_changed)) {
        int ret = ops->msi_attach(opaque, vector->route, vector->notifier.fd, vector->address,
                                  vector->data);

        if (ret < 0) {
            log_debug("msix", "%s: vector %td: %s", msix->dev->name, vector - msix->vectors,
                      error_strerror(ret));
            wanted = false;
        }
    }
    if (!wanted && vector->attached) {
        ops->msi_detach(opaque, vector->route, vector->notifier.fd);
    }
    vector->attached = wanted;
}

static void update_all(Msix *msix)
{
    for (unsigned i = 0; i < msix->nb_vectors; i++) {
        vector_update(msix, &msix->vectors[i], false);
    }
}

/* --- registers --- */

static uint32_t table_read32(Msix *msix, uint64_t offset)
{
    const MsixVector *vector = &msix->vectors[offset / PCI_MSIX_ENTRY_SIZE];

    switch (offset % PCI_MSIX_ENTRY_SIZE) {
    case PCI_MSIX_ENTRY_LOWER_ADDR:
        return (uint32_t)vector->address;
    case PCI_MSIX_ENTRY_UPPER_ADDR:
        return (uint32_t)(vector->address >> 32);
    case PCI_MSIX_ENTRY_DATA:
        return vector->data;
    default:
        return vector->control;
    }
}

static uint32_t pba_read32(Msix *msix, uint64_t offset)
{
    uint32_t bits = 0;

    for (unsigned bit = 0; bit < 32; bit++) {
        uint64_t i = offset * 8 + bit;

        if (i < msix->nb_vectors && !msix->vectors[i].attached &&
            fd_is_signalled(msix->vectors[i].notifier.fd)) {
            bits |= 1u << bit;
        }
    }
    return bits;
}

static uint32_t bar_read32(Msix *msix, uint64_t offset)
{
    if (offset < msix->nb_vectors * PCI_MSIX_ENTRY_SIZE) {
        return table_read32(msix, offset);
    }
    return offset >= MSIX_PBA_OFFSET ? pba_read32(msix, offset - MSIX_PBA_OFFSET) : 0;
}

static void bar_write32(Msix *msix, uint64_t offset, uint32_t value)
{
    if (offset >= msix->nb_vectors * PCI_MSIX_ENTRY_SIZE) {
        return;
    }
    MsixVector *vector = &msix->vectors[offset / PCI_MSIX_ENTRY_SIZE];
    uint64_t old_address = vector->address;
    uint32_t old_data = vector->data;

    switch (offset % PCI_MSIX_ENTRY_SIZE) {
    case PCI_MSIX_ENTRY_LOWER_ADDR:
        vector->address = (old_address & ~0xffffffffull) | (value & ~3u);
        break;
    case PCI_MSIX_ENTRY_UPPER_ADDR:
        vector->address = (old_address & 0xffffffffull) | (uint64_t)value << 32;
        break;
    case PCI_MSIX_ENTRY_DATA:
        vector->data = value;
        break;
    default:
        vector->control = value & PCI_MSIX_ENTRY_CTRL_MASKBIT;
        break;
    }
    vector_update(msix, vector, vector->address != old_address || vector->data != old_data);
}

static bool well_sized(uint64_t offset, unsigned len_bytes)
{
    return (len_bytes == 4 || len_bytes == 8) && offset % len_bytes == 0;
}

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned len_bytes)
{
    Msix *msix = opaque;
    uint64_t value = UINT64_MAX;

    if (well_sized(offset, len_bytes)) {
        pthread_mutex_lock(&msix->lock);
        value = bar_read32(msix, offset);
        if (len_bytes == 8) {
            value |= (uint64_t)bar_read32(msix, offset + 4) << 32;
        }
        pthread_mutex_unlock(&msix->lock);
    }
    return value;
}

static void bar_write(void *opaque, uint64_t offset, unsigned len_bytes, uint64_t value)
{
    Msix *msix = opaque;

    if (well_sized(offset, len_bytes)) {
        pthread_mutex_lock(&msix->lock);
        bar_write32(msix, offset, (uint32_t)value);
        if (len_bytes == 8) {
            bar_write32(msix, offset + 4, (uint32_t)(value >> 32));
        }
        pthread_mutex_unlock(&msix->lock);
    }
}

const BusOps msix_bar_ops = { .read = bar_read, .write = bar_write };

bool msix_config_written(Msix *msix, unsigned offset, unsigned len_bytes)
{
    unsigned control_offset = msix->cap_offset + PCI_MSIX_FLAGS;
    uint16_t control, old;

    if (!pci_range_touches(offset, len_bytes, control_offset, 2)) {
        return false;
    }
    control = pci_config_get16(msix->dev, control_offset) & CONTROL_MASK;
    pthread_mutex_lock(&msix->lock);
    old = atomic_exchange(&msix->control, control);
    if (control != old) {
        update_all(msix);
    }
    pthread_mutex_unlock(&msix->lock);
    return (control ^ old) & PCI_MSIX_FLAGS_ENABLE;
}

/* --- signals; any thread --- */

bool msix_enabled(const Msix *msix)
{
    return atomic_load(&msix->control) & PCI_MSIX_FLAGS_ENABLE;
}

int msix_vector_fd(const Msix *msix, unsigned vector)
{
    return vector < msix->nb_vectors ? msix->vectors[vector].notifier.fd : -1;
}

void msix_signal(Msix *msix, unsigned vector)
{
    if (vector < msix->nb_vectors) {
        event_notifier_set(&msix->vectors[vector].notifier);
    }
}

void msix_clear_pending(Msix *msix)
{
    pthread_mutex_lock(&msix->lock);
    for (unsigned i = 0; i < msix->nb_vectors; i++) {
        if (!msix->vectors[i].attached) {
            event_notifier_test_and_clear(&msix->vectors[i].notifier);
        }
    }
    pthread_mutex_unlock(&msix->lock);
}

/* --- life --- */

static int vectors_open(Msix *msix, unsigned nb_vectors, Error *err)
{
    msix->vectors = calloc(nb_vectors, sizeof(*msix->vectors));
    if (!msix->vectors) {
        return error_set(err, -ENOMEM, "%s: no memory for %u vectors", msix->dev->name,
                         nb_vectors);
    }
    for (unsigned i = 0; i < nb_vectors; i++) {
        MsixVector *vector = &msix->vectors[i];
        int ret;

        vector->control = PCI_MSIX_ENTRY_CTRL_MASKBIT;
        vector->route = -1;
        vector->notifier.fd = -1;
        msix->nb_vectors = i + 1;
        ret = event_notifier_open(&vector->notifier, err);
        if (ret < 0) {
            return ret;
        }
        vector->route = msix->platform->ops->msi_route_create(msix->platform->opaque);
        if (vector->route < 0) {
            return error_set(err, vector->route, "%s: no interrupt route for vector %u: %s",
                             msix->dev->name, i, error_strerror(vector->route));
        }
    }
    return 0;
}

static void add_capability(Msix *msix, unsigned bar)
{
    PciDevice *dev = msix->dev;
    unsigned offset = pci_add_capability(dev, PCI_CAP_ID_MSIX, PCI_CAP_MSIX_SIZEOF);

    msix->cap_offset = offset;
    pci_config_set16(dev->config, offset + PCI_MSIX_FLAGS, (uint16_t)(msix->nb_vectors - 1));
    pci_config_set16(dev->writable, offset + PCI_MSIX_FLAGS, CONTROL_MASK);
    pci_config_set32(dev->config, offset + PCI_MSIX_TABLE, bar);
    pci_config_set32(dev->config, offset + PCI_MSIX_PBA, MSIX_PBA_OFFSET | bar);
}

int msix_init(Msix *msix, PciDevice *dev, Platform *platform, unsigned nb_vectors, unsigned bar,
              Error *err)
{
    int ret;

    assert(nb_vectors >= 1 && nb_vectors <= MSIX_VECTORS_MAX && bar < PCI_BARS);
    *msix = (Msix){ .dev = dev, .platform = platform };
    pthread_mutex_init(&msix->lock, NULL);
    ret = vectors_open(msix, nb_vectors, err);
    if (ret < 0) {
        msix_finish(msix);
        return ret;
    }
    add_capability(msix, bar);
    return 0;
}

void msix_finish(Msix *msix)
{
    if (!msix || !msix->dev) {
        return;
    }
    const PlatformOps *ops = msix->platform->ops;
    void *opaque = msix->platform->opaque;

    for (unsigned i = 0; i < msix->nb_vectors; i++) {
        MsixVector *vector = &msix->vectors[i];

        if (vector->attached) {
            ops->msi_detach(opaque, vector->route, vector->notifier.fd);
        }
        if (vector->route >= 0) {
            ops->msi_route_destroy(opaque, vector->route);
        }
        event_notifier_close(&vector->notifier);
    }
    free(msix->vectors);
    pthread_mutex_destroy(&msix->lock);
    *msix = (Msix){ .dev = NULL };
}

void msix_reset(Msix *msix)
{
    unsigned control_offset = msix->cap_offset + PCI_MSIX_FLAGS;

    pci_config_set16(msix->dev->config, control_offset, (uint16_t)(msix->nb_vectors - 1));
    pthread_mutex_lock(&msix->lock);
    atomic_store(&msix->control, 0);
    for (unsigned i = 0; i < msix->nb_vectors; i++) {
        MsixVector *vector = &msix->vectors[i];

        vector->address = 0;
        vector->data = 0;
        vector->control = PCI_MSIX_ENTRY_CTRL_MASKBIT;
        vector_update(msix, vector, false);
        event_notifier_test_and_clear(&vector->notifier);
    }
    pthread_mutex_unlock(&msix->lock);
}
