/* Pages taken apart by columns come back byte for byte, and no bytes do harm. */
#include "columns.h"

#include <string.h>

#include <sqlite3.h>

#include "check.h"

enum { PAGES_MAX = 2000 };

static uint8_t pages[(PAGES_MAX + COLUMNS_PAGES) * PAGES_BYTES];
static uint8_t columns[COLUMNS_BYTES_MAX];
static uint8_t group[COLUMNS_GROUP_BYTES];

static void run(sqlite3 *db, const char *statement)
{
    CHECK(sqlite3_exec(db, statement, NULL, NULL, NULL) == SQLITE_OK);
}

/* A database as an index is one; its pages. */
static size_t some_pages(const char *more)
{
    sqlite3 *db;
    sqlite3_int64 size;

    CHECK(sqlite3_open(":memory:", &db) == SQLITE_OK);
    run(db, "PRAGMA page_size = 1024");
    int reserved = PAGES_RESERVED;
    CHECK(sqlite3_file_control(db, "main", SQLITE_FCNTL_RESERVE_BYTES, &reserved) == SQLITE_OK);
    run(db, "CREATE TABLE t (id INTEGER PRIMARY KEY, digest, number, real, text, recipe, absent)");
    run(db, "CREATE TABLE n (parent, name, inode, PRIMARY KEY (parent, name)) WITHOUT ROWID");
    run(db, "CREATE INDEX i ON t (substr(digest, 1, 4))");
    run(db, "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 3000)"
            " INSERT INTO t SELECT n * 3 - n % 2, randomblob(16), random() >> (n % 64),"
            " n * 0.1, 'text ' || n, zeroblob(n % 11 * 8), NULL FROM c");
    run(db, "INSERT INTO n SELECT id % 20, 'a name ' || id, id FROM t");
    run(db, more);
    unsigned char *bytes = sqlite3_serialize(db, "main", &size, 0);
    CHECK(bytes && size <= PAGES_MAX * PAGES_BYTES);
    memset(pages, 0, sizeof pages);
    memcpy(pages, bytes, (size_t)size);
    sqlite3_free(bytes);
    CHECK(sqlite3_close(db) == SQLITE_OK);
    return (size_t)size;
}

/* How many groups are smaller by columns, of all in a database. */
static int all_come_back(size_t size)
{
    int found = 0;

    for (size_t at = 0; at < size; at += COLUMNS_GROUP_BYTES) {
        for (size_t page = 0; page < COLUMNS_PAGES; page++)
            memset(pages + at + (page + 1) * PAGES_BYTES - PAGES_RESERVED, 0, PAGES_RESERVED);
        size_t split = columns_split(pages + at, columns);
        CHECK(split > 0);
        CHECK(columns_join(columns, split, group));
        CHECK(memcmp(group, pages + at, COLUMNS_GROUP_BYTES) == 0);
        found += split < COLUMNS_GROUP_BYTES;
    }
    return found;
}

static void pages_of_a_database_come_back(void)
{
    size_t size = some_pages("VACUUM");
    int groups = (int)(size / COLUMNS_GROUP_BYTES);

    CHECK(groups > 10);
    CHECK(all_come_back(size) > groups / 2);
    all_come_back(some_pages("DELETE FROM t WHERE id % 7 = 0; DELETE FROM n WHERE inode % 5 = 0;"
                             "UPDATE t SET recipe = zeroblob(4000) WHERE id % 50 = 0;"
                             "INSERT INTO n SELECT 7, 'another ' || id, id FROM t WHERE id % 3"));
}

static void bytes_that_are_no_pages_come_back(void)
{
    for (uint64_t seed = 0; seed < 200; seed++) {
        check_fill(pages, COLUMNS_GROUP_BYTES, seed);
        for (size_t page = 0; page < COLUMNS_PAGES; page++) {
            if (seed % 2) /* leaves, by their first byte */
                pages[page * PAGES_BYTES] = page % 2 ? 10 : 13;
            if (seed % 4 == 3) /* of few cells */
                memcpy(pages + page * PAGES_BYTES + 3, "\0\1", 2);
            memset(pages + (page + 1) * PAGES_BYTES - PAGES_RESERVED, 0, PAGES_RESERVED);
        }
        size_t split = columns_split(pages, columns);
        if (split == 0 || !columns_join(columns, split, group))
            continue; /* packed_add() keeps such a group as it is */
        if (seed % 2 == 0)
            CHECK(memcmp(group, pages, COLUMNS_GROUP_BYTES) == 0);
    }
}

static void damaged_columns_do_no_harm(void)
{
    size_t size = some_pages("VACUUM");
    uint64_t state = 1;
    int joined = 0;

    for (int round = 0; round < 3000; round++) {
        size_t at = check_random(&state) % (size / COLUMNS_GROUP_BYTES) * COLUMNS_GROUP_BYTES;
        size_t split = columns_split(pages + at, columns);
        for (int i = 0; i < 1 + round % 5; i++)
            columns[check_random(&state) % split] ^= (uint8_t)(1 << check_random(&state) % 8);
        joined += columns_join(columns, split - check_random(&state) % 2, group);
        joined += columns_join(columns, check_random(&state) % split, group);
    }
    CHECK(joined < 5000);
}

int main(void)
{
    RUN(pages_of_a_database_come_back);
    RUN(bytes_that_are_no_pages_come_back);
    RUN(damaged_columns_do_no_harm);
    return 0;
}
