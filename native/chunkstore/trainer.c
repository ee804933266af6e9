#include "trainer.h"

#include <limits.h>
#include <stdlib.h>
#include <zdict.h>
#include <zstd.h>
#include <zstd_errors.h>

enum status trainer_train(const uint8_t *samples, const size_t *sizes, size_t count, uint8_t *into,
                          size_t capacity, size_t *size)
{
    *size = 0;
    if (count > UINT_MAX)
        return STATUS_TOO_LARGE;
    size_t got = ZDICT_trainFromBuffer(into, capacity, samples, sizes, (unsigned)count);
    if (!ZDICT_isError(got)) {
        *size = got;
        return STATUS_OK;
    }
    /* The other errors all say that these samples make none. */
    return ZSTD_getErrorCode(got) == ZSTD_error_memory_allocation ? STATUS_NO_MEMORY : STATUS_OK;
}

enum status trainer_measure(const uint8_t *samples, const size_t *sizes, size_t count, int level,
                            const uint8_t *dictionary, size_t dictionary_size, uint64_t *stored)
{
    enum status status = STATUS_NO_MEMORY;
    size_t largest = 0;

    *stored = 0;
    for (size_t i = 0; i < count; i++)
        largest = sizes[i] > largest ? sizes[i] : largest;
    size_t capacity = ZSTD_compressBound(largest);
    uint8_t *out = malloc(capacity);
    ZSTD_CCtx *compressor = ZSTD_createCCtx();
    ZSTD_CDict *encoder = dictionary ? ZSTD_createCDict(dictionary, dictionary_size, level) : NULL;
    if (out == NULL || compressor == NULL || (dictionary && encoder == NULL))
        goto free_all;
    ZSTD_CCtx_setParameter(compressor, ZSTD_c_compressionLevel, level);
    ZSTD_CCtx_setParameter(compressor, ZSTD_c_dictIDFlag, 0);
    ZSTD_CCtx_refCDict(compressor, encoder);
    for (size_t i = 0; i < count; i++) {
        size_t size = ZSTD_compress2(compressor, out, capacity, samples, sizes[i]);
        if (ZSTD_isError(size))
            goto free_all;
        *stored += size < sizes[i] ? size : sizes[i];
        samples += sizes[i];
    }
    status = STATUS_OK;

free_all:
    ZSTD_freeCDict(encoder);
    ZSTD_freeCCtx(compressor);
    free(out);
    return status;
}
