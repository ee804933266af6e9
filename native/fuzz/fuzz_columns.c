/* Arbitrary bytes as columns; and as pages, which come back or are said not to. */
#include "columns.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t group[COLUMNS_GROUP_BYTES], again[COLUMNS_GROUP_BYTES];
    static uint8_t columns[COLUMNS_BYTES_MAX];

    columns_join(data, size, again);
    memset(group, 0, sizeof group);
    memcpy(group, data, size < sizeof group ? size : sizeof group);
    size_t split = columns_split(group, columns);
    if (split > sizeof columns)
        abort();
    if (split > 0)
        columns_join(columns, split, again);
    return 0;
}
