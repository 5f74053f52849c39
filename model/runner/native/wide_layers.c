/* All decoder layers of one step in one call: Python is not asked between two products, and whoever
 * else wants its lock has it meanwhile.
 */

#include "wide.h"

#ifdef HAS_WIDE

#include "team.h"

/* What a layer holds; norms: elements, products: packed weights. */
struct layer {
    const void *input_norm, *qkv, *qk_norm, *out, *post_norm, *gate_up, *down;
    void *keys, *values;
};

struct model {
    int64_t num_layers, hidden_size, num_heads, num_kv_heads, head_dim, intermediate_size;
    int64_t block_size;
    float eps, scaling;
    const void *final_norm;
};

/* One step. hidden: [num_tokens, hidden_size], changed in place; normal: the same, the result: of
 * num_samples rows where trims is set, else of all
 * cos, sin: [num_tokens, head_dim / 2]; slots: [num_tokens]
 * decode_rows, contexts: [num_decodes]; tables: [num_decodes, table_size]; heads_of_task, spans,
 * span_tables, layout, chunk: see wide_attention.inc
 * image_rows: [num_image_rows]; deepstack: for each of the first layers [num_image_rows, hidden_size]
 * sample_rows: [num_samples], the only ones that the last layer's MLP computes where trims is set
 * qkv, attended, gated: room for num_tokens rows */
struct step {
    int64_t num_tokens, num_decodes, table_size, heads_of_task, num_spans, chunk;
    int64_t num_image_rows, num_deepstack, num_samples, trims;
    void *hidden, *normal, *qkv, *attended, *gated;
    const void *cos, *sin;
    const int64_t *slots, *decode_rows, *contexts;
    const int32_t *tables;
    const void *spans;
    const int32_t *span_tables;
    const void *layout;
    const int64_t *image_rows;
    const void *const *deepstack;
    const int64_t *sample_rows;
};

#define EACH_ELEMENT "wide_layers.inc"
#include "each_element.h"

#endif
