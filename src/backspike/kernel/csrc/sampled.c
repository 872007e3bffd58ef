/* A matrix product computed only where it is needed: X [M, K] = G [M, N] @ W [N, K] where bits are
   set, else 0.

   This is the gradient that a spiking layer needs from the linear layer after it: h is 0 for most
   neurons, and their gradient is not read. Each element is a dot product with a column of W; a few
   columns at a time, the panel, are side by side in the cache. Products of bfloat16 are added as
   float32, two at a time if the processor can. */

#include "bits.h"

#if defined(__AVX512BW__) && (defined(__clang__) || __GNUC__ >= 10)
#define PAIRS __attribute__((target("avx512f,avx512bw,avx512bf16")))
#endif

enum { KEYS = 48, PANEL_BYTES = 1 << 19, PART = 256 };

int64_t sparse_sampled_size(void) { return sizeof(Sampled); }

static int64_t keys(const Sampled *j) {
    const int64_t fit = PANEL_BYTES / 4 / j->N;
    return fit < 8 ? 8 : min(fit, KEYS);
}

/* Floats of scratch memory for each thread: the panel and a row of G. */
int64_t sparse_sampled_scratch(const Sampled *j) { return (keys(j) + 1) * j->N; }

/* n columns of W as rows of N, from 16 rows of W at a time, which fit into the cache. */
#define LAY(name, IN, OUT, CONVERT)                                                                                    \
    static void name(const IN *w, int64_t N, int64_t K, int64_t n, OUT *panel) {                                       \
        for (int64_t tile = 0; tile < N; tile += 16)                                                                   \
            for (int64_t k = 0; k < n; k++)                                                                            \
                for (int64_t i = tile; i < min(tile + 16, N); i++) panel[k * N + i] = CONVERT(w[i * K + k]);           \
    }
LAY(lay_f32, float, float, )
LAY(lay_bf16, uint16_t, float, from_bf16)
LAY(lay_pairs, uint16_t, uint16_t, )

static float dot(const float *a, const float *b, int64_t n) {
    enum { WIDE = 4 };
    Vector s[WIDE] = {0}, p, q;
    float sum = 0, last[FLOATS];
    int64_t i = 0;
    for (; i + WIDE * FLOATS <= n; i += WIDE * FLOATS)
        for (int v = 0; v < WIDE; v++) {
            memcpy(&p, a + i + v * FLOATS, sizeof p);
            memcpy(&q, b + i + v * FLOATS, sizeof q);
            s[v] += p * q;
        }
    p = (s[0] + s[1]) + (s[2] + s[3]);
    memcpy(last, &p, sizeof p);
    for (int v = 0; v < FLOATS; v++) sum += last[v];
    for (; i < n; i++) sum += a[i] * b[i];
    return sum;
}

#ifdef PAIRS
PAIRS static float dot_pairs(const uint16_t *a, const uint16_t *b, int64_t n) {
    enum { WIDE = 4 };
    __m512 s[WIDE] = {0};
    int64_t i = 0;
    for (; i + WIDE * 32 <= n; i += WIDE * 32)
        for (int v = 0; v < WIDE; v++) {
            const __m512i p = _mm512_loadu_si512(a + i + v * 32), q = _mm512_loadu_si512(b + i + v * 32);
            s[v] = _mm512_dpbf16_ps(s[v], (__m512bh)p, (__m512bh)q);
        }
    for (int v = 0; i < n; i += 32, v++) {
        const __mmask32 inside = n - i >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << (n - i)) - 1;
        const __m512i p = _mm512_maskz_loadu_epi16(inside, a + i), q = _mm512_maskz_loadu_epi16(inside, b + i);
        s[v] = _mm512_dpbf16_ps(s[v], (__m512bh)p, (__m512bh)q);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(s[0], s[1]), _mm512_add_ps(s[2], s[3])));
}
static int pairs(void) { return __builtin_cpu_supports("avx512bf16"); }
#else
static float dot_pairs(const uint16_t *a, const uint16_t *b, int64_t n) { (void)a, (void)b, (void)n; return 0; }
static int pairs(void) { return 0; }
#endif

static void sample(const Sampled *j, int paired, int64_t m, int64_t k, int64_t n, const float *panel, float *row) {
    const int64_t at = m * j->K + k;
    float x[KEYS] = {0};
    uint64_t w = bits_at(j->p_bits, j->M * j->K, at, n);
    const void *g = j->half ? (const void *)((const uint16_t *)j->p_g + m * j->N) : (const float *)j->p_g + m * j->N;
    if (w && j->half && !paired) {
        for (int64_t i = 0; i < j->N; i++) row[i] = from_bf16(((const uint16_t *)g)[i]);
        g = row;
    }
    for (; w; w &= w - 1) {
        const int i = __builtin_ctzll(w);
        x[i] = paired ? dot_pairs(g, (const uint16_t *)panel + i * j->N, j->N) : dot(g, panel + i * j->N, j->N);
    }
    if (j->x_half) for (int64_t i = 0; i < n; i++) ((uint16_t *)j->p_x)[at + i] = to_bf16(x[i]);
    else memcpy((float *)j->p_x + at, x, n * sizeof(float));
}

void sparse_sampled(const Sampled *j) {
    const int paired = j->half && pairs();
    const int64_t wide = keys(j), blocks = (j->K + wide - 1) / wide;
    const int64_t even = j->M * blocks / (4 * j->threads) + 1, tall = even < PART ? PART : even, parts = (j->M + tall - 1) / tall;
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        float *panel = (float *)j->p_scratch + this_thread() * sparse_sampled_scratch(j), *row = panel + wide * j->N;
        _Pragma("omp for schedule(dynamic)") for (int64_t task = 0; task < blocks * parts; task++) {
            const int64_t k = task / parts * wide, n = min(wide, j->K - k), first = task % parts * tall;
            if (paired) lay_pairs((const uint16_t *)j->p_w + k, j->N, j->K, n, (uint16_t *)panel);
            else if (j->half) lay_bf16((const uint16_t *)j->p_w + k, j->N, j->K, n, panel);
            else lay_f32((const float *)j->p_w + k, j->N, j->K, n, panel);
            for (int64_t m = first; m < min(first + tall, j->M); m++) sample(j, paired, m, k, n, panel, row);
        }
    }
}
