/* How the forward pass encodes a block of membranes for the backward pass, which decodes it.
   saved.py explains the codes and has the same formulas in torch. Included after step.h, once per
   pair of types. */

/* z = u - theta as a bfloat16; its sign says whether the neuron fired */
ALWAYS uint16_t NAME(code_bf16)(REAL z, int fired) { return (to_bf16((float)z) & 0x7fff) | (fired ? 0 : 0x8000); }

/* The 8-bit codes of z are 128 + k where the neuron fired, 127 - k where it did not, with k at most
   127. In the uniform code k counts units of abs(z). In the logarithmic one it comes from the bits
   of y = abs(z) / unit + 1 as a float: there are 12 k, equally spaced, for each factor of 2 in y;
   127 stands for all y beyond. */
ALWAYS uint32_t NAME(code_8bit)(const int logarithmic, REAL z, REAL per_unit, int fired) {
    const REAL size = (REAL)fabs(z) * per_unit;
    union { float value; uint32_t bits; } y = {.value = (float)(size + 1)};
    const uint32_t above = ((y.bits - ONE) >> 12) * 3 >> 9;
    const uint32_t k = logarithmic ? (above < 127 ? above : 127) : (uint32_t)(int)NAME(lower)(size, 127);
    return k ^ (fired ? 128 : 127);
}

/* The middle of a code. In the last logarithmic one y is made 2^16 times as large, so that h is
   practically 0. */
ALWAYS REAL NAME(z_of_8bit)(const int logarithmic, uint32_t code, REAL unit) {
    const int odd = 2 * (int)code - 255, size = odd < 0 ? -odd : odd; /* 2 k + 1 */
    if (!logarithmic) return (REAL)odd * (REAL)0.5 * unit;
    union { int bits; float value; } y = {.bits = ONE + size * (0x800000 / 24) + (size == 255 ? 16 << 23 : 0)};
    const REAL z = ((REAL)y.value - 1) * unit;
    return odd < 0 ? -z : z;
}

static inline void NAME(encode_bf16)(const REAL *u, const REAL *theta, uint16_t *code, int n) {
    SIMD EACH code[i] = NAME(code_bf16)(u[i] - theta[i], u[i] >= theta[i]);
}

/* 8-bit codes are stored in groups of 4 * WORDS: byte k of a word is the code of the element k *
   WORDS after that of byte 0. So a loop goes over words, and over the bytes of each: compilers
   vectorise this well, and loops over elements of different sizes badly. A shorter block has its
   codes in the order of its elements. GROUPS runs o over the groups and i over the words of each;
   AT_BYTE(k) is the element of byte k. */
#define GROUPS for (int o = 0; o < BLOCK; o += 4 * WORDS) SIMD for (int i = o / 4; i < o / 4 + WORDS; i++)
#define AT_BYTE(k) (o + (i - o / 4) + WORDS * (k))

/* wide: the code is that of z / w */
ALWAYS void NAME(encode_8bit_as)(const int logarithmic, const int wide, const Job *j, const REAL *u, const REAL *theta,
                                 const REAL *w, uint8_t *code, int n) {
    const REAL per_unit = (REAL)(1 / j->unit);
    if (n < BLOCK) {
        SIMD EACH {
            const REAL z = u[i] - theta[i];
            code[i] = (uint8_t)NAME(code_8bit)(logarithmic, wide ? z / w[i] : z, per_unit, u[i] >= theta[i]);
        }
        return;
    }
    GROUPS {
        uint32_t word = 0;
        for (int k = 0; k < 4; k++) {
            const int e = AT_BYTE(k);
            const REAL z = u[e] - theta[e];
            word |= NAME(code_8bit)(logarithmic, wide ? z / w[e] : z, per_unit, u[e] >= theta[e]) << 8 * k;
        }
        ((Word *)code)[i] = word;
    }
}

/* Calls F with both conditions as constants. */
#define EACH_8BIT(F, ...)                                                                         \
    if (j->logarithmic && w) NAME(F)(1, 1, j, __VA_ARGS__);                                       \
    else if (j->logarithmic) NAME(F)(1, 0, j, __VA_ARGS__);                                       \
    else if (w) NAME(F)(0, 1, j, __VA_ARGS__);                                                    \
    else NAME(F)(0, 0, j, __VA_ARGS__)

static inline void NAME(encode_8bit)(const Job *j, const REAL *u, const REAL *theta, const REAL *w, uint8_t *code, int n) {
    EACH_8BIT(encode_8bit_as, u, theta, w, code, n);
}

/* u from z; below theta where the neuron did not fire, even if z is too small to change theta */
ALWAYS REAL NAME(membrane)(REAL z, int fired, REAL theta) {
    const REAL below = theta * (REAL)(1 - (sizeof(REAL) == 8 ? 0x1p-53 : 0x1p-24));
    return NAME(lower)(fired ? (REAL)INFINITY : below, z + theta);
}

static inline void NAME(decode_bf16)(const uint16_t *code, const REAL *theta, REAL *u, int n) {
    SIMD EACH u[i] = NAME(membrane)(from_bf16(code[i]), code[i] < 0x8000, theta[i]);
}

ALWAYS void NAME(decode_8bit_as)(const int logarithmic, const int wide, const Job *j, const uint8_t *code, const REAL *theta,
                                 const REAL *w, REAL *u, int n) {
    const REAL unit = (REAL)j->unit;
    if (n < BLOCK) {
        SIMD EACH {
            const REAL z = NAME(z_of_8bit)(logarithmic, code[i], unit);
            u[i] = NAME(membrane)(wide ? z * w[i] : z, code[i] > 127, theta[i]);
        }
        return;
    }
    GROUPS {
        const uint32_t word = ((const Word *)code)[i];
        for (int k = 0; k < 4; k++) {
            const int e = AT_BYTE(k);
            const uint32_t one = word >> 8 * k & 255;
            const REAL z = NAME(z_of_8bit)(logarithmic, one, unit);
            u[e] = NAME(membrane)(wide ? z * w[e] : z, one > 127, theta[e]);
        }
    }
}

static inline void NAME(decode_8bit)(const Job *j, const uint8_t *code, const REAL *theta, const REAL *w, REAL *u, int n) {
    EACH_8BIT(decode_8bit_as, code, theta, w, u, n);
}
#undef EACH_8BIT

/* Bit i of byte k: is element 8 k + i of h not 0? */
static inline void NAME(pack)(const REAL *h, uint8_t *bits, int n) {
    uint8_t some[BLOCK];
    SIMD EACH some[i] = h[i] != 0;
    memset(some + n, 0, -n & 7);
    for (int i = 0; i < n; i += 8) {
        uint64_t eight;
        memcpy(&eight, some + i, 8);
        bits[i / 8] = (uint8_t)(eight * 0x0102040810204080u >> 56);
    }
}

static inline void NAME(unpack)(const uint8_t *bits, REAL value, REAL *h, int n) {
    EACH h[i] = bits[i / 8] >> (i % 8) & 1 ? value : 0;
}
