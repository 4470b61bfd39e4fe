/*
 * list.h - intrusive doubly linked list with a head
 *
 * Layer:     io/base
 * Threading: none of its own; the owner of the list locks or does not need to.
 * Lifetime:  nodes are embedded; an unlinked node has next == NULL, so list_linked() can tell.
 */
#ifndef IO_BASE_LIST_H
#define IO_BASE_LIST_H

#include "io/base/compiler.h"

typedef struct ListNode {
    struct ListNode *next, *prev;
} ListNode;

/* The head is a node whose neighbours are the first and the last element. */
typedef struct List {
    ListNode head;
} List;

#define LIST_INIT(name)                                                                            \
    {                                                                                              \
        {                                                                                          \
            &(name).head, &(name).head                                                             \
        }                                                                                          \
    }

static inline void list_init(List *list)
{
    list->head.next = list->head.prev = &list->head;
}

static inline bool list_empty(const List *list)
{
    return list->head.next == &list->head;
}

static inline bool list_linked(const ListNode *node)
{
    return node->next != NULL;
}

static inline void list_insert_after(ListNode *pos, ListNode *node)
{
    assert(!list_linked(node));
    node->next = pos->next;
    node->prev = pos;
    pos->next->prev = node;
    pos->next = node;
}

static inline void list_push_front(List *list, ListNode *node)
{
    list_insert_after(&list->head, node);
}

static inline void list_push_back(List *list, ListNode *node)
{
    list_insert_after(list->head.prev, node);
}

static inline void list_remove(ListNode *node)
{
    assert(list_linked(node));
    node->prev->next = node->next;
    node->next->prev = node->prev;
    node->next = node->prev = NULL;
}

/* list_pop_front - unlink and return the first node, NULL when empty */
static inline ListNode *list_pop_front(List *list)
{
    if (list_empty(list)) {
        return NULL;
    }
    ListNode *node = list->head.next;

    list_remove(node);
    return node;
}

/* list_splice_back - append all of @from, which becomes empty */
static inline void list_splice_back(List *list, List *from)
{
    if (list_empty(from)) {
        return;
    }
    from->head.next->prev = list->head.prev;
    list->head.prev->next = from->head.next;
    from->head.prev->next = &list->head;
    list->head.prev = from->head.prev;
    list_init(from);
}

#define list_entry(node, type, member) container_of(node, type, member)

#define list_first_entry(list, type, member)                                                       \
    (list_empty(list) ? NULL : list_entry((list)->head.next, type, member))

/* Iterate over nodes; the body must not unlink the current one (use the _safe form for that). */
#define list_for_each(node, list)                                                                  \
    for (ListNode *node = (list)->head.next; node != &(list)->head; node = node->next)

#define list_for_each_safe(node, list)                                                             \
    for (ListNode *node = (list)->head.next, *node##_next = node->next; node != &(list)->head;     \
         node = node##_next, node##_next = node->next)

#endif
