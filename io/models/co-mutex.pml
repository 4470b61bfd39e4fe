/*
 * co-mutex.pml - how a CoMutex changes hands (io/aio/co-mutex.c)
 *
 * Coroutines, each in a thread of its own, take and release one lock for some rounds; each counts
 * in a plain variable that the lock protects. README.md says what stands for what.
 *
 * Checked: one holder at a time, which sees all that those before it wrote; the lock goes to the
 * waiters in the order in which they came; nobody is woken twice (assertions). Nobody waits for
 * good (invalid end state), and who waits gets the lock, under weak fairness (the ltl below).
 *
 * Broken on purpose, and how each must fail:
 *   BROKEN_LOOK_AND_FREE   end state  unlock looks for waiters and then stores FREE
 *   BROKEN_LINE_FORGOTTEN  end state  unlock tries HELD -> FREE though the line is not empty
 *   BROKEN_LOOK_AND_PUSH   assertion  a waiter looks at the word and then stores itself there
 *   BROKEN_THROUGH_FREE    assertion  unlock makes the lock free and then wakes the first waiter
 *   BROKEN_WAKE_FIRST      assertion  the waiter is woken before the line is moved on
 *   BROKEN_NOT_TURNED      assertion  the line is the stack as it is, newest first
 *   BROKEN_RELAXED_PUSH    assertion  the push does not release the waiter's link
 *   BROKEN_RELAXED_FILL    assertion  the exchange that takes the stack does not acquire
 *   BROKEN_RELAXED_FREE    assertion  HELD -> FREE does not release what the holder wrote
 *   BROKEN_RELAXED_TAKE    assertion  FREE -> HELD does not acquire it
 *   BROKEN_RELAXED_WAKE    assertion  the wake does not release it
 *   BROKEN_STALE_WORD      cycle      a push that fails does not look at the word again
 */
#define COROUTINES 3
#define ROUNDS(i)  ((i) == 2 -> 1 : 2)

/* The word: FREE, HELD with no new waiter, or HELD with the newest. A link has the same form. */
#define FREE      0
#define HELD      1
#define WAITER(i) (2 + (i))
#define INDEX(w)  ((w) - 2)

byte word = FREE;
byte line = HELD;        /* the oldest, HELD for none */
byte next[COROUTINES];   /* of each one's waiter */
byte owner = COROUTINES; /* nobody */
bool woken[COROUTINES];

/* --- what the checks look at --- */
byte data = 0;
byte nb_sections = 0; /* how often data was counted up, as nobody can see it late */
byte inside = 0;
byte ticket[COROUTINES], nb_tickets = 0, nb_served = 0;
byte waiting = 0; /* a bit for each */

/*
 * A store that is no read-modify-write waits in its thread's store buffer: memory() commits it at
 * any later time, and a release waits until that was done. The data stands for all that a holder
 * writes.
 */
#define EMPTY 255
byte link_buffer[COROUTINES], data_buffer[COROUTINES];

inline commit(i)
{
    if
    :: link_buffer[i] != EMPTY -> next[i] = link_buffer[i]; link_buffer[i] = EMPTY
    :: data_buffer[i] != EMPTY -> data = data_buffer[i]; data_buffer[i] = EMPTY
    fi
}

active proctype memory()
{
end:
    do
    :: atomic { commit(0) }
    :: atomic { commit(1) }
    :: atomic { commit(2) }
    od
}

#define RELEASED(i) (link_buffer[i] == EMPTY && data_buffer[i] == EMPTY)

/* FREE -> HELD, or what is there instead */
inline take()
{
    atomic {
        if
        :: word == FREE -> word = HELD; owner = me; seen = HELD; got = true
        :: else -> seen = word; got = false
        fi
    }
}

inline push()
{
    link_buffer[me] = seen;
#ifndef BROKEN_RELAXED_PUSH
    RELEASED(me);
#endif
    atomic {
        if
#ifdef BROKEN_LOOK_AND_PUSH
        :: true ->
#else
        :: word == seen ->
#endif
            word = WAITER(me);
            ticket[me] = nb_tickets;
            nb_tickets++;
            pushed = true
#ifdef BROKEN_STALE_WORD
        :: else
#else
        :: else -> seen = word
#endif
        fi
    }
}

inline lock()
{
    pushed = false;
    take();
    if
    :: !got -> waiting = waiting | (1 << me)
    :: else
    fi;
    do
    :: got || pushed -> break
    :: else ->
        if
        :: seen == FREE -> take()
        :: else -> push()
        fi
    od;
    if
    :: pushed ->
        atomic { woken[me] -> woken[me] = false }; /* co_yield() */
        assert(owner == me)
    :: else
    fi;
    waiting = waiting & ~(1 << me)
}

inline fill_line()
{
    atomic { stack = word; word = HELD };
    assert(stack != HELD);
#ifdef BROKEN_NOT_TURNED
    line = stack;
#else
    do
    :: stack == HELD -> break
    :: else ->
#ifdef BROKEN_RELAXED_FILL
        older = early[INDEX(stack)];
#else
        older = next[INDEX(stack)];
#endif
        next[INDEX(stack)] = line;
        line = stack;
        stack = older
    od
#endif
}

inline wake(w)
{
#ifndef BROKEN_RELAXED_WAKE
    RELEASED(me);
#endif
    atomic {
        assert(!woken[INDEX(w)]);
        assert(ticket[INDEX(w)] == nb_served);
        nb_served++;
        woken[INDEX(w)] = true
    }
}

inline unlock()
{
    freed = false;
    if
#ifdef BROKEN_LINE_FORGOTTEN
    :: true ->
#else
    :: line == HELD ->
#endif
#ifdef BROKEN_RELAXED_FILL
        early[0] = next[0];
        early[1] = next[1];
        early[2] = next[2];
#endif
#ifndef BROKEN_RELAXED_FREE
        RELEASED(me);
#endif
#ifdef BROKEN_LOOK_AND_FREE
        freed = word == HELD;
        if
        :: freed -> owner = COROUTINES; word = FREE
        :: else
        fi;
#else
        atomic {
            freed = word == HELD;
            if
            :: freed -> owner = COROUTINES; word = FREE
            :: else
            fi
        };
#endif
        if
        :: freed
        :: else -> fill_line()
        fi
    :: else
    fi;
    if
    :: freed
    :: else ->
        first = line;
#ifdef BROKEN_THROUGH_FREE
        line = next[INDEX(first)];
        owner = INDEX(first);
        atomic {
            if
            :: word == HELD -> word = FREE
            :: else
            fi
        };
        wake(first)
#elif defined(BROKEN_WAKE_FIRST)
        owner = INDEX(first);
        wake(first);
        line = next[INDEX(first)]
#else
        line = next[INDEX(first)];
        owner = INDEX(first);
        wake(first)
#endif
    fi
}

/* Count up, in a load and a store. */
inline critical_section()
{
    atomic { inside++; assert(inside == 1) };
#ifdef BROKEN_RELAXED_TAKE
    value = (got -> early_data : data);
#else
    value = (data_buffer[me] != EMPTY -> data_buffer[me] : data);
#endif
    assert(value == nb_sections);
    atomic { data_buffer[me] = value + 1; nb_sections++; inside--; value = 0 }
}

proctype coroutine(byte me)
{
    byte seen, stack, older, first, value, round = 0;
    bool got, pushed, freed;
#ifdef BROKEN_RELAXED_FILL
    byte early[COROUTINES];
#endif
#ifdef BROKEN_RELAXED_TAKE
    byte early_data;
#endif

    do
    :: round == ROUNDS(me) -> break
    :: else ->
#ifdef BROKEN_RELAXED_TAKE
        early_data = data;
#endif
        if
        :: lock()
        :: take() /* trylock */
        fi;
        if
        :: got || pushed -> critical_section(); unlock()
        :: else
        fi;
        atomic {
            round++;
            /* what is dead must not tell states apart */
            seen = 0; stack = 0; older = 0; first = 0; got = false; pushed = false; freed = false
        }
    od
}

init
{
    byte i;

    atomic {
        for (i : 0 .. COROUTINES - 1) {
            link_buffer[i] = EMPTY;
            data_buffer[i] = EMPTY;
            run coroutine(i)
        }
        i = 0
    }
}

ltl who_waits_gets_it {
    [] (((waiting & 1) -> <> !(waiting & 1)) && ((waiting & 2) -> <> !(waiting & 2)) &&
        ((waiting & 4) -> <> !(waiting & 4)))
}
