/*
 * What differs between two versions of a page: runs of bytes, each after its place and its length,
 * 2 bytes each, in ascending order.
 */
#ifndef AGENTFS_DIFFERENCE_H
#define AGENTFS_DIFFERENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pages.h"

enum { DIFFERENCE_BYTES_MAX = PAGES_BYTES * 3 / 4 };

/* Makes `page` of `base`. Returns its size, or DIFFERENCE_BYTES_MAX + 1 if it were larger. */
size_t difference_make(const uint8_t base[PAGES_BYTES], const uint8_t page[PAGES_BYTES],
                       uint8_t difference[DIFFERENCE_BYTES_MAX]);

/* Changes a page as it says; false, and the page is worth nothing: it says nothing that makes
 * sense. */
bool difference_apply(uint8_t page[PAGES_BYTES], const uint8_t *difference, size_t size);

#endif
