/* Prefix codes for bytes, of at most TB_LONGEST bits: the twin of codecs/prefix_code.py. */
#ifndef TENSORBUS_PREFIX_CODE_H
#define TENSORBUS_PREFIX_CODE_H

#include "kernels.h"

#define TB_LONGEST 12
#define TB_CODE_VALUES (1 << TB_LONGEST) /* of as many bits as the longest code */

/* The lengths that code these counts best. At least two symbols occur. */
void tb_code_lengths(const uint32_t counts[256], uint8_t lengths[256]);

/* The symbols in the order of their codes; returns how many have one. */
int tb_canonical_order(const uint8_t lengths[256], uint8_t order[256]);

#endif
