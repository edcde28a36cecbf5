// Cross entropy of logits with label smoothing, and its gradient, in one pass over them on a CPU: fairseq_sru/models/loss.py.
#define WIDE
#include "host.h"

#include <algorithm>
#include <vector>

// Of row THREAD: loss[0] = -log p[target], loss[1] = -sum of all log p; both 0 where the target is `ignored`. gradient, where
// wanted, is that of `one` loss[0] + `each` loss[1].
KERNEL cross_entropy(const value_t* all_logits, const int64* target, float* all_losses, value_t* all_gradients, int64 words,
                     int64 ignored, double one, double each) {
    const value_t* RESTRICT x = all_logits + THREAD * words;
    float* loss = all_losses + THREAD * 2;
    value_t* RESTRICT gradient = all_gradients ? all_gradients + THREAD * words : nullptr;
    const int64 word = target[THREAD];
    if (word == ignored) {
        loss[0] = loss[1] = 0.f;
        if (gradient) std::memset((void*)gradient, 0, words * sizeof(value_t));
        return;
    }
    static thread_local std::vector<float> kept;
    kept.resize(words);
    float* RESTRICT e = kept.data();
    float most = x[0], sum = 0.f, rest = 0.f;
#pragma omp simd reduction(max : most) reduction(+ : sum)
    for (int64 j = 0; j < words; ++j) {
        const float v = x[j];
        most = std::max(most, v);
        sum += v;
    }
#pragma omp simd reduction(+ : rest)
    for (int64 j = 0; j < words; ++j) rest += e[j] = exponential(float(x[j]) - most);
    const float log_rest = most + std::log(rest);
    loss[0] = log_rest - x[word];
    loss[1] = float(words) * log_rest - sum;
    if (!gradient) return;
    const float p = float((one + each * words) / rest), less = float(each);
    FOR_EACH_LANE(j, words) gradient[j] = value_t(p * e[j] - less);
    gradient[word] = value_t(p * e[word] - less - float(one));
}
EXPORT(cross_entropy)
