/* The forward pass of a convolution whose input is mostly zero: see conv.h.

   The codes of an image row become a list of events: the values that are not zero, with their
   positions. An output pixel adds the rows of the weight that belong to the events in its window;
   the sums stay in registers. The order in which an element is summed depends on the shapes alone,
   so the result has the same bits on any number of threads. */

#include "conv.h"

int64_t conv_job_size(void) { return sizeof(Conv); }

/* Units of a block: as many as keep the weights of a block in the cache. */
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

/* The most input rows that a task lists: whole images, or what the windows cover of each part. */
static int64_t listed(const Conv *j) {
    const int64_t rows = tall(j), parts = (rows + j->out_H - 2) / j->out_H + 1;
    return min(parts * j->H, rows * j->stride_h + parts * (j->KH - 1) * j->dilation_h);
}

typedef struct {
    int32_t *start; /* [rows, W + 1]: where the events of a pixel begin */
    int32_t *index; /* of an event: pixel * C + channel */
    float *value;
    int32_t count;
} Lists;

/* Places the lists in the scratch memory and returns their bytes. */
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

/* For each row of the window the `start` of its input row, or null outside the image. */
typedef const int32_t *const *Rows;

/* Adds the rows of the weight that belong to the events in the window of an output pixel. */
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
    /* for each output row: where input row 0 of its image would be in the lists */
    int64_t where[count];
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
