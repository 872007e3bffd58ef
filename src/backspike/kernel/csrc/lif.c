/* The recursion of reference.py over all T in one pass, forward and backward, in plain C called
   through ctypes.

   Each thread walks over blocks of elements that stay in L1, and over time within a block. Results
   that are written past the cache go there row by row. Rows are short, so that the next one is
   computed while the last one is still being written. Compile with -ffp-contract=off: a fused
   multiply-add would change membranes, and with them spikes. */

#ifndef REAL

#define BLOCK 128
#include "lif.h"

#ifndef DIGEST
#define DIGEST 0
#endif

int64_t lif_digest(void) { return DIGEST; } /* of the sources that this was built from */
int64_t lif_job_size(void) { return sizeof(Job); }
int64_t lif_block(void) { return BLOCK; }
int64_t lif_replays(const Job *j) { return replays(j); }

#define BODY "lif.c"
#include "types.h"

#else

#include "lif_step.h"

/* -------------------------------------------------------------------------------------- forward */

/* Prefetches x of step t; steps beyond the last are those of the next blocks. */
static inline void NAME(fetch_x)(const Job *j, const NAME(Block) *b, int64_t t) {
    int64_t o = b->o;
    for (; t >= j->T; t -= j->T) o += BLOCK;
    if (o + BLOCK <= j->N) ahead((const IO *)j->p_x + t * j->x_stride + o, BLOCK * sizeof(IO));
}

void NAME(lif_forward)(const Job *j) {
    const int64_t blocks = (j->N + BLOCK - 1) / BLOCK, K = 2 * j->T * j->C, size = j->T * j->N;
    large_pages(j, j->p_s, size * sizeof(IO));
    large_pages(j, j->p_u, size * sizeof(REAL));
    if (j->keeps == KEEPS_BF16 || j->keeps == KEEPS_8BIT) large_pages(j, j->p_kept, size * (j->keeps == KEEPS_BF16 ? 2 : 1));
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        NAME(Block) b;
        NAME(constants)(j, 0, BLOCK, b.table);
        if (j->adapts) NAME(adaptation)(j, 0, BLOCK, b.adaptation);
        _Pragma("omp for schedule(dynamic, share(j))") for (int64_t chunk = 0; chunk < j->chunks; chunk++) {
            double *sums = j->p_partial ? j->p_partial + chunk * K : 0;
            for (int64_t block = blocks * chunk / j->chunks; block < blocks * (chunk + 1) / j->chunks; block++) {
                NAME(enter)(j, block * BLOCK, j->N, &b);
                NAME(start)(j, b.o, b.n, b.v);
                if (j->adapts) NAME(take_w)(j, j->p_v0, b.o, b.n, b.w);
                for (int64_t t = 0; t < j->T; t++) {
                    NAME(fetch_x)(j, &b, t + FETCH);
                    NAME(step_forward)(j, t, &b, sums);
                }
                if (j->p_v) deliver(j, (REAL *)j->p_v + b.o, b.v, b.n * sizeof(REAL));
                if (j->p_v && j->adapts) deliver(j, (REAL *)j->p_v + j->N + b.o, b.w, b.n * sizeof(REAL));
            }
        }
        streamed();
    }
    if (j->p_partial) merge(j, K);
}

/* ------------------------------------------------------------------------------------- backward */

/* Prefetches what the backward pass reads at step t; steps below 0 are those of the next blocks. */
static inline void NAME(fetch)(const Job *j, const NAME(Block) *b, int64_t t) {
    int64_t o = b->o;
    for (; t < 0; t += j->T) o += BLOCK;
    const int64_t at = t * j->N + o;
    if (o + BLOCK > j->N) return;
    if (j->p_g) ahead((const IO *)j->p_g + t * j->g_stride + o, BLOCK * sizeof(IO));
    if (j->keeps == KEEPS_U) ahead((const REAL *)j->p_u + at, BLOCK * sizeof(REAL));
    if (j->keeps == KEEPS_X) ahead((const IO *)j->p_x + t * j->x_stride + o, BLOCK * sizeof(IO));
    if (j->keeps == KEEPS_BF16) ahead((const uint16_t *)j->p_kept + at, BLOCK * sizeof(uint16_t));
    if (j->keeps == KEEPS_8BIT) ahead((const uint8_t *)j->p_kept + at, BLOCK);
}

void NAME(lif_backward)(const Job *j) {
    const int64_t blocks = (j->N + BLOCK - 1) / BLOCK, K = gradients(j) * (j->per_channel ? j->C : 1);
    large_pages(j, j->p_gx, (j->repeated ? 1 : j->T) * j->N * sizeof(IO));
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        NAME(Block) b;
        b.past = j->p_scratch ? (REAL *)j->p_scratch + this_thread() * replays(j) * j->T * BLOCK : 0;
        REAL *w_before = needs_w(j) ? b.past + (replays(j) - 1) * j->T * BLOCK : 0;
        b.w_before = w_before;
        b.w_stride = BLOCK;
        NAME(constants)(j, 0, BLOCK, b.table);
        if (j->adapts) NAME(adaptation)(j, 0, BLOCK, b.adaptation);
        _Pragma("omp for schedule(dynamic, share(j))") for (int64_t chunk = 0; chunk < j->chunks; chunk++) {
            double *sums = j->p_partial ? j->p_partial + chunk * K : 0;
            for (int64_t block = blocks * chunk / j->chunks; block < blocks * (chunk + 1) / j->chunks; block++) {
                NAME(enter)(j, block * BLOCK, j->N, &b);
                if (replays(j)) NAME(replay)(j, w_before, &b);
                if (j->p_gv) memcpy(b.c, (const REAL *)j->p_gv + b.o, b.n * sizeof(REAL));
                else memset(b.c, 0, b.n * sizeof(REAL));
                if (j->adapts) NAME(take_w)(j, j->p_gv, b.o, b.n, b.k);
                if (j->repeated) memset(b.total, 0, b.n * sizeof(REAL));
                const int fused = b.n == BLOCK && NAME(retreats)(j);
                for (int64_t t = j->T - 1; t >= 0; t--) {
                    NAME(fetch)(j, &b, t - FETCH);
                    if (fused) NAME(step_back_fused)(j, t, &b);
                    else NAME(step_back)(j, t, &b, sums);
                }
                if (j->p_gv0) deliver(j, (REAL *)j->p_gv0 + b.o, b.c, b.n * sizeof(REAL));
                if (j->p_gv0 && j->adapts) deliver(j, (REAL *)j->p_gv0 + j->N + b.o, b.k, b.n * sizeof(REAL));
            }
        }
        streamed();
    }
    if (j->p_partial) merge(j, K);
}

/* Only the mask, so that a test can reach indices beyond 2^32. */
void NAME(lif_mask)(const Job *j, int64_t start, const uint32_t *where, REAL *own, REAL *full, int n) {
    NAME(mask)(j, start, where, own, full, n);
}

#endif
