/*
 * blk-smoke - what its files of cases share
 *
 * Layer:     guest-tests/payload (a bare-metal program)
 * Threading: the first processor.
 * Lifetime:  one disk, opened once; every case begins with smoke_start(),
 *            which resets it, so no case depends on how another ended.
 */
#ifndef GUEST_TESTS_PAYLOAD_BLK_SMOKE_H
#define GUEST_TESTS_PAYLOAD_BLK_SMOKE_H

#include "guest-tests/lib/harness-serial.h"
#include "guest-tests/lib/virtio-blk.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SMOKE_BUFFER_BYTES (1u << 20)
#define SMOKE_WAIT_MS      5000

/* What a request or a piece of nonsense led to. */
typedef enum {
    OUTCOME_SILENCE,
    OUTCOME_COMPLETED,
    OUTCOME_NEEDS_RESET,
} Outcome;

typedef struct {
    VblkDevice disk;
    uint8_t *out; /* SMOKE_BUFFER_BYTES each */
    uint8_t *in;
    unsigned nth;   /* disk=: of the transport's disks, from 0 */
    bool qemu;      /* vmm=qemu: cases skip where it legitimately differs */
    bool irq;       /* irq=on: cases wait for interrupts instead of polling */
    bool packed;    /* packed=on: packed rings, which the device must offer */
    bool read_only; /* the device offers VIRTIO_BLK_F_RO */
    uint16_t nb_queues;
    uint64_t offered; /* feature bits */
} Smoke;

extern Smoke smoke;

/* smoke_start - all queues, every feature except @without; false on failure */
bool smoke_start(uint64_t without);

/* smoke_start_plus - all queues, every feature and @more */
bool smoke_start_plus(uint64_t more);

/* smoke_start_with - the same with a set-up of the case's own */
bool smoke_start_with(const VblkSetup *setup);

/* smoke_works - start anew and move data over every queue */
bool smoke_works(void);

/* smoke_need_split - skips the case with packed rings: @what is of split ones */
void smoke_need_split(const char *what);
void smoke_need_packed(void);

/* smoke_pci - the device's PCI side; skips the case where there is none */
VpciDevice *smoke_pci(void);

/* smoke_fill and smoke_is_filled - a pattern that depends on @seed */
void smoke_fill(uint8_t *p, uint32_t len_bytes, uint32_t seed);
bool smoke_is_filled(const uint8_t *p, uint32_t len_bytes, uint32_t seed);

/* smoke_is_all - whether all bytes are @byte */
bool smoke_is_all(const uint8_t *p, uint32_t len_bytes, uint8_t byte);

/* smoke_round_trip - write a pattern and read it back through queue @q */
bool smoke_round_trip(VblkQueue *q, uint64_t sector, uint32_t len_bytes, uint32_t seed);

/*
 * smoke_offer_chain - put @nb_descs descriptors into the ring, linked in order (in a split ring at
 * the start of the table), make them available and ring the doorbell
 */
void smoke_offer_chain(VblkQueue *q, const VringDesc *descs, uint16_t nb_descs);

/* smoke_outcome - wait for a completion or NEEDS_RESET */
Outcome smoke_outcome(VblkQueue *q, uint32_t *ret_used_len_bytes);

#endif
