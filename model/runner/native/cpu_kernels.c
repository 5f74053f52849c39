/* What a decoder layer does between its matrix products, for CPUs, in one pass each.
 *
 * Plain C without torch's headers: the Python side hands over addresses. Every function exists for
 * float (suffix _f32) and bfloat16 (_bf16); sums are taken in float. Rows are shared out among
 * OpenMP's threads.
 */

#include <math.h>

#include "elements.h"

/* The compiler's own vectors, as wide as the processor that runs this has them. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define KERNEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define KERNEL
#endif

/* Tokens whose scores are held at once, and query heads that share a key head. */
#define TILE 32
#define CACHE_LINE 64
#define MAX_GROUP 32
#define MAX_HEAD_DIM 256

/* exp for x <= 0, to two units in the last place; vectorises, unlike libm's. */
INLINE float exp_negative(float x) {
    float whole = floorf(x * 1.44269504f + 0.5f);
    whole = whole < -126.0f ? -126.0f : whole;
    /* The logarithm of 2 in two parts, of which the first times a whole number is exact. As calls,
     * because sums may be compiled in any order, which lets them vectorise. */
    float rest = fmaf(whole, 2.12194440e-4f, fmaf(whole, -0.693359375f, x));
    float power = 1.0f / 5040;
    power = power * rest + 1.0f / 720;
    power = power * rest + 1.0f / 120;
    power = power * rest + 1.0f / 24;
    power = power * rest + 1.0f / 6;
    power = power * rest + 0.5f;
    power = power * rest + 1.0f;
    power = power * rest + 1.0f;
    uint32_t bits = (uint32_t)((int32_t)whole + 127) << 23;
    float two;
    memcpy(&two, &bits, sizeof two);
    return x < -87.0f ? 0.0f : power * two;
}

#define EACH_ELEMENT "cpu_kernels.inc"
#include "each_element.h"
