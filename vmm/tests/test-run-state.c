/*
 * Tests of the run state machine, with a main loop and a machine made of letters
 *
 * What the machine is asked to do is written down: h halt, g go, r reset of a running machine, R of
 * a halted one; p its power button pressed; S, G, Z and P the events STOP, RESUME, RESET and
 * POWERDOWN.
 */
#include "vmm/run-state.h"

#include "io/base/test.h"

static char log_text[256];
static size_t log_len;
static int reset_result;
static RunState run;
static AioContext *ctx;

static void note(char c)
{
    ASSERT_LT(log_len, sizeof(log_text) - 1);
    log_text[log_len++] = c;
    log_text[log_len] = '\0';
}

static void halt_cb(void *opaque)
{
    note('h');
}

static void go_cb(void *opaque)
{
    note('g');
}

static int reset_cb(void *opaque, bool running, Error *err)
{
    note(running ? 'r' : 'R');
    return reset_result < 0 ? error_set(err, reset_result, "no kernel any more") : reset_result;
}

static void powerdown_cb(void *opaque)
{
    note('p');
}

static void event_cb(void *opaque, RunEvent event, bool by_guest)
{
    static const char letters[] = { 'S', 'G', 'Z', 'P' };

    note(event == RUN_EVENT_RESET && by_guest ? 'z' : letters[event]);
}

static const RunOps ops = {
    .halt = halt_cb,
    .go = go_cb,
    .reset = reset_cb,
    .powerdown = powerdown_cb,
    .event = event_cb,
};

static void setup(void)
{
    Error err;

    ctx = aio_context_create("main", NULL, &err);
    ASSERT_TRUE(ctx != NULL);
    aio_context_enter(ctx);
    aio_context_set_main(ctx);
    log_len = 0;
    reset_result = 0;
    run_state_init(&run, &ops, NULL);
    run_state_launch(&run);
    EXPECT_STREQ(log_text, "gG");
    log_len = 0;
    log_text[0] = '\0';
}

static void teardown(void)
{
    run_state_finish(&run);
    aio_context_set_main(NULL);
    aio_context_enter(NULL);
    aio_context_destroy(ctx);
}

typedef struct Caller {
    RunAction action;
    int ret; /* 1 = not answered yet */
    RunStatus answered_in;
    Error err;
} Caller;

static co_fn void caller_entry(void *opaque)
{
    Caller *caller = opaque;

    caller->ret = run_state_co_request(&run, caller->action, &caller->err);
    caller->answered_in = run_state_status(&run);
}

static void call(Caller *caller, RunAction action)
{
    Coroutine *co = co_create(caller_entry, caller);

    ASSERT_TRUE(co != NULL);
    *caller = (Caller){ .action = action, .ret = 1 };
    co_enter(co);
}

static RunStep step(void)
{
    Error err;

    return run_state_step(&run, &err);
}

TEST(run_state, stop_and_cont_are_done_before_they_are_answered)
{
    Caller caller;

    setup();
    EXPECT_EQ(step(), RUN_IDLE);
    call(&caller, RUN_STOP);
    EXPECT_EQ(caller.ret, 1);
    EXPECT_STREQ(log_text, "");
    EXPECT_EQ(step(), RUN_BUSY);
    EXPECT_EQ(caller.ret, 0);
    EXPECT_EQ(caller.answered_in, RUN_PAUSED);
    call(&caller, RUN_CONT);
    EXPECT_EQ(step(), RUN_BUSY);
    EXPECT_EQ(caller.ret, 0);
    EXPECT_EQ(caller.answered_in, RUN_RUNNING);
    EXPECT_STREQ(log_text, "hSgG");
    teardown();
}

TEST(run_state, requests_are_carried_out_in_order_and_twice_is_once)
{
    Caller callers[5];

    setup();
    call(&callers[0], RUN_STOP);
    call(&callers[1], RUN_STOP);
    call(&callers[2], RUN_CONT);
    call(&callers[3], RUN_CONT);
    call(&callers[4], RUN_STOP);
    for (unsigned i = 0; i < 5; i++) {
        EXPECT_EQ(callers[i].ret, 1);
        EXPECT_EQ(step(), RUN_BUSY);
        EXPECT_EQ(callers[i].ret, 0);
    }
    EXPECT_EQ(step(), RUN_IDLE);
    EXPECT_STREQ(log_text, "hSgGhS");
    teardown();
}

TEST(run_state, a_disk_error_stops_a_running_guest_and_no_other)
{
    Caller caller;

    setup();
    run_state_io_error(&run);
    EXPECT_EQ(run_state_status(&run), RUN_IO_ERROR);
    run_state_io_error(&run);
    EXPECT_STREQ(log_text, "hS");
    call(&caller, RUN_STOP);
    EXPECT_EQ(step(), RUN_BUSY);
    EXPECT_EQ(run_state_status(&run), RUN_IO_ERROR);
    call(&caller, RUN_CONT);
    EXPECT_EQ(step(), RUN_BUSY);
    call(&caller, RUN_STOP);
    EXPECT_EQ(step(), RUN_BUSY);
    run_state_io_error(&run);
    EXPECT_EQ(run_state_status(&run), RUN_PAUSED);
    EXPECT_STREQ(log_text, "hSgGhS");
    teardown();
}

TEST(run_state, a_signal_continues_what_an_error_has_stopped_and_the_key_all)
{
    Caller caller;

    setup();
    run_state_ask_cont(&run, false);
    EXPECT_EQ(step(), RUN_IDLE); /* it runs */
    run_state_io_error(&run);
    EXPECT_EQ(step(), RUN_IDLE); /* what was asked before the error is no answer to it */
    run_state_ask_cont(&run, true);
    EXPECT_EQ(step(), RUN_BUSY);
    EXPECT_EQ(run_state_status(&run), RUN_RUNNING);
    call(&caller, RUN_STOP);
    EXPECT_EQ(step(), RUN_BUSY);
    run_state_ask_cont(&run, true);
    EXPECT_EQ(step(), RUN_IDLE);
    EXPECT_EQ(run_state_status(&run), RUN_PAUSED);
    run_state_ask_cont(&run, false);
    EXPECT_EQ(step(), RUN_BUSY);
    EXPECT_EQ(run_state_status(&run), RUN_RUNNING);
    teardown();
}

TEST(run_state, a_reset_leaves_a_stopped_guest_stopped)
{
    Caller caller;
    Error err;

    setup();
    EXPECT_EQ(run_state_reset(&run, &err), 0);
    call(&caller, RUN_RESET);
    EXPECT_EQ(step(), RUN_BUSY);
    EXPECT_EQ(caller.ret, 0);
    call(&caller, RUN_STOP);
    EXPECT_EQ(step(), RUN_BUSY);
    call(&caller, RUN_RESET);
    EXPECT_EQ(step(), RUN_BUSY);
    EXPECT_EQ(run_state_status(&run), RUN_PAUSED);
    EXPECT_STREQ(log_text, "rzrZhSRZ");
    teardown();
}

TEST(run_state, the_power_button_is_pressed_in_turn_and_changes_no_state)
{
    static const RunAction actions[] = { RUN_POWERDOWN, RUN_STOP, RUN_RESET, RUN_POWERDOWN,
                                         RUN_POWERDOWN, RUN_CONT };
    Caller callers[ARRAY_SIZE(actions)];

    setup();
    for (unsigned i = 0; i < ARRAY_SIZE(actions); i++) {
        call(&callers[i], actions[i]);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(actions); i++) {
        EXPECT_EQ(callers[i].ret, 1);
        EXPECT_EQ(step(), RUN_BUSY);
        EXPECT_EQ(callers[i].ret, 0);
    }
    EXPECT_EQ(callers[0].answered_in, RUN_RUNNING);
    EXPECT_EQ(callers[4].answered_in, RUN_PAUSED);
    EXPECT_STREQ(log_text, "pPhSRZpPpPgG");
    run_state_end(&run);
    call(&callers[0], RUN_POWERDOWN);
    EXPECT_EQ(callers[0].ret, -EINVAL);
    teardown();
}

TEST(run_state, a_reset_that_fails_or_ends_the_run_says_so)
{
    Caller caller;
    Error err;

    setup();
    reset_result = 1;
    call(&caller, RUN_RESET);
    EXPECT_EQ(step(), RUN_ENDS_RESET);
    EXPECT_EQ(caller.ret, 0);
    reset_result = -EIO;
    call(&caller, RUN_RESET);
    EXPECT_EQ(run_state_step(&run, &err), RUN_ENDS_FAILED);
    EXPECT_STREQ(err.msg, "no kernel any more");
    EXPECT_EQ(caller.ret, -EIO);
    EXPECT_STREQ(caller.err.msg, "no kernel any more");
    EXPECT_STREQ(log_text, "rr");
    teardown();
}

TEST(run_state, the_end_answers_all_who_wait_and_all_who_come)
{
    Caller callers[3];

    setup();
    call(&callers[0], RUN_QUIT);
    call(&callers[1], RUN_STOP);
    EXPECT_EQ(step(), RUN_ENDS_QUIT);
    EXPECT_EQ(callers[0].ret, 0);
    EXPECT_EQ(callers[1].ret, 1);
    run_state_end(&run);
    EXPECT_EQ(callers[1].ret, -ECANCELED);
    call(&callers[2], RUN_CONT);
    EXPECT_EQ(callers[2].ret, -EINVAL);
    EXPECT_EQ(run_state_status(&run), RUN_SHUTDOWN);
    EXPECT_STREQ(log_text, "");
    teardown();
}

TEST_MAIN()
