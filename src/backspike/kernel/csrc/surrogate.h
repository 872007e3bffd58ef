/* The surrogate derivatives h(z), z = u - theta, of the classes in surrogate.py. A class has its
   code here and passes its constants (`Family.constants`), so none of them is computed again in C.

   A new surrogate is a name in SURROGATES and a case in `h`. lif.h includes this file for the
   declarations; step.h includes it for the functions, once per pair of types. */

#ifndef BACKSPIKE_SURROGATE_H
#define BACKSPIKE_SURROGATE_H

/* All of them, in the order of their codes, which begin at 1. */
#define SURROGATES(CASE) \
    CASE(TRIANGLE) CASE(ATAN) CASE(RECTANGLE) CASE(SIGMOID) \
    CASE(SUPERSPIKE) CASE(PIECEWISE_EXPONENTIAL) CASE(ERF) CASE(DSPIKE)

/* Those for which fused.h has a loop of its own. */
#define FUSED(CASE) CASE(TRIANGLE) CASE(ATAN) CASE(RECTANGLE) CASE(SUPERSPIKE)

#define COUNT(CODE) CODE,
enum { NO_SURROGATE, SURROGATES(COUNT) };
#undef COUNT

typedef struct {
    int64_t code;
    double constants[3]; /* a, b and c of `h` */
} Surrogate;

#endif

#ifdef REAL

/* exp(x) for x <= 0, within a few units in the last place: 2^k times a Taylor polynomial. Unlike
   the exp of libm it can be vectorised. */
ALWAYS REAL NAME(exp_below_0)(REAL x) {
    const int wide = sizeof(REAL) == 8, mantissa = wide ? 52 : 23;
    const REAL lowest = wide ? -708 : -87;
    /* adding it rounds to an integer, which is then in the low bits */
    const REAL big = (REAL)3 * ((BITS)1 << (mantissa - 1));
    x = x < lowest ? lowest : x;
    union { REAL value; BITS bits; } k = {.value = x * (REAL)1.4426950408889634 + big}, power;
    /* ln 2 in two parts, the first so short that its product is exact */
    const REAL r = (x - (k.value - big) * (REAL)0.693145751953125) - (k.value - big) * (REAL)1.4286068203094172e-06;
    REAL y = 1;
    if (wide)
        for (int term = 13; term > 7; term--) y = 1 + y * (r * (REAL)(1.0 / term));
    for (int term = 7; term > 0; term--) y = 1 + y * (r * (REAL)(1.0 / term));
    power.bits = (k.bits + (wide ? 1023 : 127)) << mantissa;
    return y * power.value;
}

/* sig(x) sig(-x) for x <= 0 */
ALWAYS REAL NAME(slope)(REAL x) {
    const REAL e = NAME(exp_below_0)(x);
    return e / ((1 + e) * (1 + e));
}

/* The formulas of surrogate.py with torch's order of operations (b / y is 1 / y * b there); sigmoid
   and tanh are written with exp. */
ALWAYS REAL NAME(h)(const int code, const REAL a, const REAL b, const REAL c, REAL z) {
    const REAL size = (REAL)fabs(z), left = c - a * size;
    switch (code) {
    case TRIANGLE: return NAME(higher)(0, left) * b;
    case ATAN: return 1 / (1 + (z * a) * (z * a)) * b;
    case RECTANGLE: return size < a ? b : 0;
    case SIGMOID: return NAME(slope)(size * a) * b;
    case SUPERSPIKE: return 1 / ((1 + a * size) * (1 + a * size)) * b;
    case PIECEWISE_EXPONENTIAL: return NAME(exp_below_0)(size * a) * b;
    case ERF: return NAME(exp_below_0)(-((z * a) * (z * a))) * b;
    case DSPIKE: return size < (REAL)0.5 ? NAME(slope)(size * a) * b : 0;
    }
    return 0;
}

/* The constants of a surrogate, rounded once. */
#define CONSTANTS_OF(p) \
    const REAL a = (REAL)(p)->constants[0], b = (REAL)(p)->constants[1], c = (REAL)(p)->constants[2]

/* h[i] = h(u - theta), or h((u - theta) / w) / w with a width w */
static inline void NAME(derivative)(const Surrogate *p, const REAL *u, const REAL *theta, const REAL *w, REAL *h, int n) {
    CONSTANTS_OF(p);
#define DERIVATIVE(CODE) \
    case CODE: \
        if (w) SIMD EACH h[i] = NAME(h)(CODE, a, b, c, (u[i] - theta[i]) / w[i]) / w[i]; \
        else SIMD EACH h[i] = NAME(h)(CODE, a, b, c, u[i] - theta[i]); \
        break;
    switch (p->code) { SURROGATES(DERIVATIVE) }
#undef DERIVATIVE
}

#endif
