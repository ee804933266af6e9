/* The VFS under a real SQLite: what is written comes back or is an error. */
#define _GNU_SOURCE
#include "pages.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "log.h"

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
    CHECK(end > 50 * RECORD_BYTES_MAX);
    int found = 0;
    for (off_t offset = RECORDS_AT + 500; offset < end; offset += 1031) {
        flip(log, offset);
        run(db, "PRAGMA shrink_memory");
        sqlite3_int64 value = sum(db, &error);
        CHECK(value == -1 || value == ROWS * (ROWS + 1) / 2);
        found += value == -1;
        flip(log, offset);
    }
    CHECK(found > 5); /* what is before the newest version of a page is read after a kill */
    run(db, "PRAGMA shrink_memory");
    CHECK(sum(db, &error) == ROWS * (ROWS + 1) / 2);
    run(db, "PRAGMA wal_checkpoint(TRUNCATE)");
    CHECK(sqlite3_close(db) == SQLITE_OK);
    check_remove(directory);
}

static void pack(sqlite3 *db, char digit)
{
    char id[33], statement[100];

    memset(id, digit, 32);
    id[32] = 0;
    snprintf(statement, sizeof statement, "PRAGMA pack_begin = '%s'", id);
    run(db, statement);
    for (int group = 0; group < 100; group++) { /* more than there are: the rest does nothing */
        snprintf(statement, sizeof statement, "PRAGMA pack_group = '%d'", group);
        if (sqlite3_exec(db, statement, NULL, NULL, NULL) != SQLITE_OK)
            break;
    }
    run(db, "PRAGMA pack_finish = 'x'");
}

static void packed_pages_are_read_and_every_flipped_bit_of_them_is_found(void)
{
    const char *directory = check_directory();
    char packed[4110];
    struct stat facts;
    int error;

    snprintf(path, sizeof path, "%s/database", directory);
    snprintf(packed, sizeof packed, "%s-packed", path);
    sqlite3 *db = opened();
    run(db, "PRAGMA locking_mode = EXCLUSIVE");
    run(db, "PRAGMA journal_mode = WAL");
    fill(db);
    run(db, "PRAGMA wal_checkpoint(TRUNCATE)");
    pack(db, 'a');
    run(db, "PRAGMA shrink_memory");
    CHECK(sum(db, &error) == ROWS * (ROWS + 1) / 2);
    run(db, "DELETE FROM t WHERE n = 1"); /* one page is the database's own, until it is packed */
    run(db, "PRAGMA wal_checkpoint(TRUNCATE)");
    pack(db, 'b');
    CHECK(sqlite3_close(db) == SQLITE_OK);
    CHECK(stat(path, &facts) == 0);
    CHECK(facts.st_blocks * 512 <= 2 * 4096 && facts.st_size > 20 * PAGES_BYTES);
    CHECK(stat(packed, &facts) == 0);
    int found = 0;
    for (off_t offset = 0; offset < facts.st_size; offset += 11) {
        flip(packed, offset);
        if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, PAGES_VFS) == SQLITE_OK) {
            sqlite3_int64 value = sum(db, &error);
            CHECK(value == -1 || value == ROWS * (ROWS + 1) / 2 - 1);
            found += value == -1;
        }
        sqlite3_close(db);
        flip(packed, offset);
    }
    CHECK(found > facts.st_size / 11 * 3 / 4);
    db = opened();
    CHECK(sum(db, &error) == ROWS * (ROWS + 1) / 2 - 1);
    CHECK(sqlite3_close(db) == SQLITE_OK);
    check_remove(directory);
}

enum { COMMITS = 4, LOG_MAX = 4096 * FRAME_BYTES };

static size_t read_file(const char *name, uint8_t bytes[LOG_MAX])
{
    int fd = open(name, O_RDONLY);
    CHECK(fd >= 0);
    ssize_t size = read(fd, bytes, LOG_MAX);
    CHECK(size > 0 && size < LOG_MAX);
    CHECK(close(fd) == 0);
    return (size_t)size;
}

static void write_file(const char *name, const uint8_t *bytes, size_t size)
{
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0);
    CHECK(write(fd, bytes, size) == (ssize_t)size);
    CHECK(close(fd) == 0);
}

/* A log of some transactions and the frames of another that was not committed, as a kill leaves
 * them. */
static uint8_t database[LOG_MAX];
static size_t database_size;

static size_t log_of_a_killed_process(uint8_t log[LOG_MAX])
{
    char name[4100];

    snprintf(name, sizeof name, "%s-wal", path);
    sqlite3 *db = opened();
    run(db, "PRAGMA locking_mode = EXCLUSIVE");
    run(db, "PRAGMA journal_mode = WAL");
    run(db, "PRAGMA wal_autocheckpoint = 0");
    run(db, "PRAGMA cache_size = 5");
    run(db, "CREATE TABLE t (n INTEGER PRIMARY KEY, text)");
    for (int i = 1; i < COMMITS; i++)
        run(db, "INSERT INTO t (text) VALUES (hex(zeroblob(1000)))");
    run(db, "BEGIN");
    for (int i = 0; i < 40; i++) /* more than is gathered */
        run(db, "INSERT INTO t (text) VALUES (hex(zeroblob(1000)))");
    database_size = read_file(path, database);
    size_t size = read_file(name, log);
    run(db, "ROLLBACK");
    CHECK(sqlite3_close(db) == SQLITE_OK);
    return size;
}

/* How many transactions SQLite finds in a log; it says nothing of those it does not. */
static int commits_found(const uint8_t *log, size_t size)
{
    char name[4100];
    int error;

    snprintf(name, sizeof name, "%s-wal", path);
    write_file(path, database, database_size);
    write_file(name, log, size);
    sqlite3 *db = opened();
    sqlite3_int64 value = sum(db, &error);
    if (error == SQLITE_ERROR)
        value = -1; /* no such table */
    else
        CHECK(error == SQLITE_OK || error == SQLITE_DONE || error == SQLITE_ROW);
    CHECK(sqlite3_close(db) == SQLITE_OK);
    for (int found = 1; found <= COMMITS; found++) {
        if (value == (sqlite3_int64)found * (found - 1) / 2)
            return found;
    }
    return 0;
}

static size_t lost_in(const uint8_t *log, size_t size)
{
    char name[4120];
    size_t lost;

    snprintf(name, sizeof name, "%s-looked-at", path);
    write_file(name, log, size);
    int fd = open(name, O_RDONLY);
    CHECK(fd >= 0);
    CHECK(log_commits_behind_end(fd, &lost) == 0);
    CHECK(close(fd) == 0);
    return lost;
}

static void transactions_behind_a_damaged_frame_are_missed(void)
{
    const char *directory = check_directory();
    static uint8_t log[LOG_MAX];

    snprintf(path, sizeof path, "%s/database", directory);
    size_t size = log_of_a_killed_process(log);
    CHECK(commits_found(log, size) == COMMITS);
    CHECK(lost_in(log, size) == 0);
    size_t last = 0, end = 0; /* of the last record that commits */
    struct record record;
    for (size_t at = RECORDS_AT; log_read_record(log + at, size - at, at, &record);
         at += RECORD_HEADER_BYTES + record.length) {
        if (memcmp(record.commit, "\0\0\0", 4) != 0) {
            last = at;
            end = at + RECORD_HEADER_BYTES + record.length;
        }
    }
    CHECK(last > 0 && end < size); /* uncommitted records follow */
    int missed = 0;
    for (size_t at = 0; at < end; at += 37) {
        log[at] ^= 16;
        size_t lost = lost_in(log, size);
        int found = commits_found(log, size);
        CHECK(found < COMMITS);
        CHECK((int)lost <= COMMITS - found); /* that of a damaged record does not count */
        CHECK(lost > 0 || at >= last);
        missed += lost == 0;
        log[at] ^= 16;
    }
    CHECK(missed > 0);
    check_remove(directory);
}

static void a_log_that_a_kill_cut_short_misses_nothing(void)
{
    const char *directory = check_directory();
    static uint8_t log[LOG_MAX];

    snprintf(path, sizeof path, "%s/database", directory);
    size_t size = log_of_a_killed_process(log);
    for (size_t end = 0; end <= size; end += 101)
        CHECK(lost_in(log, end) == 0);
    check_remove(directory);
}

/* The sum that whoever comes after a kill at this moment finds. */
static sqlite3_int64 sum_after_a_kill(void)
{
    static uint8_t bytes[LOG_MAX];
    char name[4100], own[4096];
    int error;

    memcpy(own, path, sizeof own);
    size_t size = read_file(own, bytes);
    snprintf(path, sizeof path, "%s-killed", own);
    write_file(path, bytes, size);
    snprintf(name, sizeof name, "%s-wal", own);
    size = read_file(name, bytes);
    snprintf(name, sizeof name, "%s-wal", path);
    write_file(name, bytes, size);
    sqlite3 *db = opened();
    sqlite3_int64 value = sum(db, &error);
    CHECK(sqlite3_close(db) == SQLITE_OK);
    memcpy(path, own, sizeof own);
    return value;
}

static void a_commit_that_returned_is_there_after_a_kill(void)
{
    static const char *const changes[] = {
        "INSERT INTO t SELECT max(n) + 1, 'one' FROM t",
        "WITH RECURSIVE c (n) AS (SELECT 301 UNION ALL SELECT n + 1 FROM c WHERE n < 900)"
        " INSERT OR REPLACE INTO t SELECT n, hex(zeroblob(100)) FROM c", /* beyond what is gathered
                                                                          */
        "UPDATE t SET text = text || 'x'", /* pages are written again, and then all headers */
        "SAVEPOINT s; INSERT INTO t VALUES (10001, ''); INSERT INTO t VALUES (10002, '');"
        " ROLLBACK TO s; INSERT INTO t VALUES (10003, ''); RELEASE s",
        "BEGIN; UPDATE t SET n = n + 100000; ROLLBACK; INSERT INTO t VALUES (20000, '')",
        "DELETE FROM t WHERE n % 3 = 0",
    };
    const char *directory = check_directory();
    int error;

    snprintf(path, sizeof path, "%s/database", directory);
    sqlite3 *db = opened();
    run(db, "PRAGMA locking_mode = EXCLUSIVE");
    run(db, "PRAGMA journal_mode = WAL");
    run(db, "PRAGMA wal_autocheckpoint = 0");
    run(db, "PRAGMA cache_size = 5");
    run(db, "PRAGMA synchronous = NORMAL"); /* as the index has it: a commit does not sync */
    fill(db);
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
            run(db, changes[i]);
            sqlite3_int64 killed = sum_after_a_kill();
            CHECK(killed == sum(db, &error));
            run(db, "DELETE FROM t WHERE n > 10000");
        }
        run(db, round ? "PRAGMA wal_checkpoint(TRUNCATE)" : "PRAGMA wal_checkpoint(RESTART)");
    }
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
    const struct pages_sqlite sqlite = {sqlite3_vfs_find, sqlite3_vfs_register, sqlite3_mprintf};
    CHECK(pages_register(&sqlite) == SQLITE_OK);
    CHECK(pages_register(&sqlite) == SQLITE_OK);
    RUN(every_flipped_bit_of_a_database_is_found);
    RUN(a_page_of_the_log_is_checked_as_well);
    RUN(packed_pages_are_read_and_every_flipped_bit_of_them_is_found);
    RUN(transactions_behind_a_damaged_frame_are_missed);
    RUN(a_log_that_a_kill_cut_short_misses_nothing);
    RUN(a_commit_that_returned_is_there_after_a_kill);
    RUN(a_page_is_bound_to_its_number);
    return 0;
}
