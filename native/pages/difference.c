#include "difference.h"

#include <string.h>

#include "bytes.h"

enum {
    RUN_HEADER_BYTES = 4,
    GAP_MAX = RUN_HEADER_BYTES, /* equal bytes that are cheaper within a run than a run more */
    AT_ONCE = 8,
};

/* From where on the two differ, or PAGES_BYTES. */
static size_t next_difference(const uint8_t *base, const uint8_t *page, size_t at)
{
    while (at + AT_ONCE <= PAGES_BYTES && load64(base + at) == load64(page + at))
        at += AT_ONCE;
    while (at < PAGES_BYTES && base[at] == page[at])
        at++;
    return at;
}

static size_t end_of_run(const uint8_t *base, const uint8_t *page, size_t at)
{
    size_t end = at;

    for (; at < PAGES_BYTES && at <= end + GAP_MAX; at++) {
        if (base[at] != page[at])
            end = at + 1;
    }
    return end;
}

size_t difference_make(const uint8_t base[PAGES_BYTES], const uint8_t page[PAGES_BYTES],
                       uint8_t difference[DIFFERENCE_BYTES_MAX])
{
    size_t size = 0, end;

    for (size_t at = next_difference(base, page, 0); at < PAGES_BYTES;
         at = next_difference(base, page, end)) {
        end = end_of_run(base, page, at);
        if (size + RUN_HEADER_BYTES + (end - at) > DIFFERENCE_BYTES_MAX)
            return DIFFERENCE_BYTES_MAX + 1;
        store16(difference + size, (uint16_t)at);
        store16(difference + size + 2, (uint16_t)(end - at));
        memcpy(difference + size + RUN_HEADER_BYTES, page + at, end - at);
        size += RUN_HEADER_BYTES + (end - at);
    }
    return size;
}

bool difference_apply(uint8_t page[PAGES_BYTES], const uint8_t *difference, size_t size)
{
    size_t done = 0;

    while (size - done >= RUN_HEADER_BYTES) {
        size_t at = load16(difference + done);
        size_t length = load16(difference + done + 2);
        done += RUN_HEADER_BYTES;
        if (at > PAGES_BYTES || length > PAGES_BYTES - at || length > size - done)
            return false;
        memcpy(page + at, difference + done, length);
        done += length;
    }
    return done == size;
}
