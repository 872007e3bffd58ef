/* Products with the set bits of a matrix, Y [R, N] = bits [R, C] @ A [C, N] + bias; the work is
   proportional to the number of set bits.

   `gather` reads the lists of the rows of bits and adds, for a row of Y, the rows of A in its list.
   `scatter` reads the lists of the columns of bits and adds a row of A to the rows of Y in its list.
   `collect` reads the words of the rows of bits, and adds, for a row of Y, the rows of A in two words.
   All walk over blocks of columns so narrow that the panel, the part of A or of Y whose rows are
   selected, stays in the cache. Every element of Y is summed in the order of the rows of A: the same
   bits for each of the three, for any size of the panel and on any number of threads. */

#include "panel.h"

enum {
    PANEL = 1 << 17,       /* floats of a panel of `gather` at most; of the others if possible */
    NARROWEST = 16,        /* columns of a block at least */
    PART = 64,             /* rows of Y of a task of `gather`, */
    TURN = 2 * STEP,       /* and of A that the others copy at a time */
};

/* Columns of a block, if the panel has this many rows and there should be this many blocks. */
static int64_t lanes_of(const Product *j, int64_t rows, int64_t blocks) {
    int64_t lanes = WIDEST;
    while (lanes > NARROWEST && (rows * lanes > PANEL || j->N <= lanes / 2 || (j->N + lanes - 1) / lanes < blocks)) lanes /= 2;
    return lanes;
}

/* How `gather` divides its work. If A needs several panels, the sums of all rows are kept. */
typedef struct {
    int64_t lanes, deep, several; /* deep: rows of a panel */
} Cut;

static Cut cut_of(const Product *j) {
    /* if even narrow panels do not hold A, they are wide, and several */
    const int64_t several = j->C * NARROWEST > PANEL, lanes = lanes_of(j, several ? 1 : j->C, 1);
    return (Cut){lanes, several ? PANEL / lanes : j->C, several};
}

/* Floats of scratch memory. */
int64_t sparse_gather_scratch(const Product *j) {
    const Cut cut = cut_of(j);
    return cut.deep * cut.lanes + (cut.several ? j->R * (cut.lanes + 2) : j->threads * PART * cut.lanes);
}
int64_t sparse_scatter_scratch(const Product *j) {
    return j->threads * (j->R + TURN) * lanes_of(j, j->R, j->threads);
}
int64_t sparse_collect_scratch(const Product *j) { return sparse_scatter_scratch(j); }

/* gather: adds rows c ... beyond - 1 of A, which are in the panel, to the sums of these rows of Y; at[i]
   is where the list of row first + i continues. scatter, collect: add these rows of A to those of Y. */
#define WITH_VECTORS(V)                                                                                                \
    static void gather_##V(const Product *j, int64_t first, int64_t rows, int64_t c, int64_t beyond,                   \
                           const float *panel, int64_t *at, float *sums) {                                             \
        for (int64_t i = 0; i < rows; i++, sums += V * FLOATS) {                                                       \
            const int64_t end = j->p_start[first + i + 1];                                                             \
            int64_t e = c ? at[i] : j->p_start[first + i];                                                             \
            Vector s[V] = {0};                                                                                         \
            if (c) memcpy(s, sums, sizeof s);                                                                          \
            for (; e < end && j->p_index[e] < beyond; e++) {                                                           \
                const Vector *a = (const Vector *)panel + (j->p_index[e] - c) * V;                                     \
                for (int v = 0; v < V; v++) s[v] += a[v];                                                              \
            }                                                                                                          \
            memcpy(sums, s, sizeof s);                                                                                 \
            if (beyond < j->C) at[i] = e;                                                                              \
        }                                                                                                              \
    }                                                                                                                  \
    static void scatter_##V(const Product *j, int64_t first, int64_t rows, const float *a, float *panel) {             \
        for (int64_t c = first; c < first + rows; c++, a += V * FLOATS) {                                              \
            Vector s[V];                                                                                               \
            memcpy(s, a, sizeof s);                                                                                    \
            for (int64_t e = j->p_start[c]; e < j->p_start[c + 1]; e++) {                                              \
                Vector *y = (Vector *)panel + (int64_t)j->p_index[e] * V;                                              \
                for (int v = 0; v < V; v++) y[v] += s[v];                                                              \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    static void collect_##V(const Product *j, int64_t first, int64_t rows, const float *a, float *panel) {             \
        const uint32_t *low = j->p_words + first / STEP * j->R, *high = rows > STEP ? low + j->R : 0;                  \
        for (int64_t r = 0; r < j->R; r++, panel += V * FLOATS) {                                                      \
            uint64_t w = low[r] | (high ? (uint64_t)high[r] << STEP : 0);                                              \
            if (!w) continue;                                                                                          \
            Vector s[V];                                                                                               \
            memcpy(s, panel, sizeof s);                                                                                \
            for (; w; w &= w - 1) {                                                                                    \
                const Vector *row = (const Vector *)a + __builtin_ctzll(w) * V;                                        \
                for (int v = 0; v < V; v++) s[v] += row[v];                                                            \
            }                                                                                                          \
            memcpy(panel, s, sizeof s);                                                                                \
        }                                                                                                              \
    }
WITH_VECTORS(1)
WITH_VECTORS(2)
WITH_VECTORS(4)
WITH_VECTORS(8)

/* Adds the sums of these rows, first summed by themselves, which rounds less. */
static void add_up(const float *a, int64_t rows, int64_t lanes, float *total) {
    float sum[WIDEST] = {0};
    for (int64_t r = 0; r < rows; r++, a += lanes) SIMD for (int64_t i = 0; i < lanes; i++) sum[i] += a[i];
    SIMD for (int64_t i = 0; i < lanes; i++) total[i] += sum[i];
}

void sparse_gather(const Product *j) {
    const Cut cut = cut_of(j);
    const int64_t vectors = cut.lanes / FLOATS, parts = (j->R + PART - 1) / PART;
    float *panel = (float *)j->p_scratch, *all = panel + cut.deep * cut.lanes;
    int64_t *at = (int64_t *)(all + j->R * cut.lanes);
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        for (int64_t o = 0; o < j->N; o += cut.lanes)
            for (int64_t c = 0; c < j->C; c += cut.deep) {
                const int64_t beyond = min(c + cut.deep, j->C);
                _Pragma("omp for schedule(static)") for (int64_t row = c; row < beyond; row += PART)
                    fill(j, row, min(PART, beyond - row), o, cut.lanes, panel + (row - c) * cut.lanes);
                _Pragma("omp for schedule(dynamic)") for (int64_t part = 0; part < parts; part++) {
                    const int64_t first = part * PART, rows = min(PART, j->R - first);
                    float *sums = all + (cut.several ? first : this_thread() * PART) * cut.lanes;
                    (vectors == 8 ? gather_8 : vectors == 4 ? gather_4 : vectors == 2 ? gather_2 : gather_1)(
                        j, first, rows, c, beyond, panel, at + first, sums);
                    if (beyond == j->C) finish(j, first, rows, o, cut.lanes, sums);
                }
            }
    }
}

typedef void Add(const Product *, int64_t, int64_t, const float *, float *);

/* Y, a block of columns at a time, with one of `add` for 1, 2, 4 and 8 vectors; and the sums of the
   columns of A. */
static void columns(const Product *j, Add *const add[4]) {
    const int64_t lanes = lanes_of(j, j->R, j->threads), blocks = (j->N + lanes - 1) / lanes;
    Add *const rows_of = add[__builtin_ctz((unsigned)(lanes / FLOATS))];
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        float *panel = (float *)j->p_scratch + this_thread() * (j->R + TURN) * lanes, *a = panel + j->R * lanes;
        _Pragma("omp for schedule(dynamic)") for (int64_t block = 0; block < blocks; block++) {
            const int64_t o = block * lanes;
            float total[WIDEST] = {0};
            memset(panel, 0, j->R * lanes * sizeof(float));
            for (int64_t c = 0; c < j->C; c += TURN) {
                const int64_t rows = min(TURN, j->C - c);
                fill(j, c, rows, o, lanes, a);
                rows_of(j, c, rows, a, panel);
                if (j->p_total) add_up(a, rows, lanes, total);
            }
            finish(j, 0, j->R, o, lanes, panel);
            if (j->p_total) memcpy(j->p_total + o, total, min(lanes, j->N - o) * sizeof(float));
        }
    }
}

void sparse_scatter(const Product *j) { columns(j, (Add *const[]){scatter_1, scatter_2, scatter_4, scatter_8}); }
void sparse_collect(const Product *j) { columns(j, (Add *const[]){collect_1, collect_2, collect_4, collect_8}); }
