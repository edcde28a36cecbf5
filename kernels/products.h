// Products of a few to some hundred rows with a weight that is packed once: (blocks, k, BLOCK) in float32, or
// (blocks, k / 4, BLOCK, 4) in int8, with zeros behind the last column and the last k.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Calls work(i) for the i below count, on as many cores as may work where there is enough to do.
template <class Work>
static void each(const Cores& cores, int64 count, int64 operations, const Work& work) {
    constexpr int64 ENOUGH = 1 << 19;  // operations that are worth waking another core
    const int64 workers = std::min<int64>({cores.workers, count, 1 + operations / ENOUGH});
    std::atomic<bool> failed{false};
    cores.share(workers, [&](int64 i, int64 n) {
        try {
            for (int64 j = count * i / n; j < count * (i + 1) / n; ++j) work(j);
        } catch (const std::exception&) {  // none may leave a parallel region
            failed = true;
        }
    });
    if (failed) throw std::bad_alloc();
}

#if defined(__AVX512F__)
constexpr int64 LANES = 16, ROWS = 8;
#elif defined(__AVX__)
constexpr int64 LANES = 8, ROWS = 4;
#else
constexpr int64 LANES = 4, ROWS = 4;
#endif
constexpr int64 BLOCK = 2 * LANES;  // columns of a packed weight that lie together
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

template <class Sum>
using Sums = Sum[ROWS][BLOCK];

// M rows of x by a block of columns, kept in registers.
template <int64 M>
static void tile(const float* x, int64 stride, const float* w, int64 k, Sums<float>& out) {
    vec sum[M][2];
#pragma GCC unroll 8
    for (int64 m = 0; m < M; ++m) sum[m][0] = sum[m][1] = vec{};
    for (int64 i = 0; i < k; ++i, w += BLOCK) {
        const vec left = *(const vec*)w, right = *(const vec*)(w + LANES);
#pragma GCC unroll 8
        for (int64 m = 0; m < M; ++m) {
            sum[m][0] += x[m * stride + i] * left;
            sum[m][1] += x[m * stride + i] * right;
        }
    }
#pragma GCC unroll 8
    for (int64 m = 0; m < M; ++m) {
        *(vec*)out[m] = sum[m][0];
        *(vec*)(out[m] + LANES) = sum[m][1];
    }
}

// int8: x is int8, and a weight w is kept as the byte w + 128, so that its products are of an unsigned and a signed byte, as
// processors multiply them; 128 times the sum of x is taken off in the end. The sums are exact, in whatever order.
static inline int32_t four(const int8_t* x) { return bit_cast<int32_t>(*(const int32_t __attribute__((aligned(1), may_alias))*)x); }

#if (defined(__AVX512VNNI__) || defined(__AVXVNNI__)) && !defined(PLAIN)
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
typedef __m512i bytes;
static DEVICE bytes all_four(const int8_t* x) { return _mm512_set1_epi32(four(x)); }
static DEVICE bytes add_dot4(bytes sum, bytes w, bytes x) { return _mm512_dpbusd_epi32(sum, w, x); }
#else
typedef __m256i bytes;
static DEVICE bytes all_four(const int8_t* x) { return _mm256_set1_epi32(four(x)); }
static DEVICE bytes add_dot4(bytes sum, bytes w, bytes x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
#endif
template <int64 M>
static void tile(const int8_t* x, int64 stride, const uint8* w, int64 k, Sums<int32_t>& out) {
    constexpr int64 HALF = sizeof(bytes), PARTS = 4 * BLOCK / HALF;
    bytes sum[M][PARTS], part[PARTS];
#pragma GCC unroll 8
    for (int64 m = 0; m < M; ++m)
        for (int64 p = 0; p < PARTS; ++p) sum[m][p] = bytes{};
    for (int64 i = 0; i < k; i += 4, w += 4 * BLOCK) {
        if (M < 8) __builtin_prefetch(w + 64 * BLOCK);  // few rows wait for the weight
        if (M < 8 && 4 * BLOCK > 64) __builtin_prefetch(w + 64 * BLOCK + 64);
        for (int64 p = 0; p < PARTS; ++p) std::memcpy(&part[p], w + p * HALF, HALF);
#pragma GCC unroll 8
        for (int64 m = 0; m < M; ++m) {
            const bytes mine = all_four(x + m * stride + i);
            for (int64 p = 0; p < PARTS; ++p) sum[m][p] = add_dot4(sum[m][p], part[p], mine);
        }
    }
#pragma GCC unroll 8
    for (int64 m = 0; m < M; ++m)
        for (int64 p = 0; p < PARTS; ++p) std::memcpy((char*)out[m] + p * HALF, &sum[m][p], HALF);
}
#elif defined(__AVX2__) && !defined(PLAIN)
// vpmaddubsw would saturate; 16-bit products of pairs don't.
template <int64 M>
static void tile(const int8_t* x, int64 stride, const uint8* w, int64 k, Sums<int32_t>& out) {
    for (int64 column = 0; column < BLOCK; column += 16) {
        __m256i sum[M][4] = {};
        for (int64 i = 0; i < k; i += 4) {
            __m256i mine[M];
            for (int64 m = 0; m < M; ++m)
                mine[m] = _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(four(x + m * stride + i))));
            for (int64 p = 0; p < 4; ++p) {  // four columns each
                const auto from = (const __m128i*)(w + i * BLOCK + 4 * column + 16 * p);
                const __m256i part = _mm256_cvtepu8_epi16(_mm_loadu_si128(from));
                for (int64 m = 0; m < M; ++m) sum[m][p] = _mm256_add_epi32(sum[m][p], _mm256_madd_epi16(part, mine[m]));
            }
        }
        for (int64 m = 0; m < M; ++m)
            for (int64 p = 0; p < 4; p += 2)
                _mm256_storeu_si256((__m256i*)(out[m] + column + 4 * p),
                                    _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum[m][p], sum[m][p + 1]), 0xd8));
    }
}
#else
template <int64 M>
static void tile(const int8_t* x, int64 stride, const uint8* w, int64 k, Sums<int32_t>& out) {
    std::memset(out, 0, M * sizeof out[0]);
    for (int64 i = 0; i < k; i += 4, w += 4 * BLOCK)
        for (int64 m = 0; m < M; ++m)
            for (int64 j = 0; j < BLOCK; ++j)
                for (int64 b = 0; b < 4; ++b) out[m][j] += int32_t(x[m * stride + i + b]) * int32_t(w[4 * j + b]);
}
#endif

template <class X, class W, class Out, size_t... M>
static void tile_of(int64 rows, const X* x, int64 stride, const W* w, int64 k, Out& out, std::index_sequence<M...>) {
    typedef void Tile(const X*, int64, const W*, int64, Out&);
    static Tile* const all[] = {static_cast<Tile*>(tile<int64(M) + 1>)...};
    all[rows - 1](x, stride, w, k, out);
}
