/* absmax quantised to 8 bits (the double quantisation of QLoRA), in groups that stand for themselves.
 *
 * Strategy. A group is stored as its mean and as the differences from it, which tb_dynamic_encode takes for one short
 * block. The sum behind the mean is taken in float64 and in the order of numpy, so that both give the same bytes:
 * halves of more than 128 numbers apart, and within one eight sums side by side.
 */
#include "kernels.h"

#define GROUP 256

int64_t tb_dynamic_encode(int dtype, const void *source, int64_t count, int64_t blocksize, uint8_t *codes, void *absmax);
int64_t tb_dynamic_decode(int dtype, const uint8_t *codes, const void *absmax, int64_t count, int64_t blocksize, void *out);

static double sum(const float *values, int64_t count)
{
    if (count > 128) {
        int64_t half = count / 2 & ~7;
        return sum(values, half) + sum(values + half, count - half);
    }
    double lanes[8] = {0}, rest = 0;
    int64_t i = 0;
    if (count >= 8) {
        for (; i < (count & ~7); i++)
            lanes[i & 7] += values[i];
        rest = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
    }
    for (; i < count; i++)
        rest += values[i];
    return rest;
}

/* The mean of each group, its largest difference from it (at least 1e-38), and a code of the dynamic map for each of the
 * blocks' absmax. means and scales hold a float32 for each group, at any address. */
TB_EXPORT int64_t tb_absmax_encode(const float *absmax, int64_t blocks, void *means, void *scales, uint8_t *codes)
{
    for (int64_t first = 0, group = 0; first < blocks; first += GROUP, group++) {
        float differences[GROUP];
        int64_t count = tb_min(GROUP, blocks - first);
        float mean = (float)(sum(absmax + first, count) / (double)count);
        for (int64_t i = 0; i < count; i++)
            differences[i] = absmax[first + i] - mean;
        memcpy((char *)means + 4 * group, &mean, 4);
        /* Fewer values than a block are divided by their absmax, which a whole block is not. */
        tb_dynamic_encode(TB_FLOAT32, differences, count, 2 * GROUP, codes + first, (char *)scales + 4 * group);
    }
    return TB_OK;
}

/* absmax = level * scale + mean; never below 0, where rounding can carry a small one, nor above the finite numbers. */
TB_EXPORT int64_t tb_absmax_decode(const void *means, const void *scales, const uint8_t *codes, int64_t blocks,
                                   float *absmax)
{
    tb_dynamic_decode(TB_FLOAT32, codes, scales, blocks, GROUP, absmax);
    for (int64_t first = 0, group = 0; first < blocks; first += GROUP, group++) {
        float mean;
        memcpy(&mean, (const char *)means + 4 * group, 4);
        for (int64_t i = first; i < tb_min(first + GROUP, blocks); i++) {
            float value = absmax[i] + mean;
            absmax[i] = value <= 0 ? 0 : value > 0x1.fffffep127f ? 0x1.fffffep127f : value;
        }
    }
    return TB_OK;
}
