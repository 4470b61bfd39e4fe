/*
 * Serial - a 16550A UART whose line is a pair of callbacks
 *
 * Layer:     devices/
 * Threading: registers are accessed by vCPU threads under an internal lock; input arrives in the
 *            main context (serial_receive); output leaves through `transmit` in the vCPU thread
 *            that wrote it, which must not block for long.
 * Lifetime:  serial_create() .. serial_destroy().
 */
#ifndef DEVICES_SERIAL_H
#define DEVICES_SERIAL_H

#include "devices/platform.h"

typedef struct Serial Serial;

typedef void SerialTransmit(void *opaque, const uint8_t *data, size_t len_bytes);
/* There is room again: the guest drained the receive FIFO or left loopback mode (called in its vCPU
 * thread), or the port was reset. NULL = not interested. */
typedef void SerialRoom(void *opaque);

Serial *serial_create(Platform *platform, uint16_t port, unsigned gsi, SerialTransmit *transmit,
                      SerialRoom *room, void *opaque, Error *err) NONNULL(1, 4) WARN_UNUSED;
void serial_destroy(Serial *serial);
void serial_reset(Serial *serial) NONNULL(1);
/* Returns how many bytes the FIFO took; none in loopback mode. Main context. */
size_t serial_receive(Serial *serial, const uint8_t *data, size_t len_bytes) NONNULL(1, 2);

#endif
