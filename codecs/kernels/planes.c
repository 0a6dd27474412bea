/* Numbers without loss: their bytes as planes, and an entropy coder for those planes that shrink.
 *
 * The upper 16 bits of a number, sign, exponent and the head of the mantissa, are turned left by one bit, so that the
 * first plane holds the exponents (of bfloat16, float32), which are few, and the second the sign among bits of the
 * mantissa. Further planes are the lower bytes, which are noise, or zeros where the number was a narrower one once.
 * Layout: quantizers/lossless.py. */
#include "huffman.h"

#include <assert.h>

#define GROUP (1 << 18)                        /* numbers whose planes are coded together */
#define STEP (TB_STREAMS_AT_ONCE * TB_STREAM) /* numbers that are put together at a time */
#define MOST_PLANES 8
#define SAMPLES 1024
#define RAW 0 /* TB_RAW of huffman.h, that leaves symbols as they are */

/* Working memory, of which the caller gives 512 KiB. */
union work {
    uint8_t plane[GROUP];
    struct {
        struct tb_huffman huffman[MOST_PLANES];
        uint8_t planes[MOST_PLANES][STEP];
    };
};
static_assert(sizeof(union work) <= 512 << 10, "what quantizers/lossless.py gives");

/* What is done with the numbers: they are written to out, or else added to sums. */
struct target {
    int dtype, sum;
    uint8_t *out;
    void *sums;
    double weight;
};

/* --- planes: plain loops, which compilers make good vectors of, for each size of number --------------- */

#define PLANES_OF(word, bits)                                                                                          \
    TB_INLINE word turned_##bits(word number, int left)                                                                \
    {                                                                                                                  \
        word upper = (word)(number >> (bits - 16)) & 0xFFFF, lower = (word)(number ^ (word)(upper << (bits - 16)));    \
        upper = (word)(upper << left | upper >> (16 - left)) & 0xFFFF;                                                 \
        return (word)((word)(upper << (bits - 16)) | lower);                                                           \
    }                                                                                                                  \
    TB_INLINE void split_##bits(const uint8_t *restrict source, int64_t count, uint8_t *restrict out, int shift)       \
    {                                                                                                                  \
        for (int64_t i = 0; i < count; i++) {                                                                          \
            word number;                                                                                               \
            memcpy(&number, source + i * (bits / 8), bits / 8);                                                        \
            out[i] = (uint8_t)(turned_##bits(number, 1) >> shift);                                                     \
        }                                                                                                              \
    }                                                                                                                  \
    TB_INLINE void join_##bits(const uint8_t *const planes[], int64_t count, uint8_t *restrict out)                    \
    {                                                                                                                  \
        for (int64_t i = 0; i < count; i++) {                                                                          \
            word number = 0;                                                                                           \
            for (int plane = 0; plane < bits / 8; plane++)                                                             \
                number |= (word)((word)planes[plane][i] << (bits - 8 - 8 * plane));                                    \
            number = turned_##bits(number, 15);                                                                        \
            memcpy(out + i * (bits / 8), &number, bits / 8);                                                           \
        }                                                                                                              \
    }

PLANES_OF(uint16_t, 16)
PLANES_OF(uint32_t, 32)
PLANES_OF(uint64_t, 64)

/* One plane of a group. */
TB_INLINE void split_any(int itemsize, int plane, const uint8_t *source, int64_t count, uint8_t *out)
{
    int shift = 8 * (itemsize - 1 - plane);
    if (itemsize == 2)
        split_16(source, count, out, shift);
    else if (itemsize == 4)
        split_32(source, count, out, shift);
    else
        split_64(source, count, out, shift);
}

TB_INLINE void join_any(int itemsize, const uint8_t *const planes[], int64_t count, uint8_t *out)
{
    if (itemsize == 2)
        join_16(planes, count, out);
    else if (itemsize == 4)
        join_32(planes, count, out);
    else
        join_64(planes, count, out);
}

#ifdef TB_X86
TB_AVX2 static void split_avx2(int itemsize, int plane, const uint8_t *source, int64_t count, uint8_t *out)
{
    split_any(itemsize, plane, source, count, out);
}

TB_AVX2 static void join_avx2(int itemsize, const uint8_t *const planes[], int64_t count, uint8_t *out)
{
    join_any(itemsize, planes, count, out);
}

TB_AVX512 static void split_avx512(int itemsize, int plane, const uint8_t *source, int64_t count, uint8_t *out)
{
    split_any(itemsize, plane, source, count, out);
}

TB_AVX512 static void join_avx512(int itemsize, const uint8_t *const planes[], int64_t count, uint8_t *out)
{
    join_any(itemsize, planes, count, out);
}
#endif

static void split(int itemsize, int plane, const uint8_t *source, int64_t count, uint8_t *out)
{
#ifdef TB_X86
    if (tb_isa() >= TB_ISA_AVX512)
        split_avx512(itemsize, plane, source, count, out);
    else if (tb_isa() >= TB_ISA_AVX2)
        split_avx2(itemsize, plane, source, count, out);
    else
#endif
        split_any(itemsize, plane, source, count, out);
}

static void join(int itemsize, const uint8_t *const planes[], int64_t count, uint8_t *out)
{
#ifdef TB_X86
    if (tb_isa() >= TB_ISA_AVX512)
        join_avx512(itemsize, planes, count, out);
    else if (tb_isa() >= TB_ISA_AVX2)
        join_avx2(itemsize, planes, count, out);
    else
#endif
        join_any(itemsize, planes, count, out);
}

/* Whether coding a plane may pay: two of its bytes are equal at least 5/4 times as often as two of noise. */
static int promising(int itemsize, int plane, const uint8_t *source, int64_t count)
{
    uint32_t seen[256] = {0};
    int64_t step = count > SAMPLES ? count / SAMPLES : 1, samples = tb_min(count, SAMPLES), pairs = 0;
    for (int64_t i = 0; i < samples; i++) {
        uint8_t byte;
        split_any(itemsize, plane, source + i * step * itemsize, 1, &byte);
        pairs += seen[byte]++;
    }
    return 4 * 256 * 2 * pairs > 5 * samples * (samples - 1);
}

/* --- slices ----------------------------------------------------------------------------------------- */

/* Returns the bytes written; out has room for itemsize * (count + 5 * groups). */
TB_EXPORT int64_t tb_planes_encode(int dtype, const uint8_t *source, int64_t count, void *memory, uint8_t *out)
{
    int itemsize = (int)tb_itemsize(dtype);
    uint8_t *symbols = ((union work *)memory)->plane, *end = out;
    for (int64_t first = 0; first < count; first += GROUP) {
        int64_t part = tb_min(GROUP, count - first);
        const uint8_t *numbers = source + first * itemsize;
        for (int plane = 0; plane < itemsize; plane++) {
            uint8_t *coded = end + 4;
            int64_t nbytes = 1 + part;
            if (promising(itemsize, plane, numbers, part)) {
                split(itemsize, plane, numbers, part, symbols);
                nbytes = tb_huffman_encode(symbols, part, coded);
            } else {
                coded[0] = RAW;
                split(itemsize, plane, numbers, part, coded + 1);
            }
            uint32_t size = (uint32_t)nbytes;
            memcpy(end, &size, 4);
            end = coded + nbytes;
        }
    }
    return end - out;
}

/* Begins to decode a plane of count numbers at payload, unless it is stored, at *stored. Returns its bytes. */
static int64_t open_plane(const uint8_t *payload, int64_t nbytes, int64_t count, struct tb_huffman *huffman,
                          const uint8_t **stored)
{
    uint32_t size;
    if (nbytes < 4)
        return TB_MALFORMED;
    memcpy(&size, payload, 4);
    if (size > nbytes - 4)
        return TB_MALFORMED;
    const uint8_t *coded = payload + 4;
    if (size == 1 + count && coded[0] == RAW)
        *stored = coded + 1;
    else if (tb_huffman_open(huffman, coded, size, count) < 0)
        return TB_MALFORMED;
    return 4 + (int64_t)size;
}

/* The numbers from first on, whose planes these are. */
static int64_t finish(const struct target *to, const uint8_t *planes[], int64_t first, int64_t count)
{
    int itemsize = (int)tb_itemsize(to->dtype);
    if (to->out) {
        join(itemsize, planes, count, to->out + first * itemsize);
        return TB_OK;
    }
    double numbers[TB_CHUNK];
    for (int64_t done = 0, part; done < count; done += part) {
        part = tb_min(TB_CHUNK, count - done);
        join(itemsize, planes, part, (uint8_t *)numbers);
        for (int plane = 0; plane < itemsize; plane++)
            planes[plane] += part;
        char *sums = (char *)to->sums + (first + done) * (to->sum == TB_SUM32 ? 4 : 8);
        if (tb_accumulate(to->dtype, numbers, part, to->sum, sums, to->weight) < 0)
            return TB_NON_FINITE;
    }
    return TB_OK;
}

static int64_t decode(const uint8_t *payload, int64_t nbytes, int64_t count, union work *work, const struct target *to)
{
    int itemsize = (int)tb_itemsize(to->dtype);
    for (int64_t group = 0; group < count; group += GROUP) {
        int64_t part = tb_min(GROUP, count - group);
        const uint8_t *stored[MOST_PLANES] = {NULL}, *planes[MOST_PLANES];
        for (int plane = 0; plane < itemsize; plane++) {
            int64_t read = open_plane(payload, nbytes, part, &work->huffman[plane], &stored[plane]);
            if (read < 0)
                return TB_MALFORMED;
            payload += read;
            nbytes -= read;
        }
        for (int64_t first = 0; first < part; first += STEP) {
            for (int plane = 0; plane < itemsize; plane++) {
                struct tb_ahead none = {NULL, NULL};
                planes[plane] = stored[plane] ? stored[plane] + first : work->planes[plane];
                if (!stored[plane] && tb_huffman_read(&work->huffman[plane], work->planes[plane], TB_STREAM, none) < 0)
                    return TB_MALFORMED;
            }
            int64_t status = finish(to, planes, group + first, tb_min(STEP, part - first));
            if (status < 0)
                return status;
        }
    }
    return nbytes == 0 ? TB_OK : TB_MALFORMED;
}

TB_EXPORT int64_t tb_planes_decode(int dtype, const uint8_t *payload, int64_t nbytes, int64_t count, void *memory,
                                   uint8_t *out)
{
    const struct target to = {.dtype = dtype, .out = out};
    return decode(payload, nbytes, count, memory, &to);
}

TB_EXPORT int64_t tb_planes_accumulate(int dtype, const uint8_t *payload, int64_t nbytes, int64_t count, void *memory,
                                       int sum, void *sums, double weight)
{
    const struct target to = {.dtype = dtype, .sum = sum, .sums = sums, .weight = weight};
    return decode(payload, nbytes, count, memory, &to);
}
