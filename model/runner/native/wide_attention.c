/* Attention for 512-bit vectors: chunks of prompts and single queries over the cache's pages, and
 * the patches of pictures.
 *
 * Where there are many queries, keys and values of one head are packed block by block and stay in
 * cache while all queries of a task pass over them. Source of the running softmax: Milakov and
 * Gimelshein, 2018; of the tiling: Dao et al., FlashAttention, NeurIPS 2022.
 */

#include <math.h>
#include <stdlib.h>

#include "wide.h"

#ifdef HAS_WIDE

/* Keys that are packed at once. */
#define KEY_BLOCK 512
#define MAX_GROUP 32
/* Tokens from one that is packed to one that is called for. */
#define AHEAD 12
#define LOG2_E 1.44269504f

/* One sequence's queries: rows [first_row, first_row + num_tokens) of the batch, the first of them
 * token `start` of its sequence. table: its pages, or -1: its keys are the batch's rows themselves,
 * and every query sees all of them. */
struct span {
    int64_t first_row, num_tokens, start, table;
};

/* What all tasks of a call share; sizes in elements from one token to the next. */
struct layout {
    int64_t query_size, key_size, value_size, out_size;
    int64_t block_size, group, head_dim, padded_dim;
    float scaling;
};

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t parts(int64_t total, int64_t size) { return (total + size - 1) / size; }

/* A buffer of the calling thread, kept for its next task; null without memory. */
static void *scratch(size_t size) {
    static __thread void *buffer;
    static __thread size_t held;
    if (size > held) {
        free(buffer);
        held = 0;
        buffer = aligned_alloc(64, (size + 63) / 64 * 64);
        if (buffer) held = size;
    }
    return buffer;
}

#define EACH_ELEMENT "wide_attention.inc"
#include "each_element.h"

#endif
