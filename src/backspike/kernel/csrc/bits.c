/* A matrix of bits in the two forms that products with it read: words of STEP bits, in which the
   words of all rows are side by side, and a list of the set bits of each row. */

#include "bits.h"

enum { WORD = 56, EAGER = 4, ROWS = 64 }; /* bits read, indices written, and rows of a task */
#define TOP ((uint64_t)1 << 63) /* ctz of 0 is undefined */

int64_t sparse_step(void) { return STEP; }

static void row_words(const Bits *b, int64_t s, uint32_t *words) {
    const int64_t n = min(STEP, b->K - s * STEP);
    for (int64_t r = 0; r < b->M; r++) words[r] = bits_at(b->p_bits, b->M * b->K, r * b->K + s * STEP, n);
}

static void column_words(const Bits *b, int64_t s, uint32_t *words) {
    memset(words, 0, b->K * sizeof(uint32_t));
    for (int64_t m = s * STEP; m < min(b->M, (s + 1) * STEP); m++) {
        const uint32_t bit = (uint32_t)1 << (m - s * STEP);
        for (int64_t k = 0; k < b->K; k += 32) {
            const uint32_t w = bits_at(b->p_bits, b->M * b->K, m * b->K + k, min(32, b->K - k));
            const int n = (int)min(32, b->K - k);
            if (n == 32) for (int i = 0; i < 32; i++) words[k + i] |= w & (uint32_t)1 << i ? bit : 0;
            else EACH words[k + i] |= w & (uint32_t)1 << i ? bit : 0;
        }
    }
}

void sparse_words(const Bits *b) {
    const int64_t R = b->transposed ? b->K : b->M, C = b->transposed ? b->M : b->K;
    _Pragma("omp parallel for num_threads(b->threads) if (b->threads > 1) schedule(static)")
    for (int64_t s = 0; s < (C + STEP - 1) / STEP; s++)
        (b->transposed ? column_words : row_words)(b, s, b->p_words + s * R);
}

/* The lists of these rows. A loop that ends with the last bit of a word is mispredicted nearly every
   time. So EAGER indices are written, needed or not; the next ones overwrite what was too much. */
static void list_rows(const Bits *b, int64_t first, int64_t beyond) {
    int32_t *index = b->p_index + b->p_start[first], *const end = b->p_index + b->p_start[beyond];
    for (int64_t r = first; r < beyond; r++)
        for (int64_t k = 0; k < b->K; k += WORD) {
            uint64_t w = bits_at(b->p_bits, b->M * b->K, r * b->K + k, min(WORD, b->K - k));
            int32_t *const next = index + __builtin_popcountll(w);
            if (end - index >= EAGER) {
                for (int i = 0; i < EAGER; i++, w &= w - 1) index[i] = (int32_t)k + __builtin_ctzll(w | TOP);
                index += EAGER;
            }
            for (; index < next; w &= w - 1) *index++ = (int32_t)k + __builtin_ctzll(w);
            index = next;
        }
}

/* The lists of the columns, from their words, 16 columns at a time: their words are in one cache
   line. */
static void column_lists(const Bits *b) {
    const int64_t steps = (b->M + STEP - 1) / STEP;
    for (int64_t s = 0; s < steps; s++)
        for (int64_t r = 0; r < b->K; r++) b->p_start[r + 1] += __builtin_popcount(b->p_words[s * b->K + r]);
    for (int64_t r = 0; r < b->K; r++) b->p_start[r + 1] += b->p_start[r];
    _Pragma("omp parallel for num_threads(b->threads) if (b->threads > 1) schedule(static)")
    for (int64_t first = 0; first < b->K; first += 16) {
        const int64_t n = min(16, b->K - first);
        int64_t at[16];
        memcpy(at, b->p_start + first, n * sizeof(int64_t));
        for (int64_t s = 0; s < steps; s++)
            for (int64_t r = 0; r < n; r++)
                for (uint32_t w = b->p_words[s * b->K + first + r]; w; w &= w - 1)
                    b->p_index[at[r]++] = (int32_t)(s * STEP + __builtin_ctz(w));
    }
}

static void row_lists(const Bits *b) {
    _Pragma("omp parallel for num_threads(b->threads) if (b->threads > 1) schedule(static)")
    for (int64_t r = 0; r < b->M; r++) {
        int64_t count = 0;
        for (int64_t k = 0; k < b->K; k += WORD)
            count += __builtin_popcountll(bits_at(b->p_bits, b->M * b->K, r * b->K + k, min(WORD, b->K - k)));
        b->p_start[r + 1] = count;
    }
    for (int64_t r = 0; r < b->M; r++) b->p_start[r + 1] += b->p_start[r];
    _Pragma("omp parallel for num_threads(b->threads) if (b->threads > 1) schedule(static)")
    for (int64_t first = 0; first < b->M; first += ROWS) list_rows(b, first, min(b->M, first + ROWS));
}

/* Lists of the rows, or of the columns if transposed; these need the words. */
void sparse_lists(const Bits *b) {
    memset(b->p_start, 0, ((b->transposed ? b->K : b->M) + 1) * sizeof(int64_t));
    (b->transposed ? column_lists : row_lists)(b);
}
