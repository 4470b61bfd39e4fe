/*
 * The machine on the local KVM, with guests of a few instructions: how each end of a guest is told,
 * the second life after a reset, several vCPUs, and that nothing is left of a machine. Skipped
 * where there is no /dev/kvm. What a guest does with its disks is in guest-tests/.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "io/base/log.h"
#include "io/base/test.h"
#include "vmm/kvm-platform.h"
#include "vmm/machine.h"
#include "vmm/tests/kernel-files.h"

/* Code of a guest, entered as PVH says: 32-bit, flat, no stack. It is copied, so it may jump by
 * distance only. */
#define GUEST(name, code)                                                                          \
    extern const uint8_t name[], name##_end[];                                                     \
    __asm__(".pushsection .rodata\n.code32\n" #name ":\n" code "\n" #name                          \
            "_end:\n.code64\n.popsection\n")

#define POWER_OFF "movw $0x604, %dx\n movw $0x3400, %ax\n outw %ax, %dx\n 9: hlt\n jmp 9b\n"
#define RESET     "movb $0xfe, %al\n outb %al, $0x64\n 9: hlt\n jmp 9b\n"
#define RESET_CF9 "movw $0xcf9, %dx\n movb $6, %al\n outb %al, %dx\n 9: hlt\n jmp 9b\n"
#define PANIC     "movw $0x505, %dx\n movb $1, %al\n outb %al, %dx\n 9: hlt\n jmp 9b\n"
#define TRIPLE    "ud2\n" /* with an empty interrupt table */

/* A byte of the clock's battery-backed memory, which a reset leaves alone, tells the second life
 * from the first. RAM that is not zero in the second one is a panic. */
#define FIRST_LIFE_ONLY(code)                                                                      \
    "movb $0x50, %al\n outb %al, $0x70\n inb $0x71, %al\n cmpb $0x5a, %al\n je 1f\n"               \
    "movb $0x5a, %al\n outb %al, $0x71\n movl $1, 0x900000\n" code                                 \
    "1: cmpl $0, 0x900000\n jne 2f\n" POWER_OFF "2:" PANIC

GUEST(guest_power_off, POWER_OFF);
GUEST(guest_panic, PANIC);
GUEST(guest_reset, RESET);
GUEST(guest_reset_cf9, RESET_CF9);
GUEST(guest_triple_fault, TRIPLE);
GUEST(guest_two_lives, FIRST_LIFE_ONLY(RESET));
GUEST(guest_two_lives_cf9, FIRST_LIFE_ONLY(RESET_CF9));
GUEST(guest_two_lives_triple, FIRST_LIFE_ONLY(TRIPLE));
GUEST(guest_idle, "9: hlt\n jmp 9b\n");
GUEST(guest_busy, "9: jmp 9b\n");
GUEST(guest_popcnt, "movl $0x12345678, %ebx\n popcnt %eax, %eax\n" POWER_OFF);
GUEST(guest_runs_away, "movl $0x12345678, %ebx\n movl $0xd0000000, %eax\n jmp *%eax\n");

/* Starts all other vCPUs at 0x8000 in real mode, where each adds itself to the count at 0x9000;
 * goes on when there are as many as %ebp says, whose value the test puts in. Panics where CPUID
 * says another number. */
GUEST(guest_start_all,
      "movl $0, %ebp\n"
      "movl $1, %eax\n cpuid\n shrl $16, %ebx\n decl %ebx\n subl %ebp, %ebx\n"
      "testb %bl, %bl\n jne 2f\n"
      "movl $0x06ff66f0, 0x8000\n movl $0xebf49000, 0x8004\n movb $0xfd, 0x8008\n"
      "movl $0x000c4500, 0xfee00300\n movl $0x000c4608, 0xfee00300\n"
      "3: cmpl %ebp, 0x9000\n jne 3b\n" POWER_OFF "2:" PANIC);

static KernelFile file;
static MachineConfig config;
static Machine *machine;
static Error err;

static void need_kvm(void)
{
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

    if (fd < 0) {
        TEST_SKIP("/dev/kvm: %s", strerror(errno));
    }
    close(fd);
}

/* --- one run --- */

static main_fn void make_machine_of(const uint8_t *code, const uint8_t *end, const char **options)
{
    char path[32];
    const char *argv[32] = { "run", "--kernel", path };
    int argc = 3;
    bool usage = false;

    elf_make_pvh(&file);
    ASSERT_LE(end - code, ELF_CODE_BYTES - 0x20);
    memcpy(file.bytes + ELF_CODE_AT + (ELF_PVH_GPA - ELF_CODE_GPA), code, end - code);
    int fd = memfd_create("guest", MFD_CLOEXEC);

    ASSERT_EQ(write(fd, file.bytes, file.len_bytes), (ssize_t)file.len_bytes);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    while (*options) {
        argv[argc++] = *options++;
    }
    config_init(&config);
    config.ram.len_bytes = 32 << 20; /* unless an option says more */
    ASSERT_EQ(config_parse(&config, argc, (char **)argv, &err), 0);
    machine = machine_create(&config, &usage, &err);
    if (!machine) {
        test_fail_abort(__FILE__, __LINE__, "no machine: %s", err.msg);
    }
}

static main_fn void end_machine(void)
{
    EXPECT_EQ(machine_destroy(machine, &err), 0);
    machine = NULL;
    close(atoi(config.kernel + strlen("/proc/self/fd/")));
    config_finish(&config);
}

#define MAKE_MACHINE(guest, ...)                                                                   \
    make_machine_of(guest, guest##_end, (const char *[]){ __VA_ARGS__, NULL })

static main_fn int run(void)
{
    int status = machine_run(machine, &err);

    end_machine();
    return status;
}

#define EXPECT_RUN(expected, guest, ...)                                                           \
    do {                                                                                           \
        MAKE_MACHINE(guest, __VA_ARGS__);                                                          \
        EXPECT_EQ(run(), expected);                                                                \
    } while (0)

#define NOTHING "--log-level", "error"

/* Threads that have been given a name: a sanitizer's has not. */
static unsigned count_threads(void)
{
    DIR *dir = opendir("/proc/self/task");
    struct dirent *entry;
    unsigned nb = 0;

    ASSERT_TRUE(dir != NULL);
    while ((entry = readdir(dir)) != NULL) {
        char path[64], name[32] = { 0 };

        snprintf(path, sizeof(path), "/proc/self/task/%.20s/comm", entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);

        if (fd >= 0) {
            nb += read(fd, name, sizeof(name) - 1) > 0 && strncmp(name, "test-kvm", 8) != 0;
            close(fd);
        }
    }
    closedir(dir);
    return nb;
}

/* The kernel may let go of a thread that has been joined a little later. */
static void expect_nothing_left(unsigned nb_descriptors)
{
    EXPECT_EQ(test_count_fds(), nb_descriptors);
    while (count_threads() != 0) {
    }
}

/* --- how a guest ends --- */

TEST(kvm, power_off_and_panic_end_with_their_status)
{
    need_kvm();
    EXPECT_RUN(MACHINE_EXIT_POWER_OFF, guest_power_off, NOTHING);
    EXPECT_RUN(MACHINE_EXIT_POWER_OFF, guest_power_off, "--no-reboot");
    EXPECT_RUN(MACHINE_EXIT_PANIC, guest_panic, NOTHING);
}

TEST(kvm, every_kind_of_reset_ends_the_run_with_no_reboot)
{
    need_kvm();
    EXPECT_RUN(MACHINE_EXIT_RESET, guest_reset, "--no-reboot");
    EXPECT_RUN(MACHINE_EXIT_RESET, guest_reset_cf9, "--no-reboot");
    EXPECT_RUN(MACHINE_EXIT_RESET, guest_triple_fault, "--no-reboot");
}

TEST(kvm, every_kind_of_reset_starts_a_second_life_in_clear_ram)
{
    need_kvm();
    EXPECT_RUN(MACHINE_EXIT_POWER_OFF, guest_two_lives, NOTHING);
    EXPECT_RUN(MACHINE_EXIT_POWER_OFF, guest_two_lives_cf9, "--cpus", "3");
    EXPECT_RUN(MACHINE_EXIT_POWER_OFF, guest_two_lives_triple, NOTHING);
    /* registered with the rings, so cleared page by page in place */
    MAKE_MACHINE(guest_two_lives, "--memory", "32M,prealloc=on", "--disk",
                 "driver=null,size=1M,queues=2");
    EXPECT_EQ(run(), MACHINE_EXIT_POWER_OFF);
}

TEST(kvm, signals_end_a_guest_that_never_would)
{
    static const int signals[] = { SIGTERM, SIGINT, SIGHUP, SIGQUIT };

    need_kvm();
    for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
        MAKE_MACHINE(guest_busy, "--cpus", "2");
        raise(signals[i]); /* before the guest runs: blocked, not lost */
        EXPECT_EQ(run(), MACHINE_EXIT_SIGNAL + signals[i]);
        MAKE_MACHINE(guest_idle, NOTHING);
        kill(getpid(), signals[i]);
        EXPECT_EQ(run(), MACHINE_EXIT_SIGNAL + signals[i]);
    }
}

/* --- KVM cannot go on --- */

/* Every one of @texts, up to NULL, is in the report. */
static void expect_report(const char *const *texts)
{
    const char *report = machine_report(machine);

    if (!report) {
        test_fail_abort(__FILE__, __LINE__, "no report");
    }
    for (; *texts; texts++) {
        if (!strstr(report, *texts)) {
            test_fail(__FILE__, __LINE__, "no \"%s\" in: %s", *texts, report);
        }
    }
}

#define EXPECT_REPORT(...) expect_report((const char *const[]){ __VA_ARGS__, NULL })

TEST(kvm, a_guest_that_runs_out_of_memory_is_reported_with_its_registers)
{
    need_kvm();
    MAKE_MACHINE(guest_runs_away, "--cpus", "2");
    EXPECT_EQ(machine_run(machine, &err), MACHINE_EXIT_GUEST_STUCK);
    EXPECT_REPORT("vcpu0 cannot go on: KVM internal error", "\n  rip=00000000d0000000 ",
                  " rbx=0000000012345678 ", " cpl=0 cs=0010", "\n  code at rip: (not mapped)");
    end_machine();
}

TEST(kvm, an_instruction_that_cannot_be_emulated_is_reported_with_its_bytes)
{
    need_kvm();
    MAKE_MACHINE(guest_popcnt, NOTHING);
    int status = machine_run(machine, &err);

    if (status == MACHINE_EXIT_POWER_OFF) {
        end_machine();
        TEST_SKIP("this host's KVM runs it");
    }
    ASSERT_EQ(status, MACHINE_EXIT_GUEST_STUCK);
    EXPECT_REPORT(" rbx=0000000012345678 ", "\n  code at rip: f3 0f b8 c0 66 ba 04 06 ",
                  "\n  hint: ");
    end_machine();
}

/* --- vCPUs, and what is left --- */

static main_fn void run_all_vcpus(unsigned nb_cpus)
{
    uint8_t code[sizeof(file.bytes)];
    size_t len_bytes = guest_start_all_end - guest_start_all;
    uint32_t nb_others = nb_cpus - 1;
    char cpus[8];

    snprintf(cpus, sizeof(cpus), "%u", nb_cpus);
    memcpy(code, guest_start_all, len_bytes);
    memcpy(code + 1, &nb_others, sizeof(nb_others)); /* the operand of the first instruction */
    make_machine_of(code, code + len_bytes, (const char *[]){ "--cpus", cpus, NULL });
    EXPECT_EQ(run(), MACHINE_EXIT_POWER_OFF);
}

TEST(kvm, every_vcpu_is_started_and_stopped)
{
    need_kvm();
    run_all_vcpus(1);
    run_all_vcpus(2);
    run_all_vcpus(5);
    run_all_vcpus(16);
    run_all_vcpus(64);
}

TEST(kvm, a_machine_leaves_no_thread_and_no_descriptor)
{
    const char *lost[] = { "--disk", "driver=null,size=1M", "--disk", "/nonexistent/disk", NULL };
    const char *argv[] = { "run", "--kernel", "/dev/null", lost[0], lost[1], lost[2], lost[3] };
    bool usage;

    need_kvm();
    unsigned nb_descriptors = test_count_fds();

    for (unsigned i = 0; i < 2; i++) {
        MAKE_MACHINE(guest_two_lives, "--cpus", "4", "--iothread", "id=io0", "--disk",
                     "driver=null,size=1M,iothreads=io0", "--disk", "driver=null,size=1M,queues=3");
        EXPECT_EQ(run(), MACHINE_EXIT_POWER_OFF);
        expect_nothing_left(nb_descriptors);

        MAKE_MACHINE(guest_power_off, "--cpus", "4"); /* never run */
        end_machine();
        expect_nothing_left(nb_descriptors);

        config_init(&config); /* half built */
        ASSERT_EQ(config_parse(&config, ARRAY_SIZE(argv), (char **)argv, &err), 0);
        EXPECT_TRUE(machine_create(&config, &usage, &err) == NULL);
        EXPECT_TRUE(strstr(err.msg, "/nonexistent/disk") != NULL);
        config_finish(&config);
        expect_nothing_left(nb_descriptors);
    }
}

TEST(kvm, no_descriptor_is_passed_on_to_another_program)
{
    bool inherited[256];

    need_kvm();
    for (int fd = 0; fd < 256; fd++) {
        inherited[fd] = fcntl(fd, F_GETFD) >= 0;
    }
    MAKE_MACHINE(guest_idle, "--cpus", "2", "--disk", "driver=null,size=1M,queues=2");
    for (int fd = 0; fd < 256; fd++) {
        int flags = fcntl(fd, F_GETFD);

        if (!inherited[fd] && flags >= 0 && !(flags & FD_CLOEXEC)) {
            char link[32], target[128] = { 0 };

            snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
            test_fail(__FILE__, __LINE__, "descriptor %d, %s", fd,
                      readlink(link, target, sizeof(target) - 1) > 0 ? target : "?");
        }
    }
    end_machine();
}

/* --- what the kernel refuses --- */

static main_fn void init_platform(Kvm *kvm, KvmPlatform *kp, Bus *pio, Bus *mmio)
{
    AioContext *main = aio_context_create("main", NULL, &err);

    ASSERT_TRUE(main);
    *kvm = (Kvm)KVM_INIT;
    ASSERT_EQ(kvm_open(kvm, &err), 0);
    ASSERT_EQ(kvm_create_vm(kvm, &err), 0);
    ASSERT_EQ(bus_init(pio, "port"), 0);
    ASSERT_EQ(bus_init(mmio, "memory"), 0);
    ASSERT_EQ(kvm_platform_init(kp, kvm, pio, mmio, main, &err), 0);
}

/* As a kernel does whose doorbells are all taken, each time that a guest starts its driver. */
TEST(kvm, a_guest_does_not_fill_the_log_with_doorbells_that_are_refused)
{
    static KvmPlatform kp;
    Kvm kvm;
    Bus pio, mmio;
    EventNotifier en;
    int fds[2], saved = dup(STDERR_FILENO);
    char text[65536];
    unsigned nb_lines = 0;

    need_kvm();
    init_platform(&kvm, &kp, &pio, &mmio);
    ASSERT_EQ(event_notifier_open(&en, &err), 0);
    const Platform *platform = &kp.platform;

    ASSERT_EQ(platform->ops->doorbell_attach(platform->opaque, 0xe0003000, 0, -1, en.fd), 0);
    ASSERT_EQ(pipe2(fds, O_CLOEXEC), 0);
    dup2(fds[1], STDERR_FILENO);
    for (unsigned i = 0; i < 500; i++) {
        EXPECT_EQ(platform->ops->doorbell_attach(platform->opaque, 0xe0003000, 0, -1, en.fd),
                  -EEXIST);
    }
    dup2(saved, STDERR_FILENO);
    close(fds[1]);
    ssize_t len = read(fds[0], text, sizeof(text));

    for (ssize_t i = 0; i < len; i++) {
        nb_lines += text[i] == '\n';
    }
    EXPECT_GE(nb_lines, 1);
    EXPECT_LE(nb_lines, 2 * LOG_LIMIT_BURST + 1); /* two periods, should it take so long */
    platform->ops->doorbell_detach(platform->opaque, 0xe0003000, 0, -1, en.fd);
    event_notifier_close(&en);
    kvm_platform_finish(&kp);
    kvm_close(&kvm);
    bus_finish(&pio);
    bus_finish(&mmio);
    aio_context_destroy(kp.platform.main);
}

TEST_MAIN()
