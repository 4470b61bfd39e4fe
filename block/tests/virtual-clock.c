/*
 * virtual-clock.c - time that passes when a test says so
 */
#include "block/tests/virtual-clock.h"

static int64_t virtual_now_ns;
static AioTimer *timers[VIRTUAL_TIMERS_MAX];
static unsigned nb_timers;

int64_t __wrap_aio_now_ns(void);
void __wrap_aio_timer_arm(AioTimer *timer, int64_t deadline_ns);
void __wrap_aio_timer_disarm(AioTimer *timer);

int64_t __wrap_aio_now_ns(void)
{
    return virtual_now_ns;
}

void __wrap_aio_timer_disarm(AioTimer *timer)
{
    for (unsigned i = 0; i < nb_timers; i++) {
        if (timers[i] == timer) {
            ASSERT_TRUE(aio_current() == timer->ctx);
            timers[i] = timers[--nb_timers];
            return;
        }
    }
}

void __wrap_aio_timer_arm(AioTimer *timer, int64_t deadline_ns)
{
    ASSERT_TRUE(aio_current() == timer->ctx);
    __wrap_aio_timer_disarm(timer);
    ASSERT_TRUE(nb_timers < VIRTUAL_TIMERS_MAX);
    timer->deadline_ns = deadline_ns;
    timers[nb_timers++] = timer;
}

unsigned virtual_nb_timers(void)
{
    return nb_timers;
}

static AioTimer *earliest(void)
{
    AioTimer *first = NULL;

    for (unsigned i = 0; i < nb_timers; i++) {
        if (!first || timers[i]->deadline_ns < first->deadline_ns) {
            first = timers[i];
        }
    }
    return first;
}

void virtual_clock_advance_to(Env *env, int64_t now_ns)
{
    AioTimer *timer;

    env_settle(env);
    while ((timer = earliest()) && timer->deadline_ns <= now_ns) {
        virtual_now_ns = MAX(virtual_now_ns, timer->deadline_ns);
        aio_context_enter(timer->ctx);
        __wrap_aio_timer_disarm(timer);
        timer->cb(timer->opaque);
        aio_context_enter(env->main);
        env_settle(env);
    }
    virtual_now_ns = now_ns;
}
