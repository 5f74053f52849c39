/* What the kernels for processors with 512-bit vectors share: a register tile and an exponential.
 *
 * A tile is ROWS rows of a by COLUMNS columns of b, held in registers while one pass over the depth
 * sums it up. b comes packed: 64 columns side by side, and of bfloat16 two steps of the depth
 * together, as the processor's dot product takes them.
 */

#ifndef WIDE_H
#define WIDE_H

#include "elements.h"

#if defined(__x86_64__) && defined(__GNUC__) && defined(__gnu_linux__)
#define HAS_WIDE 1
#include <immintrin.h>

/* Compiled for these processors whatever the rest is compiled for; who calls has asked usable_*. */
#define WIDE __attribute__((target("arch=x86-64-v4,avx512bf16,prefer-vector-width=512")))

#define ROWS 6
#define VECTORS 4
#define LANES 16
#define COLUMNS (VECTORS * LANES)

/* What a product does with its result. */
enum activation { NONE, GELU_TANH, SWIGLU };

typedef float vec __attribute__((vector_size(64)));
typedef vec tile[ROWS][VECTORS];

INLINE WIDE vec splat(float value) { return (vec)_mm512_set1_ps(value); }
INLINE WIDE vec load_floats(const float *from) { return (vec)_mm512_loadu_ps(from); }
INLINE WIDE void store_floats(float *to, vec value) { _mm512_storeu_ps(to, (__m512)value); }

INLINE WIDE vec load_f32(const float *from) { return load_floats(from); }
INLINE WIDE void store_f32(float *to, vec value) { store_floats(to, value); }

INLINE WIDE vec load_bf16(const uint16_t *from) {
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return (vec)_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

INLINE WIDE void store_bf16(uint16_t *to, vec value) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh((__m512)value));
}

/* LANES floats, or twice as many bfloat16, as they lie in memory; and the sums of such products. */
INLINE WIDE vec raw_f32(const float *from) { return load_floats(from); }
INLINE WIDE vec raw_bf16(const uint16_t *from) { return (vec)_mm512_loadu_si512(from); }
INLINE WIDE vec dot_f32(vec sums, vec a, vec b) { return sums + a * b; }
INLINE WIDE vec dot_bf16(vec sums, vec a, vec b) {
    return (vec)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
}

/* sums += a @ b. a: rows of depth elements, row_size apart; b: a packed panel's depth steps, each
 * b_size elements after the one before. Fetching ahead by hand was measured and is slower. */
INLINE WIDE void multiply_f32(tile sums, int rows, const float *a, int64_t row_size, const float *b,
                              int64_t b_size, int64_t depth) {
    for (int64_t k = 0; k < depth; k++) {
        vec column[VECTORS];
        for (int c = 0; c < VECTORS; c++) column[c] = load_floats(b + k * b_size + c * LANES);
        for (int r = 0; r < rows; r++) {
            __m512 x = _mm512_set1_ps(a[r * row_size + k]);
            for (int c = 0; c < VECTORS; c++) {
                sums[r][c] = (vec)_mm512_fmadd_ps(x, (__m512)column[c], (__m512)sums[r][c]);
            }
        }
    }
}

INLINE WIDE void multiply_bf16(tile sums, int rows, const uint16_t *a, int64_t row_size,
                               const uint16_t *b, int64_t b_size, int64_t depth) {
    for (int64_t k = 0; k < depth / 2; k++) {
        __m512bh column[VECTORS];
        for (int c = 0; c < VECTORS; c++) {
            column[c] = (__m512bh)_mm512_loadu_si512(b + k * b_size + c * 2 * LANES);
        }
        for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, a + r * row_size + 2 * k, sizeof pair);
            __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
            for (int c = 0; c < VECTORS; c++) {
                sums[r][c] = (vec)_mm512_dpbf16_ps((__m512)sums[r][c], x, column[c]);
            }
        }
    }
}

/* exp for x <= 0, to two units in the last place; below -200 exactly 0. */
INLINE WIDE vec exp_wide(vec x) {
    __m512 bounded = _mm512_max_ps((__m512)x, _mm512_set1_ps(-200.0f));
    __m512 whole = _mm512_roundscale_ps(bounded * 1.44269504f, _MM_FROUND_TO_NEAREST_INT);
    /* The logarithm of 2 in two parts, of which the first times a whole number is exact. */
    __m512 rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375f), bounded);
    rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(-2.12194440e-4f), rest);
    __m512 power = _mm512_set1_ps(1.0f / 5040);
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.0f / 720));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.0f / 120));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.0f / 24));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.0f / 6));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(0.5f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.0f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.0f));
    return (vec)_mm512_scalef_ps(power, whole);
}

/* 2 ** x for x up to 0, below -200 exactly 0: to 3e-7 of the result for floats, to 8e-5 for what is
 * stored as bfloat16, which keeps 4e-3. Minimax polynomials of 2 ** x on [-0.5, 0.5]. */
INLINE WIDE vec power_of_two(vec x, const float *factors, int degree) {
    __m512 bounded = _mm512_max_ps((__m512)x, _mm512_set1_ps(-200.0f));
    __m512 whole = _mm512_roundscale_ps(bounded, _MM_FROUND_TO_NEAREST_INT);
    __m512 rest = bounded - whole, power = _mm512_set1_ps(factors[0]);
    for (int i = 1; i <= degree; i++) {
        power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(factors[i]));
    }
    return (vec)_mm512_scalef_ps(power, whole);
}

INLINE WIDE vec power_f32(vec x) {
    static const float factors[] = {1.327647671e-3f, 9.675542968e-3f, 5.550713275e-2f,
                                    2.402211969e-1f, 6.931469671e-1f, 1.000000072f};
    return power_of_two(x, factors, 5);
}

INLINE WIDE vec power_bf16(vec x) {
    static const float factors[] = {5.517134030e-2f, 2.426111677e-1f, 6.932610321e-1f,
                                    9.999280723e-1f};
    return power_of_two(x, factors, 3);
}

/* 1 / (1 + exp(-x)), without overflow on either side. */
INLINE WIDE vec sigmoid_wide(vec x) {
    __m512 small = (__m512)exp_wide((vec)_mm512_min_ps((__m512)x, (__m512)-x));
    __mmask16 below = _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_LT_OQ);
    vec above = (vec)_mm512_mask_blend_ps(below, _mm512_set1_ps(1.0f), small);
    return above / (1.0f + (vec)small);
}

#endif
#endif
