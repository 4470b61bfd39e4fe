/*
 * serial.c - 16550A registers, without the time that a real line takes
 *
 * 1. What is written leaves at once: THRE and TEMT always read set. A transmitter-empty interrupt
 * is
 *    pending from the moment it is enabled, and after each byte, until IIR was read as its
 *    source, another byte is written or it is disabled; drivers test for just that.
 * 2. The receive FIFO is deeper than the 16 bytes a driver expects (RX_BYTES), and the sender waits
 *    for room instead of overrunning it. Without FIFO mode it holds one byte.
 * 3. Fewer bytes than the trigger level raise the character time-out interrupt at once.
 * 4. The line follows the registers: irq_update() after each change is the only place that sets it.
 * 5. transmit() and room() are called without the lock, in the thread of the access.
 */
#include "devices/serial.h"

#include <linux/serial_reg.h>
#include <pthread.h>

#define SERIAL_PORTS 8
#define RX_BYTES     64

#define IER_MASK (UART_IER_RDI | UART_IER_THRI | UART_IER_RLSI | UART_IER_MSI)
#define IIR_FIFO 0xc0 /* 16550A with FIFOs on */
#define MCR_MASK (UART_MCR_LOOP | UART_MCR_OUT2 | UART_MCR_OUT1 | UART_MCR_RTS | UART_MCR_DTR)

struct Serial {
    pthread_mutex_t lock; /* protects the fields down to rx_count */
    uint8_t divisor_low, divisor_high;
    uint8_t ier, fcr, lcr, mcr, scratch;
    uint8_t lsr_errors; /* sticky until LSR is read */
    uint8_t msr;
    bool thre_pending;
    bool irq_level;
    uint8_t rx[RX_BYTES]; /* ring */
    unsigned rx_first, rx_count;

    /* set up */
    Platform *platform;
    uint16_t port;
    unsigned gsi;
    SerialTransmit *transmit;
    SerialRoom *room;
    void *opaque;
    bool on_bus;
};

/* What an access leaves to be done after the lock was released. */
typedef struct SerialAfter {
    bool transmit;
    uint8_t byte;
    bool room;
} SerialAfter;

static bool fifo_enabled(const Serial *serial)
{
    return serial->fcr & UART_FCR_ENABLE_FIFO;
}

static unsigned rx_capacity(const Serial *serial)
{
    return fifo_enabled(serial) ? RX_BYTES : 1;
}

static unsigned rx_trigger(const Serial *serial)
{
    static const uint8_t level[4] = { 1, 4, 8, 14 };

    return fifo_enabled(serial) ? level[serial->fcr >> 6] : 1;
}

/* --- interrupts --- */

/* IIR without the FIFO bits: the pending source of highest priority. */
static uint8_t irq_source(const Serial *serial)
{
    if (serial->ier & UART_IER_RLSI && serial->lsr_errors) {
        return UART_IIR_RLSI;
    }
    if (serial->ier & UART_IER_RDI && serial->rx_count > 0) {
        return serial->rx_count >= rx_trigger(serial) ? UART_IIR_RDI : UART_IIR_RX_TIMEOUT;
    }
    if (serial->ier & UART_IER_THRI && serial->thre_pending) {
        return UART_IIR_THRI;
    }
    if (serial->ier & UART_IER_MSI && serial->msr & UART_MSR_ANY_DELTA) {
        return UART_IIR_MSI;
    }
    return UART_IIR_NO_INT;
}

static void irq_update(Serial *serial)
{
    bool level = irq_source(serial) != UART_IIR_NO_INT;

    if (level != serial->irq_level) {
        serial->irq_level = level;
        serial->platform->ops->irq_set_level(serial->platform->opaque, serial->gsi, level);
    }
}

/* --- receive FIFO --- */

static void rx_push(Serial *serial, uint8_t byte)
{
    if (serial->rx_count >= rx_capacity(serial)) {
        serial->lsr_errors |= UART_LSR_OE;
        return;
    }
    serial->rx[(serial->rx_first + serial->rx_count) % RX_BYTES] = byte;
    serial->rx_count++;
}

static uint8_t rx_pop(Serial *serial, SerialAfter *after)
{
    uint8_t byte;

    if (serial->rx_count == 0) {
        return 0;
    }
    byte = serial->rx[serial->rx_first];
    serial->rx_first = (serial->rx_first + 1) % RX_BYTES;
    serial->rx_count--;
    after->room = serial->rx_count == 0;
    return byte;
}

static void rx_clear(Serial *serial, SerialAfter *after)
{
    after->room = serial->rx_count > 0;
    serial->rx_first = 0;
    serial->rx_count = 0;
}

/* --- modem lines: a null modem with everything ready; looped back on demand --- */

static uint8_t modem_lines(const Serial *serial)
{
    uint8_t lines = 0;

    if (!(serial->mcr & UART_MCR_LOOP)) {
        return UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS;
    }
    lines |= serial->mcr & UART_MCR_RTS ? UART_MSR_CTS : 0;
    lines |= serial->mcr & UART_MCR_DTR ? UART_MSR_DSR : 0;
    lines |= serial->mcr & UART_MCR_OUT1 ? UART_MSR_RI : 0;
    lines |= serial->mcr & UART_MCR_OUT2 ? UART_MSR_DCD : 0;
    return lines;
}

static void modem_update(Serial *serial)
{
    uint8_t old = serial->msr & 0xf0;
    uint8_t lines = modem_lines(serial);
    uint8_t changed = old ^ lines;

    serial->msr = lines | (serial->msr & UART_MSR_ANY_DELTA);
    serial->msr |= changed & UART_MSR_CTS ? UART_MSR_DCTS : 0;
    serial->msr |= changed & UART_MSR_DSR ? UART_MSR_DDSR : 0;
    serial->msr |= changed & UART_MSR_DCD ? UART_MSR_DDCD : 0;
    serial->msr |= changed & old & UART_MSR_RI ? UART_MSR_TERI : 0; /* trailing edge only */
}

/* --- registers; locked --- */

static uint8_t read_iir(Serial *serial)
{
    uint8_t source = irq_source(serial);

    if (source == UART_IIR_THRI) {
        serial->thre_pending = false;
    }
    return source | (fifo_enabled(serial) ? IIR_FIFO : 0);
}

static uint8_t read_lsr(Serial *serial)
{
    uint8_t lsr = UART_LSR_TEMT | UART_LSR_THRE | serial->lsr_errors;

    serial->lsr_errors = 0;
    return lsr | (serial->rx_count > 0 ? UART_LSR_DR : 0);
}

static uint8_t read_msr(Serial *serial)
{
    uint8_t msr = serial->msr;

    serial->msr &= ~UART_MSR_ANY_DELTA;
    return msr;
}

static uint8_t read_register(Serial *serial, unsigned reg, SerialAfter *after)
{
    bool divisor = serial->lcr & UART_LCR_DLAB;

    switch (reg) {
    case UART_RX:
        return divisor ? serial->divisor_low : rx_pop(serial, after);
    case UART_IER:
        return divisor ? serial->divisor_high : serial->ier;
    case UART_IIR:
        return read_iir(serial);
    case UART_LCR:
        return serial->lcr;
    case UART_MCR:
        return serial->mcr;
    case UART_LSR:
        return read_lsr(serial);
    case UART_MSR:
        return read_msr(serial);
    default:
        return serial->scratch;
    }
}

static void write_tx(Serial *serial, uint8_t byte, SerialAfter *after)
{
    if (serial->mcr & UART_MCR_LOOP) {
        rx_push(serial, byte);
    } else {
        after->transmit = true;
        after->byte = byte;
    }
    serial->thre_pending = true;
}

static void write_ier(Serial *serial, uint8_t value)
{
    if (value & ~serial->ier & UART_IER_THRI) {
        serial->thre_pending = true;
    }
    serial->ier = value & IER_MASK;
}

static void write_fcr(Serial *serial, uint8_t value, SerialAfter *after)
{
    if ((value ^ serial->fcr) & UART_FCR_ENABLE_FIFO || value & UART_FCR_CLEAR_RCVR) {
        rx_clear(serial, after);
    }
    serial->fcr = value & UART_FCR_ENABLE_FIFO
                      ? value & (UART_FCR_ENABLE_FIFO | UART_FCR_TRIGGER_MASK) : 0;
}

static void write_register(Serial *serial, unsigned reg, uint8_t value, SerialAfter *after)
{
    bool divisor = serial->lcr & UART_LCR_DLAB;

    switch (reg) {
    case UART_TX:
        if (divisor) {
            serial->divisor_low = value;
        } else {
            write_tx(serial, value, after);
        }
        break;
    case UART_IER:
        if (divisor) {
            serial->divisor_high = value;
        } else {
            write_ier(serial, value);
        }
        break;
    case UART_FCR:
        write_fcr(serial, value, after);
        break;
    case UART_LCR:
        serial->lcr = value;
        break;
    case UART_MCR:
        after->room = serial->mcr & ~value & UART_MCR_LOOP; /* connected to the line again */
        serial->mcr = value & MCR_MASK;
        modem_update(serial);
        break;
    case UART_SCR:
        serial->scratch = value;
        break;
    }
}

/* --- bus --- */

static void finish_access(Serial *serial, const SerialAfter *after)
{
    if (after->transmit) {
        serial->transmit(serial->opaque, &after->byte, 1);
    }
    if (after->room && serial->room) {
        serial->room(serial->opaque);
    }
}

static uint8_t access_read(Serial *serial, unsigned reg)
{
    SerialAfter after = { .transmit = false };
    uint8_t value;

    pthread_mutex_lock(&serial->lock);
    value = read_register(serial, reg, &after);
    irq_update(serial);
    pthread_mutex_unlock(&serial->lock);
    finish_access(serial, &after);
    return value;
}

static void access_write(Serial *serial, unsigned reg, uint8_t value)
{
    SerialAfter after = { .transmit = false };

    pthread_mutex_lock(&serial->lock);
    write_register(serial, reg, value, &after);
    irq_update(serial);
    pthread_mutex_unlock(&serial->lock);
    finish_access(serial, &after);
}

/* Wider accesses are as many byte accesses, as an 8-bit device on a PC's bus sees them. */
static uint64_t serial_read(void *opaque, uint64_t offset, unsigned len_bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < len_bytes; i++) {
        value |= (uint64_t)access_read(opaque, (unsigned)offset + i) << 8 * i;
    }
    return value;
}

static void serial_write(void *opaque, uint64_t offset, unsigned len_bytes, uint64_t value)
{
    for (unsigned i = 0; i < len_bytes; i++) {
        access_write(opaque, (unsigned)offset + i, (uint8_t)(value >> 8 * i));
    }
}

static const BusOps serial_ops = { .read = serial_read, .write = serial_write };

size_t serial_receive(Serial *serial, const uint8_t *data, size_t len_bytes)
{
    size_t taken = 0;

    pthread_mutex_lock(&serial->lock);
    if (!(serial->mcr & UART_MCR_LOOP)) {
        while (taken < len_bytes && serial->rx_count < rx_capacity(serial)) {
            rx_push(serial, data[taken++]);
        }
        irq_update(serial);
    }
    pthread_mutex_unlock(&serial->lock);
    return taken;
}

/* --- life --- */

static void power_on(Serial *serial)
{
    serial->divisor_low = 12; /* 9600 baud */
    serial->divisor_high = 0;
    serial->ier = 0;
    serial->fcr = 0;
    serial->lcr = UART_LCR_WLEN8;
    serial->mcr = 0;
    serial->scratch = 0;
    serial->lsr_errors = 0;
    serial->thre_pending = false;
    serial->rx_first = 0;
    serial->rx_count = 0;
    serial->msr = modem_lines(serial);
}

Serial *serial_create(Platform *platform, uint16_t port, unsigned gsi, SerialTransmit *transmit,
                      SerialRoom *room, void *opaque, Error *err)
{
    Serial *serial = calloc(1, sizeof(*serial));

    if (!serial) {
        error_set(err, -ENOMEM, "no memory for a serial port");
        return NULL;
    }
    pthread_mutex_init(&serial->lock, NULL);
    serial->platform = platform;
    serial->port = port;
    serial->gsi = gsi;
    serial->transmit = transmit;
    serial->room = room;
    serial->opaque = opaque;
    power_on(serial);

    BusRange range = { .base = port, .len_bytes = SERIAL_PORTS, .ops = &serial_ops,
                       .opaque = serial, .name = "serial" };
    if (bus_add(platform->pio, &range, err) < 0) {
        serial_destroy(serial);
        return NULL;
    }
    serial->on_bus = true;
    return serial;
}

void serial_destroy(Serial *serial)
{
    if (!serial) {
        return;
    }
    if (serial->on_bus) {
        bus_remove(serial->platform->pio, serial->port);
    }
    pthread_mutex_destroy(&serial->lock);
    free(serial);
}

void serial_reset(Serial *serial)
{
    SerialAfter after = { .room = true };

    pthread_mutex_lock(&serial->lock);
    power_on(serial);
    irq_update(serial);
    pthread_mutex_unlock(&serial->lock);
    finish_access(serial, &after);
}
