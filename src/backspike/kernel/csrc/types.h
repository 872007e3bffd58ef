/* Includes BODY once per pair of types: REAL is the type of the state, IO that of the inputs and
   outputs of a layer (uint16_t: the bits of a bfloat16). NAME(f) is f with the suffix of the pair,
   BITS the unsigned integer of the size of REAL. With NO_BF16, bfloat16 is left out. */

#define REAL double
#define BITS uint64_t
#define IO double
#define NAME(f) f##_f64
#include BODY
#undef REAL
#undef BITS
#undef IO
#undef NAME

#define REAL float
#define BITS uint32_t
#define IO float
#define NAME(f) f##_f32
#include BODY
#undef REAL
#undef BITS
#undef IO
#undef NAME

#ifndef NO_BF16
#define REAL float
#define BITS uint32_t
#define IO uint16_t
#define NAME(f) f##_bf16
#include BODY
#undef REAL
#undef BITS
#undef IO
#undef NAME
#endif
