/* Huffman coding: counting, and writing streams of codes. The format is described in codecs/huffman.py. */
#include "huffman.h"

/* Eight symbols less than 64 above base become four numbers of 12 bits, a pair each, in the four words of 16 bits. */
TB_INLINE uint64_t four_pairs(const uint8_t *symbols, int base)
{
    uint64_t eight = tb_word(symbols) - (uint64_t)base * 0x0101010101010101u;
    return (eight & 0x003F003F003F003Fu) | (eight >> 2 & 0x0FC00FC00FC00FC0u);
}

static void count_piece(struct tb_counts *counts, const uint8_t *symbols, int64_t count)
{
    uint8_t least = 255, most = 0;
    for (int64_t i = 0; i < count; i++) {
        least = symbols[i] < least ? symbols[i] : least;
        most = symbols[i] > most ? symbols[i] : most;
    }
    if (!counts->based) {
        int middle = (least + most + 1) / 2;
        counts->based = 1;
        counts->base = middle < 32 ? 0 : middle > 192 + 32 ? 192 : middle - 32;
    }
    int64_t i = 0;
    if (least >= counts->base && most < counts->base + 64)
        for (; i + 16 <= count; i += 16) {
            uint64_t here = four_pairs(symbols + i, counts->base), there = four_pairs(symbols + i + 8, counts->base);
            for (int j = 0; j < 64; j += 16) {
                counts->pairs[0][here >> j & 0xFFF]++;
                counts->pairs[1][there >> j & 0xFFF]++;
            }
        }
    for (; i + 8 <= count; i += 8) {
        uint64_t eight = tb_word(symbols + i);
        for (int j = 0; j < 8; j++)
            counts->singles[j % 4][eight >> (8 * j) & 255]++;
    }
    for (; i < count; i++)
        counts->singles[0][symbols[i]]++;
}

void tb_count(struct tb_counts *counts, const uint8_t *symbols, int64_t count)
{
    for (int64_t start = 0; start < count; start += TB_STREAM)
        count_piece(counts, symbols + start, tb_min(TB_STREAM, count - start));
}

static void total_counts(const struct tb_counts *counts, uint32_t total[256])
{
    for (int symbol = 0; symbol < 256; symbol++)
        total[symbol] = counts->singles[0][symbol] + counts->singles[1][symbol] + counts->singles[2][symbol] +
                        counts->singles[3][symbol];
    for (int i = 0; i < 64 * 64; i++) {
        uint32_t pairs = counts->pairs[0][i] + counts->pairs[1][i];
        total[counts->base + i % 64] += pairs;
        total[counts->base + i / 64] += pairs;
    }
}

/* --- codes ------------------------------------------------------------------------------------------ */

struct encoder {
    int first;           /* the smallest symbol */
    int narrow;          /* whether all symbols are less than 64 above it */
    uint16_t words[256]; /* length << 12 | code of symbol first + i */
    uint32_t pairs[64 * 64]; /* code << 5 | length of the two symbols i % 64, i / 64 above first */
};

static void make_encoder(struct encoder *encoder, const uint8_t lengths[256], int first, int last)
{
    uint8_t order[256];
    int used = tb_canonical_order(lengths, order), filled = 0;
    encoder->first = first;
    encoder->narrow = last - first < 64;
    memset(encoder->words, 0, sizeof encoder->words);
    for (int i = 0; i < used; i++) {
        int length = lengths[order[i]];
        encoder->words[order[i] - first] = (uint16_t)(length << 12 | filled >> (TB_LONGEST - length));
        filled += TB_CODE_VALUES >> length;
    }
}

static void make_pairs(struct encoder *encoder, int last)
{
    for (int b = 0; b <= last - encoder->first; b++)
        for (int a = 0; a <= last - encoder->first; a++) {
            uint32_t low = encoder->words[a], high = encoder->words[b];
            encoder->pairs[b * 64 + a] =
                ((low & 0xFFF) | (high & 0xFFF) << (low >> 12)) << 5 | ((low >> 12) + (high >> 12));
        }
}

struct writer {
    uint8_t *at;
    uint64_t bits; /* those not yet complete bytes */
    uint64_t filled;
};

/* Appends at most 56 bits; the bits of code above its length are 0. Writes 8 bytes. */
TB_INLINE void put(struct writer *to, uint64_t code, uint64_t length)
{
    to->bits |= code << to->filled;
    memcpy(to->at, &to->bits, 8);
    to->filled += length;
    to->at += to->filled >> 3;
    to->bits >>= to->filled & 56;
    to->filled &= 7;
}

/* Each of these appends whole groups of symbols, and returns how many symbols those were. */

TB_INLINE int64_t put_pairs(const struct encoder *encoder, const uint8_t *symbols, int64_t count, struct writer *writer)
{
    struct writer to = *writer;
    int64_t whole = count & -8;
    for (int64_t i = 0; i < whole; i += 8) {
        uint64_t pairs = four_pairs(symbols + i, encoder->first);
        for (int j = 0; j < 64; j += 32) {
            uint64_t low = encoder->pairs[pairs >> j & 0xFFF], high = encoder->pairs[pairs >> (j + 16) & 0xFFF];
            put(&to, low >> 5 | high >> 5 << (low & 31), (low & 31) + (high & 31));
        }
    }
    *writer = to;
    return whole;
}

static int64_t put_pairs_baseline(const struct encoder *encoder, const uint8_t *symbols, int64_t count,
                                  struct writer *to)
{
    return put_pairs(encoder, symbols, count, to);
}

TB_INLINE int64_t put_fours(const struct encoder *encoder, const uint8_t *symbols, int64_t count, struct writer *writer)
{
    struct writer to = *writer;
    int64_t whole = count & -4;
    for (int64_t i = 0; i < whole; i += 4) {
        uint64_t code = 0, length = 0;
        for (int j = 0; j < 4; j++) {
            uint64_t word = encoder->words[symbols[i + j] - encoder->first];
            code |= (word & 0xFFF) << length;
            length += word >> 12;
        }
        put(&to, code, length);
    }
    *writer = to;
    return whole;
}

#ifdef TB_X86
TB_AVX2 static int64_t put_pairs_avx2(const struct encoder *encoder, const uint8_t *symbols, int64_t count,
                                      struct writer *to)
{
    return put_pairs(encoder, symbols, count, to);
}

/* 64 bytes of a table of 256, by index. */
TB_AVX512 TB_INLINE __m512i look_up(const __m512i table[4], __m512i index)
{
    __m512i low = _mm512_permutex2var_epi8(table[0], index, table[1]);
    __m512i high = _mm512_permutex2var_epi8(table[2], index, table[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high);
}

/* 64 symbols: their codes and lengths by look-ups in registers; then neighbours become one code, three times. */
TB_AVX512 static int64_t put_avx512(const struct encoder *encoder, const uint8_t *symbols, int64_t count,
                                    struct writer *writer)
{
    struct writer to = *writer;
    int64_t whole = count & -64;
    uint8_t low_bytes[256], high_bytes[256];
    for (int i = 0; i < 256; i++) {
        low_bytes[i] = (uint8_t)encoder->words[i];
        high_bytes[i] = (uint8_t)(encoder->words[i] >> 8);
    }
    __m512i low[4], high[4];
    for (int i = 0; i < 4; i++) {
        low[i] = _mm512_loadu_si512(low_bytes + 64 * i);
        high[i] = _mm512_loadu_si512(high_bytes + 64 * i);
    }
    const __m512i first = _mm512_set1_epi8((char)encoder->first);
    const __m512i code_mask = _mm512_set1_epi32(0xFFF), half = _mm512_set1_epi64(0xFFFFFFFF);
    for (int64_t i = 0; i < whole; i += 64) {
        __m512i index = _mm512_sub_epi8(_mm512_loadu_si512(symbols + i), first);
        __m512i lows = look_up(low, index), highs = look_up(high, index), codes[2], lengths[2];
        for (int j = 0; j < 2; j++) {
            /* Eight of every sixteen symbols, as words of 16 bits. */
            __m512i words = j ? _mm512_unpackhi_epi8(lows, highs) : _mm512_unpacklo_epi8(lows, highs);
            __m512i length0 = _mm512_and_si512(_mm512_srli_epi32(words, 12), _mm512_set1_epi32(15));
            __m512i length1 = _mm512_srli_epi32(words, 28);
            __m512i code0 = _mm512_and_si512(words, code_mask);
            __m512i code1 = _mm512_and_si512(_mm512_srli_epi32(words, 16), code_mask);
            __m512i code = _mm512_or_si512(code0, _mm512_sllv_epi32(code1, length0));
            __m512i length = _mm512_add_epi32(length0, length1);
            length0 = _mm512_and_si512(length, half);
            code1 = _mm512_sllv_epi64(_mm512_srli_epi64(code, 32), length0);
            codes[j] = _mm512_or_si512(_mm512_and_si512(code, half), code1);
            lengths[j] = _mm512_add_epi64(length0, _mm512_srli_epi64(length, 32));
        }
        /* Four symbols each, the first and the second of eight. */
        __m512i code0 = _mm512_unpacklo_epi64(codes[0], codes[1]), code1 = _mm512_unpackhi_epi64(codes[0], codes[1]);
        __m512i length0 = _mm512_unpacklo_epi64(lengths[0], lengths[1]);
        __m512i length1 = _mm512_unpackhi_epi64(lengths[0], lengths[1]), length = _mm512_add_epi64(length0, length1);
        uint64_t code[16], bits[16];
        if (_mm512_cmpgt_epi64_mask(length, _mm512_set1_epi64(56)) == 0) {
            _mm512_storeu_si512(code, _mm512_or_si512(code0, _mm512_sllv_epi64(code1, length0)));
            _mm512_storeu_si512(bits, length);
            for (int j = 0; j < 8; j++)
                put(&to, code[j], bits[j]);
        } else {
            _mm512_storeu_si512(code, code0);
            _mm512_storeu_si512(code + 8, code1);
            _mm512_storeu_si512(bits, length0);
            _mm512_storeu_si512(bits + 8, length1);
            for (int j = 0; j < 8; j++) {
                put(&to, code[j], bits[j]);
                put(&to, code[j + 8], bits[j + 8]);
            }
        }
    }
    *writer = to;
    return whole;
}
#endif

/* Writes one stream and returns its size; 8 bytes more may be overwritten. */
static int64_t write_stream(const struct encoder *encoder, const uint8_t *symbols, int64_t count, uint8_t *out)
{
    struct writer to = {out, 0, 0};
    int64_t done;
#ifdef TB_X86
    if (tb_isa() >= TB_ISA_AVX512)
        done = put_avx512(encoder, symbols, count, &to);
    else if (encoder->narrow && tb_isa() >= TB_ISA_AVX2)
        done = put_pairs_avx2(encoder, symbols, count, &to);
    else
#endif
        done = encoder->narrow ? put_pairs_baseline(encoder, symbols, count, &to)
                               : put_fours(encoder, symbols, count, &to);
    for (; done < count; done++) {
        uint64_t word = encoder->words[symbols[done] - encoder->first];
        put(&to, word & 0xFFF, word >> 12);
    }
    *to.at = (uint8_t)(to.bits | 1u << to.filled);
    return to.at + 1 - out;
}

static int64_t write_coded(const uint8_t lengths[256], int first, int last, const uint8_t *symbols, int64_t count,
                           uint8_t *out)
{
    struct encoder encoder;
    uint8_t stream[TB_STREAM * TB_LONGEST / 8 + 16];
    make_encoder(&encoder, lengths, first, last);
    if (encoder.narrow)
        make_pairs(&encoder, last);
    out[0] = TB_CODED;
    out[1] = (uint8_t)first;
    out[2] = (uint8_t)last;
    uint8_t *sizes = out + 3;
    for (int symbol = first; symbol <= last; symbol += 2)
        *sizes++ = (uint8_t)(lengths[symbol] | (symbol < last ? lengths[symbol + 1] << 4 : 0));
    uint8_t *at = sizes + 2 * ((count + TB_STREAM - 1) / TB_STREAM);
    for (int64_t start = 0; start < count; start += TB_STREAM) {
        int64_t size = write_stream(&encoder, symbols + start, tb_min(TB_STREAM, count - start), stream);
        *sizes++ = (uint8_t)size;
        *sizes++ = (uint8_t)(size >> 8);
        memcpy(at, stream, (size_t)size);
        at += size;
    }
    return at - out;
}

int64_t tb_huffman_write(const struct tb_counts *counts, const uint8_t *symbols, int64_t count, uint8_t *out)
{
    uint32_t total[256];
    uint8_t lengths[256];
    int first = -1, last = -1;
    total_counts(counts, total);
    for (int symbol = 0; symbol < 256; symbol++)
        if (total[symbol]) {
            first = first < 0 ? symbol : first;
            last = symbol;
        }
    if (count && first == last) {
        out[0] = TB_CONSTANT;
        out[1] = (uint8_t)first;
        return 2;
    }
    if (count) {
        int64_t bits = 0, streams = (count + TB_STREAM - 1) / TB_STREAM;
        tb_code_lengths(total, lengths);
        for (int symbol = first; symbol <= last; symbol++)
            bits += (int64_t)total[symbol] * lengths[symbol];
        if (3 + (last - first + 2) / 2 + 2 * streams + bits / 8 + streams < count - count / 64)
            return write_coded(lengths, first, last, symbols, count, out);
    }
    out[0] = TB_RAW;
    memcpy(out + 1, symbols, (size_t)count);
    return 1 + count;
}

TB_EXPORT int64_t tb_huffman_encode(const uint8_t *symbols, int64_t count, uint8_t *out)
{
    struct tb_counts counts = {0};
    tb_count(&counts, symbols, count);
    return tb_huffman_write(&counts, symbols, count, out);
}
