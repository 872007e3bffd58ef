/* Timesteps of the common neurons, a whole block each in one loop, so that h and delta, or the codes of 8 bits, stay in registers:
   all neurons have the same constants, nothing learns and nothing is masked. Every other neuron, and a last block that is
   shorter, goes through the pieces of step.h, which come to the same bits; so does float64, which is there for checks. Included
   after keep.h, once per pair of types. */

static inline int NAME(advances_8bit)(const Job *j) {
    const int alone = !j->p_u && !j->p_partial && !j->p_active; /* nobody else wants to know u */
    return sizeof(REAL) == 4 && j->keeps == KEEPS_8BIT && j->p_kept && alone && !j->per_channel && !j->parametric;
}

ALWAYS void NAME(advance_8bit_as)(const int soft, const Job *j, REAL table[CONSTANTS][BLOCK], const REAL *x, REAL *v, uint8_t *code,
                                  IO *s) {
    const REAL lam = table[LAM][0], offset = table[OFFSET][0], gain = table[GAIN][0], theta = table[THETA][0];
    const REAL v_reset = (REAL)j->v_reset, fine = (REAL)(128 / j->reach);
    const IO one = sizeof(IO) == 2 ? 0x3f80 : 1;
    GROUPS {
        uint32_t word = 0;
        for (int k = 0; k < 4; k++) {
            const int e = AT_BYTE(k);
            const REAL u = (lam * v[e] + offset) + gain * x[e];
            const int fired = u >= theta;
            word |= NAME(code_8bit)(u - theta, fine, fired) << 8 * k;
            s[e] = fired ? one : 0;
            v[e] = !fired ? u : soft ? u - theta : v_reset;
        }
        ((Word *)code)[i] = word;
    }
}

static void NAME(advance_8bit)(const Job *j, REAL table[CONSTANTS][BLOCK], const REAL *x, REAL *v, uint8_t *code, IO *s) {
    if (j->soft) NAME(advance_8bit_as)(1, j, table, x, v, code, s);
    else NAME(advance_8bit_as)(0, j, table, x, v, code, s);
}

ALWAYS void NAME(retreat_as)(const int soft, const int attached, const int family, const Job *j, const NAME(Formula) *p,
                             REAL table[CONSTANTS][BLOCK], const REAL *u, const IO *g, REAL *c, IO *gx) {
    const REAL lam = table[LAM][0], gain = table[GAIN][0], theta = table[THETA][0], f = p->f, k = p->k, peak = p->peak;
    const REAL rho = (REAL)j->rho, v_reset = (REAL)j->v_reset;
    SIMD for (int i = 0; i < BLOCK; i++) {
        const REAL h = NAME(h)(family, f, k, peak, u[i] - theta);
        const REAL d = NAME(delta)(soft, attached, NAME(widen)(g[i]), h, u[i], theta, c[i], rho, v_reset);
        gx[i] = NAME(narrow)(d * gain);
        c[i] = d * lam;
    }
}

static inline int NAME(retreats)(const Job *j) {
    const int64_t family = j->surrogate.family;
    const int common = family == TRIANGLE || family == ATAN || family == RECTANGLE || family == SUPERSPIKE;
    const int plain = !j->per_channel && !j->parametric && !j->masked && !j->learns && !j->p_line && !j->p_gu && !j->repeated;
    return sizeof(REAL) == 4 && common && plain && j->p_g && j->p_gx && j->temporal && j->keeps != KEEPS_1BIT;
}

static void NAME(retreat)(const Job *j, const NAME(Formula) *p, REAL table[CONSTANTS][BLOCK], const REAL *u, const IO *g, REAL *c,
                          IO *gx) {
    const int soft = !!j->soft, attached = j->rho != 0;
#define RETREAT(SOFT, ATTACHED, FAMILY) \
    if (soft == SOFT && attached == ATTACHED) NAME(retreat_as)(SOFT, ATTACHED, FAMILY, j, p, table, u, g, c, gx);
#define FAMILY(F) case F: RETREAT(0, 0, F) RETREAT(0, 1, F) RETREAT(1, 0, F) RETREAT(1, 1, F) break;
    switch (j->surrogate.family) {
        FAMILY(TRIANGLE)
        FAMILY(ATAN)
        FAMILY(RECTANGLE)
        FAMILY(SUPERSPIKE)
    }
#undef RETREAT
#undef FAMILY
}
