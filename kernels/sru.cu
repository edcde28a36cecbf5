// The elementwise SRU recurrence, forward and backward. NVRTC compiles this text for a GPU (device.h), a host compiler for
// the CPU (host.h).
//
// A thread owns VEC neighbouring channels of one sequence and one direction (its lanes), and one chunk of the time steps.
// What steps read, none of which depends on the cell state, a GPU's thread asks for AHEAD steps at once, one to two such
// batches before it works on them. All of a pass is one launch with one chunk, or, for v1 cells, two with several: first
// the chunks' summaries, then the chunks themselves.
//
// Set by the compiler's options:
//     VALUE       0 float, 1 half, 2 bfloat16, 3 double: u, x, h and their gradients; the state is float (double for 3)
//     ACTIVATION  g: 0 identity, 1 tanh, 2 relu
//     PLANES      matrices in u: candidate, forget gate [, reset gate [, skip term]]
//     SKIP        1: x is the skip term (PLANES 3)
//     PEEPHOLE    1: the gates see the cell state through v (v2)
//     PAD         0: there is no padding mask
//     VEC, AHEAD  see above
//     WIDE        the CPU's form: VEC is the most lanes that a thread has
//
// The cell state is saved before every EVERY-th step, 1 on a CPU and 2 on a GPU, counted from a chunk's end, and before the
// chunk's first. The backward pass takes EVERY steps at once and makes the state between them anew. The forward pass takes
// them at once, too, but from the chunk's begin.
//
// Layouts, contiguous, G = 1 gate for PLANES 2, else 2:
//     u (length, batch, PLANES, width)   x, h (length, batch, width)   pad (length, batch), nonzero at padding
//     bias, v (G, width)   c0, mask, c_n (batch, width)
//     c (saved states, batch, width), in the order of each direction, c0 first, c_n last
// Gradients as what they belong to; those of bias, v and mask are partial sums, one a chunk and sequence:
//     (chunks, batch, G, width), mask: (chunks, batch, width)
// bias, v, c0, pad (always, where PAD is 0) and grad_c_n may be null for zeros, mask for ones, c and grad_* but grad_u and
// grad_x where nobody wants them.
//
// Global memory traffic of an element (time step, sequence, channel) for float with a skip input, EVERY being 2:
//     forward   22 bytes: u 12, x 4, h 4, c 2 (c in training only)
//     backward  38 bytes: u 12, x 4, c 2, grad_h 4, grad_u 12, grad_x 4

#ifdef __CUDACC_RTC__
#include "device.h"
#else
#include "host.h"
#endif
#include "lanes.h"
#include "steps.h"

#define GATES (PLANES == 2 ? 1 : 2)
#define OWN_SKIP (PLANES == 4)

// ---------------------------------------------------------------- one step's maths

struct Parameters {  // of one channel
    state_t bias_f, bias_r, v_f, v_r, mask;
};

// Of x + y.
DEVICE state_t sigmoid(state_t x, state_t y) { return reciprocal(state_t(1) + exponential(-x, -y)); }

DEVICE state_t forget_gate(const Parameters& p, state_t u_f, state_t c_before) {
    return sigmoid(u_f, PEEPHOLE ? p.bias_f + p.v_f * c_before : p.bias_f);
}

DEVICE state_t reset_gate(const Parameters& p, state_t u_r, state_t c_before) {
    if (PLANES == 2) return state_t(1);
    return sigmoid(u_r, PEEPHOLE ? p.bias_r + p.v_r * c_before : p.bias_r);
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

// padded: c is c_before, and nothing else counts.
// carry: of the loss with respect to this step's c through all later steps; on return, to the c before it.
DEVICE Gradient step_backward(const Parameters& p, bool padded, state_t candidate, state_t u_f, state_t u_r,
                              state_t skip, state_t c_before, state_t c, state_t grad_h, state_t& carry) {
    const state_t f = padded ? state_t(1) : forget_gate(p, u_f, c_before);
    const state_t r = reset_gate(p, u_r, c_before), g = activation(c), grad_g = padded ? state_t(0) : grad_h * r;
    const state_t grad_c = carry + grad_g * p.mask * slope(c, g);
    Gradient d;
    d.candidate = grad_c - grad_c * f;
    d.forget = padded ? state_t(0) : d.candidate * (c_before - candidate) * f;
    d.skip = padded ? state_t(0) : grad_h - grad_g;
    d.reset = padded || PLANES == 2 ? state_t(0) : (g * p.mask - skip) * r * d.skip;
    d.mask = grad_g * g;
    carry = grad_c * f;
    if (PEEPHOLE) carry += d.forget * p.v_f + d.reset * p.v_r;
    return d;
}

// ---------------------------------------------------------------- where a thread works

enum Order { FORWARD, BACKWARD };  // in which a thread takes its steps

struct Columns {
    count_t length, batch, width, b, channel, chunk, begin, end, first;  // first: where in time it starts
    count_t saved_begin, saved_end;                                      // where in c the states before and after it are
    bool any, back;                                                      // back: it goes back in time
    int lanes;

    DEVICE Columns(Order order, int64 length, int64 batch, int64 width, int64 directions, int64 chunk_length)
        : length(length), batch(batch), width(width) {
        const count_t half = this->width / count_t(directions), groups = (half + GROUP - 1) / GROUP;
        const count_t thread = THREAD, group = thread % groups, rest = thread / groups;
        const count_t direction = rest % count_t(directions), sequence = rest / count_t(directions);
        b = sequence % this->batch;
        chunk = sequence / this->batch;
        channel = direction * half + group * GROUP;
        lanes = int(half - group * GROUP < GROUP ? half - group * GROUP : GROUP);
        any = chunk * chunk_length < length;
        begin = chunk * chunk_length;
        end = begin + chunk_length < length ? begin + chunk_length : length;
        saved_begin = chunk * saved(chunk_length);
        saved_end = saved_begin + saved(steps());
        const count_t step = order == FORWARD ? begin : end - 1;
        const bool reverse = direction == 1;
        first = reverse ? length - 1 - step : step;
        back = reverse == (order == FORWARD);
    }

    DEVICE static count_t saved(count_t steps) { return (steps + EVERY - 1) / EVERY; }
    DEVICE count_t steps() const { return end - begin; }
    DEVICE int64 at(int64 row, int64 planes, int64 plane) const { return (row * planes + plane) * width + channel; }

    // A plane of (length, batch, planes, width), from the first step on.
    template <class T>
    DEVICE Rows<T> rows(T* tensor, count_t planes = 1, count_t plane = 0) const {
        return walk(tensor, first, back, planes, plane);
    }

    // c, from a row on.
    template <class T>
    DEVICE Rows<T> states(T* tensor, count_t row, Order order) const {
        return walk(tensor, row, order == BACKWARD, 1, 0);
    }

    template <class T>
    DEVICE Source<T> source(const T* tensor, count_t planes = 1, count_t plane = 0) const {
        return rows(tensor, planes, plane);
    }

    // otherwise: what may be read where pad is null.
    DEVICE Source<uint8> padding(const uint8* pad, const void* otherwise) const {
        if (!pad) return {{(const uint8*)otherwise, 0}, false};
        return Rows<const uint8>{pad + int64(first) * batch + b, back ? -int64(batch) : int64(batch)};
    }

private:
    template <class T>
    DEVICE Rows<T> walk(T* tensor, count_t row, bool down, count_t planes, count_t plane) const {
        const int64 stride = int64(batch) * planes * width * int64(sizeof(T));
        return {tensor + at(int64(row) * batch + b, planes, plane), down ? -stride : stride};
    }
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

// What a step of each kernel reads, beside the mask and the saved state.
struct Products {
    Pack<value_t> u[PLANES + SKIP];  // where there is an x, it is the last

    DEVICE state_t candidate(int j) const { return u[0][j]; }
    DEVICE state_t forget(int j) const { return u[1][j]; }
    DEVICE state_t reset(int j) const { return PLANES > 2 ? u[PLANES > 2 ? 2 : 0][j] : state_t(0); }
    DEVICE state_t skip(int j, state_t scale) const {
        return OWN_SKIP ? u[PLANES - 1][j] : SKIP ? u[PLANES - 1 + SKIP][j] * scale : state_t(0);
    }
};

struct Backward : Products {
    Pack<value_t> grad_h;
};

struct ForwardSummary {
    Pack<value_t> candidate, forget;
};

struct BackwardSummary {
    Pack<value_t> forget, reset, grad_h;
};

struct alignas(16) SummaryReads : Steps<BackwardSummary>, Masks, State {
    Pack<value_t> candidate;  // of the earlier of two steps
};

// The state between two steps that the backward pass takes at once, made anew from c, the one before them. candidate and
// forget are what the earlier one, which is taken last, has read. With one step nothing is between.
template <class In>
DEVICE void between(const LaneParameters& parameters, const In& in, int steps, const Pack<value_t>& candidate,
                    const Pack<value_t>& forget, state_t* middle, int lanes) {
    if (EVERY == 1) return;
    FOR_EACH_LANE(j, lanes) middle[j] = state_t(0);
    if (steps == 1) return;
    const bool padded = in.padded(EVERY - 1);
    FOR_EACH_LANE(j, lanes) {
        const state_t before = in.c[j], f = forget_gate(parameters[j], forget[j], before);
        middle[j] = padded ? before : next_state(f, candidate[j], before);
    }
}

// A summary says what a chunk does to whatever passes it: factor * incoming + constant. (chunks, 2, batch, width)
DEVICE int64 summary_at(const Columns& me, int64 chunk, int which) {
    return ((chunk * 2 + which) * me.batch + me.b) * me.width + me.channel;
}

DEVICE void pass_chunk(const Columns& me, const state_t* summary, count_t chunk, state_t* through) {
    const Pack<state_t> factor(summary + summary_at(me, chunk, 0));
    const Pack<state_t> constant(summary + summary_at(me, chunk, 1));
    FOR_EACH_LANE(j, me.lanes) through[j] = factor[j] * through[j] + constant[j];
}

// ---------------------------------------------------------------- kernels

KERNEL sru_forward(const value_t* RESTRICT u, const value_t* RESTRICT x, const state_t* RESTRICT bias,
                   const state_t* RESTRICT v, const state_t* RESTRICT c0, const state_t* RESTRICT mask,
                   const uint8* RESTRICT pad, const state_t* RESTRICT summary, value_t* RESTRICT h,
                   state_t* RESTRICT c_all, state_t* RESTRICT c_n, state_t scale, int64 length, int64 batch,
                   int64 width, int64 directions, int64 chunk_length) {
    const Columns me(FORWARD, length, batch, width, directions, chunk_length);
    if (!me.any) return;
    const LaneParameters parameters(me, bias, v, mask);
    state_t c[VEC];
    fill(c, c0, me.at(me.b, 1, 0), me.lanes, 0);
    if (c_all && me.chunk == 0) spill(c_all + me.at(me.b, 1, 0), c, me.lanes);
    UNROLL_BY(8)
    for (count_t q = 0; q < me.chunk; ++q) pass_chunk(me, summary, q, c);

    Source<value_t> products[PLANES], skips = me.source(x);
    UNROLL
    for (int k = 0; k < PLANES; ++k) products[k] = me.source(u, PLANES, k);
    Source<uint8> padding = me.padding(pad, u);
    Rows<value_t> outputs = me.rows(h);
    Rows<state_t> states = me.states(c_all, me.saved_begin + 1, FORWARD);
    const int last = c_all ? (me.steps() - 1) % EVERY : EVERY;  // after which of the steps taken at once c is saved
    pipeline<Reads<Products>>(
        me.steps(),
        [&](auto& in, auto act) {
            FOR_EACH_STEP(k, EVERY) {
                UNROLL
                for (int plane = 0; plane < PLANES; ++plane) act(k, products[plane], in.of[k].u[plane]);
                if (SKIP) act(k, skips, in.of[k].u[PLANES - 1 + SKIP]);
                in.mask(act, k, padding);
            }
        },
        [&](const auto& in, int steps) {
            state_t* const state = states.next();
            FOR_EACH_STEP(k, steps) {
                const Products& of = in.of[k];
                const bool padded = in.padded(k);
                Store<value_t> out(outputs.next());
                FOR_EACH_LANE(j, me.lanes) {
                    const Parameters p = parameters[j];
                    const state_t before = c[j];
                    const state_t after = next_state(forget_gate(p, of.forget(j), before), of.candidate(j), before);
                    const state_t y = output(p, reset_gate(p, of.reset(j), before), after, of.skip(j, scale));
                    c[j] = padded ? before : after;
                    out.set(j, padded ? state_t(0) : y);
                }
                out.flush();
                if (k == last) spill(state, c, me.lanes);
            }
        });
    if (me.end == length) spill(c_n + me.at(me.b, 1, 0), c, me.lanes);
}

KERNEL sru_backward(const value_t* RESTRICT u, const value_t* RESTRICT x, const state_t* RESTRICT bias,
                    const state_t* RESTRICT v, const state_t* RESTRICT c_all, const state_t* RESTRICT mask,
                    const uint8* RESTRICT pad, const state_t* RESTRICT summary, const value_t* RESTRICT grad_h,
                    const state_t* RESTRICT grad_c_n, value_t* RESTRICT grad_u, value_t* RESTRICT grad_x,
                    state_t* RESTRICT grad_bias, state_t* RESTRICT grad_v, state_t* RESTRICT grad_c0,
                    state_t* RESTRICT grad_mask, state_t scale, int64 length, int64 batch, int64 width,
                    int64 directions, int64 chunk_length) {
    const Columns me(BACKWARD, length, batch, width, directions, chunk_length);
    if (!me.any) return;
    const LaneParameters parameters(me, bias, v, mask);
    state_t carry[VEC], sum_f[VEC], sum_r[VEC], sum_vf[VEC], sum_vr[VEC], sum_mask[VEC];
    fill(carry, grad_c_n, me.at(me.b, 1, 0), me.lanes, 0);
    FOR_EACH_LANE(j, me.lanes) sum_f[j] = sum_r[j] = sum_vf[j] = sum_vr[j] = sum_mask[j] = state_t(0);
    UNROLL_BY(8)
    for (count_t q = (me.length - 1) / count_t(chunk_length); q > me.chunk; --q) pass_chunk(me, summary, q, carry);
    Pack<state_t> c;
    c.load(c_all + me.at(int64(me.saved_end) * batch + me.b, 1, 0));

    Source<value_t> products[PLANES], skips = me.source(x), grads_h = me.source(grad_h);
    UNROLL
    for (int k = 0; k < PLANES; ++k) products[k] = me.source(u, PLANES, k);
    Source<state_t> states = me.states(c_all, me.saved_end - 1, BACKWARD);
    Source<uint8> padding = me.padding(pad, u);
    Rows<value_t> grads_candidate = me.rows(grad_u, PLANES, 0), grads_forget = me.rows(grad_u, PLANES, 1);
    Rows<value_t> grads_reset = me.rows(grad_u, PLANES, PLANES > 2 ? 2 : 0);
    Rows<value_t> grads_skip = SKIP ? me.rows(grad_x) : me.rows(grad_u, PLANES, PLANES - 1);
    pipeline<ReadsWithState<Backward>>(
        me.steps(),
        [&](auto& in, auto act) {
            act(0, states, in.c);
            FOR_EACH_STEP(k, EVERY) {
                UNROLL
                for (int plane = 0; plane < PLANES; ++plane) act(k, products[plane], in.of[k].u[plane]);
                if (SKIP) act(k, skips, in.of[k].u[PLANES - 1 + SKIP]);
                act(k, grads_h, in.of[k].grad_h);
                in.mask(act, k, padding);
            }
        },
        [&](const auto& in, int steps) {
            state_t middle[VEC];
            const Backward& earlier = in.of[EVERY - 1];
            between(parameters, in, steps, earlier.u[0], earlier.u[1], middle, me.lanes);
            FOR_EACH_STEP(k, steps) {
                const Backward& of = in.of[k];
                const bool padded = in.padded(k);
                Store<value_t> out0(grads_candidate.next()), out1(grads_forget.next()), out2(grads_reset.next());
                Store<value_t> out_skip(grads_skip.next());
                FOR_EACH_LANE(j, me.lanes) {
                    const state_t before = k + 1 < steps ? middle[j] : in.c[j], after = k ? middle[j] : c[j];
                    const Gradient d = step_backward(parameters[j], padded, of.candidate(j), of.forget(j), of.reset(j),
                                                     of.skip(j, scale), before, after, of.grad_h[j], carry[j]);
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
                out0.flush();
                out1.flush();
                if (PLANES > 2) out2.flush();
                if (OWN_SKIP || SKIP) out_skip.flush();
            }
            c = in.c;
        });

    const int64 part = int64(me.chunk) * batch + me.b;
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
    const Columns me(FORWARD, length, batch, width, directions, chunk_length);
    if (!me.any || me.end == length) return;  // nothing follows the last chunk
    const LaneParameters parameters(me, bias, nullptr, nullptr);
    state_t factor[VEC], constant[VEC];
    FOR_EACH_LANE(j, me.lanes) factor[j] = state_t(1), constant[j] = state_t(0);
    Source<value_t> candidates = me.source(u, PLANES, 0), forgets = me.source(u, PLANES, 1);
    Source<uint8> padding = me.padding(pad, u);
    pipeline<Reads<ForwardSummary>>(
        me.steps(),
        [&](auto& in, auto act) {
            FOR_EACH_STEP(k, EVERY) {
                act(k, candidates, in.of[k].candidate);
                act(k, forgets, in.of[k].forget);
                in.mask(act, k, padding);
            }
        },
        [&](const auto& in, int steps) {
            FOR_EACH_STEP(k, steps) {
                const bool padded = in.padded(k);
                FOR_EACH_LANE(j, me.lanes) {
                    const state_t f = forget_gate(parameters[j], in.of[k].forget[j], state_t(0));
                    const state_t after = next_state(f, in.of[k].candidate[j], constant[j]);
                    constant[j] = padded ? constant[j] : after;
                    factor[j] *= padded ? state_t(1) : f;
                }
            }
        });
    spill(summary + summary_at(me, me.chunk, 0), factor, me.lanes);
    spill(summary + summary_at(me, me.chunk, 1), constant, me.lanes);
}

KERNEL sru_backward_summary(const value_t* RESTRICT u, const state_t* RESTRICT bias, const state_t* RESTRICT c_all,
                            const state_t* RESTRICT mask, const uint8* RESTRICT pad,
                            const value_t* RESTRICT grad_h, state_t* RESTRICT summary, int64 length, int64 batch,
                            int64 width, int64 directions, int64 chunk_length) {
    const Columns me(BACKWARD, length, batch, width, directions, chunk_length);
    if (!me.any || me.begin == 0) return;  // nothing precedes the first chunk
    const LaneParameters parameters(me, bias, nullptr, mask);
    state_t factor[VEC], constant[VEC];
    FOR_EACH_LANE(j, me.lanes) factor[j] = state_t(1), constant[j] = state_t(0);
    Source<value_t> forgets = me.source(u, PLANES, 1), resets = me.source(u, PLANES, PLANES > 2 ? 2 : 0);
    Source<value_t> grads_h = me.source(grad_h);
    Source<state_t> states = me.states(c_all, me.saved_end - 1, BACKWARD);
    Rows<const value_t> firsts = me.rows(u, PLANES, 0);  // candidates of every EVERY-th step
    firsts = {moved(firsts.row, (EVERY - 1) * firsts.stride), EVERY * firsts.stride};
    Source<value_t> candidates = firsts;
    Source<uint8> padding = me.padding(pad, u);
    Pack<state_t> c;
    if (ACTIVATION) c.load(c_all + me.at(int64(me.saved_end) * batch + me.b, 1, 0));
    pipeline<SummaryReads>(
        me.steps(),
        [&](auto& in, auto act) {
            if (ACTIVATION) act(0, states, in.c);
            if (ACTIVATION && EVERY > 1) act(EVERY - 1, candidates, in.candidate);
            FOR_EACH_STEP(k, EVERY) {
                act(k, forgets, in.of[k].forget);
                if (PLANES > 2) act(k, resets, in.of[k].reset);
                act(k, grads_h, in.of[k].grad_h);
                in.mask(act, k, padding);
            }
        },
        [&](const auto& in, int steps) {
            state_t middle[VEC];
            if (ACTIVATION) between(parameters, in, steps, in.candidate, in.of[EVERY - 1].forget, middle, me.lanes);
            FOR_EACH_STEP(k, steps) {
                const bool padded = in.padded(k);
                FOR_EACH_LANE(j, me.lanes) {
                    const Parameters p = parameters[j];
                    const state_t f = forget_gate(p, in.of[k].forget[j], state_t(0));
                    const state_t r = reset_gate(p, PLANES > 2 ? in.of[k].reset[j] : state_t(0), state_t(0));
                    const state_t g_of = !ACTIVATION ? state_t(0) : k ? middle[j] : c[j];
                    const state_t through = in.of[k].grad_h[j] * r * p.mask * slope(g_of, activation(g_of));
                    const state_t before = f * (constant[j] + through);
                    constant[j] = padded ? constant[j] : before;
                    factor[j] *= padded ? state_t(1) : f;
                }
            }
            if (ACTIVATION) c = in.c;
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
