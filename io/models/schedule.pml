/*
 * schedule.pml - how coroutines reach the context they are to run in (io/aio/aio-co.c)
 *
 * Each coroutine begins in context 0, waits there for its waker, moves to context 1, waits again
 * and ends. Its waker, a thread of its own, may come as soon as the coroutine has said that it
 * wants to be woken, which is before it yields. README.md says what stands for what.
 *
 * Checked: a coroutine is entered only when it has left its stack, by its home, in the order of the
 * pushes, and sees what it wrote before wherever that was (assertions); none is lost (invalid end
 * state); one that was scheduled runs at last, under weak fairness (the ltl below).
 *
 * Broken on purpose, and how each must fail:
 *   BROKEN_PLAIN_TAKE      end state  the home looks at the tail and then resets it
 *   BROKEN_PLAIN_PUSH      end state  the pusher looks at the tail and then stores its own
 *   BROKEN_MOVE_IN_PLACE   assertion  the coroutine schedules itself elsewhere and then yields
 *   BROKEN_HOME_OF_WAKER   assertion  a waker enters the coroutine in its own thread
 *   BROKEN_TWO_WAKERS      assertion  somebody else wakes the coroutine, too
 *   BROKEN_LINK_LATE       assertion  the list goes on from the link after entering
 *   BROKEN_TAKE_AT_GAP     end state  the one before a gap is taken as if it were the last
 *   BROKEN_NOTIFY_FIRST    end state  the pusher notifies before it fills its place
 *   BROKEN_RELAXED_PLACE   end state  the exchange on the tail does not release the cleared link
 */
#define COROUTINES 2
#define CONTEXTS   2
#define THREADS    (CONTEXTS + COROUTINES) /* each context's, each waker's */
#define WAKER(co)  (CONTEXTS + (co))
#define NONE       255

mtype = { CREATED, YIELDED, RUNNING, ENDED };

#define FIRST(ctx) (COROUTINES + (ctx)) /* the link in which a context's chain begins */

byte tail[CONTEXTS];
bool notified[CONTEXTS];
byte next[COROUTINES + CONTEXTS]; /* the links: schedule_node of each coroutine, and those */
/* of each coroutine: */
byte home[COROUTINES];
mtype state[COROUTINES];
bool marked[COROUTINES]; /* scheduled_by is set */
byte frame[COROUTINES];  /* stands for all that is on its stack: where it goes on */
bool wanted[COROUTINES]; /* it says that it waits for its waker */

/* --- what the checks look at --- */
byte goes_on_at[COROUTINES]; /* the frame, as nobody can see it late */
byte ticket[COROUTINES], nb_tickets[CONTEXTS], nb_served[CONTEXTS];
byte scheduled = 0; /* a bit for each */
byte nb_ended = 0;

/*
 * A store that is no read-modify-write waits in its thread's store buffer: memory() commits it at
 * any later time, and a release waits until that was done. A link is stored by who pushes, the
 * frame by who runs the coroutine; no thread has more than one of either on its way.
 */
byte link_of[THREADS], link_value[THREADS]; /* link_of NONE: empty */
byte frame_of[THREADS], frame_value[THREADS];

inline commit(t)
{
    if
    :: link_of[t] != NONE -> next[link_of[t]] = link_value[t]; link_of[t] = NONE; link_value[t] = 0
    :: frame_of[t] != NONE ->
        frame[frame_of[t]] = frame_value[t];
        frame_of[t] = NONE;
        frame_value[t] = 0
    fi
}

active proctype memory()
{
end:
    do
    :: atomic { commit(0) }
    :: atomic { commit(1) }
    :: atomic { commit(2) }
    :: atomic { commit(3) }
    od
}

#define RELEASED(t) (link_of[t] == NONE && frame_of[t] == NONE)

inline store_link(me, at, value)
{
    atomic { link_of[me] == NONE -> link_of[me] = at; link_value[me] = value }
}

inline store_frame(me, co, value)
{
    atomic {
        frame_of[me] == NONE -> frame_of[me] = co;
        frame_value[me] = value;
        goes_on_at[co] = value
    }
}

/* Uses the caller's `place`. */
inline aio_co_schedule(me, ctx, co)
{
    /* co_mark_scheduled() */
    atomic { assert(!marked[co] && state[co] != ENDED); marked[co] = true };
    scheduled = scheduled | (1 << co);
    /* mpsc_push() */
    store_link(me, co, NONE);
#ifndef BROKEN_RELAXED_PLACE
    RELEASED(me);
#endif
#ifdef BROKEN_PLAIN_PUSH
    place = tail[ctx];
#endif
    atomic {
#ifndef BROKEN_PLAIN_PUSH
        place = tail[ctx];
#endif
        tail[ctx] = co;
        ticket[co] = nb_tickets[ctx];
        nb_tickets[ctx]++
    };
#ifdef BROKEN_NOTIFY_FIRST
    notified[ctx] = true;
#endif
#ifndef BROKEN_RELAXED_PLACE
    RELEASED(me);
#endif
    store_link(me, place, co);
    place = NONE;
#ifndef BROKEN_NOTIFY_FIRST
    RELEASED(me);
    notified[ctx] = true /* aio_notify() */
#endif
}

/* --- a coroutine, in the thread of the context that enters it --- */

/* co_enter(), up to the switch */
inline switch_to(co)
{
    atomic {
        assert(!marked[co]);
        assert(state[co] == CREATED || state[co] == YIELDED);
        state[co] = RUNNING
    };
    assert(frame[co] == goes_on_at[co]);
    assert(home[co] == me)
}

/* The switch away, and what its enterer then does. */
inline leave(co)
{
    RELEASED(me);
    state[co] = YIELDED
}

inline wait_for_waker(co, goes_on)
{
    store_frame(me, co, goes_on);
    RELEASED(me); /* it says so by way of some lock or list */
    wanted[co] = true;
    leave(co)
}

inline move(co, ctx)
{
    store_frame(me, co, 2);
#ifdef BROKEN_MOVE_IN_PLACE
    aio_co_schedule(me, ctx, co);
    leave(co)
#else
    /* co_yield_then() */
    leave(co);
    aio_co_schedule(me, ctx, co)
#endif
}

inline co_enter(co)
{
    switch_to(co);
    if
    :: goes_on_at[co] == 0 -> wait_for_waker(co, 1)
    :: goes_on_at[co] == 1 -> assert(me == 0); move(co, 1)
    :: goes_on_at[co] == 2 -> assert(me == 1); wait_for_waker(co, 3)
    :: goes_on_at[co] == 3 -> assert(me == 1); atomic { state[co] = ENDED; nb_ended++ }
    fi
}

/* --- a context's thread: co_run() in one pass after the other --- */

/* mpsc_collect(): the chain goes to the end of the ready list. */
inline collect()
{
    if
    :: next[FIRST(me)] == NONE
    :: else ->
        first = next[FIRST(me)];
        next[FIRST(me)] = NONE;
#ifdef BROKEN_PLAIN_TAKE
        new_end = tail[me];
        tail[me] = FIRST(me);
#else
        atomic { new_end = tail[me]; tail[me] = FIRST(me) };
#endif
        if
        :: ready == NONE -> ready = first
        :: else -> next[end_of_ready] = first
        fi;
        atomic { end_of_ready = new_end; first = NONE; new_end = NONE }
    fi
}

#ifdef BROKEN_TAKE_AT_GAP
#define AT_GAP false
#else
#define AT_GAP (next[ready] == NONE && end_of_ready != ready)
#endif

proctype context(byte me)
{
    byte first = NONE, new_end = NONE, ready = NONE, end_of_ready = NONE;
    byte co = NONE, place = NONE;

end:
    do
    :: notified[me] ->
        notified[me] = false;
        collect();
        do
        :: (ready == NONE || AT_GAP) -> break
        :: else ->
            co = ready;
            atomic {
                assert(ticket[co] == nb_served[me]);
                nb_served[me]++;
                scheduled = scheduled & ~(1 << co)
            };
#ifdef BROKEN_LINK_LATE
            marked[co] = false;
            home[co] = me;
            co_enter(co);
            ready = next[co];
#else
            ready = next[co];
            assert(marked[co]);
            marked[co] = false; /* co_clear_scheduled() */
            home[co] = me;
            co_enter(co);
#endif
            atomic { co = NONE; end_of_ready = (ready == NONE -> NONE : end_of_ready) }
        od
    od
}

/* --- other threads --- */

inline aio_co_wake(co)
{
#ifdef BROKEN_HOME_OF_WAKER
    home[co] = me;
    switch_to(co)
#else
    ctx = home[co];
    aio_co_schedule(me, ctx, co)
#endif
}

proctype waker(byte co)
{
    byte me = WAKER(co), ctx = 0, place = NONE;

    aio_co_schedule(me, 0, co); /* its beginning */
    atomic { wanted[co] -> wanted[co] = false };
    aio_co_wake(co);
    atomic { wanted[co] -> wanted[co] = false };
    aio_co_wake(co)
}

#ifdef BROKEN_TWO_WAKERS
proctype other_waker(byte co)
{
    byte me = WAKER(1), ctx = 0, place = NONE;

    wanted[co];
    aio_co_wake(co)
}
#endif

init
{
    byte i;

    atomic {
        for (i : 0 .. CONTEXTS - 1) {
            tail[i] = FIRST(i);
            next[FIRST(i)] = NONE;
            run context(i)
        }
        for (i : 0 .. THREADS - 1) {
            link_of[i] = NONE;
            frame_of[i] = NONE
        }
        for (i : 0 .. COROUTINES - 1) {
            next[i] = NONE;
            state[i] = CREATED;
            run waker(i)
        }
#ifdef BROKEN_TWO_WAKERS
        run other_waker(0);
#endif
        i = 0
    }
    nb_ended == COROUTINES /* here it stays when one is lost */
}

ltl scheduled_runs {
    [] (((scheduled & 1) -> <> !(scheduled & 1)) && ((scheduled & 2) -> <> !(scheduled & 2)))
}
