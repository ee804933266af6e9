#define _GNU_SOURCE
#include "packed.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <zstd.h>

#include "bytes.h"
#include "crc32c.h"
#include "io.h"

enum {
    HEADER_BYTES = 64,
    VERSION = 1,
    VERSION_AT = 8,
    GROUP_PAGES_AT = 12,
    ID_AT = 16,
    PAGES_AT = 32,
    MAP_CRC_AT = 36,
    HEADER_CRC_AT = 60,
    ENTRY_BYTES = 8, /* bytes of the group, their CRC */
    LEVEL = 12,      /* 23 MB/s; level 19 is as small and takes three times as long */
    BLOCK_BYTES = 4096,
    CRC_AT = PAGES_BYTES - PAGES_RESERVED,
};

static const uint8_t magic[8] = {'a', 'g', 'e', 'n', 't', 'P', 'A', 'K'};
static const uint32_t BY_COLUMNS = UINT32_C(1) << 31; /* in an entry's bytes */
static const uint32_t NO_GROUP = UINT32_MAX;
static const uint32_t PAGES_MAX = UINT32_MAX - PACKED_GROUP_PAGES;

static_assert(PAGES_RESERVED == sizeof(uint32_t), "a page's checksum is left out of its group");

struct packed {
    int fd;     /* owned */
    char *path; /* owned; of the finished file */
    uint8_t id[PACKED_ID_BYTES];
    uint32_t pages;
    uint32_t groups;
    uint32_t next;     /* group to be added; groups: the file is finished, or could be */
    bool is_finished;  /* it has its name */
    bool has_notes;    /* written differs from the file's */
    uint64_t *offsets; /* owned; groups + 1, the last is where the file ends */
    uint8_t *map;      /* owned; an entry for each group, as in the file */
    uint8_t *written;  /* owned; a bit for each page, as in the file */
    uint32_t cached;   /* the group in raw, or NO_GROUP */
    ZSTD_CCtx *compressor;
    ZSTD_DCtx *decompressor;
    uint8_t raw[PACKED_GROUP_BYTES];
    uint8_t stored[PACKED_GROUP_BYTES];
    uint8_t columns[COLUMNS_BYTES_MAX];
};

char *packed_beside(const char *path, const char *suffix)
{
    char *name = malloc(strlen(path) + strlen(suffix) + 1);

    if (name) {
        strcpy(name, path);
        strcat(name, suffix);
    }
    return name;
}

static size_t map_bytes(const struct packed *packed)
{
    return (size_t)packed->groups * ENTRY_BYTES;
}

static size_t notes_bytes(const struct packed *packed)
{
    return ((size_t)packed->pages + 7) / 8;
}

static uint64_t notes_at(const struct packed *packed)
{
    return HEADER_BYTES + map_bytes(packed);
}

static uint64_t groups_at(const struct packed *packed)
{
    return notes_at(packed) + notes_bytes(packed);
}

/* Of a file with so many pages; with path NULL, when out of memory. */
static struct packed *made(const char *path, uint32_t pages)
{
    struct packed *packed = calloc(1, sizeof *packed);

    if (!packed)
        return NULL;
    packed->fd = -1;
    packed->pages = pages;
    packed->groups = (pages + PACKED_GROUP_PAGES - 1) / PACKED_GROUP_PAGES;
    packed->cached = NO_GROUP;
    packed->path = strdup(path);
    packed->offsets = calloc((size_t)packed->groups + 1, sizeof *packed->offsets);
    packed->map = calloc((size_t)packed->groups + 1, ENTRY_BYTES);
    packed->written = calloc(1, notes_bytes(packed) + 1);
    packed->decompressor = ZSTD_createDCtx();
    if (packed->path && packed->offsets && packed->map && packed->written && packed->decompressor)
        return packed;
    packed_close(packed);
    return NULL;
}

static int write_at(int fd, const void *bytes, size_t size, uint64_t offset)
{
    struct iovec part = {.iov_base = (void *)bytes, .iov_len = size};

    return size ? io_write(fd, &part, 1, offset) : 0;
}

static int read_exactly(int fd, void *into, size_t size, uint64_t offset)
{
    size_t got;
    int error = io_read(fd, into, size, offset, &got);

    return error ? error : got == size ? 0 : EINVAL;
}

/* --- reading ------------------------------------------------------------------------------- */

static int read_header(int fd, uint8_t header[HEADER_BYTES], uint64_t *file_bytes)
{
    int error = io_size(fd, file_bytes);

    if (!error)
        error = read_exactly(fd, header, HEADER_BYTES, 0);
    if (error)
        return error;
    bool is_valid = memcmp(header, magic, sizeof magic) == 0 &&
                    load32(header + HEADER_CRC_AT) == crc32c(0, header, HEADER_CRC_AT) &&
                    load32(header + VERSION_AT) == VERSION &&
                    load32(header + GROUP_PAGES_AT) == PACKED_GROUP_PAGES &&
                    load32(header + PAGES_AT) <= PAGES_MAX &&
                    load32(header + PAGES_AT) / 8 <= *file_bytes;
    return is_valid ? 0 : EINVAL;
}

static int read_map(struct packed *packed, uint32_t crc, uint64_t file_bytes)
{
    if (groups_at(packed) > file_bytes)
        return EINVAL;
    int error = read_exactly(packed->fd, packed->map, map_bytes(packed), HEADER_BYTES);
    if (!error)
        error = read_exactly(packed->fd, packed->written, notes_bytes(packed), notes_at(packed));
    if (error)
        return error;
    if (crc32c(0, packed->map, map_bytes(packed)) != crc)
        return EINVAL;
    packed->offsets[0] = groups_at(packed);
    for (uint32_t group = 0; group < packed->groups; group++) {
        uint32_t size = load32(packed->map + (size_t)group * ENTRY_BYTES) & ~BY_COLUMNS;
        if (size > PACKED_GROUP_BYTES)
            return EINVAL;
        packed->offsets[group + 1] = packed->offsets[group] + size;
    }
    return packed->offsets[packed->groups] <= file_bytes ? 0 : EINVAL;
}

int packed_open(const char *path, bool read_only, struct packed **packed)
{
    uint8_t header[HEADER_BYTES];
    uint64_t file_bytes;
    int fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0)
        return errno;
    int error = read_header(fd, header, &file_bytes);
    if (error) {
        close(fd);
        return error;
    }
    struct packed *opened = made(path, load32(header + PAGES_AT));
    if (!opened) {
        close(fd);
        return ENOMEM;
    }
    opened->fd = fd;
    opened->is_finished = true;
    opened->next = opened->groups;
    memcpy(opened->id, header + ID_AT, PACKED_ID_BYTES);
    error = read_map(opened, load32(header + MAP_CRC_AT), file_bytes);
    if (error) {
        packed_close(opened);
        return error;
    }
    *packed = opened;
    return 0;
}

const uint8_t *packed_id(const struct packed *packed)
{
    return packed->id;
}

static bool is_written(const struct packed *packed, uint32_t number)
{
    return packed->written[(number - 1) / 8] >> (number - 1) % 8 & 1;
}

/* Stored bytes of a group are as many as raw ones only if they are raw. */
static bool expand(struct packed *packed, size_t size, bool is_by_columns)
{
    uint8_t *into = is_by_columns ? packed->columns : packed->raw;
    size_t room = is_by_columns ? sizeof packed->columns : sizeof packed->raw;

    if (size == PACKED_GROUP_BYTES) {
        memcpy(packed->raw, packed->stored, size);
        return true;
    }
    size_t got = ZSTD_decompressDCtx(packed->decompressor, into, room, packed->stored, size);
    if (ZSTD_isError(got))
        return false;
    return is_by_columns ? columns_join(packed->columns, got, packed->raw)
                         : got == PACKED_GROUP_BYTES;
}

static int load_group(struct packed *packed, uint32_t group)
{
    const uint8_t *entry = packed->map + (size_t)group * ENTRY_BYTES;
    size_t size = load32(entry) & ~BY_COLUMNS;

    packed->cached = NO_GROUP;
    int error = read_exactly(packed->fd, packed->stored, size, packed->offsets[group]);
    if (error)
        return EIO;
    if (crc32c(0, packed->stored, size) != load32(entry + 4))
        return EIO;
    if (!expand(packed, size, load32(entry) & BY_COLUMNS))
        return EIO;
    packed->cached = group;
    return 0;
}

int packed_read(struct packed *packed, uint32_t number, uint8_t page[PAGES_BYTES])
{
    if (number == 0 || number > packed->pages || is_written(packed, number))
        return EIO;
    uint32_t group = (number - 1) / PACKED_GROUP_PAGES;
    if (group != packed->cached) {
        int error = load_group(packed, group);
        if (error)
            return error;
    }
    memcpy(page, packed->raw + (size_t)((number - 1) % PACKED_GROUP_PAGES) * PAGES_BYTES,
           PAGES_BYTES);
    return 0;
}

/* --- notes --------------------------------------------------------------------------------- */

void packed_note_write(struct packed *packed, uint32_t number)
{
    if (number == 0 || number > packed->pages || is_written(packed, number))
        return;
    packed->written[(number - 1) / 8] |= (uint8_t)(1 << (number - 1) % 8);
    packed->has_notes = true;
}

void packed_note_end(struct packed *packed, uint32_t last)
{
    for (uint64_t number = (uint64_t)last + 1; number <= packed->pages; number++)
        packed_note_write(packed, (uint32_t)number);
}

int packed_sync(struct packed *packed)
{
    if (!packed->has_notes || !packed->is_finished)
        return 0;
    int error = write_at(packed->fd, packed->written, notes_bytes(packed), notes_at(packed));
    if (!error && fdatasync(packed->fd) != 0)
        error = errno;
    packed->has_notes = error != 0;
    return error;
}

/* --- packing ------------------------------------------------------------------------------- */

/* As "index.db-packed.new"; NULL: out of memory. */
static char *unfinished(const char *path)
{
    return packed_beside(path, ".new");
}

static int create(const char *path)
{
    char *name = unfinished(path);

    if (!name) {
        errno = ENOMEM;
        return -1;
    }
    unlink(name);
    int fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int error = errno;
    free(name);
    errno = error;
    return fd;
}

static int punch(int fd, uint64_t from, uint64_t to)
{
    if (from >= to)
        return 0;
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    return fallocate(fd, mode, (off_t)from, (off_t)(to - from)) == 0 ? 0 : errno;
}

int packed_begin(const char *path, const uint8_t id[PACKED_ID_BYTES], uint32_t pages,
                 struct packed **packed)
{
    if (pages > PAGES_MAX)
        return EFBIG;
    struct packed *begun = made(path, pages);
    if (!begun)
        return ENOMEM;
    memcpy(begun->id, id, PACKED_ID_BYTES);
    begun->offsets[0] = groups_at(begun);
    int error = 0;
    begun->compressor = ZSTD_createCCtx();
    if (!begun->compressor)
        error = ENOMEM;
    if (!error && (begun->fd = create(path)) < 0)
        error = errno;
    if (!error && ftruncate(begun->fd, BLOCK_BYTES) != 0)
        error = errno;
    if (!error)
        error = punch(begun->fd, 0, BLOCK_BYTES);
    if (error) {
        packed_close(begun);
        return error;
    }
    *packed = begun;
    return 0;
}

uint32_t packed_groups(const struct packed *packed)
{
    return packed->groups;
}

uint32_t packed_next(const struct packed *packed)
{
    return packed->next;
}

static size_t compress(struct packed *packed, const uint8_t *from, size_t size, uint8_t *into)
{
    size_t stored =
        ZSTD_compressCCtx(packed->compressor, into, PACKED_GROUP_BYTES - 1, from, size, LEVEL);
    return ZSTD_isError(stored) ? PACKED_GROUP_BYTES : stored; /* it does not fit */
}

/* Bytes of the group by columns; PACKED_GROUP_BYTES: it is not to be had from them again. */
static size_t compress_columns(struct packed *packed)
{
    uint8_t again[PACKED_GROUP_BYTES];
    size_t size = columns_split(packed->raw, packed->columns);

    if (size == 0 || !columns_join(packed->columns, size, again) ||
        memcmp(again, packed->raw, PACKED_GROUP_BYTES) != 0)
        return PACKED_GROUP_BYTES;
    return compress(packed, packed->columns, size, packed->stored);
}

int packed_add(struct packed *packed, const uint8_t group[PACKED_GROUP_BYTES])
{
    uint8_t plain[PACKED_GROUP_BYTES];
    const uint8_t *stored = packed->stored;

    if (packed->is_finished || packed->next == packed->groups)
        return EINVAL;
    memcpy(packed->raw, group, PACKED_GROUP_BYTES);
    for (size_t page = 0; page < PACKED_GROUP_PAGES; page++)
        memset(packed->raw + page * PAGES_BYTES + CRC_AT, 0, PAGES_RESERVED);
    size_t size = compress_columns(packed);
    uint32_t flag = BY_COLUMNS;
    size_t plain_size = compress(packed, packed->raw, PACKED_GROUP_BYTES, plain);
    if (plain_size <= size) {
        stored = plain_size < PACKED_GROUP_BYTES ? plain : packed->raw;
        size = plain_size;
        flag = 0;
    }
    uint64_t offset = packed->offsets[packed->next];
    int error = write_at(packed->fd, stored, size, offset);
    if (error)
        return error;
    uint8_t *entry = packed->map + (size_t)packed->next * ENTRY_BYTES;
    store32(entry, (uint32_t)size | flag);
    store32(entry + 4, crc32c(0, stored, size));
    packed->next++;
    packed->offsets[packed->next] = offset + size;
    return 0;
}

static int write_head(struct packed *packed)
{
    uint8_t header[HEADER_BYTES] = {0};

    memcpy(header, magic, sizeof magic);
    store32(header + VERSION_AT, VERSION);
    store32(header + GROUP_PAGES_AT, PACKED_GROUP_PAGES);
    memcpy(header + ID_AT, packed->id, PACKED_ID_BYTES);
    store32(header + PAGES_AT, packed->pages);
    store32(header + MAP_CRC_AT, crc32c(0, packed->map, map_bytes(packed)));
    store32(header + HEADER_CRC_AT, crc32c(0, header, HEADER_CRC_AT));
    int error = write_at(packed->fd, header, HEADER_BYTES, 0);
    if (!error)
        error = write_at(packed->fd, packed->map, map_bytes(packed), HEADER_BYTES);
    if (!error)
        error = write_at(packed->fd, packed->written, notes_bytes(packed), notes_at(packed));
    return error;
}

static int sync_directory(const char *path)
{
    char *copy = strdup(path);

    if (!copy)
        return ENOMEM;
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(copy);
    if (fd < 0)
        return errno;
    int error = fsync(fd) == 0 ? 0 : errno;
    close(fd);
    return error;
}

int packed_finish(struct packed *packed)
{
    if (packed->is_finished || packed->next != packed->groups)
        return EINVAL;
    int error = write_head(packed);
    if (!error && ftruncate(packed->fd, (off_t)packed->offsets[packed->groups]) != 0)
        error = errno;
    if (!error && fsync(packed->fd) != 0)
        error = errno;
    if (error)
        return error;
    char *name = unfinished(packed->path);
    if (!name)
        return ENOMEM;
    error = rename(name, packed->path) == 0 ? 0 : errno;
    free(name);
    if (error)
        return error;
    packed->is_finished = true;
    packed->has_notes = false;
    return sync_directory(packed->path);
}

int packed_punch(const struct packed *packed, int database)
{
    uint64_t from = BLOCK_BYTES; /* the header of a database is read without us */
    int error = 0;

    for (uint32_t number = 1; !error && number <= packed->pages; number++) {
        uint64_t at = (uint64_t)(number - 1) * PAGES_BYTES;
        if (!is_written(packed, number))
            continue;
        error = punch(database, from, at);
        if (at + PAGES_BYTES > from)
            from = at + PAGES_BYTES;
    }
    return error ? error : punch(database, from, (uint64_t)packed->pages * PAGES_BYTES);
}

void packed_close(struct packed *packed)
{
    if (!packed)
        return;
    if (packed->fd >= 0 && !packed->is_finished) {
        char *name = unfinished(packed->path);
        if (name)
            unlink(name);
        free(name);
    }
    if (packed->fd >= 0)
        close(packed->fd);
    ZSTD_freeCCtx(packed->compressor);
    ZSTD_freeDCtx(packed->decompressor);
    free(packed->path);
    free(packed->offsets);
    free(packed->map);
    free(packed->written);
    free(packed);
}
