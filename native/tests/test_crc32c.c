#include <string.h>

#include "check.h"
#include "crc32c.h"

/* RFC 3720, B.4, and the usual check value. */
static void known_vectors(void)
{
    uint8_t bytes[32];
    CHECK(crc32c(0, "", 0) == 0);
    CHECK(crc32c(0, "123456789", 9) == 0xE3069283);
    memset(bytes, 0, sizeof bytes);
    CHECK(crc32c(0, bytes, 32) == 0x8A9136AA);
    memset(bytes, 0xFF, sizeof bytes);
    CHECK(crc32c(0, bytes, 32) == 0x62A8AB43);
    for (int i = 0; i < 32; i++)
        bytes[i] = (uint8_t)i;
    CHECK(crc32c(0, bytes, 32) == 0x46DD794E);
    for (int i = 0; i < 32; i++)
        bytes[i] = (uint8_t)(31 - i);
    CHECK(crc32c(0, bytes, 32) == 0x113FDB5C);
}

/* One bit at a time: the definition. */
static uint32_t bitwise(const uint8_t *bytes, size_t size)
{
    uint32_t crc = ~UINT32_C(0);
    for (size_t i = 0; i < size; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (crc & 1 ? 0x82F63B78 : 0);
    }
    return ~crc;
}

static void both_ways_agree_with_the_definition(void)
{
    enum { MOST = 10000 };
    uint8_t *bytes = malloc(MOST + 8);
    CHECK(bytes != NULL);
    check_fill(bytes, MOST + 8, 1);
    for (size_t size = 0; size <= MOST; size += size < 80 ? 1 : 509) {
        for (size_t skew = 0; skew < 8; skew += 3) {
            uint32_t expected = bitwise(bytes + skew, size);
            CHECK(crc32c_portable(0, bytes + skew, size) == expected);
            if (crc32c_has_hardware())
                CHECK(crc32c_hardware(0, bytes + skew, size) == expected);
        }
    }
    free(bytes);
}

static void a_crc_can_be_continued(void)
{
    uint8_t bytes[7000];
    check_fill(bytes, sizeof bytes, 2);
    uint32_t whole = crc32c(0, bytes, sizeof bytes);
    for (size_t at = 0; at <= sizeof bytes; at += 617) {
        uint32_t first = crc32c(0, bytes, at);
        CHECK(crc32c(first, bytes + at, sizeof bytes - at) == whole);
        CHECK(crc32c_portable(first, bytes + at, sizeof bytes - at) == whole);
    }
}

int main(void)
{
    RUN(known_vectors);
    RUN(both_ways_agree_with_the_definition);
    RUN(a_crc_can_be_continued);
    return 0;
}
