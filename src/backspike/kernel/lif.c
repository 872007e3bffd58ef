/* The recursion of reference.py over all T in one pass, forward and backward, in plain C called through ctypes.

   Each thread walks over blocks of elements that stay in L1, and over time within a block. Compile with -ffp-contract=off: a
   fused multiply-add would change membranes, and with them spikes. */

#ifndef REAL

#include "lif.h"

int64_t lif_job_size(void) { return sizeof(Job); }

#define BODY "lif.c"
#include "types.h"

#else

#include "step.h"

void NAME(lif_forward)(const Job *j) {
    const int64_t blocks = (j->N + BLOCK - 1) / BLOCK, K = 2 * j->T * j->C;
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        REAL table[CONSTANTS][BLOCK], v[BLOCK], b_x[BLOCK], b_u[BLOCK];
        NAME(constants)(j, 0, BLOCK, table);
        _Pragma("omp for schedule(static)") for (int64_t chunk = 0; chunk < j->chunks; chunk++) {
            double *sums = j->p_partial ? j->p_partial + chunk * K : 0;
            for (int64_t b = blocks * chunk / j->chunks; b < blocks * (chunk + 1) / j->chunks; b++) {
                const int64_t o = b * BLOCK;
                const int n = (int)min(BLOCK, j->N - o);
                if (j->per_channel) NAME(constants)(j, o, n, table);
                NAME(start)(j, o, n, v);
                for (int64_t t = 0; t < j->T; t++) {
                    const REAL *x = NAME(load)(j->p_x, t * j->x_stride + o, b_x, n);
                    REAL *u = j->p_u ? (REAL *)j->p_u + t * j->N + o : b_u;
                    NAME(fire)(j, table, x, v, u, (IO *)j->p_s + t * j->N + o, n);
                    if (!sums) continue;
                    NAME(add)(j, 1, u, o, n, sums + t * j->C);
                    SIMD EACH b_u[i] = u[i] * u[i];
                    NAME(add)(j, 1, b_u, o, n, sums + (j->T + t) * j->C);
                }
                memcpy((REAL *)j->p_v + o, v, n * sizeof(REAL));
            }
        }
    }
    if (j->p_partial) merge(j, K);
}

void NAME(lif_backward)(const Job *j) {
    const int64_t blocks = (j->N + BLOCK - 1) / BLOCK, K = 3 * (j->per_channel ? j->C : 1);
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        REAL table[CONSTANTS][BLOCK], c[BLOCK], own[BLOCK], full[BLOCK], delta[BLOCK], term[BLOCK];
        REAL b_x[BLOCK], b_g[BLOCK], b_gx[BLOCK], b_a[BLOCK], b_b[BLOCK];
        uint32_t where[BLOCK];
        const REAL *theta = table[THETA], *width = j->parametric ? table[WIDTH] : 0;
        NAME(constants)(j, 0, BLOCK, table);
        _Pragma("omp for schedule(static)") for (int64_t chunk = 0; chunk < j->chunks; chunk++) {
            double *sums = j->p_partial ? j->p_partial + chunk * K : 0;
            for (int64_t block = blocks * chunk / j->chunks; block < blocks * (chunk + 1) / j->chunks; block++) {
                const int64_t o = block * BLOCK;
                const int n = (int)min(BLOCK, j->N - o);
                const int64_t base = j->masked ? logical(j, o, n, where) : 0;
                if (j->per_channel) NAME(constants)(j, o, n, table);
                if (j->p_gv) memcpy(c, (const REAL *)j->p_gv + o, n * sizeof(REAL));
                else memset(c, 0, n * sizeof(REAL));
                for (int64_t t = j->T - 1; t >= 0; t--) {
                    const REAL *u = (const REAL *)j->p_u + t * j->N + o;
                    REAL *whole = j->masked && j->replace.family ? full : 0;
                    NAME(derivative)(&j->surrogate, u, theta, width, own, n);
                    if (whole) NAME(derivative)(&j->replace, u, theta, 0, whole, n);
                    if (j->masked) NAME(mask)(j, t * j->N + base, where, own, whole, n);
                    const NAME(Step) p = {
                        .u = u,
                        .g = NAME(load)(j->p_g, t * j->g_stride + o, b_g, n),
                        .theta = theta,
                        .own = own,
                        .h = whole ? whole : own,
                        .extra = NAME(direct)(j, t, o, n, u, b_a, b_b),
                        .c = c,
                    };
                    if (sums) NAME(learn)(j, &p, width, o, n, term, sums);
                    IO *gx = j->p_gx ? (IO *)j->p_gx + t * j->N + o : 0;
                    NAME(step)(j, &p, table[LAM], table[GAIN], delta, gx && sizeof(IO) == sizeof(REAL) ? (REAL *)gx : b_gx, n);
                    if (gx && sizeof(IO) == 2) SIMD EACH ((uint16_t *)gx)[i] = to_bf16(b_gx[i]);
                    if (j->learns & LEARNS_TAU) NAME(learn_tau)(j, t, o, n, theta, delta, b_x, term, sums);
                }
                memcpy((REAL *)j->p_gv0 + o, c, n * sizeof(REAL));
            }
        }
    }
    if (j->p_partial) merge(j, K);
}

/* The mask alone, so that indices beyond 2^32 can be tested. */
void NAME(lif_mask)(const Job *j, int64_t start, const uint32_t *where, REAL *own, REAL *full, int n) {
    NAME(mask)(j, start, where, own, full, n);
}

#endif
