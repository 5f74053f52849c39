/* Matrix products with packed weights and what follows them, for 512-bit vectors.
 *
 * out = activation(rows @ weight.T + bias) + plus. A weight lies in panels of COLUMNS outputs, the
 * whole depth of a panel together, so that few rows stream it from memory once and many rows find
 * it in cache.
 */

#include "wide.h"

/* 1 where the processor has the instructions. */
int usable_f32(void) {
#ifdef HAS_WIDE
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
    return 0;
#endif
}

int usable_bf16(void) {
#ifdef HAS_WIDE
    return usable_f32() && __builtin_cpu_supports("avx512bf16");
#else
    return 0;
#endif
}

#ifdef HAS_WIDE

/* Bytes of rows that are worked on while a panel is in cache. */
#define BLOCK_BYTES (1 << 18)

/* x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3)), which is the tanh form of GELU. */
INLINE WIDE vec gelu_tanh(vec x) {
    return x * sigmoid_wide(1.5957691216f * (x + 0.044715f * x * x * x));
}

#define EACH_ELEMENT "wide_products.inc"
#include "each_element.h"

#endif
