/*
 * tsa-graph.c - what clang's thread safety analysis says of the graph lock
 *
 * Only compiled, with -verify: the compiler fails the test unless it gives exactly the errors that
 * the comments below expect.
 */
#include "block/block-backend-int.h"

/* A filter's callback is called in a request. */
static co_fn GRAPH_RD int passes_on(BlockNode *node)
{
    return bdrv_co_flush(bdrv_filtered(node));
}

static co_fn int forgets_to_say_so(BlockNode *node)
{
    BlockNode *below = bdrv_filtered(node); /* expected-error {{'tsa_graph_lock'}} */

    return bdrv_co_flush(below); /* expected-error {{'tsa_graph_lock'}} */
}

const BlockDriver drivers[] = { { .co_flush = passes_on }, { .co_flush = forgets_to_say_so } };

/* Who is no coroutine calls no driver. */
int calls_a_driver(BlockNode *node);
int calls_a_driver(BlockNode *node)
{
    return node->driver->co_flush(node); /* expected-error {{'tsa_role_coroutine'}} */
}

/* Between begin and end a request holds the lock for reading, not for writing. */
co_fn int is_a_request(BlockBackend *blk);
co_fn int is_a_request(BlockBackend *blk)
{
    int ret;

    blk_co_request_begin(blk);
    ret = bdrv_co_flush(blk->root.node);
    blk->root.node = NULL; /* expected-error {{requires holding role 'tsa_graph_lock' exclusively}} */
    blk_request_end(blk);
    return ret + bdrv_co_flush(blk->root.node); /* expected-error 2 {{'tsa_graph_lock'}} */
}

co_fn int forgets_to_end(BlockBackend *blk);
co_fn int forgets_to_end(BlockBackend *blk)
{
    blk_co_request_begin(blk); /* expected-note {{acquired here}} */
    return blk_co_do_flush(blk);
} /* expected-error {{still held at the end of function}} */

/* The main thread reads at any time, and does not write just so. */
BlockNode *main_thread(BdrvChild *edge);
BlockNode *main_thread(BdrvChild *edge)
{
    graph_assert_main();
    edge->node = NULL; /* expected-error {{requires holding role 'tsa_graph_lock' exclusively}} */
    return edge->node;
}
