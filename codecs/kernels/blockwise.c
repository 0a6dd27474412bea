/* Codes with one absmax for each block of values; see blockwise.h.
 *
 * Strategy. Steps of a few KiB: first the absmax of each block in the step, then the codes, for which the values are
 * still in the first-level cache. What the next step will read is asked for meanwhile, so that the memory does not
 * wait for the arithmetic. Tails are copied to the stack and filled up with zeros, so a tb_code sees whole rows only.
 */
#include "blockwise.h"

#define STEP 1024
#define MOST_BLOCKS (STEP / 32)
#define SMALLEST_ABSMAX 1e-38f
#define INFINITE 0x7F800000

TB_INLINE float clamped(float absmax) { return absmax > SMALLEST_ABSMAX ? absmax : SMALLEST_ABSMAX; }

/* The absmax of blocks and what to multiply them with; an integer maximum shows NaN and Inf, too. */
TB_INLINE int64_t scan_loop(const float *values, int64_t blocks, int64_t blocksize, float *absmax, float *factors)
{
    int32_t most = 0;
    for (int64_t block = 0; block < blocks; block++, values += blocksize) {
        int32_t largest = 0;
        for (int64_t i = 0; i < (blocksize & ~31); i++) { /* which it is; so the compiler needs no tail */
            int32_t bits;
            memcpy(&bits, values + i, 4);
            bits &= INT32_MAX;
            largest = bits > largest ? bits : largest;
        }
        memcpy(absmax + block, &largest, 4);
        most = largest > most ? largest : most;
    }
    for (int64_t block = 0; block < blocks; block++)
        factors[block] = 1 / clamped(absmax[block]);
    return most < INFINITE ? TB_OK : TB_NON_FINITE;
}

TB_DISPATCHED(int64_t, scan, (const float *values, int64_t blocks, int64_t blocksize, float *absmax, float *factors),
              (values, blocks, blocksize, absmax, factors))

TB_INLINE int64_t code_bytes(const tb_code *code, int64_t count) { return (count * code->bits + 7) / 8; }

TB_INLINE int64_t step_of(int64_t blocksize) { return blocksize > STEP ? blocksize : STEP; }

TB_INLINE int64_t whole_rows(int64_t count) { return (count + 31) / 32 * 32; }

TB_INLINE int aligned(const void *address) { return ((uintptr_t)address & 3) == 0; }

static const float *loaded(int dtype, const void *source, int64_t first, int64_t count, float *chunk)
{
    if (dtype == TB_FLOAT32 && !aligned(source))
        return memcpy(chunk, (const char *)source + 4 * first, (size_t)count * 4);
    return tb_load(dtype, source, first, count, chunk);
}

int64_t tb_blockwise_encode(const tb_code *code, int dtype, const void *source, int64_t count, int64_t blocksize,
                            uint8_t *codes, void *absmax)
{
    float chunk[TB_CHUNK], largest[MOST_BLOCKS], factors[MOST_BLOCKS];
    int64_t whole = count / blocksize * blocksize, step = step_of(blocksize), itemsize = tb_itemsize(dtype);
    for (int64_t first = 0; first < whole; first += step) {
        int64_t blocks = tb_min(step, whole - first) / blocksize;
        const float *values = loaded(dtype, source, first, blocks * blocksize, chunk);
        if (scan(values, blocks, blocksize, largest, factors) != TB_OK)
            return TB_NON_FINITE;
        tb_prefetch(source, (first + step) * itemsize, step * itemsize);
        code->encode(values, blocks, blocksize, factors, codes + code_bytes(code, first));
        memcpy((char *)absmax + first / blocksize * 4, largest, (size_t)blocks * 4);
    }
    if (whole < count) {
        int64_t tail = count - whole, rows = whole_rows(tail);
        uint8_t tail_codes[TB_CHUNK];
        memmove(chunk, loaded(dtype, source, whole, tail, chunk), (size_t)tail * 4);
        memset(chunk + tail, 0, (size_t)(rows - tail) * 4);
        if (scan(chunk, 1, rows, largest, factors) != TB_OK)
            return TB_NON_FINITE;
        largest[0] = clamped(largest[0]);
        for (int64_t i = 0; i < tail; i++)
            chunk[i] /= largest[0];
        code->encode(chunk, 1, rows, &(const float){1}, tail_codes);
        memcpy(codes + code_bytes(code, whole), tail_codes, (size_t)code_bytes(code, tail));
        memcpy((char *)absmax + whole / blocksize * 4, largest, 4);
    }
    return TB_OK;
}

/* Elements [first, first + count) to values: whole blocks, or a tail. */
static void decode_step(const tb_code *code, const uint8_t *codes, const void *absmax, int64_t first, int64_t count,
                        int64_t blocksize, float *values)
{
    float largest[MOST_BLOCKS];
    int64_t size = tb_min(blocksize, count), blocks = count / size;
    codes += code_bytes(code, first);
    memcpy(largest, (const char *)absmax + first / blocksize * 4, (size_t)blocks * 4);
    if (size == whole_rows(size)) {
        code->decode(codes, blocks, size, largest, values);
    } else {
        uint8_t tail_codes[TB_CHUNK] = {0};
        memcpy(tail_codes, codes, (size_t)code_bytes(code, count));
        code->decode(tail_codes, 1, whole_rows(count), largest, values);
    }
}

int64_t tb_blockwise_decode(const tb_code *code, int dtype, const uint8_t *codes, const void *absmax, int64_t count,
                            int64_t blocksize, void *out)
{
    float chunk[TB_CHUNK];
    int64_t whole = count / blocksize * blocksize;
    int streamed = dtype == TB_FLOAT32 && count * 4 > TB_STREAMED;
    int in_place = dtype == TB_FLOAT32 && !streamed && aligned(out);
    for (int64_t first = 0, n; first < count; first += n) {
        n = tb_min(TB_STEP, (first < whole ? whole : count) - first);
        float *values = in_place && first < whole ? (float *)out + first : chunk;
        decode_step(code, codes, absmax, first, n, blocksize, values);
        if (streamed)
            tb_stream((char *)out + 4 * first, values, n);
        else if (values == chunk)
            tb_store(dtype, out, first, n, values);
    }
    tb_streamed();
    return TB_OK;
}

int64_t tb_blockwise_accumulate(const tb_code *code, int dtype, const uint8_t *codes, const void *absmax, int64_t count,
                                int64_t blocksize, int sum, void *sums, double weight)
{
    float chunk[TB_CHUNK];
    int64_t whole = count / blocksize * blocksize, itemsize = sum == TB_SUM32 ? 4 : 8;
    for (int64_t first = 0, n; first < count; first += n) {
        n = tb_min(TB_STEP, (first < whole ? whole : count) - first);
        tb_prefetch(sums, (first + n) * itemsize, n * itemsize);
        decode_step(code, codes, absmax, first, n, blocksize, chunk);
        if (tb_add(dtype, sum, sums, first, n, chunk, weight) != TB_OK)
            return TB_NON_FINITE;
    }
    return TB_OK;
}
