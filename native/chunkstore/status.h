/* What went wrong, and where: every function of the store that can fail returns a status. */
#ifndef AGENTFS_STATUS_H
#define AGENTFS_STATUS_H

#include <stdint.h>

enum status {
    STATUS_OK = 0,
    STATUS_ERRNO,           /* evidence.error says which */
    STATUS_NO_MEMORY,       /* an allocation failed */
    STATUS_CORRUPT_HEADER,  /* segment or block header breaks a rule of docs/FORMAT.md */
    STATUS_CORRUPT_PAYLOAD, /* payload CRC, or the payload does not decode to its raw bytes */
    STATUS_TRUNCATED,       /* the file ends before the header or payload does */
    STATUS_TOO_LARGE,       /* more than BLOCK_RAW_MAX in one block */
    STATUS_OUTSIDE,         /* a piece reaches beyond the raw block */
    STATUS_NOT_CACHED,      /* asked for cached blocks only, and one is not; not a fault */
    STATUS_NEWER,           /* valid, but of a version this code does not know */
    STATUS_NO_DICTIONARY,   /* a block needs one of which no copy can be read */
    STATUS_STOPPED,         /* background work was told to stop; nothing was written */
};

/* Filled in when the status is not STATUS_OK, as far as it applies. */
struct evidence {
    int error; /* errno */
    uint64_t segment;
    uint64_t offset; /* of the block; 0 for the segment header */
};

/* A short English phrase, never NULL. */
const char *status_reason(enum status status);

#endif
