/* The backward pass of norm.c. Only y and the constants of the channels are saved for it.

   It computes x and u again, a block with all its timesteps at a time, in cache. The gradient
   through the statistics takes sums over everything, so it needs a second pass over y: dy = scale
   (gx - mean(gx) - (y - mean) rstd^2 mean(gx (y - mean))). */

#ifndef REAL

#include "norm.h"

#define BODY "norm_backward.c"
#include "types.h"

#else

#include "step.h"
#include "norm.h"

static const IO NAME(none)[BLOCK];

/* The gradient of a window in equal parts, or all of it to the element that fired first (to the
   first element if none did). */
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

/* Computes u of all T steps again, into the cache. */
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

/* Writes gx to where dy will be, and adds it to the sums a, of gx, and q, of gx (y - mean). */
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

/* One timestep back in one loop: for neurons that have the same constants and learn no tau. extra: the
   direct gradient of u, or null. */
ALWAYS void NAME(retreat_as)(const int soft, const int attached, const Job *j, REAL table[CONSTANTS][BLOCK], const REAL *u,
                             const REAL *h, const IO *g, const REAL *extra, const IO *y, const REAL *mean, const REAL *factor,
                             REAL *c, REAL *a, REAL *q, IO *dy, int n) {
    const REAL lam = table[LAM][0], gain = table[GAIN][0], theta = table[THETA][0];
    const REAL rho = (REAL)j->rho, v_reset = (REAL)j->v_reset;
    SIMD EACH {
        const REAL back = NAME(delta)(soft, attached, NAME(widen)(g[i]), h[i], u[i], theta, c[i], rho, v_reset);
        const REAL d = extra ? back + extra[i] : back, gx = d * gain;
        c[i] = d * lam;
        a[i] += gx;
        q[i] += gx * (NAME(widen)(y[i]) - mean[i]);
        dy[i] = NAME(narrow)(factor ? gx * factor[i] : gx);
    }
}

static inline void NAME(retreat)(const Job *j, const Block *b, int64_t t, REAL table[CONSTANTS][BLOCK], const REAL *u, const REAL *h,
                                 const IO *g, const REAL *extra, const REAL *mean, const REAL *factor, REAL *c, REAL *a, REAL *q,
                                 IO *buffer) {
    const IO *y = (const IO *)j->p_x + t * j->x_stride;
    IO *dy = (IO *)j->p_gx + t * j->N;
#define CASE(SOFT, ATTACHED, EXTRA, FACTOR)                                                                        \
    if (!!j->soft == SOFT && (j->rho != 0) == ATTACHED)                                                            \
        SEGMENTS NAME(retreat_as)(SOFT, ATTACHED, j, table, u + i, h + i, g + i, EXTRA, y + b->at[k], mean + i, FACTOR, c + i, \
                                  a + i, q + i, place(j, dy + b->at[k], buffer + i), b->run);
#define EACH_RESET(EXTRA, FACTOR) \
    { CASE(0, 0, EXTRA, FACTOR) CASE(0, 1, EXTRA, FACTOR) CASE(1, 0, EXTRA, FACTOR) CASE(1, 1, EXTRA, FACTOR) }
    if (extra && factor) EACH_RESET(extra + i, factor + i)
    else if (extra) EACH_RESET(extra + i, 0)
    else if (factor) EACH_RESET(0, factor + i)
    else EACH_RESET(0, 0)
#undef EACH_RESET
#undef CASE
    if (j->streams) SEGMENTS stream(dy + b->at[k], buffer + i, b->run * sizeof(IO));
    if (!j->temporal) SIMD for (int i = 0; i < BLOCK; i++) c[i] = 0;
}

static inline void NAME(settle)(const Job *j, const Block *b, REAL *a, REAL *q, double *moved) {
    NAME(add_block)(j, b, a, moved);
    NAME(add_block)(j, b, q, moved + j->C);
    SIMD for (int i = 0; i < BLOCK; i++) a[i] = q[i] = 0;
}

/* The positions of the elements of a block in the index of the mask: base + where[i]. Its segments
   are in one sample or in neighbouring ones. */
static inline int64_t NAME(locate)(const Job *j, const Block *b, uint32_t *where) {
    int64_t base = INT64_MAX;
    SEGMENTS base = min(base, logical(j, b->at[k], b->run, where + i));
    SEGMENTS {
        const uint32_t more = (uint32_t)(logical(j, b->at[k], 0, where) - base);
        if (more) SIMD for (int m = 0; m < b->run; m++) where[i + m] += more;
    }
    return base;
}

/* The gradients of theta and of the width, at one timestep. */
static inline void NAME(learn_block)(const Job *j, const Block *b, const NAME(Step) *p, const REAL *width, REAL *term,
                                     double *sums) {
    if (!j->per_channel) {
        NAME(learn)(j, p, width, 0, b->count * b->run, term, sums);
        return;
    }
    SEGMENTS {
        const NAME(Step) part = {
            .u = p->u + i, .g = p->g + i, .theta = p->theta + i, .own = p->own + i, .h = p->h + i, .c = p->c + i
        };
        NAME(learn)(j, &part, width ? width + i : 0, b->at[k], b->run, term, sums);
    }
}

static void NAME(backward_block)(const Norm *m, const Walk *w, const Block *b, const Block *next, REAL table[CONSTANTS][BLOCK], REAL *cache,
                                 double *learned, double *moved) {
    const Job *j = &m->neuron;
    const int n = b->count * b->run;
    REAL x[BLOCK], v[BLOCK], c[BLOCK], own[BLOCK], full[BLOCK], delta[BLOCK], gx[BLOCK], term[BLOCK], a[BLOCK], q[BLOCK];
    REAL b_g[BLOCK], b_a[BLOCK], b_b[BLOCK], b_scale[BLOCK], b_shift[BLOCK], b_mean[BLOCK];
    IO b_half[BLOCK], b_dy[BLOCK];
    uint32_t where[BLOCK];
    /* the same constants everywhere, and one loop for a timestep */
    const int alike = !j->per_channel && !j->repeated && !(j->learns & LEARNS_TAU);
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
        const REAL *h = j->masked && j->replace.code ? full : own;
        const IO *g = NAME(upstream)(m, w, b, t, u, theta, b_half);
        const REAL *extra = NAME(zero);
        if (j->p_line) {
            SEGMENTS NAME(direct)(j, t, b->at[k], b->run, u + i, b_a + i, b_b + i);
            extra = b_a;
        }
        const NAME(Step) p = {
            .u = u,
            /* a neuron that is alike and learns nothing needs no g in REAL */
            .g = j->learns || !alike ? NAME(load)(g, 0, b_g, n) : 0,
            .theta = theta,
            .own = own,
            .h = h,
            .extra = extra,
            .c = c,
        };
        if (j->learns & ~LEARNS_TAU) NAME(learn_block)(j, b, &p, width, term, learned);
        if (alike) {
            NAME(retreat)(j, b, t, table, u, h, g, j->p_line ? extra : 0, mean, factor, c, a, q, b_dy);
            if (t % HELD == 0) NAME(settle)(j, b, a, q, moved);
            continue;
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

/* Turns gx into dy, in place. */
static void NAME(through_statistics)(const Norm *m) {
    const Job *j = &m->neuron;
    const Walk w = walk(j->N, last(j), 0, 0);
    const double steps = j->repeated ? 1 : j->T, n = steps * (j->N / j->C);
    enum { SLOPE = RSTD, CENTRE = SHIFT }; /* rows that are no longer needed */
    const double *rstd = m->p_norm + RSTD * j->C;
    double *slope = m->p_moved; /* already merged */
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

#endif
