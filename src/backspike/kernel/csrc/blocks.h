/* Where the elements of a block are. A block is `count` segments of `run` elements each, so few
   that all T steps of it fit into L1. Without a pool it is one segment. With a 2x2 pool it is whole
   windows, each four segments of channels, so that no window is split between blocks; the elements
   outside every window (an odd last row or column) follow in blocks of their own. */

#ifndef BACKSPIKE_BLOCKS_H
#define BACKSPIKE_BLOCKS_H

#include "lif.h"

typedef struct {
    int64_t C, width, splits; /* C: channels, when they are last in memory; width: of a segment, in
                                 channels; splits: how many parts of C there are then */
    int64_t positions, N;     /* positions of a block; elements of a timestep */
    int64_t H, W;             /* of the image if it is pooled, else 0 */
    int64_t windows, loose;   /* windows in all; positions of an image outside every window */
    int64_t whole, groups;    /* groups of windows; all groups.
                                 Block b is part b % splits of group b / splits. */
} Walk;

typedef struct {
    int count, run, windows; /* windows: 0 if nothing is pooled */
    int64_t split;
    int64_t at[BLOCK];       /* where the segments begin in a timestep */
    int64_t out[BLOCK / 4];  /* where the pooled windows go */
} Block;

static inline int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* C: the channels if they are last in memory, else 1. H = W = 0: no pool. */
static inline Walk walk(int64_t N, int64_t C, int64_t H, int64_t W) {
    Walk w = {.C = C, .N = N, .H = H, .W = W, .width = min(C, H ? BLOCK / 4 : BLOCK)};
    w.splits = over(C, w.width);
    w.positions = (H ? BLOCK / 4 : BLOCK) / w.width * (H ? 4 : 1);
    if (H) {
        const int64_t images = N / (C * H * W);
        w.windows = images * (H / 2) * (W / 2);
        w.loose = H * W - 4 * (H / 2) * (W / 2);
        w.whole = over(w.windows, w.positions / 4);
        w.groups = w.whole + over(images * w.loose, w.positions);
    } else {
        w.groups = over(N / C, w.positions);
    }
    return w;
}

/* The position of the k-th element outside every window: first the last row of an image of odd
   height, then its last column. */
static inline int64_t loose(const Walk *w, int64_t k) {
    const int64_t image = k / w->loose, row = w->H % 2 ? w->W : 0;
    k %= w->loose;
    return image * w->H * w->W + (k < row ? (w->H - 1) * w->W + k : (k - row) * w->W + w->W - 1);
}

static inline void describe(const Walk *w, int64_t b, Block *p) {
    const int64_t group = b / w->splits, first = b % w->splits * w->width;
    p->split = b % w->splits;
    p->run = (int)min(w->width, w->C - first);
    p->windows = 0;
    if (!w->H) {
        const int64_t start = group * w->positions;
        p->at[0] = start * w->C + first;
        p->run = (int)(p->run * min(w->positions, w->N / w->C - start));
        p->count = 1;
    } else if (group < w->whole) {
        const int64_t each = w->positions / 4, start = group * each, H = w->H / 2, W = w->W / 2;
        p->windows = (int)min(each, w->windows - start);
        p->count = 4 * p->windows;
        for (int k = 0; k < p->windows; k++) {
            const int64_t window = start + k, row = window / W, image = row / H;
            const int64_t corner = (image * w->H + row % H * 2) * w->W + window % W * 2;
            for (int i = 0; i < 4; i++) p->at[4 * k + i] = (corner + i / 2 * w->W + i % 2) * w->C + first;
            p->out[k] = window * w->C + first;
        }
    } else {
        const int64_t start = (group - w->whole) * w->positions, all = w->N / (w->C * w->H * w->W) * w->loose;
        p->count = (int)min(w->positions, all - start);
        for (int k = 0; k < p->count; k++) p->at[k] = loose(w, start + k) * w->C + first;
    }
}

#endif
