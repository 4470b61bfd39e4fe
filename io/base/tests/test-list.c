/*
 * test-list - intrusive lists
 */
#include "io/base/list.h"
#include "io/base/test.h"

typedef struct Item {
    int value;
    ListNode node;
} Item;

/* The values in order, as one decimal number: 1, 2, 3 gives 123; -1 when prev links disagree. */
static int digits(const List *list)
{
    int forwards = 0, backwards = 0, place = 1;

    list_for_each(node, list) {
        forwards = forwards * 10 + list_entry(node, Item, node)->value;
    }
    for (const ListNode *node = list->head.prev; node != &list->head; node = node->prev) {
        backwards += list_entry(node, Item, node)->value * place;
        place *= 10;
    }
    return forwards == backwards ? forwards : -1;
}

TEST(list, push_and_pop_keep_order)
{
    Item a = { .value = 1 }, b = { .value = 2 }, c = { .value = 3 };
    List list = LIST_INIT(list);

    EXPECT_TRUE(list_empty(&list));
    EXPECT_EQ(list_pop_front(&list), NULL);
    EXPECT_EQ(list_first_entry(&list, Item, node), NULL);
    list_push_back(&list, &b.node);
    list_push_back(&list, &c.node);
    list_push_front(&list, &a.node);
    EXPECT_EQ(digits(&list), 123);
    EXPECT_EQ(list_first_entry(&list, Item, node), &a);
    EXPECT_EQ(list_pop_front(&list), &a.node);
    EXPECT_FALSE(list_linked(&a.node));
    EXPECT_EQ(digits(&list), 23);
}

TEST(list, insert_after_and_remove)
{
    Item a = { .value = 1 }, b = { .value = 2 }, c = { .value = 3 };
    List list;

    list_init(&list);
    list_push_back(&list, &a.node);
    list_push_back(&list, &c.node);
    list_insert_after(&a.node, &b.node);
    EXPECT_EQ(digits(&list), 123);
    list_remove(&b.node);
    EXPECT_FALSE(list_linked(&b.node));
    EXPECT_EQ(digits(&list), 13);
    list_remove(&c.node);
    list_remove(&a.node);
    EXPECT_TRUE(list_empty(&list));
}

TEST(list, safe_iteration_allows_removal)
{
    Item items[6] = { 0 };
    List list = LIST_INIT(list);

    for (int i = 0; i < 6; i++) {
        items[i].value = i + 1;
        list_push_back(&list, &items[i].node);
    }
    list_for_each_safe(node, &list) {
        if (list_entry(node, Item, node)->value % 2 == 0) {
            list_remove(node);
        }
    }
    EXPECT_EQ(digits(&list), 135);
}

TEST(list, splice_appends_all_and_empties)
{
    Item items[4] = { 0 };
    List list = LIST_INIT(list), other = LIST_INIT(other);

    for (int i = 0; i < 4; i++) {
        items[i].value = i + 1;
        list_push_back(i < 2 ? &list : &other, &items[i].node);
    }
    list_splice_back(&list, &other);
    EXPECT_EQ(digits(&list), 1234);
    EXPECT_TRUE(list_empty(&other));
    list_splice_back(&list, &other);
    EXPECT_EQ(digits(&list), 1234);
    list_splice_back(&other, &list);
    EXPECT_EQ(digits(&other), 1234);
    EXPECT_TRUE(list_empty(&list));
}

static void insert_twice(void *opaque)
{
    Item a = { .value = 1 };
    List list = LIST_INIT(list);

    list_push_back(&list, &a.node);
    list_push_back(&list, &a.node);
}

static void remove_unlinked(void *opaque)
{
    Item a = { .value = 1 };

    list_remove(&a.node);
}

TEST(list, misuse_aborts)
{
    EXPECT_DEATH(insert_twice, NULL, SIGABRT, "list_linked");
    EXPECT_DEATH(remove_unlinked, NULL, SIGABRT, "list_linked");
}

TEST_MAIN()
