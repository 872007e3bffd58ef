/* One timestep of the LIF neuron on a block of elements, forward and backward, with every option.
   Included once per pair of types, after lif.h; lif.c walks over time within a block, recurrent.c
   over the blocks of some samples within a timestep. */

#include "step.h"
#include "saved.h"
#include "fused.h"

/* The data of the block that a thread works on. */
typedef struct {
    _Alignas(64) REAL table[CONSTANTS][BLOCK], v[BLOCK], c[BLOCK], x[BLOCK], u[BLOCK], own[BLOCK], full[BLOCK], g[BLOCK];
    REAL a[BLOCK], b[BLOCK], delta[BLOCK], gx[BLOCK], total[BLOCK];
    REAL adaptation[ADAPTATION][BLOCK], w[BLOCK], k[BLOCK]; /* k: the gradient of w */
    IO s[BLOCK];
    uint16_t half[BLOCK];
    uint8_t byte[BLOCK];
    uint32_t where[BLOCK];
    int64_t o, base; /* the first element, and its position in the index of the mask */
    int n;
    REAL *past; /* KEEPS_X: the membranes of all timesteps, [T, BLOCK] */
    const REAL *w_before; /* needs_w: w before each timestep, w_stride apart */
    int64_t w_stride;
} NAME(Block);

/* Begins a block at element o, which ends before element `end` of the timestep. */
static inline void NAME(enter)(const Job *j, int64_t o, int64_t end, NAME(Block) *b) {
    b->o = o;
    b->n = (int)min(BLOCK, end - o);
    b->base = j->masked ? logical(j, b->o, b->n, b->where) : 0;
    if (j->per_channel) NAME(constants)(j, b->o, b->n, b->table);
    if (j->per_channel && j->adapts) NAME(adaptation)(j, b->o, b->n, b->adaptation);
}

static inline const REAL *NAME(width)(const Job *j, const NAME(Block) *b) { return j->parametric ? b->table[WIDTH] : 0; }

static inline uint8_t *NAME(bits)(const Job *j, const NAME(Block) *b, const void *p, int64_t t) {
    return (uint8_t *)p + t * ((j->N + 7) / 8) + b->o / 8;
}

/* u of step t as the backward pass knows it, where it is stored or in the buffer. Null with 1 bit:
   there u is not needed. */
static inline const REAL *NAME(known)(const Job *j, int64_t t, const NAME(Block) *b, REAL *buffer) {
    const int64_t at = t * j->N + b->o;
    switch (j->keeps) {
    case KEEPS_U: return (const REAL *)j->p_u + at;
    case KEEPS_X: return b->past + t * BLOCK;
    case KEEPS_BF16: NAME(decode_bf16)((const uint16_t *)j->p_kept + at, b->table[THETA], buffer, b->n); return buffer;
    case KEEPS_8BIT:
        NAME(decode_8bit)(j, (const uint8_t *)j->p_kept + at, b->table[THETA], NAME(width)(j, b), buffer, b->n);
        return buffer;
    }
    return 0;
}

/* ----------------------------------------------------------------------------------- adaptation */

/* The input without the adaptation current, in the buffer. */
static inline const REAL *NAME(adapted)(const REAL *x, const REAL *w, REAL *buffer, int n) {
    SIMD EACH buffer[i] = x[i] - w[i];
    return buffer;
}

/* w after a step, from its u and v. */
static inline void NAME(adapt)(const Job *j, const REAL *u, NAME(Block) *b) {
    const REAL *lam = b->adaptation[LAM_W], *by_v = b->adaptation[BY_V], *by_s = b->adaptation[BY_S], *theta = b->table[THETA];
    const REAL rest = j->soft ? 0 : (REAL)j->v_reset, *v = b->v;
    const int n = b->n;
    SIMD EACH b->w[i] = lam[i] * b->w[i] + (by_v[i] * (v[i] - rest) + by_s[i] * (REAL)(u[i] >= theta[i]));
}

/* Row 1 of a state [2, N], or zeros. */
static inline void NAME(take_w)(const Job *j, const void *state, int64_t o, int n, REAL *to) {
    if (state) memcpy(to, (const REAL *)state + j->N + o, n * sizeof(REAL));
    else memset(to, 0, n * sizeof(REAL));
}

static inline void NAME(add_gradient)(const Job *j, int row, NAME(Block) *b, double *sums) {
    if (j->learns & 1 << row) NAME(add)(j, j->per_channel, b->a, b->o, b->n, sums + row * (j->per_channel ? j->C : 1));
}

/* The gradients of the constants of w at step t. */
static inline void NAME(learn_adaptation)(const Job *j, int64_t t, const REAL *u, NAME(Block) *b, double *sums) {
    const REAL *before = b->w_before + t * b->w_stride, *theta = b->table[THETA], rest = j->soft ? 0 : (REAL)j->v_reset;
    const int n = b->n;
    SIMD EACH b->a[i] = b->k[i] * before[i];
    NAME(add_gradient)(j, 3, b, sums);
    NAME(reset)(j, u, theta, b->v, n);
    SIMD EACH b->a[i] = b->k[i] * (b->v[i] - rest);
    NAME(add_gradient)(j, 4, b, sums);
    SIMD EACH b->a[i] = b->k[i] * (REAL)(u[i] >= theta[i]);
    NAME(add_gradient)(j, 5, b, sums);
}

/* Takes the gradient of w[t] back to v[t] and s[t]; returns the gradient of s[t]. */
static inline const REAL *NAME(adapt_back)(const REAL *g, NAME(Block) *b) {
    const REAL *by_v = b->adaptation[BY_V], *by_s = b->adaptation[BY_S], *k = b->k;
    const int n = b->n;
    SIMD EACH {
        b->c[i] = b->c[i] + by_v[i] * k[i];
        b->g[i] = g[i] + by_s[i] * k[i];
    }
    return b->g;
}

/* The gradient of w[t-1]: from w[t], and from x[t], whose gradient is gx. */
static inline void NAME(leave_back)(const Job *j, const REAL *gx, NAME(Block) *b) {
    const REAL *lam = b->adaptation[LAM_W];
    const int n = b->n;
    SIMD EACH b->k[i] = lam[i] * b->k[i] - gx[i];
    if (!j->temporal) memset(b->k, 0, n * sizeof(REAL));
}

/* -------------------------------------------------------------------------------------- forward */

static inline void NAME(save)(const Job *j, int64_t t, const REAL *u, NAME(Block) *b) {
    const int64_t at = t * j->N + b->o;
    if (j->keeps == KEEPS_BF16) {
        uint16_t *row = (uint16_t *)j->p_kept + at, *code = place(j, row, b->half);
        NAME(encode_bf16)(u, b->table[THETA], code, b->n);
        deliver(j, row, code, b->n * sizeof *code);
    } else if (j->keeps == KEEPS_8BIT) {
        uint8_t *row = (uint8_t *)j->p_kept + at, *code = place(j, row, b->byte);
        NAME(encode_8bit)(j, u, b->table[THETA], NAME(width)(j, b), code, b->n);
        deliver(j, row, code, b->n);
    } else if (j->keeps == KEEPS_1BIT) {
        NAME(derivative)(&j->surrogate, u, b->table[THETA], 0, b->own, b->n);
        NAME(pack)(b->own, NAME(bits)(j, b, j->p_kept, t), b->n);
    }
}

/* Records where h, as the backward pass will compute it, is not 0. */
static inline void NAME(activate)(const Job *j, int64_t t, const REAL *u, NAME(Block) *b) {
    const REAL *theta = b->table[THETA];
    if (j->keeps == KEEPS_BF16 || j->keeps == KEEPS_8BIT) u = NAME(known)(j, t, b, b->a);
    NAME(derivative)(&j->surrogate, u, theta, NAME(width)(j, b), b->own, b->n);
    const REAL *h = NAME(masked)(j, t * j->N + b->base, b->where, u, theta, b->own, b->full, b->n);
    NAME(pack)(h, NAME(bits)(j, b, j->p_active, t), b->n);
}

static void NAME(step_forward)(const Job *j, int64_t t, NAME(Block) *b, double *sums) {
    const int64_t at = t * j->N + b->o;
    const int n = b->n;
    const REAL *x = NAME(load)(j->p_x, t * j->x_stride + b->o, b->x, n);
    if (j->adapts) x = NAME(adapted)(x, b->w, b->x, n);
    REAL *p_u = j->p_u ? (REAL *)j->p_u + at : 0, *u = place(j, p_u, b->u);
    IO *p_s = (IO *)j->p_s + at, *s = place(j, p_s, b->s);
    if (n == BLOCK && NAME(advances_8bit)(j)) {
        uint8_t *p_code = (uint8_t *)j->p_kept + at, *code = place(j, p_code, b->byte);
        NAME(advance_8bit)(j, b->table, x, b->v, code, s);
        deliver(j, p_s, s, n * sizeof(IO));
        deliver(j, p_code, code, n);
        return;
    }
    NAME(fire)(j, b->table, x, b->v, u, s, n);
    if (j->adapts) NAME(adapt)(j, u, b);
    deliver(j, p_s, s, n * sizeof(IO));
    deliver(j, p_u, u, n * sizeof(REAL));
    if (j->p_kept) NAME(save)(j, t, u, b);
    if (j->p_active) NAME(activate)(j, t, u, b);
    if (!sums) return;
    NAME(add)(j, 1, u, b->o, n, sums + t * j->C);
    SIMD EACH b->a[i] = u[i] * u[i];
    NAME(add)(j, 1, b->a, b->o, n, sums + (j->T + t) * j->C);
}

/* ------------------------------------------------------------------------------------- backward */

/* Computes the membranes of the block again, from x, and w, from the membranes. */
static inline void NAME(replay)(const Job *j, REAL *w_before, NAME(Block) *b) {
    NAME(start)(j, b->o, b->n, b->v);
    if (j->adapts) NAME(take_w)(j, j->p_v0, b->o, b->n, b->w);
    for (int64_t t = 0; t < j->T; t++) {
        if (w_before) memcpy(w_before + t * b->w_stride, b->w, b->n * sizeof(REAL));
        if (j->keeps == KEEPS_X) {
            const REAL *x = NAME(load)(j->p_x, t * j->x_stride + b->o, b->x, b->n);
            if (j->adapts) x = NAME(adapted)(x, b->w, b->x, b->n);
            NAME(fire)(j, b->table, x, b->v, b->past + t * BLOCK, b->s, b->n);
        } else {
            NAME(reset)(j, NAME(known)(j, t, b, b->u), b->table[THETA], b->v, b->n);
        }
        if (j->adapts) NAME(adapt)(j, NAME(known)(j, t, b, b->u), b);
    }
}

/* The gradient of x at step t, or with repeated its sum over T once t is 0. */
static inline void NAME(send)(const Job *j, int64_t t, const REAL *gx, NAME(Block) *b) {
    const int n = b->n;
    if (j->repeated) SIMD EACH b->total[i] += gx[i];
    if (!j->p_gx || (j->repeated && t)) return;
    NAME(store)(j, j->p_gx, j->repeated ? b->o : t * j->N + b->o, j->repeated ? b->total : gx, b->half, n);
}

static inline void NAME(step_learning_tau)(const Job *j, int64_t t, NAME(Block) *b, double *sums) {
    if (t) NAME(reset)(j, NAME(known)(j, t - 1, b, b->a), b->table[THETA], b->v, b->n);
    else NAME(start)(j, b->o, b->n, b->v);
    const REAL *x = NAME(load)(j->decay_input ? j->p_x : 0, t * j->x_stride + b->o, b->x, b->n);
    if (j->adapts && j->decay_input) x = NAME(adapted)(x, b->w_before + t * b->w_stride, b->x, b->n);
    NAME(learn_tau)(j, b->v, x, b->delta, b->o, b->n, b->a, sums);
}

static void NAME(step_back)(const Job *j, int64_t t, NAME(Block) *b, double *sums) {
    const REAL *theta = b->table[THETA], *w = NAME(width)(j, b), *u = NAME(known)(j, t, b, b->u);
    const int n = b->n;
    if (j->keeps == KEEPS_1BIT) NAME(unpack)(NAME(bits)(j, b, j->p_kept, t), (REAL)j->surrogate.constants[1], b->own, n);
    else NAME(derivative)(&j->surrogate, u, theta, w, b->own, n);
    const REAL *g = NAME(load)(j->p_g, t * j->g_stride + b->o, b->g, n);
    if (j->learns & LEARNS_ADAPTATION) NAME(learn_adaptation)(j, t, u, b, sums);
    if (j->adapts) g = NAME(adapt_back)(g, b);
    const NAME(Step) p = {
        .u = u,
        .g = g,
        .theta = theta,
        .own = b->own,
        .h = NAME(masked)(j, t * j->N + b->base, b->where, u, theta, b->own, b->full, n),
        .extra = NAME(direct)(j, t, b->o, n, u, b->a, b->b),
        .c = b->c,
    };
    if (sums) NAME(learn)(j, &p, w, b->o, n, b->delta, sums);
    const int in_place = j->p_gx && sizeof(IO) == sizeof(REAL) && !j->repeated && !j->streams;
    REAL *gx = in_place ? (REAL *)j->p_gx + t * j->N + b->o : b->gx;
    NAME(step)(j, &p, b->table[LAM], b->table[GAIN], j->learns & LEARNS_TAU ? b->delta : 0, gx, n);
    if (j->adapts) NAME(leave_back)(j, gx, b);
    NAME(send)(j, t, gx, b);
    if (j->learns & LEARNS_TAU) NAME(step_learning_tau)(j, t, b, sums);
}

/* The same for a whole block, when nothing learns. */
static inline void NAME(step_back_fused)(const Job *j, int64_t t, NAME(Block) *b) {
    const int64_t at = t * j->N + b->o;
    IO *p_gx = (IO *)j->p_gx + at, *gx = place(j, p_gx, b->s);
    const REAL *u = NAME(known)(j, t, b, b->u);
    NAME(retreat)(j, b->table, u, (const IO *)j->p_g + t * j->g_stride + b->o, b->c, gx);
    deliver(j, p_gx, gx, BLOCK * sizeof(IO));
}
