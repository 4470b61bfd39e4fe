/*
 * throttle.c - a filter that lets requests through at a given rate
 *
 * driver=throttle,file=...[,group=NAME][,iops-total=N[,iops-total-max=N[,iops-total-max-length=S]]]...
 *
 * and the same for iops-read, iops-write, bps-total, bps-read, bps-write. Filters that name the
 * same group share its limits, whatever threads their requests come from; without a group a filter
 * has limits of its own. What is given for a group that exists already must be what it has. Changed
 * in use, the limits change for the whole group; a rate of 0 is none.
 *
 * A write-zeroes counts as a write of that many bytes, a discard as a write of none; flushes and
 * block status pass.
 */
#include "block/throttle.h"

#include "block/throttle-group.h"

typedef struct ThrottleState {
    ThrottleMember member;
    BlockNode *node;
} ThrottleState;

static ThrottleMember *member_of(const BlockNode *node)
{
    ThrottleState *s = node->state;

    return &s->member;
}

/* What a drained section has let go is to be paid before more comes that the next one would let go;
 * throttle-group.c says why. */
static void tell_debt(ThrottleMember *member, bool on)
{
    bdrv_want_peace(container_of(member, ThrottleState, member)->node, on);
}

static int throttle_open(BlockNode *node, Opts *opts, Error *err)
{
    const char *group = opts_get(opts, "group");
    ThrottleConfig config = throttle_find_config(group);
    BlockLimits *limits = &node->limits;
    Error reason;
    bool given;
    int ret;

    if (group && !*group) {
        return error_set(err, -EINVAL, "%s: group: a name is missing", opts->what);
    }
    ret = throttle_config_take(&config, opts, &given, err);
    if (ret < 0) {
        return ret;
    }
    ((ThrottleState *)node->state)->node = node;
    ret = throttle_member_open(member_of(node), group, given ? &config : NULL, tell_debt, &reason);
    if (ret < 0) {
        return error_set(err, ret, "%s: %s", opts->what, reason.msg);
    }
    limits->max_transfer_bytes = MIN(limits->max_transfer_bytes, THROTTLE_UNITS_MAX);
    limits->max_write_zeroes_bytes =
        MIN(limits->max_write_zeroes_bytes, (uint64_t)THROTTLE_UNITS_MAX);
    return 0;
}

static void throttle_close(BlockNode *node)
{
    throttle_member_close(member_of(node));
}

static int throttle_reconfigure(BlockNode *node, Opts *opts, Error *err)
{
    ThrottleMember *member = member_of(node);
    ThrottleConfig config = throttle_member_config(member);
    bool given;
    int ret = throttle_config_take(&config, opts, &given, err);

    if (ret == 0) {
        ret = opts_check_all_used(opts, err);
    }
    if (ret == 0) {
        throttle_member_configure(member, &config);
    }
    return ret;
}

ThrottleConfig throttle_query(const BlockNode *node)
{
    return node->driver == &bdrv_throttle ? throttle_member_config(member_of(node))
                                          : (ThrottleConfig){ 0 };
}

static void throttle_drained_begin(BlockNode *node)
{
    throttle_member_let_go(member_of(node));
}

static void throttle_drained_end(BlockNode *node)
{
    throttle_member_hold_back(member_of(node));
}

static co_fn GRAPH_RD int throttle_co_preadv(BlockNode *node, uint64_t offset_bytes,
                                             uint64_t len_bytes, const struct iovec *iov, int niov,
                                             BlkFlags flags)
{
    throttle_co_request(member_of(node), THROTTLE_READ, len_bytes);
    return bdrv_co_preadv(bdrv_filtered(node), offset_bytes, len_bytes, iov, niov, flags);
}

static co_fn GRAPH_RD int throttle_co_pwritev(BlockNode *node, uint64_t offset_bytes,
                                              uint64_t len_bytes, const struct iovec *iov, int niov,
                                              BlkFlags flags)
{
    throttle_co_request(member_of(node), THROTTLE_WRITE, len_bytes);
    return bdrv_co_pwritev(bdrv_filtered(node), offset_bytes, len_bytes, iov, niov, flags);
}

static co_fn GRAPH_RD int throttle_co_pdiscard(BlockNode *node, uint64_t offset_bytes,
                                               uint64_t len_bytes)
{
    throttle_co_request(member_of(node), THROTTLE_WRITE, 0);
    return bdrv_co_pdiscard(bdrv_filtered(node), offset_bytes, len_bytes);
}

static co_fn GRAPH_RD int throttle_co_pwrite_zeroes(BlockNode *node, uint64_t offset_bytes,
                                                    uint64_t len_bytes, BlkFlags flags)
{
    throttle_co_request(member_of(node), THROTTLE_WRITE, len_bytes);
    return bdrv_co_pwrite_zeroes(bdrv_filtered(node), offset_bytes, len_bytes, flags);
}

const BlockDriver bdrv_throttle = {
    .name = "throttle",
    .instance_bytes = sizeof(ThrottleState),
    .write_flags = BLK_FUA,
    .is_filter = true,
    .open = throttle_open,
    .close = throttle_close,
    .reconfigure = throttle_reconfigure,
    .drained_begin = throttle_drained_begin,
    .drained_end = throttle_drained_end,
    .co_preadv = throttle_co_preadv,
    .co_pwritev = throttle_co_pwritev,
    .co_flush = bdrv_pass_co_flush,
    .co_pdiscard = throttle_co_pdiscard,
    .co_pwrite_zeroes = throttle_co_pwrite_zeroes,
};
