// One step of a decoder on a CPU, for all rows of a beam, as fairseq's search asks for it: fairseq_sru/models/step.py.
#include "ops.h"

struct Call {  // step.py's order
    Cores cores;
    Program program;
    int64 rows, rows_a_sentence, src_len, state_size, need_weights;
    const Source* source;
    const int64* token;
    float* scratch;  // all slots but the last
    const float* state;
    float* new_state;
    const float* past;
    float *new_past, *weights;
    float* logits;  // the last slot
};

extern "C" int64 run_step(const Call* call) {
    const Call& c = *call;
    std::vector<Place> slot(c.program.slots);
    float* next = c.scratch;
    for (int64 i = 0; i < c.program.slots; ++i) {
        slot[i] = {i == c.program.slots - 1 ? c.logits : next, c.program.width[i]};
        next += c.rows * slot[i].width;
    }
    const int64 sentences = c.rows / c.rows_a_sentence;
    std::vector<int64> sentence(c.rows), begin(sentences), length(sentences, c.src_len);
    for (int64 r = 0; r < c.rows; ++r) sentence[r] = r / c.rows_a_sentence;
    for (int64 n = 0; n < sentences; ++n) begin[n] = n;  // strides lead from sentence to sentence
    return run(c.program, {c.cores, c.rows, slot.data(), c.token, sentence.data(), begin.data(), length.data(), c.source,
                           c.src_len, c.state_size, c.need_weights, c.state, c.new_state, c.past, c.new_past, c.weights,
                           sentences});
}

extern "C" int64 block() { return BLOCK; }
