/* Spiking layers that receive their own spikes one timestep later through a linear layer: forward
   and backward over all T in one call.

   A task is a few samples, which do not depend on the others: it goes through time once and needs
   no other thread. The input of a neuron is x[t] + bias + the rows of the transposed weight at the
   spikes of t - 1, added in ascending order. In the backward pass the gradient of the spikes of t
   gets the gradients of the inputs of t + 1 times the weight: as a dense product, or, where only few
   neurons have an h that is not 0, as one dot product for each of those. The weight lies in panels
   of COLUMNS columns that stay in the cache while all samples of a task use them. Tasks do not
   depend on the number of threads, and neither do sums: the same bits on any number of threads. */

#ifndef REAL

#define BLOCK 128
#include "lif.h"
#include "ones.h"

enum {
    COLUMNS = 64,  /* of a panel */
    /* Single dot products are faster if fewer than 1 in SPARSE is needed, and each costs as much as
       START more elements. Measured on two Xeon cores, backward in ms, single / dense: 128 neurons
       5.4 / 6.7 at 5 %, 5.6 / 5.7 at 9 %, 6.9 / 5.1 at 19 %; 512: 29 / 48, 34 / 52, 50 / 57. */
    SPARSE = 4,
    START = 130,
    KEYS = 32,     /* columns at a time */
};

/* N = samples x neurons, T, and all else of a call are those of the Job; cpu/recurrent.py has the
   same struct. Tensors are contiguous; those named here are in the type of the state, or in that of
   x if they say IO. */
typedef struct {
    Job neuron;            /* chunks: the tasks */
    int64_t neurons;       /* of a sample */
    int64_t samples, rows; /* samples in all, and of a task: a multiple of 8 */
    int64_t synapse;       /* the input is filtered: i[t] = lam_s i[t-1] + gain_s x[t] */
    double lam_s, gain_s;
    const int64_t *p_seeds;  /* [T], of the masks */
    const void *p_input;     /* x: IO [T, N], with the stride over T in input_stride */
    int64_t input_stride;
    const void *p_before;    /* spikes before the first timestep, IO [N]; or null */
    const void *p_bias;      /* [panels x COLUMNS]; or null */
    const void *p_panels;    /* [panels, neurons, COLUMNS]: forward of the transposed weight,
                                backward of the weight */
    const void *p_turned;    /* backward: the transposed weight [neurons, neurons], if only the
                                elements in `active` of the Job are needed; or null */
    uint8_t *p_bits;         /* the spikes as bits [T, N / 8], if 8 divides the neurons: forward writes;
                                or null */
    void *p_current;         /* the current into the membrane, IO [T, N]; or null */
    const void *p_i0;        /* [N]; or null */
    void *p_i;               /* forward writes the last i, backward the gradient of i0; or null */
    void *p_scratch;         /* recurrent_scratch() bytes for each thread */
} Recurrent;

int64_t recurrent_size(void) { return sizeof(Recurrent); }
int64_t recurrent_columns(void) { return COLUMNS; }

/* Rows of scratch memory for each sample. */
static inline int64_t scratch_rows(const Recurrent *r) { return 8 + (needs_w(&r->neuron) ? r->neuron.T : 0); }

/* Bytes of scratch memory for each thread. */
int64_t recurrent_scratch(const Recurrent *r) {
    return r->rows * (r->neurons + COLUMNS) * (scratch_rows(r) * (int64_t)sizeof(double) + sizeof(int32_t)) + 4096;
}

#if defined(__AVX512F__)
enum { BYTES = 64, TALL = 4 }; /* of a vector; rows of a tile of the dense product */
#elif defined(__AVX__)
enum { BYTES = 32, TALL = 2 };
#else
enum { BYTES = 16, TALL = 2 };
#endif

/* The next `count` elements of scratch memory, at a cache line. */
#define TAKE(type, count) (type *)(memory = (char *)(((uintptr_t)memory + 63) & ~(uintptr_t)63), memory += (count) * sizeof(type), memory - (count) * sizeof(type))

#define BODY "recurrent.c"
#include "types.h"

#else

#include "lif_step.h"

typedef REAL NAME(Vector) __attribute__((vector_size(BYTES)));
enum { NAME(LANES) = BYTES / sizeof(REAL), NAME(WIDE) = COLUMNS * sizeof(REAL) / BYTES };

/* The samples a thread works on, and its part of the scratch memory. */
typedef struct {
    Job job;                      /* its own, so that pointers can lead into the scratch memory */
    int64_t start, end, samples;  /* elements of a timestep */
    REAL *state, *i, *w;          /* v, i and w, or their gradients */
    REAL *w_before;               /* needs_w: w before each timestep, [T, samples, neurons] */
    REAL *total;                  /* [samples, panels x COLUMNS]: sums of a product */
    REAL *before;                 /* [samples, neurons]: gradients of the next timestep */
    REAL *u;                      /* [samples, neurons]: membranes of a timestep */
    IO *row;                      /* [samples, neurons]: input of a timestep, or gradient of spikes, */
    IO *out;                      /* and its spikes, or gradient of the input */
    int32_t *spikes;              /* [samples, neurons]: where the spikes are */
    int64_t fired, failed;        /* spikes in the bits, and whether one is NaN */
    int count[64];                /* of spikes of a sample */
    REAL doubt[64];               /* 0, or NaN if a spike of the sample is NaN */
    NAME(Block) block;
} NAME(Task);

ALWAYS NAME(Vector) NAME(times)(NAME(Vector) a, REAL b, NAME(Vector) sum) {
#if defined(__AVX512F__)
    if (sizeof(REAL) == 8) return (NAME(Vector))_mm512_fmadd_pd((__m512d)a, _mm512_set1_pd(b), (__m512d)sum);
    return (NAME(Vector))_mm512_fmadd_ps((__m512)a, _mm512_set1_ps((float)b), (__m512)sum);
#elif defined(__FMA__)
    if (sizeof(REAL) == 8) return (NAME(Vector))_mm256_fmadd_pd((__m256d)a, _mm256_set1_pd(b), (__m256d)sum);
    return (NAME(Vector))_mm256_fmadd_ps((__m256)a, _mm256_set1_ps((float)b), (__m256)sum);
#else
    return a * b + sum;
#endif
}

static inline void NAME(begin)(const Recurrent *r, int64_t chunk, NAME(Task) *k) {
    char *memory = (char *)r->p_scratch + this_thread() * recurrent_scratch(r);
    const int64_t first = chunk * r->rows, wide = (r->neurons + COLUMNS - 1) / COLUMNS * COLUMNS;
    k->job = r->neuron;
    k->job.streams = 0; /* what leaves the scratch memory may bypass the cache: depart, release */
    k->fired = k->failed = 0;
    k->samples = min(r->rows, r->samples - first);
    k->start = first * r->neurons;
    k->end = k->start + k->samples * r->neurons;
    k->state = TAKE(REAL, r->rows * r->neurons);
    k->i = TAKE(REAL, r->rows * r->neurons);
    k->w = TAKE(REAL, r->rows * r->neurons);
    k->total = TAKE(REAL, r->rows * wide);
    k->before = TAKE(REAL, r->rows * r->neurons);
    k->u = TAKE(REAL, r->rows * r->neurons);
    k->row = TAKE(IO, r->rows * r->neurons);
    k->out = TAKE(IO, r->rows * r->neurons);
    k->spikes = TAKE(int32_t, r->rows * r->neurons + EXTRA);
    NAME(constants)(&k->job, 0, BLOCK, k->block.table);
    if (k->job.adapts) NAME(adaptation)(&k->job, 0, BLOCK, k->block.adaptation);
    k->w_before = needs_w(&k->job) ? TAKE(REAL, k->job.T * r->rows * r->neurons) : 0;
}

/* Row 1 of a state [2, N]: that of w. */
static inline void *NAME(second)(const NAME(Task) *k, const void *state) {
    return state && k->job.adapts ? (REAL *)state + k->job.N : 0;
}

/* The state of a neuron or synapse at the beginning of a task. */
static inline void NAME(initial)(const void *p, const NAME(Task) *k, REAL *state) {
    const int64_t size = (k->end - k->start) * sizeof(REAL);
    if (p) memcpy(state, (const REAL *)p + k->start, size);
    else memset(state, 0, size);
}

static inline void NAME(final)(void *p, const NAME(Task) *k, const REAL *state) {
    if (p) memcpy((REAL *)p + k->start, state, (k->end - k->start) * sizeof(REAL));
}

/* Enters the block at element o for step t. Every timestep has a mask of its own, whose index
   begins at 0. */
static inline void NAME(at)(const Recurrent *r, int64_t t, int64_t o, NAME(Task) *k) {
    NAME(enter)(&k->job, o, k->end, &k->block);
    if (!k->job.masked) return;
    k->block.base -= t * k->job.N;
    k->job.seed = r->p_seeds[t];
}

/* -------------------------------------------------------------------------------------- forward */

/* Lists the spikes of step t of each sample, and writes their bits. */
static inline void NAME(list)(const Recurrent *r, const IO *s, int64_t t, NAME(Task) *k) {
    const int n = (int)r->neurons;
    const IO one = NAME(narrow)(1);
    uint64_t pattern = 0, wrong;
    memcpy(&pattern, &one, sizeof one);
    uint8_t *bits = r->p_bits && t >= 0 ? r->p_bits + (t * k->job.N + k->start) / 8 : 0;
    for (int64_t row = 0; row < k->samples; row++, s += n) {
        int32_t *const first = k->spikes + row * n, *index = first;
        k->doubt[row] = 0;
        for (int i = 0; i < n; i += 64) {
            const int count = n - i < 64 ? n - i : 64;
            IO rest[64] = {0};
            if (count < 64) memcpy(rest, s + i, count * sizeof(IO));
            const uint64_t set = ones_of(count < 64 ? rest : s + i, sizeof(IO), pattern, &wrong);
            if (wrong) for (int e = i; e < i + count; e++) k->doubt[row] += NAME(doubt)(NAME(widen)(s[e]));
            if (bits) memcpy(bits, &set, count / 8), bits += count / 8;
            index = list_ones(set, i, index);
        }
        k->count[row] = (int)(index - first);
        k->fired += bits ? k->count[row] : 0;
        k->failed |= k->doubt[row] != 0;
    }
}

/* total = bias + the sum of the rows of the panel at the spikes, for one panel of columns */
static inline void NAME(gather)(const Recurrent *r, int64_t panel, int64_t wide, NAME(Task) *k) {
    const NAME(Vector) *w = (const NAME(Vector) *)r->p_panels + panel * r->neurons * NAME(WIDE);
    for (int64_t row = 0; row < k->samples; row++) {
        const int32_t *index = k->spikes + row * r->neurons;
        NAME(Vector) *y = (NAME(Vector) *)(k->total + row * wide + panel * COLUMNS), sum[NAME(WIDE)] = {0};
        if (r->p_bias) memcpy(sum, (const REAL *)r->p_bias + panel * COLUMNS, sizeof sum);
        for (int e = 0; e < k->count[row]; e++) {
            const NAME(Vector) *a = w + (int64_t)index[e] * NAME(WIDE);
            for (int v = 0; v < NAME(WIDE); v++) sum[v] += a[v];
        }
        for (int v = 0; v < NAME(WIDE); v++) y[v] = sum[v];
    }
}

/* The current of step t, in `row`. */
static inline void NAME(current)(const Recurrent *r, int64_t t, int64_t wide, NAME(Task) *k) {
    const int n = (int)r->neurons;
    if (t + 1 < k->job.T) ahead((const IO *)r->p_input + (t + 1) * r->input_stride + k->start, (k->end - k->start) * sizeof(IO));
    for (int64_t panel = 0; panel < wide / COLUMNS; panel++) NAME(gather)(r, panel, wide, k);
    const IO *x = (const IO *)r->p_input + t * r->input_stride + k->start;
    IO *out = r->p_current ? (IO *)r->p_current + t * k->job.N + k->start : k->row;
    const REAL lam = (REAL)r->lam_s, gain = (REAL)r->gain_s;
    for (int64_t row = 0; row < k->samples; row++, x += n, out += n) {
        const REAL *sum = k->total + row * wide, doubt = k->doubt[row];
        REAL *current = k->i + row * n;
        SIMD EACH out[i] = NAME(narrow)(NAME(widen)(x[i]) + (sum[i] + doubt));
        if (!r->synapse) continue;
        SIMD EACH {
            current[i] = lam * current[i] + gain * NAME(widen)(out[i]);
            out[i] = NAME(narrow)(current[i]);
        }
    }
}

/* Writes spikes and membranes of step t. */
static inline void NAME(release)(const Recurrent *r, int64_t t, NAME(Task) *k) {
    const int64_t n = k->end - k->start, at = t * r->neuron.N + k->start;
    deliver(&r->neuron, (IO *)r->neuron.p_s + at, k->out, n * sizeof(IO));
    if (r->neuron.p_u) deliver(&r->neuron, (REAL *)r->neuron.p_u + at, k->u, n * sizeof(REAL));
}

/* Returns how many bits it has set in p_bits; -1 if a spike is NaN, which a bit cannot say. */
int64_t NAME(recurrent_forward)(const Recurrent *r) {
    int64_t fired = 0, failed = 0;
    const int64_t K = 2 * r->neuron.T * r->neuron.C, wide = (r->neurons + COLUMNS - 1) / COLUMNS * COLUMNS;
    _Pragma("omp parallel num_threads(r->neuron.threads) if (r->neuron.threads > 1)") {
        NAME(Task) k;
        _Pragma("omp for schedule(dynamic, 1)") for (int64_t chunk = 0; chunk < r->neuron.chunks; chunk++) {
            NAME(begin)(r, chunk, &k);
            double *sums = k.job.p_partial ? k.job.p_partial + chunk * K : 0;
            NAME(initial)(r->p_i0, &k, k.i);
            NAME(initial)(NAME(second)(&k, k.job.p_v0), &k, k.w);
            for (int64_t o = k.start; o < k.end; o += BLOCK) NAME(start)(&k.job, o, (int)min(BLOCK, k.end - o), k.state + o - k.start);
            k.job.p_x = r->p_current ? r->p_current : (void *)(k.row - k.start);
            k.job.x_stride = r->p_current ? k.job.N : 0;
            memset(k.count, 0, sizeof k.count);
            memset(k.doubt, 0, sizeof k.doubt);
            if (r->p_before) NAME(list)(r, (const IO *)r->p_before + k.start, -1, &k);
            for (int64_t t = 0; t < k.job.T; t++) {
                NAME(current)(r, t, wide, &k);
                k.job.p_s = k.out - (t * k.job.N + k.start);
                if (r->neuron.p_u) k.job.p_u = k.u - (t * k.job.N + k.start);
                for (int64_t o = k.start; o < k.end; o += BLOCK) {
                    NAME(at)(r, t, o, &k);
                    memcpy(k.block.v, k.state + o - k.start, k.block.n * sizeof(REAL));
                    if (k.job.adapts) memcpy(k.block.w, k.w + o - k.start, k.block.n * sizeof(REAL));
                    NAME(step_forward)(&k.job, t, &k.block, sums);
                    memcpy(k.state + o - k.start, k.block.v, k.block.n * sizeof(REAL));
                    if (k.job.adapts) memcpy(k.w + o - k.start, k.block.w, k.block.n * sizeof(REAL));
                }
                NAME(list)(r, k.out, t, &k);
                NAME(release)(r, t, &k);
            }
            streamed();
            _Pragma("omp atomic") fired += k.fired;
            _Pragma("omp atomic") failed += k.failed;
            NAME(final)(k.job.p_v, &k, k.state);
            NAME(final)(NAME(second)(&k, k.job.p_v), &k, k.w);
            NAME(final)(r->p_i, &k, k.i);
        }
    }
    if (r->neuron.p_partial) merge(&r->neuron, K);
    return failed ? -1 : fired;
}

/* ------------------------------------------------------------------------------------- backward */

/* total = before @ W for one panel of columns */
static inline void NAME(product)(const Recurrent *r, int64_t panel, int64_t wide, NAME(Task) *k) {
    enum { V = 4, TILES = NAME(WIDE) > V ? NAME(WIDE) / V : 1 };
    const NAME(Vector) *w = (const NAME(Vector) *)r->p_panels + panel * r->neurons * NAME(WIDE);
    const int64_t n = r->neurons;
    for (int64_t tile = 0; tile < TILES; tile++)
        for (int64_t row = 0; row < k->samples; row += TALL) {
            /* beyond the last sample its rows are computed again */
            const REAL *g[TALL];
            NAME(Vector) sum[TALL][V] = {0};
            for (int m = 0; m < TALL; m++) g[m] = k->before + min(row + m, k->samples - 1) * n;
            for (int64_t c = 0; c < n; c++) {
                const NAME(Vector) *a = w + c * NAME(WIDE) + tile * V;
                for (int m = 0; m < TALL; m++)
                    for (int v = 0; v < V; v++) sum[m][v] = NAME(times)(a[v], g[m][c], sum[m][v]);
            }
            for (int m = 0; m < TALL && row + m < k->samples; m++)
                memcpy(k->total + (row + m) * wide + panel * COLUMNS + tile * V * NAME(LANES), sum[m], sizeof sum[m]);
        }
}

ALWAYS REAL NAME(dot)(const REAL *a, const REAL *b, int64_t n) {
    enum { V = 4 };
    NAME(Vector) s[V] = {0}, p, q;
    REAL sum = 0, last[NAME(LANES)];
    int64_t i = 0;
    for (; i + V * NAME(LANES) <= n; i += V * NAME(LANES))
        for (int v = 0; v < V; v++) {
            memcpy(&p, a + i + v * NAME(LANES), sizeof p);
            memcpy(&q, b + i + v * NAME(LANES), sizeof q);
            s[v] += p * q;
        }
    p = (s[0] + s[1]) + (s[2] + s[3]);
    memcpy(last, &p, sizeof p);
    for (int v = 0; v < NAME(LANES); v++) sum += last[v];
    for (; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* Bits at ... at + n - 1, n <= 56; bytes beyond the end are not read. */
static inline uint64_t NAME(bits_at)(const uint8_t *bits, int64_t bytes, int64_t at, int64_t n) {
    uint64_t w = 0;
    memcpy(&w, bits + at / 8, min(8, bytes - at / 8));
    return w >> at % 8 & (((uint64_t)1 << n) - 1);
}

/* Whether few enough elements of step t are active to compute these alone. */
static inline int NAME(few)(const Recurrent *r, const uint8_t *bits, const NAME(Task) *k) {
    int64_t set = 0;
    for (int64_t byte = k->start / 8; byte < (k->end + 7) / 8; byte++) set += __builtin_popcount(bits[byte]);
    return r->p_turned && set * SPARSE * (r->neurons + START) < (k->end - k->start) * r->neurons;
}

/* total = before @ W where bits are set, else 0 */
static inline void NAME(sampled)(const Recurrent *r, const uint8_t *bits, int64_t wide, NAME(Task) *k) {
    const int64_t n = r->neurons, bytes = (k->job.N + 7) / 8;
    memset(k->total, 0, k->samples * wide * sizeof(REAL));
    for (int64_t c = 0; c < n; c += KEYS)
        for (int64_t row = 0; row < k->samples; row++) {
            uint64_t w = NAME(bits_at)(bits, bytes, k->start + row * n + c, min(KEYS, n - c));
            for (; w; w &= w - 1) {
                const int64_t column = c + __builtin_ctzll(w);
                k->total[row * wide + column] = NAME(dot)(k->before + row * n, (const REAL *)r->p_turned + column * n, n);
            }
        }
}

/* The gradient of the spikes of step t, in `row`: the one that arrives, and the one through step
   t + 1, whose gradients of the input are in `before`. */
static inline void NAME(arrive)(const Recurrent *r, int64_t t, int64_t wide, NAME(Task) *k) {
    const int64_t last = t == k->job.T - 1;
    const uint8_t *bits = k->job.p_active ? k->job.p_active + t * ((k->job.N + 7) / 8) : 0;
    const int n = (int)r->neurons;
    if (!last && bits && NAME(few)(r, bits, k)) NAME(sampled)(r, bits, wide, k);
    else if (!last) for (int64_t panel = 0; panel < wide / COLUMNS; panel++) NAME(product)(r, panel, wide, k);
    for (int64_t row = 0; row < k->samples; row++) {
        const REAL *sum = k->total + row * wide;
        const IO *g = r->neuron.p_g ? (const IO *)r->neuron.p_g + t * r->neuron.g_stride + k->start + row * n : 0;
        IO *out = k->row + row * n;
        if (g && !last) SIMD EACH out[i] = NAME(narrow)(NAME(widen)(g[i]) + sum[i]);
        else if (g) memcpy(out, g, n * sizeof(IO));
        else if (!last) SIMD EACH out[i] = NAME(narrow)(sum[i]);
        else memset(out, 0, n * sizeof(IO));
    }
}

/* Prefetches what the backward pass reads at step t. */
static inline void NAME(fetch_back)(const Recurrent *r, int64_t t, const NAME(Task) *k) {
    const int64_t n = k->end - k->start, at = t * k->job.N + k->start;
    if (!r->neuron.streams) ahead((const IO *)r->neuron.p_gx + at, n * sizeof(IO));
    if (r->neuron.p_g) ahead((const IO *)r->neuron.p_g + t * r->neuron.g_stride + k->start, n * sizeof(IO));
    if (k->job.keeps == KEEPS_U) ahead((const REAL *)k->job.p_u + at, n * sizeof(REAL));
    if (k->job.keeps == KEEPS_BF16) ahead((const uint16_t *)k->job.p_kept + at, n * sizeof(uint16_t));
    if (k->job.keeps == KEEPS_8BIT) ahead((const uint8_t *)k->job.p_kept + at, n);
}

/* Takes the gradient of the current of step t through the synapse; `before` gets that of x, which is
   written. */
static inline void NAME(depart)(const Recurrent *r, int64_t t, NAME(Task) *k) {
    const int n = (int)(k->end - k->start);
    IO *gx = k->out;
    const REAL lam = (REAL)r->lam_s, gain = (REAL)r->gain_s;
    if (r->synapse) SIMD EACH {
        const REAL sum = NAME(widen)(gx[i]) + k->i[i];
        k->i[i] = lam * sum;
        gx[i] = NAME(narrow)(gain * sum);
    }
    SIMD EACH k->before[i] = NAME(widen)(gx[i]);
    deliver(&r->neuron, (IO *)r->neuron.p_gx + t * k->job.N + k->start, gx, n * sizeof(IO));
}

/* Computes w of all timesteps of the task again. */
static inline void NAME(replay_w)(NAME(Task) *k) {
    k->block.w_stride = k->end - k->start;
    for (int64_t o = k->start; o < k->end; o += BLOCK) {
        NAME(enter)(&k->job, o, k->end, &k->block);
        NAME(replay)(&k->job, k->w_before + o - k->start, &k->block);
    }
}

void NAME(recurrent_backward)(const Recurrent *r) {
    const int64_t K = gradients(&r->neuron) * (r->neuron.per_channel ? r->neuron.C : 1), wide = (r->neurons + COLUMNS - 1) / COLUMNS * COLUMNS;
    _Pragma("omp parallel num_threads(r->neuron.threads) if (r->neuron.threads > 1)") {
        NAME(Task) k;
        _Pragma("omp for schedule(dynamic, 1)") for (int64_t chunk = 0; chunk < r->neuron.chunks; chunk++) {
            NAME(begin)(r, chunk, &k);
            double *sums = k.job.p_partial ? k.job.p_partial + chunk * K : 0;
            NAME(initial)(k.job.p_gv, &k, k.state);
            NAME(initial)(NAME(second)(&k, k.job.p_gv), &k, k.w);
            NAME(initial)(r->p_i0, &k, k.i); /* the gradient of the last i */
            if (k.w_before) NAME(replay_w)(&k);
            k.job.p_g = k.row - k.start;
            k.job.g_stride = 0;
            k.job.p_x = r->p_current;
            k.job.x_stride = k.job.N;
            for (int64_t t = k.job.T - 1; t >= 0; t--) {
                if (t) NAME(fetch_back)(r, t - 1, &k);
                NAME(arrive)(r, t, wide, &k);
                k.job.p_gx = k.out - (t * k.job.N + k.start);
                for (int64_t o = k.start; o < k.end; o += BLOCK) {
                    NAME(at)(r, t, o, &k);
                    memcpy(k.block.c, k.state + o - k.start, k.block.n * sizeof(REAL));
                    if (k.job.adapts) memcpy(k.block.k, k.w + o - k.start, k.block.n * sizeof(REAL));
                    k.block.w_before = k.w_before ? k.w_before + o - k.start : 0;
                    if (k.block.n == BLOCK && NAME(retreats)(&k.job)) NAME(step_back_fused)(&k.job, t, &k.block);
                    else NAME(step_back)(&k.job, t, &k.block, sums);
                    memcpy(k.state + o - k.start, k.block.c, k.block.n * sizeof(REAL));
                    if (k.job.adapts) memcpy(k.w + o - k.start, k.block.k, k.block.n * sizeof(REAL));
                }
                NAME(depart)(r, t, &k);
            }
            streamed();
            NAME(final)(k.job.p_gv0, &k, k.state);
            NAME(final)(NAME(second)(&k, k.job.p_gv0), &k, k.w);
            NAME(final)(r->p_i, &k, k.i);
        }
    }
    if (r->neuron.p_partial) merge(&r->neuron, K);
}

#endif
