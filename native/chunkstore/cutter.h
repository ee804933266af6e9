/* Content-defined chunking. docs/FORMAT.md, "Cutting", defines every cut point. */
#ifndef AGENTFS_CUTTER_H
#define AGENTFS_CUTTER_H

#include <stddef.h>
#include <stdint.h>

enum cutter_id {
    CUTTER_SMALL = 1,
    CUTTER_LARGE = 2,
    CUTTER_HUGE = 3,
};

enum { CUTTER_WINDOW_BYTES = 64 };

/* Released sets never change: a new idea gets a new number. */
struct cutter_params {
    uint32_t id;
    uint32_t min_bytes; /* >= CUTTER_WINDOW_BYTES */
    uint32_t avg_bytes; /* a power of two */
    uint32_t max_bytes;
};

/* All sets, in the order of their numbers. */
extern const struct cutter_params cutter_sets[];
extern const size_t cutter_set_count;

/* NULL when there is no set of that number. */
const struct cutter_params *cutter_params(uint32_t id);

/* The set for a file of this size. A file that grows over a threshold is cut anew. */
const struct cutter_params *cutter_params_for_size(uint64_t size_bytes);

/* Length of the chunk at the start of data: 1 .. max_bytes, or 0 when there is no data. */
size_t cutter_next(const struct cutter_params *params, const uint8_t *data, size_t size);

/* How many chunks size bytes make at most. */
size_t cutter_most_chunks(const struct cutter_params *params, size_t size);

/* Cuts all of data; lengths has room for cutter_most_chunks. Returns the number of chunks. */
size_t cutter_cut(const struct cutter_params *params, const uint8_t *data, size_t size,
                  uint32_t *lengths);

#endif
