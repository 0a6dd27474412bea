/* What the kernels have in common: dtypes, the choice of instructions, chunks of values as float32.
 *
 * Strategy. Every codec works on chunks of at most TB_CHUNK values, which stay in the first-level cache. Values of
 * float32 are read and written where they lie; those of another dtype pass through a chunk on the stack. The
 * arithmetic is written down operation by operation and compiled without contraction, so that every path, and
 * numpy, gives the same bits.
 *
 * No function allocates, keeps state or calls Python. All return TB_OK or more, or one of the errors below.
 */
#ifndef TENSORBUS_KERNELS_H
#define TENSORBUS_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define TB_X86 1
#define TB_AVX2 __attribute__((target("avx2,f16c,bmi2")))
#define TB_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,f16c,bmi2")))
#elif defined(__aarch64__)
#include <arm_neon.h>
#define TB_NEON 1
#endif

/* Only these are seen from outside; everything else is hidden by the build. */
#define TB_EXPORT __attribute__((visibility("default")))
#define TB_INLINE static inline __attribute__((always_inline))

#define TB_CHUNK 4096

/* Values that are decoded before they are written to memory or added up. Short steps alternate arithmetic and memory so
 * quickly that the processor does both at once. */
#define TB_STEP 512

enum { TB_OK = 0, TB_NON_FINITE = -1, TB_MALFORMED = -2 };
enum { TB_FLOAT32 = 0, TB_FLOAT64 = 1, TB_FLOAT16 = 2, TB_BFLOAT16 = 3 };
enum { TB_SUM32 = 0, TB_SUM64 = 1 };

/* Numbers at any address, aligned or not. */
typedef float tb_any_float __attribute__((aligned(1), may_alias));
typedef double tb_any_double __attribute__((aligned(1), may_alias));
typedef uint16_t tb_any_half __attribute__((aligned(1), may_alias));

/* Instruction sets in rising order; NEON is what every aarch64 has, and stands for "baseline" there. */
enum { TB_BASELINE = 0, TB_ISA_AVX2 = 1, TB_ISA_AVX512 = 2 };

/* What the processor has, or less where tb_set_isa said so. */
int tb_isa(void);

/* name(parameters) takes the best of name_baseline, name_avx2 and name_avx512. */
#ifdef TB_X86
#define TB_CHOSEN(result, name, parameters, arguments)                                                                 \
    static result name parameters                                                                                      \
    {                                                                                                                  \
        switch (tb_isa()) {                                                                                            \
        case TB_ISA_AVX512: return name##_avx512 arguments;                                                            \
        case TB_ISA_AVX2: return name##_avx2 arguments;                                                                \
        default: return name##_baseline arguments;                                                                     \
        }                                                                                                              \
    }
#else
#define TB_CHOSEN(result, name, parameters, arguments)                                                                 \
    static result name parameters { return name##_baseline arguments; }
#endif

/* The same, of which each is name_loop, a TB_INLINE that is compiled for the instructions. */
#ifdef TB_X86
#define TB_DISPATCHED(result, name, parameters, arguments)                                                             \
    static result name##_baseline parameters { return name##_loop arguments; }                                         \
    TB_AVX2 static result name##_avx2 parameters { return name##_loop arguments; }                                     \
    TB_AVX512 static result name##_avx512 parameters { return name##_loop arguments; }                                 \
    TB_CHOSEN(result, name, parameters, arguments)
#else
#define TB_DISPATCHED(result, name, parameters, arguments)                                                             \
    static result name parameters { return name##_loop arguments; }
#endif

TB_INLINE int64_t tb_itemsize(int dtype) { return dtype == TB_FLOAT32 ? 4 : dtype == TB_FLOAT64 ? 8 : 2; }

TB_INLINE int64_t tb_min(int64_t a, int64_t b) { return a < b ? a : b; }

/* Ask for memory that will be needed soon; the addresses need not exist. */
TB_INLINE void tb_prefetch(const void *start, int64_t offset, int64_t nbytes)
{
    for (int64_t at = offset; at < offset + nbytes; at += 64)
        __builtin_prefetch((const void *)((uintptr_t)start + (uintptr_t)at));
}

/* Elements [first, first + count) of source as float32: where they lie if they are that, else in chunk. */
const float *tb_load(int dtype, const void *source, int64_t first, int64_t count, float *chunk);

/* Round values to dtype (nearest, ties to even) into elements [first, first + count) of out. */
void tb_store(int dtype, void *out, int64_t first, int64_t count, const float *values);

/* Outputs of more bytes than this are written past the caches with tb_stream, TB_STEP by TB_STEP: lines are not read
 * before they are overwritten, and nothing of use is driven out. tb_streamed ends that. Smaller outputs may be read
 * again soon: what the stages of a chain hand to each other has 2 MiB at most. */
#define TB_STREAMED (2 << 20)
void tb_stream(void *out, const float *values, int64_t count);
void tb_streamed(void);

/* sums[first + i] += weight * values[i], a multiplication and an addition in the precision of the sums. Values that
 * were of a 16-bit dtype are rounded to it first. TB_NON_FINITE if a value is NaN or Inf. */
int64_t tb_add(int dtype, int sum, void *sums, int64_t first, int64_t count, float *values, double weight);

/* The largest magnitude of float32 or float64 values; NaN or Inf if one is that. 0 if there are none. */
double tb_largest(int dtype, const void *values, int64_t count);

/* sums[i] += weight * values[i] for values as they are, float64 included; TB_NON_FINITE as tb_add. */
int64_t tb_accumulate(int dtype, const void *values, int64_t count, int sum, void *sums, double weight);

/* Whether all values are finite. */
int tb_finite(const float *values, int64_t count);

#endif
