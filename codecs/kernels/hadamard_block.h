/* The Hadamard transform of one block, in vectors of LANES floats; hadamard.c includes this once for each width.
 *
 * It wants LANES, TARGET (the function attribute), VECTOR (the type), NAME(name), and within(vector), which does the
 * stages of distance 1 to LANES / 2. Those of greater distance go between vectors, three stages to a pass over the
 * block: eight vectors are loaded, and combined in registers. */

typedef VECTOR NAME(unaligned) __attribute__((aligned(1), may_alias));

TARGET TB_INLINE VECTOR NAME(at)(const float *values) { return *(const NAME(unaligned) *)values; }

/* The stages of distance stride, 2 stride, ... up to radix / 2 times stride, counted in vectors. */
TARGET TB_INLINE void NAME(pass)(const float *in, float *out, const float *before, const float *after,
                                 int64_t vectors, int64_t stride, const int radix)
{
    for (int64_t group = 0; group < vectors; group += radix * stride)
        for (int64_t first = group; first < group + stride; first++) {
            VECTOR x[8];
            for (int i = 0; i < radix; i++) {
                int64_t at = (first + i * stride) * LANES;
                x[i] = NAME(at)(in + at);
                if (before)
                    x[i] = x[i] * NAME(at)(before + at);
                if (stride == 1)
                    x[i] = NAME(within)(x[i]);
            }
            for (int distance = 1; distance < radix; distance *= 2)
                for (int i = 0; i < radix; i++)
                    if (!(i & distance)) {
                        VECTOR a = x[i], b = x[i + distance];
                        x[i] = a + b;
                        x[i + distance] = a - b;
                    }
            for (int i = 0; i < radix; i++) {
                int64_t at = (first + i * stride) * LANES;
                if (after)
                    x[i] = x[i] * NAME(at)(after + at);
                *(NAME(unaligned) *)(out + at) = x[i];
            }
        }
}

/* As transform_block in hadamard.c; count is a multiple of LANES. */
TARGET static void NAME(block)(const float *in, float *out, int64_t count, const float *before, const float *after)
{
    int64_t vectors = count / LANES;
    for (int64_t stride = 1; stride == 1 || stride < vectors; stride *= 8) {
        int64_t left = vectors / stride;
        const float *last = left <= 8 ? after : NULL;
        if (left >= 8 && stride == 1)
            NAME(pass)(in, out, before, last, vectors, 1, 8);
        else if (left >= 8)
            NAME(pass)(in, out, NULL, last, vectors, stride, 8);
        else if (left == 4)
            NAME(pass)(in, out, before, last, vectors, stride, 4);
        else if (left == 2)
            NAME(pass)(in, out, before, last, vectors, stride, 2);
        else
            NAME(pass)(in, out, before, last, vectors, stride, 1);
        in = out;
        before = NULL;
    }
}

#undef LANES
#undef TARGET
#undef VECTOR
#undef NAME
