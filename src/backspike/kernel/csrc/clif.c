/* The complementary neuron over all T in one pass, forward and backward: the recursion of
   reference.py with

       a[t] = sig(u[t] / tau),   m[t] = m[t-1] a[t] + s[t],   v[t] = u[t] - s[t] (theta + sig(m[t]))

   The forward pass saves u, or x (KEEPS_X); the rest is computed again block by block. A state is
   two rows, v and m. The row OFFSET of the constants, which a soft reset does not need, holds
   1 / tau. */

#ifndef REAL

#define BLOCK 128 /* as in lif.c */
#include "lif.h"

enum { PER_TAU = OFFSET };
/* Of each timestep: a, m, b = sig(m) and, with KEEPS_X, u. */
enum { PAST_A, PAST_M, PAST_B, PAST_U, PASTS };

#define BODY "clif.c"
#include "types.h"

#else

#include "step.h"

/* The data of the block that a thread works on. */
typedef struct {
    REAL table[CONSTANTS][BLOCK], v[BLOCK], m[BLOCK], x[BLOCK], u[BLOCK], a[BLOCK], b[BLOCK];
    REAL c[BLOCK], cm[BLOCK], g[BLOCK], own[BLOCK], full[BLOCK], G[BLOCK], over[BLOCK], delta[BLOCK], gx[BLOCK], term[BLOCK];
    IO s[BLOCK];
    uint16_t half[BLOCK];
    uint32_t where[BLOCK];
    int64_t o, base; /* the first element, and its position in the index of the mask */
    int n;
    REAL *past; /* [PASTS, T, BLOCK] */
} NAME(Clif);

static inline void NAME(clif_enter)(const Job *j, int64_t block, NAME(Clif) *b) {
    b->o = block * BLOCK;
    b->n = (int)min(BLOCK, j->N - b->o);
    b->base = j->masked ? logical(j, b->o, b->n, b->where) : 0;
    if (j->per_channel) NAME(constants)(j, b->o, b->n, b->table);
}

/* A row of a state [2, N], or zeros. */
static inline void NAME(take)(const Job *j, const void *state, int64_t row, const NAME(Clif) *b, REAL *to) {
    if (state) memcpy(to, (const REAL *)state + row * j->N + b->o, b->n * sizeof(REAL));
    else memset(to, 0, b->n * sizeof(REAL));
}

static inline void NAME(give)(const Job *j, void *state, int64_t row, const NAME(Clif) *b, const REAL *from) {
    memcpy((REAL *)state + row * j->N + b->o, from, b->n * sizeof(REAL));
}

ALWAYS REAL NAME(sigmoid)(REAL x) {
    const REAL e = NAME(exp_below_0)(x < 0 ? x : -x);
    return (x < 0 ? e : 1) / (1 + e);
}

/* u from v and x; NaN if it is not finite */
static inline void NAME(charge)(REAL table[CONSTANTS][BLOCK], const REAL *x, const REAL *v, REAL *u, int n) {
    const REAL *lam = table[LAM], *gain = table[GAIN];
    SIMD EACH {
        const REAL potential = lam[i] * v[i] + gain[i] * x[i];
        u[i] = potential + NAME(doubt)(potential);
    }
}

/* a, m and b from u and the previous m */
static inline void NAME(complement)(REAL table[CONSTANTS][BLOCK], const REAL *u, const REAL *before, REAL *a, REAL *m, REAL *b,
                                    int n) {
    const REAL *per_tau = table[PER_TAU], *theta = table[THETA];
    SIMD EACH {
        a[i] = NAME(sigmoid)(u[i] * per_tau[i]);
        m[i] = before[i] * a[i] + (u[i] >= theta[i] ? 1 : 0);
        b[i] = NAME(sigmoid)(m[i]);
    }
}

/* v after a step */
static inline void NAME(discharge)(const REAL *theta, const REAL *u, const REAL *b, REAL *v, int n) {
    SIMD EACH v[i] = u[i] >= theta[i] ? u[i] - (theta[i] + b[i]) : u[i];
}

/* -------------------------------------------------------------------------------------- forward */

static inline void NAME(clif_step)(const Job *j, int64_t t, NAME(Clif) *b, double *sums) {
    const int64_t at = t * j->N + b->o;
    const REAL *theta = b->table[THETA], *x = NAME(load)(j->p_x, t * j->x_stride + b->o, b->x, b->n);
    const int n = b->n;
    REAL *p_u = j->p_u ? (REAL *)j->p_u + at : 0, *u = place(j, p_u, b->u);
    IO *p_s = (IO *)j->p_s + at, *s = place(j, p_s, b->s);
    NAME(charge)(b->table, x, b->v, u, n);
    SIMD EACH s[i] = NAME(spike)(u[i] >= theta[i], NAME(doubt)(u[i]));
    NAME(complement)(b->table, u, b->m, b->a, b->m, b->b, n);
    NAME(discharge)(theta, u, b->b, b->v, n);
    deliver(j, p_s, s, n * sizeof(IO));
    deliver(j, p_u, u, n * sizeof(REAL));
    if (!sums) return;
    NAME(add)(j, 1, u, b->o, n, sums + t * j->C);
    SIMD EACH b->term[i] = u[i] * u[i];
    NAME(add)(j, 1, b->term, b->o, n, sums + (j->T + t) * j->C);
}

void NAME(clif_forward)(const Job *j) {
    const int64_t blocks = (j->N + BLOCK - 1) / BLOCK, K = 2 * j->T * j->C;
    large_pages(j, j->p_s, j->T * j->N * sizeof(IO));
    large_pages(j, j->p_u, j->T * j->N * sizeof(REAL));
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        NAME(Clif) b;
        NAME(constants)(j, 0, BLOCK, b.table);
        _Pragma("omp for schedule(static)") for (int64_t chunk = 0; chunk < j->chunks; chunk++) {
            double *sums = j->p_partial ? j->p_partial + chunk * K : 0;
            for (int64_t block = blocks * chunk / j->chunks; block < blocks * (chunk + 1) / j->chunks; block++) {
                NAME(clif_enter)(j, block, &b);
                NAME(take)(j, j->p_v0, 0, &b, b.v);
                NAME(take)(j, j->p_v0, 1, &b, b.m);
                for (int64_t t = 0; t < j->T; t++) NAME(clif_step)(j, t, &b, sums);
                NAME(give)(j, j->p_v, 0, &b, b.v);
                NAME(give)(j, j->p_v, 1, &b, b.m);
            }
        }
        streamed();
    }
    if (j->p_partial) merge(j, K);
}

/* ------------------------------------------------------------------------------------- backward */

static inline REAL *NAME(past)(const Job *j, const NAME(Clif) *b, int what, int64_t t) {
    return b->past + (what * j->T + t) * BLOCK;
}

static inline const REAL *NAME(known)(const Job *j, const NAME(Clif) *b, int64_t t) {
    return j->keeps == KEEPS_X ? NAME(past)(j, b, PAST_U, t) : (const REAL *)j->p_u + t * j->N + b->o;
}

/* Computes all timesteps of the block again. */
static inline void NAME(clif_replay)(const Job *j, NAME(Clif) *b) {
    const int n = b->n;
    const REAL *m = b->m;
    NAME(take)(j, j->p_v0, 0, b, b->v);
    NAME(take)(j, j->p_v0, 1, b, b->m);
    for (int64_t t = 0; t < j->T; t++) {
        REAL *next = NAME(past)(j, b, PAST_M, t), *sig = NAME(past)(j, b, PAST_B, t);
        if (j->keeps == KEEPS_X) {
            const REAL *x = NAME(load)(j->p_x, t * j->x_stride + b->o, b->x, n);
            NAME(charge)(b->table, x, b->v, NAME(past)(j, b, PAST_U, t), n);
        }
        const REAL *u = NAME(known)(j, b, t);
        NAME(complement)(b->table, u, m, NAME(past)(j, b, PAST_A, t), next, sig, n);
        if (j->keeps == KEEPS_X) NAME(discharge)(b->table[THETA], u, sig, b->v, n);
        m = next;
    }
}

/* term = tau^2 times the part of dL/dtau of one step */
static inline void NAME(clif_learn_tau)(const Job *j, int64_t t, const REAL *u, NAME(Clif) *b, double *sums) {
    const int n = b->n;
    const REAL *x = NAME(load)(j->decay_input ? j->p_x : 0, t * j->x_stride + b->o, b->x, n);
    if (t) NAME(discharge)(b->table[THETA], NAME(known)(j, b, t - 1), NAME(past)(j, b, PAST_B, t - 1), b->v, n);
    else NAME(take)(j, j->p_v0, 0, b, b->v);
    SIMD EACH b->term[i] = b->delta[i] * (b->v[i] - x[i]) - b->over[i] * u[i];
    NAME(add)(j, j->per_channel, b->term, b->o, n, sums);
}

static inline void NAME(clif_learn)(const Job *j, const REAL *u, const REAL *h, NAME(Clif) *b, double *sums) {
    const REAL *theta = b->table[THETA], *w = b->table[WIDTH];
    const int64_t C = j->per_channel ? j->C : 1;
    const int n = b->n;
    if (j->learns & LEARNS_THETA) {
        SIMD EACH b->term[i] = -(b->G[i] * h[i]) - (u[i] >= theta[i] ? b->c[i] : 0);
        NAME(add)(j, j->per_channel, b->term, b->o, n, sums + C);
    }
    if (j->learns & LEARNS_WIDTH && j->parametric) {
        SIMD EACH b->term[i] = -((u[i] - theta[i]) / w[i]) * b->G[i] * b->own[i];
        NAME(add)(j, j->per_channel, b->term, b->o, n, sums + 2 * C);
    }
}

/* c and cm are dL/dv[t] and dL/dm[t] through the later steps; afterwards they are those of t - 1.
   over: the gradient of u[t] / tau. */
static inline void NAME(clif_back)(const Job *j, int64_t t, NAME(Clif) *b, double *sums) {
    const REAL *theta = b->table[THETA], *lam = b->table[LAM], *gain = b->table[GAIN], *per_tau = b->table[PER_TAU];
    const REAL *u = NAME(known)(j, b, t), *a = NAME(past)(j, b, PAST_A, t), *sig = NAME(past)(j, b, PAST_B, t);
    const REAL *g = NAME(load)(j->p_g, t * j->g_stride + b->o, b->g, b->n), *before = b->m, rho = (REAL)j->rho;
    const int n = b->n;
    REAL *c = b->c, *cm = b->cm, *G = b->G, *over = b->over, *delta = b->delta;
    if (t) before = NAME(past)(j, b, PAST_M, t - 1);
    else NAME(take)(j, j->p_v0, 1, b, b->m);
    NAME(derivative)(&j->surrogate, u, theta, j->parametric ? b->table[WIDTH] : 0, b->own, n);
    const REAL *h = NAME(masked)(j, t * j->N + b->base, b->where, u, theta, b->own, b->full, n);
    const REAL *extra = NAME(direct)(j, t, b->o, n, u, b->term, b->gx);
    SIMD EACH {
        const REAL gm = cm[i] - (u[i] >= theta[i] ? c[i] * sig[i] * (1 - sig[i]) : 0);
        G[i] = g[i] + gm - rho * c[i] * (theta[i] + sig[i]);
        over[i] = gm * before[i] * a[i] * (1 - a[i]);
        delta[i] = G[i] * h[i] + c[i] + over[i] * per_tau[i] + extra[i];
        cm[i] = gm * a[i];
    }
    if (sums) NAME(clif_learn)(j, u, h, b, sums);
    SIMD EACH {
        b->gx[i] = delta[i] * gain[i];
        c[i] = delta[i] * lam[i];
    }
    if (j->p_gx) NAME(store)(j, j->p_gx, t * j->N + b->o, b->gx, b->half, n);
    if (j->learns & LEARNS_TAU) NAME(clif_learn_tau)(j, t, u, b, sums);
    if (j->temporal) return;
    memset(c, 0, n * sizeof(REAL));
    memset(cm, 0, n * sizeof(REAL));
}

void NAME(clif_backward)(const Job *j) {
    const int64_t blocks = (j->N + BLOCK - 1) / BLOCK, K = 3 * (j->per_channel ? j->C : 1);
    large_pages(j, j->p_gx, j->T * j->N * sizeof(IO));
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        NAME(Clif) b;
        b.past = (REAL *)j->p_scratch + this_thread() * PASTS * j->T * BLOCK;
        NAME(constants)(j, 0, BLOCK, b.table);
        _Pragma("omp for schedule(static)") for (int64_t chunk = 0; chunk < j->chunks; chunk++) {
            double *sums = j->p_partial ? j->p_partial + chunk * K : 0;
            for (int64_t block = blocks * chunk / j->chunks; block < blocks * (chunk + 1) / j->chunks; block++) {
                NAME(clif_enter)(j, block, &b);
                NAME(clif_replay)(j, &b);
                NAME(take)(j, j->p_gv, 0, &b, b.c);
                NAME(take)(j, j->p_gv, 1, &b, b.cm);
                for (int64_t t = j->T - 1; t >= 0; t--) NAME(clif_back)(j, t, &b, sums);
                NAME(give)(j, j->p_gv0, 0, &b, b.c);
                NAME(give)(j, j->p_gv0, 1, &b, b.cm);
            }
        }
        streamed();
    }
    if (j->p_partial) merge(j, K);
}

#endif
