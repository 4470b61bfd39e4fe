/*
 * Tsc - time from the time stamp counter
 */
#include "guest-tests/lib/tsc.h"

#include "guest-tests/lib/boot.h"
#include "guest-tests/lib/cpu.h"

#define ASSUMED_KHZ 2000000

static uint64_t khz(void)
{
    return boot_info.tsc_khz ? boot_info.tsc_khz : ASSUMED_KHZ;
}

bool tsc_known(void)
{
    return boot_info.tsc_khz != 0;
}

uint64_t tsc_from_ms(uint64_t ms)
{
    return ms * khz();
}

uint64_t tsc_to_ns(uint64_t cycles)
{
    uint64_t ms = cycles / khz();

    return ms * 1000000 + cycles % khz() * 1000000 / khz();
}

void tsc_wait_ms(uint64_t ms)
{
    uint64_t start = cpu_rdtsc();

    while (cpu_rdtsc() - start < tsc_from_ms(ms)) {
        cpu_pause();
    }
}
