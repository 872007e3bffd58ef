/* The gradient of the weight of a convolution 3x3 of stride 1 and padding 1 with a quarter of the
   multiplications: the transpose of Winograd's F(4x4, 3x3) (winograd.c), in float32.

   The tile of 4x4 output gradients g and 6x6 inputs d adds G' [(B' d B) * (A g A')] G, where * is
   element by element and the transforms are those of winograd.c. The last one is linear, so it
   follows the sum over all tiles. For each of the 36 positions that sum is a matrix product, of
   inputs [tiles, C] with gradients [tiles, N].

   Tiles are summed chunk by chunk, then the chunks in their order: the same bits on any number of
   threads. Without chunks, a sum of many tiles would lose several times as much to rounding. */

#include "winograd.h"

enum {
    TALL = 6,              /* input channels of a product in registers, */
    WIDE = 2,              /* and vectors of output channels */
    LANES = WIDE * FLOATS, /* output channels of a block */
    CHUNK = 32,            /* tiles that are transformed before they are multiplied */
    SKIP = 16,             /* floats between tiles, which would else share lines of the cache */
    TRANSFORMED = 4,       /* tiles of a task */
};

/* One call; winograd.py has the same struct. */
typedef struct {
    int64_t images, C, H, W, N;
    int64_t half, threads; /* half: x and g are bfloat16 */
    const void *p_x, *p_g; /* [images, H, W, C] and [images, H, W, N] */
    float *p_w;            /* [3, 3, C, N] */
    void *p_scratch;       /* of the size that winograd_weight_scratch returns */
} WinogradWeight;

int64_t winograd_weight_job_size(void) { return sizeof(WinogradWeight); }

/* ---------------------------------------------------------------------------------------- sizes */

static int64_t tiles(const WinogradWeight *j) { return tiles_of(j->images, j->H, j->W); }
static int64_t deep(const WinogradWeight *j) { return over(j->C, FLOATS) * FLOATS; }
static int64_t wide(const WinogradWeight *j) { return over(j->N, LANES) * LANES; }

/* Floats from a tile to the next, of inputs and of gradients. */
static int64_t input_row(const WinogradWeight *j) { return deep(j) + SKIP; }
static int64_t gradient_row(const WinogradWeight *j) { return wide(j) + SKIP; }

/* Tiles of a chunk. The same on all processors, since the sums of a chunk are rounded. */
static int64_t several(const WinogradWeight *j) { return min(tiles(j), CHUNK); }

/* The scratch: sums [POSITIONS, C, wide], transformed inputs and gradients [POSITIONS, several, row]. */
static float *inputs_of(const WinogradWeight *j) { return (float *)j->p_scratch + POSITIONS * j->C * wide(j); }
static float *gradients_of(const WinogradWeight *j) { return inputs_of(j) + POSITIONS * several(j) * input_row(j); }

int64_t winograd_weight_scratch(const WinogradWeight *j) {
    return 4 * POSITIONS * (j->C * wide(j) + several(j) * (input_row(j) + gradient_row(j)));
}

/* ----------------------------------------------------------------------------------- transforms */

/* n <= FLOATS channels of a pixel, then zeros. */
ALWAYS Vector read_channels(const char *from, int64_t n, int half) {
    Halves narrow = {0};
    Vector whole = {0};
    if (half) {
        memcpy(&narrow, from, n * 2);
        return (Vector)(__builtin_convertvector(narrow, Words) << 16);
    }
    memcpy(&whole, from, n * 4);
    return whole;
}

ALWAYS void gradient_line(const Vector *g, Vector *m, int step) { /* A g */
    const Vector a2 = all(A2), b2 = all(B2), a = all(A), b = all(B);
    const Vector p = fma_of(a2, g[2], g[0]), q = a * fma_of(a2, g[3], g[1]);
    const Vector r = fma_of(b2, g[2], g[0]), s = b * fma_of(b2, g[3], g[1]);
    m[0] = g[0];
    m[step] = p + q, m[2 * step] = p - q;
    m[3 * step] = r + s, m[4 * step] = r - s;
    m[5 * step] = g[3];
}

/* Transforms FLOATS channels of a tile, of which n are read. side: 6 inputs or 4 gradients. */
ALWAYS void transform_channels(const char *const *pixels, int64_t n, const int side, int half, float *to, int64_t step) {
    Vector columns[POSITIONS], out[POSITIONS];
    for (int k = 0; k < side; k++) {
        Vector in[6];
        for (int i = 0; i < side; i++) in[i] = read_channels(pixels[side * i + k], n, half);
        if (side == 6) input_line(in, columns + k, 6);
        else gradient_line(in, columns + k, 6);
    }
    for (int i = 0; i < 6; i++) {
        if (side == 6) input_line(columns + 6 * i, out + 6 * i, 1);
        else gradient_line(columns + 6 * i, out + 6 * i, 1);
    }
    for (int p = 0; p < POSITIONS; p++) memcpy(to + p * step, out + p, sizeof *out);
}

/* Transforms a tile of pixels [H, W, channels], with zeros for channels up to `padded`. h, w: its first
   pixel. */
ALWAYS void transform_tile(const WinogradWeight *j, const char *image, int64_t h, int64_t w, int64_t channels, int64_t padded, const int side, int half, float *to, int64_t step) {
    static const float zeros[FLOATS];
    const int64_t size = half ? 2 : 4;
    const char *pixels[POSITIONS];
    int64_t moves[POSITIONS];
    for (int i = 0; i < side * side; i++) {
        const int64_t row = h + i / side, column = w + i % side;
        const int outside = row < 0 || column < 0 || row >= j->H || column >= j->W;
        pixels[i] = outside ? (const char *)zeros : image + (row * j->W + column) * channels * size;
        moves[i] = outside ? 0 : FLOATS * size;
    }
    for (int64_t c = 0; c < padded; c += FLOATS, to += FLOATS) {
        if (channels - c >= FLOATS) transform_channels(pixels, FLOATS, side, half, to, step);
        else transform_channels(pixels, max(channels - c, 0), side, half, to, step);
        for (int i = 0; i < side * side; i++) pixels[i] += moves[i];
    }
}

/* Inputs and gradients of a tile into row t of the chunk. */
ALWAYS void transform_both(const WinogradWeight *j, int64_t tile, int64_t t, int half) {
    const Place at = place_in(tile, j->H, j->W);
    const int64_t pixels = at.image * j->H * j->W * (half ? 2 : 4), v = input_row(j), m = gradient_row(j);
    const char *x = (const char *)j->p_x + pixels * j->C, *g = (const char *)j->p_g + pixels * j->N;
    transform_tile(j, x, at.h - 1, at.w - 1, j->C, deep(j), 6, half, inputs_of(j) + t * v, several(j) * v);
    transform_tile(j, g, at.h, at.w, j->N, wide(j), 4, half, gradients_of(j) + t * m, several(j) * m);
}

static void transform(const WinogradWeight *j, int64_t first, int64_t from, int64_t to) {
    for (int64_t t = from; t < to; t++) {
        if (j->half) transform_both(j, first + t, t, 1);
        else transform_both(j, first + t, t, 0);
    }
}

/* ------------------------------------------------------------------------------------- products */

/* v' m of inputs v [n, rows] and gradients m [n, LANES] becomes the sums [rows, LANES] or, if adds, is
   added to them. */
ALWAYS void multiply(const float *v, const float *m, int64_t n, int64_t v_row, int64_t m_row, const int rows, int adds, float *sums, int64_t row) {
    Vector s[TALL][WIDE];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int k = 0; k < WIDE; k++) s[r][k] = all(0);
    for (int64_t t = 0; t < n; t++, v += v_row, m += m_row) {
        Vector g[WIDE];
#pragma GCC unroll 2
        for (int k = 0; k < WIDE; k++) memcpy(g + k, m + k * FLOATS, sizeof *g);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (int k = 0; k < WIDE; k++) s[r][k] = fma_of(all(v[r]), g[k], s[r][k]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int k = 0; k < WIDE; k++) {
            float *to = sums + r * row + k * FLOATS;
            if (adds) {
                Vector before;
                memcpy(&before, to, sizeof before);
                s[r][k] += before;
            }
            memcpy(to, &s[r][k], sizeof **s);
        }
}

/* The products of a chunk of n tiles for a position and a block of output channels. */
static void multiply_chunk(const WinogradWeight *j, int64_t task, int64_t n, int adds) {
    const int64_t p = task % POSITIONS, block = task / POSITIONS, row = wide(j), v_row = input_row(j), m_row = gradient_row(j);
    const float *v = inputs_of(j) + p * several(j) * v_row, *m = gradients_of(j) + p * several(j) * m_row + block * LANES;
    float *sums = (float *)j->p_scratch + p * j->C * row + block * LANES;
    int64_t c = 0;
    for (; c + TALL <= j->C; c += TALL) multiply(v + c, m, n, v_row, m_row, TALL, adds, sums + c * row, row);
    if (c + 4 <= j->C) multiply(v + c, m, n, v_row, m_row, 4, adds, sums + c * row, row), c += 4;
    if (c + 2 <= j->C) multiply(v + c, m, n, v_row, m_row, 2, adds, sums + c * row, row), c += 2;
    if (c < j->C) multiply(v + c, m, n, v_row, m_row, 1, adds, sums + c * row, row);
}

/* --------------------------------------------------------------------------------------- result */

ALWAYS void weight_line(const Vector *u, int from, Vector *w, int step) { /* G' u */
    const Vector na = all(1 / (2 * A2 * (A2 - B2))), nb = all(1 / (2 * B2 * (B2 - A2)));
    const Vector p = na * (u[from] + u[2 * from]), q = nb * (u[3 * from] + u[4 * from]);
    const Vector r = na * (u[from] - u[2 * from]), s = nb * (u[3 * from] - u[4 * from]);
    w[0] = fma_of(u[0], all(1 / (A2 * B2)), p + q);
    w[step] = fma_of(all(A), r, all(B) * s);
    w[2 * step] = fma_of(all(A2), p, fma_of(all(B2), q, u[5 * from]));
}

/* The gradient for an input channel. */
static void put_channel(const WinogradWeight *j, int64_t c) {
    const float *sums = (const float *)j->p_scratch + c * wide(j);
    const int64_t step = j->C * wide(j);
    for (int64_t n = 0; n < j->N; n += FLOATS) {
        Vector u[POSITIONS], rows[3][6], w[3][3];
        for (int p = 0; p < POSITIONS; p++) memcpy(u + p, sums + p * step + n, sizeof *u);
        for (int k = 0; k < 6; k++) weight_line(u + k, 6, rows[0] + k, 6);
        for (int i = 0; i < 3; i++) weight_line(rows[i], 1, w[i], 1);
        for (int tap = 0; tap < 9; tap++) {
            float *to = j->p_w + (tap * j->C + c) * j->N + n;
            memcpy(to, &w[tap / 3][tap % 3], min(FLOATS, j->N - n) * 4);
        }
    }
}

void winograd_weight(const WinogradWeight *j) {
    const int64_t each = several(j), products = POSITIONS * (wide(j) / LANES), all_tiles = tiles(j);
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)")
        for (int64_t first = 0; first < all_tiles; first += each) {
            const int64_t n = min(each, all_tiles - first), tasks = over(n, TRANSFORMED);
            _Pragma("omp for schedule(dynamic)") for (int64_t task = 0; task < tasks; task++)
                transform(j, first, task * TRANSFORMED, min(n, (task + 1) * TRANSFORMED));
            _Pragma("omp for schedule(dynamic, 4)") for (int64_t task = 0; task < products; task++)
                multiply_chunk(j, task, n, first > 0);
        }
    _Pragma("omp parallel for num_threads(j->threads) if (j->threads > 1) schedule(dynamic)")
        for (int64_t c = 0; c < j->C; c++) put_channel(j, c);
}
