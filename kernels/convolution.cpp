// Depthwise convolution over time on a CPU, and its gradient, each in one pass: fairseq_sru/models/convolution.py.
#define WIDE
#include "host.h"

#include <algorithm>

// Of sequence THREAD: its steps lie `batch` rows apart, and those of padding count as 0.
struct Steps {
    int64 length, batch, size;
    const uint8* padding;

    int64 row(int64 t) const { return t * batch + THREAD; }
    bool counts(int64 t) const { return 0 <= t && t < length && !(padding && padding[row(t)]); }
    template <class T>
    T* at(T* x, int64 t) const { return x + row(t) * size; }
};

static void add(value_t* RESTRICT y, const value_t* RESTRICT x, const value_t* RESTRICT weight, int64 size) {
    FOR_EACH_LANE(j, size) y[j] += x[j] * weight[j];
}

// y[t] = sum_k weight[k] x[t + k - own]
KERNEL convolved(const value_t* x, const value_t* weight, const uint8* padding, value_t* y, int64 length, int64 batch, int64 size,
                 int64 taps, int64 own) {
    const Steps steps{length, batch, size, padding};
    for (int64 t = 0; t < length; ++t) {
        value_t* to = steps.at(y, t);
        std::fill_n(to, size, value_t(0));
        for (int64 k = 0; k < taps; ++k)
            if (steps.counts(t + k - own)) add(to, steps.at(x, t + k - own), weight + k * size, size);
    }
}

// grad_weight (batch, taps, size) of each sequence by itself.
KERNEL convolved_gradient(const value_t* x, const value_t* weight, const uint8* padding, const value_t* grad, value_t* grad_x,
                          value_t* all_grad_weight, int64 length, int64 batch, int64 size, int64 taps, int64 own) {
    const Steps steps{length, batch, size, padding};
    value_t* grad_weight = all_grad_weight + THREAD * taps * size;
    std::fill_n(grad_weight, taps * size, value_t(0));
    for (int64 t = 0; t < length; ++t) {
        value_t* to = steps.at(grad_x, t);
        std::fill_n(to, size, value_t(0));
        if (!steps.counts(t)) continue;
        for (int64 k = 0; k < taps; ++k) {
            const int64 seeing = t - (k - own);
            if (seeing < 0 || seeing >= length) continue;
            add(to, steps.at(grad, seeing), weight + k * size, size);
            add(grad_weight + k * size, steps.at(grad, seeing), steps.at(x, t), size);
        }
    }
}
EXPORT(convolved)
EXPORT(convolved_gradient)
