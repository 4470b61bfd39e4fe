/*
 * Console - text out on the first serial port, and the end of the machine
 *
 * Every port access leaves the guest, so the line status is read once for as
 * many bytes as the transmit FIFO takes.
 */
#include "guest-tests/lib/console.h"

#include "guest-tests/lib/acpi.h"
#include "guest-tests/lib/cpu.h"
#include "guest-tests/lib/format.h"

#define COM1           0x3f8
#define UART_DATA      (COM1 + 0)
#define UART_IER       (COM1 + 1)
#define UART_IIR_FCR   (COM1 + 2)
#define UART_LCR       (COM1 + 3)
#define UART_MCR       (COM1 + 4)
#define UART_LSR       (COM1 + 5)
#define LCR_8N1        0x03
#define MCR_DTR_RTS    0x03
#define FCR_ENABLE     0x01
#define IIR_FIFO_MASK  0xc0
#define LSR_THR_EMPTY  0x20
#define FIFO_BYTES     16
#define KBD_COMMAND    0x64
#define KBD_CMD_RESET  0xfe
#define KBD_TRIES      1000

static unsigned con_burst_bytes = 1;
static unsigned con_room_bytes;

void con_init(void)
{
    cpu_outb(UART_IER, 0);
    cpu_outb(UART_LCR, LCR_8N1);
    cpu_outb(UART_MCR, MCR_DTR_RTS);
    cpu_outb(UART_IIR_FCR, FCR_ENABLE);
    if ((cpu_inb(UART_IIR_FCR) & IIR_FIFO_MASK) == IIR_FIFO_MASK) {
        con_burst_bytes = FIFO_BYTES;
    }
}

static void put_byte(char c)
{
    if (con_room_bytes == 0) {
        while (!(cpu_inb(UART_LSR) & LSR_THR_EMPTY)) {
            cpu_pause();
        }
        con_room_bytes = con_burst_bytes;
    }
    con_room_bytes--;
    cpu_outb(UART_DATA, (uint8_t)c);
}

static void put_char(void *opaque, char c)
{
    if (c == '\n') {
        put_byte('\r');
    }
    put_byte(c);
}

void con_vprintf(const char *fmt, va_list ap)
{
    format_v(put_char, NULL, fmt, ap);
}

void con_printf(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    con_vprintf(fmt, ap);
    va_end(ap);
}

void con_reset_machine(void)
{
    while (!(cpu_inb(UART_LSR) & LSR_THR_EMPTY)) {
        cpu_pause();
    }
    for (;;) {
        for (int i = 0; i < KBD_TRIES; i++) {
            cpu_outb(KBD_COMMAND, KBD_CMD_RESET);
            cpu_pause();
        }
        acpi_reset_machine(); /* some machines have no keyboard controller */
    }
}
