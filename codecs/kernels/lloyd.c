/* Lloyd-Max codes of 1 to 4 bits: the root mean square of a block, then one plane of bits for each bit of its codes.
 *
 * A code is a rank, the number of limits (thresholds times the root mean square) below the magnitude, and above it
 * the sign. Planes of bits are what comparisons of vectors give: as rank rises, bit j of it changes at each limit
 * whose number is a multiple of 2^j, so plane j is the parity of those comparisons, and no code is ever put together
 * or taken apart where vectors have masks. Layout and levels are those of quantizers/lloyd.py. */
#include "rms.h"

#include <float.h>

#define RANKS 8 /* of 4 bits, the most */

/* Calls function with the number of bits as a constant, so that its inner loops unroll. */
#define FOR_BITS(function, ...) \
    (bits == 1   ? function(1, __VA_ARGS__) \
     : bits == 2 ? function(2, __VA_ARGS__) \
     : bits == 3 ? function(3, __VA_ARGS__) \
                 : function(4, __VA_ARGS__))

TB_INLINE int64_t plane_bytes(int64_t count) { return (count + 7) / 8; }

/* --- plain C: a byte for each code, of which a multiplication collects the bits --------------------- */

TB_INLINE uint8_t eight_bits(const uint8_t *codes, int bit)
{
    uint64_t eight;
    memcpy(&eight, codes, 8);
    /* Bit 8i goes to bit 56 + i; no two products meet. */
    return (uint8_t)(((eight >> bit & 0x0101010101010101u) * 0x0102040810204080u) >> 56);
}

TB_INLINE int encode_plain(int bits, const float *limits, const float *values, int64_t first, int64_t count,
                           uint8_t *planes)
{
    int64_t stride = plane_bytes(count);
    for (int64_t i = first; i < count; i += 64) {
        uint8_t codes[64] = {0};
        uint32_t words[64] = {0};
        int64_t part = tb_min(64, count - i);
        memcpy(words, values + i, (size_t)part * 4);
        for (int64_t j = 0; j < 64; j++) {
            uint32_t word = words[j] & 0x7FFFFFFF;
            float magnitude;
            memcpy(&magnitude, &word, 4);
            uint32_t code = words[j] >> 31 << (bits - 1);
            for (int k = 1; k < 1 << (bits - 1); k++)
                code += magnitude > limits[k];
            codes[j] = (uint8_t)code;
        }
        for (int bit = 0; bit < bits; bit++)
            for (int64_t j = 0; j < part; j += 8)
                planes[bit * stride + (i + j) / 8] = eight_bits(codes + j, bit);
    }
    return 0;
}

TB_INLINE int decode_plain(int bits, const float *levels, const uint8_t *planes, int64_t first, int64_t count,
                           tb_any_float *values)
{
    int64_t stride = plane_bytes(count);
    int ranks = 1 << (bits - 1);
    float of_code[2 * RANKS];
    for (int rank = 0; rank < ranks; rank++) {
        of_code[rank] = levels[rank];
        of_code[ranks + rank] = -levels[rank];
    }
    for (int64_t i = first; i < count; i++) {
        unsigned code = 0;
        for (int bit = 0; bit < bits; bit++)
            code |= (planes[bit * stride + i / 8] >> (i % 8) & 1u) << bit;
        values[i] = of_code[code];
    }
    return 0;
}

/* --- AVX2: eight values, a byte of each plane. These return how many values they did. --------------- */

#ifdef TB_X86
TB_AVX2 TB_INLINE int64_t encode_eights(int bits, const float *limits, const float *values, int64_t count,
                                        uint8_t *planes)
{
    int64_t stride = plane_bytes(count), whole = count - count % 8;
    for (int64_t i = 0; i < whole; i += 8) {
        __m256 value = _mm256_loadu_ps(values + i);
        __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), value);
        int planar[4] = {0};
        for (int k = 1; k < 1 << (bits - 1); k++) {
            int above = _mm256_movemask_ps(_mm256_cmp_ps(magnitude, _mm256_set1_ps(limits[k]), _CMP_GT_OQ));
            for (int bit = 0; bit < bits - 1; bit++)
                if (k % (1 << bit) == 0)
                    planar[bit] ^= above;
        }
        planar[bits - 1] = _mm256_movemask_ps(value);
        for (int bit = 0; bit < bits; bit++)
            planes[bit * stride + i / 8] = (uint8_t)planar[bit];
    }
    return whole;
}

TB_AVX2 TB_INLINE int64_t decode_eights(int bits, const float *levels, const uint8_t *planes, int64_t count,
                                        float *values)
{
    int64_t stride = plane_bytes(count), whole = count - count % 8;
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256 level = _mm256_loadu_ps(levels);
    for (int64_t i = 0; i < whole; i += 8) {
        /* The bytes of all planes side by side, the signs on top: shifted by its number, each lane has its own
         * bits at 0, 8, 16 and 24. */
        uint32_t word = (uint32_t)planes[(bits - 1) * stride + i / 8] << 24;
        for (int bit = 0; bit < bits - 1; bit++)
            word |= (uint32_t)planes[bit * stride + i / 8] << (8 * bit);
        __m256i own = _mm256_srlv_epi32(_mm256_set1_epi32((int)word), lanes);
        __m256i sign = _mm256_slli_epi32(_mm256_srli_epi32(own, 24), 31);
        __m256i rank = _mm256_and_si256(own, _mm256_set1_epi32(0x010101));
        rank = _mm256_or_si256(rank, _mm256_or_si256(_mm256_srli_epi32(rank, 7), _mm256_srli_epi32(rank, 14)));
        /* permutevar8x32 looks at the lowest three bits only. */
        __m256 magnitude = _mm256_permutevar8x32_ps(level, rank);
        _mm256_storeu_ps(values + i, _mm256_xor_ps(magnitude, _mm256_castsi256_ps(sign)));
    }
    return whole;
}

TB_AVX2 static int64_t encode_avx2(int bits, const float *limits, const float *values, int64_t count, uint8_t *planes)
{
    return FOR_BITS(encode_eights, limits, values, count, planes);
}

TB_AVX2 static int64_t decode_avx2(int bits, const float *levels, const uint8_t *planes, int64_t count, float *values)
{
    return FOR_BITS(decode_eights, levels, planes, count, values);
}

/* --- AVX-512: sixteen values, whose masks are two bytes of each plane ------------------------------- */

TB_AVX512 TB_INLINE int64_t encode_sixteens(int bits, const float *limits, const float *values, int64_t count,
                                            uint8_t *planes)
{
    int64_t stride = plane_bytes(count), whole = count - count % 16;
    for (int64_t i = 0; i < whole; i += 16) {
        __m512 value = _mm512_loadu_ps(values + i), magnitude = _mm512_abs_ps(value);
        __mmask16 planar[4] = {0};
        for (int k = 1; k < 1 << (bits - 1); k++) {
            __mmask16 above = _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(limits[k]), _CMP_GT_OQ);
            for (int bit = 0; bit < bits - 1; bit++)
                if (k % (1 << bit) == 0)
                    planar[bit] = _kxor_mask16(planar[bit], above);
        }
        planar[bits - 1] = _mm512_movepi32_mask(_mm512_castps_si512(value));
        for (int bit = 0; bit < bits; bit++)
            memcpy(planes + bit * stride + i / 8, &planar[bit], 2);
    }
    return whole;
}

TB_AVX512 TB_INLINE int64_t decode_sixteens(int bits, const float *levels, const uint8_t *planes, int64_t count,
                                            float *values)
{
    int64_t stride = plane_bytes(count), whole = count - count % 16;
    const __m512 level = _mm512_castps256_ps512(_mm256_loadu_ps(levels));
    for (int64_t i = 0; i < whole; i += 16) {
        __m512i rank = _mm512_setzero_si512();
        __mmask16 plane;
        for (int bit = 0; bit < bits - 1; bit++) {
            memcpy(&plane, planes + bit * stride + i / 8, 2);
            rank = _mm512_mask_or_epi32(rank, plane, rank, _mm512_set1_epi32(1 << bit));
        }
        __m512i magnitude = _mm512_castps_si512(_mm512_permutexvar_ps(rank, level));
        memcpy(&plane, planes + (bits - 1) * stride + i / 8, 2);
        magnitude = _mm512_mask_xor_epi32(magnitude, plane, magnitude, _mm512_set1_epi32(INT32_MIN));
        _mm512_storeu_ps(values + i, _mm512_castsi512_ps(magnitude));
    }
    return whole;
}

TB_AVX512 static int64_t encode_avx512(int bits, const float *limits, const float *values, int64_t count,
                                       uint8_t *planes)
{
    return FOR_BITS(encode_sixteens, limits, values, count, planes);
}

TB_AVX512 static int64_t decode_avx512(int bits, const float *levels, const uint8_t *planes, int64_t count,
                                       float *values)
{
    return FOR_BITS(decode_sixteens, levels, planes, count, values);
}
#endif

/* --- blocks ----------------------------------------------------------------------------------------- */

static void encode_planes(int bits, const float *limits, const float *values, int64_t count, uint8_t *planes)
{
    int64_t done = 0;
#ifdef TB_X86
    if (tb_isa() >= TB_ISA_AVX512)
        done = encode_avx512(bits, limits, values, count, planes);
    else if (tb_isa() >= TB_ISA_AVX2)
        done = encode_avx2(bits, limits, values, count, planes);
#endif
    if (done < count)
        FOR_BITS(encode_plain, limits, values, done, count, planes);
}

static void decode_planes(int bits, const float *levels, const uint8_t *planes, int64_t count, float *values)
{
    int64_t done = 0;
#ifdef TB_X86
    if (tb_isa() >= TB_ISA_AVX512)
        done = decode_avx512(bits, levels, planes, count, values);
    else if (tb_isa() >= TB_ISA_AVX2)
        done = decode_avx2(bits, levels, planes, count, values);
#endif
    if (done < count)
        FOR_BITS(decode_plain, levels, planes, done, count, values);
}

/* The levels of a block: of finite values none is larger than the dtype's largest number. */
static void scaled_levels(int dtype, int bits, const float *levels, float rms, float *scaled)
{
    float largest = dtype == TB_FLOAT16 ? 65504.0f : dtype == TB_BFLOAT16 ? 0x1.FEp127f : FLT_MAX;
    for (int rank = 0; rank < 1 << (bits - 1); rank++) {
        scaled[rank] = levels[rank] * rms;
        if (rms <= FLT_MAX && scaled[rank] > largest)
            scaled[rank] = largest;
    }
}

/* blocksize is at most TB_CHUNK. thresholds and levels have an entry for each rank; thresholds[0] is unused. */
TB_EXPORT int64_t tb_lloyd_encode(int dtype, int bits, const float *thresholds, const void *source, int64_t count,
                                  int64_t blocksize, uint8_t *payload)
{
    float chunk[TB_CHUNK], limits[RANKS] = {0};
    for (int64_t first = 0; first < count; first += blocksize) {
        int64_t part = tb_min(blocksize, count - first);
        const float *values = tb_load(dtype, source, first, part, chunk);
        float rms = tb_rms(values, part);
        if (!(rms <= FLT_MAX))
            return TB_NON_FINITE;
        for (int k = 1; k < 1 << (bits - 1); k++)
            limits[k] = thresholds[k] * rms;
        memcpy(payload, &rms, 4);
        encode_planes(bits, limits, values, part, payload + 4);
        payload += 4 + bits * plane_bytes(part);
    }
    return TB_OK;
}

TB_EXPORT int64_t tb_lloyd_decode(int dtype, int bits, const float *levels, const uint8_t *payload, int64_t count,
                                  int64_t blocksize, void *out)
{
    float chunk[TB_CHUNK], rms, scaled[RANKS] = {0};
    for (int64_t first = 0; first < count; first += blocksize) {
        int64_t part = tb_min(blocksize, count - first);
        float *values = dtype == TB_FLOAT32 ? (float *)out + first : chunk;
        memcpy(&rms, payload, 4);
        scaled_levels(dtype, bits, levels, rms, scaled);
        decode_planes(bits, scaled, payload + 4, part, values);
        tb_store(dtype, out, first, part, values);
        payload += 4 + bits * plane_bytes(part);
    }
    return TB_OK;
}

TB_EXPORT int64_t tb_lloyd_accumulate(int dtype, int bits, const float *levels, const uint8_t *payload, int64_t count,
                                      int64_t blocksize, int sum, void *sums, double weight)
{
    float chunk[TB_CHUNK], rms, scaled[RANKS] = {0};
    for (int64_t first = 0; first < count; first += blocksize) {
        int64_t part = tb_min(blocksize, count - first);
        memcpy(&rms, payload, 4);
        scaled_levels(dtype, bits, levels, rms, scaled);
        decode_planes(bits, scaled, payload + 4, part, chunk);
        if (tb_add(dtype, sum, sums, first, part, chunk, weight) < 0)
            return TB_NON_FINITE;
        payload += 4 + bits * plane_bytes(part);
    }
    return TB_OK;
}
