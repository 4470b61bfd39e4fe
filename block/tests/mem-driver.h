/*
 * mem-driver.h - a disk in memory that checks what it is asked, stops, fails and counts on demand
 *
 * Layer:     block/tests
 * Threading: requests from any context; the rest in the main thread.
 * Lifetime:  mem_open() .. blk_close().
 */
#ifndef BLOCK_TESTS_MEM_DRIVER_H
#define BLOCK_TESTS_MEM_DRIVER_H

#include <pthread.h>

#include "block/block-backend.h"

typedef enum MemOp {
    MEM_READ,
    MEM_WRITE,
    MEM_FLUSH,
    MEM_DISCARD,
    MEM_ZEROES,
    MEM_TRUNCATE,
    MEM_NB_OPS,
} MemOp;

typedef enum MemYield {
    MEM_YIELD_NEVER,
    MEM_YIELD_TWICE, /* before and in the middle of each transfer, until a later pass */
    MEM_YIELD_PARK,  /* before each operation, until mem_release() */
} MemYield;

/* What the next mem_open() makes; zeroes are replaced by something that does not limit. */
typedef struct MemConfig {
    BlockLimits limits;
    uint64_t length_bytes;
    bool honours_fua;
    bool no_zeroes, no_discard; /* -EOPNOTSUPP */
    bool no_backend;            /* a node alone */
    const char *options;        /* "readonly=on,...", NULL = none */
} MemConfig;

typedef struct MemStats {
    _Atomic unsigned ops[MEM_NB_OPS]; /* that reached the driver */
    _Atomic unsigned fua;             /* writes with BLK_FUA */
    _Atomic unsigned unmap;           /* zeroes with BLK_MAY_UNMAP */
    _Atomic unsigned violations;      /* of what block-driver.h guarantees */
    _Atomic int active;               /* operations between begin and end */
    _Atomic int active_max;
} MemStats;

/* An operation that is parked, oldest first. */
typedef struct MemParked {
    MemOp op;
    uint64_t offset_bytes, len_bytes;
} MemParked;

typedef struct MemDisk {
    BlockBackend *blk;
    BlockNode *node;
    BlockDriver driver;
    char *data;
    uint64_t data_bytes;                 /* room there is */
    _Atomic uint64_t real_length_bytes;  /* as somebody else may have changed it */
    MemStats stats;
    _Atomic MemYield yield;
    AioContext *move_to;  /* continue there in the middle of each operation */
    _Atomic int fail_nth; /* counts down at each operation; that which makes it 0 fails */
    int fail_code;
    pthread_mutex_t lock; /* protects parked */
    List parked;
} MemDisk;

/* Aborts when it fails. */
void mem_open(MemDisk *disk, const MemConfig *config);
/* Returns what blk_close() returned. */
int mem_close(MemDisk *disk);

unsigned mem_nb_parked(MemDisk *disk);
MemParked mem_parked(MemDisk *disk, unsigned index);
/* Let the parked operation at @index go on. */
void mem_release(MemDisk *disk, unsigned index);
void mem_release_all(MemDisk *disk);

#endif
