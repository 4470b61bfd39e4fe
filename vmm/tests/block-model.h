/*
 * block-model.h - what each block of a disk may hold, known from what was written and answered
 *
 * Layer:     vmm/ tests
 * Threading: one thread.
 *
 * Each write has a stamp of its own, which fills its block. A write that was answered before another
 * one to the same block was submitted is history as soon as that one is answered: a read submitted
 * after that must not find it. Writes in flight at once may end in either order. So a block may
 * hold a stamp when no answered write lies wholly after that stamp's own; the model keeps those, a
 * handful by nature. A read takes the set along when it is submitted, and whatever is written while
 * it is in flight.
 */
#ifndef VMM_TESTS_BLOCK_MODEL_H
#define VMM_TESTS_BLOCK_MODEL_H

#include "io/base/compiler.h"

#define MODEL_IN_FLIGHT_MAX 3 /* writes to one block */
#define MODEL_STAMPS_MAX    8

typedef struct ModelWrite {
    uint32_t stamp;
    uint64_t submitted, answered; /* moments; answered 0: in flight */
} ModelWrite;

typedef struct ModelBlock {
    ModelWrite writes[MODEL_STAMPS_MAX];
    unsigned nb_writes, nb_in_flight;
} ModelBlock;

typedef struct BlockModel {
    ModelBlock *blocks; /* of zeroes at first: stamp 0 */
    unsigned nb_blocks;
    uint64_t now;
    uint32_t last_stamp;
} BlockModel;

/* What a read may find. */
typedef struct ModelSet {
    uint32_t stamps[4 * MODEL_STAMPS_MAX];
    unsigned nb_stamps;
} ModelSet;

void model_init(BlockModel *model, unsigned nb_blocks);
void model_finish(BlockModel *model);

bool model_may_write(const BlockModel *model, unsigned block);
/* A write is about to be submitted; its stamp. */
uint32_t model_write_begin(BlockModel *model, unsigned block);
void model_write_end(BlockModel *model, unsigned block, uint32_t stamp);
ModelSet model_read(const BlockModel *model, unsigned block);
/* False when there is no more room for what is written meanwhile. */
bool model_set_add(ModelSet *set, uint32_t stamp);

void model_fill(void *data, size_t len_bytes, uint32_t stamp);
/* Every word of the data is of one of the stamps; else *ret_stamp is one that is not. */
bool model_check(const ModelSet *set, const void *data, size_t len_bytes, uint32_t *ret_stamp);

#endif
