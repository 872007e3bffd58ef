/* The gradient of the weight of a 3x3 convolution of stride 1 and padding 1 whose input is spikes, by
   looking up: the work is the same at any density.

   gw[n, c, kh, kw] = sum of g[h, w, n] over the pixels whose input x[h + kh - 1, w + kw - 1, c] spikes.
   Eight pixels, an octet, have two tables for each n: all sums of g of the first four pixels and of
   the last four, 32 numbers of 16 bits, a vector. The spikes of the pixels below a tap are the places
   in these tables. One instruction looks both up for 16 input channels, another adds them.

   g is rounded to integers after a random number, uniform in -0.5 ... 0.5, was added (dither). So
   the expectation of what it is rounded to is g, also where g is small and alike in many pixels.

   No sum overflows. A chunk of octets and an output have a scale: with it, the absolute values of four
   pixels sum to at most LIMIT, but for the rounding of float32, which is below 0.1. Dither and
   rounding change each pixel by at most 1, so no number of a table exceeds LIMIT + 4.1 < 32,767. A
   sum of a chunk has 2 CHUNK such numbers: it is below 2^23. These sums are exact, and the float32
   sums of the chunks are taken in their order, so the result has the same bits on any number of
   threads. */

#include "conv.h"

enum {
    CHUNK = 64,   /* octets with the same scale */
    GROUP = 1024, /* octets whose places in the tables are computed at once */
    LOOKS = 16,   /* input channels that are looked up at once; outputs of a task */
    NINE = 9,     /* taps */
};

typedef float Row __attribute__((vector_size(4 * LOOKS)));
typedef int32_t Sums __attribute__((vector_size(4 * LOOKS)));
typedef uint32_t Places __attribute__((vector_size(4 * LOOKS)));
typedef union { Places words; int16_t sums[2 * LOOKS]; } Table;

/* One call; conv_lookup.py has the same struct. */
typedef struct {
    int64_t images, C, H, W, N;
    int64_t w_n, w_c, w_h, w_w; /* strides of gw [N, C, 3, 3], in elements */
    int64_t bytes, half, vnni;  /* bytes: of the spikes; half: g is bfloat16; vnni: see winograd.c */
    int64_t seed, threads;
    const uint8_t *p_codes;     /* the spikes as bits, [images, H, W, C] */
    const void *p_g;            /* [images, H, W, N] */
    float *p_gw;
    void *p_places, *p_sums, *p_scratch; /* of the sizes that conv_lookup_... return */
} Lookup;

static const float LIMIT = 32760;
/* As in winograd.c. With RATIO, all sums of four pixels but the largest are compared with it. */
static const float TINY = 1e-30f, VAST = 1e15f, RATIO = 256;

/* An octet is tall x wide pixels, an image down x across octets. Unit u is the `across` octets whose
   first row is u, counted from the row above the image. */
typedef struct {
    int64_t tall, wide, down, across, octets, units;
    int64_t places;               /* of an image, for 16 channels: [units, across, 3] */
    int64_t group, parts, blocks; /* images of a group; 16 channels each of C and of N */
} Grid;

static Grid grid(const Lookup *j) {
    Grid p = {.tall = 1};
    if (over(j->H, 2) * over(j->W, 4) < j->H * over(j->W, 8)) p.tall = 2;
    p.wide = 8 / p.tall;
    p.down = over(j->H, p.tall), p.across = over(j->W, p.wide);
    p.octets = p.down * p.across;
    p.units = (p.down - 1) * p.tall + 3;
    p.places = p.units * p.across * 3;
    p.group = max(1, min(j->images, GROUP / p.octets));
    p.parts = over(j->C, LOOKS), p.blocks = over(j->N, LOOKS);
    return p;
}

int64_t conv_lookup_job_size(void) { return sizeof(Lookup); }

int64_t conv_lookup_places(const Lookup *j) {
    const Grid p = grid(j);
    return p.parts * p.group * p.places * sizeof(Places);
}

int64_t conv_lookup_sums(const Lookup *j) {
    const Grid p = grid(j);
    return p.blocks * LOOKS * p.parts * NINE * sizeof(Row);
}

/* Of each thread: the spikes of a part of an image, with zeros around; later g and tables of a chunk. */
int64_t conv_lookup_scratch(const Lookup *j) {
    const Grid p = grid(j);
    const int64_t spikes = 2 * (p.down * p.tall + 2) * (p.across * p.wide + 2);
    return line(max(spikes, CHUNK * (8 * sizeof(Row) + LOOKS * sizeof(Table))));
}

/* --------------------------------------------------------------------------------------- places */

/* The places of all octets of an image in the tables, for the channels of a part and each kw. */
ALWAYS void find_places(const Lookup *j, const Grid *p, int64_t image, int64_t part, uint16_t *spikes, Places *to, int octet) {
    const int64_t wide = p->across * octet + 2, n = min(LOOKS, j->C - part * LOOKS);
    memset(spikes, 0, 2 * (p->down * p->tall + 2) * wide);
    for (int64_t h = 0; h < j->H; h++)
        for (int64_t w = 0; w < j->W; w++)
            spikes[(h + 1) * wide + w + 1] =
                (uint16_t)bits_at(j->p_codes, 8 * j->bytes, ((image * j->H + h) * j->W + w) * j->C + part * LOOKS, n);
    Places own;
    for (int i = 0; i < LOOKS; i++) own[i] = 1u << i;
    for (int64_t u = 0; u < p->units; u++)
        for (int64_t o = 0; o < p->across; o++)
            for (int64_t kw = 0; kw < 3; kw++) {
                Places v = (Places){0} + (LOOKS << 16);
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) {
                    const uint32_t some = spikes[(u + i / octet) * wide + o * octet + i % octet + kw];
                    v |= (Places)((own & some) != 0) & (1u << (i < 4 ? i : i + 12));
                }
                *to++ = v;
            }
}

/* --------------------------------------------------------------------------------------- tables */

/* The first pixel of an octet, whose image is counted in its group, and its first place. */
typedef struct { int64_t image, h, w, place; } Octet;

static void next_octet(const Lookup *j, const Grid *p, Octet *o) {
    o->w += p->wide, o->place += 3;
    if (o->w < j->W) return;
    o->w = 0, o->h += p->tall;
    if (o->h >= j->H) o->h = 0, o->image++;
    o->place = o->image * p->places + o->h * p->across * 3;
}

/* The g of n <= 16 outputs, padded with zeros. */
ALWAYS void read_row(const Lookup *j, int64_t at, int64_t n, Row *to) {
    typedef uint16_t Halves __attribute__((vector_size(2 * LOOKS)));
    if (j->half) {
        Halves x = {0};
        memcpy(&x, (const uint16_t *)j->p_g + at, n == LOOKS ? 2 * LOOKS : 2 * n);
        *to = (Row)(__builtin_convertvector(x, Places) << 16);
    } else {
        *to = (Row){0};
        memcpy(to, (const float *)j->p_g + at, n == LOOKS ? 4 * LOOKS : 4 * n);
    }
}

ALWAYS void read_octet(const Lookup *j, int64_t first, Octet o, int64_t n0, Row *to, int wide) {
    for (int i = 0; i < 8; i++) {
        const int64_t h = o.h + i / wide, w = o.w + i % wide;
        if (h < j->H && w < j->W) read_row(j, (((first + o.image) * j->H + h) * j->W + w) * j->N + n0, min(LOOKS, j->N - n0), to + i);
        else to[i] = (Row){0};
    }
}

/* The scales of the outputs for g, n octets, and what undoes them. Whether the numbers suit. */
static int scales(const Row *g, int64_t n, Row *scale, Row *undo) {
    Row sum = {0};
    Sums most = {0}, count = {0};
    for (int64_t k = 0; k < 2 * n; k++, g += 4) {
        Row four = {0};
        for (int i = 0; i < 4; i++) four += (Row)((Sums)g[i] & 0x7fffffff);
        const Sums bits = (Sums)four, more = bits > most; /* NaN is the largest */
        most = (bits & more) | (most & ~more);
        sum += four;
        count -= bits != 0;
    }
    const Row top = (Row)most, others = __builtin_convertvector(count + (count > 0), Row);
    const Sums suits = (top <= VAST) & (top * others <= RATIO * (sum - top));
    *scale = (Row)((Sums)(LIMIT / (top + TINY)) & (top > TINY));
    *undo = top * (1 / LIMIT);
    int all = 1;
    for (int i = 0; i < LOOKS; i++) all &= suits[i] != 0;
    return all;
}

/* Takes the next random numbers, and rounds g. */
ALWAYS void round_row(const Row *g, const Row *scale, Places *state, Places *to) {
    *state = *state * 1664525u + 1013904223u;
    const Row dither = __builtin_convertvector((Sums)*state, Row) * 0x1p-32f;
    *to = (Places)(*g * *scale + dither + 12582912.0f); /* 1.5 * 2^23: the last bits are the integer */
}

#if defined(__AVX512BW__)
/* The tables of an octet for 16 outputs, CHUNK tables apart. pairs: 2 pixels for each output. */
ALWAYS void tabulate(const Places *pairs, Table *to) {
    uint8_t from[4][sizeof(Table)]; /* the bytes of pixel i or i + 4, where a sum has it */
    for (int i = 0; i < 4; i++)
        for (int e = 0; e < 2 * LOOKS; e++)
            for (int k = 0; k < 2; k++) from[i][2 * e + k] = e >> i & 1 ? 2 * (i + e / LOOKS * 4) + k : 0x80;
    __m512i turn[4];
    for (int i = 0; i < 4; i++) turn[i] = _mm512_loadu_si512(from[i]);
    const __m512i a = _mm512_unpacklo_epi32((__m512i)pairs[0], (__m512i)pairs[1]), b = _mm512_unpackhi_epi32((__m512i)pairs[0], (__m512i)pairs[1]);
    const __m512i c = _mm512_unpacklo_epi32((__m512i)pairs[2], (__m512i)pairs[3]), d = _mm512_unpackhi_epi32((__m512i)pairs[2], (__m512i)pairs[3]);
    __m128i eight[LOOKS]; /* pixels of output 4 k + i at 4 i + k */
    _mm512_storeu_si512(eight, _mm512_unpacklo_epi64(a, c)), _mm512_storeu_si512(eight + 4, _mm512_unpackhi_epi64(a, c));
    _mm512_storeu_si512(eight + 8, _mm512_unpacklo_epi64(b, d)), _mm512_storeu_si512(eight + 12, _mm512_unpackhi_epi64(b, d));
    for (int n = 0; n < LOOKS; n++) {
        const __m512i g = _mm512_broadcast_i32x4(eight[n % 4 * 4 + n / 4]);
        const __m512i low = _mm512_add_epi16(_mm512_shuffle_epi8(g, turn[0]), _mm512_shuffle_epi8(g, turn[1]));
        const __m512i high = _mm512_add_epi16(_mm512_shuffle_epi8(g, turn[2]), _mm512_shuffle_epi8(g, turn[3]));
        to[n * CHUNK].words = (Places)_mm512_add_epi16(low, high);
    }
}
#else
ALWAYS void tabulate(const Places *pairs, Table *to) {
    for (int n = 0; n < LOOKS; n++)
        for (int e = 0; e < 2 * LOOKS; e++) {
            int sum = 0;
            for (int i = 0; i < 4; i++)
                if (e >> i & 1) sum += (int16_t)(pairs[e / LOOKS * 2 + i / 2][n] >> i % 2 * 16);
            to[n * CHUNK].sums[e] = (int16_t)sum;
        }
}
#endif

/* The tables of n octets of g. */
static void tabulate_chunk(const Row *g, int64_t n, const Row *scale, const Places *seeds, Table *to) {
    Places state = *seeds;
    for (int64_t o = 0; o < n; o++, g += 8) {
        Places pairs[4];
        for (int k = 0; k < 4; k++) {
            Places low, high;
            round_row(g + 2 * k, scale, &state, &low);
            round_row(g + 2 * k + 1, scale, &state, &high);
            pairs[k] = (low & 0xffffu) | high << 16;
        }
        tabulate(pairs, to + o);
    }
}

/* --------------------------------------------------------------------------------------- sums */

/* Adds the two sums that each of 16 input channels finds in a table. */
ALWAYS void look_up(Sums *s, const Places *places, const Table *table, int vnni) {
    (void)vnni;
#if defined(__AVX512BW__)
    const __m512i found = _mm512_permutexvar_epi16((__m512i)*places, (__m512i)table->words), ones = _mm512_set1_epi16(1);
#ifdef VNNI
    if (vnni) {
        __asm__("vpdpwssd %2, %1, %0" : "+v"(*s) : "v"(found), "v"(ones));
        return;
    }
#endif
    *s += (Sums)_mm512_madd_epi16(found, ones);
#else
    for (int i = 0; i < LOOKS; i++) (*s)[i] += table->sums[(*places)[i] & 31] + table->sums[(*places)[i] >> 16];
#endif
}

/* What a visit adds to: the sums of two outputs, 16 inputs and all taps, and what undoes their scales. */
typedef struct { const Places *places; const Table *tables[2]; Row *sums[2]; float undo[2]; int adds; } Visit;

ALWAYS void visit(const Visit *v, const int32_t *at, int64_t n, int64_t unit, int vnni) {
    Sums a[NINE], b[NINE];
#pragma GCC unroll 9
    for (int k = 0; k < NINE; k++) a[k] = b[k] = (Sums){0};
    for (int64_t o = 0; o < n; o++)
#pragma GCC unroll 9
        for (int k = 0; k < NINE; k++) {
            const Places *places = v->places + at[o] + k / 3 * unit + k % 3;
            look_up(a + k, places, v->tables[0] + o, vnni);
            look_up(b + k, places, v->tables[1] + o, vnni);
        }
#pragma GCC unroll 9
    for (int k = 0; k < NINE; k++) {
        const Row first = __builtin_convertvector(a[k], Row) * v->undo[0], second = __builtin_convertvector(b[k], Row) * v->undo[1];
        v->sums[0][k] = v->adds ? v->sums[0][k] + first : first;
        v->sums[1][k] = v->adds ? v->sums[1][k] + second : second;
    }
}

static void visit_plain(const Visit *v, const int32_t *at, int64_t n, int64_t unit) { visit(v, at, n, unit, 0); }
#ifdef VNNI
VNNI static void visit_vnni(const Visit *v, const int32_t *at, int64_t n, int64_t unit) { visit(v, at, n, unit, 1); }
#else
#define visit_vnni visit_plain
#endif

/* ----------------------------------------------------------------------------------------- call */

/* Outputs of a block and some parts of the inputs, over the octets of a group. Whether all suits. */
static int add_group(const Lookup *j, const Grid *p, int64_t first, int64_t images, int64_t block, int64_t part, int64_t last, Row *g) {
    Table *tables = (Table *)(g + 8 * CHUNK);
    const int64_t octets = images * p->octets, outputs = min(LOOKS, j->N - block * LOOKS);
    Row *sums = (Row *)j->p_sums + block * LOOKS * p->parts * NINE;
    Octet octet = {0};
    for (int64_t o = 0; o < octets; o += CHUNK) {
        const int64_t n = min(CHUNK, octets - o), chunk = first * over(p->octets * p->group, CHUNK) + o / CHUNK;
        int32_t at[CHUNK];
        for (int64_t k = 0; k < n; k++, next_octet(j, p, &octet)) {
            at[k] = (int32_t)octet.place;
            if (p->wide == 8) read_octet(j, first, octet, block * LOOKS, g + 8 * k, 8);
            else read_octet(j, first, octet, block * LOOKS, g + 8 * k, 4);
        }
        Row scale, undo;
        Places state;
        if (!scales(g, n, &scale, &undo)) return 0;
        const uint32_t seed = lowbias32(lowbias32(lowbias32((uint32_t)j->seed) ^ (uint32_t)(j->seed >> 32)) ^ (uint32_t)chunk);
        for (int i = 0; i < LOOKS; i++) state[i] = lowbias32(seed + (uint32_t)(block * LOOKS + i));
        tabulate_chunk(g, n, &scale, &state, tables);
        for (int64_t c = part; c < last; c++)
            for (int64_t k = 0; k < outputs; k += 2) {
                Visit v = {.places = (const Places *)j->p_places + c * p->group * p->places, .adds = first + o > 0};
                for (int i = 0; i < 2; i++) {
                    v.tables[i] = tables + (k + i) * CHUNK;
                    v.sums[i] = sums + ((k + i) * p->parts + c) * NINE;
                    v.undo[i] = undo[k + i];
                }
                (j->vnni ? visit_vnni : visit_plain)(&v, at, n, p->across * 3);
            }
    }
    return 1;
}

static void write_gradient(const Lookup *j, const Grid *p, int64_t block, int64_t part, int64_t last) {
    for (int64_t n = block * LOOKS; n < min(j->N, (block + 1) * LOOKS); n++)
        for (int64_t c = part * LOOKS; c < min(j->C, last * LOOKS); c++)
            for (int k = 0; k < NINE; k++) {
                const Row *from = (const Row *)j->p_sums + (n * p->parts + c / LOOKS) * NINE + k;
                j->p_gw[n * j->w_n + c * j->w_c + k / 3 * j->w_h + k % 3 * j->w_w] = ((const float *)from)[c % LOOKS];
            }
}

/* Whether all numbers suit; if not, gw is not complete. */
int64_t conv_lookup(const Lookup *j) {
    const Grid p = grid(j);
    const int64_t splits = max(1, min(p.parts, over(2 * j->threads, p.blocks))), scratch = conv_lookup_scratch(j);
    int refused = 0;
    _Pragma("omp parallel num_threads(j->threads) if (j->threads > 1)") {
        void *own = (char *)j->p_scratch + this_thread() * scratch;
        for (int64_t first = 0; first < j->images; first += p.group) {
            const int64_t images = min(p.group, j->images - first);
            _Pragma("omp for schedule(dynamic)") for (int64_t task = 0; task < images * p.parts; task++) {
                const int64_t image = task % images, part = task / images;
                Places *to = (Places *)j->p_places + (part * p.group + image) * p.places;
                if (p.wide == 8) find_places(j, &p, first + image, part, own, to, 8);
                else find_places(j, &p, first + image, part, own, to, 4);
            }
            _Pragma("omp for schedule(dynamic)") for (int64_t task = 0; task < p.blocks * splits; task++) {
                const int64_t block = task / splits, split = task % splits;
                const int64_t part = split * p.parts / splits, last = (split + 1) * p.parts / splits;
                if (__atomic_load_n(&refused, __ATOMIC_RELAXED)) continue;
                if (!add_group(j, &p, first, images, block, part, last, own)) __atomic_store_n(&refused, 1, __ATOMIC_RELAXED);
                else if (first + images == j->images) write_gradient(j, &p, block, part, last);
            }
        }
    }
    return !refused;
}
