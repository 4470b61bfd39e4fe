/*
 * Tsc - time from the time stamp counter
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: any processor.
 * Lifetime:  none.
 */
#ifndef GUEST_TESTS_LIB_TSC_H
#define GUEST_TESTS_LIB_TSC_H

#include <stdbool.h>
#include <stdint.h>

/* tsc_known - whether the frequency is known, so that nanoseconds mean any */
bool tsc_known(void);

/* Conversions; where the frequency is unknown they assume 2 GHz. */
uint64_t tsc_from_ms(uint64_t ms);
uint64_t tsc_to_ns(uint64_t cycles);

void tsc_wait_ms(uint64_t ms);

#endif
