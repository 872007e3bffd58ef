/* Timesteps of the common neurons, a whole block each in one loop, so that u, h and delta stay in registers: all neurons have
   the same constants, nothing learns and nothing is masked. Every other neuron, and a last block that is shorter, goes through
   the pieces of step.h, which come to the same bits; so does float64, which is there for checks. Included after keep.h, once
   per pair of types. */

enum { NAME(fast) = sizeof(REAL) == 4 };

/* kept: what of u goes to out; KEEPS_X: nothing. */
ALWAYS void NAME(advance_as)(const int soft, const int kept, const int spikes, const Job *j, REAL table[CONSTANTS][BLOCK],
                             const IO *x, REAL *v, void *out, IO *s) {
    const REAL lam = table[LAM][0], offset = table[OFFSET][0], gain = table[GAIN][0], theta = table[THETA][0];
    const REAL v_reset = (REAL)j->v_reset, fine = (REAL)(128 / j->reach);
    const IO one = sizeof(IO) == 2 ? 0x3f80 : 1;
    SIMD for (int i = 0; i < BLOCK; i++) {
        const REAL u = (lam * v[i] + offset) + gain * NAME(widen)(x[i]);
        const int fired = u >= theta;
        if (kept == KEEPS_U) ((REAL *)out)[i] = u;
        if (kept == KEEPS_BF16) ((uint16_t *)out)[i] = NAME(code_bf16)(u - theta, fired);
        if (kept == KEEPS_8BIT) ((uint8_t *)out)[i] = NAME(code_8bit)(u - theta, fine, fired);
        if (spikes) s[i] = fired ? one : 0;
        v[i] = !fired ? u : soft ? u - theta : v_reset;
    }
}

static inline int NAME(advances)(const Job *j) {
    const int codes = j->keeps == KEEPS_BF16 || (j->keeps == KEEPS_8BIT && !j->parametric);
    return NAME(fast) && !j->per_channel && !j->p_partial && !j->p_active && (codes ? !j->p_u : j->keeps == KEEPS_U);
}

static void NAME(advance)(const Job *j, int kept, REAL table[CONSTANTS][BLOCK], const IO *x, REAL *v, void *out, IO *s) {
#define ADVANCE(KEPT)                                                        \
    case KEPT:                                                               \
        if (j->soft) NAME(advance_as)(1, KEPT, 1, j, table, x, v, out, s);   \
        else NAME(advance_as)(0, KEPT, 1, j, table, x, v, out, s);           \
        break;
    switch (kept) {
        ADVANCE(KEEPS_U)
        ADVANCE(KEEPS_BF16)
        ADVANCE(KEEPS_8BIT)
        ADVANCE(KEEPS_X)
    }
#undef ADVANCE
}

/* u alone */
static void NAME(replay_step)(const Job *j, REAL table[CONSTANTS][BLOCK], const IO *x, REAL *v, REAL *u) {
    if (j->soft) NAME(advance_as)(1, KEEPS_U, 0, j, table, x, v, u, 0);
    else NAME(advance_as)(0, KEEPS_U, 0, j, table, x, v, u, 0);
}

ALWAYS void NAME(retreat_as)(const int soft, const int attached, const int family, const int kept, const Job *j,
                             const NAME(Formula) *p, REAL table[CONSTANTS][BLOCK], const void *in, const IO *g, REAL *c, IO *gx) {
    const REAL lam = table[LAM][0], gain = table[GAIN][0], theta = table[THETA][0], f = p->f, k = p->k, peak = p->peak;
    const REAL rho = (REAL)j->rho, v_reset = (REAL)j->v_reset, step = (REAL)(j->reach / 128);
    SIMD for (int i = 0; i < BLOCK; i++) {
        const REAL u = kept == KEEPS_BF16   ? NAME(u_of_bf16)(((const uint16_t *)in)[i], theta)
                       : kept == KEEPS_8BIT ? NAME(u_of_8bit)(((const uint8_t *)in)[i], step, theta)
                                            : ((const REAL *)in)[i];
        const REAL h = NAME(h)(family, f, k, peak, u - theta);
        const REAL d = NAME(delta)(soft, attached, NAME(widen)(g[i]), h, u, theta, c[i], rho, v_reset);
        gx[i] = NAME(narrow)(d * gain);
        c[i] = d * lam;
    }
}

static inline int NAME(retreats)(const Job *j) {
    const int64_t family = j->surrogate.family;
    const int common = family == TRIANGLE || family == ATAN || family == RECTANGLE || family == SUPERSPIKE;
    const int plain = !j->per_channel && !j->parametric && !j->masked && !j->learns && !j->p_line && !j->p_gu && !j->repeated;
    return NAME(fast) && common && plain && j->p_g && j->p_gx && j->temporal && j->keeps != KEEPS_1BIT;
}

static void NAME(retreat)(const Job *j, const NAME(Formula) *p, REAL table[CONSTANTS][BLOCK], const void *in, const IO *g,
                          REAL *c, IO *gx) {
    const int kept = j->keeps == KEEPS_X ? KEEPS_U : (int)j->keeps, soft = !!j->soft, attached = j->rho != 0;
#define RETREAT(SOFT, ATTACHED, FAMILY, KEPT) \
    if (soft == SOFT && attached == ATTACHED && kept == KEPT) NAME(retreat_as)(SOFT, ATTACHED, FAMILY, KEPT, j, p, table, in, g, c, gx);
#define RESETS(FAMILY, KEPT) RETREAT(0, 0, FAMILY, KEPT) RETREAT(0, 1, FAMILY, KEPT) RETREAT(1, 0, FAMILY, KEPT) RETREAT(1, 1, FAMILY, KEPT)
#define FAMILY(F) case F: RESETS(F, KEEPS_U) RESETS(F, KEEPS_BF16) RESETS(F, KEEPS_8BIT) break;
    switch (j->surrogate.family) {
        FAMILY(TRIANGLE)
        FAMILY(ATAN)
        FAMILY(RECTANGLE)
        FAMILY(SUPERSPIKE)
    }
#undef RETREAT
#undef RESETS
#undef FAMILY
}
