/* Products with a matrix of bits, with additions only: Y [R, N] = bits [R, C] @ A [C, N] + bias.

   There are two ways to add. `gather` adds the rows of A whose bits are set: the work is
   proportional to the number of set bits. `lookup` takes DEPTH rows of A at a time and tabulates
   all their sums once; every row of bits looks up its sum. Its work is the same at any density,
   1 / DEPTH of the additions of a dense product. Both walk over blocks of columns whose part of A, the
   panel, stays in the cache. The order in which an element of Y is summed depends on C alone: the
   same bits on any number of threads. */

#include "bits.h"

enum {
    SUMS = 1 << DEPTH,
    PANEL = 34 * STEP, /* rows of A in the panel */
    ROWS = 2048,       /* rows of Y whose sums a task holds, */
    PART = 256,        /* and the fewest that are worth a task */
    GATHER = 64,       /* columns of a block */
    LOOKUP = 16,
};

int64_t sparse_product_size(void) { return sizeof(Product); }

/* Floats of scratch memory for each thread. */
int64_t sparse_product_scratch(void) { return (PANEL + ROWS) * GATHER; }

/* Copies a block of A as float32. Its columns are adjacent in memory (stride is that of rows), or,
   with _turned, its rows. */
#define BLOCK_OF(name, IN, CONVERT)                                                                                    \
    static void name(const IN *a, int64_t stride, int64_t rows, int64_t columns, int64_t lanes, float *panel) {        \
        for (int64_t r = 0; r < rows; r++)                                                                             \
            SIMD for (int64_t i = 0; i < columns; i++) panel[r * lanes + i] = CONVERT(a[r * stride + i]);              \
    }                                                                                                                  \
    static void name##_turned(const IN *a, int64_t stride, int64_t rows, int64_t columns, int64_t lanes, float *panel) { \
        for (int64_t tile = 0; tile < rows; tile += 32)                                                                \
            for (int64_t i = 0; i < columns; i++)                                                                      \
                for (int64_t r = tile; r < min(tile + 32, rows); r++) panel[r * lanes + i] = CONVERT(a[i * stride + r]); \
    }
BLOCK_OF(block_f32, float, )
BLOCK_OF(block_bf16, uint16_t, from_bf16)

/* Rows c ... c + rows - 1 of A, columns o ... o + lanes - 1. Places of the panel outside A are not
   written, and no set bit refers to them. */
static void fill(const Product *j, int64_t c, int64_t rows, int64_t o, int64_t lanes, float *panel) {
    const int64_t inside = min(rows, j->C - c), columns = min(lanes, j->N - o);
    const int64_t base = c * j->a_row + o * j->a_column, stride = j->a_column == 1 ? j->a_row : j->a_column;
    const float *a = (const float *)j->p_a + base;
    const uint16_t *half = (const uint16_t *)j->p_a + base;
    if (j->a_half) (j->a_column == 1 ? block_bf16 : block_bf16_turned)(half, stride, inside, columns, lanes, panel);
    else (j->a_column == 1 ? block_f32 : block_f32_turned)(a, stride, inside, columns, lanes, panel);
}

/* at[r]: where the list of row r continues */
static void gather(const Product *j, int64_t c, int64_t first, int64_t rows, const float *panel, int64_t *at, float *sums) {
    enum { V = GATHER / FLOATS };
    for (int64_t r = 0; r < rows; r++) {
        Vector *y = (Vector *)sums + r * V, s[V];
        const int64_t end = j->p_start[first + r + 1];
        int64_t e = at[r];
        for (int v = 0; v < V; v++) s[v] = y[v];
        for (; e < end && j->p_index[e] < c + PANEL; e++) {
            const Vector *a = (const Vector *)panel + (j->p_index[e] - c) * V;
            for (int v = 0; v < V; v++) s[v] += a[v];
        }
        for (int v = 0; v < V; v++) y[v] = s[v];
        at[r] = e;
    }
}

/* Entry p of the table is the sum of the rows of a whose bits are set in p. */
static inline void tabulate(const Vector *a, Vector *table) {
    enum { V = LOOKUP / FLOATS };
    for (int v = 0; v < V; v++) table[v] = (Vector){0};
    for (int k = 0; k < DEPTH; k++)
        for (int p = 0; p < 1 << k; p++)
            for (int v = 0; v < V; v++) table[((1 << k) + p) * V + v] = table[p * V + v] + a[k * V + v];
}

static void lookup(const Product *j, int64_t c, int64_t deep, int64_t first, int64_t rows, const float *panel, float *sums) {
    enum { V = LOOKUP / FLOATS };
    Vector table[GROUPS * SUMS * V];
    for (int64_t k = 0; k < deep; k += STEP) {
        const uint32_t *words = j->p_words + (c + k) / STEP * j->R + first;
        for (int g = 0; g < GROUPS; g++) tabulate((const Vector *)panel + (k + g * DEPTH) * V, table + g * SUMS * V);
        for (int64_t r = 0; r < rows; r++) {
            Vector *y = (Vector *)sums + r * V, s[V];
            for (int v = 0; v < V; v++) s[v] = y[v];
            for (int g = 0; g < GROUPS; g++) {
                const Vector *a = table + (g * SUMS + (words[r] >> g * DEPTH & (SUMS - 1))) * V;
                for (int v = 0; v < V; v++) s[v] += a[v];
            }
            for (int v = 0; v < V; v++) y[v] = s[v];
        }
    }
}

static void finish(const Product *j, int64_t first, int64_t rows, int64_t o, int64_t lanes, const float *sums) {
    const int64_t columns = min(lanes, j->N - o);
    float bias[GATHER] = {0};
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

void sparse_product(const Product *j) {
    const int64_t lanes = j->p_words ? LOOKUP : GATHER, blocks = (j->N + lanes - 1) / lanes;
    const int64_t even = j->R * blocks / (4 * j->threads) + 1, tall = even < PART ? PART : min(even, ROWS);
    const int64_t parts = (j->R + tall - 1) / tall;
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        float *panel = (float *)j->p_scratch + this_thread() * sparse_product_scratch(), *sums = panel + PANEL * GATHER;
        int64_t at[ROWS];
        _Pragma("omp for schedule(dynamic)") for (int64_t task = 0; task < blocks * parts; task++) {
            const int64_t o = task / parts * lanes, first = task % parts * tall, rows = min(tall, j->R - first);
            memset(sums, 0, rows * lanes * sizeof(float));
            if (!j->p_words) memcpy(at, j->p_start + first, rows * sizeof(int64_t));
            for (int64_t c = 0; c < j->C; c += PANEL) {
                const int64_t deep = (min(PANEL, j->C - c) + STEP - 1) / STEP * STEP;
                fill(j, c, deep, o, lanes, panel);
                if (j->p_words) lookup(j, c, deep, first, rows, panel, sums);
                else gather(j, c, first, rows, panel, at, sums);
            }
            finish(j, first, rows, o, lanes, sums);
        }
    }
}
