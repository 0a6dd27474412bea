/* Huffman decoding, eight streams at a time. The format is described in codecs/huffman.py. */
#include "huffman.h"

/* An entry holds up to three symbols, the first uppermost, in bits 6 and 7 how many, and in the lowest six the bits
 * that they take. The order of codes is that of their values, so the table is written from the start to the end. */
static void make_table(struct tb_huffman *huffman)
{
    const uint8_t *lengths = huffman->lengths;
    uint8_t order[256];
    uint32_t thirds[TB_CODE_VALUES / 2]; /* from 2^n on: what the n bits behind two symbols add to their entry */
    int used = tb_canonical_order(lengths, order), shortest = lengths[order[0]];
    for (int bits = 0; bits <= TB_LONGEST - 2 * shortest; bits++) {
        uint32_t *to = thirds + (1 << bits), *end = to + (1 << bits);
        for (int i = 0; i < used && lengths[order[i]] <= bits; i++)
            for (int n = 1 << (bits - lengths[order[i]]); n > 0; n--)
                *to++ = (uint32_t)order[i] << 8 | 1 << 6 | lengths[order[i]];
        while (to < end)
            *to++ = 0;
    }
    uint32_t *to = huffman->entries;
    for (int i = 0; i < used; i++) {
        int length = lengths[order[i]];
        uint32_t one = (uint32_t)order[i] << 24 | 1 << 6 | (uint32_t)length, *end = to + (TB_CODE_VALUES >> length);
        for (int j = 0; j < used && length + lengths[order[j]] <= TB_LONGEST; j++) {
            int rest = 1 << (TB_LONGEST - length - lengths[order[j]]);
            uint32_t two = one + ((uint32_t)order[j] << 16 | 1 << 6 | lengths[order[j]]);
            for (int n = 0; n < rest; n++)
                to[n] = two + thirds[rest + n];
            to += rest;
        }
        while (to < end)
            *to++ = one;
    }
    for (int i = 0; i < TB_CODE_VALUES; i++)
        huffman->symbols_in[i] = (uint8_t)(huffman->entries[i] >> 6 & 3);
}

int64_t tb_huffman_open(struct tb_huffman *huffman, const uint8_t *payload, int64_t nbytes, int64_t count)
{
    if (nbytes < 1)
        return TB_MALFORMED;
    huffman->mode = payload[0];
    huffman->left = count;
    huffman->at = payload + 1;
    if (huffman->mode == TB_RAW)
        return nbytes == 1 + count ? TB_OK : TB_MALFORMED;
    if (huffman->mode == TB_CONSTANT)
        return nbytes == 2 && count > 0 ? TB_OK : TB_MALFORMED;
    if (huffman->mode != TB_CODED || count <= 0 || nbytes < 3 || payload[1] >= payload[2])
        return TB_MALFORMED;
    int first = payload[1], last = payload[2], covered = 0;
    int64_t streams = (count - 1) / TB_STREAM + 1;
    huffman->sizes = payload + 3 + (last - first + 2) / 2;
    huffman->at = huffman->sizes + 2 * streams;
    if (nbytes < huffman->at - payload)
        return TB_MALFORMED;
    memset(huffman->lengths, 0, 256);
    for (int i = 0; i <= last - first; i++) {
        int length = payload[3 + i / 2] >> (i % 2 * 4) & 15;
        if (length > TB_LONGEST)
            return TB_MALFORMED;
        huffman->lengths[first + i] = (uint8_t)length;
        covered += length ? TB_CODE_VALUES >> length : 0;
    }
    /* The half that is left over, of an odd number of lengths, is 0. */
    if ((last - first) % 2 == 0 && huffman->sizes[-1] >> 4)
        return TB_MALFORMED;
    if (covered != TB_CODE_VALUES || !huffman->lengths[first] || !huffman->lengths[last])
        return TB_MALFORMED;
    const uint8_t *end = huffman->at;
    for (int64_t i = 0; i < streams; i++) {
        int64_t size = huffman->sizes[2 * i] | huffman->sizes[2 * i + 1] << 8;
        if (size == 0 || size > payload + nbytes - end)
            return TB_MALFORMED;
        end += size;
        if (end[-1] == 0)
            return TB_MALFORMED;
    }
    if (end != payload + nbytes)
        return TB_MALFORMED;
    huffman->end = end;
    make_table(huffman);
    return TB_OK;
}

/* A stream on its way. Positions are addresses of bits, counted from address 0: the next bits end there. */
struct lane {
    uint64_t position;
    uint64_t enough; /* from there down, 8 bytes can be read and none of them is before the stream */
    uint8_t *to;     /* the next symbol goes before it */
    uint8_t *room;   /* from there down, four look-ups write nothing before `start` */
    uint8_t *start;
    const uint8_t *begin;
};

#define AHEAD (16 * 1024) /* bytes, the size of eight streams or a little more */

#define LOOK_UPS 4 /* 48 bits, of 57 that a word has at least */

/* Four look-ups, if there are room and bits for them: each stores four bytes, of which those that are no symbols are
 * overwritten by the next. Returns whether they were made. */
TB_INLINE int go_on(const struct tb_huffman *huffman, struct lane *lane)
{
    if (lane->to < lane->room || lane->position < lane->enough)
        return 0;
    uint64_t position = lane->position;
    /* The lowest bit is set; it is out of the way, and how far it moves up is how many bits were taken. */
    uint64_t bits = tb_word((const uint8_t *)(uintptr_t)((position + 7) >> 3) - 8) << (-position & 7) | 1;
    uint8_t *to = lane->to;
    for (int i = 0; i < LOOK_UPS; i++) {
        uint64_t index = bits >> (64 - TB_LONGEST);
        uint32_t entry = huffman->entries[index];
        memcpy(to - 4, &entry, 4);
        to -= huffman->symbols_in[index];
        bits <<= entry & 63;
    }
    lane->to = to;
    lane->position = position - (uint64_t)__builtin_ctzll(bits);
    return 1;
}

/* As long as a lane has room and bits, it goes on; the processor does the work of eight at the same time. Written out,
 * so that their positions live in registers where there are enough. */
TB_INLINE void run(const struct tb_huffman *huffman, struct lane lanes[TB_STREAMS_AT_ONCE], struct tb_ahead ahead)
{
    struct lane a = lanes[0], b = lanes[1], c = lanes[2], d = lanes[3];
    struct lane e = lanes[4], f = lanes[5], g = lanes[6], h = lanes[7];
    for (int going = 1; going;) {
        if (ahead.at < ahead.end) {
            for (int i = 0; i < 8; i++)
                __builtin_prefetch(ahead.at + 64 * i, 1);
            ahead.at += 8 * 64;
        }
        going = go_on(huffman, &a);
        going |= go_on(huffman, &b);
        going |= go_on(huffman, &c);
        going |= go_on(huffman, &d);
        going |= go_on(huffman, &e);
        going |= go_on(huffman, &f);
        going |= go_on(huffman, &g);
        going |= go_on(huffman, &h);
    }
    lanes[0] = a, lanes[1] = b, lanes[2] = c, lanes[3] = d;
    lanes[4] = e, lanes[5] = f, lanes[6] = g, lanes[7] = h;
}

static void run_baseline(const struct tb_huffman *huffman, struct lane *lanes, struct tb_ahead ahead)
{
    run(huffman, lanes, ahead);
}

#ifdef TB_X86
/* Every processor with AVX2 has these, too. */
__attribute__((target("bmi,bmi2"))) static void run_bmi2(const struct tb_huffman *huffman, struct lane *lanes,
                                                         struct tb_ahead ahead)
{
    run(huffman, lanes, ahead);
}
#endif

/* The last symbols of a stream, one look-up at a time. Returns whether the stream ended with them. */
static int finish(const struct tb_huffman *huffman, const struct lane *lane)
{
    const uint64_t begin = 8 * (uint64_t)(uintptr_t)lane->begin;
    uint64_t position = lane->position;
    uint8_t *to = lane->to;
    while (to > lane->start && position > begin) {
        uint64_t word = 0, bits;
        if (position >= lane->enough)
            bits = tb_word((const uint8_t *)(uintptr_t)((position + 7) >> 3) - 8) << (-position & 7);
        else {
            memcpy(&word, lane->begin, (size_t)((position - begin + 7) >> 3));
            bits = word << (64 - (position - begin));
        }
        uint64_t index = bits >> (64 - TB_LONGEST);
        uint32_t entry = huffman->entries[index];
        int symbols = huffman->symbols_in[index], taken = entry & 63;
        if (symbols > to - lane->start) {
            symbols = 1;
            taken = huffman->lengths[entry >> 24];
        }
        for (int i = 0; i < symbols; i++)
            *--to = (uint8_t)(entry >> (24 - 8 * i));
        position -= (uint64_t)taken;
    }
    return to == lane->start && position == begin;
}

int64_t tb_huffman_read(struct tb_huffman *huffman, uint8_t *out, int64_t stride, struct tb_ahead ahead)
{
    struct lane lanes[TB_STREAMS_AT_ONCE] = {0};
    int used = 0;
    for (; used < TB_STREAMS_AT_ONCE && huffman->left > 0; used++, out += stride) {
        int64_t count = tb_min(TB_STREAM, huffman->left);
        huffman->left -= count;
        if (huffman->mode == TB_RAW) {
            memcpy(out, huffman->at, (size_t)count);
            huffman->at += count;
            continue;
        }
        if (huffman->mode == TB_CONSTANT) {
            memset(out, *huffman->at, (size_t)count);
            continue;
        }
        struct lane *lane = &lanes[used];
        lane->begin = huffman->at;
        huffman->at += huffman->sizes[0] | huffman->sizes[1] << 8;
        huffman->sizes += 2;
        /* The bit that closes the stream is the highest of its last byte. */
        lane->position = 8 * (uint64_t)(uintptr_t)huffman->at - 1 - (uint64_t)(__builtin_clz(huffman->at[-1]) - 24);
        lane->enough = 8 * (uint64_t)(uintptr_t)lane->begin + 57;
        lane->start = out;
        lane->to = out + count;
        lane->room = out + 3 * LOOK_UPS + 1;
    }
    if (huffman->mode != TB_CODED)
        return TB_OK;
    for (int i = used; i < TB_STREAMS_AT_ONCE; i++)
        lanes[i].enough = 1;
    /* Read downwards, in short pieces, the next streams would surprise the processor. */
    for (const uint8_t *at = huffman->at; at < huffman->end && at < huffman->at + AHEAD; at += 64)
        __builtin_prefetch(at);
#ifdef TB_X86
    if (tb_isa() >= TB_ISA_AVX2)
        run_bmi2(huffman, lanes, ahead);
    else
#endif
        run_baseline(huffman, lanes, ahead);
    int whole = 1;
    for (int i = 0; i < used; i++)
        whole &= finish(huffman, &lanes[i]);
    return whole ? TB_OK : TB_MALFORMED;
}

TB_EXPORT int64_t tb_huffman_decode(const uint8_t *payload, int64_t nbytes, int64_t count, uint8_t *out)
{
    struct tb_huffman huffman;
    const struct tb_ahead nothing = {0};
    if (tb_huffman_open(&huffman, payload, nbytes, count) < 0)
        return TB_MALFORMED;
    for (int64_t start = 0; start < count; start += TB_STREAMS_AT_ONCE * TB_STREAM)
        if (tb_huffman_read(&huffman, out + start, TB_STREAM, nothing) < 0)
            return TB_MALFORMED;
    return TB_OK;
}
