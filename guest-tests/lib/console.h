/*
 * Console - text out on the first serial port, and the end of the machine
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: the first processor only; a trap report may come from any.
 * Lifetime:  con_init() once, before anything is printed.
 * Spec:      16550 UART at 0x3f8; i8042 command 0xfe at port 0x64
 */
#ifndef GUEST_TESTS_LIB_CONSOLE_H
#define GUEST_TESTS_LIB_CONSOLE_H

#include <stdarg.h>

/* con_init - set the line up and learn whether the port has a FIFO */
void con_init(void);

/* con_printf - formatted text (format.h); '\n' becomes CR LF */
void con_printf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void con_vprintf(const char *fmt, va_list ap)
    __attribute__((format(printf, 1, 0)));

/* con_reset_machine - by the keyboard controller, or the register that ACPI names */
void con_reset_machine(void) __attribute__((noreturn));

#endif
