/* What the C files share: the struct of a call of the neuron, the hash of the mask, bfloat16, and
   how rows are read from memory and written past the cache. The letters are those of
   docs/methods.md, section 1. */

#ifndef BACKSPIKE_LIF_H
#define BACKSPIKE_LIF_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef __SSE2__
#include <immintrin.h>
#endif
#ifdef _OPENMP
int omp_get_thread_num(void); /* not from omp.h, which a compiler without a runtime lacks: openmp.c */
#endif

#define SIMD _Pragma("omp simd")
#define EACH for (int i = 0; i < n; i++)
#define ALWAYS static inline __attribute__((always_inline))
#define FETCH 4  /* steps that rows are prefetched ahead */
#define WORDS 16 /* see saved.h */
#define ONE 0x3f800000 /* the bits of 1.0f */
#ifndef BLOCK
#define BLOCK 256
#endif

typedef uint32_t Word __attribute__((aligned(1), may_alias));

enum { LAM, OFFSET, GAIN, THETA, WIDTH, CONSTANTS };
/* The rows of the constants after those, if the neuron adapts: w[t] = LAM_W w[t-1] + BY_V (v[t] -
   rest) + BY_S s[t], and its input is x[t] - w[t-1]. A state is then two rows, v and w. */
enum { LAM_W, BY_V, BY_S, ADAPTATION };
enum { LEARNS_TAU = 1, LEARNS_THETA = 2, LEARNS_WIDTH = 4, LEARNS_LAM_W = 8, LEARNS_BY_V = 16, LEARNS_BY_S = 32 };
enum { LEARNS_ADAPTATION = LEARNS_LAM_W | LEARNS_BY_V | LEARNS_BY_S };
/* What is saved for the backward pass; see saved.py. */
enum { KEEPS_U, KEEPS_BF16, KEEPS_8BIT, KEEPS_1BIT, KEEPS_X };

#include "surrogate.h"

/* One call; cpu/library.py has the same struct. Within a timestep all tensors have the memory
   layout of x; the strides are those of T. Pointers that are not needed are null. Sums are taken
   chunk by chunk, then over the chunks in their order: the same bits on any number of threads. */
typedef struct {
    int64_t T, N;                  /* N: elements of a timestep */
    int64_t C, inner, per_channel; /* element i has channel (i / inner) % C; per_channel: the
                                      constants are [rows, C], not [rows, 1] */
    int64_t depth, area;           /* depth > 0: channels are last in memory, but come before the
                                      area in the index of the mask */
    int64_t chunks, threads;
    int64_t soft, decay_input, temporal, parametric, masked, rescale, learns, adapts;
    int64_t seed, limit;           /* an element is dropped if its 24 bits are below the limit */
    int64_t x_stride, g_stride, gu_stride;
    int64_t keeps, repeated;       /* repeated: gx is summed over T */
    int64_t logarithmic;           /* the 8-bit code, instead of uniform; see saved.h */
    int64_t streams, fresh;        /* streams: results are too large for the cache;
                                      fresh: and may be in memory that was never touched */
    double v_reset, rho, keep;
    double unit;                   /* of the 8-bit code */
    Surrogate surrogate, replace;
    const void *p_constants, *p_x, *p_v0;
    void *p_s, *p_u, *p_v;         /* forward writes; backward reads u */
    void *p_kept;                  /* codes [T, N], or bits [T, N / 8]: forward writes,
                                      backward reads */
    uint8_t *p_active;             /* forward writes bits [T, N / 8]: where h is not 0 */
    void *p_scratch;               /* [threads, replays(), T, BLOCK] for backward */
    const void *p_g, *p_gu, *p_gv; /* gradients of spikes, membrane and state */
    const void *p_line;            /* a and b of gu = a + b u, [2, T, C] */
    void *p_gx, *p_gv0;            /* backward writes */
    double *p_partial, *p_sums;    /* [chunks, K] and [K], zeros; K: forward [2, T, C] moments
                                      (of norm.c [3, T, C], with the spikes), backward [gradients(), C] */
} Job;

static inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

/* Constants whose gradients are summed. */
static inline int64_t gradients(const Job *j) { return j->adapts ? 6 : 3; }

/* Whether the backward pass needs w. */
static inline int needs_w(const Job *j) {
    return j->adapts && (j->learns & LEARNS_ADAPTATION || (j->learns & LEARNS_TAU && j->decay_input));
}

/* Rows that the backward pass computes again for each timestep: u, w. */
static inline int64_t replays(const Job *j) { return (j->keeps == KEEPS_X) + needs_w(j); }

ALWAYS uint32_t lowbias32(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return x;
}

ALWAYS float from_bf16(uint16_t x) {
    union { uint32_t bits; float value; } y = {.bits = (uint32_t)x << 16};
    return y.value;
}

ALWAYS uint16_t to_bf16(float x) {
    union { float value; uint32_t bits; } y = {.value = x};
    uint16_t nearest = (uint16_t)((y.bits + 0x7fffu + ((y.bits >> 16) & 1u)) >> 16);
    return x != x ? 0x7fc0 : nearest;
}

/* Chunks that a thread takes at a time. Where chunks are long it takes one, so that the others do
   not wait for a thread that is interrupted. */
static inline int share(const Job *j) {
    return j->streams ? 1 : (int)((j->chunks + j->threads - 1) / j->threads);
}

static inline int this_thread(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

/* memcpy past the cache: the destination is not read into it first. Call streamed() after the last
   one. */
static inline void stream(void *to, const void *from, int64_t bytes) {
#if defined(__AVX512F__)
    enum { WIDE = 64 };
#define STREAM(k) _mm512_stream_si512((__m512i *)(b + k), _mm512_loadu_si512(a + k))
#elif defined(__AVX__)
    enum { WIDE = 32 };
#define STREAM(k) _mm256_stream_si256((__m256i *)(b + k), _mm256_loadu_si256((const __m256i *)(a + k)))
#elif defined(__SSE2__)
    enum { WIDE = 16 };
#define STREAM(k) _mm_stream_si128((__m128i *)(b + k), _mm_loadu_si128((const __m128i *)(a + k)))
#endif
#ifdef STREAM
    const char *a = (const char *)from;
    char *b = (char *)to;
    const int64_t head = min(bytes, -(intptr_t)to & 63), body = (bytes - head) & -64;
    if (head || body < bytes) { /* cache lines that are written in part */
        memcpy(b, a, head);
        memcpy(b + head + body, a + head + body, bytes - head - body);
        a += head, b += head, bytes = body;
    }
    for (int64_t k = 0; k < bytes; k += WIDE) STREAM(k);
#undef STREAM
#else
    memcpy(to, from, bytes);
#endif
}

/* Prefetches a row. */
static inline void ahead(const void *p, int64_t bytes) {
    for (int64_t k = 0; k < bytes; k += 64) __builtin_prefetch((const char *)p + k, 0, 2);
}

/* Asks for large pages: the first use of new memory is several times faster in them. If this fails,
   nothing is lost. */
static inline void large_pages(const Job *j, void *p, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    const intptr_t page = 2 << 20, start = ((intptr_t)p + page - 1) / page * page, end = ((intptr_t)p + bytes) / page * page;
    if (j->streams && j->fresh && p && end > start) madvise((void *)start, end - start, MADV_HUGEPAGE);
#endif
}

static inline void streamed(void) {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

/* Where to compute a row that belongs at p: there, or in the buffer that deliver() then streams. */
static inline void *place(const Job *j, void *p, void *buffer) { return j->streams || !p ? buffer : p; }

static inline void deliver(const Job *j, void *p, const void *buffer, int64_t bytes) {
    if (!p || p == buffer) return;
    if (j->streams) stream(p, buffer, bytes);
    else memcpy(p, buffer, bytes);
}

/* Fills `where` so that base + where[i] is the logical position of element o + i; returns base. */
static inline int64_t logical(const Job *j, int64_t o, int n, uint32_t *where) {
    if (!j->depth) {
        EACH where[i] = (uint32_t)i;
        return o;
    }
    /* channel by channel of one position, then the next position: no divisions in the loop */
    const int64_t sample = j->depth * j->area, base = o / sample * sample;
    int64_t channel = o % j->depth, position = o % sample / j->depth, before = 0;
    for (int i = 0, run; i < n; i += run) {
        run = (int)min(n - i, j->depth - channel);
        const uint32_t first = (uint32_t)(before + channel * j->area + position), step = (uint32_t)j->area;
        SIMD for (int k = 0; k < run; k++) where[i + k] = first + (uint32_t)k * step;
        channel = 0;
        if (++position == j->area) position = 0, before += sample;
    }
    return base;
}

static inline void merge(const Job *j, int64_t K) {
    for (int64_t chunk = 0; chunk < j->chunks; chunk++)
        for (int64_t k = 0; k < K; k++) j->p_sums[k] += j->p_partial[chunk * K + k];
}

#endif
