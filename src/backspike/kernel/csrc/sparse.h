/* What a product with a matrix of bits is given; sparse.py has the same structs. Strides are in elements; half: bfloat16 instead
   of float32; p_scratch: for each thread its own part. */

#ifndef BACKSPIKE_SPARSE_H
#define BACKSPIKE_SPARSE_H

#include <stdint.h>

/* A matrix of bits, [M, K] in C order without gaps: bit i of byte k is element 8 k + i. Its words: word [s, r] holds bits STEP s
   ... STEP s + STEP - 1 of row r, or of column r if transposed. */
typedef struct {
    int64_t M, K, transposed, threads;
    const uint8_t *p_bits;
    uint32_t *p_words;
    int64_t *p_start; /* [rows + 1] and [set bits]: row r has ones at index[start[r]] ... index[start[r + 1] - 1], ascending */
    int32_t *p_index;
} Bits;

/* Y [R, N] = bits [R, C] @ A [C, N] + bias. Lists given: gather; words given: lookup. Half: only with y_column 1. */
typedef struct {
    int64_t R, C, N, threads;
    int64_t a_row, a_column, a_half, y_row, y_column, y_half;
    const int64_t *p_start;
    const int32_t *p_index;
    const uint32_t *p_words;
    const void *p_a;
    const float *p_bias; /* or null */
    void *p_y, *p_scratch;
} Product;

/* X [M, K] = G [M, N] @ W [N, K] where bits are set, else 0. */
typedef struct {
    int64_t M, K, N, threads, half, x_half;
    const uint8_t *p_bits;
    const void *p_g, *p_w;
    void *p_x, *p_scratch;
} Sampled;

#endif
