/*
 * block-node.c - opening and closing nodes
 */
#include "block/block-driver.h"

#include <string.h>

#include "block/block-io.h"

static const BlockDriver *const drivers[] = { &bdrv_file, &bdrv_null };

static const BlockDriver *find_driver(Opts *opts, Error *err)
{
    const char *name = opts_get(opts, "driver");

    if (!name) {
        if (opts_has(opts, "path")) {
            return &bdrv_file;
        }
        error_set(err, -EINVAL, "%s: no image is named: path=FILE or driver=NAME expected",
                  opts->what);
        return NULL;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(drivers); i++) {
        if (strcmp(drivers[i]->name, name) == 0) {
            return drivers[i];
        }
    }
    error_set(err, -EINVAL, "%s: driver '%s' does not exist; there are: file, null", opts->what,
              name);
    return NULL;
}

static int take_common_options(BlockNode *node, Opts *opts, Error *err)
{
    static const char *const caches[] = { "none", "writeback", "writethrough", NULL };
    static const char *const discards[] = { "unmap", "ignore", NULL };
    int cache = -1, discard = 0;
    int ret = opts_get_bool(opts, "readonly", &node->read_only, err);

    if (ret == 0) {
        ret = opts_get_enum(opts, "cache", caches, &cache, err);
    }
    if (ret == 0) {
        ret = opts_get_enum(opts, "discard", discards, &discard, err);
    }
    if (ret < 0) {
        return ret;
    }
    static_assert(BLK_CACHE_AUTO == 0 && BLK_CACHE_WRITETHROUGH == 3, "index of caches[] plus 1");
    node->cache = (BlkCache)(cache + 1);
    node->write_cache = node->cache != BLK_CACHE_WRITETHROUGH;
    node->discard_unmaps = discard == 0;
    return 0;
}

static void node_free(BlockNode *node)
{
    free(node->name);
    free(node->state);
    free(node);
}

BlockNode *bdrv_open_driver(const BlockDriver *driver, Opts *opts, Error *err)
{
    BlockNode *node = calloc(1, sizeof(*node));

    if (!node || !(node->state = calloc(1, MAX(driver->instance_bytes, (size_t)1)))) {
        free(node);
        error_set(err, -ENOMEM, "%s: out of memory", opts->what);
        return NULL;
    }
    node->driver = driver;
    node->refs = 1;
    if (take_common_options(node, opts, err) < 0 || driver->open(node, opts, err) < 0) {
        node_free(node);
        return NULL;
    }
    if (bdrv_io_attach(node) < 0) {
        error_set(err, -ENOMEM, "%s: out of memory", opts->what);
        driver->close(node);
        node_free(node);
        return NULL;
    }
    assert(node->name && node->cache != BLK_CACHE_AUTO);
    return node;
}

BlockNode *bdrv_open(Opts *opts, Error *err)
{
    const BlockDriver *driver = find_driver(opts, err);

    return driver ? bdrv_open_driver(driver, opts, err) : NULL;
}

BlockNode *bdrv_ref(BlockNode *node)
{
    node->refs++;
    return node;
}

void bdrv_unref(BlockNode *node)
{
    if (!node) {
        return;
    }
    assert(node->refs > 0);
    if (--node->refs == 0) {
        bdrv_io_detach(node);
        node->driver->close(node);
        node_free(node);
    }
}
