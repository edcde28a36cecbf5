// What sru.cu needs of CUDA. No CUDA header is read, so none has to be found: half goes through PTX's own conversions.
#pragma once

#define BLOCK 64  // threads at most
#define EVERY 2   // steps for one saved state; in kernels.py, too
#define KERNEL extern "C" __global__ __launch_bounds__(BLOCK, 1) void  // with the bound fewer instructions
#define DEVICE __device__ __forceinline__
#define RESTRICT __restrict__
#define UNROLL _Pragma("unroll")
#define UNROLL_BY(times) PRAGMA(unroll times)
#define PRAGMA(words) _Pragma(#words)
#define THREAD (int64(blockIdx.x) * blockDim.x + threadIdx.x)
#define GROUP VEC
#define FOR_EACH_LANE(j, count) UNROLL for (int j = 0; j < VEC; ++j)

typedef long long int64;
typedef unsigned char uint8;
typedef int count_t;  // counts threads, steps, channels: dividing 64 bits takes a hundred instructions

// Written out, a loop's addresses are not made anew for each step from the step's number.
template <class T>
DEVICE T* moved(T* from, int64 bytes) {
    T* to;
    asm("add.s64 %0, %1, %2;" : "=l"(to) : "l"(from), "l"(bytes));
    return to;
}

DEVICE unsigned rotated(unsigned word, unsigned bits) { return __funnelshift_r(word, word, bits); }  // to the right

#if VALUE == 3
typedef double state_t;
typedef double value_t;
DEVICE double exponential(double x, double y) { return exp(x + y); }
DEVICE double reciprocal(double x) { return 1 / x; }
DEVICE double hyperbolic_tangent(double x) { return tanh(x); }
#else
typedef float state_t;

DEVICE float power_of_two(float x) {  // 2 ulp
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// e^(x + y); y's product is made once where y stays the same.
DEVICE float exponential(float x, float y) { return power_of_two(fmaf(x, 1.44269504f, y * 1.44269504f)); }

DEVICE float reciprocal(float x) {  // 1 ulp; 0 instead of what is below the normal numbers
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 - 2 / (e^2x + 1), and near 0, where that cancels, x + x^3 P(x^2), P fitted for the least relative error.
DEVICE float hyperbolic_tangent(float x) {
    const float y = x * x, near = x + x * y * (-.33331883f + y * (.13277629f - y * .0477942191f));
    const float far = fmaf(-2, reciprocal(power_of_two(x * 2.88539008f) + 1), 1);
    return fabsf(x) < .4f ? near : far;
}
#endif

#if VALUE == 0
typedef float value_t;
#elif VALUE == 1
struct value_t {  // half
    unsigned short bits;

    value_t() = default;
    DEVICE explicit value_t(float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
    DEVICE operator float() const {
        float x;
        asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
        return x;
    }
};
#elif VALUE == 2
struct value_t {  // bfloat16
    unsigned short bits;

    value_t() = default;
    DEVICE explicit value_t(float x) {
#if __CUDA_ARCH__ >= 800
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#else
        const unsigned b = __float_as_uint(x);
        bits = x != x ? b >> 16 | 64 : (b + 0x7fff + (b >> 16 & 1)) >> 16;
#endif
    }
    DEVICE operator float() const { return __uint_as_float(unsigned(bits) << 16); }
};
#endif

// A Vector by accesses as wide as it is, up to 16 bytes: NVRTC cuts an assignment into one for each lane. Global memory's
// addresses are also generic ones. The kernels read nothing that they have written, so nothing need wait.
template <class V>
DEVICE void write(void* to, const V& v) {
    const unsigned* w = (const unsigned*)&v;
    if (sizeof(V) >= 16) {
        UNROLL
        for (int i = 0; i < int(sizeof(V) / 16); ++i, w += 4)
            asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"((uint8*)to + 16 * i), "r"(w[0]), "r"(w[1]),
                         "r"(w[2]), "r"(w[3]));
    } else if (sizeof(V) == 8) {
        asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(w[0]), "r"(w[1]));
    } else if (sizeof(V) == 4) {
        asm volatile("st.global.u32 [%0], %1;" ::"l"(to), "r"(w[0]));
    } else {
        asm volatile("st.global.u16 [%0], %1;" ::"l"(to), "h"(*(const unsigned short*)&v));
    }
}

// ---------------------------------------------------------------- loads on their way

// A thread's own places for a T, in shared memory, two halves of SLOTS, in pieces of 16 bytes. What is copied there is on
// its way while the thread goes on, and takes no registers. Loads into registers would do if the assembler let them:
// it moves them to where they are used, or has one wait for another.
template <class T, int SLOTS>
struct Ring {
    enum { pieces = sizeof(T) / 16 };
    unsigned start, other;  // this half's address in shared memory, and the other's

    DEVICE Ring() {
        __shared__ uint4 all[SLOTS * pieces][2][BLOCK];
        start = __cvta_generic_to_shared(&all[0][0][threadIdx.x]);
        other = start + BLOCK * 16;
    }

    DEVICE void turn() {
        const unsigned now = start;
        start = other;
        other = now;
    }

    DEVICE unsigned at(int slot, int place) const {
        return start + (slot * pieces + place / 16) * 2 * BLOCK * 16 + place % 16;
    }

    DEVICE T take(int slot) const {
        T t;
        unsigned* const w = (unsigned*)&t;
        UNROLL
        for (int i = 0; i < pieces; ++i)
            asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(w[4 * i]), "=r"(w[4 * i + 1]), "=r"(w[4 * i + 2]), "=r"(w[4 * i + 3])
                         : "r"(at(slot, 16 * i)));
        return t;
    }

    // Starts to copy BYTES to a place in a T, if wanted; of less than 4 bytes the word that they are in.
    template <int BYTES>
    DEVICE void copy(int slot, int place, const void* from, bool wanted) const {
        const int size = BYTES < 4 ? 4 : BYTES < 16 ? BYTES : 16;
        if (BYTES < 4) from = (const void*)((unsigned long long)from & ~3ull);
        UNROLL
        for (int i = 0; i < BYTES; i += size) copy_words<size>(at(slot, place + i), (const uint8*)from + i, wanted);
    }

#if __CUDA_ARCH__ >= 800
    template <int SIZE>
    static DEVICE void copy_words(unsigned to, const void* from, bool wanted) {
        if (!wanted) return;
        if (SIZE == 16)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
        else
            asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(SIZE) : "memory");
    }

    static DEVICE void end_batch() { asm volatile("cp.async.commit_group;" ::: "memory"); }
    static DEVICE void wait_for_all_but_newest() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }
#else
    template <int SIZE>
    static DEVICE void copy_words(unsigned to, const void* from, bool wanted) {
        const unsigned* const words = (const unsigned*)from;
        UNROLL
        for (int i = 0; i < SIZE / 4; ++i)
            if (wanted) asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + 4 * i), "r"(words[i]) : "memory");
    }

    static DEVICE void end_batch() {}
    static DEVICE void wait_for_all_but_newest() {}
#endif
};
