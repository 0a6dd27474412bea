/* Even steps: values as whole multiples of a step of each block, entropy-coded. quantizers/uniform.py describes the
 * payload and how a block is coded.
 *
 * A group of blocks shares one Huffman code. Encoding quantises a group into `symbols` (a byte for each value, in
 * memory that the caller lends) and counts them block by block, while they are in the first-level cache; then it
 * codes them. Decoding takes the streams of eight blocks at a time, and goes from their symbols straight to values. */
#include "huffman.h"
#include "rms.h"

#include <float.h>
#include <math.h>

#define BLOCK TB_STREAM
#define GROUP (256 * BLOCK)

/* A stream's buffer is a few lines longer than the stream, so that the eight do not share sets of the cache. */
#define STRIDE (BLOCK + 192)

TB_INLINE uint32_t load32(const uint8_t *at)
{
    uint32_t word;
    memcpy(&word, at, 4);
    return word;
}

TB_INLINE uint8_t *store32(uint8_t *at, uint32_t word)
{
    memcpy(at, &word, 4);
    return at + 4;
}

TB_INLINE int64_t low_bytes(int64_t count, int low_bits) { return (count * low_bits + 7) / 8; }

TB_INLINE int is_zero(const uint8_t *scale) { return (load32(scale) & 0x7FFFFFFF) == 0; }

/* --- encoding a block ------------------------------------------------------------------------------- */

/* Symbols are the high bits of the codes plus 128, lows the low bits. Returns the largest magnitude of a code. */
TB_INLINE int32_t quantise_loop(const tb_any_float *values, int64_t count, float factor, int low_bits,
                                uint8_t *symbols, uint8_t *lows)
{
    int32_t largest = 0, mask = (1 << low_bits) - 1;
    for (int64_t i = 0; i < count; i++) {
        /* Added to 1.5 * 2^23, a number less than 2^22 is rounded to the nearest integer, ties to even. */
        float shifted = values[i] * factor + 0x1.8p23f;
        int32_t code;
        memcpy(&code, &shifted, 4);
        code -= 0x4B400000;
        int32_t magnitude = code < 0 ? -code : code;
        largest = magnitude > largest ? magnitude : largest;
        symbols[i] = (uint8_t)((code >> low_bits) + 128);
        if (low_bits)
            lows[i] = (uint8_t)(code & mask);
    }
    return largest;
}

TB_DISPATCHED(int32_t, quantise,
              (const tb_any_float *values, int64_t count, float factor, int low_bits, uint8_t *symbols, uint8_t *lows),
              (values, count, factor, low_bits, symbols, lows))

/* Byte j holds the low bits of the values j, j + n, j + 2n, ..., where n is the number of bytes. */
static void pack_lows(const uint8_t *lows, int64_t count, int low_bits, uint8_t *out)
{
    int64_t bytes = low_bytes(count, low_bits);
    memset(out, 0, (size_t)bytes);
    for (int64_t start = 0, shift = 0; start < count; start += bytes, shift += low_bits)
        for (int64_t j = 0, part = tb_min(bytes, count - start); j < part; j++)
            out[j] |= (uint8_t)(lows[start + j] << shift);
}

/* What is exceptional: codes beyond the range become 0, and their values escapes; codes that would decode to more than
 * the dtype's largest number become the largest that do not. Returns the end of the escapes, or NULL if there are more
 * than `most`, and room for no more: only values that another thread changes meanwhile have that many. */
static uint8_t *set_apart(const float *values, int64_t count, float factor, int low_bits, int32_t limit,
                          uint32_t first, uint8_t *symbols, uint8_t *lows, uint8_t *escapes, int64_t most)
{
    int32_t range = (128 << low_bits) - 1;
    for (int64_t i = 0; i < count; i++) {
        int32_t code = (int32_t)rintf(values[i] * factor);
        if (code > range || code < -range) {
            if (most-- == 0)
                return NULL;
            escapes = store32(escapes, first + (uint32_t)i);
            memcpy(escapes, values + i, 4);
            escapes += 4;
            code = 0;
        }
        code = code > limit ? limit : code < -limit ? -limit : code;
        symbols[i] = (uint8_t)((code >> low_bits) + 128);
        lows[i] = (uint8_t)(code & ((1 << low_bits) - 1));
    }
    return escapes;
}

static float largest_of(int dtype)
{
    return dtype == TB_FLOAT16 ? 65504.0f : dtype == TB_BFLOAT16 ? 0x1.FEp127f : FLT_MAX;
}

/* --- encoding a group ------------------------------------------------------------------------------- */

/* Writes the group's payload to out; its bytes, or TB_NON_FINITE, or TB_MALFORMED if the values change meanwhile. */
static int64_t encode_group(int dtype, const void *source, int64_t first, int64_t count, double step, int low_bits,
                            uint8_t *symbols, uint8_t *out)
{
    float chunk[BLOCK];
    uint8_t lows[BLOCK];
    struct tb_counts counts = {0};
    const double gain = 1.0 / (1.0 + step * step / 12.0);
    const int32_t range = (128 << low_bits) - 1;
    /* Escapes are collected behind the symbols. */
    uint8_t *escapes = symbols + GROUP, *scales = out + 8;
    uint8_t *at = scales + 4 * ((count + BLOCK - 1) / BLOCK);
    int64_t coded = 0;
    for (int64_t start = 0; start < count; start += BLOCK) {
        int64_t part = tb_min(BLOCK, count - start);
        const float *values = tb_load(dtype, source, first + start, part, chunk);
        float rms = tb_rms(values, part);
        if (!(rms <= FLT_MAX))
            return TB_NON_FINITE;
        double wide = step * (double)rms;
        float unit = wide < (double)FLT_MAX ? (float)wide : FLT_MAX;
        if (unit < FLT_MIN) {
            scales = store32(scales, 0);
            continue;
        }
        float factor = (float)(1.0 / (double)unit), scale = (float)(gain * (double)unit);
        double most = floor((double)largest_of(dtype) / (double)scale);
        int32_t limit = most < range ? (int32_t)most : range;
        uint8_t *to = symbols + coded;
        if (quantise(values, part, factor, low_bits, to, lows) > limit)
            escapes = set_apart(values, part, factor, low_bits, limit, (uint32_t)start, to, lows, escapes,
                                (int64_t)((double)part / (range * step * (range * step))));
        if (!escapes)
            return TB_MALFORMED;
        /* Counting needs no memory, so what is quantised next can come from there meanwhile. */
        const char *next = (const char *)source + (first + start + part) * tb_itemsize(dtype);
        for (int64_t i = 0, end = tb_min(BLOCK, count - start - part) * tb_itemsize(dtype); i < end; i += 64)
            __builtin_prefetch(next + i, 0, 2);
        tb_count(&counts, to, part);
        memcpy(scales, &scale, 4);
        scales += 4;
        if (low_bits) {
            pack_lows(lows, part, low_bits, at);
            at += low_bytes(part, low_bits);
        }
        coded += part;
    }
    int64_t escaped = escapes - (symbols + GROUP);
    memcpy(at, symbols + GROUP, (size_t)escaped);
    at += escaped;
    int64_t written = coded ? tb_huffman_write(&counts, symbols, coded, at) : 0;
    store32(store32(out, (uint32_t)(escaped / 8)), (uint32_t)written);
    return at + written - out;
}

/* symbols: memory for a byte for each value of a group, and 8 for each escape of it. */
TB_EXPORT int64_t tb_even_encode(int dtype, const void *source, int64_t count, double step, int low_bits,
                                 uint8_t *symbols, uint8_t *out)
{
    uint8_t *at = out;
    for (int64_t first = 0; first < count; first += GROUP) {
        int64_t part = tb_min(GROUP, count - first);
        int64_t written = encode_group(dtype, source, first, part, step, low_bits, symbols, at);
        if (written < 0)
            return written;
        at += written;
    }
    return at - out;
}

/* --- decoding --------------------------------------------------------------------------------------- */

TB_INLINE void dequantise_loop(const uint8_t *symbols, const uint8_t *lows, int64_t count, float scale, int low_bits,
                               tb_any_float *values)
{
    if (low_bits)
        for (int64_t i = 0; i < count; i++)
            values[i] = (float)(((int32_t)symbols[i] - 128) * (1 << low_bits) + lows[i]) * scale;
    else
        for (int64_t i = 0; i < count; i++)
            values[i] = (float)((int32_t)symbols[i] - 128) * scale;
}

TB_DISPATCHED(void, dequantise,
              (const uint8_t *symbols, const uint8_t *lows, int64_t count, float scale, int low_bits,
               tb_any_float *values),
              (symbols, lows, count, scale, low_bits, values))

static void unpack_lows(const uint8_t *packed, int64_t count, int low_bits, uint8_t *lows)
{
    int64_t bytes = low_bytes(count, low_bits);
    for (int64_t start = 0, shift = 0; start < count; start += bytes, shift += low_bits)
        for (int64_t j = 0, part = tb_min(bytes, count - start); j < part; j++)
            lows[start + j] = (uint8_t)(packed[j] >> shift & ((1 << low_bits) - 1));
}

/* Where decoded values go: to elements of out, or, weighted, to sums. */
struct target {
    int dtype;
    void *out;
    int sum;
    void *sums;
    double weight;
};

/* The memory of these elements of the target. */
static struct tb_ahead goal(const struct target *to, int64_t first, int64_t count)
{
    int64_t size = to->out ? tb_itemsize(to->dtype) : to->sum == TB_SUM64 ? 8 : 4;
    const char *at = (const char *)(to->out ? to->out : to->sums) + first * size;
    return (struct tb_ahead){at, at + count * size};
}

/* Decodes the group at payload, of which nbytes are left at most; its bytes, or an error. */
static int64_t decode_group(const uint8_t *payload, int64_t nbytes, int64_t first, int64_t count, int low_bits,
                            const struct target *to)
{
    float chunk[BLOCK];
    uint8_t lows[BLOCK], symbols[TB_STREAMS_AT_ONCE * STRIDE];
    struct tb_huffman huffman;
    int64_t blocks = (count + BLOCK - 1) / BLOCK, coded = 0, low_size = 0;
    if (nbytes < 8 + 4 * blocks)
        return TB_MALFORMED;
    int64_t escapes = load32(payload), written = load32(payload + 4);
    const uint8_t *scales = payload + 8, *low = scales + 4 * blocks;
    for (int64_t i = 0; i < blocks; i++)
        if (!is_zero(scales + 4 * i)) {
            int64_t part = tb_min(BLOCK, count - i * BLOCK);
            coded += part;
            low_size += low_bytes(part, low_bits);
        }
    int64_t size = 8 + 4 * blocks + low_size + 8 * escapes + written;
    if (nbytes < size || (coded == 0 && written))
        return TB_MALFORMED;
    const uint8_t *escape = low + low_size, *end = escape + 8 * escapes;
    if (coded && tb_huffman_open(&huffman, end, written, coded) < 0)
        return TB_MALFORMED;
    int64_t previous = -1;
    int next = TB_STREAMS_AT_ONCE;
    for (int64_t start = 0; start < count; start += BLOCK, scales += 4) {
        int64_t part = tb_min(BLOCK, count - start);
        float *values = to->out && to->dtype == TB_FLOAT32 ? (float *)to->out + first + start : chunk;
        if (is_zero(scales))
            memset(values, 0, (size_t)part * 4);
        else {
            if (next == TB_STREAMS_AT_ONCE) {
                struct tb_ahead ahead = goal(to, first + start, tb_min(TB_STREAMS_AT_ONCE * BLOCK, count - start));
                if (tb_huffman_read(&huffman, symbols, STRIDE, ahead) < 0)
                    return TB_MALFORMED;
                next = 0;
            }
            float scale;
            memcpy(&scale, scales, 4);
            if (low_bits) {
                unpack_lows(low, part, low_bits, lows);
                low += low_bytes(part, low_bits);
            }
            dequantise(symbols + next++ * STRIDE, lows, part, scale, low_bits, values);
        }
        for (; escape < end && load32(escape) < start + part; escape += 8) {
            if ((int64_t)load32(escape) <= previous)
                return TB_MALFORMED;
            previous = load32(escape);
            memcpy((char *)values + 4 * (previous - start), escape + 4, 4);
        }
        if (to->out)
            tb_store(to->dtype, to->out, first + start, part, values);
        else if (tb_add(to->dtype, to->sum, to->sums, first + start, part, values, to->weight) < 0)
            return TB_NON_FINITE;
    }
    return escape == end ? size : TB_MALFORMED;
}

static int64_t decode_groups(const uint8_t *payload, int64_t nbytes, int64_t count, int low_bits,
                             const struct target *to)
{
    for (int64_t first = 0; first < count; first += GROUP) {
        int64_t read = decode_group(payload, nbytes, first, tb_min(GROUP, count - first), low_bits, to);
        if (read < 0)
            return read;
        payload += read;
        nbytes -= read;
    }
    return nbytes == 0 ? TB_OK : TB_MALFORMED;
}

TB_EXPORT int64_t tb_even_decode(int dtype, const uint8_t *payload, int64_t nbytes, int64_t count, int low_bits,
                                 void *out)
{
    const struct target to = {.dtype = dtype, .out = out};
    return decode_groups(payload, nbytes, count, low_bits, &to);
}

TB_EXPORT int64_t tb_even_accumulate(int dtype, const uint8_t *payload, int64_t nbytes, int64_t count, int low_bits,
                                     int sum, void *sums, double weight)
{
    const struct target to = {.dtype = dtype, .sum = sum, .sums = sums, .weight = weight};
    return decode_groups(payload, nbytes, count, low_bits, &to);
}
