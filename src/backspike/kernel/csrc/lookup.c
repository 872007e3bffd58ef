/* Products with a matrix of bits in words, Y [R, N] = bits [R, C] @ A [C, N] + bias: takes DEPTH rows of
   A at a time and tabulates all their sums once; every row of bits looks up its sum. The work is the
   same at any density, 1 / DEPTH of the additions of a dense product. Walks over blocks of columns
   whose part of A, the panel, stays in the cache. The order in which an element of Y is summed
   depends on C alone: the same bits on any number of threads. */

#include "panel.h"

enum {
    SUMS = 1 << DEPTH,
    PANEL = 34 * STEP, /* rows of A in the panel */
    ROWS = 2048,       /* rows of Y whose sums a task holds, */
    PART = 256,        /* and the fewest that are worth a task */
    LOOKUP = 16,       /* columns of a block */
};

int64_t sparse_product_size(void) { return sizeof(Product); }

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

/* Floats of scratch memory for each thread. */
static const int64_t each = (PANEL + ROWS) * LOOKUP;

int64_t sparse_lookup_scratch(const Product *j) { return j->threads * each; }

void sparse_lookup(const Product *j) {
    const int64_t lanes = LOOKUP, blocks = (j->N + lanes - 1) / lanes;
    const int64_t even = j->R * blocks / (4 * j->threads) + 1, tall = even < PART ? PART : min(even, ROWS);
    const int64_t parts = (j->R + tall - 1) / tall;
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        float *panel = (float *)j->p_scratch + this_thread() * each, *sums = panel + PANEL * lanes;
        _Pragma("omp for schedule(dynamic)") for (int64_t task = 0; task < blocks * parts; task++) {
            const int64_t o = task / parts * lanes, first = task % parts * tall, rows = min(tall, j->R - first);
            memset(sums, 0, rows * lanes * sizeof(float));
            for (int64_t c = 0; c < j->C; c += PANEL) {
                const int64_t deep = (min(PANEL, j->C - c) + STEP - 1) / STEP * STEP;
                fill(j, c, deep, o, lanes, panel);
                lookup(j, c, deep, first, rows, panel, sums);
            }
            finish(j, first, rows, o, lanes, sums);
        }
    }
}
