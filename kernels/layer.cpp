// A layer of few rows on a CPU, as a decoder of one sentence has: the product and the recurrence in one call, for
// fairseq_sru/recurrence/native.py. The weight is as torch has it, by rows. To read it takes most of the time, so it is read
// once, in the order in which it lies in memory.
#define WIDE
#include "host.h"
#include "products.h"

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int64 REGISTERS = 32;
#else
constexpr int64 REGISTERS = 16;
#endif
constexpr int64 STRIP = 32;  // rows of the weight that a core takes at a time

// The sum of a vector's numbers, without the way through memory that a loop over them would take.
template <int64 COUNT>
struct Lanes {
    typedef float type __attribute__((vector_size(4 * COUNT)));

    static DEVICE float sum(type all) {
        struct Halves {
            typename Lanes<COUNT / 2>::type low, high;
        };
        const auto halves = bit_cast<Halves>(all);
        return Lanes<COUNT / 2>::sum(halves.low + halves.high);
    }
};
template <>
struct Lanes<1> {
    typedef float type;

    static DEVICE float sum(float all) { return all; }
};

// u of M rows of x and N rows of the weight; their sums are kept in registers.
template <int64 M, int64 N>
static DEVICE void corner(const float* x, const float* w, float* u, int64 n, int64 k) {
    vec sum[M][N];
#pragma GCC unroll 8
    for (int64 m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int64 j = 0; j < N; ++j) sum[m][j] = vec{};
    int64 i = 0;
    for (; i + LANES <= k; i += LANES) {
        vec part[N];
#pragma GCC unroll 4
        for (int64 j = 0; j < N; ++j) part[j] = *(const vec*)(w + j * k + i);
#pragma GCC unroll 8
        for (int64 m = 0; m < M; ++m) {
            const vec mine = *(const vec*)(x + m * k + i);
#pragma GCC unroll 4
            for (int64 j = 0; j < N; ++j) sum[m][j] += mine * part[j];
        }
    }
#pragma GCC unroll 8
    for (int64 m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int64 j = 0; j < N; ++j) {
            float all = Lanes<LANES>::sum(sum[m][j]);
            for (int64 rest = i; rest < k; ++rest) all += x[m * k + rest] * w[j * k + rest];
            u[m * n + j] = all;
        }
}

template <int64 M>
static void strip(const float* x, const float* w, float* u, int64 count, int64 n, int64 k) {
    constexpr int64 ROOM = (REGISTERS - 2) / (M + 1), N = ROOM >= 4 ? 4 : ROOM >= 2 ? 2 : 1;
    int64 j = 0;
    for (; j + N <= count; j += N) corner<M, N>(x, w + j * k, u + j, n, k);
    for (; j < count; ++j) corner<M, 1>(x, w + j * k, u + j, n, k);
}

struct Layer {  // native.py's order; behind it is the launch of the recurrence
    void (*recurrence)(const Launch*);
    const float *x, *weight;  // (rows, k), (n, k)
    float* u;                 // (rows, n)
    int64 rows, n, k, cores;  // at most FEW rows; cores that may be used
};

extern "C" void run_layer(const Layer* layer) {
    typedef void Strip(const float*, const float*, float*, int64, int64, int64);
    static Strip* const all[] = {strip<1>, strip<2>, strip<3>, strip<4>, strip<5>, strip<6>, strip<7>, strip<8>};
    const Launch* launch = (const Launch*)(layer + 1);
    Cores cores = launch->cores;
    cores.workers = layer->cores;  // those of the launch are for the recurrence, which has less to do
    const int64 n = layer->n, k = layer->k;
    each(cores, (n + STRIP - 1) / STRIP, layer->rows * n * k, [&](int64 strip) {
        const int64 begin = STRIP * strip, count = std::min(STRIP, n - begin);
        all[layer->rows - 1](layer->x, layer->weight + begin * k, layer->u + begin, count, n, k);
    });
    layer->recurrence(launch);
}
