"""Content-defined chunking as docs/FORMAT.md defines it, slow and obvious."""

from itertools import islice

WINDOW = 64
GEAR_SEED = 0x6167656E74667332
MASK = 2**64 - 1

# number -> (min, avg, max) bytes
SETS = {
    1: (1024, 4096, 16384),
    2: (16384, 65536, 262144),
    3: (65536, 262144, 1048576),
}


def splitmix64(state):
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


GEAR = list(islice(splitmix64(GEAR_SEED), 256))


def hashes(data):
    """H(p) for p = 0 .. len(data); only those with p >= 64 have a whole window."""
    h = 0
    yield h
    for byte in data:
        h = ((h << 1) + GEAR[byte]) & MASK
        yield h


def cut(data, number):
    """Lengths of the chunks of *data*."""
    least, average, most = SETS[number]
    bits = average.bit_length() - 1
    strict, loose = 2 ** (64 - bits - 2), 2 ** (64 - bits + 2)
    lengths = []
    start = 0
    for position, h in enumerate(hashes(data)):
        length = position - start
        if (
            (least <= length < average and h < strict)
            or (average <= length < most and h < loose)
            or length == most
            or (position == len(data) and length)
        ):
            lengths.append(length)
            start = position
    return lengths
