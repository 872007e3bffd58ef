/* Convolutions of an input that is mostly zero: only what is not zero is added, forward and for the weight's gradient.

   The input comes as the codes of pack.c, [images, H, W, C] in C order. Forward, the codes of a row of the image become a list
   of events, what is not zero with its position, and an output pixel adds the rows of the weight that the events below its
   window name. For the weight's gradient the codes of some images become a list for each input channel, and a tap of the weight
   adds the rows of g at those places. Rows are vectors of output channels; sums stay in registers. In which order an element is
   summed depends on the shapes alone: the same bits on any number of threads. */

#include "bits.h"

enum {
    UNIT = 2 * FLOATS,            /* output channels that are read at once, two vectors */
    WIDEST = 4,                   /* units of a block of the forward pass */
    TAPS = FLOATS == 16 ? 9 : 3,  /* taps whose sums stay in registers */
    PANEL = 3 << 18,              /* bytes of weights that the second cache holds beside what else it needs */
    PIXELS = 512,                 /* output pixels of a task, which use the same weights */
    SPREAD = 1024,                /* places of g that a list is taken over */
    DEEP = 64,                    /* input channels of a task of the weight's gradient */
};

/* conv.py has the same struct. Strides w_... of the weight, or its gradient, [N, C, KH, KW] are in elements. */
typedef struct {
    int64_t images, C, H, W, N, out_H, out_W, KH, KW;
    int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int64_t w_n, w_c, w_h, w_w;
    int64_t bits, bytes, half, threads; /* of a code; of all codes; half: weight, y and g are bfloat16 */
    const uint8_t *p_codes;
    const void *p_w, *p_g;     /* g [images, out_H, out_W, N] */
    const float *p_bias;       /* or null */
    void *p_y;                 /* [images, out_H, out_W, N] */
    float *p_gw;
    void *p_panel, *p_scratch; /* as conv_panel and conv_scratch ask for */
} Conv;

typedef uint32_t Words __attribute__((vector_size(4 * FLOATS)));

int64_t conv_job_size(void) { return sizeof(Conv); }

static inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t line(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/* ------------------------------------------------------------------------------------------------------------- codes */

/* 64 bits of the codes from bit `at` on; after the last, zeros. */
static inline uint64_t word_at(const Conv *j, int64_t at) {
    const uint8_t *p = j->p_codes + at / 8;
    const int64_t left = j->bytes - at / 8, shift = at % 8;
    uint64_t low = 0, high = 0;
    memcpy(&low, p, left < 8 ? left : 8);
    if (!shift) return low;
    if (left > 8) high = p[8];
    return low >> shift | high << (64 - shift);
}

/* One bit, at its lowest, for each code in a word that is not zero. */
ALWAYS uint64_t nonzero(uint64_t w, int bits) {
    if (bits == 1) return w;
    if (bits == 4) return (w | w >> 1 | w >> 2 | w >> 3) & 0x1111111111111111u;
    return (((w & 0x7f7f7f7f7f7f7f7fu) + 0x7f7f7f7f7f7f7f7fu) | w) >> 7 & 0x0101010101010101u;
}

/* For each of n <= 64 / bits codes from `at` on that is not zero: DO with its number i and its value. */
#define EVENTS(j, bits, at, n, DO)                                                                    \
    {                                                                                                 \
        const uint64_t word = word_at(j, (at) * (bits));                                              \
        const uint64_t inside = (n) < 64 / (bits) ? ((uint64_t)1 << (n) * (bits)) - 1 : ~(uint64_t)0; \
        for (uint64_t some = nonzero(word & inside, bits); some; some &= some - 1) {                  \
            const int bit = __builtin_ctzll(some), i = bit / (bits);                                  \
            const float value = (bits) == 1 ? 1.0f : 0.25f * (word >> bit & ((1 << (bits)) - 1));     \
            DO                                                                                        \
        }                                                                                             \
    }

/* ------------------------------------------------------------------------------------------------------------- units */

/* A unit is two vectors of floats, or one of words that hold a bfloat16 of the first in their low half and of the second in
   their high one. */
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

/* n <= UNIT numbers that lie `stride` apart as a unit, filled up with zeros. */
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

/* ----------------------------------------------------------------------------------------------------------- forward */

/* Units of a block: as many as leave the weights of a block in the cache. */
static int64_t block_units(const Conv *j) {
    const int64_t each = j->C * j->KH * j->KW * unit_bytes(j->half);
    int64_t units = WIDEST;
    while (units > 1 && (units / 2 * UNIT >= j->N || units * each > PANEL)) units /= 2;
    return units;
}

/* Output rows of a task. */
static int64_t tall(const Conv *j) {
    const int64_t rows = j->images * j->out_H, even = over(rows, 4 * j->threads);
    return max(1, min(even, over(PIXELS, j->out_W)));
}

/* Input rows that a task lists, at most: whole images, or a window's reach for each part of an image. */
static int64_t listed(const Conv *j) {
    const int64_t rows = tall(j), parts = (rows + j->out_H - 2) / j->out_H + 1;
    return min(parts * j->H, rows * j->stride_h + parts * (j->KH - 1) * j->dilation_h);
}

static int64_t forward_scratch(const Conv *j) {
    const int64_t rows = listed(j), events = rows * j->W * j->C;
    return line(rows * (j->W + 1) * 4) + line(events * 4) * (j->bits == 1 ? 1 : 2);
}

typedef struct {
    int32_t *start; /* [rows, W + 1]: where the events of a pixel begin */
    int32_t *index; /* of an event, pixel * C + channel */
    float *value;
    int32_t count;
} Lists;

static Lists lists(const Conv *j, void *scratch) {
    const int64_t rows = listed(j);
    char *p = scratch;
    int32_t *index = (int32_t *)(p + line(rows * (j->W + 1) * 4));
    return (Lists){.start = (int32_t *)p, .index = index, .value = (float *)((char *)index + line(rows * j->W * j->C * 4))};
}

ALWAYS void list_row(const Conv *j, int bits, int64_t row, int32_t *start, Lists *l) {
    int32_t count = l->count;
    for (int64_t w = 0; w < j->W; w++) {
        start[w] = count;
        for (int64_t c = 0; c < j->C; c += 64 / bits) {
            const int64_t first = w * j->C + c;
            EVENTS(j, bits, row * j->W * j->C + first, j->C - c, {
                l->index[count] = (int32_t)(first + i);
                if (bits > 1) l->value[count] = value;
                count++;
            })
        }
    }
    start[j->W] = l->count = count;
}

static void list_one(const Conv *j, int64_t row, int32_t *start, Lists *l) {
    if (j->bits == 1) list_row(j, 1, row, start, l);
    else if (j->bits == 4) list_row(j, 4, row, start, l);
    else list_row(j, 8, row, start, l);
}

/* The input rows [from, to) of an image that its output rows [first, last) need. */
static void needed(const Conv *j, int64_t first, int64_t last, int64_t *from, int64_t *to) {
    *from = min(max(first * j->stride_h - j->pad_h, 0), j->H);
    *to = max(*from, min((last - 1) * j->stride_h - j->pad_h + (j->KH - 1) * j->dilation_h + 1, j->H));
}

/* The sums of a block at one output pixel. rows[kh]: the starts of the input row below that row of the window, or null. */
ALWAYS void window(
    const Conv *j, const Lists *l, const int32_t *const *rows, int64_t out_w, const char *panel, Vector *s, int units, int half, int valued
) {
    const int64_t runs = j->dilation_w == 1 ? 1 : j->KW, wide = j->dilation_w == 1 ? j->KW : 1, size = units * unit_bytes(half);
    for (int64_t kh = 0; kh < j->KH; kh++) {
        if (!rows[kh]) continue;
        for (int64_t q = 0; q < runs; q++) {
            const int64_t first = out_w * j->stride_w - j->pad_w + q * j->dilation_w;
            const int64_t from = max(first, 0), to = min(first + wide, j->W);
            if (from >= to) continue;
            const int64_t row = (kh * j->KW + q - first) * j->C;
            for (int32_t e = rows[kh][from]; e < rows[kh][to]; e++) {
                const char *a = panel + (row + l->index[e]) * size;
                for (int u = 0; u < units; u++)
                    add_unit(s + 2 * u, a + u * unit_bytes(half), half, valued, valued ? l->value[e] : 1);
            }
        }
    }
}

static void write(const Conv *j, const float *s, int64_t pixel, int64_t o, int64_t n) {
    const int64_t at = pixel * j->N + o;
    float bias[WIDEST * UNIT] = {0};
    if (j->p_bias) memcpy(bias, j->p_bias + o, n * sizeof(float));
    if (j->half) SIMD for (int64_t i = 0; i < n; i++) ((uint16_t *)j->p_y)[at + i] = to_bf16(s[i] + bias[i]);
    else SIMD for (int64_t i = 0; i < n; i++) ((float *)j->p_y)[at + i] = s[i] + bias[i];
}

ALWAYS void output_row(const Conv *j, const Lists *l, const int32_t *const *rows, int64_t row, int64_t block, int units, int half, int valued) {
    const int64_t o = block * units * UNIT, n = min(units * UNIT, j->N - o);
    const char *panel = (const char *)j->p_panel + block * j->KH * j->KW * j->C * units * unit_bytes(half);
    for (int64_t w = 0; w < j->out_W; w++) {
        Vector s[2 * WIDEST];
        for (int u = 0; u < 2 * units; u++) s[u] = (Vector){0};
        window(j, l, rows, w, panel, s, units, half, valued);
        write(j, (const float *)s, row * j->out_W + w, o, n);
    }
}

#define OUTPUT(units, half, valued)                                                                                           \
    static void output_##units##half##valued(const Conv *j, const Lists *l, const int32_t *const *rows, int64_t row, int64_t b) { \
        output_row(j, l, rows, row, b, units, half, valued);                                                                 \
    }
OUTPUT(1, 0, 0) OUTPUT(1, 0, 1) OUTPUT(1, 1, 0) OUTPUT(1, 1, 1)
OUTPUT(2, 0, 0) OUTPUT(2, 0, 1) OUTPUT(2, 1, 0) OUTPUT(2, 1, 1)
OUTPUT(4, 0, 0) OUTPUT(4, 0, 1) OUTPUT(4, 1, 0) OUTPUT(4, 1, 1)

typedef void Output(const Conv *, const Lists *, const int32_t *const *, int64_t, int64_t);

static Output *output(int64_t units, int half, int valued) {
    static Output *const all[3][2][2] = {
        {{output_100, output_101}, {output_110, output_111}},
        {{output_200, output_201}, {output_210, output_211}},
        {{output_400, output_401}, {output_410, output_411}},
    };
    return all[units / 2][half][valued];
}

/* Output rows first ... first + count - 1, counted over all images. */
static void forward_task(const Conv *j, int64_t first, int64_t count, void *scratch) {
    const int64_t units = block_units(j), blocks = over(j->N, units * UNIT);
    Output *const row_of = output(units, j->half != 0, j->bits > 1);
    Lists l = lists(j, scratch);
    int64_t where[count]; /* in the lists, input row 0 of the image of each output row, as if it were listed */
    int64_t from, to, rows = 0;
    for (int64_t r = first; r < first + count;) {
        const int64_t image = r / j->out_H, last = min(first + count, (image + 1) * j->out_H);
        needed(j, r - image * j->out_H, last - image * j->out_H, &from, &to);
        for (int64_t i = r; i < last; i++) where[i - first] = rows - from;
        for (int64_t h = from; h < to; h++, rows++) list_one(j, image * j->H + h, l.start + rows * (j->W + 1), &l);
        r = last;
    }
    const int32_t *below[j->KH];
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t r = first; r < first + count; r++) {
            for (int64_t kh = 0; kh < j->KH; kh++) {
                const int64_t h = r % j->out_H * j->stride_h - j->pad_h + kh * j->dilation_h;
                below[kh] = h < 0 || h >= j->H ? NULL : l.start + (where[r - first] + h) * (j->W + 1);
            }
            row_of(j, &l, below, r, b);
        }
}

int64_t conv_panel(const Conv *j) {
    const int64_t units = block_units(j);
    return over(j->N, units * UNIT) * j->KH * j->KW * j->C * units * unit_bytes(j->half);
}

/* The weight as [blocks, KH, KW, C, units]. */
static void lay_weight(const Conv *j) {
    const int64_t units = block_units(j), taps = j->KH * j->KW, size = unit_bytes(j->half), all = over(j->N, units * UNIT) * taps;
    _Pragma("omp for schedule(static)") for (int64_t task = 0; task < all; task++) {
        const int64_t o = task / taps * units * UNIT, kh = task % taps / j->KW, kw = task % j->KW;
        char *p = (char *)j->p_panel + task * j->C * units * size;
        for (int64_t c = 0; c < j->C; c++)
            for (int64_t u = 0; u < units; u++, p += size) {
                const int64_t n = o + u * UNIT, at = n * j->w_n + c * j->w_c + kh * j->w_h + kw * j->w_w;
                lay_unit(j->p_w, at, j->w_n, max(0, min(UNIT, j->N - n)), j->half != 0, p);
            }
    }
}

int64_t conv_forward_scratch(const Conv *j) { return forward_scratch(j); }

void conv_forward(const Conv *j) {
    const int64_t rows = j->images * j->out_H, each = tall(j), tasks = over(rows, each);
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        lay_weight(j);
        void *scratch = (char *)j->p_scratch + this_thread() * forward_scratch(j);
        _Pragma("omp for schedule(dynamic)") for (int64_t task = 0; task < tasks; task++)
            forward_task(j, task * each, min(each, rows - task * each), scratch);
    }
}
