// The operations of a model in evaluation on a CPU. A program of them is written once a model, by
// fairseq_sru/decoding/program.py, and works on slots: a number of rows, each of the slot's width, one row a token. All is
// float32 but for int8 weights, and functions of one number are those of sru.cu on a CPU.
#pragma once
#define VALUE 0
#if defined(__AVX512F__) && !defined(__clang__)
#pragma GCC target("prefer-vector-width=512")  // the products are in such registers, too
#endif
#include "host.h"

#include <algorithm>
#include <vector>

#include "products.h"

enum Code : int64 { EMBED, NORM, LINEAR, RECUR, ATTEND, SCAN, CONVOLVE, SELF_ATTEND };
enum Flag : int64 { RELU = 1, TANH = 2, ADD = 4, KEEP = 8, BOTH_WAYS = 16 };

struct Op {  // program.py's order
    int64 code, in, out, n, k, flags, at;
    const void* weight;
    const float *scale, *bias;  // scale: of an int8 weight, a number a row of it
    double number;
};

struct Program {
    int64 ops, slots;
    const Op* op;
    const int64* width;  // of each slot
};

struct Place {
    float* base;
    int64 width;
    float* row(int64 r) const { return base + r * width; }
};

// Keys and values of an attention: of sentence n and head h at position i they begin at begin[n] * stride[0] + h *
// stride[1] + i * stride[2]; a mask, which may be missing, at begin[n] * mask_stride + i.
struct Source {
    const float *key, *value, *mask;
    int64 key_strides[3], value_strides[3], mask_stride;
    // Of the translator: sentence n has `padded(length)` places from begin[n] on, for products as of a packed weight and
    // without mask. Keys are (heads, places / BLOCK, size, BLOCK) from begin[n] * heads * size on, values (heads,
    // padded(size) / BLOCK, length, BLOCK) from begin[n] * heads * padded(size) on.
    int64 packed;
};

static inline int64 padded(int64 count) { return (count + BLOCK - 1) / BLOCK * BLOCK; }

struct Step {
    Cores cores;
    int64 rows;
    const Place* slot;
    const int64* token;                     // (rows)
    const int64 *sentence, *begin, *length;  // of each row; of each sentence
    const Source* source;                   // of each attention
    int64 src_len, state_size, need_weights;
    const float* state;                     // (rows, state_size)
    float* new_state;                       // likewise
    const float* past;                      // (rows, src_len): coverage
    float* new_past;                        // likewise
    float* weights;                         // (rows, src_len): of the attention that wrote last
    int64 sentences;                        // of begin; a row of an encoder is a position, begin its first ones
};

// to = y, of a block of columns; with BIAS, RELU and ADD known to the compiler, or the loop doesn't vectorise.
template <bool BIASED, bool RELUS, bool ADDS>
static void put_block(const float* RESTRICT y, const float* RESTRICT bias, float* RESTRICT to, int64 count) {
    float sum[BLOCK];
    for (int64 j = 0; j < BLOCK; ++j) sum[j] = BIASED ? y[j] + bias[j] : y[j];
    for (int64 j = 0; j < BLOCK; ++j) sum[j] = RELUS && sum[j] < 0.f ? 0.f : sum[j];  // NaN stays
    if (count == BLOCK)
        for (int64 j = 0; j < BLOCK; ++j) to[j] = ADDS ? to[j] + sum[j] : sum[j];
    else
        for (int64 j = 0; j < count; ++j) to[j] = ADDS ? to[j] + sum[j] : sum[j];
}

static auto put_block_of(const Op& op) {
    static constexpr decltype(&put_block<false, false, false>) all[] = {
        put_block<false, false, false>, put_block<false, false, true>, put_block<false, true, false>, put_block<false, true, true>,
        put_block<true, false, false>,  put_block<true, false, true>,  put_block<true, true, false>,  put_block<true, true, true>};
    return all[4 * bool(op.bias) + 2 * bool(op.flags & RELU) + bool(op.flags & ADD)];
}

// out = x weight^T + bias; bias and scale are as long as the packed weight.
static void linear_float(const Step& s, const Op& op) {
    const Place x = s.slot[op.in], out = s.slot[op.out];
    const auto put = put_block_of(op);
    each(s.cores, (op.n + BLOCK - 1) / BLOCK, s.rows * op.n * op.k, [&](int64 block) {
        const int64 begin = block * BLOCK, count = std::min(BLOCK, op.n - begin);
        const float *weight = (const float*)op.weight + begin * op.k, *bias = op.bias ? op.bias + begin : nullptr;
        Sums<float> sums;
        for (int64 r = 0; r < s.rows; r += ROWS) {
            const int64 rows = std::min(ROWS, s.rows - r);
            tile_of(rows, x.row(r), x.width, weight, op.k, sums, std::make_index_sequence<ROWS>());
            for (int64 m = 0; m < rows; ++m) put(sums[m], bias, out.row(r + m) + begin, count);
        }
    });
}

// A row of int8, and its scale: x is about scale times q. Returns the sum of q.
static int32_t quantise(const float* RESTRICT x, int64 k, int8_t* RESTRICT q, float* scale) {
    float most = 0.f, odd = 0.f;  // the latter is NaN if one of x is infinite or NaN
#pragma omp simd reduction(max : most) reduction(+ : odd)
    for (int64 j = 0; j < k; ++j) {
        most = std::max(most, std::fabs(x[j]));
        odd += x[j] * 0.f;
    }
    *scale = most / 127.f + odd;
    if (odd != 0.f) {
        std::fill(q, q + k, int8_t(1));  // for which the scale makes NaN
        return int32_t(k);
    }
    const float inverse = most > 0.f ? 127.f / most : 0.f;
    int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64 j = 0; j < k; ++j) {
        const int32_t rounded = int32_t(std::rint(x[j] * inverse));
        q[j] = int8_t(rounded);
        sum += int32_t(q[j]);
    }
    return sum;
}

// The same with an int8 weight: a scale a row of x, found here, and a scale a row of the weight.
static void linear_int8(const Step& s, const Op& op) {
    const Place x = s.slot[op.in], out = s.slot[op.out];
    const int64 k = (op.k + 3) / 4 * 4;
    static thread_local std::vector<int8_t> q;
    static thread_local std::vector<float> scale;
    static thread_local std::vector<int32_t> sum;
    q.assign(s.rows * k, 0);
    scale.resize(s.rows);
    sum.resize(s.rows);
    for (int64 r = 0; r < s.rows; ++r) sum[r] = quantise(x.row(r), op.k, &q[r * k], &scale[r]);
    const int8_t* all = q.data();  // a worker's own thread_local is another
    const float* of_row = scale.data();
    const int32_t* of_sum = sum.data();
    const auto put = put_block_of(op);
    each(s.cores, (op.n + BLOCK - 1) / BLOCK, s.rows * op.n * op.k / 4, [&](int64 block) {
        const int64 begin = block * BLOCK, count = std::min(BLOCK, op.n - begin);
        const uint8* weight = (const uint8*)op.weight + begin * k;
        const float *scales = op.scale + begin, *bias = op.bias ? op.bias + begin : nullptr;
        Sums<int32_t> sums;
        for (int64 r = 0; r < s.rows; r += ROWS) {
            const int64 rows = std::min(ROWS, s.rows - r);
            tile_of(rows, all + r * k, k, weight, k, sums, std::make_index_sequence<ROWS>());
            for (int64 m = 0; m < rows; ++m) {
                const int32_t offset = 128 * of_sum[r + m];
                const float factor = of_row[r + m];
                float product[BLOCK];
                for (int64 j = 0; j < BLOCK; ++j) product[j] = float(sums[m][j] - offset) * (factor * scales[j]);
                put(product, bias, out.row(r + m) + begin, count);
            }
        }
    });
}

static void linear(const Step& s, const Op& op) { op.scale ? linear_int8(s, op) : linear_float(s, op); }

// number times a token's row of the weight, plus one of bias for its place in the sentence, where there is such.
static void embed(const Step& s, const Op& op) {
    const Place out = s.slot[op.out];
    for (int64 r = 0; r < s.rows; ++r) {
        float* to = out.row(r);
        const int64 from = s.token[r] * op.n;
        if (op.scale) {
            const float factor = float(op.number) * op.scale[s.token[r]];
            for (int64 j = 0; j < op.n; ++j) to[j] = factor * float(((const int8_t*)op.weight)[from + j]);
        } else {
            for (int64 j = 0; j < op.n; ++j) to[j] = float(op.number) * ((const float*)op.weight)[from + j];
        }
    }
    if (op.bias)
        for (int64 n = 0; n < s.sentences; ++n)
            for (int64 i = 0; i < s.length[n]; ++i)
                for (int64 j = 0; j < op.n; ++j) out.row(s.begin[n] + i)[j] += op.bias[i * op.n + j];
}

// Layer norm (Ba et al. 2016): number is its epsilon.
static void norm(const Step& s, const Op& op) {
    const Place x = s.slot[op.in], out = s.slot[op.out];
    const float* weight = (const float*)op.weight;
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
        for (int64 j = 0; j < op.n; ++j) to[j] = (from[j] - mean) * scale * weight[j] + op.bias[j];
    }
}

// exp(x) of what is not above 0, as host.h has it, with one factor: 0 below -87, near the least normal number.
static inline vec exponential_to_one(vec x) {
    typedef uint32_t ints __attribute__((vector_size(4 * LANES)));
    const vec low = vec{} - 87.f, kept = x < low ? low : x;  // NaN stays
    vec shifted;
    const vec p = series(kept, shifted), power = (vec)(((ints)shifted << 23) + (127u << 23));
    return x < low ? vec{} : p * power + power;
}

static inline float sigmoid(float x) { return 1.f / (1.f + exponential(-x)); }

// n channels of SRU without skip term (Lei et al. 2017, equations 3 to 7: candidate, forget and reset gate lie `plane`
// numbers apart), or of SSRU (Kim et al. 2019), which has no reset gate; added to out.
template <int64 ACTIVATION, bool GATE>  // known to the compiler, or the loop doesn't vectorise
static void recur_row(const float* RESTRICT u, const float* RESTRICT b, int64 plane, const float* RESTRICT c,
                      float* RESTRICT now, float* RESTRICT to, int64 n) {
#pragma GCC ivdep
    for (int64 j = 0; j < n; ++j) {
        const float f = sigmoid(u[plane + j] + b[j]);
        now[j] = f * c[j] + (1.f - f) * u[j];
        float h = now[j];
        if (ACTIVATION == TANH) h = hyperbolic_tangent(h);
        if (ACTIVATION == RELU) h = h < 0.f ? 0.f : h;
        to[j] += GATE ? h * sigmoid(u[2 * plane + j] + b[plane + j]) : h;
    }
}

typedef decltype(&recur_row<0, true>) RecurRow;

static RecurRow recur_row_of(const Op& op) {
    static constexpr RecurRow all[][3] = {  // without and with a reset gate; by flags
        {recur_row<0, false>, recur_row<RELU, false>, recur_row<TANH, false>},
        {recur_row<0, true>, recur_row<RELU, true>, recur_row<TANH, true>}};
    return all[op.k == 3][op.flags & (RELU | TANH)];
}

// One step, whose state is at op.at of a row's.
static void recur(const Step& s, const Op& op) {
    const Place u = s.slot[op.in], out = s.slot[op.out];
    const RecurRow row = recur_row_of(op);
    for (int64 r = 0; r < s.rows; ++r) {
        const int64 at = r * s.state_size + op.at;
        row(u.row(r), op.bias, op.n, s.state + at, s.new_state + at, out.row(r), op.n);
    }
}

// All steps of each sentence from a state of zeros; BOTH_WAYS, the second half of the channels runs backward in time.
static void scan(const Step& s, const Op& op) {
    const Place u = s.slot[op.in], out = s.slot[op.out];
    const RecurRow row = recur_row_of(op);
    const int64 ways = op.flags & BOTH_WAYS ? 2 : 1, n = op.n / ways;
    std::vector<float> states(2 * n);
    for (int64 sentence = 0; sentence < s.sentences; ++sentence)
        for (int64 way = 0; way < ways; ++way) {
            float *c = states.data(), *now = c + n;
            std::fill(c, c + n, 0.f);
            const int64 begin = s.begin[sentence], length = s.length[sentence];
            for (int64 i = 0; i < length; ++i, std::swap(c, now)) {
                const int64 r = begin + (way ? length - 1 - i : i), at = way * n;
                row(u.row(r) + at, op.bias + at, op.n, c, now, out.row(r) + at, n);
            }
        }
}

// y[t] = sum over k of weight[k] x[t + k - K / 2], in each channel and inside the sentence (models/convolution.py).
static void convolve(const Step& s, const Op& op) {
    const Place x = s.slot[op.in], out = s.slot[op.out];
    for (int64 sentence = 0; sentence < s.sentences; ++sentence)
        for (int64 t = 0; t < s.length[sentence]; ++t) {
            float* to = out.row(s.begin[sentence] + t);
            std::fill(to, to + op.n, 0.f);
            for (int64 k = 0; k < op.k; ++k) {
                const int64 seen = t + k - op.k / 2;
                if (seen < 0 || seen >= s.length[sentence]) continue;
                const float *from = x.row(s.begin[sentence] + seen), *weight = (const float*)op.weight + k * op.n;
#pragma omp simd
                for (int64 j = 0; j < op.n; ++j) to[j] += from[j] * weight[j];
            }
        }
}

static void softmax(float* x, int64 count) {
    float highest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : highest)
    for (int64 i = 0; i < count; ++i) highest = x[i] > highest ? x[i] : highest;
#pragma GCC ivdep
    for (int64 i = 0; i < count; ++i) x[i] = exponential(x[i] - highest);
#pragma omp simd reduction(+ : sum)
    for (int64 i = 0; i < count; ++i) sum += x[i];
    const float part = 1.f / sum;
#pragma omp simd
    for (int64 i = 0; i < count; ++i) x[i] *= part;
}

// to = softmax(scale query key^T + bias) value, of one head and query; share has the bias before, and the weights after.
static void attend_one(const float* query, const float* key, int64 key_stride, const float* value, int64 value_stride,
                       int64 size, int64 length, float scale, float* share, float* to) {
    for (int64 i = 0; i < length; ++i) {
        const float* k = key + i * key_stride;
        float score = 0;
#pragma omp simd reduction(+ : score)
        for (int64 j = 0; j < size; ++j) score += query[j] * k[j];
        share[i] += score * scale;
    }
    softmax(share, length);
    std::fill(to, to + size, 0.f);
    for (int64 i = 0; i < length; ++i) {
        const float* v = value + i * value_stride;
#pragma omp simd
        for (int64 j = 0; j < size; ++j) to[j] += share[i] * v[j];
    }
}

// The same of rows of one sentence, from a packed source; share has padded(length) numbers a row.
static void attend_packed(int64 rows, const float* query, int64 query_stride, const float* key, const float* value,
                          int64 size, int64 length, float scale, float* share, float* to, int64 to_stride) {
    const int64 places = padded(length);
    alignas(64) Sums<float> sums;
    for (int64 i = 0; i < places; i += BLOCK) {
        tile_of(rows, query, query_stride, key + i * size, size, sums, std::make_index_sequence<ROWS>());
        for (int64 m = 0; m < rows; ++m)
            for (int64 j = 0; j < BLOCK; ++j) share[m * places + i + j] += scale * sums[m][j];
    }
    for (int64 m = 0; m < rows; ++m) softmax(share + m * places, places);
    for (int64 i = 0; i < size; i += BLOCK) {
        tile_of(rows, share, places, value + i * length, length, sums, std::make_index_sequence<ROWS>());
        for (int64 m = 0; m < rows; ++m) std::copy_n(sums[m], std::min(BLOCK, size - i), to + m * to_stride + i);
    }
}

// Attention over a source, with k heads; op.at is the source, and weight, where there is one, that of coverage.
static void attend(const Step& s, const Op& op) {
    const Place q = s.slot[op.in], out = s.slot[op.out];
    const Source& source = s.source[op.at];
    const int64 size = op.n / op.k, most = source.packed ? ROWS : 1;
    static thread_local std::vector<int64> groups;  // the first row of each: rows of one sentence, as many as a tile takes
    groups.clear();
    for (int64 r = 0; r < s.rows; ++r)
        if (!r || s.sentence[r] != s.sentence[r - 1] || r - groups.back() == most) groups.push_back(r);
    const int64 count = int64(groups.size());
    groups.push_back(s.rows);
    const int64* group = groups.data();  // a worker's own thread_local is another
    each(s.cores, count, 2 * s.rows * op.n * s.src_len, [&](int64 g) {
        const int64 row = group[g], rows = group[g + 1] - row;
        const int64 sentence = s.sentence[row], n = s.begin[sentence], length = s.length[sentence];
        const int64 places = source.packed ? padded(length) : length;  // at most src_len
        static thread_local std::vector<float> room;
        room.resize(3 * rows * places);
        float *shares = room.data(), *mean = shares + rows * places, *curved = mean + rows * places;
        const float scale = float(op.number), part = 1.f / float(op.k);
        std::fill_n(mean, rows * places, 0.f);
        for (int64 m = 0; op.weight && m < rows; ++m) {
            const float* past = s.past + (row + m) * s.src_len;
#pragma GCC ivdep
            for (int64 i = 0; i < places; ++i) curved[m * places + i] = hyperbolic_tangent(past[i]);
        }
        for (int64 h = 0; h < op.k; ++h) {
            const int64 at = h * size;
            for (int64 m = 0; m < rows; ++m) {
                float* share = shares + m * places;
                std::fill_n(share, places, 0.f);
                if (op.weight) {
                    const float *past = s.past + (row + m) * s.src_len, *below = s.weights + (row + m) * s.src_len;
                    const float *weight = (const float*)op.weight + h, *bent = curved + m * places, a = weight[0];
                    const float b = 4.f * weight[op.k], c = 4.f * weight[2 * op.k];
#pragma GCC ivdep
                    for (int64 i = 0; i < places; ++i) share[i] = a * past[i] + b * bent[i] + c * below[i];
                }
                if (source.mask)
                    for (int64 i = 0; i < places; ++i) share[i] += source.mask[n * source.mask_stride + i];
                std::fill(share + length, share + places, -INFINITY);
            }
            if (source.packed)
                attend_packed(rows, q.row(row) + at, q.width, source.key + n * op.n + at * places,
                              source.value + (n * op.k + h * length) * padded(size), size, length, scale, shares,
                              out.row(row) + at, out.width);
            else
                attend_one(q.row(row) + at, source.key + n * source.key_strides[0] + h * source.key_strides[1],
                           source.key_strides[2], source.value + n * source.value_strides[0] + h * source.value_strides[1],
                           source.value_strides[2], size, length, scale, shares, out.row(row) + at);
#pragma omp simd
            for (int64 i = 0; i < rows * places; ++i) mean[i] += shares[i] * part;
        }
        for (int64 m = 0; m < rows; ++m) {
            const int64 first = (row + m) * s.src_len;
            if (op.weight)
#pragma GCC ivdep
                for (int64 i = first; i < first + places; ++i) s.new_past[i] = s.past[i] + s.weights[i];
            if (op.flags & KEEP || s.need_weights) std::copy_n(mean + m * places, places, s.weights + first);
        }
    });
}

// Attention of each sentence over itself: query, key and value are thirds of a row.
static void self_attend(const Step& s, const Op& op) {
    const Place x = s.slot[op.in], out = s.slot[op.out];
    const int64 size = op.n / op.k;
    std::vector<float> share;
    for (int64 sentence = 0; sentence < s.sentences; ++sentence) {
        const int64 begin = s.begin[sentence], length = s.length[sentence];
        for (int64 i = 0; i < length; ++i)
            for (int64 h = 0; h < op.k; ++h) {
                const float* first = x.row(begin) + h * size;
                share.assign(length, 0.f);
                attend_one(x.row(begin + i) + h * size, first + op.n, x.width, first + 2 * op.n, x.width, size, length,
                           float(op.number), share.data(), out.row(begin + i) + h * size);
            }
    }
}

// Returns whether all tokens are of the embedding, which has k rows; else nothing was done.
static bool run(const Program& program, const Step& step) {
    static void (*const operation[])(const Step&, const Op&) = {  // by Code
        embed, norm, linear, recur, attend, scan, convolve, self_attend};
    for (int64 i = 0; i < program.ops; ++i) {
        const Op& op = program.op[i];
        if (op.code == EMBED)
            for (int64 r = 0; r < step.rows; ++r)
                if (step.token[r] < 0 || step.token[r] >= op.k) return false;
        operation[op.code](step, op);
    }
    return true;
}
