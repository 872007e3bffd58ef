/* The loops around one timestep of a neuron with equations of its own. c.py writes the timestep:

     advance    u, the spikes and the states after it, from x and the states
     before     the states before a timestep, from what was saved of the one before it
     slopes     the surrogate derivatives, before the mask (MASKED, REPLACEMENT)
     retreat    the gradients of x and of the states, and of coefficients as terms of sums

   and the numbers COEFFICIENTS, STATES, ROWS (that advance computes and may be saved, u first) and
   LEARNED (coefficients with gradients). BEFORE, NEEDS_X: whether the backward pass needs the states
   before a timestep, and x. BASE, REPLACEMENT: the codes of the surrogates. varies: which coefficients differ between channels.
   rest: for each state its coefficient at rest. learned: the coefficients with gradients; at_rest:
   for each state its place among them, or -1.

   Threads, blocks, sums and the mask are those of the kernels in csrc. In a job, p_constants are the
   coefficients; p_v0, p_v, p_gv and p_gv0 are [STATES, N]; p_kept is [saved, T, N]. Bit i of `keeps`
   says that row i is saved; in a backward pass without any, all timesteps are computed again, into
   p_scratch, [threads, T, ROWS, BLOCK]. repeated: the call did not begin at rest. */

typedef struct {
    _Alignas(64) REAL k[COEFFICIENTS][BLOCK], v[STATES][BLOCK], x[BLOCK], row[ROWS][BLOCK], g[BLOCK], gx[BLOCK];
    REAL before[STATES][BLOCK], own[BLOCK], full[BLOCK], term[LEARNED + 1][BLOCK];
    IO s[BLOCK];
    uint16_t half[BLOCK];
    uint32_t where[BLOCK];
    int64_t o, base; /* the first element, and its position in the index of the mask */
    int n;
    REAL *past;
} NAME(Own);

static inline void NAME(coefficients)(const Job *j, int channels, NAME(Own) *b) {
    for (int row = 0; row < COEFFICIENTS; row++)
        if (varies[row] == channels)
            NAME(spread)(j, channels, (const REAL *)j->p_constants + row * (j->per_channel ? j->C : 1), b->o, b->n, b->k[row]);
}

static inline void NAME(set_up)(const Job *j, NAME(Own) *b) {
    b->o = 0;
    b->n = BLOCK;
    NAME(coefficients)(j, 0, b);
}

static inline void NAME(enter)(const Job *j, int64_t block, NAME(Own) *b) {
    b->o = block * BLOCK;
    b->n = (int)min(BLOCK, j->N - b->o);
    b->base = j->masked ? logical(j, b->o, b->n, b->where) : 0;
    if (j->per_channel) NAME(coefficients)(j, 1, b);
}

static inline void NAME(begin)(const Job *j, const NAME(Own) *b, REAL (*v)[BLOCK]) {
    for (int i = 0; i < STATES; i++)
        memcpy(v[i], j->p_v0 ? (const REAL *)j->p_v0 + i * j->N + b->o : b->k[rest[i]], b->n * sizeof(REAL));
}

/* Row i of timestep t, where it is saved. */
static inline REAL *NAME(saved)(const Job *j, int i, int64_t t, const NAME(Own) *b) {
    if (b->past) return b->past + (t * ROWS + i) * BLOCK;
    if (!(j->keeps >> i & 1)) return 0;
    const int64_t slot = __builtin_popcountll((uint64_t)j->keeps & (((uint64_t)1 << i) - 1));
    return (REAL *)j->p_kept + (slot * j->T + t) * j->N + b->o;
}

static inline void NAME(fetch)(const Job *j, const void *p, int64_t stride, int64_t size, int64_t t, const NAME(Own) *b) {
    int64_t o = b->o;
    for (; t >= j->T; t -= j->T) o += BLOCK; /* steps beyond the last are those of the next blocks */
    for (; t < 0; t += j->T) o += BLOCK;
    if (p && o + BLOCK <= j->N) ahead((const char *)p + (t * stride + o) * size, BLOCK * size);
}

#ifdef FORWARD

static void NAME(step_forward)(const Job *j, int64_t t, NAME(Own) *b) {
    const int64_t at = t * j->N + b->o;
    const int n = b->n;
    const REAL *x = NAME(load)(j->p_x, t * j->x_stride + b->o, b->x, n);
    IO *p_s = (IO *)j->p_s + at, *s = place(j, p_s, b->s);
    REAL *p_u = j->p_u ? (REAL *)j->p_u + at : 0, *to[ROWS], *rows[ROWS];
    for (int i = 0; i < ROWS; i++) {
        to[i] = NAME(saved)(j, i, t, b);
        rows[i] = i == 0 && p_u ? b->row[0] : place(j, to[i], b->row[i]);
    }
    NAME(advance)(b->k, x, b->v, rows, s, n);
    deliver(j, p_s, s, n * sizeof(IO));
    deliver(j, p_u, rows[0], n * sizeof(REAL));
    for (int i = 0; i < ROWS; i++) deliver(j, to[i], rows[i], n * sizeof(REAL));
}

void forward(const Job *j) {
    const int64_t blocks = (j->N + BLOCK - 1) / BLOCK, size = j->T * j->N;
    large_pages(j, j->p_s, size * sizeof(IO));
    large_pages(j, j->p_u, size * sizeof(REAL));
    large_pages(j, j->p_kept, __builtin_popcountll((uint64_t)j->keeps) * size * sizeof(REAL));
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        NAME(Own) b;
        b.past = 0;
        NAME(set_up)(j, &b);
        _Pragma("omp for schedule(dynamic, share(j))") for (int64_t chunk = 0; chunk < j->chunks; chunk++)
            for (int64_t block = blocks * chunk / j->chunks; block < blocks * (chunk + 1) / j->chunks; block++) {
                NAME(enter)(j, block, &b);
                NAME(begin)(j, &b, b.v);
                for (int64_t t = 0; t < j->T; t++) {
                    NAME(fetch)(j, j->p_x, j->x_stride, sizeof(IO), t + FETCH, &b);
                    NAME(step_forward)(j, t, &b);
                }
                for (int i = 0; i < STATES && j->p_v; i++)
                    deliver(j, (REAL *)j->p_v + i * j->N + b.o, b.v[i], b.n * sizeof(REAL));
            }
        streamed();
    }
}

#else

/* Computes the rows of all timesteps again. */
static void NAME(replay)(const Job *j, NAME(Own) *b) {
    NAME(begin)(j, b, b->v);
    for (int64_t t = 0; t < j->T; t++) {
        REAL *rows[ROWS];
        for (int i = 0; i < ROWS; i++) rows[i] = NAME(saved)(j, i, t, b);
        NAME(advance)(b->k, NAME(load)(j->p_x, t * j->x_stride + b->o, b->x, b->n), b->v, rows, b->s, b->n);
    }
}

static void NAME(step_back)(const Job *j, int64_t t, NAME(Own) *b, double *sums) {
    const int64_t at = t * j->N + b->o, C = j->per_channel ? j->C : 1;
    const int n = b->n;
    const REAL *rows[ROWS], *x = NAME(load)(NEEDS_X ? j->p_x : 0, t * j->x_stride + b->o, b->x, n), *h = 0;
    for (int i = 0; i < ROWS; i++) rows[i] = NAME(saved)(j, i, t, b);
    if (BEFORE && t) {
        const REAL *earlier[ROWS];
        for (int i = 0; i < ROWS; i++) earlier[i] = NAME(saved)(j, i, t - 1, b);
        NAME(before)(b->k, earlier, b->before, n);
    } else if (BEFORE) {
        NAME(begin)(j, b, b->before);
    }
    if (MASKED) {
        REAL *full = REPLACEMENT ? b->full : 0;
        NAME(slopes)(j, b->k, rows, b->before, x, b->own, full, n);
        NAME(mask)(j, t * j->N + b->base, b->where, b->own, full, n);
        h = full ? full : b->own;
    }
    const REAL *g = NAME(load)(j->p_g, t * j->g_stride + b->o, b->g, n);
    const REAL *gu = j->p_gu ? (const REAL *)j->p_gu + t * j->gu_stride + b->o : NAME(zero);
    const int in_place = j->p_gx && sizeof(IO) == sizeof(REAL) && !j->streams;
    REAL *gx = in_place ? (REAL *)j->p_gx + at : b->gx;
    NAME(retreat)(j, b->k, rows, b->before, x, g, gu, h, b->own, b->v, gx, b->term, n);
    for (int i = 0; i < LEARNED; i++) NAME(add)(j, varies[learned[i]], b->term[i], b->o, n, sums + i * C);
    if (j->p_gx) NAME(store)(j, j->p_gx, at, gx, b->half, n);
    if (!j->temporal) memset(b->v, 0, sizeof b->v);
}

void backward(const Job *j) {
    const int64_t blocks = (j->N + BLOCK - 1) / BLOCK, C = j->per_channel ? j->C : 1, K = LEARNED * C;
    large_pages(j, j->p_gx, j->T * j->N * sizeof(IO));
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        NAME(Own) b;
        b.past = j->keeps ? 0 : (REAL *)j->p_scratch + this_thread() * j->T * ROWS * BLOCK;
        NAME(set_up)(j, &b);
        _Pragma("omp for schedule(dynamic, share(j))") for (int64_t chunk = 0; chunk < j->chunks; chunk++) {
            double *sums = j->p_partial ? j->p_partial + chunk * K : 0;
            for (int64_t block = blocks * chunk / j->chunks; block < blocks * (chunk + 1) / j->chunks; block++) {
                NAME(enter)(j, block, &b);
                if (b.past) NAME(replay)(j, &b);
                for (int i = 0; i < STATES; i++) { /* b.v: the gradients of the states */
                    if (j->p_gv) memcpy(b.v[i], (const REAL *)j->p_gv + i * j->N + b.o, b.n * sizeof(REAL));
                    else memset(b.v[i], 0, b.n * sizeof(REAL));
                }
                for (int64_t t = j->T - 1; t >= 0; t--) {
                    NAME(fetch)(j, j->p_g, j->g_stride, sizeof(IO), t - FETCH, &b);
                    for (int i = 0; i < ROWS && !b.past; i++)
                        if (j->keeps >> i & 1) NAME(fetch)(j, NAME(saved)(j, i, 0, &b) - b.o, j->N, sizeof(REAL), t - FETCH, &b);
                    NAME(step_back)(j, t, &b, sums);
                }
                for (int i = 0; i < STATES; i++) {
                    if (j->p_gv0) deliver(j, (REAL *)j->p_gv0 + i * j->N + b.o, b.v[i], b.n * sizeof(REAL));
                    else if (at_rest[i] >= 0 && !j->repeated) NAME(add)(j, varies[rest[i]], b.v[i], b.o, b.n, sums + at_rest[i] * C);
                }
            }
        }
        streamed();
    }
    if (j->p_partial) merge(j, K);
}

#endif
