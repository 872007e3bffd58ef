/* What the forward pass and the weight's gradient of a convolution share: the struct of a call, how
   the codes of the input are read, and units, the vectors of output channels that are added.

   The input is mostly zero, and only what is not zero is added. It comes as the codes of pack.c,
   [images, H, W, C] in C order. */

#ifndef BACKSPIKE_CONV_H
#define BACKSPIKE_CONV_H

#include "bits.h"

#if defined(__AVX512BW__) && (defined(__clang__) || __GNUC__ >= 8)
#define VNNI __attribute__((target("avx512vnni")))
#endif

enum {
    UNIT = 2 * FLOATS,           /* output channels that are read at once, as two vectors */
    WIDEST = 4,                  /* units of a block of the forward pass */
    TAPS = FLOATS == 16 ? 9 : 3, /* taps whose sums fit into the registers */
    PANEL = 3 << 18,             /* bytes of weights that fit into L2 beside the rest */
    PIXELS = 512,                /* output pixels of a task, which use the same weights */
    SPREAD = 1024,               /* places of g that a list covers */
    DEEP = 64,                   /* input channels of a task of the gradient: a word of bits */
};

/* One call; conv.py has the same struct. The strides w_... are those of the weight, or of its
   gradient, [N, C, KH, KW], in elements. */
typedef struct {
    int64_t images, C, H, W, N, out_H, out_W, KH, KW;
    int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int64_t w_n, w_c, w_h, w_w;
    int64_t bits, bytes;   /* of a code; of all codes */
    int64_t half, threads; /* half: weight, y and g are bfloat16 */
    const uint8_t *p_codes;
    const void *p_w, *p_g; /* g [images, out_H, out_W, N] */
    const float *p_bias;   /* or null */
    void *p_y;             /* [images, out_H, out_W, N] */
    float *p_gw;
    void *p_panel, *p_scratch; /* of the sizes that conv_panel and conv_..._scratch return */
} Conv;

typedef uint32_t Words __attribute__((vector_size(4 * FLOATS)));

static inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t line(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/* ---------------------------------------------------------------------------------------- codes */

/* 64 bits of the codes from bit `at` on, with zeros after the last code. */
ALWAYS uint64_t word_at(const Conv *j, int64_t at) {
    const uint8_t *p = j->p_codes + at / 8;
    const int64_t left = j->bytes - at / 8, shift = at % 8;
    uint64_t w = 0;
    if (left > 8) {
        memcpy(&w, p, 8);
        return shift ? w >> shift | (uint64_t)p[8] << (64 - shift) : w;
    }
    memcpy(&w, p, left);
    return w >> shift;
}

/* A word in which the lowest bit of each code says whether the code is not zero. */
ALWAYS uint64_t nonzero(uint64_t w, int bits) {
    if (bits == 1) return w;
    if (bits == 4) return (w | w >> 1 | w >> 2 | w >> 3) & 0x1111111111111111u;
    return (((w & 0x7f7f7f7f7f7f7f7fu) + 0x7f7f7f7f7f7f7f7fu) | w) >> 7 & 0x0101010101010101u;
}

/* Codes at ... at + n - 1, 64 at most, as words. Returns a bit for each that is not zero. */
ALWAYS uint64_t codes_at(const Conv *j, int bits, int64_t at, int64_t n, uint64_t *words) {
    const int each = 64 / bits;
    uint64_t some = 0;
    for (int k = 0; k < bits && k * each < n; k++) {
        words[k] = word_at(j, (at + k * each) * bits);
        if (n - k * each < each) words[k] &= ((uint64_t)1 << (n - k * each) * bits) - 1;
        some |= nonzero(words[k], bits) << k;
    }
    return some;
}

/* The code that a bit belongs to, and the value of that code. */
ALWAYS int number_of(int bit, int bits) { return bit % bits * (64 / bits) + bit / bits; }
ALWAYS float value_of(const uint64_t *words, int bit, int bits) {
    return 0.25f * (words[bit % bits] >> (bit - bit % bits) & ((1 << bits) - 1));
}

/* ---------------------------------------------------------------------------------------- units */

/* A unit is two vectors of floats, or a vector of words: the low half of a word is a bfloat16 of
   the first vector, its high half one of the second. */
ALWAYS int64_t unit_bytes(int half) { return half ? 4 * FLOATS : 8 * FLOATS; }

ALWAYS void add_unit(Vector *s, const void *unit, int half, int valued, float value) {
    Vector a, b;
    if (half) {
        const Words w = *(const Words *)unit;
        a = (Vector)(w << 16);
        b = (Vector)(w & 0xffff0000u);
    } else {
        a = ((const Vector *)unit)[0];
        b = ((const Vector *)unit)[1];
    }
    s[0] += valued ? a * value : a;
    s[1] += valued ? b * value : b;
}

/* n <= UNIT numbers that are `stride` apart as a unit, padded with zeros. */
static inline void lay_unit(const void *from, int64_t at, int64_t stride, int64_t n, int half, void *unit) {
    if (half) {
        const uint16_t *a = (const uint16_t *)from + at;
        uint16_t whole[UNIT] = {0};
        if (stride == 1 && n == UNIT) memcpy(whole, a, sizeof whole);
        else for (int64_t i = 0; i < n; i++) whole[i] = a[i * stride];
        SIMD for (int i = 0; i < FLOATS; i++) ((uint32_t *)unit)[i] = whole[i] | (uint32_t)whole[i + FLOATS] << 16;
    } else {
        const float *a = (const float *)from + at;
        float *out = unit;
        if (stride == 1 && n == UNIT) memcpy(out, a, UNIT * sizeof(float));
        else for (int64_t i = 0; i < UNIT; i++) out[i] = i < n ? a[i * stride] : 0;
    }
}

#endif
