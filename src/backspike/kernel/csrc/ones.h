/* Which of 64 elements are not 0, and lists of such places. */

#ifndef BACKSPIKE_ONES_H
#define BACKSPIKE_ONES_H

#include <stdint.h>
#include <string.h>
#ifdef __AVX512BW__
#include <immintrin.h>
#endif

enum { EXTRA = 16 }; /* indices that list_ones may write behind a list */

/* 64 bits from 64 bytes that are 0 or 255. */
static inline uint64_t narrow(const uint8_t *flags) {
    uint64_t out = 0;
    for (int i = 0; i < 8; i++) {
        uint64_t eight;
        memcpy(&eight, flags + 8 * i, 8);
        out |= ((eight & 0x0101010101010101u) * 0x0102040810204080u >> 56) << 8 * i;
    }
    return out;
}

/* Bits that say which of 64 elements of 2, 4 or 8 bytes are not zero; wrong: whether one of these is
   not `one`. */
static inline uint64_t ones_of(const void *x, int size, uint64_t one, uint64_t *wrong) {
#ifdef __AVX512BW__
    const __m512i all = size == 8 ? _mm512_set1_epi64(one) : size == 4 ? _mm512_set1_epi32(one) : _mm512_set1_epi16(one);
    __m512i bad = _mm512_setzero_si512();
    uint64_t set = 0;
    for (int i = 0; i < size; i++) {
        const __m512i v = _mm512_loadu_si512((const char *)x + 64 * i);
        const uint64_t some = size == 8 ? _mm512_test_epi64_mask(v, v) : size == 4 ? _mm512_test_epi32_mask(v, v) : _mm512_test_epi16_mask(v, v);
        const __m512i want = size == 8   ? _mm512_maskz_mov_epi64(some, all)
                             : size == 4 ? _mm512_maskz_mov_epi32(some, all)
                                         : _mm512_maskz_mov_epi16(some, all);
        bad = _mm512_or_si512(bad, _mm512_xor_si512(v, want));
        set |= some << 64 / size * i;
    }
    *wrong = _mm512_test_epi64_mask(bad, bad);
    return set;
#else
    uint8_t flags[64];
#define COMPARE(WORD)                                                                   \
    if (size == sizeof(WORD)) {                                                         \
        const WORD *w = (const WORD *)x, unit = (WORD)one;                              \
        WORD bad = 0;                                                                   \
        for (int i = 0; i < 64; i++) flags[i] = w[i] ? 255 : 0;                         \
        for (int i = 0; i < 64; i++) bad |= w[i] ^ (w[i] ? unit : 0);                   \
        *wrong = bad;                                                                   \
    }
    COMPARE(uint64_t) COMPARE(uint32_t) COMPARE(uint16_t)
#undef COMPARE
    return narrow(flags);
#endif
}

/* Writes base + the places of the bits in w, and up to EXTRA more; returns the end of the list. A loop
   that ends with the last bit is mispredicted nearly every time, so FEW indices are written, needed
   or not. */
static inline int32_t *list_ones(uint64_t w, int32_t base, int32_t *index) {
    enum { FEW = 4 };
    int32_t *const next = index + __builtin_popcountll(w);
#ifdef __AVX512BW__
    if (next - index > FEW) {
        const __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for (int i = 0; i < 64; i += 16) {
            const __mmask16 some = (__mmask16)(w >> i);
            _mm512_storeu_si512(index, _mm512_maskz_compress_epi32(some, _mm512_add_epi32(places, _mm512_set1_epi32(base + i))));
            index += __builtin_popcount(some);
        }
        return next;
    }
#endif
    /* the highest bit, because ctz of 0 is undefined */
    for (int i = 0; i < FEW; i++, w &= w - 1) *index++ = base + __builtin_ctzll(w | (uint64_t)1 << 63);
    for (; index < next; w &= w - 1) *index++ = base + __builtin_ctzll(w);
    return next;
}

#endif
