/* One timestep of a network as a list of operations on buffers that live as long as the list, so
   that a step is one call. A buffer holds samples one after the other, each pixel by pixel with the
   channels of a pixel adjacent; a linear layer sees one pixel.

   Convolutions and linear layers list the inputs that are not zero and add the rows of the weight
   that belong to them, in ascending order of the inputs. A convolution of mostly nonzero inputs
   computes all products instead; each output adds its terms in the same order, so the result has
   the same bits. */

#ifndef REAL

#include "lif.h"

/* In the order of KINDS in cpu/stream.py. */
enum { PICK, CONVOLUTION, LINEAR, NEURON, INTEGRATOR, AVERAGE, MAXIMUM, SCALE, ADD };
enum { TILE = 4, AT_ONCE = 4 }; /* pixels of a tile; rows of a linear layer added in one pass */

/* One operation; cpu/stream.py has the same struct. */
typedef struct {
    Job neuron;                      /* N, C, per_channel, inner, soft, v_reset, p_constants, p_v0: v */
    int64_t kind, samples;
    int64_t height, width, channels; /* of the input of a sample */
    int64_t rows, columns, outputs;  /* the same of its output */
    int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;
    int64_t divisor;                 /* AVERAGE: of the sum; 0: the pixels inside the image */
    int64_t dense;                   /* CONVOLUTION: from so many events on, compute all products */
    const void *p_x;
    const void *p_other;             /* added to the result at the end; or null */
    const void *p_weight;            /* CONVOLUTION, LINEAR: [kernel_h, kernel_w, channels, outputs / groups];
                                        SCALE: a of y = a x + b, [channels] */
    const void *p_bias;              /* the sums begin with it, [outputs]; SCALE: b; or null */
    const int32_t *p_pick;           /* PICK: y[i] = x[pick[i]]; null: y[i] = x[i] */
    int32_t *p_scratch;                /* room for height x width x channels + 16 positions */
    void *p_padded;                  /* room for an input with its padding */
    void *p_y;
} Op;

int64_t stream_size(void) { return sizeof(Op); }

#define NO_BF16
#define BODY "stream.c"
#include "types.h"

#else

#include "step.h"

typedef REAL NAME(Vector) __attribute__((vector_size(64), aligned(sizeof(REAL)), may_alias));
enum { NAME(LANES) = 64 / sizeof(REAL) };
#define LOAD(p) (*(const NAME(Vector) *)(p))
#define STORE(p) (*(NAME(Vector) *)(p))

/* Lists where x is not 0; returns how many there are. */
static int64_t NAME(events)(const REAL *x, int64_t n, int32_t *index) {
    int64_t count = 0, i = 0;
#if defined(__AVX512F__) && defined(__AVX512VL__)
    __m512i where = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; i + NAME(LANES) <= n; i += NAME(LANES)) {
        const unsigned some = sizeof(REAL) == 4
            ? _mm512_cmp_ps_mask(_mm512_loadu_ps((const void *)(x + i)), _mm512_setzero_ps(), _CMP_NEQ_UQ)
            : _mm512_cmp_pd_mask(_mm512_loadu_pd((const void *)(x + i)), _mm512_setzero_pd(), _CMP_NEQ_UQ);
        _mm512_storeu_si512(index + count, _mm512_maskz_compress_epi32((__mmask16)some, where));
        where = _mm512_add_epi32(where, _mm512_set1_epi32(NAME(LANES)));
        count += __builtin_popcount(some);
    }
#endif
    for (; i < n; i++) {
        index[count] = (int32_t)i;
        count += x[i] != 0;
    }
    return count;
}

/* y += the sum of x[at] times row at of w, over `count` positions at that are listed. */
ALWAYS void NAME(add_rows)(REAL *y, const REAL *w, const REAL *x, const int32_t *list, int64_t count, int64_t n) {
    enum { L = NAME(LANES) };
    int64_t i = 0;
    for (; i + 2 * L <= n; i += 2 * L) {
        NAME(Vector) low = LOAD(y + i), high = LOAD(y + i + L);
        for (int64_t e = 0; e < count; e++) {
            const REAL *row = w + list[e] * n + i, a = x[list[e]];
            low += a * LOAD(row), high += a * LOAD(row + L);
        }
        STORE(y + i) = low, STORE(y + i + L) = high;
    }
    for (; i + L <= n; i += L) {
        NAME(Vector) sum = LOAD(y + i);
        for (int64_t e = 0; e < count; e++) sum += x[list[e]] * LOAD(w + list[e] * n + i);
        STORE(y + i) = sum;
    }
    for (; i < n; i++)
        for (int64_t e = 0; e < count; e++) y[i] += x[list[e]] * w[list[e] * n + i];
}

/* ------------------------------------------------------------------------------ synaptic layers */

static void NAME(begin_sums)(const Op *o, REAL *y) {
    const int64_t size = o->rows * o->columns * o->outputs;
    if (!o->p_bias) memset(y, 0, size * sizeof(REAL));
    else memcpy(y, o->p_bias, o->outputs * sizeof(REAL));
    for (int64_t done = o->p_bias ? o->outputs : size, n; done < size; done += n) {
        n = min(done, size - done);
        memcpy(y + done, y, n * sizeof(REAL));
    }
}

/* Adds to every output pixel whose window contains an event. simple: stride 1. */
ALWAYS void NAME(scatter_as)(const Op *o, const int simple, const REAL *x, int64_t events, REAL *y) {
    const uint32_t C = (uint32_t)o->channels, W = (uint32_t)o->width, inputs = (uint32_t)(C / o->groups);
    const uint32_t stride_h = simple ? 1 : (uint32_t)o->stride_h, stride_w = simple ? 1 : (uint32_t)o->stride_w;
    const int64_t each = o->outputs / o->groups, rows = o->rows, columns = o->columns;
    const int32_t *list = o->p_scratch;
    for (int64_t e = 0, end; e < events; e = end) { /* the events of one pixel, and one group */
        const uint32_t at = (uint32_t)list[e], pixel = at / C, group = at % C / inputs, first = pixel * C;
        for (end = e + 1; end < events && (uint32_t)list[end] < first + (group + 1) * inputs;) end++;
        const int64_t h = pixel / W + o->pad_h, w = pixel % W + o->pad_w;
        const REAL *weight = (const REAL *)o->p_weight - first * each;
        for (int64_t i = 0; i < o->kernel_h; i++) {
            const int64_t down = h - i * o->dilation_h;
            if (down < 0) break;
            if ((!simple && (uint32_t)down % stride_h) || (uint32_t)down / stride_h >= rows) continue;
            REAL *row = y + (uint32_t)down / stride_h * columns * o->outputs + group * each;
            for (int64_t k = 0; k < o->kernel_w; k++) {
                const int64_t right = w - k * o->dilation_w;
                if (right < 0) break;
                if ((!simple && (uint32_t)right % stride_w) || (uint32_t)right / stride_w >= columns) continue;
                const REAL *tap = weight + (i * o->kernel_w + k) * C * each;
                NAME(add_rows)(row + (uint32_t)right / stride_w * o->outputs, tap, x, list + e, end - e, each);
            }
        }
    }
}

static void NAME(scatter)(const Op *o, const REAL *x, int64_t events, REAL *y) {
    if (o->stride_h == 1 && o->stride_w == 1) NAME(scatter_as)(o, 1, x, events, y);
    else NAME(scatter_as)(o, 0, x, events, y);
}

/* All products for some neighbouring output pixels and some vectors of their channels. x: the first
   input pixel of their windows, in the padded image. */
ALWAYS void NAME(tile)(const Op *o, const REAL *x, int64_t wide, const REAL *w, REAL *y, const int pixels, const int vectors) {
    NAME(Vector) sum[TILE][2];
    const int64_t C = o->channels, step = o->stride_w * C;
    for (int p = 0; p < pixels; p++)
        for (int v = 0; v < vectors; v++) sum[p][v] = LOAD(y + p * o->outputs + v * NAME(LANES));
    for (int64_t i = 0; i < o->kernel_h; i++)
        for (int64_t k = 0; k < o->kernel_w; k++) {
            const REAL *from = x + (i * o->dilation_h * wide + k * o->dilation_w) * C;
            for (int64_t c = 0; c < C; c++, w += o->outputs)
                for (int v = 0; v < vectors; v++) {
                    const NAME(Vector) weight = LOAD(w + v * NAME(LANES));
                    for (int p = 0; p < pixels; p++) sum[p][v] += from[p * step + c] * weight;
                }
        }
    for (int p = 0; p < pixels; p++)
        for (int v = 0; v < vectors; v++) STORE(y + p * o->outputs + v * NAME(LANES)) = sum[p][v];
}

static void NAME(convolve_all)(const Op *o, const REAL *x, REAL *y) {
    const int64_t C = o->channels, wide = o->width + 2 * o->pad_w, high = o->height + 2 * o->pad_h;
    REAL *padded = (REAL *)o->p_padded;
    memset(padded, 0, high * wide * C * sizeof(REAL));
    for (int64_t h = 0; h < o->height; h++)
        memcpy(padded + ((h + o->pad_h) * wide + o->pad_w) * C, x + h * o->width * C, o->width * C * sizeof(REAL));
    for (int64_t n = 0, vectors; n < o->outputs; n += vectors * NAME(LANES)) {
        vectors = min(2, (o->outputs - n) / NAME(LANES));
        for (int64_t h = 0; h < o->rows; h++)
            for (int64_t w = 0, pixels; w < o->columns; w += pixels) {
                pixels = w + TILE <= o->columns ? TILE : 1;
                const REAL *from = padded + (h * o->stride_h * wide + w * o->stride_w) * C;
                const REAL *weight = (const REAL *)o->p_weight + n;
                REAL *to = y + (h * o->columns + w) * o->outputs + n;
                if (pixels == TILE && vectors == 2) NAME(tile)(o, from, wide, weight, to, TILE, 2);
                else if (pixels == TILE) NAME(tile)(o, from, wide, weight, to, TILE, 1);
                else if (vectors == 2) NAME(tile)(o, from, wide, weight, to, 1, 2);
                else NAME(tile)(o, from, wide, weight, to, 1, 1);
            }
    }
}

static void NAME(convolution)(const Op *o, const REAL *x, REAL *y) {
    const int64_t size = o->height * o->width * o->channels, events = NAME(events)(x, size, o->p_scratch);
    NAME(begin_sums)(o, y);
    if (events >= o->dense) NAME(convolve_all)(o, x, y);
    else NAME(scatter)(o, x, events, y);
}

static void NAME(linear)(const Op *o, const REAL *x, REAL *y) {
    const int64_t n = o->outputs, events = NAME(events)(x, o->channels, o->p_scratch);
    const int32_t *at = o->p_scratch;
    int64_t e = 0;
    NAME(begin_sums)(o, y);
    for (; e + AT_ONCE <= events; e += AT_ONCE) {
        const REAL *w[AT_ONCE], *a = x;
        for (int k = 0; k < AT_ONCE; k++) w[k] = (const REAL *)o->p_weight + at[e + k] * n;
        int64_t i = 0;
        for (; i + NAME(LANES) <= n; i += NAME(LANES)) {
            NAME(Vector) sum = LOAD(y + i);
            for (int k = 0; k < AT_ONCE; k++) sum += a[at[e + k]] * LOAD(w[k] + i);
            STORE(y + i) = sum;
        }
        for (; i < n; i++)
            for (int k = 0; k < AT_ONCE; k++) y[i] += a[at[e + k]] * w[k][i];
    }
    NAME(add_rows)(y, (const REAL *)o->p_weight, x, at + e, events - e, n);
}

/* ---------------------------------------------------------------------------- the other kinds */

static void NAME(neurons)(const Op *o, const REAL *x, REAL *y) {
    const Job *j = &o->neuron;
    REAL table[CONSTANTS][BLOCK], other[BLOCK], *v = (REAL *)j->p_v0;
    if (!j->per_channel) NAME(constants)(j, 0, BLOCK, table);
    for (int64_t b = 0; b < j->N; b += BLOCK) {
        const int n = (int)min(BLOCK, j->N - b);
        if (j->per_channel) NAME(constants)(j, b, n, table);
        if (o->kind == INTEGRATOR) NAME(fire)(j, table, x + b, v + b, y + b, other, n);
        else NAME(fire)(j, table, x + b, v + b, other, y + b, n);
    }
}

/* As torch: a NaN is the largest of all. */
ALWAYS REAL NAME(largest)(REAL a, REAL b) { return b > a || b != b ? b : a; }

ALWAYS void NAME(pool_as)(const Op *o, const int average, const REAL *x, REAL *y) {
    const int64_t C = o->channels;
    for (int64_t h = 0; h < o->rows; h++)
        for (int64_t w = 0; w < o->columns; w++, y += C) {
            for (int64_t c = 0; c < C; c++) y[c] = average ? 0 : -(REAL)INFINITY;
            int64_t inside = 0;
            for (int64_t i = 0; i < o->kernel_h; i++) {
                const int64_t down = h * o->stride_h - o->pad_h + i * o->dilation_h;
                if (down < 0 || down >= o->height) continue;
                for (int64_t k = 0; k < o->kernel_w; k++) {
                    const int64_t right = w * o->stride_w - o->pad_w + k * o->dilation_w;
                    if (right < 0 || right >= o->width) continue;
                    const REAL *from = x + (down * o->width + right) * C;
                    if (average) SIMD for (int64_t c = 0; c < C; c++) y[c] += from[c];
                    else SIMD for (int64_t c = 0; c < C; c++) y[c] = NAME(largest)(y[c], from[c]);
                    inside++;
                }
            }
            const REAL divisor = (REAL)(o->divisor ? o->divisor : inside);
            if (average) SIMD for (int64_t c = 0; c < C; c++) y[c] /= divisor;
        }
}

static void NAME(pick)(const Op *o, const REAL *x, REAL *y) {
    const int64_t n = o->rows * o->columns * o->outputs;
    if (!o->p_pick) memcpy(y, x, n * sizeof(REAL));
    else for (int64_t i = 0; i < n; i++) y[i] = x[o->p_pick[i]];
}

static void NAME(scale)(const Op *o, const REAL *x, REAL *y) {
    const REAL *a = (const REAL *)o->p_weight, *b = (const REAL *)o->p_bias;
    for (int64_t p = 0; p < o->rows * o->columns; p++, x += o->channels, y += o->channels)
        SIMD for (int64_t c = 0; c < o->channels; c++) y[c] = x[c] * a[c] + b[c];
}

static void NAME(sample)(const Op *o, const REAL *x, REAL *y) {
    switch (o->kind) {
    case PICK: NAME(pick)(o, x, y); break;
    case CONVOLUTION: NAME(convolution)(o, x, y); break;
    case LINEAR: NAME(linear)(o, x, y); break;
    case AVERAGE: NAME(pool_as)(o, 1, x, y); break;
    case MAXIMUM: NAME(pool_as)(o, 0, x, y); break;
    case SCALE: NAME(scale)(o, x, y); break;
    case ADD: memcpy(y, x, o->rows * o->columns * o->outputs * sizeof(REAL)); break;
    }
}

int64_t NAME(stream_run)(const Op *ops, int64_t count) {
    for (const Op *o = ops; o < ops + count; o++) {
        const int64_t from = o->height * o->width * o->channels, to = o->rows * o->columns * o->outputs;
        const REAL *x = (const REAL *)o->p_x, *other = (const REAL *)o->p_other;
        REAL *y = (REAL *)o->p_y;
        if (o->kind == NEURON || o->kind == INTEGRATOR) NAME(neurons)(o, x, y);
        else for (int64_t s = 0; s < o->samples; s++) NAME(sample)(o, x + s * from, y + s * to);
        if (other) SIMD for (int64_t i = 0; i < o->samples * to; i++) y[i] = other[i] + y[i];
    }
    return 0;
}

#undef LOAD
#undef STORE

#endif
