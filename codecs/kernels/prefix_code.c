/* The lengths and the order of codes. */
#include "prefix_code.h"

/* Package-merge, as prefix_code.code_lengths describes it. */
void tb_code_lengths(const uint32_t counts[256], uint8_t lengths[256])
{
    uint64_t leaves[256], weights[2][512];
    uint8_t order[256], is_pair[TB_LONGEST][512];
    int used = 0, size = 0;
    for (int symbol = 0; symbol < 256; symbol++)
        if (counts[symbol]) {
            int at = used++;
            for (; at && leaves[at - 1] > counts[symbol]; at--) {
                leaves[at] = leaves[at - 1];
                order[at] = order[at - 1];
            }
            leaves[at] = counts[symbol];
            order[at] = (uint8_t)symbol;
        }
    for (int level = 0; level < TB_LONGEST; level++) {
        const uint64_t *below = weights[~level & 1];
        uint64_t *merged = weights[level & 1];
        int pairs = size / 2, leaf = 0, pair = 0;
        for (size = 0; leaf < used || pair < pairs; size++) {
            uint64_t weight = pair < pairs ? below[2 * pair] + below[2 * pair + 1] : UINT64_MAX;
            is_pair[level][size] = !(leaf < used && leaves[leaf] <= weight);
            merged[size] = is_pair[level][size] ? weight : leaves[leaf];
            if (is_pair[level][size])
                pair++;
            else
                leaf++;
        }
    }
    memset(lengths, 0, 256);
    int take = 2 * used - 2;
    for (int level = TB_LONGEST - 1; level >= 0; level--) {
        int pairs = 0;
        for (int i = 0; i < take; i++)
            pairs += is_pair[level][i];
        for (int i = 0; i < take - pairs; i++)
            lengths[order[i]]++;
        take = 2 * pairs;
    }
}

int tb_canonical_order(const uint8_t lengths[256], uint8_t order[256])
{
    int of_length[TB_LONGEST + 2] = {0};
    for (int symbol = 0; symbol < 256; symbol++)
        of_length[lengths[symbol] ? lengths[symbol] + 1 : 0]++;
    of_length[0] = 0;
    for (int length = 1; length <= TB_LONGEST + 1; length++)
        of_length[length] += of_length[length - 1];
    for (int symbol = 0; symbol < 256; symbol++)
        if (lengths[symbol])
            order[of_length[lengths[symbol]]++] = (uint8_t)symbol;
    return of_length[TB_LONGEST];
}
