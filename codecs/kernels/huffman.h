/* The entropy coder: Huffman codes of at most 12 bits, in streams of TB_STREAM symbols. */
#ifndef TENSORBUS_HUFFMAN_H
#define TENSORBUS_HUFFMAN_H

#include "prefix_code.h"

#define TB_STREAM 4096
#define TB_STREAMS_AT_ONCE 8

/* The first byte of a payload. */
enum { TB_RAW, TB_CONSTANT, TB_CODED };

TB_INLINE uint64_t tb_word(const uint8_t *at)
{
    uint64_t word;
    memcpy(&word, at, 8);
    return word;
}

/* Writes the payload of fewer than 2^32 symbols, at most count + 1 bytes. Returns the bytes. */
int64_t tb_huffman_encode(const uint8_t *symbols, int64_t count, uint8_t *out);

/* Decodes a payload of count symbols. Returns TB_OK or TB_MALFORMED; writes nothing beyond out[count - 1]. */
int64_t tb_huffman_decode(const uint8_t *payload, int64_t nbytes, int64_t count, uint8_t *out);

/* --- the parts of these, for codecs that count and consume symbols by the way ------------------------ */

/* How often symbols occur, {0} at first: in parts, so that equal neighbours do not wait for one another, and two at a
 * time where the symbols of a piece are among the 64 from `base` on. */
struct tb_counts {
    int based, base;
    uint32_t singles[4][256], pairs[2][64 * 64];
};

/* Adds count symbols, fewer than 2^32 in all. */
void tb_count(struct tb_counts *counts, const uint8_t *symbols, int64_t count);

/* Writes the payload of symbols whose counts are known: at most count + 1 bytes. Returns the bytes. */
int64_t tb_huffman_write(const struct tb_counts *counts, const uint8_t *symbols, int64_t count, uint8_t *out);

/* A payload that is being decoded. */
struct tb_huffman {
    int mode;
    int64_t left;                       /* symbols */
    const uint8_t *sizes, *at, *end;    /* of the streams that follow; where they, or raw symbols, lie; their end */
    uint32_t entries[TB_CODE_VALUES];   /* by the next bits: symbols from the top down, count, bits (6) */
    uint8_t symbols_in[TB_CODE_VALUES]; /* the counts again */
    uint8_t lengths[256];
};

/* Starts to decode a payload of count symbols. Returns TB_OK or TB_MALFORMED. */
int64_t tb_huffman_open(struct tb_huffman *huffman, const uint8_t *payload, int64_t nbytes, int64_t count);

/* Memory that is to be read or written next, and fetched into the cache by the way. It may well be empty. */
struct tb_ahead {
    const char *at, *end;
};

/* Decodes the next streams, TB_STREAMS_AT_ONCE or as many as are left, each to `stride` bytes behind the one before.
 * Returns TB_OK or TB_MALFORMED. */
int64_t tb_huffman_read(struct tb_huffman *huffman, uint8_t *out, int64_t stride, struct tb_ahead ahead);

#endif
