/*
 * qmp-run.c - commands: whether the guest runs
 */
#include "vmm/qmp.h"

static co_fn int co_query_status(QmpTarget *target, const json_t *args, json_t **ret_result,
                                 Error *err)
{
    RunStatus status = run_state_status(target->run);

    *ret_result = json_pack("{s:b, s:s}", "running", status == RUN_RUNNING, "status",
                            run_status_names[status]);
    return *ret_result ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static co_fn int co_stop(QmpTarget *target, const json_t *args, json_t **ret_result, Error *err)
{
    return run_state_co_request(target->run, RUN_STOP, err);
}

static co_fn int co_cont(QmpTarget *target, const json_t *args, json_t **ret_result, Error *err)
{
    return run_state_co_request(target->run, RUN_CONT, err);
}

static co_fn int co_system_reset(QmpTarget *target, const json_t *args, json_t **ret_result,
                                 Error *err)
{
    return run_state_co_request(target->run, RUN_RESET, err);
}

static co_fn int co_system_powerdown(QmpTarget *target, const json_t *args, json_t **ret_result,
                                     Error *err)
{
    return run_state_co_request(target->run, RUN_POWERDOWN, err);
}

static co_fn int co_quit(QmpTarget *target, const json_t *args, json_t **ret_result, Error *err)
{
    if (target->run) {
        return run_state_co_request(target->run, RUN_QUIT, err);
    }
    target->quit(target->opaque);
    return 0;
}

const QmpCommand qmp_run_commands[] = {
    { .name = "query-status",
      .help = "whether the guest runs",
      .flags = QMP_GUEST,
      .co_run = co_query_status },
    { .name = "stop",
      .help = "stop the guest; when this returns its disks are at rest",
      .flags = QMP_GUEST,
      .co_run = co_stop },
    { .name = "cont", .help = "let it go on", .flags = QMP_GUEST, .co_run = co_cont },
    { .name = "system_reset",
      .help = "reset the guest, as its reset button would",
      .flags = QMP_GUEST,
      .co_run = co_system_reset },
    { .name = "system_powerdown",
      .help = "press the guest's power button: ask it to shut down",
      .flags = QMP_GUEST,
      .co_run = co_system_powerdown },
    { .name = "quit", .help = "end penstock; the guest is not asked", .co_run = co_quit },
    { .name = NULL },
};
