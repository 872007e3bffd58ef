/* What norm.c and norm_backward.c share: the struct of a call, the constants of the channels as
   rows, and loops over the segments of a block. Included once for the declarations, then once per
   pair of types. */

#ifndef BACKSPIKE_NORM_H
#define BACKSPIKE_NORM_H

#define BLOCK 512
#include "blocks.h"

enum { MEAN, VARIANCE, RSTD, SCALE, SHIFT, NORM };
enum { NO_POOL, AVERAGE, MAXIMUM };
enum {
    SAMPLES = 16, /* of y, for a first guess at the mean */
    HELD = 16,    /* terms that are added up before they go to a sum in float64 */
};

/* One call; norm.py has the same struct. The x of the neuron is y. */
typedef struct {
    Job neuron;
    int64_t batch;                 /* 1: the statistics are those of y; 0: they are in p_norm */
    int64_t pool, H, W;            /* H = W = 0 without a pool; g and s then have the size of y */
    double eps;
    const void *p_weight, *p_bias; /* [C] or null */
    double *p_norm;                /* [NORM, C]; forward writes */
    void *p_rows, *p_tables;       /* scratch memory: [5, C] and [5, splits, BLOCK] */
    void *p_cache;                 /* and for each thread [T + 1, BLOCK] */
    double *p_moved;               /* [chunks, 2, C], zeros */
    double *p_moments;             /* [2, C], zeros: sums of gx and of gx (y - mean) */
} Norm;

static inline int64_t last(const Job *j) { return j->inner == 1 ? j->C : 1; }

#define SEGMENTS for (int k = 0, i = 0; k < b->count; k++, i += b->run)

#endif

#ifdef REAL

/* Channels last: a row [C] as it covers a block, for each part of the channels. In other memory
   layouts blocks differ, see `row`. */
static void NAME(tabulate)(const Walk *w, const REAL *p, REAL *table) {
    for (int64_t split = 0; split < w->splits; split++)
        for (int64_t i = 0, first = split * w->width, run = min(w->width, w->C - first); i < BLOCK; i++)
            table[split * BLOCK + i] = p[first + i % run];
}

static inline REAL *NAME(table)(const Norm *m, const Walk *w, int which) {
    return (REAL *)m->p_tables + which * w->splits * BLOCK;
}

static void NAME(set_row)(const Norm *m, const Walk *w, int which, const double *p, double factor) {
    const Job *j = &m->neuron;
    REAL *row = (REAL *)m->p_rows + which * j->C;
    for (int64_t c = 0; c < j->C; c++) row[c] = (REAL)(p[c] * factor);
    if (j->inner == 1) NAME(tabulate)(w, row, NAME(table)(m, w, which));
}

static inline const REAL *NAME(row)(const Norm *m, const Walk *w, const Block *b, int which, REAL *buffer) {
    if (m->neuron.inner == 1) return NAME(table)(m, w, which) + b->split * BLOCK;
    SEGMENTS NAME(spread)(&m->neuron, 1, (const REAL *)m->p_rows + which * m->neuron.C, b->at[k], b->run, buffer + i);
    return buffer;
}

static inline void NAME(scaled)(const IO *y, const REAL *scale, const REAL *shift, REAL *x, int n) {
    SIMD EACH x[i] = NAME(widen)(y[i]) * scale[i] + shift[i];
}

static inline void NAME(normalise)(const Job *j, const Block *b, int64_t t, const REAL *scale, const REAL *shift, REAL *x) {
    const IO *y = (const IO *)j->p_x + t * j->x_stride;
    SEGMENTS NAME(scaled)(y + b->at[k], scale + i, shift + i, x + i, b->run);
}

/* The prefetcher of the processor does not follow jumps from timestep to timestep. */
static inline void NAME(fetch_input)(const Job *j, const Block *b, int64_t t) {
    SEGMENTS ahead((const IO *)j->p_x + t * j->x_stride + b->at[k], b->run * sizeof(IO));
}

static inline void NAME(block_constants)(const Job *j, const Block *b, REAL table[CONSTANTS][BLOCK]) {
    const int64_t stride = j->per_channel ? j->C : 1;
    for (int which = 0; which < CONSTANTS; which++)
        SEGMENTS NAME(spread)(j, j->per_channel, (const REAL *)j->p_constants + which * stride, b->at[k], b->run, table[which] + i);
}

/* Adds rows, one below the other, to sums[n], which stay in registers. */
static inline void NAME(add_rows)(const REAL *term, int rows, int n, double *sums) {
    int k = 0;
    for (; k + 8 <= n; k += 8) {
        NAME(Sums) low, high;
        memcpy(&low, sums + k, sizeof low);
        memcpy(&high, sums + k + 4, sizeof high);
        for (int row = 0; row < rows; row++) {
            NAME(add_four)(&low, term + row * n + k);
            NAME(add_four)(&high, term + row * n + k + 4);
        }
        memcpy(sums + k, &low, sizeof low);
        memcpy(sums + k + 4, &high, sizeof high);
    }
    for (; k < n; k++)
        for (int row = 0; row < rows; row++) sums[k] += term[row * n + k];
}

/* sums[channel of element i] += term[i] */
static inline void NAME(add_block)(const Job *j, const Block *b, const REAL *term, double *sums) {
    if (j->inner == 1) {
        const int channels = (int)min(b->run, j->C);
        NAME(add_rows)(term, b->count * b->run / channels, channels, sums + b->at[0] % j->C);
    } else {
        SEGMENTS NAME(add)(j, 1, term + i, b->at[k], b->run, sums);
    }
}

/* One timestep, starting from y, in one loop: for neurons that all have the same constants. */
ALWAYS void NAME(advance_as)(const int soft, const Job *j, REAL table[CONSTANTS][BLOCK], const IO *input, const REAL *scale,
                             const REAL *shift, REAL *v, REAL *u, IO *s, int n) {
    const REAL lam = table[LAM][0], offset = table[OFFSET][0], gain = table[GAIN][0], theta = table[THETA][0];
    const REAL v_reset = (REAL)j->v_reset;
    SIMD EACH {
        const REAL x = NAME(widen)(input[i]) * scale[i] + shift[i], potential = (lam * v[i] + offset) + gain * x;
        const REAL doubt = NAME(doubt)(potential), y = potential + doubt;
        const int fired = y >= theta;
        if (u) u[i] = y;
        if (s) s[i] = NAME(spike)(fired, doubt);
        v[i] = !fired ? y : soft ? y - theta : v_reset;
    }
}

#endif
