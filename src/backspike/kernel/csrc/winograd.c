/* Convolutions 3x3 of stride 1 and padding 1 with a quarter of the multiplications: Winograd
   F(4x4, 3x3) (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016) in 16-bit
   integers.

   4x4 outputs are A' [(G w G') * (B' d B)] A of 6x6 inputs d, the tile: 36 products instead of 144.
   bfloat16, with 8 bits fewer, would be too coarse for the transformed numbers.

   No sum overflows. A sum has PART products. Its inputs, one position of B' d B for PART channels of a
   tile, are scaled so that none exceeds INPUT: below INPUT + 1 as integers. Its weights are scaled so
   that none exceeds WEIGHT and their absolute values sum to at most SUM: to less than SUM + 1 +
   PART / 2 as integers. So the sum is below 16,381 * 130,033 < 2^31 - 1, in any order.

   These sums are exact, and float32 sums of the parts are taken in the order of the parts, so the
   result has the same bits on any number of threads. The input gradient is the same convolution, of
   the output gradient with the weight turned round. */

#include "winograd.h"

enum {
    PART = 64,                   /* inputs of a sum of integers; with more, weights would be coarser */
    TALL = 6,                    /* tiles of a product in registers, */
    WIDE = FLOATS == 16 ? 4 : 2, /* and vectors of outputs */
    LANES = WIDE * FLOATS,       /* outputs of a block */
    MOST = 48,                   /* tiles of a task, */
    ROOM = 5 << 17,              /* fewer if their transformed inputs exceed these bytes, */
    LEAST = 24,                  /* but not fewer than these */
    SKIP = 16,                   /* words between positions, which would else share lines of the cache */
    VECTORS = PART / FLOATS,     /* of a position of a part */
};

typedef int32_t Ints __attribute__((vector_size(4 * FLOATS)));

/* One call; winograd.py has the same struct. */
typedef struct {
    int64_t images, C, H, W, N;
    int64_t w_n, w_c, w_h, w_w;  /* strides of the weight [N, C, 3, 3], in elements */
    int64_t half, turned;        /* half: x and y are bfloat16; turned: the weight is turned by 180 degrees */
    int64_t vnni, threads;       /* vnni: the processor has AVX-512 VNNI */
    const void *p_x;             /* [images, H, W, C] */
    const float *p_w, *p_bias;   /* bias: or null */
    void *p_y;                   /* [images, H, W, N] */
    void *p_panel, *p_scratch;   /* of the sizes that winograd_panel and winograd_scratch return */
} Winograd;

static const float INPUT = 16380, WEIGHT = 32700, SUM = 130000;
/* Numbers that count as 0 and numbers that are refused: products could leave the range of float32. */
static const float TINY = 1e-30f, VAST = 1e15f;
/* Weights of a sum are refused if the mean of all but the largest fits into it more often than this, as
   they would be coarser than bfloat16. */
static const float RATIO = 256;

/* Rows of B' have three norms. 1 / the largest result of each for numbers up to 1. */
enum { NORMS = 3 };
static const int NORM[6] = {0, 1, 1, 2, 2, 0};
static const float SHRINK[NORMS] = {1 / 5.078125f, 1 / 5.6875f, 1 / 3.90625f};

static float shrink(int p) { return SHRINK[NORM[p / 6]] * SHRINK[NORM[p % 6]]; }

int64_t winograd_job_size(void) { return sizeof(Winograd); }
int64_t winograd_block(void) { return LANES; }

ALWAYS Vector either(Ints first, Vector a, Vector b) { return (Vector)(((Ints)a & first) | ((Ints)b & ~first)); }
ALWAYS Vector magnitude(Vector x) { return (Vector)((Ints)x & 0x7fffffff); }

/* The larger of numbers that are not negative, which have the order of their bits; NaN is the largest. */
ALWAYS Vector larger(Vector a, Vector b) { return either((Ints)a > (Ints)b, a, b); }

static float largest(Vector x) {
    const Ints bits = (Ints)x;
    union { int32_t bits; float value; } most = {0};
    for (int i = 0; i < FLOATS; i++)
        if (bits[i] > most.bits) most.bits = bits[i];
    return most.value;
}

/* The two vectors of a unit; see conv.h. */
ALWAYS void read_unit(const void *from, int half, Vector *a, Vector *b) {
    if (half) {
        Words w;
        memcpy(&w, from, sizeof w);
        *a = (Vector)(w << 16);
        *b = (Vector)(w & 0xffff0000u);
    } else {
        memcpy(a, from, sizeof *a);
        memcpy(b, (const char *)from + sizeof *a, sizeof *b);
    }
}

/* Pairs of numbers between -32,768 and 32,767, rounded to integers. */
ALWAYS Words pairs(Vector low, Vector high, Vector scale) {
    const Vector round = all(12582912); /* 1.5 * 2^23: the last bits of the sum are the integer */
    return ((Words)fma_of(low, scale, round) & 0xffffu) | (Words)fma_of(high, scale, round) << 16;
}

/* ---------------------------------------------------------------------------------------- sizes */

static int64_t depth(const Winograd *j) { return over(j->C, UNIT) * UNIT; }
static int64_t cuts(const Winograd *j) { return over(depth(j), PART); }
static int64_t blocks(const Winograd *j) { return over(j->N, LANES); }
static int64_t tiles(const Winograd *j) { return tiles_of(j->images, j->H, j->W); }

/* Tiles of a task: a multiple of TALL. */
static int64_t several(const Winograd *j) {
    const int64_t fit = min(MOST, max(LEAST, ROOM / (2 * POSITIONS * depth(j)))), even = over(tiles(j), j->threads);
    return over(min(fit, even), TALL) * TALL;
}

/* Words from one position to the next: of transformed inputs [tiles, depth / 2], of their products
   [tiles, LANES], of the weight of a block [depth / 2, LANES]. */
static int64_t input_step(const Winograd *j) { return several(j) * depth(j) / 2 + SKIP; }
static int64_t sums_step(const Winograd *j) { return several(j) * LANES + SKIP; }
static int64_t weight_step(const Winograd *j) { return depth(j) / 2 * LANES + SKIP; }

/* The weight [blocks, POSITIONS, weight_step], and what undoes its scales [blocks, cuts, POSITIONS, LANES]. */
static float *undo_of(const Winograd *j) {
    return (float *)j->p_panel + blocks(j) * POSITIONS * weight_step(j);
}

int64_t winograd_panel(const Winograd *j) {
    return 4 * blocks(j) * POSITIONS * (weight_step(j) + cuts(j) * LANES);
}

/* Of each thread: a part of the weight and its transform; later the transformed inputs, their
   products, what undoes the scales of the inputs [cuts, tiles], and a pixel of zeros. */
int64_t winograd_scratch(const Winograd *j) {
    const int64_t weight = PART * (9 + POSITIONS) * sizeof(Vector), undo = cuts(j) * several(j);
    return max(weight, line(4 * (POSITIONS * (input_step(j) + sums_step(j)) + undo + depth(j))));
}

/* --------------------------------------------------------------------------------------- weight */

/* The input channels of pair k: those that pairs() joins for a unit of inputs. */
static int64_t first_of(const Winograd *j, int64_t k) { return j->half ? 2 * k : k / FLOATS * UNIT + k % FLOATS; }
static int64_t second_of(const Winograd *j, int64_t k) { return first_of(j, k) + (j->half ? 1 : FLOATS); }

ALWAYS void weight_line(const Vector *w, Vector *u, int step) { /* G w */
    const float na = 1 / (2 * A2 * (A2 - B2)), nb = 1 / (2 * B2 * (B2 - A2));
    const Vector p = (w[0] + w[2] * A2) * na, q = w[1] * (A * na), r = (w[0] + w[2] * B2) * nb, s = w[1] * (B * nb);
    u[0] = w[0] * (1 / (A2 * B2));
    u[step] = p + q, u[2 * step] = p - q, u[3 * step] = r + s, u[4 * step] = r - s;
    u[5 * step] = w[2];
}

ALWAYS void transform_weight(const Vector *w, Vector *u) { /* G w G' */
    Vector half[3][6];
    for (int row = 0; row < 3; row++) weight_line(w + 3 * row, half[row], 1);
    for (int k = 0; k < 6; k++) weight_line((Vector[]){half[0][k], half[1][k], half[2][k]}, u + k, 6);
}

/* The scales of a position of the weights of FLOATS outputs, u [deep, POSITIONS]; 0 if refused. */
static Vector weight_scales(const Vector *u, int64_t deep) {
    Vector sum = all(TINY), most = sum;
    Ints count = {0};
    for (int64_t c = 0; c < deep; c++) {
        const Vector x = magnitude(u[POSITIONS * c]);
        most = larger(x, most);
        sum += x;
        count -= x != 0;
    }
    const Vector by_sum = SUM / sum, by_most = WEIGHT / most;
    const Vector others = __builtin_convertvector(count - 1, Vector);
    const Ints suits = (most <= VAST) & (most * others <= RATIO * (sum - most));
    return (Vector)((Ints)either(by_sum < by_most, by_sum, by_most) & suits);
}

/* Transforms and scales the weights of FLOATS outputs, and of the inputs of a part. Whether they suit. */
static int lay_part(const Winograd *j, int64_t n0, int64_t cut, Vector *w, Vector *u) {
    const int64_t c0 = cut * PART, deep = min(PART, depth(j) - c0), channels = min(deep, j->C - c0), outputs = min(FLOATS, j->N - n0);
    const int64_t block = n0 / LANES, lane = n0 % LANES, step = weight_step(j);
    uint32_t *to = (uint32_t *)j->p_panel + block * POSITIONS * step + c0 / 2 * LANES + lane;
    float *undo = undo_of(j) + (block * cuts(j) + cut) * POSITIONS * LANES + lane;
    int suits = 1;
    memset(w, 0, PART * 9 * sizeof *w);
    for (int64_t c = 0; c < channels; c++)
        for (int tap = 0; tap < 9; tap++) {
            const float *from = j->p_w + n0 * j->w_n + (c0 + c) * j->w_c + tap / 3 * j->w_h + tap % 3 * j->w_w;
            float *to_tap = (float *)(w + 9 * c + (j->turned ? 8 - tap : tap));
            for (int64_t n = 0; n < outputs; n++) to_tap[n] = from[n * j->w_n];
        }
    for (int64_t c = 0; c < deep; c++) transform_weight(w + 9 * c, u + POSITIONS * c);
    for (int p = 0; p < POSITIONS; p++) {
        const Vector scale = weight_scales(u + p, deep), back = 1 / (scale * shrink(p));
        for (int i = 0; i < FLOATS; i++) suits &= scale[i] > 0;
        for (int64_t k = 0; k < deep / 2; k++) {
            const Words x = pairs(u[POSITIONS * first_of(j, k) + p], u[POSITIONS * second_of(j, k) + p], scale);
            memcpy(to + p * step + k * LANES, &x, sizeof x);
        }
        memcpy(undo + p * LANES, &back, sizeof back);
    }
    return suits;
}

/* --------------------------------------------------------------------------------------- inputs */

/* B' d B of a unit of channels, v [POSITIONS, VECTORS]; pixels: the addresses of the tile's. most: the
   largest number for each pair of norms. */
ALWAYS void transform_unit(const char *const *pixels, int64_t offset, int half, Vector *v, Vector (*most)[NORMS]) {
    Vector low[POSITIONS], high[POSITIONS];
    for (int k = 0; k < 6; k++) {
        Vector a[6], b[6];
        for (int i = 0; i < 6; i++) read_unit(pixels[6 * i + k] + offset, half, a + i, b + i);
        input_line(a, low + k, 6);
        input_line(b, high + k, 6);
    }
    for (int i = 0; i < 6; i++, v += 6 * VECTORS) {
        input_line(low + 6 * i, v, VECTORS);
        input_line(high + 6 * i, v + 1, VECTORS);
        for (int k = 0; k < 6; k++) {
            Vector *m = &most[NORM[i]][NORM[k]];
            *m = larger(larger(magnitude(v[k * VECTORS]), magnitude(v[k * VECTORS + 1])), *m);
        }
    }
}

/* The transformed inputs of a part of a tile as pairs. Returns what undoes their scale; NaN or
   infinity if a number is refused. */
ALWAYS float transform_part(const char *const *pixels, int64_t c, int64_t units, int half, uint32_t *to, int64_t step) {
    Vector v[POSITIONS * VECTORS], most[NORMS][NORMS] = {{{0}}}, norm = {0};
    for (int64_t u = 0; u < units; u++) transform_unit(pixels, (c + u * UNIT) * (half ? 2 : 4), half, v + 2 * u, most);
    for (int i = 0; i < NORMS; i++)
        for (int k = 0; k < NORMS; k++) norm = larger(most[i][k] * (SHRINK[i] * SHRINK[k]), norm);
    const float top = largest(norm), scale = top < TINY ? 0 : INPUT / top;
    for (int p = 0; p < POSITIONS; p++)
        for (int64_t u = 0; u < units; u++) {
            const Words x = pairs(v[p * VECTORS + 2 * u], v[p * VECTORS + 2 * u + 1], all(scale * shrink(p)));
            memcpy(to + p * step + u * FLOATS, &x, sizeof x);
        }
    return top <= VAST ? top / INPUT : INFINITY;
}

/* Whether the inputs of the tiles suit. */
ALWAYS int transform_tiles(const Winograd *j, int64_t first, int64_t n, const char *zeros, uint32_t *v, float *undo, int half) {
    const int64_t size = half ? 2 : 4, step = input_step(j);
    int suits = 1;
    for (int64_t t = 0; t < n; t++, v += depth(j) / 2) {
        const Place at = place_in(first + t, j->H, j->W);
        const char *pixels[POSITIONS];
        char last[POSITIONS][PART * 4];
        for (int i = 0; i < POSITIONS; i++) {
            const int64_t h = at.h + i / 6 - 1, w = at.w + i % 6 - 1;
            const int outside = h < 0 || w < 0 || h >= j->H || w >= j->W;
            pixels[i] = outside ? zeros : (const char *)j->p_x + ((at.image * j->H + h) * j->W + w) * j->C * size;
        }
        for (int64_t cut = 0; cut < cuts(j); cut++) {
            const int64_t c = cut * PART, deep = min(PART, depth(j) - c), inside = min(deep, j->C - c);
            float *to = undo + cut * several(j) + t;
            if (inside == deep) *to = transform_part(pixels, c, deep / UNIT, half, v + c / 2, step);
            else {
                for (int i = 0; i < POSITIONS; i++) {
                    memset(last[i], 0, deep * size);
                    memcpy(last[i], pixels[i] + c * size, inside * size);
                    pixels[i] = last[i];
                }
                *to = transform_part(pixels, 0, deep / UNIT, half, v + c / 2, step);
            }
            suits &= *to <= VAST;
        }
    }
    return suits;
}

/* ------------------------------------------------------------------------------------- products */

/* s + the products of the pairs of x and w. gcc 12 moves accumulators of the intrinsic to memory. */
ALWAYS Ints add_products(Ints s, Words x, Words w, int vnni) {
    (void)vnni;
#ifdef VNNI
    if (vnni) {
        __asm__("vpdpwssd %2, %1, %0" : "+v"(s) : "v"(x), "v"(w));
        return s;
    }
#endif
#if defined(__AVX512BW__)
    return s + (Ints)_mm512_madd_epi16((__m512i)x, (__m512i)w);
#elif defined(__AVX2__)
    return s + (Ints)_mm256_madd_epi16((__m256i)x, (__m256i)w);
#elif defined(__SSE2__) && FLOATS == 4
    return s + (Ints)_mm_madd_epi16((__m128i)x, (__m128i)w);
#else
    return s + ((Ints)(x << 16) >> 16) * ((Ints)(w << 16) >> 16) + ((Ints)x >> 16) * ((Ints)w >> 16);
#endif
}

/* A product of integers, x [rows, pairs] with w [pairs, LANES], and what undoes the scales of each. */
typedef struct {
    const uint32_t *x, *w;
    const float *undo_x, *undo_w;
    int64_t row, pairs; /* row: from one row of x to the next */
    int adds;           /* to the sums, instead of replacing them */
} Part;

ALWAYS void multiply(const Part *j, int64_t first, const int rows, float *sums, int vnni) {
    const uint32_t *x = j->x + first * j->row, *w = j->w;
    Ints s[TALL][WIDE];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < WIDE; v++) s[r][v] = (Ints){0};
    for (int64_t k = 0; k < j->pairs; k++, w += LANES) {
        Words weight[WIDE];
#pragma GCC unroll 4
        for (int v = 0; v < WIDE; v++) memcpy(weight + v, w + v * FLOATS, sizeof *weight);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            const Words pair = x[r * j->row + k] + (Words){0};
#pragma GCC unroll 4
            for (int v = 0; v < WIDE; v++) s[r][v] = add_products(s[r][v], pair, weight[v], vnni);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < WIDE; v++) {
            Vector *to = (Vector *)(sums + (first + r) * LANES) + v, undo;
            memcpy(&undo, j->undo_w + v * FLOATS, sizeof undo);
            const Vector y = __builtin_convertvector(s[r][v], Vector) * (undo * j->undo_x[first + r]);
            *to = j->adds ? *to + y : y;
        }
}

typedef void Multiply(const Part *, int64_t, float *);

#define MULTIPLY(name, vnni)                                                                                           \
    static void name(const Part *j, int64_t rows, float *sums) {                                                       \
        int64_t r = 0;                                                                                                 \
        for (; r + TALL <= rows; r += TALL) multiply(j, r, TALL, sums, vnni);                                          \
        for (; r + 2 <= rows; r += 2) multiply(j, r, 2, sums, vnni);                                                   \
        if (r < rows) multiply(j, r, 1, sums, vnni);                                                                   \
    }
MULTIPLY(multiply_rows, 0)
#ifdef VNNI
VNNI MULTIPLY(multiply_rows_vnni, 1)
#else
#define multiply_rows_vnni multiply_rows
#endif

/* -------------------------------------------------------------------------------------- outputs */

ALWAYS void output_line(const Vector *m, int from, Vector *y, int step) { /* A' m */
    const Vector a = all(A), b = all(B), a2 = all(A2), b2 = all(B2), a3 = all(A * A2), b3 = all(B * B2);
    const Vector p = m[from] + m[2 * from], q = m[3 * from] + m[4 * from];
    const Vector r = m[from] - m[2 * from], s = m[3 * from] - m[4 * from];
    y[0] = m[0] + p + q;
    y[step] = fma_of(b, s, a * r), y[2 * step] = fma_of(b2, q, a2 * p);
    y[3 * step] = fma_of(b3, s, fma_of(a3, r, m[5 * from]));
}

ALWAYS void write_outputs(const Vector *y, int64_t n, void *to, int half) {
    if (half) {
        const Words bits = (Words)*y;
        const Halves rounded = __builtin_convertvector((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16, Halves);
        if (n >= FLOATS) memcpy(to, &rounded, sizeof rounded);
        else memcpy(to, &rounded, n * 2);
    } else if (n >= FLOATS) memcpy(to, y, sizeof *y);
    else memcpy(to, y, n * 4);
}

/* The outputs of FLOATS channels of a tile, from n on; sums: their products. */
ALWAYS void put_tile(const Winograd *j, Place at, int64_t n, const float *sums, int half) {
    const int64_t step = sums_step(j), high = min(4, j->H - at.h), wide = min(4, j->W - at.w), size = half ? 2 : 4;
    Vector m[POSITIONS], rows[4][6], y[4][4], bias = {0};
    if (j->p_bias) memcpy(&bias, j->p_bias + n, min(FLOATS, j->N - n) * 4);
    for (int p = 0; p < POSITIONS; p++) memcpy(m + p, sums + p * step, sizeof *m);
    for (int k = 0; k < 6; k++) output_line(m + k, 6, rows[0] + k, 6);
    for (int i = 0; i < 4; i++) output_line(rows[i], 1, y[i], 1);
    for (int64_t h = 0; h < high; h++)
        for (int64_t w = 0; w < wide; w++) {
            const Vector out = y[h][w] + bias;
            char *to = (char *)j->p_y + (((at.image * j->H + at.h + h) * j->W + at.w + w) * j->N + n) * size;
            write_outputs(&out, j->N - n, to, half);
        }
}

static void put_tiles(const Winograd *j, int64_t first, int64_t n, int64_t block, const float *sums) {
    for (int64_t t = 0; t < n; t++, sums += LANES) {
        const Place at = place_in(first + t, j->H, j->W);
        for (int64_t lane = 0; lane < LANES && block * LANES + lane < j->N; lane += FLOATS) {
            if (j->half) put_tile(j, at, block * LANES + lane, sums + lane, 1);
            else put_tile(j, at, block * LANES + lane, sums + lane, 0);
        }
    }
}

/* ----------------------------------------------------------------------------------------- call */

/* Whether the inputs of the tiles suit. */
static int convolve_tiles(const Winograd *j, int64_t first, int64_t n, uint32_t *v) {
    const int64_t deep = depth(j), step = weight_step(j), parts = cuts(j);
    float *sums = (float *)v + POSITIONS * input_step(j), *undo = sums + POSITIONS * sums_step(j), *zeros = undo + parts * several(j);
    Multiply *const multiply_all = j->vnni ? multiply_rows_vnni : multiply_rows;
    memset(zeros, 0, deep * 4);
    const char *outside = (const char *)zeros;
    if (!(j->half ? transform_tiles(j, first, n, outside, v, undo, 1) : transform_tiles(j, first, n, outside, v, undo, 0))) return 0;
    for (int64_t block = 0; block < blocks(j); block++) {
        for (int64_t p = 0; p < POSITIONS; p++) {
            const uint32_t *x = v + p * input_step(j), *w = (const uint32_t *)j->p_panel + (block * POSITIONS + p) * step;
            for (int64_t cut = 0; cut < parts; cut++) {
                const int64_t from = cut * PART / 2;
                const float *undo_w = undo_of(j) + ((block * parts + cut) * POSITIONS + p) * LANES;
                const Part part = {x + from, w + from * LANES, undo + cut * several(j), undo_w, deep / 2, min(PART / 2, deep / 2 - from), cut > 0};
                multiply_all(&part, n, sums + p * sums_step(j));
            }
        }
        put_tiles(j, first, n, block, sums);
    }
    return 1;
}

/* Whether all numbers suit; if not, y is not complete. */
int64_t winograd_convolve(const Winograd *j) {
    const int64_t lanes = blocks(j) * WIDE, all_tiles = tiles(j), each = several(j), tasks = over(all_tiles, each);
    int refused = 0;
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        char *scratch = (char *)j->p_scratch + this_thread() * winograd_scratch(j);
        _Pragma("omp for schedule(dynamic)") for (int64_t task = 0; task < lanes * cuts(j); task++) {
            Vector *w = (Vector *)scratch;
            if (!lay_part(j, task / cuts(j) * FLOATS, task % cuts(j), w, w + PART * 9)) __atomic_store_n(&refused, 1, __ATOMIC_RELAXED);
        }
        _Pragma("omp for schedule(dynamic)") for (int64_t task = 0; task < tasks; task++) {
            if (__atomic_load_n(&refused, __ATOMIC_RELAXED)) continue;
            const int64_t first = task * each;
            if (!convolve_tiles(j, first, min(each, all_tiles - first), (uint32_t *)scratch)) __atomic_store_n(&refused, 1, __ATOMIC_RELAXED);
        }
    }
    return !refused;
}
