/*
 * Smp - the second and further processors
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: smp_start() and smp_call() on the first processor.
 * Lifetime:  a started processor spins at CPL3, waiting for work, until the
 *            machine is reset: start no more than are used.
 * Spec:      Intel SDM volume 3, 9.4 (INIT, start-up IPI, xAPIC)
 */
#ifndef GUEST_TESTS_LIB_SMP_H
#define GUEST_TESTS_LIB_SMP_H

#include <stdbool.h>
#include <stdint.h>

typedef void (*SmpFunc)(void *arg);

/*
 * smp_start - bring up processors until @nb_cpus run, the first included
 * Returns how many do run; fewer if the machine has no more.
 */
uint32_t smp_start(uint32_t nb_cpus);

/* smp_call - have processor @cpu run @fn(@arg); it must be idle */
void smp_call(uint32_t cpu, SmpFunc fn, void *arg);

/* smp_is_idle - whether what was last called on @cpu has returned */
bool smp_is_idle(uint32_t cpu);

/* smp_run_processor - where processors other than the first live (boot.c) */
void smp_run_processor(uint32_t cpu) __attribute__((noreturn));

#endif
