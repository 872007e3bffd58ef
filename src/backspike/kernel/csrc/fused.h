/* A timestep of a whole block in one loop, so that h and delta, or the 8-bit codes, stay in
   registers. This is for the common neurons: all have the same constants, nothing learns and
   nothing is masked. Every other neuron, a shorter last block, and float64 go through the pieces of
   step.h, which give the same bits. Included after saved.h, once per pair of types. */

static inline int NAME(advances_8bit)(const Job *j) {
    const int alone = !j->p_u && !j->p_partial && !j->p_active && !j->adapts; /* u itself is not needed */
    return sizeof(REAL) == 4 && j->keeps == KEEPS_8BIT && j->p_kept && alone && !j->per_channel && !j->parametric;
}

ALWAYS void NAME(advance_8bit_as)(const int soft, const int logarithmic, const Job *j, REAL table[CONSTANTS][BLOCK], const REAL *x,
                                  REAL *v, uint8_t *code, IO *s) {
    const REAL lam = table[LAM][0], offset = table[OFFSET][0], gain = table[GAIN][0], theta = table[THETA][0];
    const REAL v_reset = (REAL)j->v_reset, per_unit = (REAL)(1 / j->unit);
    GROUPS {
        uint32_t word = 0;
        for (int k = 0; k < 4; k++) {
            const int e = AT_BYTE(k);
            const REAL potential = (lam * v[e] + offset) + gain * x[e];
            const REAL doubt = NAME(doubt)(potential), u = potential + doubt;
            const int fired = u >= theta;
            word |= NAME(code_8bit)(logarithmic, u - theta, per_unit, fired) << 8 * k;
            s[e] = NAME(spike)(fired, doubt);
            v[e] = !fired ? u : soft ? u - theta : v_reset;
        }
        ((Word *)code)[i] = word;
    }
}

static void NAME(advance_8bit)(const Job *j, REAL table[CONSTANTS][BLOCK], const REAL *x, REAL *v, uint8_t *code, IO *s) {
    if (j->soft && j->logarithmic) NAME(advance_8bit_as)(1, 1, j, table, x, v, code, s);
    else if (j->soft) NAME(advance_8bit_as)(1, 0, j, table, x, v, code, s);
    else if (j->logarithmic) NAME(advance_8bit_as)(0, 1, j, table, x, v, code, s);
    else NAME(advance_8bit_as)(0, 0, j, table, x, v, code, s);
}

ALWAYS void NAME(retreat_as)(const int soft, const int attached, const int code, const Job *j,
                             REAL table[CONSTANTS][BLOCK], const REAL *u, const IO *g, REAL *back, IO *gx) {
    const REAL lam = table[LAM][0], gain = table[GAIN][0], theta = table[THETA][0];
    CONSTANTS_OF(&j->surrogate);
    const REAL rho = (REAL)j->rho, v_reset = (REAL)j->v_reset;
    SIMD for (int i = 0; i < BLOCK; i++) {
        const REAL h = NAME(h)(code, a, b, c, u[i] - theta);
        const REAL d = NAME(delta)(soft, attached, NAME(widen)(g[i]), h, u[i], theta, back[i], rho, v_reset);
        gx[i] = NAME(narrow)(d * gain);
        back[i] = d * lam;
    }
}

static inline int NAME(retreats)(const Job *j) {
#define OR_IS(CODE) || j->surrogate.code == CODE
    const int common = 0 FUSED(OR_IS);
#undef OR_IS
    const int plain = !j->per_channel && !j->parametric && !j->masked && !j->learns && !j->p_line && !j->p_gu && !j->repeated && !j->adapts;
    return sizeof(REAL) == 4 && common && plain && j->p_g && j->p_gx && j->temporal && j->keeps != KEEPS_1BIT;
}

static void NAME(retreat)(const Job *j, REAL table[CONSTANTS][BLOCK], const REAL *u, const IO *g, REAL *c, IO *gx) {
    const int soft = !!j->soft, attached = j->rho != 0;
#define RETREAT(SOFT, ATTACHED, CODE) \
    if (soft == SOFT && attached == ATTACHED) NAME(retreat_as)(SOFT, ATTACHED, CODE, j, table, u, g, c, gx);
#define EACH_RESET(CODE) \
    case CODE: RETREAT(0, 0, CODE) RETREAT(0, 1, CODE) RETREAT(1, 0, CODE) RETREAT(1, 1, CODE) break;
    switch (j->surrogate.code) { FUSED(EACH_RESET) }
#undef RETREAT
#undef EACH_RESET
}
