#define _GNU_SOURCE
#include "dictionary.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zdict.h>
#include <zstd_errors.h>

#include "files.h"
#include "io.h"

/*
 * Some 140 KB to read with, 1 MB to write with at level 5: what a store uses at a time is a few.
 * Those in use come on top.
 */
enum { KEEP_DIGESTED = 12 };

enum { COPIES = 2, COPY_LEVEL = 19 };

static const char *const suffixes[COPIES] = {DICTIONARY_SUFFIX, DICTIONARY_TWIN};

/* One copy as it was read. */
struct copy {
    enum status status;
    int error; /* errno, for STATUS_ERRNO */
    uint64_t file_bytes;
    uint8_t *raw; /* owned; NULL unless STATUS_OK: the kind, then what zstd trained */
    uint32_t raw_bytes;
};

bool dictionaries_init(struct dictionaries *all, int directory, bool read_only,
                       struct codec_pool *codecs)
{
    all->directory = directory;
    all->read_only = read_only;
    all->codecs = codecs;
    if (!lru_init(&all->digested, KEEP_DIGESTED))
        return false;
    pthread_mutex_init(&all->write_lock, NULL);
    pthread_mutex_init(&all->lock, NULL);
    return true;
}

static void digested_free(struct digested *digested)
{
    ZSTD_freeDDict(digested->decoder);
    ZSTD_freeCDict(digested->encoder);
    free(digested);
}

static void forget_node(struct lru_node *node, void *context)
{
    if (lru_unlink(context, node))
        digested_free((struct digested *)node);
}

void dictionaries_free(struct dictionaries *all)
{
    lru_each(&all->digested, forget_node, &all->digested);
    lru_free(&all->digested);
    pthread_mutex_destroy(&all->lock);
    pthread_mutex_destroy(&all->write_lock);
}

/* --- copies ----------------------------------------------------------------------------------- */

enum status dictionary_check(const uint8_t *raw, size_t raw_bytes)
{
    if (raw_bytes <= 1 || raw_bytes > 1 + DICTIONARY_MAX)
        return STATUS_CORRUPT_PAYLOAD;
    size_t entropy = ZDICT_getDictHeaderSize(raw + 1, raw_bytes - 1);
    if (!ZDICT_isError(entropy))
        return STATUS_OK;
    return ZSTD_getErrorCode(entropy) == ZSTD_error_memory_allocation ? STATUS_NO_MEMORY
                                                                      : STATUS_CORRUPT_PAYLOAD;
}

/* A clean segment of one block, which needs no dictionary and holds one. */
static enum status read_open(const struct segment_view *view, struct codec *codec,
                             struct evidence *evidence, struct copy *copy)
{
    struct block_header header;
    const uint8_t *payload;

    enum status status = segment_check(view, evidence);
    if (status == STATUS_OK)
        status = segment_read_block(view, SEGMENT_HEADER_BYTES, &codec->stored, evidence, &header,
                                    &payload);
    if (status != STATUS_OK)
        return status;
    if (header.dictionary != 0 ||
        view->end != SEGMENT_HEADER_BYTES + BLOCK_HEADER_BYTES + (uint64_t)header.stored_bytes)
        return STATUS_CORRUPT_HEADER;
    copy->raw = malloc(header.raw_bytes);
    copy->raw_bytes = header.raw_bytes;
    if (copy->raw == NULL)
        return STATUS_NO_MEMORY;
    status = codec_decompress(codec, &header, NULL, payload, copy->raw, header.raw_bytes);
    return status ? status : dictionary_check(copy->raw, copy->raw_bytes);
}

static void read_copy(struct dictionaries *all, uint32_t number, const char *suffix,
                      struct codec *codec, struct copy *copy)
{
    char name[FILES_NAME_BYTES];
    struct segment_view view = {.number = number};
    struct evidence evidence = {0};

    *copy = (struct copy){.status = STATUS_ERRNO};
    files_name(number, suffix, name);
    view.fd = openat(all->directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (view.fd < 0) {
        copy->error = errno;
        return;
    }
    copy->error = io_size(view.fd, &view.end);
    copy->file_bytes = view.end;
    if (copy->error == 0) {
        copy->status = read_open(&view, codec, &evidence, copy);
        copy->error = evidence.error;
    }
    close(view.fd);
    if (copy->status != STATUS_OK) {
        free(copy->raw);
        copy->raw = NULL;
    }
}

/* Whether it is gone for good, so that it may be written anew: not what a lack of descriptors or
 * memory keeps from being read, nor what a newer version wrote. */
static bool is_lost(const struct copy *copy)
{
    switch (copy->status) {
    case STATUS_ERRNO:
        return copy->error == ENOENT || copy->error == EIO;
    case STATUS_CORRUPT_HEADER:
    case STATUS_CORRUPT_PAYLOAD:
    case STATUS_TRUNCATED:
    case STATUS_TOO_LARGE:
    case STATUS_NO_DICTIONARY:
        return true;
    default:
        return false;
    }
}

/* write_lock is held. Under another name until it is durable. Returns 0 or an errno. */
static int write_file(struct dictionaries *all, const char *name, struct iovec *parts, int count)
{
    int fd = openat(all->directory, DICTIONARY_UNNAMED,
                    O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return errno;
    int error = io_write(fd, parts, count, 0);
    if (error == 0 && fsync(fd) != 0)
        error = errno;
    close(fd);
    if (error == 0 && renameat(all->directory, DICTIONARY_UNNAMED, all->directory, name) != 0)
        error = errno;
    if (error == 0 && fsync(all->directory) != 0)
        error = errno;
    if (error)
        unlinkat(all->directory, DICTIONARY_UNNAMED, 0);
    return error;
}

/* write_lock is held. */
static enum status write_copy(struct dictionaries *all, uint32_t number, const char *suffix,
                              const uint8_t *raw, uint32_t raw_bytes, struct codec *codec,
                              struct evidence *evidence)
{
    char name[FILES_NAME_BYTES];
    uint8_t head[SEGMENT_HEADER_BYTES];
    uint8_t bytes[BLOCK_HEADER_BYTES];
    struct block_header header = {.chunks = 1};
    const uint8_t *payload;

    enum status status =
        codec_compress(codec, raw, raw_bytes, COPY_LEVEL, NULL, NULL, &header, &payload);
    if (status != STATUS_OK)
        return status;
    segment_header_encode(head, number);
    block_header_encode(bytes, &header, number, SEGMENT_HEADER_BYTES);
    struct iovec parts[] = {
        {head, sizeof head},
        {bytes, sizeof bytes},
        {(void *)(uintptr_t)payload, header.stored_bytes},
    };
    files_name(number, suffix, name);
    evidence->error = write_file(all, name, parts, 3);
    return evidence->error ? STATUS_ERRNO : STATUS_OK;
}

/* Writes copies[lost] anew, unless the dictionary was removed meanwhile. Who cannot leaves it. */
static void mend(struct dictionaries *all, uint32_t number, struct copy copies[COPIES], int lost,
                 struct codec *codec)
{
    char name[FILES_NAME_BYTES];
    struct evidence evidence;
    const struct copy *good = &copies[!lost];

    files_name(number, suffixes[!lost], name);
    pthread_mutex_lock(&all->write_lock);
    if (faccessat(all->directory, name, F_OK, 0) == 0 &&
        write_copy(all, number, suffixes[lost], good->raw, good->raw_bytes, codec, &evidence) ==
            STATUS_OK)
        copies[lost].status = STATUS_OK;
    pthread_mutex_unlock(&all->write_lock);
}

/* Of two that are bad: what may pass comes before what is lost. */
static enum status worst(const struct copy copies[COPIES], struct evidence *evidence)
{
    for (int i = 0; i < COPIES; i++)
        if (!is_lost(&copies[i])) {
            evidence->error = copies[i].error;
            return copies[i].status;
        }
    return STATUS_NO_DICTIONARY;
}

/* Both copies are looked at, so that the damage to one is mended while there is another. */
static enum status load(struct dictionaries *all, uint32_t number, struct evidence *evidence,
                        struct copy copies[COPIES], const struct copy **good)
{
    struct codec *codec = codec_borrow(all->codecs);

    *good = NULL;
    for (int i = 0; i < COPIES; i++)
        copies[i] = (struct copy){.status = STATUS_NO_MEMORY};
    if (codec == NULL)
        return STATUS_NO_MEMORY;
    for (int i = 0; i < COPIES; i++)
        read_copy(all, number, suffixes[i], codec, &copies[i]);
    for (int i = COPIES - 1; i >= 0; i--)
        if (copies[i].status == STATUS_OK)
            *good = &copies[i];
    for (int i = 0; *good && !all->read_only && i < COPIES; i++)
        if (is_lost(&copies[i]))
            mend(all, number, copies, i, codec);
    codec_return(all->codecs, codec);
    return *good ? STATUS_OK : worst(copies, evidence);
}

static void copies_free(struct copy copies[COPIES])
{
    for (int i = 0; i < COPIES; i++)
        free(copies[i].raw);
}

/* --- made ready ------------------------------------------------------------------------------- */

/* No level, of which zstd has some below 0. */
static const uint64_t TO_READ = INT64_MAX;

static enum status digest(struct dictionaries *all, uint32_t number, uint64_t use,
                          struct evidence *evidence, struct digested **made)
{
    struct copy copies[COPIES];
    const struct copy *good;

    enum status status = load(all, number, evidence, copies, &good);
    struct digested *fresh = status == STATUS_OK ? calloc(1, sizeof *fresh) : NULL;
    if (status == STATUS_OK && fresh == NULL)
        status = STATUS_NO_MEMORY;
    if (status != STATUS_OK)
        goto free_copies;
    size_t size = good->raw_bytes - 1;
    if (use == TO_READ)
        fresh->decoder = ZSTD_createDDict(good->raw + 1, size);
    else
        fresh->encoder = ZSTD_createCDict(good->raw + 1, size, (int)(int64_t)use);
    if (fresh->decoder == NULL && fresh->encoder == NULL) {
        free(fresh);
        status = STATUS_NO_MEMORY;
        goto free_copies;
    }
    *made = fresh;

free_copies:
    copies_free(copies);
    return status;
}

static enum status find_or_digest(struct dictionaries *all, uint32_t number, uint64_t use,
                                  struct evidence *evidence, struct digested **found)
{
    pthread_mutex_lock(&all->lock);
    *found = (struct digested *)lru_find(&all->digested, number, use);
    pthread_mutex_unlock(&all->lock);
    if (*found)
        return STATUS_OK;

    struct digested *fresh;
    enum status status = digest(all, number, use, evidence, &fresh);
    if (status != STATUS_OK)
        return status;
    pthread_mutex_lock(&all->lock);
    *found = (struct digested *)lru_find(&all->digested, number, use);
    if (*found == NULL) {
        lru_insert(&all->digested, &fresh->node, number, use);
        *found = fresh;
    }
    pthread_mutex_unlock(&all->lock);
    if (*found != fresh) /* another thread was faster */
        digested_free(fresh);
    return STATUS_OK;
}

enum status dictionaries_to_read(struct dictionaries *all, uint32_t number,
                                 struct evidence *evidence, struct digested **found)
{
    return find_or_digest(all, number, TO_READ, evidence, found);
}

enum status dictionaries_to_write(struct dictionaries *all, uint32_t number, int level,
                                  struct evidence *evidence, struct digested **found)
{
    return find_or_digest(all, number, (uint64_t)(int64_t)level, evidence, found);
}

void dictionaries_release(struct dictionaries *all, struct digested *digested)
{
    struct lru_node *victim = NULL;

    pthread_mutex_lock(&all->lock);
    if (lru_release(&all->digested, &digested->node)) {
        victim = &digested->node;
    } else if (all->digested.count > KEEP_DIGESTED) {
        victim = lru_oldest(&all->digested);
        if (victim)
            lru_unlink(&all->digested, victim);
    }
    pthread_mutex_unlock(&all->lock);
    if (victim)
        digested_free((struct digested *)victim);
}

/* --- all of them ------------------------------------------------------------------------------ */

/* Numbers of which there is a copy, in order, each once. *list is malloc'ed, or NULL. */
static enum status list_numbers(struct dictionaries *all, struct evidence *evidence,
                                struct dictionary_facts **list, size_t *count)
{
    struct store_segment *found[COPIES] = {NULL};
    size_t counts[COPIES] = {0};
    enum status status = STATUS_OK;

    *list = NULL;
    *count = 0;
    for (int i = 0; status == STATUS_OK && i < COPIES; i++)
        status = files_list(all->directory, suffixes[i], evidence, &found[i], &counts[i]);
    if (status != STATUS_OK || counts[0] + counts[1] == 0)
        goto free_found;
    *list = calloc(counts[0] + counts[1], sizeof **list);
    if (*list == NULL) {
        status = STATUS_NO_MEMORY;
        goto free_found;
    }
    for (size_t i = 0, j = 0; i < counts[0] || j < counts[1];) {
        uint64_t first = i < counts[0] ? found[0][i].number : UINT64_MAX;
        uint64_t second = j < counts[1] ? found[1][j].number : UINT64_MAX;
        uint64_t number = first < second ? first : second;
        i += first == number;
        j += second == number;
        if (number <= DICTIONARY_NUMBER_MAX)
            (*list)[(*count)++].number = (uint32_t)number;
    }

free_found:
    for (int i = 0; i < COPIES; i++)
        free(found[i]);
    return status;
}

enum status dictionaries_check(struct dictionaries *all, struct evidence *evidence,
                               struct dictionary_facts **list, size_t *count)
{
    enum status status = list_numbers(all, evidence, list, count);
    for (size_t i = 0; status == STATUS_OK && i < *count; i++) {
        struct dictionary_facts *facts = &(*list)[i];
        struct copy copies[COPIES];
        const struct copy *good;
        status = load(all, facts->number, evidence, copies, &good);
        if (status == STATUS_NO_DICTIONARY)
            status = STATUS_OK;
        if (good)
            facts->kind = good->raw[0];
        for (int j = 0; j < COPIES; j++) {
            facts->good_copies += copies[j].status == STATUS_OK;
            facts->file_bytes += copies[j].file_bytes;
        }
        copies_free(copies);
    }
    if (status != STATUS_OK) {
        free(*list);
        *list = NULL;
    }
    return status;
}

enum status dictionaries_bytes(struct dictionaries *all, uint32_t number, struct evidence *evidence,
                               uint8_t **bytes, size_t *size)
{
    struct copy copies[COPIES];
    const struct copy *good;

    enum status status = load(all, number, evidence, copies, &good);
    *bytes = good ? malloc(good->raw_bytes) : NULL;
    if (*bytes) {
        *size = good->raw_bytes - 1;
        memcpy(*bytes, good->raw + 1, *size);
    } else if (good) {
        status = STATUS_NO_MEMORY;
    }
    copies_free(copies);
    return status;
}

/* write_lock is held. */
static enum status highest(struct dictionaries *all, struct evidence *evidence, uint32_t *number)
{
    struct dictionary_facts *list;
    size_t count;

    enum status status = list_numbers(all, evidence, &list, &count);
    if (status == STATUS_OK)
        *number = count ? list[count - 1].number : 0;
    free(list);
    return status;
}

static void unlink_copies(struct dictionaries *all, uint32_t number)
{
    char name[FILES_NAME_BYTES];
    for (int i = 0; i < COPIES; i++) {
        files_name(number, suffixes[i], name);
        unlinkat(all->directory, name, 0);
    }
}

enum status dictionaries_add(struct dictionaries *all, uint8_t kind, const uint8_t *bytes,
                             size_t size, struct evidence *evidence, uint32_t *number)
{
    enum status status = STATUS_NO_MEMORY;

    if (size > DICTIONARY_MAX)
        return STATUS_TOO_LARGE;
    uint8_t *raw = malloc(1 + size);
    struct codec *codec = codec_borrow(all->codecs);
    if (raw == NULL || codec == NULL)
        goto free_raw;
    raw[0] = kind;
    memcpy(raw + 1, bytes, size);
    status = dictionary_check(raw, 1 + size);
    if (status != STATUS_OK)
        goto free_raw;
    pthread_mutex_lock(&all->write_lock);
    status = highest(all, evidence, number);
    if (status == STATUS_OK && *number == DICTIONARY_NUMBER_MAX) {
        evidence->error = EOVERFLOW;
        status = STATUS_ERRNO;
    }
    ++*number;
    for (int i = 0; status == STATUS_OK && i < COPIES; i++) {
        status = write_copy(all, *number, suffixes[i], raw, (uint32_t)(1 + size), codec, evidence);
        if (status != STATUS_OK)
            unlink_copies(all, *number);
    }
    pthread_mutex_unlock(&all->write_lock);

free_raw:
    if (codec)
        codec_return(all->codecs, codec);
    free(raw);
    return status;
}

enum status dictionaries_remove(struct dictionaries *all, uint32_t number,
                                struct evidence *evidence)
{
    uint32_t last = 0;

    pthread_mutex_lock(&all->write_lock);
    enum status status = highest(all, evidence, &last);
    if (status == STATUS_OK && number >= last) {
        evidence->error = EBUSY;
        status = STATUS_ERRNO;
    }
    if (status == STATUS_OK)
        unlink_copies(all, number);
    pthread_mutex_unlock(&all->write_lock);
    return status;
}
