/* BatchNorm, the neuron and a 2x2 pool in one pass per direction: x = y scale + shift is made where the neuron reads it.

   Backward keeps only y and the constants of the channels. It makes x and u again, a block and all its timesteps at a time in
   cache, and needs a second pass over y, because the gradient through the statistics takes sums over everything:
   dy = scale (gx - mean(gx) - (y - mean) rstd^2 mean(gx (y - mean))). */

#ifndef REAL

#define BLOCK 512
#include "blocks.h"

enum { MEAN, VARIANCE, RSTD, SCALE, SHIFT, NORM };
enum { NO_POOL, AVERAGE, MAXIMUM };
enum { SAMPLES = 16, HELD = 16 }; /* of y for a first guess at the mean; terms added up before they go to a sum in float64 */

/* One call; norm.py has the same struct. x of the neuron is y. */
typedef struct {
    Job neuron;
    int64_t batch;             /* statistics are those of y; else p_norm has them */
    int64_t pool, H, W;        /* H = W = 0 without a pool; g and s are then of the size of y */
    double eps;
    const void *p_weight, *p_bias;     /* [C] or null */
    double *p_norm;                    /* [NORM, C]; forward writes */
    void *p_rows, *p_tables, *p_cache; /* work space: [5, C], [5, splits, BLOCK], per thread [T + 1, BLOCK] */
    double *p_moved, *p_moments;       /* [chunks, 2, C] zeros; [2, C] zeros: sums of gx and of gx (y - mean) */
} Norm;

int64_t norm_job_size(void) { return sizeof(Norm); }

static inline int64_t last(const Job *j) { return j->inner == 1 ? j->C : 1; }

int64_t norm_block(void) { return BLOCK; }

int64_t norm_splits(const Norm *m) { return walk(m->neuron.N, last(&m->neuron), m->H, m->W).splits; }

#define BODY "norm.c"
#include "types.h"

#else

#include "step.h"

#define SEGMENTS for (int k = 0, i = 0; k < b->count; k++, i += b->run)

static const IO NAME(none)[BLOCK];

/* ------------------------------------------------------------------------------------------- constants of the channels */

/* A row [C] as it lies over a block of each part of the channels, when they lie last; else blocks differ, see `row`. */
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

/* ------------------------------------------------------------------------------------------------------- statistics */

/* Of `rows` rows of n elements, so many that sums stay in registers. */
static inline void NAME(deviate_as)(const int rows, const IO *y, int64_t stride, const REAL *guess, REAL *a, REAL *q, int n) {
    SIMD EACH {
        REAL sum = a[i], square = q[i];
        for (int row = 0; row < rows; row++) {
            const REAL d = NAME(widen)(y[row * stride + i]) - guess[i];
            sum += d;
            square += d * d;
        }
        a[i] = sum;
        q[i] = square;
    }
}

/* Of a few elements of every channel: near enough to the mean that deviations from it lose nothing. */
static void NAME(guess)(const Norm *m, double *mean) {
    const Job *j = &m->neuron;
    const int64_t steps = j->repeated ? 1 : j->T, each = j->N / j->C, taken = min(SAMPLES, steps * each);
    for (int64_t c = 0; c < j->C; c++) mean[c] = 0;
    for (int64_t k = 0; k < taken; k++) {
        const int64_t at = k * (steps * each) / taken, q = at % each;
        const IO *y = (const IO *)j->p_x + at / each * j->x_stride + q / j->inner * j->inner * j->C + q % j->inner;
        for (int64_t c = 0; c < j->C; c++) mean[c] += NAME(widen)(y[c * j->inner]) / taken;
    }
}

/* Sums of a chunk. Where channels lie last, HELD blocks below each other are added up before they go to the sums in float64. */
static void NAME(deviations)(const Norm *m, const Walk *w, int64_t chunk, double *sums) {
    const Job *j = &m->neuron;
    const int64_t from = w->groups * chunk / j->chunks, to = w->groups * (chunk + 1) / j->chunks, held = j->inner == 1 ? HELD : 1;
    const int64_t stride = w->positions * w->C;
    REAL a[BLOCK], q[BLOCK], buffer[BLOCK];
    Block b, end;
    for (int64_t t = 0; t < (j->repeated ? 1 : j->T); t++)
        for (int64_t k = 0; k < w->splits * over(to - from, held); k++) {
            const int64_t split = k % w->splits, first = from + k / w->splits * held, rows = min(held, to - first);
            describe(w, first * w->splits + split, &b);
            describe(w, (first + rows - 1) * w->splits + split, &end); /* the last of all may be short */
            const int n = b.run, whole = (int)rows - (end.run < n);
            const REAL *guess = NAME(row)(m, w, &b, MEAN, buffer);
            const IO *y = (const IO *)j->p_x + t * j->x_stride + b.at[0];
            SIMD EACH a[i] = q[i] = 0;
            int row = 0;
            for (; row + 4 <= whole; row += 4) NAME(deviate_as)(4, y + row * stride, stride, guess, a, q, n);
            for (; row < whole; row++) NAME(deviate_as)(1, y + row * stride, stride, guess, a, q, n);
            if (whole < rows) NAME(deviate_as)(1, y + whole * stride, stride, guess, a, q, end.run);
            NAME(add)(j, 1, a, b.at[0], n, sums);
            NAME(add)(j, 1, q, b.at[0], n, sums + j->C);
        }
}

static void NAME(statistics)(const Norm *m) {
    const Job *j = &m->neuron;
    const Walk w = walk(j->N, last(j), 0, 0);
    double *mean = m->p_norm, *variance = m->p_norm + VARIANCE * j->C;
    const double n = (double)(j->repeated ? 1 : j->T) * (j->N / j->C);
    NAME(guess)(m, mean);
    NAME(set_row)(m, &w, MEAN, mean, 1);
    _Pragma("omp parallel for schedule(static) num_threads(j->threads) if (j->threads > 1)")
    for (int64_t chunk = 0; chunk < j->chunks; chunk++) NAME(deviations)(m, &w, chunk, m->p_moved + chunk * 2 * j->C);
    for (int64_t c = 0; c < j->C; c++) {
        double a = 0, q = 0;
        for (int64_t chunk = 0; chunk < j->chunks; chunk++) {
            a += m->p_moved[chunk * 2 * j->C + c];
            q += m->p_moved[chunk * 2 * j->C + j->C + c];
        }
        const double moved = a / n, v = q / n - moved * moved;
        mean[c] = (double)((const REAL *)m->p_rows)[MEAN * j->C + c] + moved;
        variance[c] = v > 0 ? v : v != v ? v : 0;
    }
}

static void NAME(affine)(const Norm *m) {
    const int64_t C = m->neuron.C;
    const REAL *weight = m->p_weight, *bias = m->p_bias;
    double *p = m->p_norm;
    for (int64_t c = 0; c < C; c++) {
        p[RSTD * C + c] = 1 / sqrt(p[VARIANCE * C + c] + m->eps);
        p[SCALE * C + c] = (REAL)((weight ? (double)weight[c] : 1) * p[RSTD * C + c]);
        p[SHIFT * C + c] = (REAL)((bias ? (double)bias[c] : 0) - p[MEAN * C + c] * p[SCALE * C + c]);
    }
}

/* ------------------------------------------------------------------------------------------------------------ blocks */

static inline void NAME(scaled)(const IO *y, const REAL *scale, const REAL *shift, REAL *x, int n) {
    SIMD EACH x[i] = NAME(widen)(y[i]) * scale[i] + shift[i];
}

static inline void NAME(normalise)(const Job *j, const Block *b, int64_t t, const REAL *scale, const REAL *shift, REAL *x) {
    const IO *y = (const IO *)j->p_x + t * j->x_stride;
    SEGMENTS NAME(scaled)(y + b->at[k], scale + i, shift + i, x + i, b->run);
}

/* The processor foresees no jumps from timestep to timestep. */
static inline void NAME(fetch_input)(const Job *j, const Block *b, int64_t t) {
    SEGMENTS ahead((const IO *)j->p_x + t * j->x_stride + b->at[k], b->run * sizeof(IO));
}

static inline void NAME(block_constants)(const Job *j, const Block *b, REAL table[CONSTANTS][BLOCK]) {
    const int64_t stride = j->per_channel ? j->C : 1;
    for (int which = 0; which < CONSTANTS; which++)
        SEGMENTS NAME(spread)(j, j->per_channel, (const REAL *)j->p_constants + which * stride, b->at[k], b->run, table[which] + i);
}

static inline void NAME(add_block)(const Job *j, int64_t per_channel, const Block *b, const REAL *term, double *sums) {
    SEGMENTS NAME(add)(j, per_channel, term + i, b->at[k], b->run, sums);
}

/* The spikes of windows, each four neighbours of `run` elements. */
static inline void NAME(pool_spikes)(int64_t pool, const Block *b, const IO *s, IO *out) {
    const int n = b->run;
    for (int k = 0; k < b->windows; k++) {
        const IO *s0 = s + 4 * k * n, *s1 = s0 + n, *s2 = s1 + n, *s3 = s2 + n;
        IO *to = out + b->out[k];
        if (pool == MAXIMUM) SIMD EACH to[i] = s0[i] != 0 ? s0[i] : s1[i] != 0 ? s1[i] : s2[i] != 0 ? s2[i] : s3[i];
        else SIMD EACH to[i] = NAME(narrow)((REAL)((s0[i] != 0) + (s1[i] != 0) + (s2[i] != 0) + (s3[i] != 0)) * (REAL)0.25);
    }
}

/* The gradient of a window in equal parts, or all of it where the window first fired (to its first element if it did not). */
static inline void NAME(unpool)(int64_t pool, const Block *b, const IO *from, const REAL *u, const REAL *theta, IO *g) {
    const int n = b->run;
    for (int k = 0; k < b->windows; k++) {
        const IO *gp = from + b->out[k];
        const REAL *u0 = u + 4 * k * n, *u1 = u0 + n, *u2 = u1 + n, *u3 = u2 + n;
        const REAL *theta0 = theta + 4 * k * n, *theta1 = theta0 + n, *theta2 = theta1 + n, *theta3 = theta2 + n;
        IO *g0 = g + 4 * k * n, *g1 = g0 + n, *g2 = g1 + n, *g3 = g2 + n;
        if (pool == MAXIMUM) SIMD EACH {
            const int f0 = u0[i] >= theta0[i], f1 = !f0 & (u1[i] >= theta1[i]), f2 = !(f0 | f1) & (u2[i] >= theta2[i]);
            const int f3 = !(f0 | f1 | f2) & (u3[i] >= theta3[i]);
            g0[i] = f1 | f2 | f3 ? 0 : gp[i];
            g1[i] = f1 ? gp[i] : 0;
            g2[i] = f2 ? gp[i] : 0;
            g3[i] = f3 ? gp[i] : 0;
        }
        else SIMD EACH g0[i] = g1[i] = g2[i] = g3[i] = NAME(narrow)(NAME(widen)(gp[i]) * (REAL)0.25);
    }
}

/* ----------------------------------------------------------------------------------------------------------- forward */

/* One timestep of neurons with the same constants, from y on in one loop. */
ALWAYS void NAME(advance_as)(const int soft, const Job *j, REAL table[CONSTANTS][BLOCK], const IO *y, const REAL *scale,
                             const REAL *shift, REAL *v, REAL *u, IO *s, int n) {
    const REAL lam = table[LAM][0], offset = table[OFFSET][0], gain = table[GAIN][0], theta = table[THETA][0];
    const REAL v_reset = (REAL)j->v_reset;
    const IO one = sizeof(IO) == 2 ? 0x3f80 : 1;
    SIMD EACH {
        const REAL x = NAME(widen)(y[i]) * scale[i] + shift[i], potential = (lam * v[i] + offset) + gain * x;
        if (u) u[i] = potential;
        if (s) s[i] = potential >= theta ? one : 0;
        v[i] = potential >= theta ? soft ? potential - theta : v_reset : potential;
    }
}

/* One timestep: v to the next, and the spikes; u and x are written too where they are needed, by the slower way at least. */
static inline void NAME(advance)(const Norm *m, const Block *b, int64_t t, REAL table[CONSTANTS][BLOCK], const REAL *scale,
                                 const REAL *shift, REAL *x, REAL *v, REAL *u, IO *s) {
    const Job *j = &m->neuron;
    if (j->per_channel || j->repeated || j->p_partial) {
        if (!t || !j->repeated) NAME(normalise)(j, b, t, scale, shift, x);
        NAME(fire)(j, table, x, v, u, s, b->count * b->run);
    } else {
        const IO *y = (const IO *)j->p_x + t * j->x_stride;
        if (j->soft) SEGMENTS NAME(advance_as)(1, j, table, y + b->at[k], scale + i, shift + i, v + i, 0, s + i, b->run);
        else SEGMENTS NAME(advance_as)(0, j, table, y + b->at[k], scale + i, shift + i, v + i, 0, s + i, b->run);
    }
}

static void NAME(forward_block)(const Norm *m, const Walk *w, const Block *b, const Block *next, REAL table[CONSTANTS][BLOCK], double *sums) {
    const Job *j = &m->neuron;
    const int n = b->count * b->run;
    const int64_t steps = w->H ? w->windows * w->C : j->N;
    REAL v[BLOCK], x[BLOCK], u[BLOCK], b_scale[BLOCK], b_shift[BLOCK];
    IO b_s[BLOCK];
    const REAL *scale = NAME(row)(m, w, b, SCALE, b_scale), *shift = NAME(row)(m, w, b, SHIFT, b_shift);
    if (j->per_channel) NAME(block_constants)(j, b, table);
    SEGMENTS NAME(start)(j, b->at[k], b->run, v + i);
    for (int64_t t = 0; t < j->T; t++) {
        IO *p_s = (IO *)j->p_s + t * steps, *s = w->H ? b_s : place(j, p_s + b->at[0], b_s);
        if (!t || !j->repeated) NAME(fetch_input)(j, next, t);
        NAME(advance)(m, b, t, table, scale, shift, x, v, u, s);
        if (w->H) NAME(pool_spikes)(m->pool, b, b_s, p_s);
        else deliver(j, p_s + b->at[0], s, n * sizeof(IO));
        if (!sums) continue;
        NAME(add_block)(j, 1, b, u, sums + t * j->C);
        SIMD EACH u[i] = u[i] * u[i];
        NAME(add_block)(j, 1, b, u, sums + (j->T + t) * j->C);
    }
    if (j->p_v) SEGMENTS memcpy((REAL *)j->p_v + b->at[k], v + i, b->run * sizeof(REAL));
}

void NAME(norm_forward)(const Norm *m) {
    const Job *j = &m->neuron;
    const Walk w = walk(j->N, last(j), m->H, m->W);
    const int64_t K = 2 * j->T * j->C, blocks = w.groups * w.splits;
    if (m->batch) NAME(statistics)(m);
    NAME(affine)(m);
    NAME(set_row)(m, &w, SCALE, m->p_norm + SCALE * j->C, 1);
    NAME(set_row)(m, &w, SHIFT, m->p_norm + SHIFT * j->C, 1);
    large_pages(j, j->p_s, j->T * (w.H ? w.windows * w.C : j->N) * sizeof(IO));
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        REAL table[CONSTANTS][BLOCK];
        Block b, next;
        if (!j->per_channel) NAME(constants)(j, 0, BLOCK, table);
        _Pragma("omp for schedule(static)") for (int64_t chunk = 0; chunk < j->chunks; chunk++)
            for (int64_t k = blocks * chunk / j->chunks; k < blocks * (chunk + 1) / j->chunks; k++) {
                describe(&w, k, &b);
                describe(&w, min(k + 1, blocks - 1), &next);
                NAME(forward_block)(m, &w, &b, &next, table, j->p_partial ? j->p_partial + chunk * K : 0);
            }
        streamed();
    }
    if (j->p_partial) merge(j, K);
}

/* ---------------------------------------------------------------------------------------------------------- backward */

/* u of all T steps into the cache */
static inline void NAME(again)(const Norm *m, const Block *b, const Block *next, REAL table[CONSTANTS][BLOCK], const REAL *scale,
                               const REAL *shift, REAL *x, REAL *cache) {
    const Job *j = &m->neuron;
    REAL v[BLOCK];
    IO s[BLOCK];
    SEGMENTS NAME(start)(j, b->at[k], b->run, v + i);
    for (int64_t t = 0; t < j->T; t++) {
        const IO *y = (const IO *)j->p_x + t * j->x_stride;
        REAL *u = cache + t * BLOCK;
        if (!t || !j->repeated) NAME(fetch_input)(j, next, t);
        if (j->per_channel || j->repeated) {
            if (!t || !j->repeated) NAME(normalise)(j, b, t, scale, shift, x);
            NAME(fire)(j, table, x, v, u, s, b->count * b->run);
        } else if (j->soft) SEGMENTS NAME(advance_as)(1, j, table, y + b->at[k], scale + i, shift + i, v + i, u + i, 0, b->run);
        else SEGMENTS NAME(advance_as)(0, j, table, y + b->at[k], scale + i, shift + i, v + i, u + i, 0, b->run);
    }
}

/* The gradient that arrives at the spikes of a block. */
static inline const IO *NAME(upstream)(const Norm *m, const Walk *w, const Block *b, int64_t t, const REAL *u, const REAL *theta,
                                       IO *buffer) {
    const Job *j = &m->neuron;
    const IO *g = (const IO *)j->p_g + t * j->g_stride;
    if (!j->p_g || (w->H && !b->windows)) return NAME(none);
    if (!w->H) return g + b->at[0];
    NAME(unpool)(m->pool, b, g, u, theta, buffer);
    return buffer;
}

static inline void NAME(fetch_upstream)(const Job *j, const Walk *w, const Block *b, int64_t t) {
    const IO *g = (const IO *)j->p_g + t * j->g_stride;
    if (!j->p_g) return;
    if (!w->H) ahead(g + b->at[0], b->run * sizeof(IO));
    for (int k = 0; k < b->windows; k++) ahead(g + b->out[k], b->run * sizeof(IO));
}

/* gx to where dy will be, and into the sums a of gx and q of gx (y - mean) */
static inline void NAME(send_run)(const IO *y, const REAL *mean, const REAL *factor, const REAL *gx, REAL *a, REAL *q, IO *dy,
                                  int n) {
    SIMD EACH {
        a[i] += gx[i];
        q[i] += gx[i] * (NAME(widen)(y[i]) - mean[i]);
    }
    if (factor) SIMD EACH dy[i] = NAME(narrow)(gx[i] * factor[i]);
    else SIMD EACH dy[i] = NAME(narrow)(gx[i]);
}

static inline void NAME(send)(const Job *j, const Block *b, int64_t t, const REAL *mean, const REAL *factor, const REAL *gx, REAL *a,
                              REAL *q) {
    const IO *y = (const IO *)j->p_x + t * j->x_stride;
    IO *dy = (IO *)j->p_gx + t * j->N;
    SEGMENTS NAME(send_run)(y + b->at[k], mean + i, factor ? factor + i : 0, gx + i, a + i, q + i, dy + b->at[k], b->run);
}

/* One timestep back, in one loop as far as it goes when all neurons have the same constants and learn nothing. */
ALWAYS void NAME(retreat_as)(const int soft, const int attached, const Job *j, REAL table[CONSTANTS][BLOCK], const REAL *u,
                             const REAL *h, const IO *g, const IO *y, const REAL *mean, const REAL *factor, REAL *c, REAL *a, REAL *q,
                             IO *dy, int n) {
    const REAL lam = table[LAM][0], gain = table[GAIN][0], theta = table[THETA][0];
    const REAL rho = (REAL)j->rho, v_reset = (REAL)j->v_reset;
    SIMD EACH {
        const REAL d = NAME(delta)(soft, attached, NAME(widen)(g[i]), h[i], u[i], theta, c[i], rho, v_reset), gx = d * gain;
        c[i] = d * lam;
        a[i] += gx;
        q[i] += gx * (NAME(widen)(y[i]) - mean[i]);
        dy[i] = NAME(narrow)(factor ? gx * factor[i] : gx);
    }
}

static inline void NAME(retreat)(const Job *j, const Block *b, int64_t t, REAL table[CONSTANTS][BLOCK], const REAL *u, const REAL *h,
                                 const IO *g, const REAL *mean, const REAL *factor, REAL *c, REAL *a, REAL *q, IO *buffer) {
    const IO *y = (const IO *)j->p_x + t * j->x_stride;
    IO *dy = (IO *)j->p_gx + t * j->N;
#define CASE(SOFT, ATTACHED, FACTOR)                                                                                          \
    if (!!j->soft == SOFT && (j->rho != 0) == ATTACHED)                                                                       \
        SEGMENTS NAME(retreat_as)(SOFT, ATTACHED, j, table, u + i, h + i, g + i, y + b->at[k], mean + i, FACTOR, c + i, a + i, \
                                  q + i, place(j, dy + b->at[k], buffer + i), b->run);
    if (factor) {
        CASE(0, 0, factor + i) CASE(0, 1, factor + i) CASE(1, 0, factor + i) CASE(1, 1, factor + i)
    } else {
        CASE(0, 0, 0) CASE(0, 1, 0) CASE(1, 0, 0) CASE(1, 1, 0)
    }
#undef CASE
    if (j->streams) SEGMENTS stream(dy + b->at[k], buffer + i, b->run * sizeof(IO));
    if (!j->temporal) SIMD for (int i = 0; i < BLOCK; i++) c[i] = 0;
}

static inline void NAME(settle)(const Job *j, const Block *b, REAL *a, REAL *q, double *moved) {
    NAME(add_block)(j, 1, b, a, moved);
    NAME(add_block)(j, 1, b, q, moved + j->C);
    SIMD for (int i = 0; i < BLOCK; i++) a[i] = q[i] = 0;
}

/* Where the block's elements stand in the mask's index: base + where[i]. Its segments lie in one sample or in neighbours. */
static inline int64_t NAME(locate)(const Job *j, const Block *b, uint32_t *where) {
    int64_t base = INT64_MAX;
    SEGMENTS base = min(base, logical(j, b->at[k], b->run, where + i));
    SEGMENTS {
        const uint32_t more = (uint32_t)(logical(j, b->at[k], 0, where) - base);
        if (more) SIMD for (int m = 0; m < b->run; m++) where[i + m] += more;
    }
    return base;
}

static void NAME(backward_block)(const Norm *m, const Walk *w, const Block *b, const Block *next, REAL table[CONSTANTS][BLOCK], REAL *cache,
                                 double *learned, double *moved) {
    const Job *j = &m->neuron;
    const int n = b->count * b->run;
    REAL x[BLOCK], v[BLOCK], c[BLOCK], own[BLOCK], full[BLOCK], delta[BLOCK], gx[BLOCK], term[BLOCK], a[BLOCK], q[BLOCK];
    REAL b_g[BLOCK], b_a[BLOCK], b_b[BLOCK], b_scale[BLOCK], b_shift[BLOCK], b_mean[BLOCK];
    IO b_half[BLOCK], b_dy[BLOCK];
    uint32_t where[BLOCK];
    const int plain = !j->per_channel && !j->repeated && !j->learns && !j->p_line;
    const REAL *scale = NAME(row)(m, w, b, SCALE, b_scale), *shift = NAME(row)(m, w, b, SHIFT, b_shift);
    const REAL *mean = NAME(row)(m, w, b, MEAN, b_mean), *factor = m->batch ? 0 : scale;
    if (j->per_channel) NAME(block_constants)(j, b, table);
    const REAL *theta = table[THETA], *width = j->parametric ? table[WIDTH] : 0;
    NAME(again)(m, b, next, table, scale, shift, x, cache);
    const int64_t base = j->masked ? NAME(locate)(j, b, where) : 0;
    SIMD EACH c[i] = a[i] = q[i] = 0;
    if (j->p_gv) SEGMENTS memcpy(c + i, (const REAL *)j->p_gv + b->at[k], b->run * sizeof(REAL));
    for (int64_t t = j->T - 1; t >= 0; t--) {
        const REAL *u = cache + t * BLOCK;
        NAME(fetch_upstream)(j, w, next, t);
        NAME(derivative)(&j->surrogate, u, theta, width, own, n);
        if (j->masked) NAME(masked)(j, t * j->N + base, where, u, theta, own, full, n);
        const REAL *h = j->masked && j->replace.family ? full : own;
        const IO *g = NAME(upstream)(m, w, b, t, u, theta, b_half);
        if (plain) {
            NAME(retreat)(j, b, t, table, u, h, g, mean, factor, c, a, q, b_dy);
            if (t % HELD == 0) NAME(settle)(j, b, a, q, moved);
            continue;
        }
        const REAL *extra = NAME(zero);
        if (j->p_line) {
            SEGMENTS NAME(direct)(j, t, b->at[k], b->run, u + i, b_a + i, b_b + i);
            extra = b_a;
        }
        const NAME(Step) p = {
            .u = u,
            .g = NAME(load)(g, 0, b_g, n),
            .theta = theta,
            .own = own,
            .h = h,
            .extra = extra,
            .c = c,
        };
        if (j->learns & ~LEARNS_TAU) SEGMENTS {
            const NAME(Step) part = {u + i, p.g + i, theta + i, own + i, p.h + i, extra, c + i};
            NAME(learn)(j, &part, width ? width + i : 0, b->at[k], b->run, term, learned);
        }
        NAME(step)(j, &p, table[LAM], table[GAIN], j->learns & LEARNS_TAU ? delta : 0, gx, n);
        if (j->learns & LEARNS_TAU) {
            if (!j->repeated && j->decay_input) NAME(normalise)(j, b, t, scale, shift, x);
            if (t) NAME(reset)(j, u - BLOCK, theta, v, n);
            else SEGMENTS NAME(start)(j, b->at[k], b->run, v + i);
            SEGMENTS NAME(learn_tau)(j, v + i, j->decay_input ? x + i : NAME(zero), delta + i, b->at[k], b->run, term, learned);
        }
        if (j->repeated) {
            SIMD EACH a[i] += gx[i];
        } else {
            NAME(send)(j, b, t, mean, factor, gx, a, q);
            if (t % HELD == 0) NAME(settle)(j, b, a, q, moved);
        }
    }
    if (j->repeated) {
        memcpy(gx, a, sizeof a);
        memset(a, 0, sizeof a);
        NAME(send)(j, b, 0, mean, factor, gx, a, q);
        NAME(settle)(j, b, a, q, moved);
    }
    if (j->p_gv0) SEGMENTS memcpy((REAL *)j->p_gv0 + b->at[k], c + i, b->run * sizeof(REAL));
}

/* gx into dy, where it stands */
static void NAME(through_statistics)(const Norm *m) {
    const Job *j = &m->neuron;
    const Walk w = walk(j->N, last(j), 0, 0);
    const double steps = j->repeated ? 1 : j->T, n = steps * (j->N / j->C);
    enum { SLOPE = RSTD, CENTRE = SHIFT }; /* rows that are free by now */
    const double *rstd = m->p_norm + RSTD * j->C;
    double *slope = m->p_moved; /* merged by now */
    for (int64_t c = 0; c < j->C; c++) slope[c] = m->p_moments[j->C + c] * rstd[c] * rstd[c];
    NAME(set_row)(m, &w, SLOPE, slope, 1 / n);
    NAME(set_row)(m, &w, CENTRE, m->p_moments, 1 / n);
    NAME(set_row)(m, &w, MEAN, m->p_norm, 1);
    NAME(set_row)(m, &w, SCALE, m->p_norm + SCALE * j->C, 1);
    const int64_t blocks = w.groups * w.splits;
    _Pragma("omp parallel for schedule(static) num_threads(j->threads) if (j->threads > 1)")
    for (int64_t chunk = 0; chunk < j->chunks; chunk++) {
        REAL b_mean[BLOCK], b_scale[BLOCK], b_slope[BLOCK], b_centre[BLOCK];
        Block b;
        for (int64_t t = 0; t < (j->repeated ? 1 : j->T); t++)
            for (int64_t block = blocks * chunk / j->chunks; block < blocks * (chunk + 1) / j->chunks; block++) {
                describe(&w, block, &b);
                const int n = b.run;
                const REAL *mean = NAME(row)(m, &w, &b, MEAN, b_mean), *scale = NAME(row)(m, &w, &b, SCALE, b_scale);
                const REAL *slope = NAME(row)(m, &w, &b, SLOPE, b_slope), *centre = NAME(row)(m, &w, &b, CENTRE, b_centre);
                const IO *y = (const IO *)j->p_x + t * j->x_stride + b.at[0];
                IO *dy = (IO *)j->p_gx + t * j->N + b.at[0];
                SIMD EACH {
                    const REAL d = (NAME(widen)(dy[i]) - centre[i]) - (NAME(widen)(y[i]) - mean[i]) * slope[i];
                    dy[i] = NAME(narrow)(d * scale[i]);
                }
            }
    }
}

void NAME(norm_backward)(const Norm *m) {
    const Job *j = &m->neuron;
    const Walk w = walk(j->N, last(j), m->H, m->W);
    const int64_t K = 3 * (j->per_channel ? j->C : 1), blocks = w.groups * w.splits;
    for (int which = 0; which < NORM; which++) NAME(set_row)(m, &w, which, m->p_norm + which * j->C, 1);
    large_pages(j, j->p_gx, (j->repeated ? 1 : j->T) * j->N * sizeof(IO));
    _Pragma("omp parallel for schedule(static) num_threads(j->threads) if (j->threads > 1)")
    for (int64_t worker = 0; worker < j->threads; worker++) {
        REAL table[CONSTANTS][BLOCK], *cache = (REAL *)m->p_cache + worker * j->T * BLOCK;
        Block b, next;
        if (!j->per_channel) NAME(constants)(j, 0, BLOCK, table);
        for (int64_t chunk = j->chunks * worker / j->threads; chunk < j->chunks * (worker + 1) / j->threads; chunk++)
            for (int64_t k = blocks * chunk / j->chunks; k < blocks * (chunk + 1) / j->chunks; k++) {
                describe(&w, k, &b);
                describe(&w, min(k + 1, blocks - 1), &next);
                double *learned = j->p_partial ? j->p_partial + chunk * K : 0;
                NAME(backward_block)(m, &w, &b, &next, table, cache, learned, m->p_moved + chunk * 2 * j->C);
            }
        streamed();
    }
    if (j->p_partial) merge(j, K);
    for (int64_t chunk = 0; chunk < j->chunks; chunk++)
        for (int64_t k = 0; k < 2 * j->C; k++) m->p_moments[k] += m->p_moved[chunk * 2 * j->C + k];
    if (m->batch) NAME(through_statistics)(m);
}

#undef SEGMENTS

#endif
