// The elementwise SRU recurrence, forward and backward. NVRTC compiles this text for a GPU (device.h), a host compiler for
// the CPU (host.h).
//
// A thread owns VEC neighbouring channels of one sequence and one direction (its lanes), and one chunk of the time steps.
// It loads what a step reads AHEAD steps before it is needed, for none of that depends on the cell state. All of a pass is
// one launch with one chunk, or, for v1 cells, two with several: first the chunks' summaries, then the chunks themselves.
//
// Set by the compiler's options:
//     VALUE       0 float, 1 half, 2 bfloat16, 3 double: u, x, h and their gradients; the state is float (double for 3)
//     ACTIVATION  g: 0 identity, 1 tanh, 2 relu
//     PLANES      matrices in u: candidate, forget gate [, reset gate [, skip term]]
//     SKIP        1: x is the skip term (PLANES 3)
//     PEEPHOLE    1: the gates see the cell state through v (v2)
//     VEC, AHEAD  see above
//
// Layouts, contiguous, G = 1 gate for PLANES 2, else 2:
//     u (length, batch, PLANES, width)   x, h (length, batch, width)   pad (length, batch), nonzero at padding
//     bias, v (G, width)   c0, mask, c_n (batch, width)   c (length + 1, batch, width), by step of each direction, c0 first
// Gradients as what they belong to; those of bias, v and mask are partial sums, one a chunk and sequence:
//     (chunks, batch, G, width), mask: (chunks, batch, width)
// bias, v, c0, pad and grad_c_n may be null for zeros, mask for ones, c and grad_* but grad_u and grad_x where nobody wants them.
//
// Global memory traffic of an element (time step, sequence, channel) for float with a skip input:
//     forward   24 bytes: u 12, x 4, h 4, c 4 (c in training only)
//     backward  40 bytes: u 12, x 4, c 4, grad_h 4, grad_u 12, grad_x 4

#ifdef __CUDACC_RTC__
#include "device.h"
#else
#include "host.h"
#endif
#include "lanes.h"

#define GATES (PLANES == 2 ? 1 : 2)
#define OWN_SKIP (PLANES == 4)

// ---------------------------------------------------------------- one step's maths

struct Parameters {  // of one channel
    state_t bias_f, bias_r, v_f, v_r, mask;
};

DEVICE state_t sigmoid(state_t x) { return state_t(1) / (state_t(1) + exponential(-x)); }

DEVICE state_t forget_gate(const Parameters& p, state_t u_f, state_t c_before) {
    return sigmoid(u_f + p.bias_f + (PEEPHOLE ? p.v_f * c_before : state_t(0)));
}

DEVICE state_t reset_gate(const Parameters& p, state_t u_r, state_t c_before) {
    if (PLANES == 2) return state_t(1);
    return sigmoid(u_r + p.bias_r + (PEEPHOLE ? p.v_r * c_before : state_t(0)));
}

DEVICE state_t activation(state_t c) {
    if (ACTIVATION == 1) return hyperbolic_tangent(c);
    if (ACTIVATION == 2) return c < state_t(0) ? state_t(0) : c;  // NaN stays
    return c;
}

DEVICE state_t slope(state_t c, state_t g) {
    if (ACTIVATION == 1) return state_t(1) - g * g;
    if (ACTIVATION == 2) return c > state_t(0) ? state_t(1) : state_t(0);
    return state_t(1);
}

DEVICE state_t next_state(state_t f, state_t candidate, state_t c_before) {
    return f * c_before + (state_t(1) - f) * candidate;
}

DEVICE state_t output(const Parameters& p, state_t r, state_t c, state_t skip) {
    return r * (activation(c) * p.mask) + (state_t(1) - r) * skip;
}

struct Gradient {  // of one step: with respect to the products, the skip term, the mask
    state_t candidate, forget, reset, skip, mask;
};

// carry: of the loss with respect to this step's c through all later steps; on return, to the c before it.
DEVICE Gradient step_backward(const Parameters& p, state_t candidate, state_t u_f, state_t u_r, state_t skip,
                              state_t c_before, state_t c, state_t grad_h, state_t& carry) {
    const state_t f = forget_gate(p, u_f, c_before), r = reset_gate(p, u_r, c_before), g = activation(c);
    const state_t grad_c = carry + grad_h * r * p.mask * slope(c, g);
    Gradient d;
    d.candidate = grad_c * (state_t(1) - f);
    d.forget = d.candidate * (c_before - candidate) * f;
    d.reset = PLANES == 2 ? state_t(0) : grad_h * (g * p.mask - skip) * r * (state_t(1) - r);
    d.skip = grad_h * (state_t(1) - r);
    d.mask = grad_h * r * g;
    carry = grad_c * f;
    if (PEEPHOLE) carry += d.forget * p.v_f + d.reset * p.v_r;
    return d;
}

// ---------------------------------------------------------------- where a thread works

struct Columns {
    int64 batch, width, b, channel, chunk, begin, end, length;
    bool reverse, any;
    int lanes;

    DEVICE Columns(int64 thread, int64 length, int64 batch, int64 width, int64 directions, int64 chunk_length)
        : batch(batch), width(width), length(length) {
        const int64 half = width / directions, groups = (half + GROUP - 1) / GROUP;
        const int64 group = thread % groups, rest = thread / groups;
        const int64 direction = rest % directions;
        b = rest / directions % batch;
        chunk = rest / directions / batch;
        begin = chunk * chunk_length;
        any = begin < length;
        end = begin + chunk_length < length ? begin + chunk_length : length;
        reverse = direction == 1;
        channel = direction * half + group * GROUP;
        lanes = int(half - group * GROUP < GROUP ? half - group * GROUP : GROUP);
    }

    DEVICE int64 row(int64 step) const { return (reverse ? length - 1 - step : step) * batch + b; }
    DEVICE int64 at(int64 row, int64 planes, int64 plane) const { return (row * planes + plane) * width + channel; }
};

// Parameters of all lanes.
struct LaneParameters {
    state_t bias_f[VEC], bias_r[VEC], v_f[VEC], v_r[VEC], mask[VEC];

    DEVICE LaneParameters(const Columns& me, const state_t* bias, const state_t* v, const state_t* m) {
        fill(bias_f, bias, me.at(0, GATES, 0), me.lanes, 0);
        fill(mask, m, me.at(me.b, 1, 0), me.lanes, 1);
        if (GATES == 2) fill(bias_r, bias, me.at(0, GATES, GATES - 1), me.lanes, 0);
        if (PEEPHOLE) fill(v_f, v, me.at(0, GATES, 0), me.lanes, 0);
        if (PEEPHOLE && GATES == 2) fill(v_r, v, me.at(0, GATES, GATES - 1), me.lanes, 0);
    }

    DEVICE Parameters operator[](int j) const {
        Parameters p;
        p.bias_f = bias_f[j];
        p.mask = mask[j];
        p.bias_r = GATES == 2 ? bias_r[j] : state_t(0);
        p.v_f = PEEPHOLE ? v_f[j] : state_t(0);
        p.v_r = PEEPHOLE && GATES == 2 ? v_r[j] : state_t(0);
        return p;
    }
};

// What a step reads.
struct Inputs {
    Pack<value_t> u[PLANES], x, grad_h;
    Pack<state_t> c_before;
    bool pad;

    DEVICE state_t candidate(int j) const { return u[0][j]; }
    DEVICE state_t forget(int j) const { return u[1][j]; }
    DEVICE state_t reset(int j) const { return PLANES > 2 ? u[PLANES > 2 ? 2 : 0][j] : state_t(0); }
    DEVICE state_t skip(int j, state_t scale) const {
        return OWN_SKIP ? u[PLANES - 1][j] : SKIP ? x[j] * scale : state_t(0);
    }
};

// Runs step(inputs, i) for i = 0 .. count - 1; fetch(inputs, i) has been called AHEAD steps before.
template <class Fetch, class Step>
DEVICE void pipeline(int64 count, Fetch fetch, Step step) {
    Inputs ring[AHEAD];
    UNROLL
    for (int i = 0; i < AHEAD; ++i)
        if (i < count) fetch(ring[i], i);
    for (int64 first = 0; first < count; first += AHEAD) {
        UNROLL
        for (int i = 0; i < AHEAD; ++i) {
            if (first + i >= count) break;
            const Inputs now = ring[i];
            if (first + i + AHEAD < count) fetch(ring[i], first + i + AHEAD);
            step(now, first + i);
        }
    }
}

// A summary says what a chunk does to whatever passes it: factor * incoming + constant. (chunks, 2, batch, width)
DEVICE int64 summary_at(const Columns& me, int64 chunk, int which) {
    return ((chunk * 2 + which) * me.batch + me.b) * me.width + me.channel;
}

DEVICE void pass_chunk(const Columns& me, const state_t* summary, int64 chunk, state_t* through) {
    const Pack<state_t> factor(summary + summary_at(me, chunk, 0), me.lanes);
    const Pack<state_t> constant(summary + summary_at(me, chunk, 1), me.lanes);
    FOR_EACH_LANE(j, me.lanes) through[j] = factor[j] * through[j] + constant[j];
}

// ---------------------------------------------------------------- kernels

KERNEL sru_forward(const value_t* RESTRICT u, const value_t* RESTRICT x, const state_t* RESTRICT bias,
                   const state_t* RESTRICT v, const state_t* RESTRICT c0, const state_t* RESTRICT mask,
                   const uint8* RESTRICT pad, const state_t* RESTRICT summary, value_t* RESTRICT h,
                   state_t* RESTRICT c_all, state_t* RESTRICT c_n, double skip_scale, int64 length, int64 batch,
                   int64 width, int64 directions, int64 chunk_length) {
    const Columns me(THREAD, length, batch, width, directions, chunk_length);
    if (!me.any) return;
    const LaneParameters parameters(me, bias, v, mask);
    const state_t scale = state_t(skip_scale);
    state_t c[VEC];
    fill(c, c0, me.at(me.b, 1, 0), me.lanes, 0);
    if (c_all && me.chunk == 0) spill(c_all + me.at(me.b, 1, 0), c, me.lanes);
    UNROLL_BY(8)
    for (int64 q = 0; q < me.chunk; ++q) pass_chunk(me, summary, q, c);

    pipeline(
        me.end - me.begin,
        [&](Inputs& in, int64 i) {
            const int64 row = me.row(me.begin + i);
            in.pad = pad && pad[row];
            UNROLL
            for (int k = 0; k < PLANES; ++k) in.u[k].load(u + me.at(row, PLANES, k), me.lanes);
            if (SKIP) in.x.load(x + me.at(row, 1, 0), me.lanes);
        },
        [&](const Inputs& in, int64 i) {
            Store<value_t> out(h + me.at(me.row(me.begin + i), 1, 0));
            if (in.pad) {
                FOR_EACH_LANE(j, me.lanes) out.set(j, state_t(0));
            } else {
                FOR_EACH_LANE(j, me.lanes) {
                    const Parameters p = parameters[j];
                    const state_t before = c[j];
                    c[j] = next_state(forget_gate(p, in.forget(j), before), in.candidate(j), before);
                    out.set(j, output(p, reset_gate(p, in.reset(j), before), c[j], in.skip(j, scale)));
                }
            }
            out.flush();
            if (c_all) spill(c_all + me.at((me.begin + i + 1) * me.batch + me.b, 1, 0), c, me.lanes);
        });
    if (me.end == length) spill(c_n + me.at(me.b, 1, 0), c, me.lanes);
}

KERNEL sru_backward(const value_t* RESTRICT u, const value_t* RESTRICT x, const state_t* RESTRICT bias,
                    const state_t* RESTRICT v, const state_t* RESTRICT c_all, const state_t* RESTRICT mask,
                    const uint8* RESTRICT pad, const state_t* RESTRICT summary, const value_t* RESTRICT grad_h,
                    const state_t* RESTRICT grad_c_n, value_t* RESTRICT grad_u, value_t* RESTRICT grad_x,
                    state_t* RESTRICT grad_bias, state_t* RESTRICT grad_v, state_t* RESTRICT grad_c0,
                    state_t* RESTRICT grad_mask, double skip_scale, int64 length, int64 batch, int64 width,
                    int64 directions, int64 chunk_length) {
    const Columns me(THREAD, length, batch, width, directions, chunk_length);
    if (!me.any) return;
    const LaneParameters parameters(me, bias, v, mask);
    const state_t scale = state_t(skip_scale);
    state_t carry[VEC], sum_f[VEC], sum_r[VEC], sum_vf[VEC], sum_vr[VEC], sum_mask[VEC];
    fill(carry, grad_c_n, me.at(me.b, 1, 0), me.lanes, 0);
    FOR_EACH_LANE(j, me.lanes) sum_f[j] = sum_r[j] = sum_vf[j] = sum_vr[j] = sum_mask[j] = state_t(0);
    UNROLL_BY(8)
    for (int64 q = (length - 1) / chunk_length; q > me.chunk; --q) pass_chunk(me, summary, q, carry);
    Pack<state_t> c;
    c.load(c_all + me.at(me.end * me.batch + me.b, 1, 0), me.lanes);

    pipeline(
        me.end - me.begin,
        [&](Inputs& in, int64 i) {
            const int64 step = me.end - 1 - i, row = me.row(step);
            in.pad = pad && pad[row];
            UNROLL
            for (int k = 0; k < PLANES; ++k) in.u[k].load(u + me.at(row, PLANES, k), me.lanes);
            if (SKIP) in.x.load(x + me.at(row, 1, 0), me.lanes);
            in.grad_h.load(grad_h + me.at(row, 1, 0), me.lanes);
            in.c_before.load(c_all + me.at(step * me.batch + me.b, 1, 0), me.lanes);
        },
        [&](const Inputs& in, int64 i) {
            const int64 row = me.row(me.end - 1 - i);
            Store<value_t> out0(grad_u + me.at(row, PLANES, 0)), out1(grad_u + me.at(row, PLANES, 1));
            Store<value_t> out2(grad_u + me.at(row, PLANES, PLANES > 2 ? 2 : 0));
            Store<value_t> out_skip(OWN_SKIP ? grad_u + me.at(row, PLANES, PLANES - 1) : grad_x + me.at(row, 1, 0));
            if (in.pad) {
                FOR_EACH_LANE(j, me.lanes) {
                    out0.set(j, state_t(0));
                    out1.set(j, state_t(0));
                    if (PLANES > 2) out2.set(j, state_t(0));
                    if (OWN_SKIP || SKIP) out_skip.set(j, state_t(0));
                }
            } else {
                FOR_EACH_LANE(j, me.lanes) {
                    const state_t before = in.c_before[j];
                    const Gradient d =
                        step_backward(parameters[j], in.candidate(j), in.forget(j), in.reset(j), in.skip(j, scale),
                                      before, c[j], in.grad_h[j], carry[j]);
                    out0.set(j, d.candidate);
                    out1.set(j, d.forget);
                    if (PLANES > 2) out2.set(j, d.reset);
                    if (OWN_SKIP || SKIP) out_skip.set(j, OWN_SKIP ? d.skip : d.skip * scale);
                    sum_f[j] += d.forget;
                    sum_mask[j] += d.mask;
                    if (GATES == 2) sum_r[j] += d.reset;
                    if (PEEPHOLE) sum_vf[j] += d.forget * before;
                    if (PEEPHOLE && GATES == 2) sum_vr[j] += d.reset * before;
                }
            }
            out0.flush();
            out1.flush();
            if (PLANES > 2) out2.flush();
            if (OWN_SKIP || SKIP) out_skip.flush();
            c = in.c_before;
        });

    const int64 part = me.chunk * me.batch + me.b;
    if (grad_bias) spill(grad_bias + me.at(part, GATES, 0), sum_f, me.lanes);
    if (grad_bias && GATES == 2) spill(grad_bias + me.at(part, GATES, GATES - 1), sum_r, me.lanes);
    if (PEEPHOLE && grad_v) spill(grad_v + me.at(part, GATES, 0), sum_vf, me.lanes);
    if (PEEPHOLE && GATES == 2 && grad_v) spill(grad_v + me.at(part, GATES, GATES - 1), sum_vr, me.lanes);
    if (grad_mask) spill(grad_mask + me.at(part, 1, 0), sum_mask, me.lanes);
    if (grad_c0 && me.begin == 0) spill(grad_c0 + me.at(me.b, 1, 0), carry, me.lanes);
}

#if !PEEPHOLE  // with v terms the gates depend on the state: no summary exists

KERNEL sru_forward_summary(const value_t* RESTRICT u, const state_t* RESTRICT bias, const uint8* RESTRICT pad,
                           state_t* RESTRICT summary, int64 length, int64 batch, int64 width, int64 directions,
                           int64 chunk_length) {
    const Columns me(THREAD, length, batch, width, directions, chunk_length);
    if (!me.any || me.end == length) return;  // nothing follows the last chunk
    const LaneParameters parameters(me, bias, nullptr, nullptr);
    state_t factor[VEC], constant[VEC];
    FOR_EACH_LANE(j, me.lanes) factor[j] = state_t(1), constant[j] = state_t(0);
    pipeline(
        me.end - me.begin,
        [&](Inputs& in, int64 i) {
            const int64 row = me.row(me.begin + i);
            in.pad = pad && pad[row];
            UNROLL
            for (int k = 0; k < 2; ++k) in.u[k].load(u + me.at(row, PLANES, k), me.lanes);
        },
        [&](const Inputs& in, int64) {
            if (in.pad) return;
            FOR_EACH_LANE(j, me.lanes) {
                const state_t f = forget_gate(parameters[j], in.forget(j), state_t(0));
                constant[j] = next_state(f, in.candidate(j), constant[j]);
                factor[j] *= f;
            }
        });
    spill(summary + summary_at(me, me.chunk, 0), factor, me.lanes);
    spill(summary + summary_at(me, me.chunk, 1), constant, me.lanes);
}

KERNEL sru_backward_summary(const value_t* RESTRICT u, const state_t* RESTRICT bias, const state_t* RESTRICT c_all,
                            const state_t* RESTRICT mask, const uint8* RESTRICT pad,
                            const value_t* RESTRICT grad_h, state_t* RESTRICT summary, int64 length, int64 batch,
                            int64 width, int64 directions, int64 chunk_length) {
    const Columns me(THREAD, length, batch, width, directions, chunk_length);
    if (!me.any || me.begin == 0) return;  // nothing precedes the first chunk
    const LaneParameters parameters(me, bias, nullptr, mask);
    state_t factor[VEC], constant[VEC];
    FOR_EACH_LANE(j, me.lanes) factor[j] = state_t(1), constant[j] = state_t(0);
    pipeline(
        me.end - me.begin,
        [&](Inputs& in, int64 i) {
            const int64 step = me.end - 1 - i, row = me.row(step);
            in.pad = pad && pad[row];
            in.u[1].load(u + me.at(row, PLANES, 1), me.lanes);
            if (PLANES > 2) in.u[PLANES > 2 ? 2 : 0].load(u + me.at(row, PLANES, PLANES > 2 ? 2 : 0), me.lanes);
            in.grad_h.load(grad_h + me.at(row, 1, 0), me.lanes);
            if (ACTIVATION) in.c_before.load(c_all + me.at((step + 1) * me.batch + me.b, 1, 0), me.lanes);  // c itself
        },
        [&](const Inputs& in, int64) {
            if (in.pad) return;
            FOR_EACH_LANE(j, me.lanes) {
                const Parameters p = parameters[j];
                const state_t f = forget_gate(p, in.forget(j), state_t(0)), r = reset_gate(p, in.reset(j), state_t(0));
                const state_t c = ACTIVATION ? in.c_before[j] : state_t(0);
                constant[j] = f * (constant[j] + in.grad_h[j] * r * p.mask * slope(c, activation(c)));
                factor[j] *= f;
            }
        });
    spill(summary + summary_at(me, me.chunk, 0), factor, me.lanes);
    spill(summary + summary_at(me, me.chunk, 1), constant, me.lanes);
}

#endif

#ifndef __CUDACC_RTC__
EXPORT(sru_forward)
EXPORT(sru_backward)
#if !PEEPHOLE
EXPORT(sru_forward_summary)
EXPORT(sru_backward_summary)
#endif
#endif
