/* CRC32C (Castagnoli): in hardware where the CPU has it, else by table. */
#ifndef AGENTFS_CRC32C_H
#define AGENTFS_CRC32C_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* crc is that of the bytes before, 0 to begin with: crc32c(crc32c(0, a), b) is the CRC of ab. */
uint32_t crc32c(uint32_t crc, const void *data, size_t size);

/* The two ways, for tests. crc32c_hardware must not be called unless crc32c_has_hardware. */
uint32_t crc32c_portable(uint32_t crc, const void *data, size_t size);
uint32_t crc32c_hardware(uint32_t crc, const void *data, size_t size);
bool crc32c_has_hardware(void);

#endif
