/* The pieces of a timestep: each is a loop over a block of n elements, beginning with element o of
   the timestep. Every file that walks over blocks includes them, once per pair of types (types.h).
   A loop is short and does one thing, so that every combination of options is a sequence of
   vectorised loops. */

static const REAL NAME(zero)[BLOCK];

ALWAYS REAL NAME(widen)(IO x) { return sizeof(IO) == 2 ? (REAL)from_bf16((uint16_t)x) : (REAL)x; }

ALWAYS IO NAME(narrow)(REAL x) { return sizeof(IO) == 2 ? (IO)to_bf16((float)x) : (IO)x; }

/* In this form compilers emit one instruction. b if a is a NaN. */
ALWAYS REAL NAME(lower)(REAL a, REAL b) { return a < b ? a : b; }
ALWAYS REAL NAME(higher)(REAL a, REAL b) { return a > b ? a : b; }

/* A row from another layer as REAL: the row itself, or converted in the buffer; zeros if there is
   none. */
static inline const REAL *NAME(load)(const void *p, int64_t at, REAL *buffer, int n) {
    if (!p) return NAME(zero);
    if (sizeof(IO) == sizeof(REAL)) return (const REAL *)p + at;
    const uint16_t *half = (const uint16_t *)p + at;
    SIMD EACH buffer[i] = from_bf16(half[i]);
    return buffer;
}

/* The opposite: writes values to the row at p + at, where they may be already. */
static inline void NAME(store)(const Job *j, void *p, int64_t at, const REAL *values, uint16_t *buffer, int n) {
    IO *row = (IO *)p + at;
    if (sizeof(IO) == sizeof(REAL)) {
        deliver(j, row, values, n * sizeof(IO));
        return;
    }
    uint16_t *half = place(j, row, buffer);
    SIMD EACH half[i] = to_bf16((float)values[i]);
    deliver(j, row, half, n * sizeof(IO));
}

/* out[i] = p[channel of o + i], or p[0] everywhere */
static inline void NAME(spread)(const Job *j, int64_t per_channel, const REAL *p, int64_t o, int n, REAL *out) {
    for (int64_t i = 0, run; i < n; i += run) {
        const int64_t c = per_channel ? (o + i) / j->inner % j->C : 0;
        run = !per_channel ? n : j->inner == 1 ? min(n - i, j->C - c) : min(n - i, j->inner - (o + i) % j->inner);
        if (per_channel && j->inner == 1) memcpy(out + i, p + c, run * sizeof(REAL));
        else for (int64_t k = 0; k < run; k++) out[i + k] = p[c];
    }
}

/* Four numbers at a time, since compilers keep vectors that are wider than those of the processor
   in memory. */
typedef REAL NAME(Four) __attribute__((vector_size(4 * sizeof(REAL))));
typedef double NAME(Sums) __attribute__((vector_size(4 * sizeof(double))));

ALWAYS void NAME(add_four)(NAME(Sums) *sums, const REAL *p) {
    NAME(Four) four;
    memcpy(&four, p, sizeof four);
    *sums += __builtin_convertvector(four, NAME(Sums));
}

/* The sum in an order of our own: a compiler that chose it would choose the bits. */
static inline double NAME(total)(const REAL *term, int64_t n) {
    NAME(Sums) low = {0}, high = {0};
    double sum = 0;
    int64_t k = 0;
    for (; k + 8 <= n; k += 8) {
        NAME(add_four)(&low, term + k);
        NAME(add_four)(&high, term + k + 4);
    }
    for (int i = 0; i < 4; i++) sum += low[i];
    for (int i = 0; i < 4; i++) sum += high[i];
    for (; k < n; k++) sum += term[k];
    return sum;
}

/* sums[channel of o + i] += term[i], or all to sums[0] */
static inline void NAME(add)(const Job *j, int64_t per_channel, const REAL *term, int64_t o, int n, double *sums) {
    for (int64_t i = 0, run; i < n; i += run) {
        const int64_t c = per_channel ? (o + i) / j->inner % j->C : 0;
        run = !per_channel ? n : j->inner == 1 ? min(n - i, j->C - c) : min(n - i, j->inner - (o + i) % j->inner);
        if (per_channel && j->inner == 1) {
            SIMD for (int64_t k = 0; k < run; k++) sums[c + k] += term[i + k];
        } else {
            sums[c] += NAME(total)(term + i, run);
        }
    }
}

static inline void NAME(constants)(const Job *j, int64_t o, int n, REAL table[CONSTANTS][BLOCK]) {
    const int64_t stride = j->per_channel ? j->C : 1;
    for (int row = 0; row < CONSTANTS; row++)
        NAME(spread)(j, j->per_channel, (const REAL *)j->p_constants + row * stride, o, n, table[row]);
}

static inline void NAME(adaptation)(const Job *j, int64_t o, int n, REAL table[ADAPTATION][BLOCK]) {
    const int64_t stride = j->per_channel ? j->C : 1;
    for (int row = 0; row < ADAPTATION; row++)
        NAME(spread)(j, j->per_channel, (const REAL *)j->p_constants + (CONSTANTS + row) * stride, o, n, table[row]);
}

static inline void NAME(start)(const Job *j, int64_t o, int n, REAL *v) {
    if (j->p_v0) memcpy(v, (const REAL *)j->p_v0 + o, n * sizeof(REAL));
    else EACH v[i] = j->soft ? 0 : (REAL)j->v_reset;
}

/* 0 where u is finite, NaN where it is not. Every u is added to its doubt: an infinity becomes a
   NaN, which neither fires nor is lost in a reset, as in reference.py. */
ALWAYS REAL NAME(doubt)(REAL u) { return u - u; }

/* 1 where the neuron fired, 0 where it did not, NaN where u is not finite */
ALWAYS IO NAME(spike)(int fired, REAL doubt) {
    union { REAL value; BITS bits; } d = {.value = doubt};
    if (sizeof(IO) == 2) return fired ? 0x3f80 : (IO)(d.bits >> 16);
    return (IO)(fired ? 1 : doubt);
}

/* One timestep: u from v and x, the spikes, and the next v. uniform: all elements have the
   constants of element 0. */
ALWAYS void NAME(fire_as)(const int soft, const int uniform, const Job *j, REAL table[CONSTANTS][BLOCK], const REAL *x, REAL *v,
                          REAL *u, IO *s, int n) {
    const REAL lam_0 = table[LAM][0], offset_0 = table[OFFSET][0], gain_0 = table[GAIN][0], theta_0 = table[THETA][0];
    const REAL v_reset = (REAL)j->v_reset;
    SIMD EACH {
        const REAL lam = uniform ? lam_0 : table[LAM][i], offset = uniform ? offset_0 : table[OFFSET][i];
        const REAL gain = uniform ? gain_0 : table[GAIN][i], theta = uniform ? theta_0 : table[THETA][i];
        const REAL potential = (lam * v[i] + offset) + gain * x[i];
        const REAL doubt = NAME(doubt)(potential), y = potential + doubt;
        const int fired = y >= theta;
        u[i] = y;
        s[i] = NAME(spike)(fired, doubt);
        v[i] = !fired ? y : soft ? y - theta : v_reset;
    }
}

static inline void NAME(fire)(const Job *j, REAL table[CONSTANTS][BLOCK], const REAL *x, REAL *v, REAL *u, IO *s, int n) {
    if (j->soft && j->per_channel) NAME(fire_as)(1, 0, j, table, x, v, u, s, n);
    else if (j->soft) NAME(fire_as)(1, 1, j, table, x, v, u, s, n);
    else if (j->per_channel) NAME(fire_as)(0, 0, j, table, x, v, u, s, n);
    else NAME(fire_as)(0, 1, j, table, x, v, u, s, n);
}

#include "surrogate.h"

/* own: 0 where dropped; elsewhere, with rescale, divided by keep. full, if not null, keeps its
   value where own is dropped and gets that of own elsewhere. */
static inline void NAME(mask)(const Job *j, int64_t start, const uint32_t *where, REAL *own, REAL *full, int n) {
    const uint32_t lo_0 = (uint32_t)start, hi_0 = (uint32_t)((uint64_t)start >> 32), limit = (uint32_t)j->limit;
    const uint32_t seed_lo = (uint32_t)j->seed, seed_hi = (uint32_t)((uint64_t)j->seed >> 32);
    const REAL keep = (REAL)j->keep;
    if (j->rescale) SIMD EACH own[i] = own[i] / keep;
    SIMD EACH {
        const uint32_t lo = lo_0 + where[i], hi = hi_0 + (lo < lo_0);
        const int gone = (lowbias32(lowbias32(lo ^ seed_lo) ^ seed_hi ^ hi) >> 8) < limit;
        if (full) full[i] = gone ? full[i] : own[i];
        own[i] = gone ? 0 : own[i];
    }
}

/* The h of a step, with the mask. own: the h of the base, masked here. start: the position of the
   step in the index of the mask. */
static inline const REAL *NAME(masked)(const Job *j, int64_t start, const uint32_t *where, const REAL *u, const REAL *theta,
                                       REAL *own, REAL *full, int n) {
    REAL *whole = j->masked && j->replace.code ? full : 0;
    if (whole) NAME(derivative)(&j->replace, u, theta, 0, whole, n);
    if (j->masked) NAME(mask)(j, start, where, own, whole, n);
    return whole ? whole : own;
}

/* G, the total gradient of s; rc = rho c */
ALWAYS REAL NAME(arriving)(int soft, int attached, REAL g, REAL rc, REAL u, REAL theta, REAL v_reset) {
    return !attached ? g : soft ? g - rc * theta : g + rc * (v_reset - u);
}

/* delta = dL/du without the direct gradient of u; c: the gradient of v through the next step */
ALWAYS REAL NAME(delta)(int soft, int attached, REAL g, REAL h, REAL u, REAL theta, REAL c, REAL rho, REAL v_reset) {
    return NAME(arriving)(soft, attached, g, rho * c, u, theta, v_reset) * h + (!soft && u >= theta ? 0 : c);
}

typedef struct {
    const REAL *u, *g, *theta, *own, *h, *extra; /* own: the part of h of the base */
    REAL *c;
} NAME(Step);

static inline void NAME(learn)(const Job *j, const NAME(Step) *p, const REAL *w, int64_t o, int n, REAL *term, double *sums) {
    const int soft = (int)j->soft, attached = j->rho != 0;
    const REAL rho = (REAL)j->rho, v_reset = (REAL)j->v_reset;
    const int64_t C = j->per_channel ? j->C : 1;
    if (j->learns & LEARNS_THETA) {
        SIMD EACH {
            const REAL G = NAME(arriving)(soft, attached, p->g[i], rho * p->c[i], p->u[i], p->theta[i], v_reset);
            term[i] = -(G * p->h[i]) - (soft && p->u[i] >= p->theta[i] ? p->c[i] : 0);
        }
        NAME(add)(j, j->per_channel, term, o, n, sums + C);
    }
    if (j->learns & LEARNS_WIDTH && w) {
        SIMD EACH {
            const REAL G = NAME(arriving)(soft, attached, p->g[i], rho * p->c[i], p->u[i], p->theta[i], v_reset);
            term[i] = -((p->u[i] - p->theta[i]) / w[i]) * G * p->own[i];
        }
        NAME(add)(j, j->per_channel, term, o, n, sums + 2 * C);
    }
}

/* delta, and the gradients of x and of the previous v. direct: u has a direct gradient. */
ALWAYS void NAME(step_as)(const int soft, const int attached, const int uniform, const int direct, const Job *j,
                          const NAME(Step) *p, const REAL *lam, const REAL *gain, REAL *delta, REAL *gx, int n) {
    const REAL rho = (REAL)j->rho, v_reset = (REAL)j->v_reset, lam_0 = lam[0], gain_0 = gain[0], theta_0 = p->theta[0];
    const REAL *u = p->u, *g = p->g, *theta = p->theta, *h = p->h, *extra = p->extra;
    REAL *c = p->c;
    SIMD EACH {
        REAL d = NAME(delta)(soft, attached, g[i], h[i], soft ? 0 : u[i], uniform ? theta_0 : theta[i], c[i], rho, v_reset);
        if (direct) d = d + extra[i];
        if (delta) delta[i] = d;
        gx[i] = d * (uniform ? gain_0 : gain[i]);
        c[i] = d * (uniform ? lam_0 : lam[i]);
    }
}

static inline void NAME(step)(const Job *j, const NAME(Step) *p, const REAL *lam, const REAL *gain, REAL *delta, REAL *gx, int n) {
    const int soft = j->soft != 0, attached = j->rho != 0, plain = p->extra == NAME(zero) && !delta;
#define STEP(SOFT, ATTACHED)                                                                                     \
    if (soft == SOFT && attached == ATTACHED) {                                                                  \
        if (!plain) NAME(step_as)(SOFT, ATTACHED, 0, 1, j, p, lam, gain, delta, gx, n);                          \
        else if (j->per_channel) NAME(step_as)(SOFT, ATTACHED, 0, 0, j, p, lam, gain, 0, gx, n);                 \
        else NAME(step_as)(SOFT, ATTACHED, 1, 0, j, p, lam, gain, 0, gx, n);                                     \
    }
    STEP(0, 0) STEP(0, 1) STEP(1, 0) STEP(1, 1)
#undef STEP
    if (!j->temporal) memset(p->c, 0, n * sizeof(REAL));
}

/* term = tau^2 delta du/dtau; v: the membrane at the beginning of the step */
static inline void NAME(learn_tau)(const Job *j, const REAL *v, const REAL *x, const REAL *delta, int64_t o, int n, REAL *term,
                                   double *sums) {
    const REAL rest = j->soft ? 0 : (REAL)j->v_reset;
    SIMD EACH term[i] = delta[i] * (v[i] - rest - x[i]);
    NAME(add)(j, j->per_channel, term, o, n, sums);
}

/* v after a step, from its u */
static inline void NAME(reset)(const Job *j, const REAL *u, const REAL *theta, REAL *v, int n) {
    const REAL v_reset = (REAL)j->v_reset;
    if (j->soft) SIMD EACH v[i] = u[i] >= theta[i] ? u[i] - theta[i] : u[i];
    else SIMD EACH v[i] = u[i] >= theta[i] ? v_reset : u[i];
}

/* The direct gradient of u: gu, and a + b u for the moments. */
static inline const REAL *NAME(direct)(const Job *j, int64_t t, int64_t o, int n, const REAL *u, REAL *a, REAL *b) {
    const REAL *gu = j->p_gu ? (const REAL *)j->p_gu + t * j->gu_stride + o : NAME(zero);
    if (!j->p_line) return gu;
    NAME(spread)(j, 1, (const REAL *)j->p_line + t * j->C, o, n, a);
    NAME(spread)(j, 1, (const REAL *)j->p_line + (j->T + t) * j->C, o, n, b);
    SIMD EACH a[i] = gu[i] + (u[i] * b[i] + a[i]);
    return a;
}
