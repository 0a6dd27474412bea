/* Rounding to a 16-bit float that ends before the values do; the way back is conversion, in convert.c.
 *
 * Strategy. The largest magnitude of a chunk, as an integer, shows whether there is NaN or Inf, and whether anything
 * has to be clipped: almost always nothing, and the values are converted from where they lie.
 */
#include "kernels.h"

#include <math.h>

/* Of float16 and bfloat16. */
#define LARGEST_HALF 65504.0
#define LARGEST_BFLOAT 0x1.FEp127

/* The chunk as float32 with nothing beyond [-limit, limit], and how many values that changed. */
static int64_t clip(int dtype, const void *source, int64_t count, double limit, float *chunk)
{
    int64_t clipped = 0;
    for (int64_t i = 0; i < count; i++) {
        double value = dtype == TB_FLOAT64 ? ((const tb_any_double *)source)[i] : ((const tb_any_float *)source)[i];
        clipped += fabs(value) > limit;
        chunk[i] = (float)(fabs(value) > limit ? copysign(limit, value) : value);
    }
    return clipped;
}

/* Encode float32 or float64 as half, TB_FLOAT16 or TB_BFLOAT16: the number of values that were clipped to its largest
 * finite number, or TB_NON_FINITE if one is NaN or Inf. */
TB_EXPORT int64_t tb_half_encode(int half, int dtype, const void *source, int64_t count, void *codes)
{
    const double limit = half == TB_FLOAT16 ? LARGEST_HALF : LARGEST_BFLOAT;
    float chunk[TB_CHUNK];
    int64_t clipped = 0;
    for (int64_t first = 0; first < count; first += TB_CHUNK) {
        int64_t n = tb_min(TB_CHUNK, count - first);
        const char *from = (const char *)source + first * tb_itemsize(dtype);
        double largest = tb_largest(dtype, from, n);
        if (!isfinite(largest))
            return TB_NON_FINITE;
        const float *values = chunk;
        if (largest > limit)
            clipped += clip(dtype, from, n, limit, chunk);
        else
            values = tb_load(dtype, from, 0, n, chunk);
        tb_store(half, codes, first, n, values);
    }
    return clipped;
}
