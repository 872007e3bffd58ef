/* The functions that a timestep may call, each vectorised by compilers where libm is not needed.
   Included after step.h. */

#define OF_LIBM(of) \
    ALWAYS REAL NAME(of)(REAL x) { return sizeof(REAL) == 8 ? (REAL)of(x) : (REAL)of##f((float)x); }
OF_LIBM(expm1)
OF_LIBM(log)
OF_LIBM(log1p)
OF_LIBM(sqrt)
OF_LIBM(sin)
OF_LIBM(cos)
OF_LIBM(tanh)
OF_LIBM(atan)
OF_LIBM(floor)
#undef OF_LIBM

ALWAYS REAL NAME(pow)(REAL x, REAL y) { return sizeof(REAL) == 8 ? (REAL)pow(x, y) : (REAL)powf((float)x, (float)y); }
ALWAYS REAL NAME(abs)(REAL x) { return (REAL)fabs(x); }
ALWAYS REAL NAME(maximum)(REAL a, REAL b) { return a > b || a != a ? a : b; }
ALWAYS REAL NAME(minimum)(REAL a, REAL b) { return a < b || a != a ? a : b; }

/* exp_below_0 of surrogate.h for any x. 2^k is multiplied as two powers, so that it overflows only
   where the result does, and a result that is not normal is rounded once. */
ALWAYS REAL NAME(exp)(REAL x) {
    const int wide = sizeof(REAL) == 8, mantissa = wide ? 52 : 23, bias = wide ? 1023 : 127;
    const REAL lowest = wide ? -746 : -104, highest = wide ? 710 : 89, big = (REAL)3 * ((BITS)1 << (mantissa - 1));
    const REAL above = x < lowest ? lowest : x, y = above > highest ? highest : above;
    union { REAL value; BITS bits; } k = {.value = y * (REAL)1.4426950408889634 + big}, half, first, second;
    const REAL n = k.value - big;
    half.value = n * (REAL)0.5 + big;
    const REAL r = (y - n * (REAL)0.693145751953125) - n * (REAL)1.4286068203094172e-06;
    REAL sum = 1;
    if (wide)
        for (int term = 13; term > 7; term--) sum = 1 + sum * (r * (REAL)(1.0 / term));
    for (int term = 7; term > 0; term--) sum = 1 + sum * (r * (REAL)(1.0 / term));
    first.bits = (half.bits + bias) << mantissa;
    second.bits = (k.bits - half.bits + bias) << mantissa;
    return sum * first.value * second.value;
}

ALWAYS REAL NAME(sigmoid)(REAL x) { return 1 / (1 + NAME(exp)(-x)); }
ALWAYS REAL NAME(softplus)(REAL x) { return x > 20 ? x : NAME(log1p)(NAME(exp)(x)); }
