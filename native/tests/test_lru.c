#include "check.h"
#include "lru.h"

enum { NODES = 500 };

static struct lru_node nodes[NODES];

static void idle_nodes_leave_oldest_first(void)
{
    struct lru lru;
    CHECK(lru_init(&lru, 1));
    for (unsigned i = 0; i < NODES; i++)
        lru_insert(&lru, &nodes[i], i % 7, i);
    CHECK(lru.count == NODES && lru_oldest(&lru) == NULL);
    for (unsigned i = 0; i < NODES; i++)
        CHECK(!lru_release(&lru, &nodes[i]));
    CHECK(lru_oldest(&lru) == &nodes[0]);
    CHECK(lru_find(&lru, 0, 0) == &nodes[0]); /* in use again: next is 1, and 0 is newest later */
    CHECK(lru_oldest(&lru) == &nodes[1]);
    CHECK(!lru_release(&lru, &nodes[0]));
    for (unsigned i = 1; i <= NODES; i++) {
        struct lru_node *oldest = lru_oldest(&lru);
        CHECK(oldest == &nodes[i % NODES]);
        CHECK(lru_unlink(&lru, oldest));
        CHECK(lru_find(&lru, oldest->high, oldest->low) == NULL);
    }
    CHECK(lru.count == 0 && lru_oldest(&lru) == NULL);
    lru_free(&lru);
}

static void an_unlinked_node_goes_with_its_last_reference(void)
{
    struct lru lru;
    CHECK(lru_init(&lru, 1));
    lru_insert(&lru, &nodes[0], 1, 2);
    CHECK(lru_find(&lru, 1, 2) == &nodes[0]);
    CHECK(!lru_unlink(&lru, &nodes[0]));
    CHECK(lru_find(&lru, 1, 2) == NULL);
    lru_insert(&lru, &nodes[1], 1, 2); /* the key is free again */
    CHECK(!lru_release(&lru, &nodes[0]));
    CHECK(lru_release(&lru, &nodes[0]));
    CHECK(lru_find(&lru, 1, 2) == &nodes[1]);
    lru_free(&lru);
}

int main(void)
{
    RUN(idle_nodes_leave_oldest_first);
    RUN(an_unlinked_node_goes_with_its_last_reference);
    return 0;
}
