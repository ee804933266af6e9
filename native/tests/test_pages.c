/* The VFS under a real SQLite: what is written comes back or is an error. */
#define _GNU_SOURCE
#include "pages.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

enum { ROWS = 300 };

static char path[4096];

static sqlite3 *opened(void)
{
    sqlite3 *db;
    CHECK(sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, PAGES_VFS) ==
          SQLITE_OK);
    return db;
}

static void run(sqlite3 *db, const char *statement)
{
    CHECK(sqlite3_exec(db, statement, NULL, NULL, NULL) == SQLITE_OK);
}

/* The sum of all numbers, or -1 and the extended error. */
static sqlite3_int64 sum(sqlite3 *db, int *error)
{
    sqlite3_stmt *statement;
    sqlite3_int64 value = -1;

    *error = sqlite3_prepare_v2(db, "SELECT sum(n) FROM t", -1, &statement, NULL);
    if (*error == SQLITE_OK && sqlite3_step(statement) == SQLITE_ROW)
        value = sqlite3_column_int64(statement, 0);
    *error = sqlite3_extended_errcode(db);
    sqlite3_finalize(statement);
    return value;
}

static void flip(const char *file, off_t offset)
{
    uint8_t byte;
    int fd = open(file, O_RDWR);
    CHECK(fd >= 0);
    CHECK(pread(fd, &byte, 1, offset) == 1);
    byte ^= 4;
    CHECK(pwrite(fd, &byte, 1, offset) == 1);
    CHECK(close(fd) == 0);
}

static void fill(sqlite3 *db)
{
    run(db, "CREATE TABLE t (n INTEGER PRIMARY KEY, text)");
    run(db, "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 300)"
            " INSERT INTO t SELECT n, hex(zeroblob(100)) FROM c");
}

static void every_flipped_bit_of_a_database_is_found(void)
{
    const char *directory = check_directory();
    int error;

    snprintf(path, sizeof path, "%s/database", directory);
    sqlite3 *db = opened();
    fill(db);
    CHECK(sqlite3_close(db) == SQLITE_OK);
    for (off_t offset = 0; offset < 20 * PAGES_BYTES; offset += 97) {
        flip(path, offset);
        if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, PAGES_VFS) == SQLITE_OK) {
            sqlite3_int64 value = sum(db, &error);
            CHECK(value == -1 || value == ROWS * (ROWS + 1) / 2);
            CHECK(value != -1 || error == SQLITE_IOERR_DATA);
            CHECK(value == -1); /* a scan reads all of these pages */
        }
        sqlite3_close(db);
        flip(path, offset);
    }
    db = opened();
    CHECK(sum(db, &error) == ROWS * (ROWS + 1) / 2);
    CHECK(sqlite3_close(db) == SQLITE_OK);
    check_remove(directory);
}

static void a_page_of_the_log_is_checked_as_well(void)
{
    const char *directory = check_directory();
    char log[4100];
    int error;

    snprintf(path, sizeof path, "%s/database", directory);
    snprintf(log, sizeof log, "%s-wal", path);
    sqlite3 *db = opened();
    run(db, "PRAGMA locking_mode = EXCLUSIVE");
    run(db, "PRAGMA journal_mode = WAL");
    run(db, "PRAGMA wal_autocheckpoint = 0");
    run(db, "PRAGMA cache_size = 5"); /* a page is written more than once in a transaction */
    fill(db);
    run(db, "UPDATE t SET text = text || 'x'");
    CHECK(sum(db, &error) == ROWS * (ROWS + 1) / 2);
    struct stat facts;
    CHECK(stat(log, &facts) == 0);
    off_t end = facts.st_size;
    CHECK(end > 50 * (PAGES_BYTES + 24));
    int found = 0;
    for (off_t offset = 32 + 24 + 500; offset < end; offset += PAGES_BYTES + 24) {
        flip(log, offset);
        run(db, "PRAGMA shrink_memory");
        sqlite3_int64 value = sum(db, &error);
        CHECK(value == -1 || value == ROWS * (ROWS + 1) / 2);
        found += value == -1;
        flip(log, offset);
    }
    CHECK(found > 20);
    run(db, "PRAGMA shrink_memory");
    CHECK(sum(db, &error) == ROWS * (ROWS + 1) / 2);
    run(db, "PRAGMA wal_checkpoint(TRUNCATE)");
    CHECK(sqlite3_close(db) == SQLITE_OK);
    check_remove(directory);
}

static void a_page_is_bound_to_its_number(void)
{
    const char *directory = check_directory();
    uint8_t page[PAGES_BYTES];
    int error;

    snprintf(path, sizeof path, "%s/database", directory);
    sqlite3 *db = opened();
    fill(db);
    CHECK(sqlite3_close(db) == SQLITE_OK);
    int fd = open(path, O_RDWR);
    CHECK(pread(fd, page, sizeof page, 4 * PAGES_BYTES) == PAGES_BYTES);
    CHECK(pages_is_good(page, 5));
    CHECK(!pages_is_good(page, 6));
    CHECK(pwrite(fd, page, sizeof page, 5 * PAGES_BYTES) == PAGES_BYTES);
    CHECK(close(fd) == 0);
    db = opened();
    CHECK(sum(db, &error) == -1);
    CHECK(error == SQLITE_IOERR_DATA);
    CHECK(sqlite3_close(db) == SQLITE_OK);
    check_remove(directory);
}

int main(void)
{
    const struct pages_sqlite sqlite = {sqlite3_vfs_find, sqlite3_vfs_register};
    CHECK(pages_register(&sqlite) == SQLITE_OK);
    CHECK(pages_register(&sqlite) == SQLITE_OK);
    RUN(every_flipped_bit_of_a_database_is_found);
    RUN(a_page_of_the_log_is_checked_as_well);
    RUN(a_page_is_bound_to_its_number);
    return 0;
}
