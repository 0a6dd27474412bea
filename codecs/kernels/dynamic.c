/* The 8-bit dynamic map: 256 levels between -0.993 and 1, denser towards 0; each value gets the nearest one.
 *
 * Strategy. The midpoints between levels lie symmetrically about 0, 127 below and 128 above, so a value's code is
 * 127 plus or minus its rank: the number of midpoints that its magnitude exceeds. "Folded" is a float32 rotated left
 * by one bit: magnitude above, sign in the last bit. Compared with twice a midpoint's bits, a tie counts for a
 * negative value and not for a positive one, which is what "ties to the lower level" means.
 *
 * Magnitudes are cut into cells that hold at most one midpoint each. The plain path and AVX2 have 64 cells to a
 * binade, and look up (rank at the cell's start) << 24, plus what lacks between the midpoint's place in the cell and
 * 2^24: adding the value's own place carries into the rank if it lies above. AVX-512 permutes registers instead. As
 * few cells for each binade as its midpoints demand make 226 in all, a byte each; the rank found there names the one
 * midpoint to compare with. 64 values are worked on at a time.
 *
 * To decode, AVX-512 looks up the four bytes of a level one after the other, each in 256 bytes of registers.
 */
#include "blockwise.h"

enum {
    LOWEST = 96 << 24, /* folded 2^-31; all midpoints are above it */
    PLACE_BITS = 18,   /* of a folded value, its place in its cell */
    CELLS = 32 << (24 - PLACE_BITS), /* a power of two */
};

/* Computed when the library is loaded, and constant from then on. */
static struct {
    float level[256];
    uint32_t midpoint[128]; /* folded, rising */
    uint32_t cell[CELLS];
    uint32_t shift[32], base[32]; /* of a binade: its coarse cells are (folded >> shift) + base */
    uint8_t coarse[256];          /* the rank at the start of a coarse cell, at most 127 */
    uint8_t level_bytes[4][256], midpoint_bytes[4][128]; /* first the lowest byte of each, and so on */
} map __attribute__((aligned(64)));

TB_INLINE uint32_t folded(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits << 1 | bits >> 31;
}

/* torch.linspace(0.1, 1, count)[index]: reckoned from the nearer end in float64, and rounded once. */
static float border(int index, int count)
{
    double step = (1 - 0.1f) / (float)(count - 1);
    return (float)(index < count / 2 ? 0.1f + step * index : 1 - step * (count - 1 - index));
}

static uint32_t rank_of(uint32_t value)
{
    uint32_t rank = 0;
    while (rank < 128 && map.midpoint[rank] < value)
        rank++;
    return rank;
}

/* The map of codecs/quantizers/dynamic.py, and the tables that follow from it. */
__attribute__((constructor)) static void compute_map(void)
{
    static const double powers[] = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1};
    int at = 127;
    map.level[at++] = 0;
    for (int decade = 0; decade < 7; decade++)
        for (int i = 0, count = (1 << decade) + 1; i < count - 1; i++)
            map.level[at++] = (float)powers[decade] * ((border(i, count) + border(i + 1, count)) / 2);
    map.level[at] = 1;
    for (int i = 0; i < 127; i++)
        map.level[i] = -map.level[254 - i];
    for (int i = 0; i < 128; i++)
        map.midpoint[i] = folded((map.level[127 + i] + map.level[128 + i]) / 2);

    for (uint32_t i = 0; i < CELLS; i++) {
        uint32_t start = LOWEST + (i << PLACE_BITS), rank = rank_of(start), most = (1 << 24) - 1;
        uint32_t place = rank < 128 ? map.midpoint[rank] - start : most;
        map.cell[i] = (rank << 24) + (place >> PLACE_BITS ? 0 : most - place);
    }
    for (uint32_t binade = 0, cells = 0; binade < 32; binade++) {
        uint32_t start = LOWEST + (binade << 24), shift = 24;
        for (uint32_t i = rank_of(start); i < 127 && map.midpoint[i + 1] - start < 1 << 24; i++)
            while (map.midpoint[i] >> shift == map.midpoint[i + 1] >> shift)
                shift--;
        map.shift[binade] = shift;
        map.base[binade] = cells - (start >> shift);
        for (uint32_t i = 0; i < 1u << (24 - shift); i++)
            map.coarse[cells++] = (uint8_t)tb_min(rank_of(start + (i << shift)), 127);
    }
    for (int byte = 0; byte < 4; byte++) {
        for (int i = 0; i < 256; i++) {
            uint32_t bits;
            memcpy(&bits, &map.level[i], 4);
            map.level_bytes[byte][i] = (uint8_t)(bits >> (8 * byte));
        }
        for (int i = 0; i < 128; i++)
            map.midpoint_bytes[byte][i] = (uint8_t)(map.midpoint[i] >> (8 * byte));
    }
}

/* The 256 levels, for whoever checks them. */
TB_EXPORT int64_t tb_dynamic_levels(float *levels)
{
    memcpy(levels, map.level, sizeof map.level);
    return TB_OK;
}

/* --- one block -------------------------------------------------------------------------------------- */

TB_INLINE void encode_plain(const float *restrict values, int64_t count, float factor, uint8_t *restrict codes)
{
    for (int64_t i = 0; i < count; i++) {
        uint32_t value = folded(values[i] * factor), negative = 0 - (value & 1);
        uint32_t place = (value > LOWEST ? value : LOWEST) - LOWEST;
        /* Values that another thread changes meanwhile may be beyond their absmax. */
        uint32_t rank = (map.cell[(place >> PLACE_BITS) % CELLS] + (place & ((1 << PLACE_BITS) - 1))) >> 24;
        rank -= rank >> 7 & negative; /* the largest midpoint has no counterpart below 0 */
        codes[i] = (uint8_t)(127 + ((rank ^ negative) - negative));
    }
}

TB_INLINE void decode_plain(const uint8_t *restrict codes, int64_t count, float absmax, float *restrict values)
{
    for (int64_t i = 0; i < count; i++)
        values[i] = map.level[codes[i]] * absmax;
}

#ifdef TB_X86
TB_AVX2 TB_INLINE void encode_avx2(const float *values, int64_t count, float factor, uint8_t *codes)
{
    const __m256i lowest = _mm256_set1_epi32(LOWEST), places = _mm256_set1_epi32((1 << PLACE_BITS) - 1);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256 scale = _mm256_set1_ps(factor);
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
        __m256i code[4];
        for (int j = 0; j < 4; j++) {
            __m256i bits = _mm256_castps_si256(_mm256_mul_ps(_mm256_loadu_ps(values + i + 8 * j), scale));
            __m256i value = _mm256_or_si256(_mm256_slli_epi32(bits, 1), _mm256_srli_epi32(bits, 31));
            __m256i place = _mm256_sub_epi32(_mm256_max_epi32(value, lowest), lowest);
            __m256i cell = _mm256_i32gather_epi32((const int *)map.cell, _mm256_srli_epi32(place, PLACE_BITS), 4);
            __m256i rank = _mm256_srli_epi32(_mm256_add_epi32(cell, _mm256_and_si256(place, places)), 24);
            __m256i sign = _mm256_or_si256(bits, _mm256_set1_epi32(1));
            code[j] = _mm256_add_epi32(_mm256_set1_epi32(127), _mm256_sign_epi32(rank, sign));
        }
        /* 127 - 128 saturates at 0. */
        __m256i first = _mm256_packs_epi32(code[0], code[1]), second = _mm256_packs_epi32(code[2], code[3]);
        __m256i packed = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, second), order);
        _mm256_storeu_si256((__m256i *)(codes + i), packed);
    }
    encode_plain(values + i, count - i, factor, codes + i);
}

/* Two levels, of the codes in byte i and i + 1 of eight. Gathering is slower than one look-up after the other. */
#define TWO_LEVELS(eight, i)                                                                                           \
    _mm_unpacklo_ps(_mm_load_ss(map.level + (eight >> (8 * (i)) & 255)),                                               \
                    _mm_load_ss(map.level + (eight >> (8 * (i) + 8) & 255)))

TB_AVX2 TB_INLINE void decode_avx2(const uint8_t *codes, int64_t count, float absmax, float *values)
{
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        uint64_t eight;
        memcpy(&eight, codes + i, 8);
        __m128 lower = _mm_movelh_ps(TWO_LEVELS(eight, 0), TWO_LEVELS(eight, 2));
        __m128 upper = _mm_movelh_ps(TWO_LEVELS(eight, 4), TWO_LEVELS(eight, 6));
        _mm256_storeu_ps(values + i, _mm256_mul_ps(_mm256_set_m128(upper, lower), _mm256_set1_ps(absmax)));
    }
    decode_plain(codes + i, count - i, absmax, values + i);
}

/* 64 entries at once of a table of 128 bytes ... */
#define LOOK_UP(table, index)                                                                                          \
    _mm512_permutex2var_epi8(_mm512_load_si512(table), index, _mm512_load_si512((table) + 64))
/* ... and of 256 bytes, where upper marks the indices from 128 on. */
#define LOOK_UP_WIDE(table, index, upper)                                                                              \
    _mm512_mask_blend_epi8(upper, LOOK_UP(table, index), LOOK_UP((table) + 128, index))

/* 64 words from the planes of their four bytes, 16 in each of words. Both work within lanes of 16 bytes, so the words
 * are those of bytes 16 lane + 4 i and so on: in ORDER they are consecutive, and packing undoes what this does. */
TB_AVX512 TB_INLINE void interleave(const __m512i planes[4], __m512i words[4])
{
    __m512i lower[2] = {_mm512_unpacklo_epi8(planes[0], planes[1]), _mm512_unpackhi_epi8(planes[0], planes[1])};
    __m512i upper[2] = {_mm512_unpacklo_epi8(planes[2], planes[3]), _mm512_unpackhi_epi8(planes[2], planes[3])};
    for (int i = 0; i < 2; i++) {
        words[2 * i] = _mm512_unpacklo_epi16(lower[i], upper[i]);
        words[2 * i + 1] = _mm512_unpackhi_epi16(lower[i], upper[i]);
    }
}

#define ORDER _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)

/* 64 numbers as signed bytes; those that are too large keep their sign. */
TB_AVX512 TB_INLINE __m512i pack(const __m512i words[4])
{
    return _mm512_packs_epi16(_mm512_packs_epi32(words[0], words[1]), _mm512_packs_epi32(words[2], words[3]));
}

/* What a 32-word table has for each binade. */
#define OF_BINADE(table, binade)                                                                                       \
    _mm512_permutex2var_epi32(_mm512_load_si512(table), binade, _mm512_load_si512((table) + 16))

TB_AVX512 TB_INLINE void encode_avx512(const float *values, int64_t count, float factor, uint8_t *codes)
{
    const __m512i lowest = _mm512_set1_epi32(LOWEST), middle = _mm512_set1_epi8(127);
    int64_t i = 0;
    for (; i + 64 <= count; i += 64) {
        __m512i bits[4], value[4], cell[4], distance[4], planes[4];
        for (int j = 0; j < 4; j++) {
            __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(values + i + 16 * j), _mm512_set1_ps(factor));
            bits[j] = _mm512_castps_si512(scaled);
            value[j] = _mm512_max_epi32(_mm512_rol_epi32(bits[j], 1), lowest);
            __m512i binade = _mm512_srli_epi32(value[j], 24); /* 96 to 127, of which the look-up takes five bits */
            __m512i place = _mm512_srlv_epi32(value[j], OF_BINADE(map.shift, binade));
            cell[j] = _mm512_add_epi32(place, OF_BINADE(map.base, binade));
        }
        __m512i cells = _mm512_packus_epi16(_mm512_packs_epi32(cell[0], cell[1]), _mm512_packs_epi32(cell[2], cell[3]));
        __m512i rank = LOOK_UP_WIDE(map.coarse, cells, _mm512_movepi8_mask(cells));
        for (int j = 0; j < 4; j++)
            planes[j] = LOOK_UP(map.midpoint_bytes[j], rank);
        interleave(planes, distance);
        for (int j = 0; j < 4; j++)
            distance[j] = _mm512_sub_epi32(distance[j], value[j]);
        __mmask64 above = _mm512_movepi8_mask(pack(distance)), negative = _mm512_movepi8_mask(pack(bits));
        rank = _mm512_mask_add_epi8(rank, above, rank, _mm512_set1_epi8(1));
        __m512i code = _mm512_mask_subs_epu8(_mm512_add_epi8(middle, rank), negative, middle, rank);
        _mm512_storeu_si512(codes + i, _mm512_permutexvar_epi32(ORDER, code));
    }
    encode_plain(values + i, count - i, factor, codes + i);
}

TB_AVX512 TB_INLINE void decode_avx512(const uint8_t *codes, int64_t count, float absmax, float *values)
{
    int64_t i = 0;
    for (; i + 64 <= count; i += 64) {
        __m512i code = _mm512_permutexvar_epi32(ORDER, _mm512_loadu_si512(codes + i)), planes[4], level[4];
        __mmask64 upper = _mm512_movepi8_mask(code);
        for (int j = 0; j < 4; j++)
            planes[j] = LOOK_UP_WIDE(map.level_bytes[j], code, upper);
        interleave(planes, level);
        for (int j = 0; j < 4; j++) {
            __m512 value = _mm512_mul_ps(_mm512_castsi512_ps(level[j]), _mm512_set1_ps(absmax));
            _mm512_storeu_ps(values + i + 16 * j, value);
        }
    }
    decode_plain(codes + i, count - i, absmax, values + i);
}
#endif

/* --- the blocks of a chunk, as tb_code has them ----------------------------------------------------------- */

#define DYNAMIC_CODE(isa, target)                                                                                      \
    target static void encode_blocks_##isa(const float *values, int64_t blocks, int64_t blocksize,                     \
                                           const float *factors, uint8_t *codes)                                       \
    {                                                                                                                  \
        for (int64_t i = 0; i < blocks; i++)                                                                           \
            encode_##isa(values + i * blocksize, blocksize, factors[i], codes + i * blocksize);                        \
    }                                                                                                                  \
    target static void decode_blocks_##isa(const uint8_t *codes, int64_t blocks, int64_t blocksize,                    \
                                           const float *absmax, float *values)                                         \
    {                                                                                                                  \
        for (int64_t i = 0; i < blocks; i++)                                                                           \
            decode_##isa(codes + i * blocksize, blocksize, absmax[i], values + i * blocksize);                         \
    }                                                                                                                  \
    static const tb_code dynamic_##isa = {8, encode_blocks_##isa, decode_blocks_##isa};

DYNAMIC_CODE(plain, )
#ifdef TB_X86
DYNAMIC_CODE(avx2, TB_AVX2)
DYNAMIC_CODE(avx512, TB_AVX512)
#endif

static const tb_code *code_in_use(void)
{
#ifdef TB_X86
    if (tb_isa() >= TB_ISA_AVX512)
        return &dynamic_avx512;
    if (tb_isa() >= TB_ISA_AVX2)
        return &dynamic_avx2;
#endif
    return &dynamic_plain;
}

TB_BLOCKWISE(dynamic, code_in_use)
