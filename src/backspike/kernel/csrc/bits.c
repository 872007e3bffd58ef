/* A matrix of bits in the two forms that products with it read: words of STEP bits, in which the
   words of all rows are side by side, and a list of the set bits of each row. */

#include "bits.h"
#include "ones.h"

enum { WORD = 56, ROWS = 64 }; /* bits read at a time, and rows of a task */

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

/* The lists of these rows; nothing is written behind them. */
static void list_rows(const Bits *b, int64_t first, int64_t beyond) {
    int32_t *index = b->p_index + b->p_start[first], *const end = b->p_index + b->p_start[beyond];
    for (int64_t r = first; r < beyond; r++)
        for (int64_t k = 0; k < b->K; k += WORD) {
            uint64_t w = bits_at(b->p_bits, b->M * b->K, r * b->K + k, min(WORD, b->K - k));
            if (end - index >= 64 + EXTRA) index = list_ones(w, (int32_t)k, index);
            else for (; w; w &= w - 1) *index++ = (int32_t)k + __builtin_ctzll(w);
        }
}

/* Lists the set bits of each row. */
void sparse_lists(const Bits *b) {
    b->p_start[0] = 0;
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
