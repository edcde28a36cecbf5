// What sru.cu needs of a host compiler (g++, clang++): CUDA's words, the functions of one number in a form that vectorises,
// and a launcher that runs the threads of a launch one after the other, on as many cores as it is told.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

typedef int64_t int64;
typedef uint8_t uint8;
typedef int64_t count_t;

template <class T>
inline T* moved(T* from, int64 bytes) {
    return (T*)((char*)from + bytes);
}

inline uint32_t rotated(uint32_t word, uint32_t bits) {  // to the right
    return word >> bits % 32 | word << -bits % 32;
}

struct Work {  // which thread runs
    int64 thread, group;
};
static thread_local Work current;

#define KERNEL static void
#define DEVICE inline __attribute__((always_inline))
#define RESTRICT __restrict__
#define UNROLL
#define UNROLL_BY(times)
#define THREAD (current.thread)
#ifdef WIDE
#define EVERY 1
#define GROUP (current.group)
#define EACH(j, count) for (int j = 0; j < (count); ++j)
#else
#define EVERY 2
#define GROUP VEC
#define EACH(j, count) for (int j = 0; j < VEC; ++j)
#endif
#ifdef __clang__
#define FOR_EACH_LANE(j, count) _Pragma("clang loop vectorize(assume_safety)") EACH(j, count)
#else
#define FOR_EACH_LANE(j, count) _Pragma("GCC ivdep") EACH(j, count)
#endif

template <class To, class From>
inline To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class V>
DEVICE void write(void* to, const V& v) {
    *(V*)to = v;
}

#if VALUE == 3
typedef double state_t;
typedef double value_t;
inline double exponential(double x, double y) { return std::exp(x + y); }
inline double reciprocal(double x) { return 1 / x; }
inline double hyperbolic_tangent(double x) { return std::tanh(x); }
#else
typedef float state_t;

constexpr float MAGIC = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer

// exp(x) = (1 + p) 2^n, where n = round(x / ln 2), and 1 + p = exp(x - n ln 2) by its series, whose next term is below 2^-27.
// Returns p; shifted is n + MAGIC. F is float or a vector of them.
template <class F>
inline F series(F x, F& shifted) {
    shifted = x * 1.44269504f + MAGIC;
    const F n = shifted - MAGIC;
    const F y = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
    return y + y * y * (1.f / 2 + y * (1.f / 6 + y * (1.f / 24 + y * (1.f / 120 + y * (1.f / 720 + y * (1.f / 5040))))));
}

// exp(x) = (1 + p) a b, where a b = 2^n. Two factors, so that results below the normal numbers and infinity come out right. No
// branch, no call.
struct Exponential {
    float p, a, b;

    explicit Exponential(float x) {
        x = x < -170.f ? -170.f : x > 170.f ? 170.f : x;  // NaN stays
        float shifted;
        p = series(x, shifted);
        const int32_t e = int32_t(bit_cast<uint32_t>(shifted) - bit_cast<uint32_t>(MAGIC)), half = e >> 1;
        a = bit_cast<float>(uint32_t(half + 127) << 23);
        b = bit_cast<float>(uint32_t(e - half + 127) << 23);
    }
};

inline float exponential(float x) {
    const Exponential e(x);
    return (e.p * e.a + e.a) * e.b;
}

inline float exponential(float x, float y) { return exponential(x + y); }
inline float reciprocal(float x) { return 1 / x; }

inline float hyperbolic_tangent(float x) {  // (e^2x - 1) / (e^2x + 1), without the cancellation near 0
    const Exponential e(x < -20.f ? -40.f : x > 20.f ? 40.f : x + x);
    const float s = e.a * e.b, minus_one = e.p * s + (s - 1.f);
    return minus_one / (minus_one + 2.f);
}
#endif

#if VALUE == 0
typedef float value_t;
#elif VALUE == 1
struct value_t {  // half
    uint16_t bits;

    value_t() = default;
    explicit value_t(float x) {  // to nearest even
        const uint32_t all = bit_cast<uint32_t>(x), sign = all >> 16 & 0x8000, size = all & 0x7fffffff;
        const uint32_t normal = (size + 0xc8000fff + (size >> 13 & 1)) >> 13;  // exponent bias 127 to 15, rounded
        const uint32_t small = bit_cast<uint32_t>(bit_cast<float>(size) + .5f) - 0x3f000000;  // below 2^-14: by the adder
        const uint32_t huge = size > 0x7f800000 ? 0x7e00 : 0x7c00;
        bits = uint16_t(sign | (size >= 0x47800000 ? huge : size < 0x38800000 ? small : normal));
    }
    operator float() const {
        const uint32_t size = uint32_t(bits & 0x7fff) << 13;
        const uint32_t scaled = bit_cast<uint32_t>(bit_cast<float>(size) * 5.192296858534828e33f);  // 2^112
        return bit_cast<float>((size >= 0xf800000 ? size | 0x7f800000 : scaled) | uint32_t(bits & 0x8000) << 16);
    }
};
#elif VALUE == 2
struct value_t {  // bfloat16
    uint16_t bits;

    value_t() = default;
    explicit value_t(float x) {  // to nearest even
        const uint32_t b = bit_cast<uint32_t>(x);
        bits = uint16_t((b & 0x7fffffff) > 0x7f800000 ? b >> 16 | 64 : (b + 0x7fff + (b >> 16 & 1)) >> 16);
    }
    operator float() const { return bit_cast<float>(uint32_t(bits) << 16); }
};
#endif

// What a GPU's thread has in shared memory; copies are done at once.
template <class T, int SLOTS>
struct Ring {
    T slots[2 * SLOTS];
    int start = 0;

    void turn() { start = SLOTS - start; }
    T take(int slot) const { return slots[start + slot]; }

    template <int BYTES>
    void copy(int slot, int place, const void* from, bool wanted) {
        const size_t word = BYTES < 4 ? (uintptr_t)from % 4 : 0;  // where in its word a GPU has it
        if (wanted) std::memcpy((char*)&slots[start + slot] + place + word, from, BYTES);
    }

    static void end_batch() {}
    static void wait_for_all_but_newest() {}
};

// ---------------------------------------------------------------- launching

// The cores that a call may use. The library that runs parallel regions is the one that torch has loaded, by the entry that
// GNU's and Intel's have in common; none is linked.
struct Cores {
    int64 workers;
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel
    int (*worker)();                                               // omp_get_thread_num
    int (*team)();                                                 // omp_get_num_threads

    // Calls part(i, n) for the i below n, which is `wanted`, or less where the team is smaller. The team is torch's: for
    // a smaller one GNU's library ends threads, which torch has made again.
    template <class Part>
    void share(int64 wanted, const Part& part) const {
        if (wanted < 2 || !parallel) return part(0, 1);
        struct Job {
            const Cores& cores;
            int64 wanted;
            const Part& part;
        } job{*this, wanted, part};
        parallel(
            [](void* all) {
                const Job& job = *(const Job*)all;
                const int64 i = job.cores.worker(), team = job.cores.team(), n = team < job.wanted ? team : job.wanted;
                if (i < n) job.part(i, n);
            },
            (void*)&job, 0, 0);
    }
};

// A launch as Python packs it: 8 bytes each, then the kernel's arguments likewise.
struct Launch {
    int64 threads, group;
    Cores cores;
    int64 arguments[];
};

template <class A>
inline A argument(int64 word) {
    return bit_cast<A>(word);
}
template <>
inline float argument<float>(int64 word) {
    return float(bit_cast<double>(word));
}

template <class... A, size_t... I>
inline void call(void (*kernel)(A...), const int64* arguments, std::index_sequence<I...>) {
    kernel(argument<A>(arguments[I])...);
}

// Runs the i-th of n parts of the launch.
template <class Kernel, Kernel kernel, class... A>
void part(const Launch* launch, int64 i, int64 n, void (*)(A...)) {
    current.group = launch->group;
    const int64 last = launch->threads * (i + 1) / n;
    for (current.thread = launch->threads * i / n; current.thread < last; ++current.thread)
        call(kernel, launch->arguments, std::index_sequence_for<A...>());
}

template <class Kernel, Kernel kernel>
void run(const Launch* launch) {
    launch->cores.share(launch->cores.workers, [launch](int64 i, int64 n) { part<Kernel, kernel>(launch, i, n, kernel); });
}

#define EXPORT(kernel) \
    extern "C" void run_##kernel(const Launch* launch) { run<decltype(&kernel), &kernel>(launch); }
