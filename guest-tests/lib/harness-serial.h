/*
 * harness-serial.h - the harness in a payload: TAP on the serial port
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: tests run on the first processor; only it may fail them.
 * Lifetime:  a payload's machine is shared by all tests: what one leaves
 *            behind the next one finds.  Tests of a device begin with a reset.
 *
 * A failed ASSERT, TEST_SKIP and the end of a test's time leave the test by a
 * jump; then what FIXTURE_TEARDOWN says is done.  The time is watched by the
 * local APIC's timer, where interrupts arrive (irq_works()); elsewhere by
 * whoever started the machine.
 */
#ifndef GUEST_TESTS_LIB_HARNESS_SERIAL_H
#define GUEST_TESTS_LIB_HARNESS_SERIAL_H

#include "guest-tests/harness/harness.h"

/*
 * harness_run - plan, @prepare, then every test that the command line wants:
 * with only=A,B,.. those whose name contains one of the words
 */
void harness_run(void (*prepare)(void));

/* harness_note - a line of diagnostics */
void harness_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
