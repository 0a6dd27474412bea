/* nf4 and fp4: sixteen levels, two codes in a byte, the first value in the high half.
 *
 * Strategy. The rank of a value among the levels is the number of midpoints between levels that are below it (so that
 * ties go to the lower level), and the code is looked up by the rank. The plain path makes all fifteen comparisons.
 * AVX2 searches: four comparisons, each with the midpoint that the results so far choose by a permutation. AVX-512 cuts
 * [-1, 1] into cells of 1/15, open below and closed above, none of which holds two midpoints, even around the zero of
 * fp4: the cell chooses one midpoint to compare with, and cell and result together the code.
 * Decoding multiplies all sixteen levels by the absmax of the block and picks from these products: one permutation with
 * AVX-512, two with AVX2; with NEON a look-up for each of the four bytes of a float; elsewhere plain loads.
 */
#include "blockwise.h"

#define CELLS_PER_UNIT 15

typedef struct {
    float levels[16];    /* by code; the rest is computed when the library is loaded, and constant from then on */
    float midpoints[15]; /* between neighbours, rising */
    uint8_t codes[16];   /* by rank */
    float in_cell[32];   /* the midpoint in each cell, modulo 32; Inf where there is none */
    uint8_t settled[64]; /* the code by the cell, plus 32 if the value is above the midpoint, modulo 64 */
} tb_levels;

/* Quantiles of the normal distribution (Dettmers et al. 2023, arXiv:2305.14314), as bitsandbytes rounds them. */
static tb_levels NF4 = {.levels = {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
                         -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
                         0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
                         0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f}};

/* A sign, two bits of exponent and one of mantissa. Two codes are zero; the least values above it get the second. */
static tb_levels FP4 = {.levels = {0.0f, 0.0625f / 12, 8.0f / 12, 1.0f, 4.0f / 12, 6.0f / 12, 2.0f / 12, 3.0f / 12,
                         0.0f, -0.0625f / 12, -8.0f / 12, -1.0f, -4.0f / 12, -6.0f / 12, -2.0f / 12, -3.0f / 12}};

static void compute_tables(tb_levels *of)
{
    for (uint8_t code = 0; code < 16; code++) {
        int rank = 0;
        for (int other = 0; other < 16; other++)
            rank += of->levels[other] < of->levels[code] || (of->levels[other] == of->levels[code] && other < code);
        of->codes[rank] = code;
    }
    for (int rank = 0; rank < 15; rank++)
        of->midpoints[rank] = (of->levels[of->codes[rank]] + of->levels[of->codes[rank + 1]]) / 2;
    for (int cell = -CELLS_PER_UNIT, rank = 0; cell <= CELLS_PER_UNIT + 1; cell++) {
        while (rank < 15 && of->midpoints[rank] * CELLS_PER_UNIT <= cell - 1)
            rank++;
        int holds_one = rank < 15 && of->midpoints[rank] * CELLS_PER_UNIT < cell;
        of->in_cell[cell & 31] = holds_one ? of->midpoints[rank] : __builtin_inff();
        of->settled[cell & 63] = of->codes[rank];
        of->settled[(cell + 32) & 63] = of->codes[rank + holds_one];
    }
}

__attribute__((constructor)) static void compute_all_tables(void)
{
    compute_tables(&NF4);
    compute_tables(&FP4);
}

/* --- any processor -------------------------------------------------------------------------------- */

TB_INLINE void encode_plain(const tb_levels *of, const float *values, int64_t blocks, int64_t blocksize,
                            const float *factors, uint8_t *codes)
{
    for (int64_t block = 0; block < blocks; block++) {
        for (int64_t row = 0; row < blocksize; row += 32, values += 32) {
            float scaled[32];
            int32_t ranks[32] = {0};
            for (int i = 0; i < 32; i++)
                scaled[i] = values[i] * factors[block];
            for (int rank = 0; rank < 15; rank++)
                for (int i = 0; i < 32; i++)
                    ranks[i] += scaled[i] > of->midpoints[rank];
            for (int i = 0; i < 32; i += 2)
                *codes++ = (uint8_t)(of->codes[ranks[i]] << 4 | of->codes[ranks[i + 1]]);
        }
    }
}

TB_INLINE void decode_plain(const tb_levels *of, const uint8_t *codes, int64_t blocks, int64_t blocksize,
                            const float *absmax, float *values)
{
    for (int64_t block = 0; block < blocks; block++) {
        float products[16];
        for (int code = 0; code < 16; code++)
            products[code] = of->levels[code] * absmax[block];
#ifdef TB_NEON
        const uint8x16x4_t bytes = vld4q_u8((const uint8_t *)products); /* the lowest of each, and so on */
        for (int64_t row = 0; row < blocksize; row += 32, codes += 16, values += 32) {
            uint8x16_t first = vshrq_n_u8(vld1q_u8(codes), 4), second = vandq_u8(vld1q_u8(codes), vdupq_n_u8(15));
            uint8x16_t halves[2] = {vzip1q_u8(first, second), vzip2q_u8(first, second)};
            for (int half = 0; half < 2; half++) {
                uint8x16x4_t floats;
                for (int i = 0; i < 4; i++)
                    floats.val[i] = vqtbl1q_u8(bytes.val[i], halves[half]);
                vst4q_u8((uint8_t *)(values + 16 * half), floats);
            }
        }
#else
        for (int64_t i = 0; i < blocksize; i += 2, codes++) {
            *values++ = products[*codes >> 4];
            *values++ = products[*codes & 15];
        }
#endif
    }
}

#ifdef TB_X86
/* --- AVX2 ----------------------------------------------------------------------------------------- */

TB_AVX2 TB_INLINE void encode_avx2(const tb_levels *of, const float *values, int64_t blocks, int64_t blocksize,
                                   const float *factors, uint8_t *codes)
{
    /* A comparison gives -1 for true, so the rank is negative on the way. Its lower three bits choose the next midpoint:
     * the tables are filled from 0 downwards, modulo 8. */
    const float *m = of->midpoints;
    __m256 first = _mm256_set1_ps(m[7]), second_low = _mm256_set1_ps(m[3]), second_high = _mm256_set1_ps(m[11]);
    __m256 third = _mm256_setr_ps(m[1], 0, 0, 0, 0, m[13], m[9], m[5]);
    __m256 fourth = _mm256_setr_ps(m[0], m[14], m[12], m[10], m[8], m[6], m[4], m[2]);
    __m256i code_of_rank = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)of->codes));
    for (int64_t block = 0; block < blocks; block++) {
        __m256 factor = _mm256_set1_ps(factors[block]);
        for (int64_t row = 0; row < blocksize; row += 32, values += 32, codes += 16) {
            __m256i ranks[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                __m256 v = _mm256_mul_ps(_mm256_loadu_ps(values + 8 * i), factor);
                __m256 above = _mm256_cmp_ps(v, first, _CMP_GT_OQ);
                __m256i rank = _mm256_castps_si256(above);
                above = _mm256_cmp_ps(v, _mm256_blendv_ps(second_low, second_high, above), _CMP_GT_OQ);
                rank = _mm256_add_epi32(_mm256_add_epi32(rank, rank), _mm256_castps_si256(above));
                above = _mm256_cmp_ps(v, _mm256_permutevar8x32_ps(third, rank), _CMP_GT_OQ);
                rank = _mm256_add_epi32(_mm256_add_epi32(rank, rank), _mm256_castps_si256(above));
                above = _mm256_cmp_ps(v, _mm256_permutevar8x32_ps(fourth, rank), _CMP_GT_OQ);
                ranks[i] = _mm256_add_epi32(_mm256_add_epi32(rank, rank), _mm256_castps_si256(above));
            }
            /* Each half of the register gets half of each eight ranks; neighbours stay together. */
            __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(ranks[0], ranks[1]),
                                               _mm256_packs_epi32(ranks[2], ranks[3]));
            bytes = _mm256_shuffle_epi8(code_of_rank, _mm256_abs_epi8(bytes));
            __m256i pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi16(0x0110));
            pairs = _mm256_packus_epi16(pairs, pairs);
            _mm_storeu_si128((__m128i *)codes, _mm_unpacklo_epi16(_mm256_castsi256_si128(pairs),
                                                                  _mm256_extracti128_si256(pairs, 1)));
        }
    }
}

TB_AVX2 TB_INLINE void decode_avx2(const tb_levels *of, const uint8_t *codes, int64_t blocks, int64_t blocksize,
                                   const float *absmax, float *values)
{
    __m256 low_levels = _mm256_loadu_ps(of->levels), high_levels = _mm256_loadu_ps(of->levels + 8);
    /* Nibbles of a word in the order of their values; the highest bit of a code becomes the sign bit. */
    __m256i down = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24), up = _mm256_setr_epi32(24, 28, 16, 20, 8, 12, 0, 4);
    for (int64_t block = 0; block < blocks; block++) {
        __m256 low = _mm256_mul_ps(low_levels, _mm256_set1_ps(absmax[block]));
        __m256 high = _mm256_mul_ps(high_levels, _mm256_set1_ps(absmax[block]));
        for (int64_t i = 0; i < blocksize; i += 8, codes += 4, values += 8) {
            int32_t word;
            memcpy(&word, codes, 4);
            __m256i eight = _mm256_set1_epi32(word), code = _mm256_srlv_epi32(eight, down);
            __m256 sign = _mm256_castsi256_ps(_mm256_sllv_epi32(eight, up));
            _mm256_storeu_ps(values, _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, code),
                                                      _mm256_permutevar8x32_ps(high, code), sign));
        }
    }
}

/* --- AVX-512 -------------------------------------------------------------------------------------- */

TB_AVX512 TB_INLINE void encode_avx512(const tb_levels *of, const float *values, int64_t blocks, int64_t blocksize,
                                       const float *factors, uint8_t *codes)
{
    /* Adding 1.5 * 2^23 leaves an integer in the lowest bits, here rounded up to the number of the cell. */
    const __m512 integer = _mm512_set1_ps(0x1.8p23f), cells = _mm512_set1_ps(CELLS_PER_UNIT);
    const __m512 low_cells = _mm512_loadu_ps(of->in_cell), high_cells = _mm512_loadu_ps(of->in_cell + 16);
    const __m512i settled = _mm512_loadu_si512(of->settled), beyond = _mm512_set1_epi32(32);
    const __m512i lowest_bytes = _mm512_castsi256_si512(_mm256_setr_epi32(
        0x0C080400, 0x1C181410, 0x2C282420, 0x3C383430, 0x4C484440, 0x5C585450, 0x6C686460, 0x7C787470));
    for (int64_t block = 0; block < blocks; block++) {
        __m512 factor = _mm512_set1_ps(factors[block]);
        for (int64_t row = 0; row < blocksize; row += 32, values += 32, codes += 16) {
            __m512i keys[2];
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                __m512 v = _mm512_mul_ps(_mm512_loadu_ps(values + 16 * i), factor);
                __m512i cell = _mm512_castps_si512(
                    _mm512_fmadd_round_ps(v, cells, integer, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC));
                __m512 midpoint = _mm512_permutex2var_ps(low_cells, cell, high_cells);
                __mmask16 above = _mm512_cmp_ps_mask(v, midpoint, _CMP_GT_OQ);
                keys[i] = _mm512_mask_add_epi32(cell, above, cell, beyond);
            }
            __m512i bytes = _mm512_permutexvar_epi8(_mm512_permutex2var_epi8(keys[0], lowest_bytes, keys[1]), settled);
            __m256i pairs = _mm256_maddubs_epi16(_mm512_castsi512_si256(bytes), _mm256_set1_epi16(0x0110));
            _mm_storeu_si128((__m128i *)codes, _mm256_cvtepi16_epi8(pairs));
        }
    }
}

TB_AVX512 TB_INLINE void decode_avx512(const tb_levels *of, const uint8_t *codes, int64_t blocks, int64_t blocksize,
                                       const float *absmax, float *values)
{
    /* Word i of sixteen gets byte i / 2 of the eight, and its higher or lower half into the lower four bits. */
    __m512i bytes = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    __m512i down = _mm512_set1_epi64(4);
    __m512 levels = _mm512_loadu_ps(of->levels);
    for (int64_t block = 0; block < blocks; block++) {
        __m512 table = _mm512_mul_ps(levels, _mm512_set1_ps(absmax[block]));
        for (int64_t i = 0; i < blocksize; i += 16, codes += 8, values += 16) {
            int64_t word;
            memcpy(&word, codes, 8);
            __m512i code = _mm512_srlv_epi32(_mm512_shuffle_epi8(_mm512_set1_epi64(word), bytes), down);
            _mm512_storeu_ps(values, _mm512_permutexvar_ps(code, table));
        }
    }
}
#endif

/* --- the two codes -------------------------------------------------------------------------------- */

#define PATH(name, levels, path, target)                                                                               \
    target static void encode_##name##_##path(const float *values, int64_t blocks, int64_t blocksize,                  \
                                              const float *factors, uint8_t *codes)                                    \
    {                                                                                                                  \
        encode_##path(&levels, values, blocks, blocksize, factors, codes);                                             \
    }                                                                                                                  \
    target static void decode_##name##_##path(const uint8_t *codes, int64_t blocks, int64_t blocksize,                 \
                                              const float *absmax, float *values)                                      \
    {                                                                                                                  \
        decode_##path(&levels, codes, blocks, blocksize, absmax, values);                                              \
    }                                                                                                                  \
    static const tb_code name##_##path = {4, encode_##name##_##path, decode_##name##_##path};

#ifdef TB_X86
#define PATHS(name, levels)                                                                                            \
    PATH(name, levels, plain, )                                                                                        \
    PATH(name, levels, avx2, TB_AVX2)                                                                                  \
    PATH(name, levels, avx512, TB_AVX512)                                                                              \
    static const tb_code *const name##_by_isa[] = {&name##_plain, &name##_avx2, &name##_avx512};
#else
#define PATHS(name, levels)                                                                                            \
    PATH(name, levels, plain, )                                                                                        \
    static const tb_code *const name##_by_isa[] = {&name##_plain};
#endif

#define CODE(name, levels)                                                                                             \
    PATHS(name, levels)                                                                                                \
    static const tb_code *name##_in_use(void) { return name##_by_isa[tb_isa()]; }                                      \
    TB_BLOCKWISE(name, name##_in_use)

CODE(nf4, NF4)
CODE(fp4, FP4)
