/* Blocks of columns of a matrix, as float32, so narrow that they stay in the cache. */

#ifndef BACKSPIKE_PANEL_H
#define BACKSPIKE_PANEL_H

#include "bits.h"

enum { WIDEST = 8 * FLOATS }; /* columns of a block at most */

/* Copies a block of A as float32. Its columns are adjacent in memory (stride is that of rows), or,
   with _turned, its rows. */
#define BLOCK_OF(name, IN, CONVERT)                                                                                    \
    static inline void name(const IN *a, int64_t stride, int64_t rows, int64_t columns, int64_t lanes, float *panel) { \
        for (int64_t r = 0; r < rows; r++)                                                                             \
            SIMD for (int64_t i = 0; i < columns; i++) panel[r * lanes + i] = CONVERT(a[r * stride + i]);              \
    }                                                                                                                  \
    static inline void name##_turned(const IN *a, int64_t stride, int64_t rows, int64_t columns, int64_t lanes, float *panel) { \
        for (int64_t tile = 0; tile < rows; tile += 32)                                                                \
            for (int64_t i = 0; i < columns; i++)                                                                      \
                for (int64_t r = tile; r < min(tile + 32, rows); r++) panel[r * lanes + i] = CONVERT(a[i * stride + r]); \
    }
BLOCK_OF(block_f32, float, )
BLOCK_OF(block_bf16, uint16_t, from_bf16)
#undef BLOCK_OF

/* Rows c ... c + rows - 1 of A, columns o ... o + lanes - 1. Places outside A are not written, and
   no result depends on them. */
static inline void fill(const Product *j, int64_t c, int64_t rows, int64_t o, int64_t lanes, float *panel) {
    const int64_t inside = min(rows, j->C - c), columns = min(lanes, j->N - o);
    const int64_t base = c * j->a_row + o * j->a_column, stride = j->a_column == 1 ? j->a_row : j->a_column;
    const float *a = (const float *)j->p_a + base;
    const uint16_t *half = (const uint16_t *)j->p_a + base;
    if (j->a_half) (j->a_column == 1 ? block_bf16 : block_bf16_turned)(half, stride, inside, columns, lanes, panel);
    else (j->a_column == 1 ? block_f32 : block_f32_turned)(a, stride, inside, columns, lanes, panel);
}

/* Writes the sums of rows first ... first + rows - 1 of Y, with the bias. */
static inline void finish(const Product *j, int64_t first, int64_t rows, int64_t o, int64_t lanes, const float *sums) {
    const int64_t columns = min(lanes, j->N - o);
    float bias[WIDEST] = {0};
    if (j->p_bias) memcpy(bias, j->p_bias + o, columns * sizeof(float));
    if (j->y_column == 1)
        for (int64_t r = 0; r < rows; r++, sums += lanes) {
            float *y = (float *)j->p_y + (first + r) * j->y_row + o;
            uint16_t *half = (uint16_t *)j->p_y + (first + r) * j->y_row + o;
            if (j->y_half) SIMD for (int64_t i = 0; i < columns; i++) half[i] = to_bf16(sums[i] + bias[i]);
            else SIMD for (int64_t i = 0; i < columns; i++) y[i] = sums[i] + bias[i];
        }
    else
        for (int64_t tile = 0; tile < rows; tile += 16) /* a cache line of each column */
            for (int64_t i = 0; i < columns; i++) {
                float *y = (float *)j->p_y + (o + i) * j->y_column;
                for (int64_t r = tile; r < min(tile + 16, rows); r++) y[(first + r) * j->y_row] = sums[r * lanes + i] + bias[i];
            }
}

#endif
