#define _GNU_SOURCE
#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io.h"

void files_name(uint64_t number, const char *suffix, char *name)
{
    snprintf(name, FILES_NAME_BYTES, "%016" PRIx64 "%s", number, suffix);
}

uint64_t files_number(const char *name, const char *suffix)
{
    uint64_t number = 0;
    size_t digits = strspn(name, "0123456789abcdef");
    if (digits != SEGMENT_NAME_DIGITS || strcmp(name + digits, suffix) != 0)
        return 0;
    sscanf(name, "%16" SCNx64, &number);
    return number > SEGMENT_NUMBER_MAX ? 0 : number;
}

static int by_number(const void *left, const void *right)
{
    const struct store_segment *a = left;
    const struct store_segment *b = right;
    return (a->number > b->number) - (a->number < b->number);
}

/* Opens the directory anew: dup() would share the position of the listing with other threads. */
static DIR *open_listing(int directory)
{
    int fd = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    DIR *listing = fdopendir(fd);
    if (listing == NULL)
        close(fd);
    return listing;
}

enum status files_list(int directory, const char *suffix, struct evidence *evidence,
                       struct store_segment **segments, size_t *count)
{
    enum status status = STATUS_OK;
    struct store_segment *list = NULL;
    size_t used = 0;
    size_t room = 0;

    *evidence = (struct evidence){0};
    DIR *listing = open_listing(directory);
    if (listing == NULL)
        goto failed;
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(listing);
        if (entry == NULL && errno)
            goto failed;
        if (entry == NULL)
            break;
        struct stat facts;
        uint64_t number = files_number(entry->d_name, suffix);
        if (number == 0)
            continue;
        if (fstatat(directory, entry->d_name, &facts, AT_SYMLINK_NOFOLLOW) != 0) {
            if (errno == ENOENT) /* removed since */
                continue;
            goto failed;
        }
        if (!S_ISREG(facts.st_mode))
            continue;
        if (used == room) {
            room = room ? 2 * room : 64;
            struct store_segment *grown = realloc(list, room * sizeof *list);
            if (grown == NULL) {
                status = STATUS_NO_MEMORY;
                goto free_list;
            }
            list = grown;
        }
        list[used++] = (struct store_segment){number, (uint64_t)facts.st_size};
    }
    closedir(listing);
    if (used > 1)
        qsort(list, used, sizeof *list, by_number);
    *segments = list;
    *count = used;
    return STATUS_OK;

failed:
    evidence->error = errno;
    status = STATUS_ERRNO;
free_list:
    if (listing)
        closedir(listing);
    free(list);
    return status;
}

bool files_init(struct segment_files *files, int directory, size_t limit)
{
    files->directory = directory;
    files->limit = limit;
    if (!lru_init(&files->open, limit))
        return false;
    pthread_mutex_init(&files->lock, NULL);
    return true;
}

static void file_free(struct segment_file *file)
{
    close(file->fd);
    free(file);
}

static void forget_node(struct lru_node *node, void *context)
{
    if (lru_unlink(context, node))
        file_free((struct segment_file *)node);
}

void files_free(struct segment_files *files)
{
    lru_each(&files->open, forget_node, &files->open);
    lru_free(&files->open);
    pthread_mutex_destroy(&files->lock);
}

/* Owns fd from here on, also when it fails. */
static struct segment_file *file_new(uint64_t number, int fd)
{
    struct segment_file *file = calloc(1, sizeof *file);
    if (file == NULL) {
        close(fd);
        return NULL;
    }
    file->fd = fd;
    file->number = number;
    return file;
}

static struct segment_file *find(struct segment_files *files, uint64_t number)
{
    pthread_mutex_lock(&files->lock);
    struct lru_node *node = lru_find(&files->open, number, 0);
    pthread_mutex_unlock(&files->lock);
    return (struct segment_file *)node;
}

/* Files the new one, or frees it and shares the one that another thread filed first. */
static struct segment_file *share(struct segment_files *files, struct segment_file *file)
{
    pthread_mutex_lock(&files->lock);
    struct lru_node *node = lru_find(&files->open, file->number, 0);
    if (node == NULL) {
        lru_insert(&files->open, &file->node, file->number, 0);
        node = &file->node;
    }
    pthread_mutex_unlock(&files->lock);
    if (node != &file->node)
        file_free(file);
    return (struct segment_file *)node;
}

/* A removal that came between opening and filing did not find it in the table. */
static void forget_if_removed(struct segment_files *files, const struct segment_file *file)
{
    struct stat facts;
    if (fstat(file->fd, &facts) == 0 && facts.st_nlink == 0)
        files_forget(files, file->number);
}

static enum status open_checked(struct segment_files *files, uint64_t number, int flags,
                                struct evidence *evidence, struct segment_file **file)
{
    char name[FILES_NAME_BYTES];
    struct segment_view view = {.number = number};
    enum status status = STATUS_ERRNO;

    *evidence = (struct evidence){.segment = number};
    files_name(number, SEGMENT_SUFFIX, name);
    view.fd = openat(files->directory, name, flags | O_CLOEXEC | O_NOFOLLOW);
    if (view.fd < 0) {
        evidence->error = errno;
        return STATUS_ERRNO;
    }
    int error = io_size(view.fd, &view.end);
    if (error) {
        evidence->error = error;
        goto close_fd;
    }
    status = segment_check(&view, evidence);
    /* To read it takes no segment header: each block says itself where it belongs. */
    bool may_be_read = status == STATUS_CORRUPT_HEADER && (flags & O_ACCMODE) == O_RDONLY;
    if (status != STATUS_OK && !may_be_read)
        goto close_fd;
    struct segment_file *fresh = file_new(number, view.fd);
    if (fresh == NULL)
        return STATUS_NO_MEMORY;
    *file = share(files, fresh);
    forget_if_removed(files, *file);
    return STATUS_OK;

close_fd:
    close(view.fd);
    return status;
}

enum status files_open(struct segment_files *files, uint64_t number, struct evidence *evidence,
                       struct segment_file **file)
{
    *file = find(files, number);
    return *file ? STATUS_OK : open_checked(files, number, O_RDONLY, evidence, file);
}

enum status files_open_tail(struct segment_files *files, uint64_t number, struct evidence *evidence,
                            struct segment_file **file)
{
    return open_checked(files, number, O_RDWR, evidence, file);
}

/* Fails rather than replace a file, where the file system can tell. */
static int rename_new(int directory, const char *from, const char *to)
{
    if (renameat2(directory, from, directory, to, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL || renameat(directory, from, directory, to) != 0)
        return errno;
    return 0;
}

/*
 * Under another name until it has its header and is filed. So whoever sees the name shares this
 * descriptor, which can be written to, and never meets half a header.
 */
enum status files_create(struct segment_files *files, uint64_t number, struct evidence *evidence,
                         struct segment_file **file)
{
    char name[FILES_NAME_BYTES];
    uint8_t header[SEGMENT_HEADER_BYTES];
    struct iovec part = {header, sizeof header};
    enum status status = STATUS_ERRNO;

    *evidence = (struct evidence){.segment = number};
    files_name(number, SEGMENT_SUFFIX, name);
    int fd = openat(files->directory, SEGMENT_UNNAMED,
                    O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        evidence->error = errno;
        return STATUS_ERRNO;
    }
    segment_header_encode(header, number);
    evidence->error = io_write(fd, &part, 1, 0);
    if (evidence->error) {
        close(fd);
        goto unlink;
    }
    struct segment_file *fresh = file_new(number, fd);
    if (fresh == NULL) {
        status = STATUS_NO_MEMORY;
        goto unlink;
    }
    *file = share(files, fresh);
    evidence->error = rename_new(files->directory, SEGMENT_UNNAMED, name);
    if (evidence->error == 0)
        return STATUS_OK;
    files_forget(files, number);
    files_release(files, *file);

unlink:
    unlinkat(files->directory, SEGMENT_UNNAMED, 0);
    return status;
}

void files_release(struct segment_files *files, struct segment_file *file)
{
    struct lru_node *victim = NULL;

    pthread_mutex_lock(&files->lock);
    if (lru_release(&files->open, &file->node)) {
        victim = &file->node;
    } else if (files->open.count > files->limit) {
        victim = lru_oldest(&files->open);
        if (victim)
            lru_unlink(&files->open, victim);
    }
    pthread_mutex_unlock(&files->lock);
    if (victim)
        file_free((struct segment_file *)victim);
}

void files_forget(struct segment_files *files, uint64_t number)
{
    pthread_mutex_lock(&files->lock);
    struct lru_node *node = lru_find(&files->open, number, 0);
    bool last = false;
    if (node) {
        lru_unlink(&files->open, node);
        last = lru_release(&files->open, node);
    }
    pthread_mutex_unlock(&files->lock);
    if (last)
        file_free((struct segment_file *)node);
}
