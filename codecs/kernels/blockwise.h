/* Codes with one absmax for each block of values: the way of a slice through chunks, dtypes and its tail.
 *
 * What the codes are is up to a tb_code, which only ever sees whole blocks of float32. A whole block is multiplied by
 * the reciprocal of its absmax, a tail is divided by it and stores the absmax as it was used, as bitsandbytes on CPUs
 * does; an absmax below 1e-38 is taken for 1e-38. Values decode to level times absmax.
 */
#ifndef TENSORBUS_BLOCKWISE_H
#define TENSORBUS_BLOCKWISE_H

#include "kernels.h"

typedef struct {
    /* Of one value's code: 4 or 8. */
    int bits;

    /* The codes of values[i] * factors[block]; blocksize is a multiple of 32, and at most TB_CHUNK values in all. */
    void (*encode)(const float *values, int64_t blocks, int64_t blocksize, const float *factors, uint8_t *codes);

    /* values[i] = level of codes[i] * absmax[block]. */
    void (*decode)(const uint8_t *codes, int64_t blocks, int64_t blocksize, const float *absmax, float *values);
} tb_code;

/* The codes and the absmax of count values, in blocks of blocksize, a power of two from 32 to TB_CHUNK. absmax, as every
 * other address, need not be aligned. TB_NON_FINITE if a value is NaN or Inf, in float32. */
int64_t tb_blockwise_encode(const tb_code *code, int dtype, const void *source, int64_t count, int64_t blocksize,
                            uint8_t *codes, void *absmax);

/* The values, rounded to dtype. */
int64_t tb_blockwise_decode(const tb_code *code, int dtype, const uint8_t *codes, const void *absmax, int64_t count,
                            int64_t blocksize, void *out);

/* sums[i] += weight * value, rounded as tb_add does. TB_NON_FINITE if a value is NaN or Inf. */
int64_t tb_blockwise_accumulate(const tb_code *code, int dtype, const uint8_t *codes, const void *absmax, int64_t count,
                                int64_t blocksize, int sum, void *sums, double weight);

/* The three exported functions of one code; code_in_use() gives the tb_code for the processor. */
#define TB_BLOCKWISE(name, code_in_use)                                                                                \
    TB_EXPORT int64_t tb_##name##_encode(int dtype, const void *source, int64_t count, int64_t blocksize,              \
                                         uint8_t *codes, void *absmax)                                                 \
    {                                                                                                                  \
        return tb_blockwise_encode(code_in_use(), dtype, source, count, blocksize, codes, absmax);                     \
    }                                                                                                                  \
    TB_EXPORT int64_t tb_##name##_decode(int dtype, const uint8_t *codes, const void *absmax, int64_t count,           \
                                         int64_t blocksize, void *out)                                                 \
    {                                                                                                                  \
        return tb_blockwise_decode(code_in_use(), dtype, codes, absmax, count, blocksize, out);                        \
    }                                                                                                                  \
    TB_EXPORT int64_t tb_##name##_accumulate(int dtype, const uint8_t *codes, const void *absmax, int64_t count,       \
                                             int64_t blocksize, int sum, void *sums, double weight)                    \
    {                                                                                                                  \
        return tb_blockwise_accumulate(code_in_use(), dtype, codes, absmax, count, blocksize, sum, sums, weight);      \
    }

#endif
