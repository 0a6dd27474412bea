/* Root mean square; the order of additions is fixed in rms.h. */
#include "rms.h"

#include <math.h>

#define SUMS 32

/* Each of these adds the squares of whole rows of SUMS values, and returns how many values those were. */

static int64_t rows_baseline(const float *values, int64_t count, double sums[SUMS])
{
    int64_t whole = count - count % SUMS;
    for (int64_t i = 0; i < whole; i += SUMS)
        for (int j = 0; j < SUMS; j++)
            sums[j] += (double)values[i + j] * (double)values[i + j];
    return whole;
}

#ifdef TB_X86
TB_AVX2 static int64_t rows_avx2(const float *values, int64_t count, double sums[SUMS])
{
    int64_t whole = count - count % SUMS;
    __m256d sum[SUMS / 4];
    for (int j = 0; j < SUMS / 4; j++)
        sum[j] = _mm256_setzero_pd();
    for (int64_t i = 0; i < whole; i += SUMS)
        for (int j = 0; j < SUMS / 4; j++) {
            __m256d value = _mm256_cvtps_pd(_mm_loadu_ps(values + i + 4 * j));
            sum[j] = _mm256_add_pd(sum[j], _mm256_mul_pd(value, value));
        }
    for (int j = 0; j < SUMS / 4; j++)
        _mm256_storeu_pd(sums + 4 * j, sum[j]);
    return whole;
}

TB_AVX512 static int64_t rows_avx512(const float *values, int64_t count, double sums[SUMS])
{
    int64_t whole = count - count % SUMS;
    __m512d sum[SUMS / 8];
    for (int j = 0; j < SUMS / 8; j++)
        sum[j] = _mm512_setzero_pd();
    for (int64_t i = 0; i < whole; i += SUMS)
        for (int j = 0; j < SUMS / 8; j++) {
            __m512d value = _mm512_cvtps_pd(_mm256_loadu_ps(values + i + 8 * j));
            sum[j] = _mm512_add_pd(sum[j], _mm512_mul_pd(value, value));
        }
    for (int j = 0; j < SUMS / 8; j++)
        _mm512_storeu_pd(sums + 8 * j, sum[j]);
    return whole;
}
#endif

float tb_rms(const float *values, int64_t count)
{
    double sums[SUMS] = {0};
    int64_t done;
#ifdef TB_X86
    if (tb_isa() >= TB_ISA_AVX512)
        done = rows_avx512(values, count, sums);
    else if (tb_isa() >= TB_ISA_AVX2)
        done = rows_avx2(values, count, sums);
    else
#endif
        done = rows_baseline(values, count, sums);
    for (int64_t i = done; i < count; i++)
        sums[i - done] += (double)values[i] * (double)values[i];
    for (int half = SUMS / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            sums[j] += sums[j + half];
    return (float)sqrt(sums[0] / (double)count);
}
