/*
 * block-model.c - writes of a block, with the moments of their beginning and end
 */
#include "vmm/tests/block-model.h"

void model_init(BlockModel *model, unsigned nb_blocks)
{
    *model = (BlockModel){ .blocks = calloc(nb_blocks, sizeof(ModelBlock)),
                           .nb_blocks = nb_blocks,
                           .now = 1 };
    assert(model->blocks);
    for (unsigned i = 0; i < nb_blocks; i++) {
        model->blocks[i].nb_writes = 1;
        model->blocks[i].writes[0].answered = 1; /* of zeroes */
    }
}

void model_finish(BlockModel *model)
{
    free(model->blocks);
}

bool model_may_write(const BlockModel *model, unsigned block)
{
    return model->blocks[block].nb_in_flight < MODEL_IN_FLIGHT_MAX;
}

uint32_t model_write_begin(BlockModel *model, unsigned block)
{
    ModelBlock *b = &model->blocks[block];

    assert(model_may_write(model, block) && b->nb_writes < MODEL_STAMPS_MAX);
    b->writes[b->nb_writes++] = (ModelWrite){ ++model->last_stamp, ++model->now, 0 };
    b->nb_in_flight++;
    return model->last_stamp;
}

/* Those that were answered before @moment are no more. */
static void forget_before(ModelBlock *b, uint64_t moment)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < b->nb_writes; i++) {
        if (b->writes[i].answered == 0 || b->writes[i].answered > moment) {
            b->writes[kept++] = b->writes[i];
        }
    }
    b->nb_writes = kept;
}

void model_write_end(BlockModel *model, unsigned block, uint32_t stamp)
{
    ModelBlock *b = &model->blocks[block];
    ModelWrite *write = b->writes;

    while (write < b->writes + b->nb_writes && write->stamp != stamp) {
        write++;
    }
    assert(write < b->writes + b->nb_writes && write->answered == 0);
    write->answered = ++model->now;
    b->nb_in_flight--;
    forget_before(b, write->submitted);
}

bool model_set_add(ModelSet *set, uint32_t stamp)
{
    if (set->nb_stamps == ARRAY_SIZE(set->stamps)) {
        return false;
    }
    set->stamps[set->nb_stamps++] = stamp;
    return true;
}

ModelSet model_read(const BlockModel *model, unsigned block)
{
    const ModelBlock *b = &model->blocks[block];
    ModelSet set = { .nb_stamps = 0 };

    for (unsigned i = 0; i < b->nb_writes; i++) {
        model_set_add(&set, b->writes[i].stamp);
    }
    return set;
}

/* Stamp 0 is zeroes: a disk that was never written. */
static uint32_t word_of(uint32_t stamp, size_t i)
{
    return stamp == 0 ? 0 : stamp ^ (uint32_t)i * 0x01000193u;
}

void model_fill(void *data, size_t len_bytes, uint32_t stamp)
{
    uint32_t *words = data;

    for (size_t i = 0; i < len_bytes / sizeof(*words); i++) {
        words[i] = word_of(stamp, i);
    }
}

static bool is_of_set(const ModelSet *set, uint32_t word, size_t i)
{
    for (unsigned s = 0; s < set->nb_stamps; s++) {
        if (word == word_of(set->stamps[s], i)) {
            return true;
        }
    }
    return false;
}

bool model_check(const ModelSet *set, const void *data, size_t len_bytes, uint32_t *ret_stamp)
{
    const uint32_t *words = data;

    for (size_t i = 0; i < len_bytes / sizeof(*words); i++) {
        if (!is_of_set(set, words[i], i)) {
            *ret_stamp = words[i] ^ (uint32_t)i * 0x01000193u;
            return false;
        }
    }
    return true;
}
