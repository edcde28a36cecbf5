// What sru.cu needs of CUDA. No CUDA header is read, so none has to be found: half goes through PTX's own conversions.
#pragma once

#define KERNEL extern "C" __global__ void
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

#if VALUE == 3
typedef double state_t;
typedef double value_t;
DEVICE double exponential(double x) { return exp(x); }
DEVICE double hyperbolic_tangent(double x) { return tanh(x); }
#else
typedef float state_t;
DEVICE float exponential(float x) { return expf(x); }
DEVICE float hyperbolic_tangent(float x) { return tanhf(x); }
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

// A Vector by stores as wide as it is, up to 16 bytes: NVRTC cuts an assignment into one store for each lane. Global
// memory's addresses are also generic ones. The kernels read nothing that they have written, so nothing need wait.
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
        *(V*)to = v;
    }
}
