#include "frames.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "difference.h"
#include "log.h"

enum {
    GATHERED_BYTES = 64 * RECORD_BYTES_MAX,
    VERSIONS = 1024, /* pages that differences are made to, 1 MiB: as many change again and again */
    FRAMES_AT_FIRST = 1024,
    PLAIN_MAGIC = 0x377f0682, /* of a log of SQLite's own, big-endian; the last bit may be set */
};

/* The newest record of a page, and what the page was then. */
struct version {
    uint64_t at; /* of the record in the file; 0: there is none */
    uint32_t number;
    uint8_t depth;
};

struct frames {
    bool is_plain;  /* the file is a log of SQLite's own */
    bool has_begun; /* there is a header */
    uint8_t header[LOG_HEADER_BYTES];
    uint64_t *at; /* owned; of the newest record of each frame in the file */
    size_t count, room;
    uint8_t next[FRAME_HEADER_BYTES]; /* header of the frame whose page comes next */
    bool has_next;
    uint64_t flushed; /* bytes of the file; what is gathered follows */
    size_t gathered;
    uint8_t bytes[GATHERED_BYTES];
    struct version versions[VERSIONS]; /* a page has one place among them */
    uint8_t pages[VERSIONS][PAGES_BYTES];
};

struct frames *frames_new(void)
{
    return calloc(1, sizeof(struct frames));
}

void frames_free(struct frames *frames)
{
    if (frames)
        free(frames->at);
    free(frames);
}

static struct version *version_of(struct frames *frames, uint32_t number)
{
    return &frames->versions[number % VERSIONS];
}

static uint8_t *page_of(struct frames *frames, uint32_t number)
{
    return frames->pages[number % VERSIONS];
}

static void forget_versions(struct frames *frames)
{
    memset(frames->versions, 0, sizeof frames->versions);
}

static void begin_anew(struct frames *frames)
{
    frames->is_plain = frames->has_begun = frames->has_next = false;
    frames->count = frames->gathered = 0;
    frames->flushed = 0;
    forget_versions(frames);
}

/* The record that is at `at` has the newest version of a frame. */
static int note_record(struct frames *frames, uint32_t frame, uint64_t at)
{
    if (frame == frames->room) {
        size_t room = frames->room ? 2 * frames->room : FRAMES_AT_FIRST;
        uint64_t *grown = realloc(frames->at, room * sizeof *grown);
        if (!grown)
            return SQLITE_NOMEM;
        frames->at = grown;
        frames->room = room;
    }
    frames->at[frame] = at;
    if (frame == frames->count)
        frames->count++;
    return SQLITE_OK;
}

/* --- what is in the file ------------------------------------------------------------------- */

static int read_file(sqlite3_file *log, void *into, size_t size, uint64_t offset)
{
    return log->pMethods->xRead(log, into, (int)size, (sqlite3_int64)offset);
}

struct source {
    sqlite3_file *log;
    uint64_t end;
    int result;
};

static ssize_t read_source(void *from, uint8_t *into, size_t size, uint64_t offset)
{
    struct source *source = from;
    size_t there = offset < source->end ? (size_t)(source->end - offset) : 0;

    if (size > there)
        size = there;
    source->result = size ? read_file(source->log, into, size, offset) : SQLITE_OK;
    return source->result == SQLITE_OK ? (ssize_t)size : -1;
}

static int find_records(struct frames *frames, sqlite3_file *log, uint64_t end)
{
    struct source source = {.log = log, .end = end};
    struct record record;
    struct log_scan *scan = calloc(1, sizeof *scan);
    int result = SQLITE_OK;

    if (!scan)
        return SQLITE_NOMEM;
    scan->read = read_source;
    scan->source = &source;
    scan->offset = RECORDS_AT;
    while (result == SQLITE_OK && log_scan_next(scan, &record) && record.frame <= frames->count) {
        result = note_record(frames, record.frame, scan->offset + scan->at);
        scan->at += RECORD_HEADER_BYTES + record.length;
    }
    frames->flushed = scan->offset + scan->at;
    free(scan);
    return result == SQLITE_OK ? source.result : result;
}

int frames_open(struct frames *frames, sqlite3_file *log)
{
    uint8_t header[RECORDS_AT];
    sqlite3_int64 size;

    int result = log->pMethods->xFileSize(log, &size);
    if (result != SQLITE_OK || size < LOG_HEADER_BYTES)
        return result;
    size_t wanted = size < RECORDS_AT ? LOG_HEADER_BYTES : RECORDS_AT;
    result = read_file(log, header, wanted, 0);
    if (result != SQLITE_OK)
        return result;
    frames->is_plain = (load32_big_endian(header) & ~1u) == PLAIN_MAGIC;
    if (wanted < RECORDS_AT || memcmp(header, log_magic, sizeof log_magic) != 0)
        return SQLITE_OK; /* to SQLite it is empty, unless it is its own */
    memcpy(frames->header, header + LOG_MAGIC_BYTES, LOG_HEADER_BYTES);
    frames->has_begun = true;
    return find_records(frames, log, (uint64_t)size);
}

/* --- reading ------------------------------------------------------------------------------- */

/* A record of the file; its difference or page is behind its header in `bytes`. */
static int read_record(struct frames *frames, sqlite3_file *log, uint64_t at,
                       uint8_t bytes[RECORD_BYTES_MAX], struct record *record)
{
    uint64_t there = frames->flushed - at;
    size_t size = there < RECORD_BYTES_MAX ? (size_t)there : RECORD_BYTES_MAX;

    int result = read_file(log, bytes, size, at);
    if (result != SQLITE_OK)
        return result == SQLITE_IOERR_SHORT_READ ? SQLITE_IOERR_DATA : result;
    return log_read_record(bytes, size, at, record) ? SQLITE_OK : SQLITE_IOERR_DATA;
}

static bool is_known(struct frames *frames, uint32_t number, uint64_t at)
{
    return version_of(frames, number)->at == at;
}

/* The page that a record says; differences are followed back to one that is known, or whole. */
static int read_page(struct frames *frames, sqlite3_file *log, uint64_t at, struct record *newest,
                     uint8_t page[PAGES_BYTES])
{
    uint64_t places[LOG_DEPTH_MAX];
    uint8_t bytes[RECORD_BYTES_MAX];
    size_t count = 0;

    int result = read_record(frames, log, at, bytes, newest);
    if (result != SQLITE_OK)
        return result;
    struct record record = *newest;
    uint32_t number = load32_big_endian(newest->number);
    if (is_known(frames, number, at)) {
        memcpy(page, page_of(frames, number), PAGES_BYTES);
        return SQLITE_OK;
    }
    while (result == SQLITE_OK && record.back && !is_known(frames, number, at - record.back)) {
        if (count == LOG_DEPTH_MAX)
            return SQLITE_IOERR_DATA;
        places[count++] = at;
        at -= record.back;
        result = read_record(frames, log, at, bytes, &record);
    }
    if (result != SQLITE_OK)
        return result;
    memcpy(page, record.back ? page_of(frames, number) : bytes + RECORD_HEADER_BYTES, PAGES_BYTES);
    bool is_good =
        !record.back || difference_apply(page, bytes + RECORD_HEADER_BYTES, record.length);
    while (result == SQLITE_OK && is_good && count > 0) {
        result = read_record(frames, log, places[--count], bytes, &record);
        is_good = difference_apply(page, bytes + RECORD_HEADER_BYTES, record.length);
    }
    return result == SQLITE_OK && !is_good ? SQLITE_IOERR_DATA : result;
}

static void remember(struct frames *frames, const struct record *record, uint64_t at,
                     const uint8_t page[PAGES_BYTES])
{
    uint32_t number = load32_big_endian(record->number);
    struct version *version = version_of(frames, number);

    version->at = at;
    version->number = number;
    version->depth = record->depth;
    memcpy(page_of(frames, number), page, PAGES_BYTES);
}

static int read_frame(struct frames *frames, sqlite3_file *log, size_t frame,
                      uint8_t bytes[FRAME_BYTES])
{
    struct record record;
    uint64_t at = frames->at[frame];
    uint8_t *page = bytes + FRAME_HEADER_BYTES;

    int result = read_page(frames, log, at, &record, page);
    if (result != SQLITE_OK)
        return result;
    memcpy(bytes, record.number, sizeof record.number);
    memcpy(bytes + FRAME_COMMIT_AT, record.commit, sizeof record.commit);
    memcpy(bytes + FRAME_SALTS_AT, frames->header + LOG_SALTS_AT, FRAME_SALTS_BYTES);
    memcpy(bytes + FRAME_CHECKSUM_AT, record.checksum, FRAME_CHECKSUM_BYTES);
    const struct version *version = version_of(frames, load32_big_endian(record.number));
    if (version->number != load32_big_endian(record.number) || version->at < at)
        remember(frames, &record, at, page); /* who reads all of them needs it for the next */
    return SQLITE_OK;
}

static int read_nothing(uint8_t *into, int size)
{
    memset(into, 0, (size_t)size);
    return SQLITE_IOERR_SHORT_READ;
}

int frames_read(struct frames *frames, sqlite3_file *log, void *to, int size, sqlite3_int64 offset)
{
    uint8_t bytes[FRAME_BYTES];
    uint8_t *into = to;

    if (frames->is_plain)
        return log->pMethods->xRead(log, into, size, offset);
    int result = frames_flush(frames, log);
    while (result == SQLITE_OK && size > 0) {
        const uint8_t *from = frames->header;
        int within = (int)offset, there = LOG_HEADER_BYTES;
        if (offset >= LOG_HEADER_BYTES) {
            size_t frame = (size_t)(offset - LOG_HEADER_BYTES) / FRAME_BYTES;
            if (frame >= frames->count)
                return read_nothing(into, size);
            result = read_frame(frames, log, frame, bytes);
            from = bytes;
            within = (int)((offset - LOG_HEADER_BYTES) % FRAME_BYTES);
            there = FRAME_BYTES;
        } else if (!frames->has_begun) {
            return read_nothing(into, size);
        }
        if (result != SQLITE_OK)
            return result;
        int taken = size < there - within ? size : there - within;
        memcpy(into, from + within, (size_t)taken);
        into += taken;
        offset += taken;
        size -= taken;
    }
    return result;
}

/* --- writing ------------------------------------------------------------------------------- */

/* What could not be written never was: SQLite gives the transaction up and writes another. */
static void forget_gathered(struct frames *frames)
{
    for (size_t frame = 0; frame < frames->count; frame++) {
        if (frames->at[frame] >= frames->flushed)
            frames->count = frame;
    }
    frames->gathered = 0;
    frames->has_next = false;
    forget_versions(frames);
}

int frames_flush(struct frames *frames, sqlite3_file *log)
{
    if (frames->gathered == 0)
        return SQLITE_OK;
    int result = log->pMethods->xWrite(log, frames->bytes, (int)frames->gathered,
                                       (sqlite3_int64)frames->flushed);
    if (result != SQLITE_OK) {
        forget_gathered(frames);
        return result;
    }
    frames->flushed += frames->gathered;
    frames->gathered = 0;
    return SQLITE_OK;
}

static int begin_log(struct frames *frames, sqlite3_file *log, const uint8_t *header)
{
    uint8_t bytes[RECORDS_AT];

    int result = log->pMethods->xTruncate(log, 0); /* all that was in it is in the database */
    if (result != SQLITE_OK)
        return result;
    begin_anew(frames);
    memcpy(bytes, log_magic, LOG_MAGIC_BYTES);
    memcpy(bytes + LOG_MAGIC_BYTES, header, LOG_HEADER_BYTES);
    result = log->pMethods->xWrite(log, bytes, sizeof bytes, 0);
    if (result != SQLITE_OK)
        return result;
    memcpy(frames->header, header, LOG_HEADER_BYTES);
    frames->has_begun = true;
    frames->flushed = sizeof bytes;
    return SQLITE_OK;
}

/* As a difference to the version before, if that is known and near. */
static void encode(struct frames *frames, uint64_t at, const uint8_t page[PAGES_BYTES],
                   uint8_t *bytes, struct record *record)
{
    uint32_t number = load32_big_endian(record->number);
    const struct version *before = version_of(frames, number);
    uint8_t *body = bytes + RECORD_HEADER_BYTES;

    if (before->at && before->number == number && before->depth < LOG_DEPTH_MAX &&
        at - before->at <= UINT32_MAX) {
        size_t size = difference_make(page_of(frames, number), page, body);
        if (size <= DIFFERENCE_BYTES_MAX) {
            record->length = (uint16_t)size;
            record->back = (uint32_t)(at - before->at);
            record->depth = before->depth + 1;
            return;
        }
    }
    memcpy(body, page, PAGES_BYTES);
    record->length = PAGES_BYTES;
}

static int add_frame(struct frames *frames, sqlite3_file *log, size_t frame,
                     const uint8_t header[FRAME_HEADER_BYTES], const uint8_t page[PAGES_BYTES])
{
    struct record record = {.frame = (uint32_t)frame};
    int result = SQLITE_OK;

    if (frame >= UINT32_MAX)
        return SQLITE_FULL;
    if (sizeof frames->bytes - frames->gathered < RECORD_BYTES_MAX)
        result = frames_flush(frames, log);
    if (result != SQLITE_OK)
        return result;
    memcpy(record.number, header, sizeof record.number);
    memcpy(record.commit, header + FRAME_COMMIT_AT, sizeof record.commit);
    memcpy(record.checksum, header + FRAME_CHECKSUM_AT, sizeof record.checksum);
    uint8_t *bytes = frames->bytes + frames->gathered;
    uint64_t at = frames->flushed + frames->gathered;
    bool is_rewritten = frame < frames->count;
    encode(frames, at, page, bytes, &record);
    result = note_record(frames, record.frame, at);
    if (result != SQLITE_OK)
        return result;
    log_seal_record(bytes, &record);
    frames->gathered += RECORD_HEADER_BYTES + record.length;
    remember(frames, &record, at, page);
    /* Headers are written again after the page that commits, so they may not wait for one. */
    return is_rewritten || load32(record.commit) ? frames_flush(frames, log) : SQLITE_OK;
}

/*
 * A transaction that outgrows SQLite's cache may write a page a second time, in its frame, without
 * the header; all headers from there on, which have no checksums until then, are written again
 * before it is committed. One that follows a transaction that was rolled back writes headers and
 * pages over the other's.
 */
static int rewrite_frame(struct frames *frames, sqlite3_file *log, size_t frame,
                         const uint8_t *header, const uint8_t *page)
{
    uint8_t bytes[FRAME_BYTES];

    int result = frames_flush(frames, log);
    if (result == SQLITE_OK)
        result = read_frame(frames, log, frame, bytes);
    if (result != SQLITE_OK)
        return result;
    return add_frame(frames, log, frame, header ? header : bytes,
                     page ? page : bytes + FRAME_HEADER_BYTES);
}

static int write_header(struct frames *frames, sqlite3_file *log, size_t frame,
                        const uint8_t *header)
{
    if (frame > frames->count)
        return SQLITE_IOERR_WRITE;
    if (frame < frames->count)
        return rewrite_frame(frames, log, frame, header, NULL);
    memcpy(frames->next, header, FRAME_HEADER_BYTES);
    frames->has_next = true;
    return SQLITE_OK;
}

static int write_page(struct frames *frames, sqlite3_file *log, size_t frame, const uint8_t *page)
{
    if (frame < frames->count)
        return rewrite_frame(frames, log, frame, NULL, page);
    if (frame > frames->count || !frames->has_next)
        return SQLITE_IOERR_WRITE;
    frames->has_next = false;
    return add_frame(frames, log, frame, frames->next, page);
}

int frames_write(struct frames *frames, sqlite3_file *log, const void *from, int size,
                 sqlite3_int64 offset)
{
    if (offset == 0 && size == LOG_HEADER_BYTES)
        return begin_log(frames, log, from);
    if (frames->is_plain)
        return log->pMethods->xWrite(log, from, size, offset);
    if (!frames->has_begun || offset < LOG_HEADER_BYTES)
        return SQLITE_IOERR_WRITE;
    size_t frame = (size_t)(offset - LOG_HEADER_BYTES) / FRAME_BYTES;
    sqlite3_int64 within = (offset - LOG_HEADER_BYTES) % FRAME_BYTES;
    if (within == 0 && size == FRAME_HEADER_BYTES)
        return write_header(frames, log, frame, from);
    if (within == FRAME_HEADER_BYTES && size == PAGES_BYTES)
        return write_page(frames, log, frame, from);
    return SQLITE_IOERR_WRITE; /* SQLite writes nothing else */
}

int frames_truncate(struct frames *frames, sqlite3_file *log, sqlite3_int64 size)
{
    if (size != 0 && !frames->is_plain)
        return SQLITE_OK; /* of the frames behind that place SQLite needs none */
    int result = log->pMethods->xTruncate(log, size);
    if (result == SQLITE_OK && size == 0)
        begin_anew(frames);
    return result;
}

int frames_size(struct frames *frames, sqlite3_file *log, sqlite3_int64 *size)
{
    if (frames->is_plain)
        return log->pMethods->xFileSize(log, size);
    int result = frames_flush(frames, log);
    *size = LOG_HEADER_BYTES + (sqlite3_int64)frames->count * FRAME_BYTES;
    if (!frames->has_begun)
        *size = 0;
    return result;
}
