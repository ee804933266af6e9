#include "status.h"

const char *status_reason(enum status status)
{
    switch (status) {
    case STATUS_OK:
        return "ok";
    case STATUS_ERRNO:
        return "system call failed";
    case STATUS_NO_MEMORY:
        return "out of memory";
    case STATUS_CORRUPT_HEADER:
        return "header is damaged";
    case STATUS_CORRUPT_PAYLOAD:
        return "payload is damaged";
    case STATUS_TRUNCATED:
        return "file is truncated";
    case STATUS_TOO_LARGE:
        return "block is too large";
    case STATUS_OUTSIDE:
        return "piece reaches beyond its block";
    case STATUS_NOT_CACHED:
        return "block is not cached";
    case STATUS_NEWER:
        return "written by a newer version";
    case STATUS_NO_DICTIONARY:
        return "its dictionary is lost";
    case STATUS_STOPPED:
        return "background work was stopped";
    }
    return "unknown status";
}
