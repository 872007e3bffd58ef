/* BatchNorm, the neuron and a 2x2 pool, forward in one pass: x = y scale + shift is computed where
   the neuron reads it. norm_backward.c is the backward pass. */

#ifndef REAL

#include "norm.h"

int64_t norm_job_size(void) { return sizeof(Norm); }

int64_t norm_block(void) { return BLOCK; }

int64_t norm_splits(const Norm *m) { return walk(m->neuron.N, last(&m->neuron), m->H, m->W).splits; }

#define BODY "norm.c"
#include "types.h"

#else

#include "step.h"
#include "norm.h"

/* ----------------------------------------------------------------------------------- statistics */

/* Deviations from the guess, and their squares, of a few rows: the sums stay in registers. */
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

/* The mean of a few elements of every channel: so near the mean that deviations lose no digits. */
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

/* Sums of a chunk. With channels last, HELD blocks below each other are added up before they go to
   the sums in float64. */
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
            /* the last block may be short */
            describe(w, (first + rows - 1) * w->splits + split, &end);
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

/* -------------------------------------------------------------------------------------- forward */

/* Pools the spikes of windows, each of four neighbours of `run` elements. */
static inline void NAME(pool_spikes)(int64_t pool, const Block *b, const IO *s, IO *out) {
    const int n = b->run;
    for (int k = 0; k < b->windows; k++) {
        const IO *s0 = s + 4 * k * n, *s1 = s0 + n, *s2 = s1 + n, *s3 = s2 + n;
        IO *to = out + b->out[k];
        SIMD EACH { /* a NaN stays one */
            const REAL sum = NAME(widen)(s0[i]) + NAME(widen)(s1[i]) + NAME(widen)(s2[i]) + NAME(widen)(s3[i]);
            to[i] = NAME(narrow)(pool == MAXIMUM ? NAME(lower)(1, sum) : sum * (REAL)0.25);
        }
    }
}

/* One timestep: v and the spikes. u and x are written where they are needed, which is slower. */
static inline void NAME(advance)(const Norm *m, const Block *b, int64_t t, REAL table[CONSTANTS][BLOCK], const REAL *scale,
                                 const REAL *shift, REAL *x, REAL *v, REAL *u, IO *s) {
    const Job *j = &m->neuron;
    if (j->per_channel || j->repeated) {
        if (!t || !j->repeated) NAME(normalise)(j, b, t, scale, shift, x);
        NAME(fire)(j, table, x, v, u, s, b->count * b->run);
    } else {
        const IO *y = (const IO *)j->p_x + t * j->x_stride;
#define CASE(SOFT, U)                       \
    if (!!j->soft == SOFT)                  \
        SEGMENTS NAME(advance_as)(SOFT, j, table, y + b->at[k], scale + i, shift + i, v + i, U, s + i, b->run);
        if (j->p_partial) {
            CASE(0, u + i) CASE(1, u + i)
        } else {
            CASE(0, 0) CASE(1, 0)
        }
#undef CASE
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
        NAME(add_block)(j, b, u, sums + t * j->C);
        SIMD EACH u[i] = u[i] * u[i];
        NAME(add_block)(j, b, u, sums + (j->T + t) * j->C);
        SIMD EACH u[i] = NAME(widen)(s[i]);
        NAME(add_block)(j, b, u, sums + (2 * j->T + t) * j->C);
    }
    if (j->p_v) SEGMENTS memcpy((REAL *)j->p_v + b->at[k], v + i, b->run * sizeof(REAL));
}

void NAME(norm_forward)(const Norm *m) {
    const Job *j = &m->neuron;
    const Walk w = walk(j->N, last(j), m->H, m->W);
    const int64_t K = 3 * j->T * j->C, blocks = w.groups * w.splits;
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

#endif
