/* 2x2 pools that keep for backward what they need and no more: a maximum one byte per window, which of the four it was; an
   average nothing. As torch pools, bit for bit: the first of equals, or the last that is no number; what no window holds is left out. */

#ifndef REAL

#include "lif.h"

/* One call; pool.py has the same struct. Channels lie last, or C is 1 and every channel an image of its own. */
typedef struct {
    int64_t images, C, H, W, threads;
    const void *p_x; /* [images, H, W, C]; backward: the gradient of y */
    void *p_y;       /* [images, H / 2, W / 2, C]; backward: the gradient of x */
    uint8_t *p_codes;  /* of y's shape; null: average */
} Pool;

/* not more at a time, which bytes would allow: rows of images are short */
#define SIXTEEN _Pragma("omp simd simdlen(16)")

int64_t pool_job_size(void) { return sizeof(Pool); }

#define BODY "pool.c"
#include "types.h"

#else

#include "step.h"

/* n windows: by elements apart, their second column `side` elements on, their second row `below`; codes null: average */
ALWAYS void NAME(pool_run)(const int by, const IO *x, int64_t side, int64_t below, IO *y,
                                                                 uint8_t *codes, int64_t n) {
    const IO *x1 = x + side, *x2 = x + below, *x3 = x2 + side;
    if (!codes) {
        SIXTEEN for (int64_t i = 0; i < n; i++)
            y[i] = NAME(narrow)((((NAME(widen)(x[i * by]) + NAME(widen)(x1[i * by])) + NAME(widen)(x2[i * by])) + NAME(widen)(x3[i * by])) / 4);
        return;
    }
    SIXTEEN for (int64_t i = 0; i < n; i++) {
        const REAL v0 = NAME(widen)(x[i * by]), v1 = NAME(widen)(x1[i * by]), v2 = NAME(widen)(x2[i * by]), v3 = NAME(widen)(x3[i * by]);
        const int later1 = (v1 > v0) | (v1 != v1);
        const REAL best1 = later1 ? v1 : v0;
        const int later2 = (v2 > best1) | (v2 != v2);
        const REAL best2 = later2 ? v2 : best1;
        const int later3 = (v3 > best2) | (v3 != v3);
        y[i] = NAME(narrow)(later3 ? v3 : best2);
        codes[i] = later3 ? 3 : later2 ? 2 : later1;
    }
}

ALWAYS void NAME(unpool_run)(const int by, const IO *g, const uint8_t *codes, int64_t side,
                                                                   int64_t below, IO *gx, int64_t n) {
    IO *gx1 = gx + side, *gx2 = gx + below, *gx3 = gx2 + side;
    if (!codes) SIXTEEN for (int64_t i = 0; i < n; i++) {
        const IO part = NAME(narrow)(NAME(widen)(g[i]) / 4);
        gx[i * by] = part;
        gx1[i * by] = part;
        gx2[i * by] = part;
        gx3[i * by] = part;
    }
    else SIXTEEN for (int64_t i = 0; i < n; i++) {
        gx[i * by] = codes[i] == 0 ? g[i] : 0;
        gx1[i * by] = codes[i] == 1 ? g[i] : 0;
        gx2[i * by] = codes[i] == 2 ? g[i] : 0;
        gx3[i * by] = codes[i] == 3 ? g[i] : 0;
    }
}

void NAME(pool_forward)(const Pool *p) {
    const int64_t C = p->C, H = p->H / 2, W = p->W / 2, below = p->W * C;
    _Pragma("omp parallel for schedule(static) num_threads(p->threads) if (p->threads > 1)")
    for (int64_t row = 0; row < p->images * H; row++) {
        const IO *x = (const IO *)p->p_x + (row / H * p->H + row % H * 2) * below;
        const int64_t o = row * W * C;
        IO *y = (IO *)p->p_y + o;
        uint8_t *codes = p->p_codes ? p->p_codes + o : 0;
        if (C == 1) NAME(pool_run)(2, x, 1, below, y, codes, W);
        else for (int64_t k = 0; k < W * C; k += C) NAME(pool_run)(1, x + 2 * k, C, below, y + k, codes ? codes + k : 0, C);
    }
}

void NAME(pool_backward)(const Pool *p) {
    const int64_t C = p->C, H = p->H / 2, W = p->W / 2, below = p->W * C;
    _Pragma("omp parallel for schedule(static) num_threads(p->threads) if (p->threads > 1)")
    for (int64_t row = 0; row < p->images * (H + p->H % 2); row++) {
        const int64_t image = row / (H + p->H % 2), h = row % (H + p->H % 2), o = (image * H + h) * W * C;
        IO *gx = (IO *)p->p_y + (image * p->H + h * 2) * below;
        if (h == H) { /* an odd last row */
            memset(gx, 0, below * sizeof(IO));
            continue;
        }
        const IO *g = (const IO *)p->p_x + o;
        const uint8_t *codes = p->p_codes ? p->p_codes + o : 0;
        if (C == 1) NAME(unpool_run)(2, g, codes, 1, below, gx, W);
        else for (int64_t k = 0; k < W * C; k += C) NAME(unpool_run)(1, g + k, codes ? codes + k : 0, C, below, gx + 2 * k, C);
        if (p->W % 2 == 0) continue;
        memset(gx + 2 * W * C, 0, C * sizeof(IO));
        memset(gx + below + 2 * W * C, 0, C * sizeof(IO));
    }
}

#endif
