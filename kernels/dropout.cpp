// Dropout on a CPU, with the residual sum around it: fairseq_sru/models/dropout.py. The mask isn't kept: gradients draw it again.
#define WIDE
#include "host.h"

#include <algorithm>

// 512 draws of 16 bits, those of block i of a seed: Philox 4x32 with 7 rounds (Salmon et al. 2011, "Parallel random numbers").
constexpr int LANES = 64, BLOCK = 8 * LANES;

static void draw(int64 block, uint64_t seed, uint16_t* draws) {
    uint32_t word[4][LANES];
    for (int j = 0; j < LANES; ++j) {
        const uint64_t count = uint64_t(block) * LANES + j;
        uint32_t a = uint32_t(count), b = uint32_t(count >> 32), c = 0, d = 0, k = uint32_t(seed), l = uint32_t(seed >> 32);
        for (int round = 0; round < 7; ++round) {
            const uint64_t first = uint64_t(0xD2511F53u) * a, second = uint64_t(0xCD9E8D57u) * c;
            a = uint32_t(second >> 32) ^ b ^ k;
            b = uint32_t(second);
            c = uint32_t(first >> 32) ^ d ^ l;
            d = uint32_t(first);
            k += 0x9E3779B9u;
            l += 0xBB67AE85u;
        }
        word[0][j] = a, word[1][j] = b, word[2][j] = c, word[3][j] = d;
    }
    std::memcpy(draws, word, sizeof word);
}

// y = x * scale where the draw is below `level`, else 0; plus `sum` where there is one. Block THREAD of the elements.
template <class From, class To>
static void drop(const From* all_x, const float* all_sum, To* all_y, int64 count, int64 seed, int64 level, double scale) {
    uint16_t draws[BLOCK];
    draw(THREAD, uint64_t(seed), draws);
    const int64 begin = THREAD * BLOCK, n = std::min<int64>(BLOCK, count - begin);
    const From* RESTRICT x = all_x + begin;
    const float* RESTRICT sum = all_sum ? all_sum + begin : nullptr;
    To* RESTRICT y = all_y + begin;
    const float times = float(scale);
    const int32_t least = int32_t(level);
    if (sum)
        FOR_EACH_LANE(j, n) y[j] = To(sum[j] + (draws[j] < least ? float(x[j]) * times : 0.f));
    else
        FOR_EACH_LANE(j, n) y[j] = To(draws[j] < least ? float(x[j]) * times : 0.f);
}

KERNEL dropped(const value_t* x, value_t* y, int64 count, int64 seed, int64 level, double scale) {
    drop<value_t, value_t>(x, nullptr, y, count, seed, level, scale);
}
KERNEL dropped_sum(const value_t* x, const float* sum, float* y, int64 count, int64 seed, int64 level, double scale) {
    drop<value_t, float>(x, sum, y, count, seed, level, scale);
}
KERNEL dropped_gradient(const float* x, value_t* y, int64 count, int64 seed, int64 level, double scale) {
    drop<float, value_t>(x, nullptr, y, count, seed, level, scale);
}
EXPORT(dropped)
EXPORT(dropped_sum)
EXPORT(dropped_gradient)
