/* Values of any dtype as float32 and back, and weighted sums of them.
 *
 * Strategy. Each loop is written once, plainly, and compiled for each set of instructions, with which the compiler
 * vectorises it; only float16 has instructions of its own that it does not find. Addresses need not be aligned.
 */
#include "kernels.h"

#include <math.h>

/* Changed when a signature changes; the loader refuses a library with another number. */
TB_EXPORT int64_t tb_abi(void) { return 3; }

static int isa_limit = TB_ISA_AVX512;

static int detected(void)
{
#ifdef TB_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi"))
        return TB_ISA_AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2"))
        return TB_ISA_AVX2;
#endif
    return TB_BASELINE;
}

int tb_isa(void)
{
    static int found = -1;
    if (found < 0)
        found = detected();
    return found < isa_limit ? found : isa_limit;
}

/* Use nothing above level; what is then in use. For tests, and for processors that slow down. */
TB_EXPORT int64_t tb_set_isa(int level)
{
    isa_limit = level;
    return tb_isa();
}

/* The bits of Inf in float32; those of NaN are above, those of finite numbers below. */
#define INFINITE 0x7F800000

TB_INLINE float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

TB_INLINE uint32_t to_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

/* --- float64 and bfloat16 --------------------------------------------------------------------------- */

TB_INLINE void widen_double_loop(const tb_any_double *from, int64_t count, float *to)
{
    for (int64_t i = 0; i < count; i++)
        to[i] = (float)from[i];
}

TB_INLINE void narrow_double_loop(const float *from, int64_t count, tb_any_double *to)
{
    for (int64_t i = 0; i < count; i++)
        to[i] = from[i];
}

TB_INLINE void widen_bfloat_loop(const tb_any_half *from, int64_t count, float *to)
{
    for (int64_t i = 0; i < count; i++)
        to[i] = from_bits((uint32_t)from[i] << 16);
}

TB_INLINE void narrow_bfloat_loop(const float *from, int64_t count, tb_any_half *to)
{
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = to_bits(from[i]), rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
        to[i] = (uint16_t)((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
    }
}

TB_DISPATCHED(void, widen_double, (const tb_any_double *from, int64_t count, float *to), (from, count, to))
TB_DISPATCHED(void, narrow_double, (const float *from, int64_t count, tb_any_double *to), (from, count, to))
TB_DISPATCHED(void, widen_bfloat, (const tb_any_half *from, int64_t count, float *to), (from, count, to))
TB_DISPATCHED(void, narrow_bfloat, (const float *from, int64_t count, tb_any_half *to), (from, count, to))

/* --- float16, by integers where the processor has no conversion ------------------------------------- */

TB_INLINE float from_half(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7FFF;
    /* 2^112 moves the exponent's bias from 15 to 127, for denormals too; what has all its bits set is Inf or NaN. */
    float value = from_bits(magnitude << 13) * 0x1p112f;
    return from_bits(sign | (magnitude < 0x7C00 ? to_bits(value) : 0x7F800000 | magnitude << 13));
}

TB_INLINE uint16_t to_half(float value)
{
    uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000;
    bits &= 0x7FFFFFFF;
    /* Denormals: the sum's last bits are the half's, rounded by the addition. */
    uint32_t denormal = to_bits(from_bits(bits) + 0.5f) - 0x3F000000;
    uint32_t rounded = (bits + 0xC8000FFF + (bits >> 13 & 1)) >> 13;
    uint32_t half = bits < 0x38800000 ? denormal : bits < 0x477FF000 ? rounded : 0x7C00; /* 65520 rounds to Inf */
    return (uint16_t)(sign | (bits > 0x7F800000 ? 0x7E00 | (bits >> 13 & 0x3FF) : half));
}

TB_INLINE void widen_half_loop(const tb_any_half *from, int64_t count, float *to)
{
    for (int64_t i = 0; i < count; i++)
        to[i] = from_half(from[i]);
}

TB_INLINE void narrow_half_loop(const float *from, int64_t count, tb_any_half *to)
{
    for (int64_t i = 0; i < count; i++)
        to[i] = to_half(from[i]);
}

static void widen_half_baseline(const tb_any_half *from, int64_t count, float *to)
{
    int64_t i = 0;
#ifdef TB_NEON
    for (; i + 4 <= count; i += 4)
        vst1q_f32(to + i, vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8((const uint8_t *)(from + i)))));
#endif
    widen_half_loop(from + i, count - i, to + i);
}

static void narrow_half_baseline(const float *from, int64_t count, tb_any_half *to)
{
    int64_t i = 0;
#ifdef TB_NEON
    for (; i + 4 <= count; i += 4)
        vst1_u8((uint8_t *)(to + i), vreinterpret_u8_f16(vcvt_f16_f32(vld1q_f32(from + i))));
#endif
    narrow_half_loop(from + i, count - i, to + i);
}

#ifdef TB_X86
TB_AVX2 static void widen_half_avx2(const tb_any_half *from, int64_t count, float *to)
{
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
    widen_half_loop(from + i, count - i, to + i);
}

TB_AVX2 static void narrow_half_avx2(const float *from, int64_t count, tb_any_half *to)
{
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128((__m128i *)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
    narrow_half_loop(from + i, count - i, to + i);
}

TB_AVX512 static void widen_half_avx512(const tb_any_half *from, int64_t count, float *to)
{
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
        _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(from + i))));
    widen_half_loop(from + i, count - i, to + i);
}

TB_AVX512 static void narrow_half_avx512(const float *from, int64_t count, tb_any_half *to)
{
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
        _mm256_storeu_si256((__m256i *)(to + i), _mm512_cvtps_ph(_mm512_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
    narrow_half_loop(from + i, count - i, to + i);
}
#endif

TB_CHOSEN(void, widen_half, (const tb_any_half *from, int64_t count, float *to), (from, count, to))
TB_CHOSEN(void, narrow_half, (const float *from, int64_t count, tb_any_half *to), (from, count, to))

/* --- any dtype ---------------------------------------------------------------------------------------- */

const float *tb_load(int dtype, const void *source, int64_t first, int64_t count, float *chunk)
{
    const char *from = (const char *)source + first * tb_itemsize(dtype);
    switch (dtype) {
    case TB_FLOAT32: return (uintptr_t)from % 4 ? memcpy(chunk, from, (size_t)count * 4) : (const float *)from;
    case TB_FLOAT64: widen_double((const tb_any_double *)from, count, chunk); break;
    case TB_BFLOAT16: widen_bfloat((const tb_any_half *)from, count, chunk); break;
    default: widen_half((const tb_any_half *)from, count, chunk);
    }
    return chunk;
}

void tb_store(int dtype, void *out, int64_t first, int64_t count, const float *values)
{
    char *to = (char *)out + first * tb_itemsize(dtype);
    switch (dtype) {
    case TB_FLOAT32:
        if (to != (const char *)values)
            memcpy(to, values, (size_t)count * 4);
        break;
    case TB_FLOAT64: narrow_double(values, count, (tb_any_double *)to); break;
    case TB_BFLOAT16: narrow_bfloat(values, count, (tb_any_half *)to); break;
    default: narrow_half(values, count, (tb_any_half *)to);
    }
}

void tb_stream(void *out, const float *values, int64_t count)
{
    char *to = out;
    const char *from = (const char *)values;
    int64_t nbytes = count * 4, at = 0;
#ifdef TB_X86
    /* Whole lines of 64 bytes only; their halves would cost as much. */
    at = tb_min(-(intptr_t)to & 63, nbytes);
    memcpy(to, from, (size_t)at);
    for (; at + 64 <= nbytes; at += 64)
        for (int i = 0; i < 64; i += 16)
            _mm_stream_si128((__m128i *)(to + at + i), _mm_loadu_si128((const __m128i *)(from + at + i)));
#endif
    memcpy(to + at, from + at, (size_t)(nbytes - at));
}

void tb_streamed(void)
{
#ifdef TB_X86
    _mm_sfence(); /* what was streamed is seen before anything that is written from here on */
#endif
}

/* count values of one dtype as another, by way of float32. */
TB_EXPORT int64_t tb_convert(int from, const void *source, int to, void *out, int64_t count)
{
    float chunk[TB_STEP];
    int streamed = to == TB_FLOAT32 && count * 4 > TB_STREAMED;
    for (int64_t first = 0; first < count; first += TB_STEP) {
        int64_t n = tb_min(TB_STEP, count - first);
        const float *values = tb_load(from, source, first, n, chunk);
        if (streamed)
            tb_stream((char *)out + first * 4, values, n);
        else
            tb_store(to, out, first, n, values);
    }
    tb_streamed();
    return TB_OK;
}

/* --- the largest magnitude, as an integer: NaN and Inf are above every finite number ------------------- */

TB_INLINE int32_t larger(int32_t largest, float value)
{
    int32_t magnitude = (int32_t)(to_bits(value) & 0x7FFFFFFF);
    return magnitude > largest ? magnitude : largest;
}

TB_INLINE int32_t largest_single_loop(const tb_any_float *values, int64_t count)
{
    int32_t largest = 0;
    for (int64_t i = 0; i < count; i++)
        largest = larger(largest, values[i]);
    return largest;
}

TB_INLINE int64_t largest_double_loop(const tb_any_double *values, int64_t count)
{
    int64_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t bits;
        memcpy(&bits, &values[i], 8);
        bits &= INT64_MAX;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

TB_DISPATCHED(int32_t, largest_single, (const tb_any_float *values, int64_t count), (values, count))
TB_DISPATCHED(int64_t, largest_double, (const tb_any_double *values, int64_t count), (values, count))

double tb_largest(int dtype, const void *values, int64_t count)
{
    if (dtype == TB_FLOAT32)
        return from_bits((uint32_t)largest_single(values, count));
    int64_t bits = largest_double(values, count);
    double largest;
    memcpy(&largest, &bits, 8);
    return largest;
}

int tb_finite(const float *values, int64_t count) { return largest_single(values, count) < INFINITE; }

/* TB_OK if all of the sums are finite, else TB_NON_FINITE. */
TB_EXPORT int64_t tb_sums_finite(int sum, const void *sums, int64_t count)
{
    return isfinite(tb_largest(sum == TB_SUM32 ? TB_FLOAT32 : TB_FLOAT64, sums, count)) ? TB_OK : TB_NON_FINITE;
}

/* --- weighted sums ---------------------------------------------------------------------------------------- */

TB_INLINE int32_t add_single_loop(float *restrict sums, int64_t count, const float *restrict values, float weight)
{
    int32_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        sums[i] += weight * values[i];
        largest = larger(largest, values[i]);
    }
    return largest;
}

TB_INLINE int32_t add_double_loop(double *restrict sums, int64_t count, const float *restrict values, double weight)
{
    int32_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        sums[i] += weight * (double)values[i];
        largest = larger(largest, values[i]);
    }
    return largest;
}

TB_DISPATCHED(int32_t, add_single, (float *sums, int64_t count, const float *values, float weight),
              (sums, count, values, weight))
TB_DISPATCHED(int32_t, add_double, (double *sums, int64_t count, const float *values, double weight),
              (sums, count, values, weight))

TB_INLINE int64_t add(int sum, void *sums, int64_t first, int64_t count, const float *values, double weight)
{
    int32_t largest = sum == TB_SUM32 ? add_single((float *)sums + first, count, values, (float)weight)
                                      : add_double((double *)sums + first, count, values, weight);
    return largest < INFINITE ? TB_OK : TB_NON_FINITE;
}

int64_t tb_add(int dtype, int sum, void *sums, int64_t first, int64_t count, float *values, double weight)
{
    if (dtype == TB_FLOAT16 || dtype == TB_BFLOAT16) {
        uint16_t rounded[TB_CHUNK];
        tb_store(dtype, rounded, 0, count, values);
        tb_load(dtype, rounded, 0, count, values);
    }
    return add(sum, sums, first, count, values, weight);
}

/* float64 is not rounded to float32 before it is weighted. */

TB_INLINE void add_exact_single_loop(float *restrict sums, int64_t count, const tb_any_double *values, double weight)
{
    for (int64_t i = 0; i < count; i++)
        sums[i] += (float)(values[i] * weight);
}

TB_INLINE void add_exact_double_loop(double *restrict sums, int64_t count, const tb_any_double *values, double weight)
{
    for (int64_t i = 0; i < count; i++)
        sums[i] += values[i] * weight;
}

TB_DISPATCHED(void, add_exact_single, (float *sums, int64_t count, const tb_any_double *values, double weight),
              (sums, count, values, weight))
TB_DISPATCHED(void, add_exact_double, (double *sums, int64_t count, const tb_any_double *values, double weight),
              (sums, count, values, weight))

static int64_t add_exact(int sum, void *sums, int64_t first, int64_t count, const tb_any_double *values, double weight)
{
    if (!isfinite(tb_largest(TB_FLOAT64, values, count)))
        return TB_NON_FINITE;
    if (sum == TB_SUM32)
        add_exact_single((float *)sums + first, count, values, (float)weight);
    else
        add_exact_double((double *)sums + first, count, values, weight);
    return TB_OK;
}

/* sums[i] += weight * values[i], for values as they are; TB_NON_FINITE if one is NaN or Inf. */
TB_EXPORT int64_t tb_accumulate(int dtype, const void *values, int64_t count, int sum, void *sums, double weight)
{
    float chunk[TB_STEP];
    int64_t status = TB_OK, width = sum == TB_SUM32 ? 4 : 8;
    for (int64_t first = 0; first < count && status == TB_OK; first += TB_STEP) {
        int64_t n = tb_min(TB_STEP, count - first);
        tb_prefetch(sums, (first + TB_STEP) * width, TB_STEP * width);
        status = dtype == TB_FLOAT64 ? add_exact(sum, sums, first, n, (const tb_any_double *)values + first, weight)
                                     : add(sum, sums, first, n, tb_load(dtype, values, first, n, chunk), weight);
    }
    return status;
}
