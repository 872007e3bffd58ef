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
    DEEP = 64,                    /* input channels of a task of the weight's gradient: a word of bits */
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

/* One bit, at its lowest, for each code in a word that is not zero. */
ALWAYS uint64_t nonzero(uint64_t w, int bits) {
    if (bits == 1) return w;
    if (bits == 4) return (w | w >> 1 | w >> 2 | w >> 3) & 0x1111111111111111u;
    return (((w & 0x7f7f7f7f7f7f7f7fu) + 0x7f7f7f7f7f7f7f7fu) | w) >> 7 & 0x0101010101010101u;
}

/* Codes at ... at + n - 1, 64 at most, as words, and a bit for each that is not zero. */
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

/* Which code a bit stands for, and what the code does. */
ALWAYS int number_of(int bit, int bits) { return bit % bits * (64 / bits) + bit / bits; }
ALWAYS float value_of(const uint64_t *words, int bit, int bits) {
    return 0.25f * (words[bit % bits] >> (bit - bit % bits) & ((1 << bits) - 1));
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

typedef struct {
    int32_t *start; /* [rows, W + 1]: where the events of a pixel begin */
    int32_t *index; /* of an event, pixel * C + channel */
    float *value;
    int32_t count;
} Lists;

/* Bytes of the lists, which lie in the scratch. */
static int64_t lists(const Conv *j, char *scratch, Lists *l) {
    const int64_t rows = listed(j), starts = line(rows * (j->W + 1) * 4), valued = j->bits > 1;
    const int64_t events = line(rows * j->W * j->C * 4);
    if (l) *l = (Lists){(int32_t *)scratch, (int32_t *)(scratch + starts), (float *)(scratch + starts + events), 0};
    return starts + (1 + valued) * events;
}

int64_t conv_forward_scratch(const Conv *j) { return lists(j, NULL, NULL); }

ALWAYS void list_row(const Conv *j, int bits, int64_t row, int32_t *start, Lists *l) {
    int32_t count = l->count;
    for (int64_t w = 0; w < j->W; w++) {
        start[w] = count;
        for (int64_t c = 0; c < j->C; c += 64) {
            const int64_t first = w * j->C + c;
            uint64_t words[8], some = codes_at(j, bits, row * j->W * j->C + first, j->C - c, words);
            for (; some; some &= some - 1, count++) {
                const int bit = __builtin_ctzll(some);
                l->index[count] = (int32_t)(first + number_of(bit, bits));
                if (bits > 1) l->value[count] = value_of(words, bit, bits);
            }
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

/* For each row of the window the starts of the input row below it, or null. */
typedef const int32_t *const *Rows;

/* Adds the rows of the weight that the events below the window of an output pixel name. */
ALWAYS void window(
    const Conv *j, const Lists *l, Rows rows, int64_t out_w, const char *panel, Vector *s, int units, int half, int valued) {
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

ALWAYS void write(const float *s, const float *bias, void *y, int64_t at, int64_t n, int half) {
    if (half) SIMD for (int64_t i = 0; i < n; i++) ((uint16_t *)y)[at + i] = to_bf16(s[i] + bias[i]);
    else SIMD for (int64_t i = 0; i < n; i++) ((float *)y)[at + i] = s[i] + bias[i];
}

ALWAYS void output_row(
    const Conv *j, const Lists *l, Rows rows, int64_t row, int64_t block, int units, int half, int valued) {
    const int64_t o = block * units * UNIT, outputs = min(units * UNIT, j->N - o), size = units * unit_bytes(half);
    const char *panel = (const char *)j->p_panel + block * j->KH * j->KW * j->C * size;
    float bias[WIDEST * UNIT] = {0};
    if (j->p_bias) memcpy(bias, j->p_bias + o, outputs * sizeof(float));
    for (int64_t w = 0; w < j->out_W; w++) {
        Vector s[2 * WIDEST];
        for (int u = 0; u < 2 * units; u++) s[u] = (Vector){0};
        window(j, l, rows, w, panel, s, units, half, valued);
        const int64_t at = (row * j->out_W + w) * j->N + o;
        if (outputs == units * UNIT) write((const float *)s, bias, j->p_y, at, units * UNIT, half);
        else write((const float *)s, bias, j->p_y, at, outputs, half);
    }
}

#define OUTPUT(units, half, valued)                                                                                    \
    static void output_##units##half##valued(const Conv *j, const Lists *l, Rows rows, int64_t row, int64_t b) {       \
        output_row(j, l, rows, row, b, units, half, valued);                                                           \
    }
OUTPUT(1, 0, 0) OUTPUT(1, 0, 1) OUTPUT(1, 1, 0) OUTPUT(1, 1, 1)
OUTPUT(2, 0, 0) OUTPUT(2, 0, 1) OUTPUT(2, 1, 0) OUTPUT(2, 1, 1)
OUTPUT(4, 0, 0) OUTPUT(4, 0, 1) OUTPUT(4, 1, 0) OUTPUT(4, 1, 1)

typedef void Output(const Conv *, const Lists *, Rows, int64_t, int64_t);

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
    Lists l;
    lists(j, scratch, &l);
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

void conv_forward(const Conv *j) {
    const int64_t rows = j->images * j->out_H, each = tall(j), tasks = over(rows, each);
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        lay_weight(j);
        void *scratch = (char *)j->p_scratch + this_thread() * conv_forward_scratch(j);
        _Pragma("omp for schedule(dynamic)") for (int64_t task = 0; task < tasks; task++)
            forward_task(j, task * each, min(each, rows - task * each), scratch);
    }
}

/* --------------------------------------------------------------------------------------------- the weight's gradient */

/* gw[n, c, kh, kw] = sum of x[h, w, c] g[(h + pad - kh dilation) / stride, ..., n] where that divides. With q = (h + pad) /
   stride, rounded down, and kh dilation = m stride + r, tap kh meets the inputs whose remainder is r, at row q - m of g. So the
   inputs fall into classes by their remainders, each with taps of its own at fixed distances in g. */

typedef struct {
    int64_t rows, bands, pieces; /* a piece: input rows of an image; how many make the image; pieces that are listed at once */
    int64_t reach_h, reach_w;    /* the largest m */
    int64_t high, wide, places;  /* of g below a piece, and zeros around it; of all pieces that are listed at once */
    int64_t classes, room;       /* room: events of a channel and class that fit */
    int64_t units;               /* of output channels that a task takes, one after the other */
} Spread;

static Spread spread_of(const Conv *j, int64_t rows) {
    Spread s = {.rows = rows, .bands = over(j->H, rows), .classes = j->stride_h * j->stride_w, .pieces = 1};
    s.reach_h = (j->KH - 1) * j->dilation_h / j->stride_h;
    s.reach_w = (j->KW - 1) * j->dilation_w / j->stride_w;
    s.high = over(rows - 1, j->stride_h) + 1 + s.reach_h;
    s.wide = over(j->W - 1, j->stride_w) + 1 + s.reach_w;
    s.places = s.high * s.wide;
    return s;
}

static Spread spread(const Conv *j) {
    Spread s = spread_of(j, j->H);
    while (s.places > 2 * SPREAD && s.rows > 1) s = spread_of(j, (s.rows + 1) / 2);
    if (s.bands == 1) s.pieces = max(1, min(SPREAD / s.places, j->images));
    s.places *= s.pieces;
    s.room = s.pieces * over(s.rows, j->stride_h) * over(j->W, j->stride_w);
    const int64_t all = over(j->N, UNIT), parts = over(j->C, DEEP);
    s.units = max(1, min(WIDEST, all * parts / (2 * j->threads)));
    return s;
}

typedef struct {
    float *sums;     /* [units, DEEP, KH * KW, UNIT] */
    void *panel;     /* [places], a unit of g each */
    int32_t *count;  /* [DEEP, classes] */
    int32_t *place;  /* [DEEP, classes, room] */
    float *value;
} Gather;

static int64_t gather_parts(const Conv *j, const Spread *s, void *scratch, Gather *g) {
    const int64_t lists = DEEP * s->classes;
    char *p = scratch;
    const int64_t sums = s->units * DEEP * j->KH * j->KW * UNIT * 4, panel = s->places * unit_bytes(j->half);
    const int64_t count = line(lists * 4), place = line(lists * s->room * 4), value = j->bits > 1 ? place : 0;
    if (g) {
        char *lists_at = p + sums + panel, *places = lists_at + count;
        *g = (Gather){(float *)p, p + sums, (int32_t *)lists_at, (int32_t *)places, (float *)(places + place)};
    }
    return sums + panel + count + place + value;
}

int64_t conv_gradient_scratch(const Conv *j) {
    const Spread s = spread(j);
    return gather_parts(j, &s, NULL, NULL);
}

/* Piece p as an image and its first row. */
static inline void piece_at(const Spread *s, int64_t p, int64_t *image, int64_t *row) {
    *image = p / s->bands;
    *row = p % s->bands * s->rows;
}

/* Whether some of k taps meet inputs of this remainder. */
static int met(int64_t k, int64_t dilation, int64_t stride, int64_t remainder) {
    for (int64_t i = 0; i < k; i++)
        if (i * dilation % stride == remainder) return 1;
    return 0;
}

/* The lists of channels c ... c + n - 1 in the pieces first ... last - 1. */
ALWAYS void list_channels(
    const Conv *j, const Spread *s, int bits, int64_t first, int64_t last, int64_t c, int64_t n, Gather *g) {
    memset(g->count, 0, n * s->classes * sizeof(int32_t));
    for (int64_t p = first; p < last; p++) {
        int64_t image, top;
        piece_at(s, p, &image, &top);
        const int64_t low_h = (top + j->pad_h) / j->stride_h, low_w = j->pad_w / j->stride_w;
        for (int64_t h = top; h < min(top + s->rows, j->H); h++) {
            const int64_t y = (h + j->pad_h) / j->stride_h - low_h + s->reach_h + (p - first) * s->high;
            const int64_t class_h = (h + j->pad_h) % j->stride_h * j->stride_w;
            if (!met(j->KH, j->dilation_h, j->stride_h, (h + j->pad_h) % j->stride_h)) continue;
            for (int64_t w = 0; w < j->W; w++) {
                if (!met(j->KW, j->dilation_w, j->stride_w, (w + j->pad_w) % j->stride_w)) continue;
                const int32_t place = (int32_t)(y * s->wide + (w + j->pad_w) / j->stride_w - low_w + s->reach_w);
                const int64_t class = class_h + (w + j->pad_w) % j->stride_w, at = ((image * j->H + h) * j->W + w) * j->C + c;
                uint64_t words[8], some = codes_at(j, bits, at, n, words);
                for (; some; some &= some - 1) {
                    const int bit = __builtin_ctzll(some);
                    const int64_t list = number_of(bit, bits) * s->classes + class, e = list * s->room + g->count[list]++;
                    g->place[e] = place;
                    if (bits > 1) g->value[e] = value_of(words, bit, bits);
                }
            }
        }
    }
}

/* Unit o of the channels of g below these pieces, with zeros around. */
static void lay_gradient(const Conv *j, const Spread *s, int64_t first, int64_t last, int64_t o, char *panel) {
    const int64_t size = unit_bytes(j->half), n = min(UNIT, j->N - o * UNIT);
    for (int64_t p = first; p < last; p++) {
        int64_t image, top;
        piece_at(s, p, &image, &top);
        const int64_t left = j->pad_w / j->stride_w - s->reach_w;
        for (int64_t y = 0; y < s->high; y++) {
            const int64_t h = y + (top + j->pad_h) / j->stride_h - s->reach_h;
            const int64_t from = h < 0 || h >= j->out_H ? s->wide : min(max(-left, 0), s->wide);
            const int64_t to = max(from, min(j->out_W - left, s->wide));
            memset(panel, 0, from * size);
            const int64_t row = ((image * j->out_H + h) * j->out_W + left) * j->N + o * UNIT;
            for (int64_t x = from; x < to; x++) lay_unit(j->p_g, row + x * j->N, 1, n, j->half != 0, panel + x * size);
            memset(panel + to * size, 0, (s->wide - to) * size);
            panel += s->wide * size;
        }
    }
}

/* Adds to the sums of some taps, far[t] places before each event. */
ALWAYS void add_taps(
    const char *panel, const int32_t *place, const float *value, int64_t n, const int32_t *far, float *const *sums, int taps,
    int half, int valued) {
    Vector s[2 * TAPS];
    for (int t = 0; t < 2 * taps; t++) s[t] = (Vector){0};
    for (int64_t e = 0; e < n; e++)
        for (int t = 0; t < taps; t++)
            add_unit(s + 2 * t, panel + (int64_t)(place[e] - far[t]) * unit_bytes(half), half, valued, valued ? value[e] : 1);
    for (int t = 0; t < taps; t++) {
        Vector *y = (Vector *)sums[t];
        y[0] += s[2 * t];
        y[1] += s[2 * t + 1];
    }
}

typedef void AddTaps(const char *, const int32_t *, const float *, int64_t, const int32_t *, float *const *);

#define TAP(taps, half, valued)                                                                                           \
    static void taps_##taps##half##valued(                                                                                \
        const char *panel, const int32_t *place, const float *value, int64_t n, const int32_t *far, float *const *sums) { \
        add_taps(panel, place, value, n, far, sums, taps, half, valued);                                                  \
    }
#define TAP_ALL(taps) TAP(taps, 0, 0) TAP(taps, 0, 1) TAP(taps, 1, 0) TAP(taps, 1, 1)
#define TAP_ROW(taps) {{taps_##taps##00, taps_##taps##01}, {taps_##taps##10, taps_##taps##11}}
TAP_ALL(1) TAP_ALL(2) TAP_ALL(3)
#if FLOATS == 16
TAP_ALL(4) TAP_ALL(5) TAP_ALL(6) TAP_ALL(7) TAP_ALL(8) TAP_ALL(9)
#endif
static AddTaps *const add_some[TAPS][2][2] = {
    TAP_ROW(1), TAP_ROW(2), TAP_ROW(3),
#if FLOATS == 16
    TAP_ROW(4), TAP_ROW(5), TAP_ROW(6), TAP_ROW(7), TAP_ROW(8), TAP_ROW(9),
#endif
};

/* All taps of a class, for the events of each of n channels. */
static void add_class(const Conv *j, const Spread *s, int64_t class, int64_t n, const Gather *g, float *sums) {
    const int64_t taps = j->KH * j->KW;
    int32_t far[TAPS];
    int64_t tap[TAPS];
    for (int64_t t = 0, some = 0; t < taps; t++) {
        const int64_t h = t / j->KW * j->dilation_h, w = t % j->KW * j->dilation_w;
        if (h % j->stride_h * j->stride_w + w % j->stride_w == class) {
            far[some] = (int32_t)(h / j->stride_h * s->wide + w / j->stride_w);
            tap[some++] = t;
        }
        if (!some || (some < TAPS && t + 1 < taps)) continue;
        AddTaps *const add = add_some[some - 1][j->half != 0][j->bits > 1];
        for (int64_t c = 0; c < n; c++) {
            const int64_t list = c * s->classes + class;
            float *at[TAPS];
            for (int64_t k = 0; k < some; k++) at[k] = sums + (c * taps + tap[k]) * UNIT;
            if (g->count[list])
                add(g->panel, g->place + list * s->room, g->value + list * s->room, g->count[list], far, at);
        }
        some = 0;
    }
}

/* To a few outputs at a time, in the order of memory. */
static void write_gradient(const Conv *j, int64_t o, int64_t c, int64_t n, const float *sums) {
    const int64_t taps = j->KH * j->KW, outer = j->w_c == 1 ? taps : n, inner = j->w_c == 1 ? n : taps;
    for (int64_t i = 0; i < min(UNIT, j->N - o); i += 8)
        for (int64_t a = 0; a < outer; a++)
            for (int64_t b = 0; b < inner; b++) {
                const int64_t k = j->w_c == 1 ? b : a, t = j->w_c == 1 ? a : b;
                const float *from = sums + (k * taps + t) * UNIT;
                float *to = j->p_gw + (c + k) * j->w_c + t / j->KW * j->w_h + t % j->KW * j->w_w;
                for (int64_t m = i; m < min(i + 8, min(UNIT, j->N - o)); m++) to[(o + m) * j->w_n] = from[m];
            }
}

static void gradient_task(const Conv *j, const Spread *s, int64_t first, int64_t c, Gather *g) {
    const int64_t n = min(DEEP, j->C - c), last = min(first + s->units, over(j->N, UNIT)), pieces = j->images * s->bands;
    const int64_t each = DEEP * j->KH * j->KW * UNIT;
    memset(g->sums, 0, s->units * each * sizeof(float));
    for (int64_t p = 0; p < pieces; p += s->pieces) {
        const int64_t end = min(p + s->pieces, pieces);
        if (j->bits == 1) list_channels(j, s, 1, p, end, c, n, g);
        else if (j->bits == 4) list_channels(j, s, 4, p, end, c, n, g);
        else list_channels(j, s, 8, p, end, c, n, g);
        for (int64_t u = first; u < last; u++) {
            lay_gradient(j, s, p, end, u, g->panel);
            for (int64_t class = 0; class < s->classes; class++) add_class(j, s, class, n, g, g->sums + (u - first) * each);
        }
    }
    for (int64_t u = first; u < last; u++) write_gradient(j, u * UNIT, c, n, g->sums + (u - first) * each);
}

void conv_gradient(const Conv *j) {
    const Spread s = spread(j);
    const int64_t blocks = over(over(j->N, UNIT), s.units), parts = over(j->C, DEEP);
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        Gather g;
        gather_parts(j, &s, (char *)j->p_scratch + this_thread() * gather_parts(j, &s, NULL, NULL), &g);
        _Pragma("omp for schedule(dynamic)") for (int64_t task = 0; task < blocks * parts; task++)
            gradient_task(j, &s, task % blocks * s.units, task / blocks * DEEP, &g);
    }
}
