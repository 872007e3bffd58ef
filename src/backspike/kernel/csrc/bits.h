/* What the files about bits share. */

#ifndef BACKSPIKE_BITS_H
#define BACKSPIKE_BITS_H

#include "lif.h"
#include "sparse.h"

#if defined(__AVX512F__)
#define FLOATS 16
#elif defined(__AVX__)
#define FLOATS 8
#else
#define FLOATS 4
#endif

typedef float Vector __attribute__((vector_size(4 * FLOATS)));

/* For `lookup`: bits that are looked up at once, and how many such groups a word has. */
enum { DEPTH = 6, GROUPS = 5, STEP = DEPTH * GROUPS };

/* Bits at ... at + n - 1 of `all` bits, n <= 56. */
static inline uint64_t bits_at(const uint8_t *bits, int64_t all, int64_t at, int64_t n) {
    const int64_t bytes = (all + 7) / 8 - at / 8;
    uint64_t w = 0;
    if (bytes >= 8) memcpy(&w, bits + at / 8, 8);
    else memcpy(&w, bits + at / 8, bytes);
    return w >> at % 8 & (((uint64_t)1 << n) - 1);
}

#endif
