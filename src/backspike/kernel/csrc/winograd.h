/* What the files on Winograd's F(4x4, 3x3) share: the points, the tiles and the transform of inputs.

   The polynomials are evaluated at 0, +-3/4, +-3/2 and infinity, which halves the error of the usual
   0, +-1, +-2. A tile is 6x6 inputs, of which 4x4 outputs need 36 products. */

#ifndef BACKSPIKE_WINOGRAD_H
#define BACKSPIKE_WINOGRAD_H

#include "conv.h"

enum { POSITIONS = 36 };

typedef uint16_t Halves __attribute__((vector_size(2 * FLOATS))); /* bfloat16 numbers */

static const float A = 0.75f, B = 1.5f, A2 = 0.5625f, B2 = 2.25f; /* the points and their squares */

ALWAYS Vector all(float x) { return x - (Vector){0}; }

/* a b + c, fused where all processors of the level can. */
ALWAYS Vector fma_of(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
    return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

ALWAYS void input_line(const Vector *d, Vector *v, int step) { /* B' d */
    const Vector a = all(A), b = all(B), a2 = all(-A2), b2 = all(-B2);
    const Vector e = fma_of(b2, d[2], d[4]), f = fma_of(b2, d[1], d[3]);
    const Vector g = fma_of(a2, d[2], d[4]), h = fma_of(a2, d[1], d[3]);
    v[0] = fma_of(a2, fma_of(b2, d[0], d[2]), e);
    v[step] = fma_of(a, f, e), v[2 * step] = fma_of(-a, f, e);
    v[3 * step] = fma_of(b, h, g), v[4 * step] = fma_of(-b, h, g);
    v[5 * step] = fma_of(a2, f, fma_of(b2, d[3], d[5]));
}

typedef struct { int64_t image, h, w; } Place; /* the first pixel of a tile's outputs */

static inline int64_t tiles_of(int64_t images, int64_t H, int64_t W) { return images * over(H, 4) * over(W, 4); }

static inline Place place_in(int64_t tile, int64_t H, int64_t W) {
    const int64_t across = over(W, 4), each = across * over(H, 4);
    return (Place){tile / each, tile % each / across * 4, tile % across * 4};
}

#endif
