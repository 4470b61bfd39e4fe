/*
 * legacy.h - the small fixed devices of a PC: RTC, ACPI power management, reset, panic notice
 *
 * Layer:     devices/
 * Threading: registers are accessed by vCPU threads; each device has its own small lock or is
 *            stateless. Requests to the machine go through Platform.event.
 * Lifetime:  xyz_create() puts the device on the port bus, xyz_destroy() takes it off.
 */
#ifndef DEVICES_LEGACY_H
#define DEVICES_LEGACY_H

#include "devices/platform.h"

/* rtc.c: MC146818 time of day at 0x70/0x71, from the host's clock; NVRAM bytes are kept */
typedef struct Rtc Rtc;
Rtc *rtc_create(Platform *platform, Error *err) NONNULL(1) WARN_UNUSED;
void rtc_destroy(Rtc *rtc);

/*
 * acpi-pm.c: PM1a event and control block, PM timer (3.579545 MHz), reset register 0xcf9.
 * SLP_EN with SLP_TYP 5 powers off; a write of 6 or 0xe to the reset register resets.
 *
 * The power button is fixed hardware (ACPI 6.3, 4.8.2.2.1.1). Pressed, it sets PWRBTN_STS, enabled
 * or not; while that and PWRBTN_EN are set, the SCI is asserted. The guest clears the status by
 * writing 1 to it, a reset clears both.
 */
typedef struct AcpiPm AcpiPm;
typedef struct AcpiPmParams {
    uint16_t pm1a_event_port;   /* 4 bytes: status, enable */
    uint16_t pm1a_control_port; /* 2 bytes */
    uint16_t pm_timer_port;     /* 4 bytes */
    uint16_t reset_port;        /* 1 byte */
    unsigned sci_gsi;           /* level, active high, nobody else's */
} AcpiPmParams;
AcpiPm *acpi_pm_create(Platform *platform, const AcpiPmParams *params, Error *err) NONNULL(1, 2)
    WARN_UNUSED;
void acpi_pm_destroy(AcpiPm *pm);
void acpi_pm_reset(AcpiPm *pm) NONNULL(1);
/* acpi_pm_press_power_button - and let go of it. Any thread, whether or not vCPUs run: one that is
 * stopped finds the interrupt when it goes on. */
void acpi_pm_press_power_button(AcpiPm *pm) NONNULL(1);

/* i8042.c: just enough keyboard controller for a guest to find none attached and to reset by
 * command 0xfe; port 0x61 and A20 gate answers belong here, too */
typedef struct I8042 I8042;
I8042 *i8042_create(Platform *platform, Error *err) NONNULL(1) WARN_UNUSED;
void i8042_destroy(I8042 *kbd);
void i8042_reset(I8042 *kbd) NONNULL(1);

/* pvpanic.c: port 0x505; bit 0 written = panicked */
typedef struct Pvpanic Pvpanic;
Pvpanic *pvpanic_create(Platform *platform, uint16_t port, Error *err) NONNULL(1) WARN_UNUSED;
void pvpanic_destroy(Pvpanic *pvpanic);

#endif
