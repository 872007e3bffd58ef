"""The definition of the mask in Python integers."""

U32 = 2**32 - 1


def lowbias32(x):
    x ^= x >> 16
    x = x * 0x7FEB352D & U32
    x ^= x >> 15
    x = x * 0x846CA68B & U32
    x ^= x >> 16
    return x


def hash_bits(seed, i):
    return lowbias32(lowbias32((i & U32) ^ (seed & U32)) ^ (seed >> 32) ^ (i >> 32))


def is_dropped(seed, i, p):
    return (hash_bits(seed, i) >> 8) < round(p * 2**24)
