// Beam search over a whole batch of sentences: encoder, decoder and the choice of hypotheses, for
// fairseq_sru/decoding/translator.py. What it finds is what fairseq 0.12.2's SequenceGenerator finds with its defaults: two
// candidates a hypothesis; an end of sentence counts among the best `beam` alone; a sentence is done when `beam` of its
// hypotheses have ended, and then leaves the batch; scores are divided by the length.
#include "ops.h"

struct Job {  // translator.py's order
    Program encoder, decoder;
    int64 attentions;
    const int64* source_slot;  // of the encoder: what each attention reads, keys beside values
    const int64* source_heads;
    int64 state_size, sentences;
    const int64* token;  // of all sentences, one after the other
    const int64* begin;  // (sentences + 1)
    int64 beam, max_length, no_repeat, scored, pad, eos;
    int32_t* out;     // (sentences, beam, max_length + 1): best first, each with its end
    int64* lengths;   // (sentences, beam): 0 where there are fewer
    float* scores;    // likewise
};

static constexpr int64 ENCODED = 256;  // positions that are encoded together: what is between stays in the cache

// Slots of so many rows, those in `kept` elsewhere.
struct Slots {
    std::vector<float> scratch;
    std::vector<Place> place;

    void lay_out(const Program& program, int64 rows, const std::vector<float*>& kept) {
        int64 size = 0;
        for (int64 i = 0; i < program.slots; ++i) size += kept[i] ? 0 : rows * program.width[i];
        if (int64(scratch.size()) < size) scratch.resize(size);
        place.resize(program.slots);
        float* next = scratch.data();
        for (int64 i = 0; i < program.slots; ++i) {
            place[i] = {kept[i] ? kept[i] : next, program.width[i]};
            if (!kept[i]) next += rows * program.width[i];
        }
    }
};

// Keys and values of all sentences for each attention.
static std::vector<std::vector<float>> encode(const Job& job, const std::vector<int64>& length) {
    std::vector<std::vector<float>> sources(job.attentions);
    for (int64 a = 0; a < job.attentions; ++a)
        sources[a].resize(job.begin[job.sentences] * job.encoder.width[job.source_slot[a]]);
    Slots slots;
    for (int64 first = 0, last; first < job.sentences; first = last) {
        for (last = first + 1; last < job.sentences && job.begin[last + 1] - job.begin[first] <= ENCODED;) ++last;
        const int64 offset = job.begin[first], rows = job.begin[last] - offset;
        std::vector<float*> kept(job.encoder.slots);
        for (int64 a = 0; a < job.attentions; ++a)
            kept[job.source_slot[a]] = sources[a].data() + offset * job.encoder.width[job.source_slot[a]];
        slots.lay_out(job.encoder, rows, kept);
        std::vector<int64> begin(last - first);
        for (int64 n = first; n < last; ++n) begin[n - first] = job.begin[n] - offset;
        Step step{};
        step.rows = rows;
        step.slot = slots.place.data();
        step.token = job.token + offset;
        step.begin = begin.data();
        step.length = &length[first];
        step.sentences = last - first;
        run(job.encoder, step);
    }
    return sources;
}

struct Candidate {
    float score;
    int64 row, token;
};

struct Ended {
    float score;
    std::vector<int32_t> tokens;
};

struct Search {
    const Job& job;
    int64 words;
    // of each live hypothesis; those of a sentence lie together
    std::vector<int64> token, sentence;
    std::vector<float> score, state;
    std::vector<float> past;         // coverage
    std::vector<int32_t> history;    // (rows, max_length + 1)
    std::vector<std::vector<Ended>> ended;  // of each sentence

    std::vector<Candidate> best;  // of a sentence at a step, sorted
    std::vector<float> peaks;     // of each CHUNK of a row's logits
    static constexpr int64 CHUNK = 64;

    explicit Search(const Job& job)
        : job(job), words(job.decoder.width[job.decoder.slots - 1]), ended(job.sentences), peaks((words + CHUNK - 1) / CHUNK) {}

    void offer(const Candidate& c, size_t room) {
        if (best.size() == room) {
            if (!(c.score > best.back().score)) return;
            best.pop_back();
        }
        auto at = best.end();
        while (at != best.begin() && at[-1].score < c.score) --at;
        best.insert(at, c);
    }

    // The end of an n-gram that the hypothesis has already.
    void forbid_repetitions(float* logits, const int32_t* tokens, int64 length) {
        const int64 n = job.no_repeat;
        if (n < 1 || length + 1 < n) return;
        std::vector<int64> found;
        for (int64 i = 0; i + n <= length; ++i)
            if (std::equal(tokens + i, tokens + i + n - 1, tokens + length - (n - 1))) found.push_back(tokens[i + n - 1]);
        std::vector<float> before;
        for (int64 word : found) {
            before.push_back(logits[word]);
            logits[word] = -INFINITY;
        }
        if (std::any_of(logits, logits + words, [](float x) { return x != -INFINITY; })) return;
        for (size_t i = found.size(); i-- > 0;) logits[found[i]] = before[i];  // where nothing would be left, all stays
    }

    // Offers the words that may follow a hypothesis, with log softmax(logits) where there is more than one to compare with.
    void extend(int64 row, float* x, int64 step, size_t room) {
        float highest = -INFINITY, sum = 0;
        for (int64 c = 0; c < int64(peaks.size()); ++c) {
            float peak = -INFINITY;
            const int64 end = std::min(words, (c + 1) * CHUNK);
#pragma omp simd reduction(max : peak)
            for (int64 j = c * CHUNK; j < end; ++j) peak = std::max(peak, x[j]);
            peaks[c] = peak;
            highest = std::max(highest, peak);
        }
        float shift = 0, before = 0;
        if (job.scored) {
#pragma omp simd reduction(+ : sum)
            for (int64 j = 0; j < words; ++j) sum += exponential(x[j] - highest);
            shift = highest;
            before = std::log(sum);
        }
        const auto total = [=](float logit) { return ((logit - shift) - before) + score[row]; };
        x[job.pad] = -INFINITY;
        if (step == job.max_length) {
            const float end = total(x[job.eos]);
            if (end > -INFINITY) offer({end, row, job.eos}, room);
            return;
        }
        if (step == 0) x[job.eos] = -INFINITY;
        forbid_repetitions(x, &history[row * (job.max_length + 1)], step);
        for (int64 c = 0; c < int64(peaks.size()); ++c) {
            if (best.size() == room && !(total(peaks[c]) > best.back().score)) continue;
            for (int64 j = c * CHUNK, end = std::min(words, j + CHUNK); j < end; ++j) {
                const float with = total(x[j]);
                if (with > -INFINITY) offer({with, row, j}, room);  // nor NaN
            }
        }
    }

    void run() {
        const int64 S = job.state_size, stride = job.max_length + 1;
        std::vector<int64> length(job.sentences);
        int64 longest = 0;
        for (int64 n = 0; n < job.sentences; ++n) {
            length[n] = job.begin[n + 1] - job.begin[n];
            longest = std::max(longest, length[n]);
        }
        const auto kept = encode(job, length);
        std::vector<Source> source(job.attentions);
        for (int64 a = 0; a < job.attentions; ++a) {
            const int64 width = job.encoder.width[job.source_slot[a]], half = width / 2, head = half / job.source_heads[a];
            source[a] = {kept[a].data(), kept[a].data() + half, nullptr, {width, head, width}, {width, head, width}, 0};
        }
        Slots slots;
        const std::vector<float*> nothing(job.decoder.slots);
        std::vector<float> new_state, new_past, weights;
        for (int64 n = 0; n < job.sentences; ++n) sentence.push_back(n);
        token.assign(job.sentences, job.eos);
        score.assign(job.sentences, 0.f);
        state.assign(job.sentences * S, 0.f);
        past.assign(job.sentences * longest, 0.f);
        history.assign(job.sentences * stride, 0);
        for (int64 step = 0; !token.empty(); ++step) {
            const int64 rows = int64(token.size());
            new_state.resize(rows * S);
            new_past.assign(rows * longest, 0.f);
            weights.resize(rows * longest);
            slots.lay_out(job.decoder, rows, nothing);
            ::run(job.decoder, {{}, rows, slots.place.data(), token.data(), sentence.data(), job.begin, length.data(),
                                source.data(), longest, S, 0, state.data(), new_state.data(), past.data(), new_past.data(),
                                weights.data(), job.sentences});
            const std::vector<Candidate> next = choose(slots.place.back(), step);
            const std::vector<int64> old_sentence = std::move(sentence);
            const std::vector<int32_t> old_history = std::move(history);
            const int64 live = int64(next.size());
            token.resize(live);
            sentence.resize(live);
            score.resize(live);
            state.resize(live * S);
            past.resize(live * longest);
            history.resize(live * stride);
            for (int64 r = 0; r < live; ++r) {
                const int64 from = next[r].row;
                token[r] = next[r].token;
                score[r] = next[r].score;
                sentence[r] = old_sentence[from];
                std::copy_n(&new_state[from * S], S, &state[r * S]);
                std::copy_n(&new_past[from * longest], longest, &past[r * longest]);
                std::copy_n(&old_history[from * stride], step, &history[r * stride]);
                history[r * stride + step] = int32_t(token[r]);
            }
        }
        finish();
    }

    // Ends hypotheses, and returns those that go on.
    std::vector<Candidate> choose(const Place& logits, int64 step) {
        std::vector<Candidate> next;
        const int64 rows = int64(token.size()), stride = job.max_length + 1;
        for (int64 first = 0, last; first < rows; first = last) {
            const int64 n = sentence[first];
            best.clear();
            for (last = first; last < rows && sentence[last] == n; ++last)
                extend(last, logits.row(last), step, size_t(2 * job.beam));
            const size_t begin = next.size();
            for (int64 rank = 0; rank < int64(best.size()); ++rank) {
                const Candidate& c = best[rank];
                if (c.token != job.eos) {
                    if (int64(next.size() - begin) < job.beam) next.push_back(c);
                } else if (rank < job.beam && int64(ended[n].size()) < job.beam) {
                    Ended one{c.score / float(step + 1), {}};
                    const int32_t* tokens = &history[c.row * stride];
                    one.tokens.assign(tokens, tokens + step);
                    one.tokens.push_back(int32_t(job.eos));
                    ended[n].push_back(std::move(one));
                }
            }
            if (int64(ended[n].size()) == job.beam || step == job.max_length) next.resize(begin);
        }
        return next;
    }

    void finish() {
        for (int64 n = 0; n < job.sentences; ++n) {
            std::stable_sort(ended[n].begin(), ended[n].end(),
                             [](const Ended& a, const Ended& b) { return a.score > b.score; });
            for (int64 i = 0; i < job.beam; ++i) {
                const int64 at = n * job.beam + i;
                const bool there = i < int64(ended[n].size());
                job.lengths[at] = there ? int64(ended[n][i].tokens.size()) : 0;
                job.scores[at] = there ? ended[n][i].score : -INFINITY;
                if (there) std::copy(ended[n][i].tokens.begin(), ended[n][i].tokens.end(), job.out + at * (job.max_length + 1));
            }
        }
    }
};

// Returns whether there was memory enough.
extern "C" int64 translate(const Job* job) {
    try {
        Search(*job).run();
        return 1;
    } catch (const std::bad_alloc&) {
        return 0;
    } catch (const std::length_error&) {
        return 0;
    }
}

extern "C" int64 block() { return BLOCK; }
