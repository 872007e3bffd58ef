/* The arguments of products with a matrix of bits; sparse.py has the same structs. Strides are in
   elements; half: bfloat16 instead of float32; p_scratch: a part for each thread. */

#ifndef BACKSPIKE_SPARSE_H
#define BACKSPIKE_SPARSE_H

#include <stdint.h>

/* A matrix of bits, [M, K] in C order without gaps: bit i of byte k is element 8 k + i. Its words:
   word [s, r] has the bits STEP s ... STEP s + STEP - 1 of row r, or of column r if transposed. */
typedef struct {
    int64_t M, K, transposed, threads;
    const uint8_t *p_bits;
    uint32_t *p_words;
    int64_t *p_start; /* [rows + 1] */
    int32_t *p_index; /* [set bits]: those of row r are index[start[r]] ... index[start[r + 1] - 1],
                         in ascending order */
} Bits;

/* Y [R, N] = bits [R, C] @ A [C, N] + bias; see gather.c and lookup.c. y_half: only with y_column 1. */
typedef struct {
    int64_t R, C, N, threads;
    int64_t a_row, a_column, a_half, y_row, y_column, y_half;
    const int64_t *p_start;
    const int32_t *p_index;
    const uint32_t *p_words;
    const void *p_a;
    const float *p_bias; /* or null */
    float *p_total;      /* `scatter` and `collect` write the sums of the columns of A, [N]; or null */
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
