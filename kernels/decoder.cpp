// One step of a decoder on a CPU, for all rows of a beam: a program of five operations, which fairseq_sru/models/step.py
// writes once a model. All is float32, and functions of one number are those of sru.cu on a CPU.
#define VALUE 0
#include "host.h"

#include <algorithm>
#include <vector>

#if defined(__AVX512F__)
constexpr int64 LANES = 16, ROWS = 8;
#elif defined(__AVX__)
constexpr int64 LANES = 8, ROWS = 4;
#else
constexpr int64 LANES = 4, ROWS = 4;
#endif
constexpr int64 BLOCK = 2 * LANES;  // columns of a packed weight that lie together
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

enum Code : int64 { EMBED, NORM, LINEAR, RECUR, ATTEND };
enum Flag : int64 { RELU = 1, TANH = 2, ADD = 4, KEEP = 8, TOP = 16 };

struct Op {  // step.py's order
    int64 code, in, out, n, k, flags, at;
    const float *weight, *bias;
    double number;
};

struct Source {  // what an attention reads: (sentences, heads, src_len, size) by strides, and a mask (sentences, src_len)
    const float *key, *value, *mask;
    int64 key_strides[3], value_strides[3], mask_stride;
};

struct Step {
    int64 workers;
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // as of struct Launch
    int (*worker)();
    int (*team)();
    int64 ops, slots, rows, rows_a_sentence, src_len, state_size, need_weights;
    const Op* op;
    const int64* width;  // of each slot
    const Source* source;
    const int64* token;     // (rows)
    float* scratch;         // all slots but the last
    const float* state;     // (rows, state_size)
    float* new_state;       // likewise
    const float* past;      // (rows, src_len): coverage
    float* new_past;        // likewise
    float* weights;         // (rows, src_len): of the attention that wrote last
    float* logits;          // the last slot
};

struct Place {
    float* base;
    int64 width;
    float* row(int64 r) const { return base + r * width; }
};

static Place place(const Step& s, int64 slot) {
    if (slot == s.slots - 1) return {s.logits, s.width[slot]};
    int64 before = 0;
    for (int64 i = 0; i < slot; ++i) before += s.width[i];
    return {s.scratch + before * s.rows, s.width[slot]};
}

// Calls work(i) for the i below count, on as many cores as the step has where there is enough to do.
template <class Work>
static void each(const Step& s, int64 count, int64 operations, const Work& work) {
    constexpr int64 ENOUGH = 1 << 19;  // operations that are worth waking another core
    const int64 workers = std::min<int64>({s.workers, count, 1 + operations / ENOUGH});
    if (workers < 2 || !s.parallel) {
        for (int64 i = 0; i < count; ++i) work(i);
        return;
    }
    struct Job {
        const Step& s;
        int64 count;
        const Work& work;
    } job{s, count, work};
    s.parallel(
        [](void* all) {
            const Job& job = *(const Job*)all;
            const int64 i = job.s.worker(), n = job.s.team();
            for (int64 j = job.count * i / n; j < job.count * (i + 1) / n; ++j) job.work(j);
        },
        (void*)&job, unsigned(workers), 0);
}

// M rows of x by a block of columns, kept in registers.
template <int64 M>
static void tile(const float* x, int64 stride, const float* w, int64 k, float out[][BLOCK]) {
    vec sum[M][2] = {};
    for (int64 i = 0; i < k; ++i, w += BLOCK) {
        const vec left = *(const vec*)w, right = *(const vec*)(w + LANES);
        for (int64 m = 0; m < M; ++m) {
            sum[m][0] += x[m * stride + i] * left;
            sum[m][1] += x[m * stride + i] * right;
        }
    }
    for (int64 m = 0; m < M; ++m) {
        *(vec*)out[m] = sum[m][0];
        *(vec*)(out[m] + LANES) = sum[m][1];
    }
}

typedef void Tile(const float*, int64, const float*, int64, float[][BLOCK]);

template <size_t... M>
static Tile* tile_of(int64 rows, std::index_sequence<M...>) {
    static Tile* const all[] = {tile<int64(M) + 1>...};
    return all[rows - 1];
}

// out = x weight^T + bias; the weight is packed: (blocks, k, BLOCK), zeros behind its last column.
static void linear(const Step& s, const Op& op) {
    const Place x = place(s, op.in), out = place(s, op.out);
    each(s, (op.n + BLOCK - 1) / BLOCK, s.rows * op.n * op.k, [&](int64 block) {
        const int64 begin = block * BLOCK, count = std::min(BLOCK, op.n - begin);
        float sums[ROWS][BLOCK];
        for (int64 r = 0; r < s.rows; r += ROWS) {
            const int64 rows = std::min(ROWS, s.rows - r);
            tile_of(rows, std::make_index_sequence<ROWS>())(x.row(r), x.width, op.weight + begin * op.k, op.k, sums);
            for (int64 m = 0; m < rows; ++m) {
                float* to = out.row(r + m) + begin;
                for (int64 j = 0; j < count; ++j) {
                    float y = sums[m][j] + (op.bias ? op.bias[begin + j] : 0.f);
                    if (op.flags & RELU) y = y > 0.f ? y : 0.f;
                    to[j] = op.flags & ADD ? to[j] + y : y;
                }
            }
        }
    });
}

static void embed(const Step& s, const Op& op) {
    const Place out = place(s, op.out);
    for (int64 r = 0; r < s.rows; ++r)
        for (int64 j = 0; j < op.n; ++j) out.row(r)[j] = float(op.number) * op.weight[s.token[r] * op.n + j];
}

// Layer norm (Ba et al. 2016): number is its epsilon.
static void norm(const Step& s, const Op& op) {
    const Place x = place(s, op.in), out = place(s, op.out);
    for (int64 r = 0; r < s.rows; ++r) {
        const float* from = x.row(r);
        float *to = out.row(r), sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (int64 j = 0; j < op.n; ++j) sum += from[j];
        const float mean = sum / float(op.n);
#pragma omp simd reduction(+ : squares)
        for (int64 j = 0; j < op.n; ++j) squares += (from[j] - mean) * (from[j] - mean);
        const float scale = 1.f / std::sqrt(squares / float(op.n) + float(op.number));
#pragma omp simd
        for (int64 j = 0; j < op.n; ++j) to[j] = (from[j] - mean) * scale * op.weight[j] + op.bias[j];
    }
}

static inline float sigmoid(float x) { return 1.f / (1.f + exponential(-x)); }

// SRU without skip term, from u of k planes (candidate, forget, reset; Lei et al. 2017, equations 3 to 7), or SSRU (Kim et
// al. 2019) from two; added to out. The state is at op.at of a row's.
template <int64 ACTIVATION, bool GATE>  // known to the compiler, or the loop doesn't vectorise
static void recur_row(const float* RESTRICT u, const float* RESTRICT b, const float* RESTRICT c, float* RESTRICT now,
                      float* RESTRICT to, int64 n) {
#pragma GCC ivdep
    for (int64 j = 0; j < n; ++j) {
        const float f = sigmoid(u[n + j] + b[j]);
        now[j] = f * c[j] + (1.f - f) * u[j];
        float h = now[j];
        if (ACTIVATION == TANH) h = hyperbolic_tangent(h);
        if (ACTIVATION == RELU) h = h > 0.f ? h : 0.f;
        to[j] += GATE ? h * sigmoid(u[2 * n + j] + b[n + j]) : h;
    }
}

static void recur(const Step& s, const Op& op) {
    const Place u = place(s, op.in), out = place(s, op.out);
    static constexpr decltype(&recur_row<0, true>) ROW[][3] = {  // without and with a reset gate; by flags
        {recur_row<0, false>, recur_row<RELU, false>, recur_row<TANH, false>},
        {recur_row<0, true>, recur_row<RELU, true>, recur_row<TANH, true>}};
    const auto row = ROW[op.k == 3][op.flags];
    for (int64 r = 0; r < s.rows; ++r) {
        const int64 at = r * s.state_size + op.at;
        row(u.row(r), op.bias, s.state + at, s.new_state + at, out.row(r), op.n);
    }
}

// softmax(number q key^T + mask + coverage) value for each of k heads; op.at is the source, weight that of coverage.
static void attend(const Step& s, const Op& op) {
    const Place q = place(s, op.in), out = place(s, op.out);
    const Source& source = s.source[op.at];
    const int64 size = op.n / op.k, length = s.src_len;
    each(s, s.rows, 2 * s.rows * op.n * length, [&](int64 r) {
        const int64 n = r / s.rows_a_sentence;
        static thread_local std::vector<float> scores, mean, curved;
        scores.resize(length);
        mean.assign(length, 0.f);
        float* below = s.weights + r * length;
        const float* past = op.weight ? s.past + r * length : nullptr;
        if (op.weight) {
            curved.resize(length);
#pragma GCC ivdep
            for (int64 i = 0; i < length; ++i) curved[i] = hyperbolic_tangent(past[i]);
        }
        for (int64 h = 0; h < op.k; ++h) {
            const float* query = q.row(r) + h * size;
            const float* key = source.key + n * source.key_strides[0] + h * source.key_strides[1];
            const float* value = source.value + n * source.value_strides[0] + h * source.value_strides[1];
            const float* mask = source.mask + n * source.mask_stride;
            float highest = -INFINITY, sum = 0;
            for (int64 i = 0; i < length; ++i) {
                const float* k = key + i * source.key_strides[2];
                float score = 0;
#pragma omp simd reduction(+ : score)
                for (int64 j = 0; j < size; ++j) score += query[j] * k[j];
                score = score * float(op.number) + mask[i];
                if (op.weight) {
                    const float* a = op.weight + h;
                    score += a[0] * past[i] + 4.f * a[op.k] * curved[i] + 4.f * a[2 * op.k] * below[i];
                }
                scores[i] = score;
                highest = std::max(highest, score);
            }
            float* share = scores.data();
#pragma GCC ivdep
            for (int64 i = 0; i < length; ++i) share[i] = exponential(share[i] - highest);
#pragma omp simd reduction(+ : sum)
            for (int64 i = 0; i < length; ++i) sum += share[i];
            float* to = out.row(r) + h * size;
            std::fill(to, to + size, 0.f);
            for (int64 i = 0; i < length; ++i) {
                const float part = share[i] / sum, *v = value + i * source.value_strides[2];
                mean[i] += part / float(op.k);
#pragma omp simd
                for (int64 j = 0; j < size; ++j) to[j] += part * v[j];
            }
        }
        if (op.weight)
            for (int64 i = 0; i < length; ++i) s.new_past[r * length + i] = past[i] + below[i];
        if (op.flags & KEEP || (op.flags & TOP && s.need_weights)) std::copy(mean.begin(), mean.end(), below);
    });
}

// Returns whether all tokens are of the embedding, which has k rows; else nothing was done.
extern "C" int64 run_step(const Step* step) {
    static void (*const run[])(const Step&, const Op&) = {embed, norm, linear, recur, attend};  // by Code
    for (int64 i = 0; i < step->ops; ++i) {
        const Op& op = step->op[i];
        if (op.code == EMBED)
            for (int64 r = 0; r < step->rows; ++r)
                if (step->token[r] < 0 || step->token[r] >= op.k) return 0;
        run[op.code](*step, op);
    }
    return 1;
}

extern "C" int64 block() { return BLOCK; }
