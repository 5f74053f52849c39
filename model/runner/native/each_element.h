/* Includes the file EACH_ELEMENT twice, for float and for bfloat16.
 *
 * It finds NAME, which gives a function the element's suffix; ELEMENT, as it lies in memory, LOAD and
 * STORE, to float and back; and DEPTH_STEP, the elements of a product's depth that are taken in one.
 */

#define NAME(name) name##_f32
#define ELEMENT float
#define LOAD(x) (x)
#define STORE(x) (x)
#define DEPTH_STEP 1
#include EACH_ELEMENT
#undef NAME
#undef ELEMENT
#undef LOAD
#undef STORE
#undef DEPTH_STEP

#define NAME(name) name##_bf16
#define ELEMENT uint16_t
#define LOAD(x) bf16_to_float(x)
#define STORE(x) float_to_bf16(x)
#define DEPTH_STEP 2
#include EACH_ELEMENT
