/*
 * vring-chain.c - the rare ways of gathering a chain, and the areas of a ring
 */
#include "virtio/vring-chain.h"

#include <inttypes.h>

int vring_area_find(VirtQueue *vq, const char *what, uint64_t gpa, uint64_t len_bytes,
                    uint64_t align_bytes, void *ret_hva, Error *err)
{
    void *hva;

    if (gpa % align_bytes != 0) {
        return error_set(err, -EINVAL, "queue %u: %s at 0x%" PRIx64 " is not aligned to %" PRIu64,
                         vq->index, what, gpa, align_bytes);
    }
    hva = gm_translate(vq->gm, GPA(gpa), len_bytes);
    if (!hva) {
        return error_set(err, -EINVAL,
                         "queue %u: %s at 0x%" PRIx64 " (%" PRIu64
                         " bytes) is not in one piece of guest memory",
                         vq->index, what, gpa, len_bytes);
    }
    if ((uintptr_t)hva % align_bytes != 0) {
        return error_set(err, -EINVAL,
                         "queue %u: %s at 0x%" PRIx64 " is in memory that is not mapped with an "
                         "alignment of %" PRIu64,
                         vq->index, what, gpa, align_bytes);
    }
    *(void **)ret_hva = hva;
    return 0;
}

/* More pieces than fit into the element itself. */
static void chain_use_large(VringChain *chain, VqElem *elem)
{
    if (chain->iov != elem->iov_large) {
        memcpy(elem->iov_large, chain->iov, chain->nb_iov * sizeof(*chain->iov));
        chain->iov = elem->iov_large;
        chain->max_iov = VQ_ELEM_IOV_MAX;
    }
}

int vring_chain_map(VirtQueue *vq, VqElem *elem, VringChain *chain, Gpa gpa, uint32_t len)
{
    const GuestMemoryRegion *region = gm_find(vq->gm, gpa);
    int nb;

    chain_use_large(chain, elem);
    nb = gm_map(vq->gm, gpa, len, chain->iov + chain->nb_iov, chain->max_iov - chain->nb_iov);
    if (nb == -E2BIG) {
        vq_break(vq, "a chain of more than %d pieces", VQ_ELEM_IOV_MAX);
        return -EPIPE;
    }
    if (nb < 0) {
        vq_break(vq, "a buffer of %u bytes at 0x%" PRIx64 " is not guest memory", len, gpa.addr);
        return -EPIPE;
    }
    vq->region = region;
    chain->nb_iov += (unsigned)nb;
    return 0;
}
