/*
 * notify.pml - how a context falls asleep and is woken (io/aio/aio-context.c and the monitors)
 *
 * Every producer pushes an item onto the list or makes a condition true, and notifies; home() is a
 * thread in AIO_WAIT_WHILE() on the conditions, with passes that take the list. It ends when it has
 * everything, and destroys the context. README.md says what stands for what.
 *
 * Checked: no state in which home() sleeps for good (invalid end state); nothing taken is stale and
 * nobody touches the context after its end (assertions); the eventfd is written at most once a
 * sleep; what was published is seen at last, under weak fairness (the ltl below).
 *
 * Also checked with EPOLL: the other monitor (aio-epoll.c); without, it is aio-uring.c.
 *
 * Broken on purpose, and how each must fail:
 *   BROKEN_NOTIFY_FIRST       end state  the producer notifies and then publishes
 *   BROKEN_LOOK_FIRST         end state  home takes the list and then the notification
 *   BROKEN_PLAIN_SLEEP        end state  sleep_begin() stores SLEEPING whatever was there
 *   BROKEN_PLAIN_SLEEP_END    end state  sleep_end() stores AWAKE whatever was there
 *   BROKEN_SLEEP_AFTER_TAKING end state  a pass that took a notification sleeps
 *   BROKEN_NOTIFY_IF_ASLEEP   end state  the producer looks first, and leaves AWAKE as it is
 *   BROKEN_READ_ONCE          end state  the eventfd's read is not queued again after it completed
 *   BROKEN_RELAXED_NOTIFY     end state  the producer's exchange does not release
 *   BROKEN_RELAXED_LOOK       end state  home's exchange does not acquire
 *   BROKEN_ALWAYS_WRITE       assertion  the eventfd is written though nobody sleeps
 *   BROKEN_LATE_DOOR          assertion  the door is entered after publishing
 *   BROKEN_EARLY_LEAVE        assertion  the door is left before notifying
 *   BROKEN_ONLY_AWAKE         cycle      a pass that sees a notification only stays awake
 */
#define ALL      3 /* producers, a bit for each */
#define SPURIOUS 1 /* sleeps that something else ends */

mtype = { AWAKE, SLEEPING, NOTIFIED };

/* --- the context's doors --- */
mtype wake_state = AWAKE;
byte incoming = 0;   /* the items on the list: a bit for each producer */
byte conditions = 0; /* those that are true, likewise */
byte callers = 0;
byte eventfd = 0;

/* --- the monitor --- */
#ifdef EPOLL
bool wake_event = false; /* in the array that epoll_wait() has filled */
bool cqe_other = false;  /* something else is ready */
#else
bool wake_armed = false; /* as home believes */
bool read_queued = false;
bool cqe_wake = false, cqe_other = false;
#endif

/* --- what the checks look at --- */
byte taken = 0;     /* items */
byte announced = 0; /* producers whose aio_notify() has returned */
byte seen = 0;      /* of these, seen by home */
bool freed = false;
byte sleeps = 0; /* that nobody has written for and that did not end without */

/*
 * A store that is no read-modify-write waits in its thread's store buffer: memory() commits it at
 * any later time, and a release waits until that was done.
 */
byte buffered = 0;

active proctype memory()
{
end:
    do
    :: atomic { buffered & 1 -> conditions = conditions | 1; buffered = buffered & ~1 }
    :: atomic { buffered & 2 -> conditions = conditions | 2; buffered = buffered & ~2 }
    od
}

inline release(me)
{
    !(buffered & (1 << me))
}

inline door_enter()
{
    atomic { assert(!freed); callers++ }
}

inline door_leave(me)
{
    release(me);
    atomic { assert(!freed); callers-- }
}

inline aio_notify(me)
{
#ifndef BROKEN_RELAXED_NOTIFY
    release(me);
#endif
#ifdef BROKEN_NOTIFY_IF_ASLEEP
    old = wake_state;
    if
    :: old == SLEEPING -> wake_state = NOTIFIED
    :: else
    fi;
#else
    atomic { assert(!freed); old = wake_state; wake_state = NOTIFIED };
#endif
    if
#ifdef BROKEN_ALWAYS_WRITE
    :: true ->
#else
    :: old == SLEEPING ->
#endif
        atomic {
            assert(!freed);
            old = AWAKE;
            eventfd++;
            assert(sleeps > 0);
            sleeps--
        }
    :: else
    fi
}

inline publish(me)
{
    atomic {
        assert(!freed);
        if
        :: incoming = incoming | (1 << me)
        :: buffered = buffered | (1 << me)
        fi
    }
}

proctype producer(byte me)
{
    mtype old;

#if defined(BROKEN_LATE_DOOR)
    publish(me);
    door_enter();
    aio_notify(me);
    door_leave(me);
#elif defined(BROKEN_EARLY_LEAVE)
    door_enter();
    publish(me);
    door_leave(me);
    aio_notify(me);
#elif defined(BROKEN_NOTIFY_FIRST)
    door_enter();
    aio_notify(me);
    publish(me);
    door_leave(me);
#else
    door_enter();
    publish(me);
    aio_notify(me);
    door_leave(me);
#endif
    announced = announced | (1 << me)
}

#ifndef EPOLL
/* The kernel's half of the read of the eventfd. */
active proctype kernel()
{
end:
    do
    :: atomic { read_queued && eventfd > 0 -> eventfd = 0; read_queued = false; cqe_wake = true }
    od
}
#endif

/* All else that ends a sleep: other completions, timers, signals. They stop at some time. */
active proctype others()
{
    byte n = 0;

    do
    :: n < SPURIOUS -> cqe_other = true; n++
    :: break
    od
}

/* --- the home thread --- */

inline take_list()
{
    atomic {
        taken = taken | incoming;
        progress = incoming != 0;
        incoming = 0
    }
}

inline look_at_conditions()
{
    looked = conditions
}

inline incoming_run()
{
    /* A relaxed load: what is there now, or still what was there when this thread last looked. */
    if
    :: atomic { loaded = wake_state; last_seen = loaded }
    :: loaded = last_seen
    fi;
    if
#ifdef BROKEN_ONLY_AWAKE
    :: loaded == NOTIFIED -> wait = false
#else
    :: loaded == NOTIFIED ->
#ifdef BROKEN_LOOK_FIRST
        take_list();
#endif
#ifdef BROKEN_RELAXED_LOOK
        look_at_conditions();
        stale = true;
#endif
        atomic { wake_state = AWAKE; last_seen = AWAKE };
#ifndef BROKEN_SLEEP_AFTER_TAKING
        wait = false;
#endif
#ifndef BROKEN_LOOK_FIRST
        take_list()
#endif
#endif
    :: else
    fi
}

inline sleep_begin()
{
#ifdef BROKEN_PLAIN_SLEEP
    atomic { wake_state = SLEEPING; last_seen = SLEEPING; asleep = true; sleeps++ }
#else
    atomic {
        last_seen = wake_state;
        asleep = wake_state == AWAKE;
        if
        :: asleep -> wake_state = SLEEPING; last_seen = SLEEPING; sleeps++
        :: else
        fi
    }
#endif
}

inline sleep_end()
{
#ifdef BROKEN_PLAIN_SLEEP_END
    atomic {
        if
        :: wake_state == SLEEPING -> sleeps--
        :: else
        fi;
        wake_state = AWAKE;
        last_seen = AWAKE
    }
#else
    atomic {
        last_seen = wake_state;
        if
        :: wake_state == SLEEPING -> wake_state = AWAKE; last_seen = AWAKE; sleeps--
        :: else
        fi
    }
#endif
}

#ifdef EPOLL
inline look()
{
    atomic { eventfd > 0 || cqe_other -> wake_event = eventfd > 0 }
}

inline monitor_enter()
{
    look()
}

inline monitor_reap()
{
    atomic {
        cqe_other = false;
        if
        :: wake_event -> assert(eventfd > 0); eventfd = 0; wake_event = false
        :: else
        fi
    }
}
#else
inline look()
{
    cqe_wake || cqe_other
}

inline monitor_enter()
{
    if
    :: !wake_armed -> atomic { wake_armed = true; read_queued = true }
    :: !wake_armed /* the submission queue is full: no sleep */
    :: wake_armed
    fi;
    if
    :: !wake_armed
    :: wake_armed -> look()
    fi
}

inline monitor_reap()
{
    atomic {
        cqe_other = false;
        if
        :: cqe_wake ->
            cqe_wake = false;
#ifndef BROKEN_READ_ONCE
            wake_armed = false
#endif
        :: else
        fi
    }
}

#endif

inline aio_poll()
{
    wait = true;
    progress = false;
    incoming_run();
    if
    :: wait && !progress ->
        /* has_work() sees something, the polling window sees a notification; or neither */
        if
        :: look(); wait = false
        :: atomic { wake_state == NOTIFIED -> last_seen = NOTIFIED }; wait = false; incoming_run()
        :: true
        fi
    :: else
    fi;
    if
    :: wait && !progress ->
        sleep_begin();
        if
        :: asleep -> monitor_enter(); sleep_end()
        :: else
        fi;
        incoming_run()
    :: else
    fi;
    monitor_reap();
    /* what is dead must not tell states apart */
    atomic { loaded = AWAKE; wait = false; progress = false; asleep = false }
}

active proctype home()
{
    mtype loaded = AWAKE, last_seen = AWAKE;
    bool wait, progress, asleep;
    byte looked = 0; /* the conditions that were found true */
#ifdef BROKEN_RELAXED_LOOK
    bool stale = false;
#endif

    atomic { run producer(0); run producer(1) };
    do
    ::
#ifdef BROKEN_RELAXED_LOOK
        /* The load was made early, before the exchange. */
        if
        :: stale -> stale = false
        :: else -> look_at_conditions()
        fi;
#else
        look_at_conditions();
#endif
        seen = taken | looked;
        if
        :: seen == ALL -> break
        :: else -> aio_poll()
        fi
    od;
    /* aio_context_destroy() */
    callers == 0;
    freed = true
}

ltl announced_is_seen {
    [] (((announced & 1) -> <> (seen & 1)) && ((announced & 2) -> <> (seen & 2)))
}
