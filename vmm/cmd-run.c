/*
 * cmd-run.c - `penstock run`: parse, build, run, say how it ended
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "io/aio/aio-worker.h"
#include "io/base/thread.h"
#include "vmm/cmd.h"
#include "vmm/machine.h"

/* The line that tells a person why the run is over; nothing for an orderly power-off. */
static void say_status(int status)
{
    if (status == MACHINE_EXIT_PANIC) {
        cmd_complain("the guest's kernel panicked (status %d)", status);
    } else if (status == MACHINE_EXIT_RESET) {
        cmd_complain("the guest reset the machine, --no-reboot ends the run (status %d)", status);
    } else if (status > MACHINE_EXIT_SIGNAL) {
        cmd_complain("ended by signal %d, %s (status %d)", status - MACHINE_EXIT_SIGNAL,
                     strsignal(status - MACHINE_EXIT_SIGNAL), status);
    }
}

static main_fn int run_machine(Machine *machine, const MachineConfig *config)
{
    Error err;
    int status = machine_run(machine, &err);

    if (status == MACHINE_EXIT_HOST_FAILURE) {
        cmd_complain("%s", err.msg);
    } else if (status == MACHINE_EXIT_GUEST_STUCK) {
        cmd_complain("%s", machine_report(machine));
    } else {
        say_status(status);
    }
    if (config->stats_path && machine_write_stats(machine, config->stats_path, &err) < 0) {
        cmd_complain("%s", err.msg);
        status = status == 0 ? MACHINE_EXIT_HOST_FAILURE : status;
    }
    return status;
}

static int run_config(MachineConfig *config)
{
    bool usage = false;
    Error err;

    assert_main();
    log_set_level(config->log_level);
    aio_workers_set_max(config->max_workers);
    if (config->stats_path && machine_check_stats(config->stats_path, &err) < 0) {
        cmd_complain("%s", err.msg);
        return MACHINE_EXIT_HOST_FAILURE;
    }
    Machine *machine = machine_create(config, &usage, &err);

    if (!machine) {
        cmd_complain("%s", err.msg);
        return usage ? MACHINE_EXIT_USAGE : MACHINE_EXIT_HOST_FAILURE;
    }
    int status = run_machine(machine, config);

    if (machine_destroy(machine, &err) < 0) {
        cmd_complain("%s", err.msg);
        status = status == 0 ? MACHINE_EXIT_HOST_FAILURE : status;
    }
    return status;
}

int cmd_run(int argc, char **argv)
{
    MachineConfig *config = malloc(sizeof(*config));
    Error err;
    int status;

    if (!config) {
        cmd_complain("out of memory");
        return MACHINE_EXIT_HOST_FAILURE;
    }
    config_init(config);
    if (config_parse(config, argc, argv, &err) < 0) {
        cmd_complain("%s", err.msg);
        status = MACHINE_EXIT_USAGE;
    } else if (config->help) {
        fputs(config_run_help, stdout);
        status = 0;
    } else {
        status = run_config(config);
    }
    config_finish(config);
    free(config);
    return status;
}
