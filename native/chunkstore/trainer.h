/* Training dictionaries, and what one is worth. */
#ifndef AGENTFS_TRAINER_H
#define AGENTFS_TRAINER_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

/*
 * Makes a dictionary of at most capacity bytes of samples that lie one behind the other. *size is 0
 * when there are too few of them or nothing in common. Some 100 ms of CPU a MiB, in one go.
 */
enum status trainer_train(const uint8_t *samples, const size_t *sizes, size_t count, uint8_t *into,
                          size_t capacity, size_t *size);

/* Bytes that samples take, each compressed by itself; dictionary may be NULL. */
enum status trainer_measure(const uint8_t *samples, const size_t *sizes, size_t count, int level,
                            const uint8_t *dictionary, size_t dictionary_size, uint64_t *stored);

#endif
