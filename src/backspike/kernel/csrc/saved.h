/* How the forward pass encodes a block of membranes for the backward pass, which decodes it.
   saved.py explains the codes and has the same formulas in torch. Included after step.h, once per
   pair of types. */

/* z = u - theta as a bfloat16; its sign says whether the neuron fired */
ALWAYS uint16_t NAME(code_bf16)(REAL z, int fired) { return (to_bf16((float)z) & 0x7fff) | (fired ? 0 : 0x8000); }

/* z in steps of 1 / fine, counted from 128: 128 and above where the neuron fired */
ALWAYS uint32_t NAME(code_8bit)(REAL z, REAL fine, int fired) {
    return (uint32_t)(int)NAME(lower)(NAME(higher)(z * fine + 128, 0), fired ? (REAL)255 : (REAL)127);
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
ALWAYS void NAME(encode_8bit_as)(const int wide, const Job *j, const REAL *u, const REAL *theta, const REAL *w, uint8_t *code, int n) {
    const REAL fine = (REAL)(128 / j->reach);
    if (n < BLOCK) {
        SIMD EACH code[i] = (uint8_t)NAME(code_8bit)(wide ? (u[i] - theta[i]) / w[i] : u[i] - theta[i], fine, u[i] >= theta[i]);
        return;
    }
    GROUPS {
        uint32_t word = 0;
        for (int k = 0; k < 4; k++) {
            const int e = AT_BYTE(k);
            word |= NAME(code_8bit)(wide ? (u[e] - theta[e]) / w[e] : u[e] - theta[e], fine, u[e] >= theta[e]) << 8 * k;
        }
        ((Word *)code)[i] = word;
    }
}

static inline void NAME(encode_8bit)(const Job *j, const REAL *u, const REAL *theta, const REAL *w, uint8_t *code, int n) {
    if (w) NAME(encode_8bit_as)(1, j, u, theta, w, code, n);
    else NAME(encode_8bit_as)(0, j, u, theta, 0, code, n);
}

/* u from z; below theta where the neuron did not fire, even if z is too small to change theta */
ALWAYS REAL NAME(membrane)(REAL z, int fired, REAL theta) {
    const REAL below = theta * (REAL)(1 - (sizeof(REAL) == 8 ? 0x1p-53 : 0x1p-24));
    return NAME(lower)(fired ? (REAL)INFINITY : below, z + theta);
}

ALWAYS REAL NAME(z_of_8bit)(uint32_t code, REAL step) { return ((REAL)(int)code - (REAL)127.5) * step; }

static inline void NAME(decode_bf16)(const uint16_t *code, const REAL *theta, REAL *u, int n) {
    SIMD EACH u[i] = NAME(membrane)(from_bf16(code[i]), code[i] < 0x8000, theta[i]);
}

ALWAYS void NAME(decode_8bit_as)(const int wide, const Job *j, const uint8_t *code, const REAL *theta, const REAL *w, REAL *u, int n) {
    const REAL step = (REAL)(j->reach / 128);
    if (n < BLOCK) {
        SIMD EACH {
            const REAL z = NAME(z_of_8bit)(code[i], step);
            u[i] = NAME(membrane)(wide ? z * w[i] : z, z > 0, theta[i]);
        }
        return;
    }
    GROUPS {
        const uint32_t word = ((const Word *)code)[i];
        for (int k = 0; k < 4; k++) {
            const int e = AT_BYTE(k);
            const REAL z = NAME(z_of_8bit)(word >> 8 * k & 255, step);
            u[e] = NAME(membrane)(wide ? z * w[e] : z, z > 0, theta[e]);
        }
    }
}

static inline void NAME(decode_8bit)(const Job *j, const uint8_t *code, const REAL *theta, const REAL *w, REAL *u, int n) {
    if (w) NAME(decode_8bit_as)(1, j, code, theta, w, u, n);
    else NAME(decode_8bit_as)(0, j, code, theta, 0, u, n);
}

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
