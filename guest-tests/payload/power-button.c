/*
 * power-button - ACPI's fixed power button: its registers, and the interrupt that it raises
 *
 * The host presses it: what a line "# host: COMMAND ..." asks for, `run` has the VMM's control
 * socket do, one command after the other.
 *
 * Interrupts are counted by what the handler finds: an event that is pending and enabled, or
 * nothing. A level-triggered one may be seen once more than it was raised (KVMs that emulate CPL0 do
 * that), and an operating system does not mind; one that goes on is a line that was not let go.
 *
 * Command line: host=on somebody reads these lines; vmm=qemu and only= as everywhere.
 */
#include "guest-tests/lib/acpi.h"
#include "guest-tests/lib/args.h"
#include "guest-tests/lib/boot.h"
#include "guest-tests/lib/cpu.h"
#include "guest-tests/lib/harness-serial.h"
#include "guest-tests/lib/irq.h"
#include "guest-tests/lib/tsc.h"

#define BUTTON       (1u << 8) /* of status and enable (ACPI 6.3, 4.8.3.1) */
#define VECTOR       IRQ_VECTOR_FIRST
#define QUIET_MS     20 /* in which an interrupt that is not due would have come */
#define STORM        16 /* so many interrupts that nobody expects, and the input is masked */
#define ASK_HOST(of) harness_note("host: " of)

static AcpiFixed fixed;
static bool found;

static volatile unsigned nb_due, nb_idle; /* interrupts with an event to them, and without */

/* What the handler does against the event, and at which of the interrupts. */
static volatile struct {
    unsigned nth;
    uint16_t port, value;
} answer;

/* At CPL0. */
static void sci(void *opaque, IrqFrame *frame)
{
    if (cpu_inw(fixed.status_port) & cpu_inw(fixed.enable_port) & BUTTON) {
        nb_due++;
        if (nb_due >= answer.nth) {
            cpu_outw(answer.port, answer.value);
        }
    } else {
        nb_idle++;
    }
    if (nb_due + nb_idle > STORM) {
        irq_mask_gsi(fixed.sci_gsi);
    }
}

static void answer_by(unsigned nth, uint16_t port, uint16_t value)
{
    answer.port = port;
    answer.value = value;
    answer.nth = nth;
}

static uint16_t status(void)
{
    return cpu_inw(fixed.status_port);
}

static void enable(uint16_t events)
{
    cpu_outw(fixed.enable_port, events);
}

static void wait_a_little(void)
{
    uint64_t start = cpu_rdtsc();

    while (cpu_rdtsc() - start < tsc_from_ms(QUIET_MS)) {
        cpu_pause();
    }
}

/* Until so many interrupts have come, and no more. Whoever presses takes the time that it takes;
 * the harness limits it. */
static void expect_interrupts(unsigned nb)
{
    while (nb_due < nb) {
        cpu_pause();
    }
    wait_a_little();
    EXPECT_EQ(nb_due, nb);
    EXPECT_LE(nb_idle, nb);
}

/* Nothing pending, nothing enabled, the SCI at the handler. */
static void start(void)
{
    TEST_SKIP_IF(!arg_is("host", "on"), "nobody to press the button");
    ASSERT_TRUE(found && fixed.power_button);
    ASSERT_TRUE(acpi_enable(&fixed));
    enable(0);
    cpu_outw(fixed.status_port, BUTTON);
    answer_by(1, fixed.status_port, BUTTON);
    nb_due = 0;
    nb_idle = 0;
    irq_set_handler(VECTOR, sci, NULL);
    irq_route_gsi(fixed.sci_gsi, VECTOR, fixed.sci_level);
}

/* --- */

TEST(power_button, rests_when_the_machine_starts)
{
    ASSERT_TRUE(found);
    EXPECT_EQ(status() & BUTTON, 0);
    EXPECT_EQ(cpu_inw(fixed.enable_port) & BUTTON, 0);
}

TEST(power_button, tables_say_that_it_is_fixed_and_its_interrupt_level_triggered)
{
    ASSERT_TRUE(found);
    EXPECT_TRUE(fixed.power_button);
    EXPECT_TRUE(fixed.sci_level);
}

TEST(power_button, a_press_interrupts_once_when_the_status_is_cleared_at_once)
{
    start();
    enable(BUTTON);
    expect_interrupts(0);
    for (unsigned nb = 1; nb <= 3; nb++) {
        ASK_HOST("system_powerdown");
        expect_interrupts(nb);
        EXPECT_EQ(status() & BUTTON, 0);
    }
}

TEST(power_button, a_press_interrupts_as_long_as_the_status_is_set)
{
    start();
    answer_by(3, fixed.status_port, BUTTON);
    enable(BUTTON);
    ASK_HOST("system_powerdown");
    expect_interrupts(3);
    EXPECT_EQ(status() & BUTTON, 0);
}

TEST(power_button, disabled_it_interrupts_no_more_and_enabled_again_it_does)
{
    start();
    answer_by(1, fixed.enable_port, 0);
    enable(BUTTON);
    ASK_HOST("system_powerdown");
    expect_interrupts(1);
    EXPECT_EQ(status() & BUTTON, BUTTON);
    answer_by(2, fixed.status_port, BUTTON);
    enable(BUTTON);
    expect_interrupts(2);
    EXPECT_EQ(status() & BUTTON, 0);
}

TEST(power_button, a_press_while_it_is_disabled_is_not_forgotten)
{
    TEST_SKIP_IF(arg_is("vmm", "qemu"), "QEMU forgets a press that nobody has enabled");
    start();
    ASK_HOST("system_powerdown");
    while (!(status() & BUTTON)) {
        cpu_pause();
    }
    expect_interrupts(0);
    enable(BUTTON);
    expect_interrupts(1);
    EXPECT_EQ(status() & BUTTON, 0);
}

TEST(power_button, a_press_while_the_machine_is_stopped_interrupts_when_it_goes_on)
{
    start();
    enable(BUTTON);
    expect_interrupts(0);
    ASK_HOST("stop system_powerdown cont");
    expect_interrupts(1);
    EXPECT_EQ(status() & BUTTON, 0);
}

static void prepare(void)
{
    found = acpi_find_fixed(&fixed);
    if (found) {
        harness_note("status 0x%x, enable 0x%x, control 0x%x, SCI %u", fixed.status_port,
                     fixed.enable_port, fixed.control_port, fixed.sci_gsi);
    }
}

void payload_main(void)
{
    harness_run(prepare);
}
