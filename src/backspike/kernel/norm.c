/* BatchNorm, the neuron and a 2x2 pool in one pass per direction: x = y scale + shift is made where the neuron reads it.

   Backward keeps only y and the constants of the channels. It makes x and u again, a block and all its timesteps at a time in
   cache, and needs a second pass over y, because the gradient through the statistics takes sums over everything:
   dy = scale (gx - mean(gx) - (y - mean) rstd^2 mean(gx (y - mean))). */

#ifndef REAL

#include <stdlib.h>

#include "blocks.h"

enum { MEAN, VARIANCE, RSTD, SCALE, SHIFT, NORM };
enum { NO_POOL, AVERAGE, MAXIMUM };
enum { SAMPLES = 16, HELD = 16 }; /* of y for a first guess at the mean; terms added up before they go to a sum in float64 */

/* One call; norm.py has the same struct. x of the neuron is y. */
typedef struct {
    Job neuron;
    int64_t repeated;          /* y and its gradient are one timestep that stands for T */
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

int64_t norm_splits(const Norm *m) { return walk(m->neuron.N, last(&m->neuron), m->H, m->W).splits; }

#define BODY "norm.c"
#include "types.h"

#else

#include "step.h"

static inline REAL NAME(widen)(IO x) { return sizeof(IO) == 2 ? (REAL)from_bf16((uint16_t)x) : (REAL)x; }

static inline IO NAME(narrow)(REAL x) { return sizeof(IO) == 2 ? (IO)to_bf16((float)x) : (IO)x; }

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
    NAME(spread)(&m->neuron, 1, (const REAL *)m->p_rows + which * m->neuron.C, b->at[0], b->run, buffer);
    return buffer;
}

/* ------------------------------------------------------------------------------------------------------- statistics */

static inline void NAME(deviate)(const IO *y, const REAL *guess, REAL *a, REAL *q, int n) {
    SIMD EACH {
        const REAL d = NAME(widen)(y[i]) - guess[i];
        a[i] += d;
        q[i] += d * d;
    }
}

/* Of a few elements of every channel: near enough to the mean that deviations from it lose nothing. */
static void NAME(guess)(const Norm *m, double *mean) {
    const Job *j = &m->neuron;
    const int64_t steps = m->repeated ? 1 : j->T, each = j->N / j->C, taken = min(SAMPLES, steps * each);
    for (int64_t c = 0; c < j->C; c++) mean[c] = 0;
    for (int64_t k = 0; k < taken; k++) {
        const int64_t at = k * (steps * each) / taken, q = at % each;
        const IO *y = (const IO *)j->p_x + at / each * j->x_stride + q / j->inner * j->inner * j->C + q % j->inner;
        for (int64_t c = 0; c < j->C; c++) mean[c] += NAME(widen)(y[c * j->inner]) / taken;
    }
}

static void NAME(deviations)(const Norm *m, const Walk *w, int64_t chunk, double *sums) {
    const Job *j = &m->neuron;
    REAL a[BLOCK], q[BLOCK], buffer[BLOCK];
    Block b;
    const int64_t from = w->groups * chunk / j->chunks, to = w->groups * (chunk + 1) / j->chunks;
    for (int64_t t = 0; t < (m->repeated ? 1 : j->T); t++)
        for (int64_t split = 0; split < w->splits; split++) {
            int n = 0;
            for (int64_t group = from, held = 0; group < to; group++) {
                describe(w, group * w->splits + split, &b);
                if (!held) {
                    n = b.run;
                    memset(a, 0, sizeof a);
                    memset(q, 0, sizeof q);
                }
                const REAL *guess = NAME(row)(m, w, &b, MEAN, buffer);
                NAME(deviate)((const IO *)j->p_x + t * j->x_stride + b.at[0], guess, a, q, b.run);
                held = j->inner == 1 && group + 1 < to && held + 1 < HELD ? held + 1 : 0;
                if (held) continue;
                const int64_t o = j->inner == 1 ? split * w->width : b.at[0];
                NAME(add)(j, 1, a, o, n, sums);
                NAME(add)(j, 1, q, o, n, sums + j->C);
            }
        }
}

static void NAME(statistics)(const Norm *m) {
    const Job *j = &m->neuron;
    const Walk w = walk(j->N, last(j), 0, 0);
    double *mean = m->p_norm, *variance = m->p_norm + VARIANCE * j->C;
    const double n = (double)(m->repeated ? 1 : j->T) * (j->N / j->C);
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

#define SEGMENTS for (int k = 0, i = 0; k < b->count; k++, i += b->run)

static inline void NAME(normalise)(const Job *j, const Block *b, int64_t t, const REAL *scale, const REAL *shift, REAL *x) {
    SEGMENTS {
        const IO *y = (const IO *)j->p_x + t * j->x_stride + b->at[k];
        SIMD for (int r = 0; r < b->run; r++) x[i + r] = NAME(widen)(y[r]) * scale[i + r] + shift[i + r];
    }
}

static inline void NAME(block_constants)(const Job *j, const Block *b, REAL table[CONSTANTS][BLOCK]) {
    const int64_t stride = j->per_channel ? j->C : 1;
    for (int which = 0; which < CONSTANTS; which++)
        SEGMENTS NAME(spread)(j, j->per_channel, (const REAL *)j->p_constants + which * stride, b->at[k], b->run, table[which] + i);
}

static inline void NAME(add_block)(const Job *j, int64_t per_channel, const Block *b, const REAL *term, double *sums) {
    SEGMENTS NAME(add)(j, per_channel, term + i, b->at[k], b->run, sums);
}

/* of four neighbours, each `run` elements of spikes */
static inline void NAME(pool_spikes)(int64_t pool, const Block *b, const IO *s, IO *out) {
    const int n = b->run;
    for (int k = 0; k < b->windows; k++, s += 4 * n) {
        IO *to = out + b->out[k];
        if (pool == AVERAGE) SIMD EACH to[i] = NAME(narrow)(((s[i] != 0) + (s[n + i] != 0) + (s[2 * n + i] != 0) + (s[3 * n + i] != 0)) * (REAL)0.25);
        else SIMD EACH to[i] = s[i] != 0 || s[n + i] != 0 || s[2 * n + i] != 0 || s[3 * n + i] != 0 ? NAME(narrow)(1) : 0;
    }
}

/* The gradient of a window in equal parts, or all of it where the window first fired (to its first element if it did not). */
static inline void NAME(unpool)(int64_t pool, const Block *b, const IO *from, const REAL *u, const REAL *theta, REAL *g) {
    const int n = b->run;
    for (int k = 0; k < b->windows; k++, g += 4 * n, u += 4 * n, theta += 4 * n) {
        const IO *gp = from + b->out[k];
        SIMD EACH {
            const REAL whole = NAME(widen)(gp[i]), part = whole * (REAL)0.25;
            const int f0 = u[i] >= theta[i], f1 = u[n + i] >= theta[n + i];
            const int f2 = u[2 * n + i] >= theta[2 * n + i], f3 = u[3 * n + i] >= theta[3 * n + i];
            g[i] = pool == AVERAGE ? part : f0 || !(f1 || f2 || f3) ? whole : 0;
            g[n + i] = pool == AVERAGE ? part : !f0 && f1 ? whole : 0;
            g[2 * n + i] = pool == AVERAGE ? part : !f0 && !f1 && f2 ? whole : 0;
            g[3 * n + i] = pool == AVERAGE ? part : !f0 && !f1 && !f2 && f3 ? whole : 0;
        }
    }
}

/* ----------------------------------------------------------------------------------------------------------- forward */

static void NAME(forward_block)(const Norm *m, const Walk *w, const Block *b, REAL table[CONSTANTS][BLOCK], double *sums) {
    const Job *j = &m->neuron;
    const int n = b->count * b->run;
    const int64_t steps = w->H ? w->windows * w->C : j->N;
    REAL v[BLOCK], x[BLOCK], u[BLOCK], b_scale[BLOCK], b_shift[BLOCK];
    IO b_s[BLOCK];
    const REAL *scale = NAME(row)(m, w, b, SCALE, b_scale), *shift = NAME(row)(m, w, b, SHIFT, b_shift);
    if (j->per_channel) NAME(block_constants)(j, b, table);
    SEGMENTS NAME(start)(j, b->at[k], b->run, v + i);
    for (int64_t t = 0; t < j->T; t++) {
        if (!t || !m->repeated) NAME(normalise)(j, b, t, scale, shift, x);
        IO *s = (IO *)j->p_s + t * steps;
        NAME(fire)(j, table, x, v, u, w->H ? b_s : s + b->at[0], n);
        NAME(pool_spikes)(m->pool, b, b_s, s);
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
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        REAL table[CONSTANTS][BLOCK];
        Block b;
        if (!j->per_channel) NAME(constants)(j, 0, BLOCK, table);
        _Pragma("omp for schedule(static)") for (int64_t chunk = 0; chunk < j->chunks; chunk++)
            for (int64_t k = blocks * chunk / j->chunks; k < blocks * (chunk + 1) / j->chunks; k++) {
                describe(&w, k, &b);
                NAME(forward_block)(m, &w, &b, table, j->p_partial ? j->p_partial + chunk * K : 0);
            }
    }
    if (j->p_partial) merge(j, K);
}

/* ---------------------------------------------------------------------------------------------------------- backward */

/* u of all T steps into the cache */
static inline void NAME(again)(const Norm *m, const Block *b, REAL table[CONSTANTS][BLOCK], const REAL *scale, const REAL *shift,
                               REAL *x, REAL *cache) {
    const Job *j = &m->neuron;
    REAL v[BLOCK];
    IO s[BLOCK];
    SEGMENTS NAME(start)(j, b->at[k], b->run, v + i);
    for (int64_t t = 0; t < j->T; t++) {
        if (!t || !m->repeated) NAME(normalise)(j, b, t, scale, shift, x);
        NAME(fire)(j, table, x, v, cache + t * BLOCK, s, b->count * b->run);
    }
}

static inline const REAL *NAME(upstream)(const Norm *m, const Walk *w, const Block *b, int64_t t, const REAL *u, const REAL *theta,
                                         REAL *buffer) {
    const Job *j = &m->neuron;
    if (!w->H || !j->p_g) return NAME(load)(j->p_g, t * j->g_stride + b->at[0], buffer, b->run);
    if (b->windows) NAME(unpool)(m->pool, b, (const IO *)j->p_g + t * j->g_stride, u, theta, buffer);
    else memset(buffer, 0, BLOCK * sizeof(REAL));
    return buffer;
}

/* gx to where dy will be, and into the sums a of gx and q of gx (y - mean) */
static inline void NAME(send)(const Job *j, const Block *b, int64_t t, const REAL *mean, const REAL *factor, const REAL *gx, REAL *a,
                              REAL *q) {
    SEGMENTS {
        const IO *y = (const IO *)j->p_x + t * j->x_stride + b->at[k];
        IO *dy = (IO *)j->p_gx + t * j->N + b->at[k];
        SIMD for (int r = 0; r < b->run; r++) {
            a[i + r] += gx[i + r];
            q[i + r] += gx[i + r] * (NAME(widen)(y[r]) - mean[i + r]);
            dy[r] = NAME(narrow)(factor ? gx[i + r] * factor[i + r] : gx[i + r]);
        }
    }
}

static inline void NAME(tau_term)(const Job *j, const Block *b, const REAL *before, const REAL *theta, const REAL *x,
                                  const REAL *delta, REAL *term) {
    const int n = b->count * b->run;
    const REAL v_reset = (REAL)j->v_reset, rest = j->soft ? 0 : v_reset;
    if (before) SIMD EACH term[i] = before[i] >= theta[i] ? (j->soft ? before[i] - theta[i] : v_reset) : before[i];
    else SEGMENTS NAME(start)(j, b->at[k], b->run, term + i);
    SIMD EACH term[i] = delta[i] * (term[i] - rest - (x ? x[i] : 0));
}

static void NAME(backward_block)(const Norm *m, const Walk *w, const Block *b, REAL table[CONSTANTS][BLOCK], REAL *cache,
                                 double *learned, double *moved) {
    const Job *j = &m->neuron;
    const int n = b->count * b->run;
    REAL x[BLOCK], c[BLOCK], own[BLOCK], full[BLOCK], delta[BLOCK], gx[BLOCK], term[BLOCK], a[BLOCK], q[BLOCK];
    REAL b_g[BLOCK], b_a[BLOCK], b_b[BLOCK], b_scale[BLOCK], b_shift[BLOCK], b_mean[BLOCK];
    uint32_t where[BLOCK];
    int64_t base[BLOCK];
    const REAL *scale = NAME(row)(m, w, b, SCALE, b_scale), *shift = NAME(row)(m, w, b, SHIFT, b_shift);
    const REAL *mean = NAME(row)(m, w, b, MEAN, b_mean), *factor = m->batch ? 0 : scale;
    if (j->per_channel) NAME(block_constants)(j, b, table);
    const REAL *theta = table[THETA], *width = j->parametric ? table[WIDTH] : 0;
    NAME(again)(m, b, table, scale, shift, x, cache);
    if (j->masked) SEGMENTS base[k] = logical(j, b->at[k], b->run, where + i);
    memset(c, 0, sizeof c);
    if (j->p_gv) SEGMENTS memcpy(c + i, (const REAL *)j->p_gv + b->at[k], b->run * sizeof(REAL));
    memset(a, 0, sizeof a);
    memset(q, 0, sizeof q);
    for (int64_t t = j->T - 1; t >= 0; t--) {
        const REAL *u = cache + t * BLOCK;
        REAL *whole = j->masked && j->replace.family ? full : 0;
        NAME(derivative)(&j->surrogate, u, theta, width, own, n);
        if (whole) NAME(derivative)(&j->replace, u, theta, 0, whole, n);
        if (j->masked) SEGMENTS NAME(mask)(j, t * j->N + base[k], where + i, own + i, whole ? whole + i : 0, b->run);
        const REAL *extra = NAME(zero);
        if (j->p_line) {
            SEGMENTS NAME(direct)(j, t, b->at[k], b->run, u + i, b_a + i, b_b + i);
            extra = b_a;
        }
        const NAME(Step) p = {
            .u = u,
            .g = NAME(upstream)(m, w, b, t, u, theta, b_g),
            .theta = theta,
            .own = own,
            .h = whole ? whole : own,
            .extra = extra,
            .c = c,
        };
        if (j->learns & ~LEARNS_TAU) SEGMENTS {
            const NAME(Step) part = {u + i, p.g + i, theta + i, own + i, p.h + i, extra, c + i};
            NAME(learn)(j, &part, width ? width + i : 0, b->at[k], b->run, term, learned);
        }
        NAME(step)(j, &p, table[LAM], table[GAIN], delta, gx, n);
        if (j->learns & LEARNS_TAU) {
            if (!m->repeated && j->decay_input) NAME(normalise)(j, b, t, scale, shift, x);
            NAME(tau_term)(j, b, t ? u - BLOCK : 0, theta, j->decay_input ? x : 0, delta, term);
            NAME(add_block)(j, j->per_channel, b, term, learned);
        }
        if (m->repeated) {
            SIMD EACH a[i] += gx[i];
        } else {
            NAME(send)(j, b, t, mean, factor, gx, a, q);
            if (t % HELD) continue;
            NAME(add_block)(j, 1, b, a, moved);
            NAME(add_block)(j, 1, b, q, moved + j->C);
            memset(a, 0, sizeof a);
            memset(q, 0, sizeof q);
        }
    }
    if (m->repeated) {
        memcpy(gx, a, sizeof a);
        memset(a, 0, sizeof a);
        NAME(send)(j, b, 0, mean, factor, gx, a, q);
        NAME(add_block)(j, 1, b, a, moved);
        NAME(add_block)(j, 1, b, q, moved + j->C);
    }
    if (j->p_gv0) SEGMENTS memcpy((REAL *)j->p_gv0 + b->at[k], c + i, b->run * sizeof(REAL));
}

/* gx into dy, where it stands */
static void NAME(through_statistics)(const Norm *m) {
    const Job *j = &m->neuron;
    const Walk w = walk(j->N, last(j), 0, 0);
    const double steps = m->repeated ? 1 : j->T, n = steps * (j->N / j->C);
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
        for (int64_t t = 0; t < (m->repeated ? 1 : j->T); t++)
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
    _Pragma("omp parallel for schedule(static) num_threads(j->threads) if (j->threads > 1)")
    for (int64_t worker = 0; worker < j->threads; worker++) {
        REAL table[CONSTANTS][BLOCK], *cache = (REAL *)m->p_cache + worker * j->T * BLOCK;
        Block b;
        if (!j->per_channel) NAME(constants)(j, 0, BLOCK, table);
        for (int64_t chunk = j->chunks * worker / j->threads; chunk < j->chunks * (worker + 1) / j->threads; chunk++)
            for (int64_t k = blocks * chunk / j->chunks; k < blocks * (chunk + 1) / j->chunks; k++) {
                describe(&w, k, &b);
                double *learned = j->p_partial ? j->p_partial + chunk * K : 0;
                NAME(backward_block)(m, &w, &b, table, cache, learned, m->p_moved + chunk * 2 * j->C);
            }
    }
    if (j->p_partial) merge(j, K);
    for (int64_t chunk = 0; chunk < j->chunks; chunk++)
        for (int64_t k = 0; k < 2 * j->C; k++) m->p_moments[k] += m->p_moved[chunk * 2 * j->C + k];
    if (m->batch) NAME(through_statistics)(m);
}

#undef SEGMENTS

#endif
