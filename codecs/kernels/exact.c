/* Sums that do not depend on their order: 128-bit integers, which count steps of 2^-64.
 *
 * Strategy. A value times its weight is a float64, p, rounded as always. Twice p, rounded to an integer k, leaves a
 * rest f = p - k/2 that is exact and at most 1/4 in size; f in steps of 2^-64, rounded to nearest (ties to even), is an
 * integer t. So p on the grid is k * 2^63 + t, without a branch. What follows is integer arithmetic, in which order
 * and grouping make no difference.
 *
 * A mean is the sum divided by a float64. The quotient's upper 64 bits come from a multiplication with the divisor's
 * reciprocal, and are at most 3 too small; where that leaves open how 53 bits of them are rounded, the remainder says.
 */
#include "kernels.h"

#include <math.h>

typedef unsigned __int128 wide;
/* A row of the sums, as it lies in memory: two 64-bit words, the lower one first. */
typedef __int128 tb_sum __attribute__((aligned(8), may_alias));

/* Products from here on are out of range. */
#define LARGEST_PRODUCT 0x1p62

/* Adds to the sums, and to *largest the greatest size of a product, as the bits of a float64; whether a sum left its
 * range. */
TB_INLINE int add_products(const double *products, int64_t count, tb_sum *sums, uint64_t *largest)
{
    uint64_t most = *largest;
    int overflow = 0;
    for (int64_t i = 0; i < count; i++) {
        double p = products[i];
        uint64_t bits;
        memcpy(&bits, &p, 8);
        bits &= INT64_MAX;
        most = bits > most ? bits : most;
        int64_t k = llrint(p + p);
        int64_t t = llrint((p - 0.5 * (double)k) * 0x1p64);
        __int128 value = (__int128)((wide)(__int128)k << 63) + t, sum = sums[i];
        overflow |= __builtin_add_overflow(sum, value, &sum);
        sums[i] = sum;
    }
    *largest = most;
    return overflow;
}

/* sums[i] += weight * values[i] on the grid. TB_NON_FINITE if a value is NaN or Inf, TB_MALFORMED if a product or a sum
 * leaves the range; the sums are then undefined. */
TB_EXPORT int64_t tb_exact_add(int dtype, const void *values, int64_t count, void *sums, double weight)
{
    float chunk[TB_STEP];
    double products[TB_STEP];
    uint64_t largest = 0, limit;
    const double limit_value = LARGEST_PRODUCT;
    memcpy(&limit, &limit_value, 8);
    for (int64_t first = 0; first < count; first += TB_STEP) {
        int64_t n = tb_min(TB_STEP, count - first);
        const void *loaded; /* float64 as they are, all others as float32 */
        tb_prefetch(sums, (first + TB_STEP) * 16, TB_STEP * 16);
        if (dtype == TB_FLOAT64) {
            const tb_any_double *from = (const tb_any_double *)values + first;
            for (int64_t i = 0; i < n; i++)
                products[i] = from[i] * weight;
            loaded = from;
        } else {
            const tb_any_float *from = tb_load(dtype, values, first, n, chunk);
            for (int64_t i = 0; i < n; i++)
                products[i] = (double)from[i] * weight;
            loaded = from;
        }
        int overflow = add_products(products, n, (tb_sum *)sums + first, &largest);
        if (overflow || largest >= limit) {
            double most = tb_largest(dtype == TB_FLOAT64 ? TB_FLOAT64 : TB_FLOAT32, loaded, n);
            return isfinite(most) ? TB_MALFORMED : TB_NON_FINITE;
        }
    }
    return TB_OK;
}

/* sums[i] += others[i]; TB_MALFORMED if a sum leaves the range. */
TB_EXPORT int64_t tb_exact_merge(const void *others, int64_t count, void *sums)
{
    tb_sum *to = (tb_sum *)sums;
    int overflow = 0;
    for (int64_t i = 0; i < count; i++) {
        __int128 other, sum = to[i];
        memcpy(&other, (const char *)others + 16 * i, 16);
        overflow |= __builtin_add_overflow(sum, other, &sum);
        to[i] = sum;
    }
    return overflow ? TB_MALFORMED : TB_OK;
}

/* What is to be divided by: mantissa, of which the upper bit is set, times 2^exponent; and 2^127 / mantissa. */
struct divisor {
    uint64_t mantissa, reciprocal;
    int exponent;
};

static struct divisor divisor_of(double total)
{
    struct divisor by;
    int exponent;
    double fraction = frexp(total, &exponent);
    by.mantissa = (uint64_t)ldexp(fraction, 53) << 11;
    by.exponent = exponent - 64;
    by.reciprocal = by.mantissa == (uint64_t)1 << 63 ? UINT64_MAX : (uint64_t)(((wide)1 << 127) / by.mantissa);
    return by;
}

/* 2^exponent, of a float64 that is normal. */
TB_INLINE double power(int exponent)
{
    uint64_t bits = (uint64_t)(exponent + 1023) << 52;
    double value;
    memcpy(&value, &bits, 8);
    return value;
}

/* Whether the quotient n / (2 m) lies above q + rest, or exactly there and q's successor is even. */
static int is_above(wide n, uint64_t m, uint64_t q, uint64_t rest, int odd)
{
    wide remainder = n - 2 * (wide)m * q, there = 2 * (wide)m * rest;
    return remainder > there || (remainder == there && odd);
}

TB_INLINE double divide(__int128 sum, const struct divisor *by)
{
    wide n = sum < 0 ? -(wide)sum : (wide)sum;
    if (!n)
        return 0.0;
    uint64_t upper = (uint64_t)(n >> 64);
    int zeros = upper ? __builtin_clzll(upper) : 64 + __builtin_clzll((uint64_t)n);
    n <<= zeros;
    uint64_t quotient = (uint64_t)(((wide)(uint64_t)(n >> 64) * by->reciprocal) >> 64);
    int drop = quotient >> 63 ? 11 : 10;
    uint64_t kept = quotient >> drop, rest = quotient & (((uint64_t)1 << drop) - 1), half = (uint64_t)1 << (drop - 1);
    if (rest <= half && rest + 4 >= half)
        kept += (uint64_t)is_above(n, by->mantissa, quotient, half - rest, (int)(kept & 1));
    else
        kept += rest > half;
    double size = (double)(int64_t)kept * power(drop - 63 - zeros - by->exponent);
    return sum < 0 ? -size : size;
}

/* out[i] = sums[i] * 2^-64 / total, rounded once to the nearest float64, ties to even. total is positive and normal,
 * and within 2^-400 and 2^400. */
TB_EXPORT int64_t tb_exact_divide(const void *sums, int64_t count, double total, double *out)
{
    const struct divisor by = divisor_of(total);
    const tb_sum *from = (const tb_sum *)sums;
    for (int64_t i = 0; i < count; i++)
        out[i] = divide(from[i], &by);
    return TB_OK;
}
