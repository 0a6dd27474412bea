/* The root mean square of a block of values, the same bits on every path. */
#ifndef TENSORBUS_RMS_H
#define TENSORBUS_RMS_H

#include "kernels.h"

/* sqrt(sum of squares / count), count > 0; NaN or Inf exactly if a value is NaN or Inf.
 *
 * The square of a float32 is exact in float64, and cannot overflow or vanish there. Value i is added to sum i % 32,
 * in rising order of i; then the upper half of the 32 sums is added to the lower half, until one is left. Division
 * and root are of float64, and the root is rounded to float32. codecs/rms.py is its twin in numpy. */
float tb_rms(const float *values, int64_t count);

#endif
