/* Packs tensors of spikes, or of sums and averages of a few spikes, into 1, 4 or 8 bits per
   element, and unpacks them, bit for bit.

   With 1 bit an element is 0 or 1; with 4 or 8 bits it is a code k that means k / 4. An element
   fits only if the value of its code has exactly its bits, so a -0, a NaN or a 0.3 is never packed.
   Codes are in memory order; bit i of byte k is element 8 k + i, and the low half of a byte comes
   before the high one. */

#ifndef WORD

#include "ones.h"

enum { BLOCK = 4096, GROUP = 64, AHEAD = 4096 }; /* AHEAD: bytes that are prefetched */

static inline uint32_t bits_f32(float x) { uint32_t w; memcpy(&w, &x, sizeof w); return w; }
static inline float value_f32(uint32_t w) { float x; memcpy(&x, &w, sizeof x); return x; }
static inline double value_f64(uint64_t w) { double x; memcpy(&x, &w, sizeof x); return x; }

/* 4 x, clamped to a byte; any value for a NaN */
static inline uint8_t code_f32(uint32_t w) {
    float k = 4 * value_f32(w);
    k = k > 0 ? k : 0;
    return (uint8_t)(int32_t)(k < 255 ? k : 255);
}
static inline uint8_t code_f64(uint64_t w) {
    double k = 4 * value_f64(w);
    k = k > 0 ? k : 0;
    return (uint8_t)(int32_t)(k < 255 ? k : 255);
}
static inline uint8_t code_bf16(uint16_t w) { return code_f32((uint32_t)w << 16); }
/* Exponents of float16 are 112 lower than those of float32. Of its subnormal numbers only 0 has a
   code. */
static inline uint8_t code_f16(uint16_t w) { return w ? code_f32(((uint32_t)w << 13) + (112u << 23)) : 0; }

static inline uint32_t word_f32(uint8_t code) { return bits_f32(0.25f * code); }
static inline uint64_t word_f64(uint8_t code) { double x = 0.25 * code; uint64_t w; memcpy(&w, &x, sizeof w); return w; }
static inline uint16_t word_bf16(uint8_t code) { return (uint16_t)(word_f32(code) >> 16); }
static inline uint16_t word_f16(uint8_t code) { return code ? (uint16_t)((word_f32(code) - (112u << 23)) >> 13) : 0; }

/* 64 bytes that are 0 or 1 from 64 bits. In each byte of `spread` at most one bit is set; the
   addition carries it into the highest bit. */
static inline void widen(const uint8_t *codes, uint8_t *flags) {
    for (int i = 0; i < GROUP / 8; i++) {
        const uint64_t spread = codes[i] * 0x0101010101010101u & 0x8040201008040201u;
        const uint64_t eight = (spread + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
        memcpy(flags + 8 * i, &eight, 8);
    }
}

int64_t pack_count(const uint8_t *codes, int64_t bytes) {
    int64_t count = 0;
    for (; bytes >= 8; bytes -= 8, codes += 8) {
        uint64_t eight;
        memcpy(&eight, codes, 8);
        count += __builtin_popcountll(eight);
    }
    while (bytes--) count += __builtin_popcount(*codes++);
    return count;
}

/* Adds T rows of n bits; n is a multiple of 8. */
void pack_total(const uint8_t *codes, int64_t T, int64_t n, float *total, int64_t threads) {
    _Pragma("omp parallel for num_threads(threads) if (threads > 1) schedule(static)")
    for (int64_t o = 0; o < n; o += GROUP) {
        const int count = (int)(n - o < GROUP ? n - o : GROUP);
        float sum[GROUP] = {0};
        for (int64_t first = 0; first < T; first += 255) { /* as many as a byte can count */
            uint8_t eight[8] = {0}, flags[GROUP], bytes[GROUP] = {0};
            for (int64_t t = first; t < T && t < first + 255; t++) {
                memcpy(eight, codes + (t * n + o) / 8, count / 8);
                widen(eight, flags);
                for (int i = 0; i < GROUP; i++) bytes[i] += flags[i];
            }
            for (int i = 0; i < GROUP; i++) sum[i] += bytes[i];
        }
        memcpy(total + o, sum, count * sizeof(float));
    }
}

#define WORD uint64_t
#define NAME(f) f##_f64
#include "pack.c"
#undef WORD
#undef NAME

#define WORD uint32_t
#define NAME(f) f##_f32
#include "pack.c"
#undef WORD
#undef NAME

#define WORD uint16_t
#define NAME(f) f##_bf16
#include "pack.c"
#undef NAME

#define NAME(f) f##_f16
#include "pack.c"
#undef WORD
#undef NAME

#else

/* Encodes a group of 64 elements, adds the number of nonzero ones to count, and returns 0 if all
   fit. */
static inline WORD NAME(squeeze)(const WORD *x, int64_t bits, uint8_t *codes, int64_t *count) {
    WORD wrong = 0;
    uint8_t k[GROUP];
    if (bits == 1) {
        uint64_t bad;
        const uint64_t set = ones_of(x, sizeof(WORD), NAME(word)(4), &bad);
        memcpy(codes, &set, 8);
        *count += __builtin_popcountll(set);
        return bad != 0;
    }
    uint8_t high = 0, some = 0;
    for (int i = 0; i < GROUP; i++) k[i] = NAME(code)(x[i]);
    for (int i = 0; i < GROUP; i++) wrong |= x[i] ^ NAME(word)(k[i]);
    for (int i = 0; i < GROUP; i++) high |= k[i] & 0xf0;
    for (int i = 0; i < GROUP; i++) some += k[i] != 0;
    *count += some;
    if (bits == 8) memcpy(codes, k, GROUP);
    else for (int i = 0; i < GROUP / 2; i++) codes[i] = (uint8_t)(k[2 * i] | k[2 * i + 1] << 4);
    return bits == 4 && high ? 1 : wrong;
}

static inline void NAME(spread)(const uint8_t *codes, int64_t bits, WORD *x) {
    uint8_t k[GROUP];
    if (bits == 1) {
        const WORD one = NAME(word)(4);
        widen(codes, k);
        for (int i = 0; i < GROUP; i++) x[i] = (WORD)(0 - (WORD)k[i]) & one;
        return;
    }
    if (bits == 4)
        for (int i = 0; i < GROUP / 2; i++) k[2 * i] = codes[i] & 15, k[2 * i + 1] = codes[i] >> 4;
    else memcpy(k, codes, GROUP);
    for (int i = 0; i < GROUP; i++) x[i] = NAME(word)(k[i]);
}

/* Returns how many of n elements are not zero, or -1, early, if they do not all fit.
   codes: n * bits / 8 bytes, rounded up. */
int64_t NAME(pack)(const WORD *x, int64_t n, int64_t bits, uint8_t *codes, int64_t threads) {
    int64_t count = 0;
    int failed = 0;
    _Pragma("omp parallel for num_threads(threads) if (threads > 1) schedule(static) reduction(+ : count)")
    for (int64_t o = 0; o < n; o += BLOCK) {
        int given_up;
        _Pragma("omp atomic read") given_up = failed;
        if (given_up) continue;
        const int64_t end = o + BLOCK < n ? o + BLOCK : n;
        WORD wrong = 0;
        int64_t i = o;
        for (; i + GROUP <= end; i += GROUP) {
            for (int line = 0; line < (int)sizeof(WORD); line++) __builtin_prefetch((const char *)(x + i) + AHEAD + 64 * line);
            wrong |= NAME(squeeze)(x + i, bits, codes + i * bits / 8, &count);
        }
        if (i < end) {
            WORD rest[GROUP] = {0};
            uint8_t out[GROUP];
            memcpy(rest, x + i, (end - i) * sizeof(WORD));
            wrong |= NAME(squeeze)(rest, bits, out, &count);
            memcpy(codes + i * bits / 8, out, ((end - i) * bits + 7) / 8);
        }
        if (wrong) {
            _Pragma("omp atomic write") failed = 1;
        }
    }
    return failed ? -1 : count;
}

void NAME(unpack)(const uint8_t *codes, int64_t n, int64_t bits, WORD *x, int64_t threads) {
    _Pragma("omp parallel for num_threads(threads) if (threads > 1) schedule(static)")
    for (int64_t o = 0; o < n; o += BLOCK) {
        const int64_t end = o + BLOCK < n ? o + BLOCK : n;
        int64_t i = o;
        for (; i + GROUP <= end; i += GROUP) NAME(spread)(codes + i * bits / 8, bits, x + i);
        if (i < end) {
            WORD rest[GROUP];
            uint8_t in[GROUP] = {0};
            memcpy(in, codes + i * bits / 8, ((end - i) * bits + 7) / 8);
            NAME(spread)(in, bits, rest);
            memcpy(x + i, rest, (end - i) * sizeof(WORD));
        }
    }
}

#endif
