/* What was added to a base: differences from it, and sums with it.
 *
 * Strategy. Values and base pass through chunks of float32, but for float64, whose arithmetic is done in float64.
 * What is equal and finite has the difference 0 by itself; only where a step holds NaN or Inf are bits compared.
 */
#include "kernels.h"

/* Both give the largest magnitude of the differences, as an integer: from that of Inf on there is NaN or Inf. */

TB_INLINE int32_t larger(int32_t largest, float value)
{
    int32_t bits;
    memcpy(&bits, &value, 4);
    bits &= INT32_MAX;
    return bits > largest ? bits : largest;
}

TB_INLINE int32_t subtract_single_loop(const float *values, const float *base, int64_t count, float *restrict out)
{
    int32_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        out[i] = values[i] - base[i];
        largest = larger(largest, out[i]);
    }
    return largest;
}

TB_INLINE int32_t subtract_double_loop(const tb_any_double *values, const tb_any_double *base, int64_t count,
                                       float *restrict out)
{
    int32_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        out[i] = (float)(values[i] - base[i]);
        largest = larger(largest, out[i]);
    }
    return largest;
}

TB_DISPATCHED(int32_t, subtract_single, (const float *values, const float *base, int64_t count, float *out),
              (values, base, count, out))
TB_DISPATCHED(int32_t, subtract_double,
              (const tb_any_double *values, const tb_any_double *base, int64_t count, float *out),
              (values, base, count, out))

/* 0 where the two have the same bits: Inf and NaN that are the base's own, as in attention masks, are no change. */
static void forgive(int64_t itemsize, const char *values, const char *base, int64_t count, float *out)
{
    for (int64_t i = 0; i < count; i++)
        if (!memcmp(values + i * itemsize, base + i * itemsize, (size_t)itemsize))
            out[i] = 0;
}

/* out[i] = values[i] - base[i], rounded to float32, and 0 where they have the same bits; TB_NON_FINITE if one is NaN
 * or Inf. out is aligned, and overlaps neither. */
TB_EXPORT int64_t tb_change_subtract(int dtype, const void *values, const void *base, int64_t count, float *out)
{
    float chunk[TB_STEP], base_chunk[TB_STEP];
    const int64_t itemsize = tb_itemsize(dtype);
    for (int64_t first = 0; first < count; first += TB_STEP) {
        int64_t n = tb_min(TB_STEP, count - first);
        const char *from = (const char *)values + first * itemsize, *held = (const char *)base + first * itemsize;
        int32_t largest;
        if (dtype == TB_FLOAT64)
            largest = subtract_double((const tb_any_double *)from, (const tb_any_double *)held, n, out + first);
        else
            largest = subtract_single(tb_load(dtype, from, 0, n, chunk), tb_load(dtype, held, 0, n, base_chunk), n,
                                      out + first);
        if (largest >= 0x7F800000) {
            forgive(itemsize, from, held, n, out + first);
            if (!tb_finite(out + first, n))
                return TB_NON_FINITE;
        }
    }
    return TB_OK;
}

TB_INLINE void add_single_loop(const float *base, int64_t count, tb_any_float *restrict change)
{
    for (int64_t i = 0; i < count; i++)
        change[i] = base[i] + change[i];
}

TB_INLINE void add_double_loop(const tb_any_double *base, int64_t count, const float *change,
                               tb_any_double *restrict out)
{
    for (int64_t i = 0; i < count; i++)
        out[i] = base[i] + (double)change[i];
}

TB_DISPATCHED(void, add_single, (const float *base, int64_t count, tb_any_float *change), (base, count, change))
TB_DISPATCHED(void, add_double,
              (const tb_any_double *base, int64_t count, const float *change, tb_any_double *out),
              (base, count, change, out))

/* out[i] = base[i] + change[i] in float32, or float64 for float64, rounded to dtype. change is overwritten; for
 * float32 it is out, at any address, else it is aligned and overlaps nothing. */
TB_EXPORT int64_t tb_change_add(int dtype, const void *base, int64_t count, void *change, void *out)
{
    float chunk[TB_STEP];
    for (int64_t first = 0; first < count; first += TB_STEP) {
        int64_t n = tb_min(TB_STEP, count - first);
        if (dtype == TB_FLOAT64) {
            add_double((const tb_any_double *)base + first, n, (const float *)change + first,
                       (tb_any_double *)out + first);
            continue;
        }
        const float *held = tb_load(dtype, base, first, n, chunk);
        add_single(held, n, (tb_any_float *)change + first);
        tb_store(dtype, out, first, n, (const float *)change + first);
    }
    return TB_OK;
}
