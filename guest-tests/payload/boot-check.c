/*
 * boot-check - what a kernel finds at its entry, and whether interrupts arrive
 *
 * Built twice: boot-check.elf is entered through PVH, boot-check-linux64.elf,
 * which has no PVH note, through Linux's 64-bit protocol.
 *
 * Command line (all optional): entry=pvh|linux64, cpus=N and memory=BYTES are
 * what is expected; only= as everywhere.
 */
#include "guest-tests/lib/acpi.h"
#include "guest-tests/lib/args.h"
#include "guest-tests/lib/boot.h"
#include "guest-tests/lib/cpu.h"
#include "guest-tests/lib/harness-serial.h"
#include "guest-tests/lib/irq.h"
#include "guest-tests/lib/layout.h"
#include "guest-tests/lib/smp.h"
#include "guest-tests/lib/tsc.h"

#define WAIT_MS       2000
#define TIMER_MS      5
#define NB_TICKS      3
#define LOW_RAM_BYTES (1u << 20) /* some of the first MiB is nobody's RAM */
#define VECTOR        IRQ_VECTOR_FIRST

TEST(boot, the_entry_is_the_one_that_was_asked_for)
{
    TEST_SKIP_IF(!arg_is("entry", "pvh") && !arg_is("entry", "linux64"), "no entry= to compare");
    EXPECT_EQ(boot_info.entry, arg_is("entry", "linux64") ? BOOT_ENTRY_LINUX64 : BOOT_ENTRY_PVH);
}

TEST(boot, the_memory_map_has_the_memory_that_was_asked_for)
{
    uint64_t wanted_bytes, sum_bytes = 0;

    for (unsigned i = 0; i < boot_info.nb_ram; i++) {
        ASSERT_LT(boot_info.ram[i].start_gpa, boot_info.ram[i].end_gpa);
        sum_bytes += boot_info.ram[i].end_gpa - boot_info.ram[i].start_gpa;
    }
    TEST_SKIP_IF(!arg_get_u64("memory", &wanted_bytes), "no memory= to compare");
    EXPECT_LE(sum_bytes, wanted_bytes);
    EXPECT_GE(sum_bytes, wanted_bytes - LOW_RAM_BYTES);
}

TEST(boot, the_acpi_tables_are_there_and_sum_to_0)
{
    ASSERT_NE(boot_info.rsdp_gpa, 0);
    EXPECT_TRUE(acpi_is_sound());
}

TEST(boot, the_time_stamp_counter_has_a_frequency)
{
    EXPECT_TRUE(tsc_known());
}

static bool wait_count(uint8_t vector, uint64_t count)
{
    uint64_t start = cpu_rdtsc();

    while (irq_count(vector) < count) {
        if (cpu_rdtsc() - start > tsc_from_ms(WAIT_MS)) {
            return false;
        }
        cpu_pause();
    }
    return true;
}

TEST(irq, a_message_to_itself_arrives)
{
    EXPECT_TRUE(irq_works());
}

static volatile uint64_t seen_cs;

static void note_frame(void *opaque, IrqFrame *frame)
{
    *(volatile uint64_t *)opaque = frame->cs;
}

TEST(irq, the_timer_ticks_and_its_handler_sees_who_was_interrupted)
{
    uint64_t before = irq_count(IRQ_VECTOR_TIMER);

    irq_set_handler(IRQ_VECTOR_TIMER, note_frame, (void *)&seen_cs);
    irq_start_timer(TIMER_MS);
    EXPECT_TRUE(wait_count(IRQ_VECTOR_TIMER, before + NB_TICKS));
    irq_start_timer(0);
    EXPECT_EQ(seen_cs, SEL_USER_CODE64 | 3);
}

/* A write to the window of local APICs by a processor is no message, so it goes by the ICR. */
static void send_to(uint32_t cpu)
{
    mmio_write32((volatile void *)0xfee00310ul, irq_msi_address(cpu) >> 12 << 24);
    mmio_write32((volatile void *)0xfee00300ul, VECTOR);
}

static void idle(void *opaque)
{
    while (!*(volatile bool *)opaque) {
        cpu_pause();
    }
}

TEST(smp, every_processor_starts_and_takes_interrupts)
{
    uint32_t nb_cpus = (uint32_t)arg_u64("cpus", 1, 1, MAX_CPUS);
    static volatile bool done;

    ASSERT_EQ(smp_start(nb_cpus), nb_cpus);
    for (uint32_t cpu = 1; cpu < nb_cpus; cpu++) {
        smp_call(cpu, idle, (void *)&done);
    }
    for (uint32_t cpu = 0; cpu < nb_cpus; cpu++) {
        uint64_t before = irq_count(VECTOR);

        send_to(cpu);
        EXPECT_TRUE(wait_count(VECTOR, before + 1));
        EXPECT_EQ(irq_processor_of_last(VECTOR), cpu);
    }
    done = true;
}

static void prepare(void)
{
    harness_note("entry %s, %u regions of RAM, rsdp %lx, tsc %lu kHz",
                 boot_info.entry == BOOT_ENTRY_PVH ? "pvh" : "linux64", boot_info.nb_ram,
                 boot_info.rsdp_gpa, boot_info.tsc_khz);
}

void payload_main(void)
{
    harness_run(prepare);
}
