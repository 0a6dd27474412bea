/* The randomised Hadamard rotation of blocks of a power of two, and its inverse.
 *
 * rotated = H (factors * values), values = factors * (H rotated); H is applied by butterflies (a, b) -> (a + b, a - b)
 * between elements whose distance is 1, then 2, 4, ... up to half a block. That order fixes every bit, whatever the
 * width of the vectors; stages/rotate.py does the same in numpy. A tail is cut into blocks of the binary digits of its
 * length, the largest first. The factors of blocks of m values, signs over the root of m, begin at factors[m]. */
#include "kernels.h"

#include <float.h>

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)

#define LANES 1
#define TARGET
#define VECTOR float
#define NAME(name) PASTE(single, name)
TB_INLINE float single_within(float value) { return value; }
#include "hadamard_block.h"

/* Within a vector, x and its neighbours at some distance: the lower of a pair becomes x + neighbour, the upper
 * neighbour - x, which is the neighbour plus x with its sign turned. */

#ifdef TB_X86
#define LANES 4
#define TARGET
#define VECTOR __m128
#define NAME(name) PASTE(sse, name)
TB_INLINE __m128 sse_within(__m128 x)
{
    __m128 neighbours = _mm_shuffle_ps(x, x, 0xB1);
    x = _mm_add_ps(neighbours, _mm_xor_ps(x, _mm_setr_ps(0.0f, -0.0f, 0.0f, -0.0f)));
    neighbours = _mm_shuffle_ps(x, x, 0x4E);
    return _mm_add_ps(neighbours, _mm_xor_ps(x, _mm_setr_ps(0.0f, 0.0f, -0.0f, -0.0f)));
}
#include "hadamard_block.h"

#define LANES 8
#define TARGET TB_AVX2
#define VECTOR __m256
#define NAME(name) PASTE(avx2, name)
TB_AVX2 TB_INLINE __m256 avx2_within(__m256 x)
{
    const __m256 turn1 = _mm256_setr_ps(0.0f, -0.0f, 0.0f, -0.0f, 0.0f, -0.0f, 0.0f, -0.0f);
    const __m256 turn2 = _mm256_setr_ps(0.0f, 0.0f, -0.0f, -0.0f, 0.0f, 0.0f, -0.0f, -0.0f);
    const __m256 turn4 = _mm256_setr_ps(0.0f, 0.0f, 0.0f, 0.0f, -0.0f, -0.0f, -0.0f, -0.0f);
    x = _mm256_add_ps(_mm256_permute_ps(x, 0xB1), _mm256_xor_ps(x, turn1));
    x = _mm256_add_ps(_mm256_permute_ps(x, 0x4E), _mm256_xor_ps(x, turn2));
    return _mm256_add_ps(_mm256_permute2f128_ps(x, x, 0x01), _mm256_xor_ps(x, turn4));
}
#include "hadamard_block.h"

#define LANES 16
#define TARGET TB_AVX512
#define VECTOR __m512
#define NAME(name) PASTE(avx512, name)
TB_AVX512 TB_INLINE __m512 avx512_turned(__m512 x, __mmask16 upper)
{
    __m512i bits = _mm512_castps_si512(x);
    return _mm512_castsi512_ps(_mm512_mask_xor_epi32(bits, upper, bits, _mm512_set1_epi32(INT32_MIN)));
}
TB_AVX512 TB_INLINE __m512 avx512_within(__m512 x)
{
    x = _mm512_add_ps(_mm512_permute_ps(x, 0xB1), avx512_turned(x, 0xAAAA));
    x = _mm512_add_ps(_mm512_permute_ps(x, 0x4E), avx512_turned(x, 0xCCCC));
    x = _mm512_add_ps(_mm512_shuffle_f32x4(x, x, 0xB1), avx512_turned(x, 0xF0F0));
    return _mm512_add_ps(_mm512_shuffle_f32x4(x, x, 0x4E), avx512_turned(x, 0xFF00));
}
#include "hadamard_block.h"

#elif defined(TB_NEON)
#define LANES 4
#define TARGET
#define VECTOR float32x4_t
#define NAME(name) PASTE(neon, name)
TB_INLINE float32x4_t neon_turned(float32x4_t x, uint64_t low, uint64_t high)
{
    uint32x4_t turn = vreinterpretq_u32_u64(vcombine_u64(vcreate_u64(low), vcreate_u64(high)));
    return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(x), turn));
}
TB_INLINE float32x4_t neon_within(float32x4_t x)
{
    x = vaddq_f32(vrev64q_f32(x), neon_turned(x, 0x8000000000000000u, 0x8000000000000000u));
    return vaddq_f32(vextq_f32(x, x, 2), neon_turned(x, 0, 0x8000000080000000u));
}
#include "hadamard_block.h"
#endif

/* out = after * H (before * in) for a power of two; NULL factors are ones. in and out are the same or apart. */
static void transform_block(const float *in, float *out, int64_t count, const float *before, const float *after)
{
#if defined(TB_X86)
    if (count >= 16 && tb_isa() >= TB_ISA_AVX512)
        avx512_block(in, out, count, before, after);
    else if (count >= 8 && tb_isa() >= TB_ISA_AVX2)
        avx2_block(in, out, count, before, after);
    else if (count >= 4)
        sse_block(in, out, count, before, after);
    else
#elif defined(TB_NEON)
    if (count >= 4)
        neon_block(in, out, count, before, after);
    else
#endif
        single_block(in, out, count, before, after);
}

/* The size of the block at the beginning of left values. */
TB_INLINE int64_t next_block(int64_t left, int64_t blocksize)
{
    while (blocksize > left)
        blocksize /= 2;
    return blocksize;
}

/* Values of 16-bit dtypes that the codes' errors carried beyond the dtype's range; NaN and Inf stay. */
static void clip(int dtype, float *values, int64_t count)
{
    if (dtype != TB_FLOAT16 && dtype != TB_BFLOAT16)
        return;
    float largest = dtype == TB_FLOAT16 ? 65504.0f : 0x1.FEp127f;
    for (int64_t i = 0; i < count; i++) {
        float value = values[i] > largest && values[i] <= FLT_MAX ? largest : values[i];
        values[i] = value < -largest && value >= -FLT_MAX ? -largest : value;
    }
}

/* blocksize is a power of two up to TB_CHUNK. rotated may be source itself, if that is of float32. */
TB_EXPORT int64_t tb_hadamard_encode(int dtype, const void *source, int64_t count, int64_t blocksize,
                                     const float *factors, float *rotated)
{
    float chunk[TB_CHUNK];
    for (int64_t first = 0, size; first < count; first += size) {
        size = next_block(count - first, blocksize);
        const float *values = tb_load(dtype, source, first, size, chunk);
        transform_block(values, rotated + first, size, factors + size, NULL);
    }
    return TB_OK;
}

/* out may be rotated itself, if the dtype is float32. */
TB_EXPORT int64_t tb_hadamard_decode(int dtype, const float *rotated, int64_t count, int64_t blocksize,
                                     const float *factors, void *out)
{
    float chunk[TB_CHUNK];
    for (int64_t first = 0, size; first < count; first += size) {
        size = next_block(count - first, blocksize);
        float *values = dtype == TB_FLOAT32 ? (float *)out + first : chunk;
        transform_block(rotated + first, values, size, NULL, factors + size);
        clip(dtype, values, size);
        tb_store(dtype, out, first, size, values);
    }
    return TB_OK;
}

TB_EXPORT int64_t tb_hadamard_accumulate(int dtype, const float *rotated, int64_t count, int64_t blocksize,
                                         const float *factors, int sum, void *sums, double weight)
{
    float chunk[TB_CHUNK];
    for (int64_t first = 0, size; first < count; first += size) {
        size = next_block(count - first, blocksize);
        transform_block(rotated + first, chunk, size, NULL, factors + size);
        clip(dtype, chunk, size);
        if (tb_add(dtype, sum, sums, first, size, chunk, weight) < 0)
            return TB_NON_FINITE;
    }
    return TB_OK;
}
