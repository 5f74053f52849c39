/* The blocks of the vision tower, one call for all of them.
 *
 * Between two attentions every product is of a row with weights alone: a task takes some rows through
 * all of them while they lie in its core's cache, and weights pass by.
 */

#include <math.h>

#include "wide.h"

#ifdef HAS_WIDE

#include "team.h"

/* What a block holds; norms: elements, products: packed weights, their biases: floats. */
struct block {
    const void *attention_norm, *attention_norm_bias, *qkv, *out, *mlp_norm, *mlp_norm_bias, *up, *down;
    const float *qkv_bias, *out_bias, *up_bias, *down_bias;
};

struct tower {
    int64_t num_blocks, hidden_size, num_heads, head_dim, intermediate_size;
    float attention_eps, mlp_eps;
};

/* One call. hidden: [num_rows, hidden_size], changed in place; qkv, attended: room for as many rows
 * taps: for each block where hidden is copied after it, or null
 * cos, sin: [num_rows, head_dim / 2]; spans, layout, chunk: see wide_attention.inc
 * cached: for each thread, room for task_rows rows of hidden_size + intermediate_size */
struct pictures {
    int64_t num_rows, num_spans, chunk, task_rows;
    void *hidden, *qkv, *attended, *cached;
    void *const *taps;
    const void *cos, *sin, *spans, *layout;
};

#define EACH_ELEMENT "wide_vision.inc"
#include "each_element.h"

#endif
