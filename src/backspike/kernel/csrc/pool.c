/* 2x2 pools that save no more than they need for backward: a maximum saves one byte per window,
   which of the four elements it was; an average saves nothing. The results are those of torch, bit
   for bit: of equal elements the first, of NaNs the last; elements outside every window are
   ignored. */

#ifndef REAL

#include "lif.h"

/* One call; pool.py has the same struct. Channels are last, or C is 1 and every channel is an
   image. */
typedef struct {
    int64_t images, C, H, W, threads;
    const void *p_x; /* [images, H, W, C]; backward: the gradient of y */
    void *p_y;       /* [images, H / 2, W / 2, C]; backward: the gradient of x */
    uint8_t *p_codes; /* of the shape of y; null: average */
} Pool;

int64_t pool_job_size(void) { return sizeof(Pool); }

#define BODY "pool.c"
#include "types.h"

#else

#include "step.h"

/* n windows, at most BLOCK, `by` elements apart. Their second column is `side` elements further,
   their second row `below`. Codes have the width of the values until the end, because the compiler
   vectorises short rows, of at most 16 windows, in that width only. */
ALWAYS void NAME(maxima)(const int by, const IO *x, int64_t side, int64_t below, IO *y, uint8_t *codes, int n) {
    const IO *x1 = x + side, *x2 = x + below, *x3 = x2 + side;
    IO code[BLOCK];
    SIMD EACH {
        const REAL v0 = NAME(widen)(x[i * by]), v1 = NAME(widen)(x1[i * by]);
        const REAL v2 = NAME(widen)(x2[i * by]), v3 = NAME(widen)(x3[i * by]);
        const int later1 = (v1 > v0) | (v1 != v1);
        const REAL best1 = later1 ? v1 : v0;
        const int later2 = (v2 > best1) | (v2 != v2);
        const REAL best2 = later2 ? v2 : best1;
        const int later3 = (v3 > best2) | (v3 != v3);
        y[i] = NAME(narrow)(later3 ? v3 : best2);
        code[i] = later3 ? 3 : later2 ? 2 : later1;
    }
    SIMD EACH codes[i] = (uint8_t)code[i];
}

ALWAYS void NAME(averages)(const int by, const IO *x, int64_t side, int64_t below, IO *y, int n) {
    const IO *x1 = x + side, *x2 = x + below, *x3 = x2 + side;
    SIMD EACH {
        const REAL top = NAME(widen)(x[i * by]) + NAME(widen)(x1[i * by]);
        y[i] = NAME(narrow)(((top + NAME(widen)(x2[i * by])) + NAME(widen)(x3[i * by])) / 4);
    }
}

ALWAYS void NAME(route)(const int by, const IO *g, const uint8_t *codes, int64_t side, int64_t below, IO *gx, int n) {
    IO *gx1 = gx + side, *gx2 = gx + below, *gx3 = gx2 + side, code[BLOCK];
    SIMD EACH code[i] = codes[i];
    SIMD EACH {
        gx[i * by] = code[i] == 0 ? g[i] : 0;
        gx1[i * by] = code[i] == 1 ? g[i] : 0;
    }
    SIMD EACH {
        gx2[i * by] = code[i] == 2 ? g[i] : 0;
        gx3[i * by] = code[i] == 3 ? g[i] : 0;
    }
}

ALWAYS void NAME(share)(const int by, const IO *g, int64_t side, int64_t below, IO *gx, int n) {
    IO *gx1 = gx + side, *gx2 = gx + below, *gx3 = gx2 + side;
    SIMD EACH {
        const IO part = NAME(narrow)(NAME(widen)(g[i]) / 4);
        gx[i * by] = part;
        gx1[i * by] = part;
        gx2[i * by] = part;
        gx3[i * by] = part;
    }
}

/* A row of windows with all channels, in runs of neighbours in memory. */
static inline void NAME(pool_row)(const Pool *p, const IO *x, IO *y, uint8_t *codes) {
    const int64_t C = p->C, W = p->W / 2, below = p->W * C, length = C == 1 ? W : C;
    for (int64_t k = 0, n; k < W * C; k += n) {
        const int64_t at = C == 1 ? 2 * k : k / C * C + k;
        n = min(length - k % length, BLOCK);
        if (codes && C == 1) NAME(maxima)(2, x + at, 1, below, y + k, codes + k, (int)n);
        else if (codes) NAME(maxima)(1, x + at, C, below, y + k, codes + k, (int)n);
        else if (C == 1) NAME(averages)(2, x + at, 1, below, y + k, (int)n);
        else NAME(averages)(1, x + at, C, below, y + k, (int)n);
    }
}

static inline void NAME(unpool_row)(const Pool *p, const IO *g, const uint8_t *codes, IO *gx) {
    const int64_t C = p->C, W = p->W / 2, below = p->W * C, length = C == 1 ? W : C;
    for (int64_t k = 0, n; k < W * C; k += n) {
        const int64_t at = C == 1 ? 2 * k : k / C * C + k;
        n = min(length - k % length, BLOCK);
        if (codes && C == 1) NAME(route)(2, g + k, codes + k, 1, below, gx + at, (int)n);
        else if (codes) NAME(route)(1, g + k, codes + k, C, below, gx + at, (int)n);
        else if (C == 1) NAME(share)(2, g + k, 1, below, gx + at, (int)n);
        else NAME(share)(1, g + k, C, below, gx + at, (int)n);
    }
}

void NAME(pool_forward)(const Pool *p) {
    const int64_t H = p->H / 2, W = p->W / 2, C = p->C, below = p->W * C;
    _Pragma("omp parallel for schedule(static) num_threads(p->threads) if (p->threads > 1)")
    for (int64_t row = 0; row < p->images * H; row++) {
        const IO *x = (const IO *)p->p_x + (row / H * p->H + row % H * 2) * below;
        const int64_t o = row * W * C;
        NAME(pool_row)(p, x, (IO *)p->p_y + o, p->p_codes ? p->p_codes + o : 0);
    }
}

void NAME(pool_backward)(const Pool *p) {
    const int64_t H = p->H / 2, W = p->W / 2, C = p->C, below = p->W * C;
    _Pragma("omp parallel for schedule(static) num_threads(p->threads) if (p->threads > 1)")
    for (int64_t row = 0; row < p->images * (H + p->H % 2); row++) {
        const int64_t image = row / (H + p->H % 2), h = row % (H + p->H % 2), o = (image * H + h) * W * C;
        IO *gx = (IO *)p->p_y + (image * p->H + h * 2) * below;
        if (h == H) { /* an odd last row */
            memset(gx, 0, below * sizeof(IO));
            continue;
        }
        NAME(unpool_row)(p, (const IO *)p->p_x + o, p->p_codes ? p->p_codes + o : 0, gx);
        if (p->W % 2 == 0) continue;
        memset(gx + 2 * W * C, 0, C * sizeof(IO));
        memset(gx + below + 2 * W * C, 0, C * sizeof(IO));
    }
}

#endif
