#define _GNU_SOURCE
#include "check.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

const char *check_directory(void)
{
    const char *parent = getenv("TMPDIR");
    char *path;
    CHECK(asprintf(&path, "%s/chunkstore-XXXXXX", parent ? parent : "/tmp") > 0);
    CHECK(mkdtemp(path) != NULL);
    return path;
}

void check_remove(const char *directory)
{
    DIR *listing = opendir(directory);
    CHECK(listing != NULL);
    for (struct dirent *entry; (entry = readdir(listing));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            CHECK(unlinkat(dirfd(listing), entry->d_name, 0) == 0);
    closedir(listing);
    CHECK(rmdir(directory) == 0);
    free((void *)(uintptr_t)directory);
}
