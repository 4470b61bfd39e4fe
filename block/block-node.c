/*
 * block-node.c - opening and closing nodes
 *
 * Options. A node takes from its list what all nodes have and what its driver knows. For each child
 * of its driver the list has either NAME=NODE, a node that is open already, or items
 * NAME.key=value, which are the child's own list without their "NAME.":
 * driver=throttle,file.path=disk.img. What is said for the parent and not for such a child holds
 * for the child, too: readonly, cache, discard.
 */
#include <stdio.h>
#include <string.h>

#include "block/block-driver.h"
#include "block/block-io.h"
#include "block/nbd/nbd-uri.h"

#define WHAT_BYTES 64

static const BlockDriver *const drivers[] = { &bdrv_file, &bdrv_nbd, &bdrv_null, &bdrv_throttle,
                                              &bdrv_faulty, &bdrv_log_writes };

static BlockNode *open_node(const BlockDriver *driver, Opts *opts, unsigned depth, Error *err);

/* --- drivers --- */

const BlockDriver *bdrv_find_driver(Opts *opts, Error *err)
{
    const char *name = opts_get(opts, "driver");
    char names[128] = "";

    if (!name) {
        if (opts_has(opts, "path")) {
            return nbd_uri_is_uri(opts_get(opts, "path")) ? &bdrv_nbd : &bdrv_file;
        }
        error_set(err, -EINVAL, "%s: no image is named: path=FILE or driver=NAME expected",
                  opts->what);
        return NULL;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(drivers); i++) {
        size_t len = strlen(names);

        if (strcmp(drivers[i]->name, name) == 0) {
            return drivers[i];
        }
        snprintf(names + len, sizeof(names) - len, "%s%s", i ? ", " : "", drivers[i]->name);
    }
    error_set(err, -EINVAL, "%s: driver '%s' does not exist; there are: %s", opts->what, name,
              names);
    return NULL;
}

/* --- ids --- */

static int check_id(const char *id, const char *what, Error *err)
{
    size_t len = strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.");

    if (len == 0 || id[len] || len > BDRV_ID_BYTES_MAX) {
        return error_set(err, -EINVAL,
                         "%s: node-name: '%s' is not 1 to %d letters, digits, '-', '_' and '.'",
                         what, id, BDRV_ID_BYTES_MAX);
    }
    if (bdrv_find(id)) {
        return error_set(err, -EINVAL, "%s: node-name: there is a node '%s' already", what, id);
    }
    return 0;
}

static int take_id(BlockNode *node, Opts *opts, Error *err)
{
    static unsigned serial; /* main thread */
    const char *id = opts_get(opts, "node-name");
    char own[BDRV_ID_BYTES_MAX + 1];

    if (id) {
        int ret = check_id(id, opts->what, err);

        if (ret < 0) {
            return ret;
        }
    } else {
        do {
            snprintf(own, sizeof(own), "node%u", serial++);
        } while (bdrv_find(own));
        id = own;
    }
    node->id = strdup(id);
    return node->id ? 0 : error_set(err, -ENOMEM, "%s: out of memory", opts->what);
}

/* --- common options --- */

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

/* --- children --- */

static int inherit_options(Opts *child_opts, Opts *opts, Error *err)
{
    static const char *const inherited[] = { "readonly", "cache", "discard" };
    int ret = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(inherited) && ret == 0; i++) {
        const char *value = opts_get(opts, inherited[i]);

        if (value && !opts_has(child_opts, inherited[i])) {
            ret = opts_add(child_opts, inherited[i], value, err);
        }
    }
    return ret;
}

/* The node for a child whose own options are @child_opts. */
static BlockNode *open_nested(Opts *child_opts, Opts *opts, unsigned depth, Error *err)
{
    const BlockDriver *driver;
    BlockNode *node;

    if (depth == BDRV_DEPTH_MAX) {
        error_set(err, -EINVAL, "%s: more than %d nodes on top of each other", opts->what,
                  BDRV_DEPTH_MAX);
        return NULL;
    }
    if (inherit_options(child_opts, opts, err) < 0) {
        return NULL;
    }
    driver = bdrv_find_driver(child_opts, err);
    node = driver ? open_node(driver, child_opts, depth + 1, err) : NULL;
    if (node && opts_check_all_used(child_opts, err) < 0) {
        bdrv_unref(node);
        return NULL;
    }
    return node;
}

/* An open node, with a reference. */
static BlockNode *find_named(const char *name, const char *id, Opts *opts, Error *err)
{
    BlockNode *node = bdrv_find(id);

    if (!node) {
        error_set(err, -EINVAL, "%s: %s: there is no node '%s'; %s.path=FILE opens a file",
                  opts->what, name, id, name);
        return NULL;
    }
    if (opts_has(opts, "cache")) {
        error_set(err, -EINVAL, "%s: cache: node '%s' is open already", opts->what, id);
        return NULL;
    }
    return bdrv_ref(node);
}

static BlockNode *open_child_node(const char *name, Opts *opts, unsigned depth, Error *err)
{
    const char *id = opts_get(opts, name);
    BlockNode *node = NULL;
    Opts child_opts;
    char what[WHAT_BYTES];

    snprintf(what, sizeof(what), "%s: %s", opts->what, name);
    if (opts_take_group(opts, name, what, &child_opts, err) < 0) {
        return NULL;
    }
    if (id && child_opts.nb_opts > 0) {
        error_set(err, -EINVAL, "%s: '%s' and '%s.%s' exclude each other", opts->what, name, name,
                  child_opts.opt[0].key);
    } else if (id) {
        node = find_named(name, id, opts, err);
    } else if (child_opts.nb_opts > 0) {
        node = open_nested(&child_opts, opts, depth, err);
    } else {
        error_set(err, -EINVAL, "%s: %s=NODE or %s.path=FILE is missing", opts->what, name, name);
    }
    opts_finish(&child_opts);
    return node;
}

static const char *child_name(const BlockDriver *driver, unsigned index)
{
    return driver->is_filter ? (index == 0 ? "file" : NULL) : driver->children[index];
}

static int open_children(BlockNode *node, Opts *opts, unsigned depth, Error *err)
{
    const char *name;

    for (unsigned i = 0; i < BDRV_CHILDREN_MAX && (name = child_name(node->driver, i)); i++) {
        BlockNode *child = open_child_node(name, opts, depth, err);
        Error reason;
        int ret;

        if (!child) {
            return -EINVAL;
        }
        node->children[i] = (BdrvChild){ .name = name, .parent = node, .shared = BLK_PERM_ALL };
        ret = bdrv_attach(&node->children[i], child, &reason);
        bdrv_unref(child);
        if (ret < 0) {
            return error_set(err, ret, "%s: %s", opts->what, reason.msg);
        }
    }
    return 0;
}

/* What a filter starts with. Misaligned requests go through it as they are: only the node at the
 * end of all ways to a disk knows which others touch the same blocks. */
static GRAPH_RD int inherit_from_child(BlockNode *node, Opts *opts, Error *err)
{
    const BlockNode *child = bdrv_filtered(node);

    node->name = strdup(child->name);
    if (!node->name) {
        return error_set(err, -ENOMEM, "%s: out of memory", opts->what);
    }
    node->cache = child->cache;
    node->limits = child->limits;
    node->limits.request_alignment = node->limits.buffer_alignment = 1;
    node->read_only |= child->read_only;
    node->write_cache &= child->write_cache;
    node->discard_unmaps &= child->discard_unmaps;
    atomic_store(&node->length_bytes, atomic_load(&child->length_bytes));
    return 0;
}

/* --- opening --- */

static void node_free(BlockNode *node)
{
    drain_point_finish(&node->drain);
    free(node->id);
    free(node->name);
    free(node->state);
    free(node);
}

/* Undo of what open_node() has done but for the driver's part. */
static void node_abandon(BlockNode *node)
{
    bdrv_unregister(node);
    for (unsigned i = 0; i < BDRV_CHILDREN_MAX; i++) {
        bdrv_detach(&node->children[i]);
    }
    drain_update();
    node_free(node);
}

static BlockNode *node_create(const BlockDriver *driver, Opts *opts, Error *err)
{
    BlockNode *node = calloc(1, sizeof(*node));

    if (!node) {
        error_set(err, -ENOMEM, "%s: out of memory", opts->what);
        return NULL;
    }
    list_init(&node->parents);
    node->driver = driver;
    node->refs = 1;
    node->state = calloc(1, MAX(driver->instance_bytes, (size_t)1));
    if (!node->state || drain_point_init(&node->drain) < 0) {
        error_set(err, -ENOMEM, "%s: out of memory", opts->what);
        node_free(node);
        return NULL;
    }
    if (take_id(node, opts, err) < 0) {
        node_free(node);
        return NULL;
    }
    return node;
}

static int open_parts(BlockNode *node, Opts *opts, unsigned depth, Error *err)
{
    const BlockDriver *driver = node->driver;
    int ret;

    graph_assert_main();
    ret = take_common_options(node, opts, err);

    if (ret == 0) {
        ret = open_children(node, opts, depth, err);
    }
    if (ret == 0 && driver->is_filter) {
        ret = inherit_from_child(node, opts, err);
    }
    if (ret == 0) {
        ret = driver->open(node, opts, err);
    }
    if (ret == 0 && (ret = bdrv_io_attach(node)) < 0) {
        driver->close(node);
        error_set(err, ret, "%s: out of memory", opts->what);
    }
    return ret;
}

static BlockNode *open_node(const BlockDriver *driver, Opts *opts, unsigned depth, Error *err)
{
    BlockNode *node = node_create(driver, opts, err);

    if (!node) {
        return NULL;
    }
    bdrv_register(node);
    if (open_parts(node, opts, depth, err) < 0) {
        node_abandon(node);
        return NULL;
    }
    assert(node->name && node->cache != BLK_CACHE_AUTO);
    drain_update();
    node->is_open = true;
    if (node->drain.covered && driver->drained_begin) {
        driver->drained_begin(node);
    }
    return node;
}

BlockNode *bdrv_open_driver(const BlockDriver *driver, Opts *opts, Error *err)
{
    return open_node(driver, opts, 1, err);
}

BlockNode *bdrv_open(Opts *opts, Error *err)
{
    const BlockDriver *driver = bdrv_find_driver(opts, err);

    return driver ? bdrv_open_driver(driver, opts, err) : NULL;
}

/* --- references --- */

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
    if (node->refs > 1) {
        node->refs--;
        return;
    }
    /* No parents, so no requests; but it may be busy by itself, and somebody may find it
     * meanwhile. */
    assert(list_empty(&node->parents));
    bdrv_drained_begin(node);
    if (node->refs > 1) {
        node->refs--;
        bdrv_drained_end(node);
        return;
    }
    node->is_open = false;
    node->driver->close(node);
    bdrv_io_detach(node);
    node->drain.sections = 0; /* it never ends: nothing may begin any more */
    node_abandon(node);
}

/* --- reconfiguration --- */

int bdrv_reconfigure(BlockNode *node, Opts *opts, Error *err)
{
    int ret;

    if (!node->driver->reconfigure) {
        return error_set(err, -EOPNOTSUPP, "%s: driver '%s' has no options to change", opts->what,
                         node->driver->name);
    }
    bdrv_ref(node);
    bdrv_drained_begin(node);
    ret = node->driver->reconfigure(node, opts, err);
    bdrv_drained_end(node);
    bdrv_unref(node);
    return ret;
}
