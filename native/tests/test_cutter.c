#include <string.h>

#include "check.h"
#include "cutter.h"

enum { SIZE = 6 << 20 };

static uint8_t *data;
static uint32_t lengths[SIZE / 64];

static void lengths_keep_the_bounds_and_add_up(void)
{
    check_fill(data, SIZE, 1);
    for (size_t k = 0; k < cutter_set_count; k++) {
        const struct cutter_params *set = &cutter_sets[k];
        size_t count = cutter_cut(set, data, SIZE, lengths);
        size_t sum = 0;
        CHECK(count <= cutter_most_chunks(set, SIZE));
        for (size_t i = 0; i < count; i++) {
            CHECK(lengths[i] <= set->max_bytes);
            CHECK(i == count - 1 || lengths[i] >= set->min_bytes);
            sum += lengths[i];
        }
        CHECK(sum == SIZE);
        CHECK(SIZE / count > set->avg_bytes / 2 && SIZE / count < 2 * set->avg_bytes);
    }
}

/* By the definition in docs/FORMAT.md: hash each position from its own 64 bytes. */
static uint64_t gear_of(uint8_t byte)
{
    uint64_t state = UINT64_C(0x6167656E74667332);
    uint64_t value = 0;
    for (int i = 0; i <= byte; i++)
        value = check_random(&state);
    return value;
}

static size_t slow_next(const struct cutter_params *set, const uint64_t *gear, const uint8_t *bytes,
                        size_t size)
{
    int bits = __builtin_ctz(set->avg_bytes);
    for (size_t p = set->min_bytes; p < size && p < set->max_bytes; p++) {
        uint64_t hash = 0;
        for (size_t k = 0; k < 64; k++)
            hash += gear[bytes[p - 1 - k]] << k;
        if (hash < UINT64_C(1) << (64 - bits + (p < set->avg_bytes ? -2 : 2)))
            return p;
    }
    return size < set->max_bytes ? size : set->max_bytes;
}

static void cuts_are_those_of_the_definition(void)
{
    uint64_t gear[256];
    for (int b = 0; b < 256; b++)
        gear[b] = gear_of((uint8_t)b);
    check_fill_text(data, SIZE, 3);
    for (size_t k = 0; k < cutter_set_count; k++) {
        const struct cutter_params *set = &cutter_sets[k];
        size_t at = 0;
        for (int i = 0; i < 4 && at < SIZE; i++) {
            size_t got = cutter_next(set, data + at, SIZE - at);
            CHECK(got == slow_next(set, gear, data + at, SIZE - at));
            at += got;
        }
    }
    const struct cutter_params *small = cutter_params(CUTTER_SMALL);
    for (size_t size = 1; size < 40000; size += 379)
        CHECK(cutter_next(small, data, size) == slow_next(small, gear, data, size));
}

static void cutting_from_a_boundary_gives_the_same_cuts(void)
{
    static uint32_t rest[SIZE / 64];
    check_fill(data, SIZE, 4);
    const struct cutter_params *set = cutter_params(CUTTER_SMALL);
    size_t count = cutter_cut(set, data, SIZE, lengths);
    size_t at = 0;
    for (size_t i = 0; i < count; i += 1) {
        if (i % 97 == 0) {
            size_t left = cutter_cut(set, data + at, SIZE - at, rest);
            CHECK(left == count - i);
            CHECK(memcmp(rest, lengths + i, left * sizeof *rest) == 0);
        }
        at += lengths[i];
    }
}

static void runs_of_one_byte_become_chunks_of_max_bytes(void)
{
    for (int byte = 0; byte < 256; byte++) {
        memset(data, byte, 2 << 20);
        for (size_t k = 0; k < cutter_set_count; k++)
            CHECK(cutter_next(&cutter_sets[k], data, 2 << 20) == cutter_sets[k].max_bytes);
    }
}

static void sets_are_chosen_by_size(void)
{
    CHECK(cutter_params_for_size(0)->id == CUTTER_SMALL);
    CHECK(cutter_params_for_size((16 << 20) - 1)->id == CUTTER_SMALL);
    CHECK(cutter_params_for_size(16 << 20)->id == CUTTER_LARGE);
    CHECK(cutter_params_for_size((1 << 30) - 1)->id == CUTTER_LARGE);
    CHECK(cutter_params_for_size(1 << 30)->id == CUTTER_HUGE);
    CHECK(cutter_params_for_size(UINT64_MAX)->id == CUTTER_HUGE);
    CHECK(cutter_params(0) == NULL && cutter_params(4) == NULL);
}

static void nothing_is_cut_into_nothing(void)
{
    CHECK(cutter_cut(cutter_params(CUTTER_SMALL), data, 0, lengths) == 0);
    CHECK(cutter_cut(cutter_params(CUTTER_SMALL), data, 1, lengths) == 1 && lengths[0] == 1);
}

int main(void)
{
    data = malloc(SIZE);
    CHECK(data != NULL);
    RUN(lengths_keep_the_bounds_and_add_up);
    RUN(cuts_are_those_of_the_definition);
    RUN(cutting_from_a_boundary_gives_the_same_cuts);
    RUN(runs_of_one_byte_become_chunks_of_max_bytes);
    RUN(sets_are_chosen_by_size);
    RUN(nothing_is_cut_into_nothing);
    free(data);
    return 0;
}
