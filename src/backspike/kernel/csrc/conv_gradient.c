/* The gradient of the weight of a convolution whose input is mostly zero: see conv.h.

   The codes of some images become a list for each input channel: where it is not zero. A tap of the
   weight adds the rows of g at those places; the sums stay in registers. The order in which an
   element is summed depends on the shapes alone, so the result has the same bits on any number of
   threads.

   gw[n, c, kh, kw] = sum of x[h, w, c] g[(h + pad - kh dilation) / stride, ..., n] wherever the
   division is exact. Let q = (h + pad) / stride, rounded down, and kh dilation = m stride + r. Tap
   kh meets the inputs whose remainder is r, at row q - m of g. So the inputs fall into classes by
   their remainders, and each class has its own taps, at fixed distances in g. */

#include "conv.h"

typedef struct {
    int64_t rows, bands;      /* input rows of a piece; pieces of an image */
    int64_t pieces;           /* that are listed at once */
    int64_t reach_h, reach_w; /* the largest m */
    int64_t high, wide;       /* of the part of g that belongs to a piece, with zeros around it */
    int64_t places;           /* high * wide, for all pieces that are listed at once */
    int64_t classes, room;    /* room: the most events of a channel and class */
    int64_t units;            /* of output channels that a task computes, one after the other */
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
    void *panel;     /* [places], each a unit of g */
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

/* The image of piece p and its first row there. */
static inline void piece_at(const Spread *s, int64_t p, int64_t *image, int64_t *row) {
    *image = p / s->bands;
    *row = p % s->bands * s->rows;
}

/* Whether any of k taps meets inputs with this remainder. */
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

/* Unit o of the channels of g for these pieces, with zeros around. */
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

/* Adds to the sums of some taps; tap t takes g far[t] places before each event. */
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

/* Writes the gradient, a few outputs at a time, in memory order. */
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
