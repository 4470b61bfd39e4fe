/*
 * machine.c - putting the machine together, its main loop, reset and end
 *
 * The main loop polls the main context and, outside any callback, looks at what has been asked
 * for: a signal, an event of the platform (power-off, reset, panic), a vCPU that cannot go on, a
 * disk error that is to stop the guest (rerror=stop, werror=stop), a change of the run state
 * (run-state.h: the control socket, SIGCONT, Ctrl-A c). All of these may also come in while
 * something here polls the context itself (a pause, the reset of a disk), so it sleeps only after a
 * round in which there was nothing to do. A reset happens here too, between two passes, with all
 * vCPUs parked:
 *
 *     pause vCPUs -> reset disks (waits for their requests) -> reset devices and KVM state
 *     -> clear RAM -> load kernel and tables again -> reset vCPUs -> resume
 *
 * Signals: those that end the run are blocked from the start and read in the main context, but for
 * the time that RAM, disks and kernel take, when one ends the process (ending-signals.h). While
 * something here waits for a disk (to stop the guest, to reset it), another one a while later ends
 * the process at once, so that nobody has to wait for a disk that does not answer; at the end, when
 * the last flush is waited for, any second one does. SIGTSTP and SIGCONT are read likewise, to give
 * the terminal back for the time in between. A file size limit and a closed console are errors of
 * the call, not signals that end the guest.
 */
#include "vmm/machine.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>

#include "io/aio/aio-file.h"
#include "io/base/thread.h"
#include "vmm/acpi.h"
#include "vmm/ending-signals.h"
#include "vmm/layout.h"
#include "vmm/machine-int.h"
#include "vmm/terminal.h"

#define MAIN_CONTEXT       "main"
#define SIGNAL_PATIENCE_NS 1000000000

/* --- console and signals --- */

/* The first one is for the main loop; one that finds it waiting for a disk all the same ends the
 * process. */
static void end_by_signal(Machine *machine, int signo)
{
    assert_main();
    if (!machine->signal_received) {
        machine->signal_received = signo;
        machine->signal_ns = aio_now_ns();
    } else if (!machine->at_rest && aio_now_ns() - machine->signal_ns > SIGNAL_PATIENCE_NS) {
        terminal_suspend();
        ending_signals_release();
        raise(signo);
    }
}

static void signal_cb(void *opaque)
{
    Machine *machine = opaque;
    struct signalfd_siginfo info;

    if (read(machine->signal_fd, &info, sizeof(info)) != sizeof(info)) {
        return;
    }
    switch (info.ssi_signo) {
    case SIGTSTP:
        terminal_suspend();
        raise(SIGSTOP); /* to this thread: it goes no further until SIGCONT */
        break;
    case SIGCONT:
        terminal_resume();
        run_state_ask_cont(&machine->run, true);
        break;
    default:
        end_by_signal(machine, (int)info.ssi_signo);
        break;
    }
}

static void quit_cb(void *opaque)
{
    end_by_signal(opaque, SIGTERM);
}

static void continue_cb(void *opaque)
{
    Machine *machine = opaque;

    run_state_ask_cont(&machine->run, false);
}

static size_t console_input_cb(void *opaque, const uint8_t *data, size_t len_bytes)
{
    Machine *machine = opaque;

    return serial_receive(machine->serial, data, len_bytes);
}

static void console_output_cb(void *opaque, const uint8_t *data, size_t len_bytes)
{
    terminal_write(data, len_bytes);
}

static void console_room_cb(void *opaque)
{
    terminal_room();
}

/* Signals are blocked before the first thread starts, so that only the signalfd gets them. */
static int open_signals(Machine *machine, Error *err)
{
    static const AioHandlerOps ops = { .read = signal_cb };
    sigset_t set;

    ending_signals_fill(&set);
    sigaddset(&set, SIGTSTP);
    sigaddset(&set, SIGCONT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    machine->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (machine->signal_fd < 0) {
        int ret = -errno;

        return error_set(err, ret, "signalfd: %s", error_strerror(ret));
    }
    aio_set_fd_handler(machine->main, machine->signal_fd, &ops, machine);
    return 0;
}

/* --- parts --- */

static int create_main_context(Machine *machine, Error *err)
{
    machine->main = aio_context_create(MAIN_CONTEXT, NULL, err);
    if (!machine->main) {
        return -EIO;
    }
    aio_context_enter(machine->main);
    aio_context_set_main(machine->main);
    return 0;
}

static int add_ram_part(Machine *machine, uint64_t gpa, uint64_t len_bytes, uint8_t *hva,
                        Error *err)
{
    int ret = len_bytes ? gm_add(&machine->gm, gpa, len_bytes, hva, err) : 0;

    return ret < 0 || !len_bytes ? ret
                                 : kvm_add_memory(&machine->kvm, gpa, len_bytes, hva, err);
}

/* Registering pins pages, so it is only done where every page is resident by the user's wish. */
static void register_fixed_buffers(Machine *machine)
{
    struct iovec range = { machine->ram.hva, machine->ram.len_bytes };
    Error err;

    if (!machine->ram.resident) {
        return;
    }
    if (aio_buffers_register(&range, 1, &err) < 0) {
        log_info("machine", "guest RAM is not registered as fixed buffers: %s", err.msg);
        return;
    }
    machine->ram_pinned = true;
}

static int create_vm(Machine *machine, Error *err)
{
    GuestImage *image = &machine->ram.image;
    int ret;

    if ((ret = kvm_open(&machine->kvm, err)) < 0 ||
        (ret = kvm_check_extensions(&machine->kvm, err)) < 0 ||
        (ret = ram_create(&machine->ram, &machine->config->ram, err)) < 0 ||
        (ret = kvm_create_vm(&machine->kvm, err)) < 0 ||
        (ret = add_ram_part(machine, 0, image->low_bytes, image->hva_low, err)) < 0 ||
        (ret = add_ram_part(machine, LAYOUT_RAM_HIGH_GPA, image->high_bytes, image->hva_high,
                            err)) < 0) {
        return ret;
    }
    register_fixed_buffers(machine);
    return 0;
}

static int create_legacy(Machine *machine, Error *err)
{
    static const AcpiPmParams pm = {
        .pm1a_event_port = LAYOUT_PM1_EVT_PORT,
        .pm1a_control_port = LAYOUT_PM1_CNT_PORT,
        .pm_timer_port = LAYOUT_PM_TMR_PORT,
        .reset_port = LAYOUT_RESET_PORT,
        .sci_gsi = LAYOUT_SCI_GSI,
    };
    Platform *platform = &machine->platform.platform;

    if (!(machine->rtc = rtc_create(platform, err)) ||
        !(machine->pm = acpi_pm_create(platform, &pm, err)) ||
        !(machine->i8042 = i8042_create(platform, err)) ||
        !(machine->pvpanic = pvpanic_create(platform, LAYOUT_PVPANIC_PORT, err)) ||
        !(machine->serial = serial_create(platform, LAYOUT_COM1_PORT, LAYOUT_COM1_GSI,
                                          console_output_cb, console_room_cb, machine, err))) {
        return -EIO;
    }
    return 0;
}

static void fill_mmio64_window(Machine *machine, uint64_t *ret_gpa, uint64_t *ret_bytes)
{
    layout_mmio64_window(machine->ram.image.high_bytes, cpuid_phys_bits(machine->kvm.cpuid),
                         ret_gpa, ret_bytes);
}

static unsigned intx_gsi(unsigned slot, unsigned pin)
{
    return layout_pci_gsi(slot, pin);
}

static int create_pci(Machine *machine, Error *err)
{
    PciHostParams params = {
        .ecam_gpa = LAYOUT_ECAM_GPA,
        .mmio32_gpa = LAYOUT_PCI_MMIO32_GPA,
        .mmio32_bytes = LAYOUT_PCI_MMIO32_BYTES,
        .intx_gsi = intx_gsi,
    };

    fill_mmio64_window(machine, &params.mmio64_gpa, &params.mmio64_bytes);
    machine->pci = pci_host_create(&machine->platform.platform, &params, err);
    return machine->pci ? 0 : -EIO;
}

/* --- boot --- */

static int build_tables(Machine *machine, uint64_t *ret_rsdp_gpa, Error *err)
{
    AcpiParams params;
    AcpiMmioDevice devices[LAYOUT_VIRTIO_MMIO_MAX];

    acpi_params_init(&params, machine->config->nb_cpus);
    fill_mmio64_window(machine, &params.mmio64_gpa, &params.mmio64_bytes);
    for (unsigned i = 0; i < machine->nb_mmio_disks; i++) {
        devices[i] = (AcpiMmioDevice){
            .gpa = layout_virtio_mmio_gpa(i),
            .window_bytes = VIRTIO_MMIO_BYTES,
            .gsi = layout_virtio_mmio_gsi(i),
        };
    }
    params.mmio_devices = devices;
    params.nb_mmio_devices = machine->nb_mmio_disks;
    return acpi_build(&params, &machine->ram.image, ret_rsdp_gpa, err);
}

/* Kernel, tables and registers for a start from power-on. RAM reads as zeroes. */
static int load(Machine *machine, Error *err)
{
    LoaderParams params = {
        .kernel_path = machine->config->kernel,
        .initrd_path = machine->config->initrd,
        .cmdline = machine->config->append,
    };
    BootEntry entry;
    int ret;

    if ((ret = build_tables(machine, &params.rsdp_gpa, err)) < 0 ||
        (ret = loader_load(&params, &machine->ram.image, &entry, err)) < 0) {
        return ret;
    }
    return vcpus_reset(machine->vcpus, &entry, err);
}

/* --- run state --- */

static void halt_cb(void *opaque)
{
    Machine *machine = opaque;

    assert_main();
    terminal_hold_output(true);
    vcpus_pause(machine->vcpus);
    disks_halt(machine);
    aio_clock_stop(&machine->platform.clock);
    kvm_stop_clock(&machine->kvm);
}

static void go_cb(void *opaque)
{
    Machine *machine = opaque;

    if (run_state_status(&machine->run) != RUN_PRELAUNCH) {
        kvm_start_clock(&machine->kvm);
        vcpus_tell_paused(machine->vcpus);
    }
    aio_clock_start(&machine->platform.clock);
    disks_go(machine);
    terminal_hold_output(false);
    vcpus_resume(machine->vcpus);
}

static int reset_cb(void *opaque, bool running, Error *err)
{
    Machine *machine = opaque;
    int ret;

    if (machine->config->no_reboot) {
        return 1;
    }
    terminal_hold_output(true);
    vcpus_pause(machine->vcpus);
    disks_reset(machine);
    pci_host_reset(machine->pci);
    serial_reset(machine->serial);
    acpi_pm_reset(machine->pm);
    i8042_reset(machine->i8042);
    kvm_platform_take_events(&machine->platform); /* asked for before the pause: the same reset */
    if ((ret = kvm_reset_vm(&machine->kvm, err)) < 0 ||
        (ret = ram_clear(&machine->ram, machine->ram_pinned, err)) < 0 ||
        (ret = load(machine, err)) < 0) {
        return ret;
    }
    if (running) {
        terminal_hold_output(false);
        vcpus_resume(machine->vcpus);
    }
    return 0;
}

static void powerdown_cb(void *opaque)
{
    Machine *machine = opaque;

    acpi_pm_press_power_button(machine->pm);
}

static void run_event_cb(void *opaque, RunEvent event, bool by_guest)
{
    Machine *machine = opaque;

    switch (event) {
    case RUN_EVENT_STOP:
        control_event(machine->control, "STOP", NULL);
        break;
    case RUN_EVENT_RESUME:
        control_event(machine->control, "RESUME", NULL);
        break;
    case RUN_EVENT_POWERDOWN:
        control_event(machine->control, "POWERDOWN", NULL);
        break;
    case RUN_EVENT_RESET:
        control_event(machine->control, "RESET",
                      json_pack("{s:b, s:s}", "guest", by_guest, "reason",
                                by_guest ? "guest-reset" : "host-qmp-system-reset"));
        break;
    }
}

static const RunOps run_ops = {
    .halt = halt_cb,
    .go = go_cb,
    .reset = reset_cb,
    .powerdown = powerdown_cb,
    .event = run_event_cb,
};

/* --- control --- */

static int create_control(Machine *machine, Error *err)
{
    QmpTarget *target = &machine->target;

    qmp_target_init(target);
    target->run = &machine->run;
    target->iothreads = machine->iothreads;
    target->nb_iothreads = machine->nb_iothreads;
    for (unsigned i = 0; i < machine->nb_disks; i++) {
        QmpDisk *disk = qmp_target_add_disk(target, machine->disks[i].blk);

        disk->vblk = machine->disks[i].vblk;
        disk->iothreads = machine->disks[i].iothreads;
    }
    machine->control = control_create(machine->config->control_path, target, err);
    return machine->control ? 0 : -EIO;
}

/* --- putting it together --- */

/* All that a signal may interrupt: no guest has run, so there is nothing to bring to an end. What
 * starts a thread here blocks the signals for it. */
static main_fn int build_parts(Machine *machine, bool *ret_usage, Error *err)
{
    int ret;

    ending_signals_release();
    if ((ret = create_vm(machine, err)) == 0 &&
        (ret = kvm_platform_init(&machine->platform, &machine->kvm, &machine->pio, &machine->mmio,
                                 machine->main, err)) == 0 &&
        (ret = create_legacy(machine, err)) == 0 && (ret = create_pci(machine, err)) == 0 &&
        (ret = disks_create(machine, ret_usage, err)) == 0) {
        ret = pci_host_assign_bars(machine->pci, err);
    }
    ending_signals_block();
    return ret;
}

static main_fn int load_first(Machine *machine, Error *err)
{
    ending_signals_release();
    int ret = load(machine, err);

    ending_signals_block();
    return ret;
}

static main_fn int build(Machine *machine, bool *ret_usage, Error *err)
{
    int ret;

    if ((ret = create_main_context(machine, err)) < 0 || (ret = open_signals(machine, err)) < 0 ||
        (ret = build_parts(machine, ret_usage, err)) < 0) {
        return ret;
    }
    machine->vcpus = vcpus_create(&machine->kvm, &machine->platform.platform, &machine->ram.image,
                                  machine->config->nb_cpus, err);
    if (!machine->vcpus || (ret = load_first(machine, err)) < 0) {
        return -EIO;
    }
    return machine->config->control_path ? create_control(machine, err) : 0;
}

Machine *machine_create(MachineConfig *config, bool *ret_usage, Error *err)
{
    Machine *machine = calloc(1, sizeof(*machine));

    if (!machine) {
        error_set(err, -ENOMEM, "machine: out of memory");
        return NULL;
    }
    machine->config = config;
    machine->started_ns = aio_now_ns();
    machine->ram = RAM_INIT;
    machine->kvm = KVM_INIT;
    machine->signal_fd = -1;
    run_state_init(&machine->run, &run_ops, machine);
    gm_init(&machine->gm);
    if (bus_init(&machine->pio, "port") < 0 || bus_init(&machine->mmio, "memory") < 0) {
        error_set(err, -ENOMEM, "machine: out of memory");
        machine_destroy(machine, NULL);
        return NULL;
    }
    if (build(machine, ret_usage, err) < 0) {
        machine_destroy(machine, NULL);
        return NULL;
    }
    return machine;
}

/* --- run --- */

/* What the guest asked for: an exit status, or -1 to go on. */
static int handle_events(Machine *machine, unsigned events, Error *err)
{
    if (events & 1u << PLATFORM_PANIC) {
        return MACHINE_EXIT_PANIC;
    }
    if (events & 1u << PLATFORM_POWER_OFF) {
        return MACHINE_EXIT_POWER_OFF;
    }
    if (!(events & 1u << PLATFORM_RESET)) {
        return -1;
    }
    int ret = run_state_reset(&machine->run, err);

    return ret == 0 ? -1 : ret > 0 ? MACHINE_EXIT_RESET : MACHINE_EXIT_HOST_FAILURE;
}

/* The same of what has been asked for from outside. */
static int handle_requests(Machine *machine, bool *busy, Error *err)
{
    switch (run_state_step(&machine->run, err)) {
    case RUN_IDLE:
        return -1;
    case RUN_BUSY:
        *busy = true;
        return -1;
    case RUN_ENDS_QUIT:
        machine->end_asked = true;
        return MACHINE_EXIT_POWER_OFF;
    case RUN_ENDS_RESET:
        machine->end_asked = true;
        return MACHINE_EXIT_RESET;
    default:
        return MACHINE_EXIT_HOST_FAILURE;
    }
}

static int loop(Machine *machine, Error *err)
{
    while (!machine->signal_received) {
        unsigned events = kvm_platform_take_events(&machine->platform);
        bool busy = events != 0;
        int status = handle_events(machine, events, err);

        if (status < 0 && machine_report(machine)) {
            status = MACHINE_EXIT_GUEST_STUCK;
        }
        if (status < 0 && disks_take_failure(machine)) {
            run_state_io_error(&machine->run);
            busy = true;
        }
        if (status < 0) {
            status = handle_requests(machine, &busy, err);
        }
        if (status >= 0) {
            return status;
        }
        machine->at_rest = true;
        aio_poll(machine->main, !busy && !machine->signal_received);
        machine->at_rest = false;
    }
    return MACHINE_EXIT_SIGNAL + machine->signal_received;
}

/* --- the end --- */

static const char *shutdown_reason(const Machine *machine, int status)
{
    switch (status) {
    case MACHINE_EXIT_POWER_OFF:
        return machine->end_asked ? "host-qmp-quit" : "guest-shutdown";
    case MACHINE_EXIT_PANIC:
        return "guest-panic";
    case MACHINE_EXIT_RESET:
        return machine->end_asked ? "host-qmp-system-reset" : "guest-reset";
    case MACHINE_EXIT_HOST_FAILURE:
    case MACHINE_EXIT_GUEST_STUCK:
        return "host-error";
    default:
        return "host-signal";
    }
}

/* Clients hear of the end; no command runs afterwards. */
static void end_control(Machine *machine, int status)
{
    const char *reason = shutdown_reason(machine, status);

    run_state_end(&machine->run);
    if (!machine->control) {
        return;
    }
    if (status == MACHINE_EXIT_PANIC) {
        control_event(machine->control, "GUEST_PANICKED", json_pack("{s:s}", "action", "poweroff"));
    }
    control_event(machine->control, "SHUTDOWN",
                  json_pack("{s:b, s:s}", "guest", strncmp(reason, "guest", 5) == 0, "reason",
                            reason));
    control_stop(machine->control);
    qmp_target_finish(&machine->target);
    control_destroy(take_ptr(&machine->control));
}

int machine_run(Machine *machine, Error *err)
{
    static const TerminalOps terminal = { .input = console_input_cb,
                                           .quit = quit_cb,
                                           .go_on = continue_cb };

    assert_main();
    if (terminal_start(machine->main, &terminal, machine, err) < 0) {
        return MACHINE_EXIT_HOST_FAILURE;
    }
    if (machine->control) {
        control_start(machine->control);
    }
    run_state_launch(&machine->run);
    int status = loop(machine, err);

    terminal_stop_output();
    vcpus_pause(machine->vcpus);
    end_control(machine, status);
    terminal_stop();
    ending_signals_release();
    return status;
}

const char *machine_report(Machine *machine)
{
    return vcpus_failure(machine->vcpus);
}

int machine_destroy(Machine *machine, Error *err)
{
    if (!machine) {
        return 0;
    }
    if (machine->control) { /* it has not run */
        qmp_target_finish(&machine->target);
        control_destroy(machine->control);
    }
    vcpus_destroy(machine->vcpus);
    int ret = disks_destroy(machine, err);

    pci_host_destroy(machine->pci);
    serial_destroy(machine->serial);
    pvpanic_destroy(machine->pvpanic);
    i8042_destroy(machine->i8042);
    acpi_pm_destroy(machine->pm);
    rtc_destroy(machine->rtc);
    kvm_platform_finish(&machine->platform);
    if (machine->ram_pinned) {
        aio_buffers_unregister();
    }
    gm_finish(&machine->gm);
    kvm_close(&machine->kvm);
    ram_destroy(&machine->ram);
    if (machine->signal_fd >= 0) {
        aio_set_fd_handler(machine->main, machine->signal_fd, NULL, NULL);
        close(machine->signal_fd);
    }
    bus_finish(&machine->pio);
    bus_finish(&machine->mmio);
    if (machine->main) {
        aio_context_set_main(NULL);
        aio_context_enter(NULL);
        aio_context_destroy(machine->main);
    }
    free(machine);
    return ret;
}
