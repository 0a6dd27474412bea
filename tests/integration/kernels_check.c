/* Calls every exported kernel with pseudo-random values and payloads, and prints a digest of what each one returned
 * and wrote: `kernels_check LEVEL` for each level of kernels.h. test_kernels_portable.py compares the digests of
 * processors and of levels, and runs the same under the sanitizers: each buffer ends where its memory ends, and
 * none is aligned that a user or a message could bring in.
 *
 * A new kernel gets its prototype, a function that drives it, and a line in the table CASES.
 */
#include "kernels.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* --- random numbers, memory and digests --------------------------------------------------------------- */

static uint64_t state;

static uint64_t any(void) /* splitmix64 */
{
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static void *taken[64];
static int takings;

static void *take_at(int offset, int64_t bytes)
{
    if (takings == 64 || !(taken[takings] = malloc((size_t)(bytes + offset))))
        abort();
    return memset((uint8_t *)taken[takings++] + offset, 0xA5, (size_t)bytes);
}

/* Memory that ends with its last byte, and begins at an odd address; free_all() gives it back. */
static void *take(int64_t bytes) { return take_at(1, bytes); }

/* The same for the memory of codecs and aggregators, which is aligned. */
static void *take_aligned(int64_t bytes) { return take_at(0, bytes); }

static void free_all(void)
{
    while (takings)
        free(taken[--takings]);
}

static uint64_t digest;

static void mix(const void *bytes, int64_t count) /* FNV-1a */
{
    for (int64_t i = 0; i < count; i++)
        digest = (digest ^ ((const uint8_t *)bytes)[i]) * 0x100000001B3u;
}

static void mix_result(int64_t result) { mix(&result, 8); }

/* Floats, of which all NaN are the same: which one comes out is up to the processor. */
static void mix_values(int dtype, const void *values, int64_t count)
{
    static const uint64_t infinite[] = {0x7F800000, 0x7FF0000000000000, 0x7C00, 0x7F80};
    int64_t size = tb_itemsize(dtype);
    for (int64_t i = 0; i < count; i++) {
        uint64_t bits = 0;
        memcpy(&bits, (const uint8_t *)values + i * size, (size_t)size);
        if ((bits & ~(1ull << (8 * size - 1))) > infinite[dtype])
            bits = 0xFFFF;
        mix(&bits, size);
    }
}

static void *garbage(int64_t bytes)
{
    uint8_t *memory = take(bytes);
    for (int64_t i = 0; i < bytes; i++)
        memory[i] = (uint8_t)any();
    return memory;
}

/* Roughly normal, of one scale for each 256; with zeros, denormals, ties of the codes and a block of nothing else. */
static float value(int64_t i)
{
    static const float special[] = {0.0f, -0.0f, 1e-40f, -3e-45f, 1.0f, -1.0f, 0.5f, 1e-38f};
    uint64_t random = any();
    if (random % 19 == 0)
        return special[random / 19 % 8];
    float sum = 0;
    for (int k = 0; k < 4; k++)
        sum += (float)(int16_t)(random >> 16 * k);
    return i / 256 % 7 == 3 ? 0 : sum * (i / 256 % 3 == 0 ? 1e-3f : i / 256 % 3 == 1 ? 3e-7f : 0.5f / 32768);
}

/* count values of dtype; those that float16 cannot hold are Inf there. */
static void *fill(void *memory, int dtype, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        float one[1] = {value(i)}, room[2];
        tb_store(dtype, room, 0, 1, one);
        memcpy((uint8_t *)memory + i * tb_itemsize(dtype), room, (size_t)tb_itemsize(dtype));
    }
    return memory;
}

static void *values_of(int dtype, int64_t count) { return fill(take(count * tb_itemsize(dtype)), dtype, count); }

static void *sums_of(int sum, int64_t count)
{
    int dtype = sum == TB_SUM32 ? TB_FLOAT32 : TB_FLOAT64;
    return fill(take_aligned(count * tb_itemsize(dtype)), dtype, count);
}

static void mix_sums(int sum, const void *sums, int64_t count)
{
    mix_values(sum == TB_SUM32 ? TB_FLOAT32 : TB_FLOAT64, sums, count);
}

static const int64_t COUNTS[] = {0, 1, 2, 3, 31, 32, 33, 63, 64, 65, 127, 129, 1000, 4095, 4096, 4097, 9001};
#define LARGE (TB_STREAMED / 4 + 4099) /* written past the caches, as float32, and more than one group of any codec */
#define EACH(index, array) (size_t index = 0; index < sizeof(array) / sizeof(array)[0]; index++)

/* --- values of one dtype as another, and sums of them ------------------------------------------------------ */

int64_t tb_convert(int, const void *, int, void *, int64_t);
int64_t tb_accumulate(int, const void *, int64_t, int, void *, double);
int64_t tb_sums_finite(int, const void *, int64_t);
int64_t tb_half_encode(int, int, const void *, int64_t, void *);

static void converted(int from, int to, int64_t count)
{
    void *out = take(count * tb_itemsize(to));
    mix_result(tb_convert(from, garbage(count * tb_itemsize(from)), to, out, count));
    mix_values(to, out, count);
    free_all();
}

static void conversions(void)
{
    for (int from = 0; from < 4; from++)
        for (int to = 0; to < 4; to++)
            for EACH (n, COUNTS)
                converted(from, to, COUNTS[n]);
    converted(TB_BFLOAT16, TB_FLOAT32, LARGE);
}

static void sums(void)
{
    for (int dtype = 0; dtype < 4; dtype++)
        for (int sum = TB_SUM32; sum <= TB_SUM64; sum++)
            for EACH (n, COUNTS) {
                int64_t count = COUNTS[n];
                void *to = sums_of(sum, count);
                int64_t result = tb_accumulate(dtype, values_of(dtype, count), count, sum, to, 0.37);
                mix_result(result);
                mix_sums(sum, to, result < 0 ? 0 : count);
                mix_result(tb_sums_finite(sum, to, count));
                mix_result(tb_accumulate(dtype, garbage(count * tb_itemsize(dtype)), count, sum, to, 0.37));
                free_all();
            }
}

static void halves(void)
{
    for (int half = TB_FLOAT16; half <= TB_BFLOAT16; half++)
        for (int dtype = TB_FLOAT32; dtype <= TB_FLOAT64; dtype++)
            for EACH (n, COUNTS)
                for (int valid = 0; valid < 2; valid++) {
                    int64_t count = COUNTS[n], bytes = count * tb_itemsize(dtype);
                    void *codes = take(count * 2), *values = valid ? values_of(dtype, count) : garbage(bytes);
                    int64_t result = tb_half_encode(half, dtype, values, count, codes);
                    mix_result(result);
                    mix(codes, result < 0 ? 0 : count * 2);
                    free_all();
                }
}

/* --- changes from a base ----------------------------------------------------------------------------------- */

int64_t tb_change_subtract(int, const void *, const void *, int64_t, float *);
int64_t tb_change_add(int, const void *, int64_t, void *, void *);

/* Values and base of finite numbers, of anything, or of anything with the same bits. */
static void changed(int dtype, int64_t count, int kind)
{
    int64_t bytes = count * tb_itemsize(dtype);
    void *base = kind ? garbage(bytes) : values_of(dtype, count), *values = kind ? take(bytes) : values_of(dtype, count);
    if (kind)
        memcpy(values, base, (size_t)bytes);
    if (kind == 2 && count)
        ((uint8_t *)values)[any() % (uint64_t)bytes] ^= 1;
    float *change = take_aligned(count * 4);
    int64_t result = tb_change_subtract(dtype, values, base, count, change);
    mix_result(result);
    mix(change, result < 0 ? 0 : count * 4);
    void *out = take(bytes);
    if (dtype == TB_FLOAT32) { /* in place, at an odd address */
        fill(out, TB_FLOAT32, count);
        mix_result(tb_change_add(dtype, base, count, out, out));
    } else
        mix_result(tb_change_add(dtype, base, count, fill(change, TB_FLOAT32, count), out));
    mix_values(dtype, out, count);
    free_all();
}

static void changes(void)
{
    for (int dtype = 0; dtype < 4; dtype++)
        for EACH (n, COUNTS)
            for (int kind = 0; kind < 3; kind++)
                changed(dtype, COUNTS[n], kind);
}

/* --- codes with an absmax for each block ------------------------------------------------------------------- */

typedef int64_t encode_blockwise(int, const void *, int64_t, int64_t, uint8_t *, void *);
typedef int64_t decode_blockwise(int, const uint8_t *, const void *, int64_t, int64_t, void *);
typedef int64_t accumulate_blockwise(int, const uint8_t *, const void *, int64_t, int64_t, int, void *, double);

typedef struct {
    int bits;
    encode_blockwise *encode;
    decode_blockwise *decode;
    accumulate_blockwise *accumulate;
} code;

static void coded(const code *code, int dtype, int64_t count, int64_t blocksize, int valid)
{
    int64_t blocks = (count + blocksize - 1) / blocksize, bytes = (count * code->bits + 7) / 8;
    uint8_t *codes = garbage(bytes);
    void *absmax = garbage(blocks * 4), *out = take(count * tb_itemsize(dtype));
    if (valid) {
        mix_result(code->encode(dtype, values_of(dtype, count), count, blocksize, codes, absmax));
        mix(codes, bytes);
        mix(absmax, blocks * 4);
    }
    mix_result(code->decode(dtype, codes, absmax, count, blocksize, out));
    mix_values(dtype, out, count);
    for (int sum = TB_SUM32; sum <= TB_SUM64; sum++) {
        void *sums = sums_of(sum, count);
        mix_result(code->accumulate(dtype, codes, absmax, count, blocksize, sum, sums, 0.37));
        mix_sums(sum, sums, valid ? count : 0);
    }
    free_all();
}

static void blockwise(const code *code)
{
    static const int64_t blocksizes[] = {32, 64, 256, 4096};
    for (int dtype = 0; dtype < 4; dtype++)
        for EACH (b, blocksizes)
            for EACH (n, COUNTS)
                for (int valid = 0; valid < 2; valid++)
                    coded(code, dtype, COUNTS[n], blocksizes[b], valid);
    coded(code, TB_FLOAT32, LARGE, 64, 1);
}

#define BLOCKWISE(name, bits)                                                                                          \
    encode_blockwise tb_##name##_encode;                                                                               \
    decode_blockwise tb_##name##_decode;                                                                               \
    accumulate_blockwise tb_##name##_accumulate;                                                                       \
    static void name(void)                                                                                             \
    {                                                                                                                  \
        static const code one = {bits, tb_##name##_encode, tb_##name##_decode, tb_##name##_accumulate};                \
        blockwise(&one);                                                                                               \
    }

BLOCKWISE(nf4, 4)
BLOCKWISE(fp4, 4)
BLOCKWISE(dynamic, 8)

int64_t tb_dynamic_levels(float *);

static void dynamic_levels(void)
{
    float *levels = malloc(256 * sizeof(float));
    mix_result(tb_dynamic_levels(levels));
    mix(levels, 256 * sizeof(float));
    free(levels);
}

int64_t tb_absmax_encode(const float *, int64_t, void *, void *, uint8_t *);
int64_t tb_absmax_decode(const void *, const void *, const uint8_t *, int64_t, float *);

static void doubly_quantised(void)
{
    for EACH (n, COUNTS)
        for (int valid = 0; valid < 2; valid++) {
            int64_t blocks = COUNTS[n], groups = (blocks + 255) / 256;
            void *means = garbage(groups * 4), *scales = garbage(groups * 4);
            uint8_t *codes = garbage(blocks);
            float *absmax = fill(take_aligned(blocks * 4), TB_FLOAT32, blocks);
            if (valid) {
                mix_result(tb_absmax_encode(absmax, blocks, means, scales, codes));
                mix(means, groups * 4);
                mix(scales, groups * 4);
                mix(codes, blocks);
            }
            mix_result(tb_absmax_decode(means, scales, codes, blocks, absmax));
            mix_values(TB_FLOAT32, absmax, blocks);
            free_all();
        }
}

/* --- Lloyd-Max -------------------------------------------------------------------------------------------- */

int64_t tb_lloyd_encode(int, int, const float *, const void *, int64_t, int64_t, uint8_t *);
int64_t tb_lloyd_decode(int, int, const float *, const uint8_t *, int64_t, int64_t, void *);
int64_t tb_lloyd_accumulate(int, int, const float *, const uint8_t *, int64_t, int64_t, int, void *, double);

static void lloyd(void)
{
    static const float thresholds[] = {0, 0.3f, 0.6f, 0.9f, 1.25f, 1.6f, 2.0f, 2.6f};
    static const float levels[] = {0.15f, 0.45f, 0.75f, 1.1f, 1.4f, 1.8f, 2.3f, 3.0f};
    static const int64_t blocksizes[] = {32, 1024, 4096};
    for (int dtype = 0; dtype < 4; dtype++)
        for (int bits = 1; bits <= 4; bits++)
            for EACH (b, blocksizes)
                for EACH (n, COUNTS)
                    for (int valid = 0; valid < 2; valid++) {
                        int64_t count = COUNTS[n], blocksize = blocksizes[b], tail = count % blocksize;
                        int64_t bytes = count / blocksize * (4 + bits * blocksize / 8);
                        bytes += tail ? 4 + bits * ((tail + 7) / 8) : 0;
                        uint8_t *payload = garbage(bytes);
                        void *out = take(count * tb_itemsize(dtype));
                        if (valid) {
                            mix_result(tb_lloyd_encode(dtype, bits, thresholds, values_of(dtype, count), count,
                                                       blocksize, payload));
                            mix(payload, bytes);
                        }
                        mix_result(tb_lloyd_decode(dtype, bits, levels, payload, count, blocksize, out));
                        mix_values(dtype, out, count);
                        for (int sum = TB_SUM32; sum <= TB_SUM64; sum++) {
                            void *sums = sums_of(sum, count);
                            mix_result(tb_lloyd_accumulate(dtype, bits, levels, payload, count, blocksize, sum, sums,
                                                           -1.7));
                            mix_sums(sum, sums, valid ? count : 0);
                        }
                        free_all();
                    }
}

/* --- the rotation ----------------------------------------------------------------------------------------- */

int64_t tb_hadamard_encode(int, const void *, int64_t, int64_t, const float *, float *);
int64_t tb_hadamard_decode(int, const float *, int64_t, int64_t, const float *, void *);
int64_t tb_hadamard_accumulate(int, const float *, int64_t, int64_t, const float *, int, void *, double);

static void hadamard(void)
{
    for (int dtype = 0; dtype < 4; dtype++)
        for (int64_t blocksize = 64; blocksize <= TB_CHUNK; blocksize *= 4)
            for EACH (n, COUNTS) {
                int64_t count = COUNTS[n];
                float *factors = take_aligned(2 * blocksize * 4), *rotated = take_aligned(count * 4);
                for (int64_t i = 0; i < 2 * blocksize; i++)
                    factors[i] = any() & 1 ? -0.125f : 0.125f;
                void *out = take(count * tb_itemsize(dtype));
                mix_result(tb_hadamard_encode(dtype, values_of(dtype, count), count, blocksize, factors, rotated));
                mix_values(TB_FLOAT32, rotated, count);
                mix_result(tb_hadamard_decode(dtype, rotated, count, blocksize, factors, out));
                mix_values(dtype, out, count);
                for (int sum = TB_SUM32; sum <= TB_SUM64; sum++) {
                    void *to = sums_of(sum, count);
                    int64_t result = tb_hadamard_accumulate(dtype, rotated, count, blocksize, factors, sum, to, 2.5);
                    mix_result(result);
                    mix_sums(sum, to, result < 0 ? 0 : count);
                }
                free_all();
            }
}

/* --- the entropy coder -------------------------------------------------------------------------------------- */

int64_t tb_huffman_encode(const uint8_t *, int64_t, uint8_t *);
int64_t tb_huffman_decode(const uint8_t *, int64_t, int64_t, uint8_t *);

/* Symbols of one of several distributions, from all alike to all equally often. */
static uint8_t *symbols_of(int kind, int64_t count)
{
    uint8_t *symbols = take(count);
    for (int64_t i = 0; i < count; i++) {
        uint64_t random = any();
        int zeros = random >> 8 ? __builtin_ctzll(random >> 8) : 0;
        symbols[i] = kind == 0   ? 7
                     : kind == 1 ? (uint8_t)(random % 97 == 0)
                     : kind == 2 ? (uint8_t)(128 + (random & 1 ? zeros : -zeros))
                     : kind == 3 ? (uint8_t)((random & 255) * (random >> 8 & 255) >> 8)
                                 : (uint8_t)random;
    }
    return symbols;
}

/* The payload with a few bytes changed, or cut short, in memory of just its size. */
static uint8_t *damaged(const uint8_t *payload, int64_t *bytes)
{
    if (any() % 4 == 0)
        *bytes = (int64_t)(any() % (uint64_t)(*bytes + 1));
    uint8_t *copy = take(*bytes);
    memcpy(copy, payload, (size_t)*bytes);
    /* Headers are at the front, and most of what can go wrong is there. */
    for (int changes = 1 + (int)(any() % 3); changes && *bytes; changes--) {
        uint64_t random = any();
        int64_t within = random & 1 ? *bytes : tb_min(*bytes, 40);
        copy[any() % (uint64_t)within] ^= (uint8_t)(1 << (random >> 1) % 8);
    }
    return copy;
}

static void huffman(void)
{
    static const int64_t counts[] = {1, 2, 63, 64, 1000, 4096, 4097, 40000};
    for (int kind = 0; kind < 5; kind++)
        for EACH (n, counts) {
            int64_t count = counts[n];
            static uint8_t payload[40000 + 64];
            uint8_t *symbols = symbols_of(kind, count), *back = take(count);
            int64_t bytes = tb_huffman_encode(symbols, count, payload);
            mix_result(bytes);
            mix(payload, bytes);
            mix_result(tb_huffman_decode(memcpy(take(bytes), payload, (size_t)bytes), bytes, count, back));
            if (memcmp(symbols, back, (size_t)count))
                abort();
            free_all();
            for (int round = 0; round < 60; round++) {
                int64_t size = bytes;
                uint8_t *bad = damaged(payload, &size), *out = take(count);
                int64_t result = tb_huffman_decode(bad, size, count, out);
                mix_result(result);
                mix(out, result < 0 ? 0 : count);
                free_all();
            }
        }
}

/* --- even steps and planes, which the entropy coder makes small ---------------------------------------------- */

int64_t tb_even_encode(int, const void *, int64_t, double, int, uint8_t *, uint8_t *);
int64_t tb_even_decode(int, const uint8_t *, int64_t, int64_t, int, void *);
int64_t tb_even_accumulate(int, const uint8_t *, int64_t, int64_t, int, int, void *, double);
static void even_decoded(int dtype, const uint8_t *payload, int64_t bytes, int64_t count, int low_bits)
{
    void *out = take(count * tb_itemsize(dtype));
    int64_t result = tb_even_decode(dtype, payload, bytes, count, low_bits, out);
    mix_result(result);
    mix_values(dtype, out, result < 0 ? 0 : count);
    for (int sum = TB_SUM32; sum <= TB_SUM64; sum++) {
        void *to = sums_of(sum, count);
        result = tb_even_accumulate(dtype, payload, bytes, count, low_bits, sum, to, -0.6);
        mix_result(result);
        mix_sums(sum, to, result < 0 ? 0 : count);
    }
}

static void even_steps(int dtype, int64_t count, double step, int low_bits, int rounds)
{
    const int64_t group = 1 << 20; /* values; and as many symbols, then 8 bytes for each escape */
    uint8_t *payload = take(16 * count + 4096), *symbols = take(group + 8 * tb_min(count, group));
    int64_t bytes = tb_even_encode(dtype, values_of(dtype, count), count, step, low_bits, symbols, payload);
    mix_result(bytes);
    if (bytes >= 0) { /* no Inf, as float16 may have */
        mix(payload, bytes);
        even_decoded(dtype, memcpy(take(bytes), payload, (size_t)bytes), bytes, count, low_bits);
        for (int round = 0; round < rounds; round++) {
            int64_t size = bytes;
            uint8_t *bad = damaged(payload, &size);
            even_decoded(dtype, bad, size, count, low_bits);
        }
    }
    free_all();
}

static void even(void)
{
    static const struct {
        double step;
        int low_bits;
    } settings[] = {{2.5, 0}, {0.32, 0}, {0.1, 1}, {0.05, 2}, {0.012, 4}};
    for (int dtype = 0; dtype < 4; dtype++)
        for EACH (s, settings)
            for EACH (n, COUNTS)
                even_steps(dtype, COUNTS[n], settings[s].step, settings[s].low_bits, 6);
    even_steps(TB_FLOAT32, LARGE, 0.32, 0, 2);
}

int64_t tb_planes_encode(int, const uint8_t *, int64_t, void *, uint8_t *);
int64_t tb_planes_decode(int, const uint8_t *, int64_t, int64_t, void *, uint8_t *);
int64_t tb_planes_accumulate(int, const uint8_t *, int64_t, int64_t, void *, int, void *, double);

static int64_t planes_decoded(int dtype, const uint8_t *payload, int64_t bytes, int64_t count, void *memory, void *out)
{
    int64_t decoded = tb_planes_decode(dtype, payload, bytes, count, memory, out);
    mix_result(decoded);
    mix(out, decoded < 0 ? 0 : count * tb_itemsize(dtype));
    for (int sum = TB_SUM32; sum <= TB_SUM64; sum++) {
        void *to = sums_of(sum, count);
        int64_t result = tb_planes_accumulate(dtype, payload, bytes, count, memory, sum, to, 1.5);
        mix_result(result);
        mix_sums(sum, to, result < 0 ? 0 : count);
    }
    return decoded;
}

static void planes_of(int dtype, int64_t count, int rounds)
{
    int64_t itemsize = tb_itemsize(dtype);
    uint8_t *values = values_of(dtype, count), *payload = take(itemsize * (count + 1000)), *out = take(count * itemsize);
    void *memory = take_aligned(512 << 10);
    int64_t bytes = tb_planes_encode(dtype, values, count, memory, payload);
    mix_result(bytes);
    mix(payload, bytes);
    uint8_t *whole = memcpy(take(bytes), payload, (size_t)bytes);
    if (planes_decoded(dtype, whole, bytes, count, memory, out) || memcmp(values, out, (size_t)(count * itemsize)))
        abort();
    for (int round = 0; round < rounds; round++) {
        int64_t size = bytes;
        uint8_t *bad = damaged(payload, &size);
        planes_decoded(dtype, bad, size, count, memory, take(count * itemsize));
    }
    free_all();
}

static void planes(void)
{
    for (int dtype = 0; dtype < 4; dtype++)
        for EACH (n, COUNTS)
            planes_of(dtype, COUNTS[n], 12);
    planes_of(TB_BFLOAT16, LARGE, 2);
}

/* --- exact sums ---------------------------------------------------------------------------------------------- */

int64_t tb_exact_add(int, const void *, int64_t, void *, double);
int64_t tb_exact_merge(const void *, int64_t, void *);
int64_t tb_exact_divide(const void *, int64_t, double, double *);

static void exact_of(int dtype, int64_t count)
{
    static const double weights[] = {1.0, 812.0, 1.0 / 3, 1e300};
    uint8_t *sums = memset(take_aligned(16 * count), 0, (size_t)(16 * count));
    for EACH (i, weights) {
        uint8_t *next = memcpy(take_aligned(16 * count), sums, (size_t)(16 * count));
        int64_t result = tb_exact_add(dtype, values_of(dtype, count), count, next, weights[i]);
        mix_result(result);
        if (result == TB_OK) { /* they are undefined otherwise */
            sums = next;
            mix(sums, 16 * count);
        }
    }
    mix_result(tb_exact_merge(memcpy(take(16 * count), sums, (size_t)(16 * count)), count, sums));
    mix(sums, 16 * count);
    double *out = take_aligned(8 * count);
    mix_result(tb_exact_divide(sums, count, 813.75, out));
    mix(out, 8 * count);
    mix_result(tb_exact_merge(garbage(16 * count), count, sums));
    free_all();
}

static void exact(void)
{
    for (int dtype = 0; dtype < 4; dtype++)
        for EACH (n, COUNTS)
            exact_of(dtype, COUNTS[n]);
}

/* --- the table ---------------------------------------------------------------------------------------------- */

int64_t tb_abi(void);
int64_t tb_set_isa(int);

static const struct {
    const char *name;
    void (*drive)(void);
} CASES[] = {
    {"conversions", conversions},
    {"sums", sums},
    {"halves", halves},
    {"changes", changes},
    {"nf4", nf4},
    {"fp4", fp4},
    {"dynamic", dynamic},
    {"dynamic_levels", dynamic_levels},
    {"doubly_quantised", doubly_quantised},
    {"lloyd", lloyd},
    {"hadamard", hadamard},
    {"huffman", huffman},
    {"even", even},
    {"planes", planes},
    {"exact", exact},
};

int main(int arguments, char **words)
{
    int level = arguments == 2 ? atoi(words[1]) : 0;
    if (tb_set_isa(level) != level) {
        printf("not here\n");
        return 0;
    }
    printf("abi %" PRId64 "\n", tb_abi());
    for EACH (i, CASES) {
        state = 1;
        digest = 0xCBF29CE484222325u;
        CASES[i].drive();
        printf("%s %016" PRIx64 "\n", CASES[i].name, digest);
    }
    return 0;
}
