/*
 * vring-packed.pml - how driver and device call each other over a packed ring
 * (virtio/vring-packed.c, vq_enable_notifications() and vq_flush(), virtio-notify.c)
 *
 * A driver offers NB buffers, one descriptor each, in a ring of SIZE slots, one or two at a time,
 * and sleeps when there is nothing to do; a device takes them, uses them at the end of the pass at
 * the latest, and sleeps. The flags are those of the specification: AVAIL and USED, turned round
 * with each lap.
 *
 * Each side's stores wait in its own buffer until `memory` commits them, at any time and in any
 * order but that of stores to the same place. A release waits until those before it are committed,
 * a full barrier until all are. A load sees the own store first.
 *
 * Checked: nobody sleeps for good (invalid end state); what either side reads behind flags that say
 * so is what the other wrote (assertions); all is used at last (the ltl below).
 *
 * Also checked with FLAGS_ONLY: without EVENT_IDX events are only on or off.
 *
 * Broken on purpose, and how each must fail:
 *   BROKEN_NO_KICK_BARRIER    end state  none between asking for kicks and the last look
 *   BROKEN_NO_LAST_LOOK       end state  the device asks for kicks and sleeps
 *   BROKEN_LOOK_FIRST         end state  the device looks for the last time and then asks
 *   BROKEN_NO_SIGNAL_BARRIER  end state  none between used flags and the look at the driver's event
 *   BROKEN_SIGNAL_FIRST       end state  the driver's event is looked at and then flags are stored
 *   BROKEN_LAST_ONLY          end state  only the last slot of a batch is compared with the event
 *   BROKEN_NO_WRAP            assertion  the device takes what has not the flags of this lap
 *   BROKEN_RELAXED_USED       assertion  used flags are stored without a release
 *   BROKEN_RELAXED_AVAIL      assertion  available flags are loaded without an acquire
 */
#define SIZE 2
#define NB   4
#define LAPS (2 * SIZE) /* a slot in a lap is a position modulo that */

#define DRIVER 0
#define DEVICE 1

/* places in memory */
#define FLAGS(pos)   ((pos) % SIZE)
#define ID(pos)      (SIZE + (pos) % SIZE)
#define EVENT(who)   (2 * SIZE + who) /* what `who` asks the other for */
#define PLACES       (2 * SIZE + 2)

/* AVAIL is bit 0, USED bit 1 */
#define AVAIL(pos)   (((pos) / SIZE) % 2 == 0 -> 1 : 2)
#define USED(pos)    (((pos) / SIZE) % 2 == 0 -> 3 : 0)

/* what an event says: on, off, or which slot of which lap */
#define ENABLE       0
#define DISABLE      1
#define DESC(pos)    (2 + (pos) % LAPS)

byte memory_of[PLACES];
bool pending[2 * PLACES]; /* stores that were made and are not committed, by thread */
byte value[2 * PLACES];

bool doorbell = false, interrupt = false;
byte taken = 0; /* by the driver */

#define OWN(who, place) ((who) * PLACES + (place))
#define LOAD(who, place) (pending[OWN(who, place)] -> value[OWN(who, place)] : memory_of[place])

#define COMMIT(who, place) \
    atomic { \
        pending[OWN(who, place)] -> \
            memory_of[place] = value[OWN(who, place)]; \
            pending[OWN(who, place)] = false; \
            value[OWN(who, place)] = 0 \
    }

active [2] proctype memory()
{
end:
    do
    :: COMMIT(_pid, 0)
    :: COMMIT(_pid, 1)
    :: COMMIT(_pid, 2)
    :: COMMIT(_pid, 3)
    :: COMMIT(_pid, 4)
    :: COMMIT(_pid, 5)
    od
}

inline store(who, place, what)
{
    atomic {
        !pending[OWN(who, place)] ->
            value[OWN(who, place)] = what;
            pending[OWN(who, place)] = true
    }
}

/* A release and, as nothing is loaded early here, a full barrier. */
inline all_committed(who)
{
    !pending[OWN(who, 0)] && !pending[OWN(who, 1)] && !pending[OWN(who, 2)] &&
        !pending[OWN(who, 3)] && !pending[OWN(who, 4)] && !pending[OWN(who, 5)]
}

/* Is an event wanted for the slots from @from to before @to, at most SIZE of them? */
inline decide(who, from, to)
{
    atomic {
        event = LOAD(who, EVENT(1 - who));
        wanted = event == ENABLE || (to > from && event == DESC(to - 1));
#ifdef BROKEN_LAST_ONLY
        wanted = wanted || (who == DRIVER && to > from + 1 && event == DESC(from))
#else
        wanted = wanted || (to > from + 1 && event == DESC(from))
#endif
    }
}

inline ask(who, pos)
{
#ifdef FLAGS_ONLY
    store(who, EVENT(who), ENABLE)
#else
    store(who, EVENT(who), DESC(pos))
#endif
}

/* --- the driver, as the specification has it --- */

inline offer()
{
    store(DRIVER, ID(offered), offered);
    all_committed(DRIVER);
    store(DRIVER, FLAGS(offered), AVAIL(offered));
    offered++
}

inline take()
{
    any = LOAD(DRIVER, FLAGS(taken)) == USED(taken) && taken < offered;
    if
    :: any ->
        assert(LOAD(DRIVER, ID(taken)) == NB + taken);
        taken++
    :: else
    fi
}

active proctype driver()
{
    byte offered = 0, kicked = 0, event;
    bool wanted, any;

    do
    :: taken == NB -> break
    :: offered < NB && offered - taken < SIZE ->
        offer();
        if
        :: offered < NB && offered - taken < SIZE -> offer()
        :: true
        fi;
        all_committed(DRIVER); /* the full barrier */
        decide(DRIVER, kicked, offered);
        kicked = offered;
        if
        :: wanted -> doorbell = true
        :: else
        fi
    :: taken < offered ->
        store(DRIVER, EVENT(DRIVER), DISABLE);
        take();
        if
        :: any
        :: else ->
            ask(DRIVER, taken);
            all_committed(DRIVER); /* the full barrier */
            take();
            if
            :: any
            :: else -> interrupt; interrupt = false
            fi
        fi
    od
}

/* --- the device --- */

inline look()
{
#ifdef BROKEN_NO_WRAP
    any = LOAD(DEVICE, FLAGS(avail)) == 1 || LOAD(DEVICE, FLAGS(avail)) == 2
#else
    any = LOAD(DEVICE, FLAGS(avail)) == AVAIL(avail)
#endif
}

/* vring_packed_pop() */
inline pop()
{
#ifdef BROKEN_RELAXED_AVAIL
    id = LOAD(DEVICE, ID(avail));
    look();
#else
    look();
    id = LOAD(DEVICE, ID(avail));
#endif
    if
    :: any ->
        assert(id == avail);
        avail++
    :: else
    fi
}

/* vring_packed_push(): the first of a batch keeps its flags back */
inline push(pos)
{
    store(DEVICE, ID(pos), NB + pos);
    if
    :: pos > used -> store(DEVICE, FLAGS(pos), USED(pos))
    :: else
    fi
}

/* vring_packed_publish() */
inline publish()
{
    if
    :: avail > used ->
#ifndef BROKEN_RELAXED_USED
        all_committed(DEVICE);
#endif
        store(DEVICE, FLAGS(used), USED(used));
        used = avail
    :: else
    fi
}

active proctype device()
{
    byte avail = 0, used = 0, signalled = 0, id, event;
    bool any, wanted;

end:
    do
    :: atomic { doorbell -> doorbell = false };
        /* vq_serve(), again and again while there is work */
        do
        ::
            store(DEVICE, EVENT(DEVICE), DISABLE);
            do
            ::
                pop();
                if
                :: any -> push(avail - 1)
                :: else -> break
                fi
            od;
            /* requests are done now, or only after the handler has returned */
            if
            :: publish()
            :: true
            fi;
#ifdef BROKEN_LOOK_FIRST
            look();
            ask(DEVICE, avail);
            all_committed(DEVICE);
#else
            ask(DEVICE, avail);
#ifndef BROKEN_NO_KICK_BARRIER
            all_committed(DEVICE);
#endif
#ifdef BROKEN_NO_LAST_LOOK
            any = false;
#else
            look();
#endif
#endif
            /* vq_flush(), at the end of the pass */
#ifdef BROKEN_SIGNAL_FIRST
            decide(DEVICE, signalled, avail);
#endif
            publish();
            if
            :: used > signalled ->
#ifndef BROKEN_SIGNAL_FIRST
#ifndef BROKEN_NO_SIGNAL_BARRIER
                all_committed(DEVICE);
#endif
                decide(DEVICE, signalled, used);
#endif
                signalled = used;
                if
                :: wanted -> interrupt = true
                :: else
                fi
            :: else
            fi;
            if
            :: any
            :: else -> break
            fi
        od
    od
}

ltl all_is_used { <> (taken == NB) }
