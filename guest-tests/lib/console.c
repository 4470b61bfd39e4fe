/*
 * Console - text out on the first serial port, and the end of the machine
 *
 * Every port access leaves the guest, so the line status is read once for as
 * many bytes as the transmit FIFO takes.
 */
#include "guest-tests/lib/console.h"

#include "guest-tests/lib/cpu.h"

#include <stdbool.h>

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

static void put_char(char c)
{
    if (c == '\n') {
        put_byte('\r');
    }
    put_byte(c);
}

static void put_number(uint64_t value, unsigned base, unsigned width, char pad,
                       bool negative)
{
    char digits[24];
    unsigned n = 0;

    do {
        digits[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    if (negative) {
        digits[n++] = '-';
    }
    for (unsigned i = n; i < width; i++) {
        put_char(pad);
    }
    while (n > 0) {
        put_char(digits[--n]);
    }
}

static void put_signed(int64_t value, unsigned width, char pad)
{
    uint64_t magnitude = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;

    put_number(magnitude, 10, width, pad, value < 0);
}

void con_vprintf(const char *fmt, va_list ap)
{
    for (; *fmt; fmt++) {
        if (*fmt != '%') {
            put_char(*fmt);
            continue;
        }
        fmt++;

        char pad = ' ';
        unsigned width = 0;
        bool wide = false;

        if (*fmt == '0') {
            pad = '0';
            fmt++;
        }
        while (*fmt >= '0' && *fmt <= '9') {
            width = width * 10 + (unsigned)(*fmt++ - '0');
        }
        while (*fmt == 'l' || *fmt == 'z') {
            wide = true;
            fmt++;
        }
        switch (*fmt) {
        case 's':
            for (const char *s = va_arg(ap, const char *); *s; s++) {
                put_char(*s);
            }
            break;
        case 'c':
            put_char((char)va_arg(ap, int));
            break;
        case 'd':
            put_signed(wide ? va_arg(ap, int64_t) : va_arg(ap, int), width,
                       pad);
            break;
        case 'u':
        case 'x':
            put_number(wide ? va_arg(ap, uint64_t) : va_arg(ap, unsigned),
                       *fmt == 'x' ? 16 : 10, width, pad, false);
            break;
        default:
            put_char(*fmt);
            break;
        }
    }
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
        cpu_outb(KBD_COMMAND, KBD_CMD_RESET);
        cpu_pause();
    }
}
