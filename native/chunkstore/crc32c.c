#include "crc32c.h"

#include <string.h>

#include "bytes.h"

static const uint32_t POLYNOMIAL = 0x82F63B78; /* 0x1EDC6F41 reflected */

/*
 * All tables are written once, before main().
 * sliced[k][b]: the CRC register after byte b and k zero bytes, for eight bytes a turn.
 * zeros[k][b]: what LANE_BYTES zero bytes make of a register that has b as its k-th byte.
 */
enum { LANE_BYTES = 1024 };
static uint32_t sliced[8][256];
static uint32_t zeros[4][256];

static uint32_t shift_byte(uint32_t crc)
{
    return (crc >> 8) ^ sliced[0][crc & 0xFF];
}

__attribute__((constructor)) static void fill_tables(void)
{
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t crc = b;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (crc & 1 ? POLYNOMIAL : 0);
        sliced[0][b] = crc;
    }
    for (int k = 1; k < 8; k++)
        for (uint32_t b = 0; b < 256; b++)
            sliced[k][b] = shift_byte(sliced[k - 1][b]);

    /* The map is linear, so the images of 32 single bits give all of it. */
    uint32_t image[32];
    for (int bit = 0; bit < 32; bit++) {
        image[bit] = UINT32_C(1) << bit;
        for (int i = 0; i < LANE_BYTES; i++)
            image[bit] = shift_byte(image[bit]);
    }
    for (int k = 0; k < 4; k++)
        for (uint32_t b = 0; b < 256; b++)
            for (int bit = 0; bit < 8; bit++)
                if (b >> bit & 1)
                    zeros[k][b] ^= image[8 * k + bit];
}

uint32_t crc32c_portable(uint32_t crc, const void *data, size_t size)
{
    const uint8_t *at = data;
    uint32_t r = ~crc;

    for (; size >= 8; size -= 8, at += 8) {
        uint64_t w = load64(at) ^ r;
        r = sliced[7][w & 0xFF] ^ sliced[6][w >> 8 & 0xFF] ^ sliced[5][w >> 16 & 0xFF] ^
            sliced[4][w >> 24 & 0xFF] ^ sliced[3][w >> 32 & 0xFF] ^ sliced[2][w >> 40 & 0xFF] ^
            sliced[1][w >> 48 & 0xFF] ^ sliced[0][w >> 56];
    }
    for (; size > 0; size--)
        r = shift_byte(r ^ *at++);
    return ~r;
}

#if defined(__x86_64__)
#include <nmmintrin.h>
#define TARGET      __attribute__((target("sse4.2")))
#define STEP8(r, w) ((uint32_t)_mm_crc32_u64(r, w))
#define STEP1(r, b) _mm_crc32_u8(r, b)

bool crc32c_has_hardware(void)
{
    return __builtin_cpu_supports("sse4.2");
}

#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#define TARGET
#define STEP8(r, w) __crc32cd(r, w)
#define STEP1(r, b) __crc32cb(r, b)

bool crc32c_has_hardware(void)
{
    return true;
}

#endif

#ifdef TARGET

static uint32_t shift_lane(uint32_t r)
{
    return zeros[0][r & 0xFF] ^ zeros[1][r >> 8 & 0xFF] ^ zeros[2][r >> 16 & 0xFF] ^
           zeros[3][r >> 24];
}

/*
 * The instruction takes three cycles and one can start in each, so three lanes run side by side
 * (Gopal et al., "Fast CRC computation for iSCSI polynomial using CRC32 instruction", Intel 2011).
 */
TARGET uint32_t crc32c_hardware(uint32_t crc, const void *data, size_t size)
{
    const uint8_t *at = data;
    uint32_t r = ~crc;

    for (; size >= 3 * LANE_BYTES; size -= 3 * LANE_BYTES, at += 3 * LANE_BYTES) {
        uint32_t second = 0;
        uint32_t third = 0;
        for (size_t i = 0; i < LANE_BYTES; i += 8) {
            r = STEP8(r, load64(at + i));
            second = STEP8(second, load64(at + LANE_BYTES + i));
            third = STEP8(third, load64(at + 2 * LANE_BYTES + i));
        }
        r = shift_lane(shift_lane(r) ^ second) ^ third;
    }
    for (; size >= 8; size -= 8, at += 8)
        r = STEP8(r, load64(at));
    for (; size > 0; size--)
        r = STEP1(r, *at++);
    return ~r;
}

#else

bool crc32c_has_hardware(void)
{
    return false;
}

uint32_t crc32c_hardware(uint32_t crc, const void *data, size_t size)
{
    return crc32c_portable(crc, data, size);
}

#endif

uint32_t crc32c(uint32_t crc, const void *data, size_t size)
{
    return crc32c_has_hardware() ? crc32c_hardware(crc, data, size)
                                 : crc32c_portable(crc, data, size);
}
