// A decoder's step, and beam search over a whole batch of sentences: encoder, decoder and the choice of hypotheses, for
// fairseq_sru/models/step.py and fairseq_sru/decoding/search.py.
//
// What the search finds is what fairseq 0.12.2's SequenceGenerator finds with its defaults: two candidates a hypothesis;
// an end of sentence counts among the best `beam` alone; a sentence is done when `beam` of its hypotheses have ended, and
// then leaves the batch; scores are divided by the length to the power of the penalty.
#include "ops.h"

#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>

// ---- one step, for all rows of a beam, as fairseq's own search asks for it

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

static int64 step_of(const Call& c) {
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

// Returns 1; 0 where a token is not of the dictionary; -1 where memory isn't enough.
extern "C" int64 run_step(const Call* call) {
    try {
        return step_of(*call);
    } catch (const std::exception&) {
        return -1;
    }
}

// ---- the whole search

struct Reads {
    int64 slot, heads;
};

struct Job {  // search.py's order
    Program encoder, decoder;
    int64 attentions;
    const Reads* source;  // of the encoder: what each attention reads, keys beside values
    int64 state_size, sentences;
    const int64* token;  // of all sentences, one after the other
    const int64* begin;  // (sentences + 1)
    int64 beam, max_length, no_repeat, scored, pad, eos;
    double penalty;
    int32_t* out;    // (sentences, beam, max_length + 1): best first, each with its end
    float* totals;   // likewise: the log probability of all up to each token
    int64* lengths;  // (sentences, beam), given as 0, which stays where there are fewer
    float* scores;   // likewise
    const volatile int64* stop;  // not 0: what is begun need not end
};

static constexpr int64 ENCODED = 256;  // positions that are encoded together: what is between stays in the cache
static constexpr int64 TOGETHER = 40;  // hypotheses that are followed together: enough for the weights, few enough for the cache

// Memory that begins with a cache line, so that vectors don't lie in two where rows are whole lines.
template <class T>
struct Aligned {
    typedef T value_type;
    static constexpr std::align_val_t LINE{64};

    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), LINE)); }
    void deallocate(T* p, size_t) { ::operator delete(p, LINE); }
    bool operator==(const Aligned&) const { return true; }
    bool operator!=(const Aligned&) const { return false; }
};

typedef std::vector<float, Aligned<float>> Floats;

static void grow(Floats& x, int64 numbers) {
    if (int64(x.size()) < numbers) x.resize(numbers);
}

// Slots of so many rows.
struct Slots {
    Floats scratch;
    std::vector<Place> place;

    void lay_out(const Program& program, int64 rows) {
        grow(scratch, rows * std::accumulate(program.width, program.width + program.slots, int64(0)));
        place.clear();
        float* next = scratch.data();
        for (int64 i = 0; i < program.slots; next += rows * program.width[i++]) place.push_back({next, program.width[i]});
    }
};

// Keys and values of an attention, packed as struct Source has them.
struct Kept {
    Floats key, value;

    // A sentence's, whose rows have keys beside values.
    void take(const Place& from, int64 heads, int64 row, int64 length, int64 at) {
        const int64 all = from.width / 2, size = all / heads, places = padded(length), room = padded(size);
        float *keys = &key[at * all], *values = &value[at * heads * room];
        std::fill_n(keys, places * all, 0.f);
        std::fill_n(values, length * heads * room, 0.f);
        for (int64 h = 0; h < heads; ++h, keys += places * size, values += length * room)
            for (int64 i = 0; i < length; ++i) {
                const float *key = from.row(row + i) + h * size, *value = key + all;
                for (int64 j = 0; j < size; ++j) keys[(i / BLOCK * size + j) * BLOCK + i % BLOCK] = key[j];
                for (int64 j = 0; j < size; j += BLOCK)
                    std::copy_n(value + j, std::min(BLOCK, size - j), values + j * length + i * BLOCK);
            }
    }
};

// What a batch leaves to a later one, since a system is slow to give pages and to take them.
struct Memory {
    Slots encoder, decoder;
    std::vector<Kept> kept;  // of each attention

    size_t numbers() const {
        size_t all = encoder.scratch.size() + decoder.scratch.size();
        for (const Kept& one : kept) all += one.key.size() + one.value.size();
        return all;
    }
};

// What each attention reads; `at` is where the places of each sentence begin, and their end.
static void encode(const Job& job, const std::vector<int64>& length, const std::vector<int64>& at, Memory& memory) {
    std::vector<Kept>& kept = memory.kept;
    kept.resize(job.attentions);
    for (int64 a = 0; a < job.attentions; ++a) {
        const int64 all = job.encoder.width[job.source[a].slot] / 2, heads = job.source[a].heads;
        grow(kept[a].key, at.back() * all);
        grow(kept[a].value, at.back() * heads * padded(all / heads));
    }
    Slots& slots = memory.encoder;
    for (int64 first = 0, last; first < job.sentences && !*job.stop; first = last) {
        for (last = first + 1; last < job.sentences && job.begin[last + 1] - job.begin[first] <= ENCODED;) ++last;
        const int64 offset = job.begin[first], rows = job.begin[last] - offset;
        slots.lay_out(job.encoder, rows);
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
        for (int64 a = 0; a < job.attentions; ++a)
            for (int64 n = first; n < last; ++n)
                kept[a].take(slots.place[job.source[a].slot], job.source[a].heads, begin[n - first], length[n], at[n]);
    }
}

struct Candidate {
    float score;
    int64 row, token;

    bool before(const Candidate& c) const {
        return score != c.score ? score > c.score : row != c.row ? row < c.row : token < c.token;
    }
};

struct Hypothesis {
    float score = 0;
    std::vector<int32_t> tokens;
    std::vector<float> totals;  // the score after each token

    void add(int64 token, float now) {
        tokens.push_back(int32_t(token));
        totals.push_back(score = now);
    }
};

struct Search {
    const Job& job;
    int64 words;
    // of each hypothesis that is followed; those of a sentence lie together
    std::vector<Hypothesis> live;
    std::vector<int64> token, sentence;
    Floats state, past;  // past: coverage
    std::vector<std::vector<Hypothesis>> ended;  // of each sentence
    int64 open = 0;                              // sentences that are searched

    std::vector<Candidate> best;  // of a sentence at a step, sorted
    static constexpr int64 STRIP = 4;  // vectors
    int64 chunks;  // of a row of logits; word j is in chunk j % chunks
    Floats peaks;  // of each chunk
    std::vector<float> ranked;  // a row's largest peaks, sorted

    explicit Search(const Job& job)
        : job(job), words(job.decoder.width[job.decoder.slots - 1]), ended(job.sentences),
          chunks((words + 64 * STRIP * LANES - 1) / (64 * STRIP * LANES) * STRIP * LANES), peaks(chunks) {}

    // The largest of each chunk, in which words lie `chunks` apart, so that vectors need no sorting out; returns that of all.
    float find_peaks(const float* x) {
        const int64 full = words / chunks * chunks;
        for (int64 c = 0; c < chunks; c += STRIP * LANES) {
            vec most[STRIP];
            for (int64 i = 0; i < STRIP; ++i) most[i] = vec{} - INFINITY;
            for (int64 j = c; j < full; j += chunks)
                for (int64 i = 0; i < STRIP; ++i) {
                    const vec next = *(const vec*)(x + j + i * LANES);
                    most[i] = next > most[i] ? next : most[i];
                }
            for (int64 i = 0; i < STRIP; ++i) *(vec*)&peaks[c + i * LANES] = most[i];
        }
        for (int64 j = full; j < words; ++j) peaks[j - full] = std::max(peaks[j - full], x[j]);
        vec most = *(const vec*)&peaks[0];
        for (int64 c = LANES; c < chunks; c += LANES) most = *(const vec*)&peaks[c] > most ? *(const vec*)&peaks[c] : most;
        return *std::max_element((const float*)&most, (const float*)&most + LANES);
    }

    float sum_of_exponentials(const float* x, float highest) const {
        vec sum[STRIP] = {};
        int64 j = 0;
        for (; j + STRIP * LANES <= words; j += STRIP * LANES)
            for (int64 i = 0; i < STRIP; ++i) {
                __builtin_prefetch(x + words + j + i * LANES);  // the next row
                sum[i] += exponential_to_one(*(const vec*)(x + j + i * LANES) - highest);
            }
        float all = 0;
        for (; j < words; ++j) all += exponential(x[j] - highest);
        for (int64 i = 1; i < STRIP; ++i) sum[0] += sum[i];
        for (int64 i = 0; i < LANES; ++i) all += sum[0][i];
        return all;
    }

    void offer(const Candidate& c, size_t room) {
        if (best.size() == room) {
            if (!c.before(best.back())) return;
            best.pop_back();
        }
        auto at = best.end();
        while (at != best.begin() && c.before(at[-1])) --at;
        best.insert(at, c);
    }

    // Forbids what would end an n-gram that the hypothesis has already; returns how many words.
    size_t forbid_repetitions(float* logits, const std::vector<int32_t>& before_now) {
        const int64 n = job.no_repeat, length = int64(before_now.size());
        const int32_t* tokens = before_now.data();
        if (n < 1 || length + 1 < n) return 0;
        std::vector<int64> found;
        for (int64 i = 0; i + n <= length; ++i)
            if (std::equal(tokens + i, tokens + i + n - 1, tokens + length - (n - 1))) found.push_back(tokens[i + n - 1]);
        std::vector<float> before;
        for (int64 word : found) {
            before.push_back(logits[word]);
            logits[word] = -INFINITY;
        }
        if (std::any_of(logits, logits + words, [](float x) { return x != -INFINITY; })) return found.size();
        for (size_t i = found.size(); i-- > 0;) logits[found[i]] = before[i];  // where nothing would be left, all stays
        return 0;
    }

    // Offers the words that may follow a hypothesis, with log softmax(logits) where there is more than one to compare with.
    void extend(int64 row, float* x, size_t room) {
        const std::vector<int32_t>& tokens = live[row].tokens;
        const float highest = find_peaks(x);
        float shift = 0, before = 0;
        if (job.scored) {
            shift = highest;
            before = std::log(sum_of_exponentials(x, highest));
        }
        const auto total = [=](float logit) { return ((logit - shift) - before) + live[row].score; };
        x[job.pad] = -INFINITY;
        if (int64(tokens.size()) == job.max_length) {
            const float end = total(x[job.eos]);
            if (end > -INFINITY) offer({end, row, job.eos}, room);
            return;
        }
        if (tokens.empty()) x[job.eos] = -INFINITY;
        // what is forbidden may have been a peak
        const size_t spare = 2 + size_t(forbid_repetitions(x, tokens));
        float least = -INFINITY;  // spare + room chunks have a word that is no worse; once `best` is full, its worst tells
        if (best.size() < room && peaks.size() > spare + room) {
            ranked.assign(spare + room, -INFINITY);
            for (const float peak : peaks) {
                if (!(peak > ranked.back())) continue;
                size_t at = ranked.size() - 1;
                for (; at && ranked[at - 1] < peak; --at) ranked[at] = ranked[at - 1];
                ranked[at] = peak;
            }
            least = ranked.back();
        }
        for (int64 c = 0; c < chunks; ++c) {
            if (peaks[c] < least || (best.size() == room && !(total(peaks[c]) >= best.back().score))) continue;
            for (int64 j = c; j < words; j += chunks) {
                if (!(x[j] >= least)) continue;
                const float with = total(x[j]);
                if (with > -INFINITY) offer({with, row, j}, room);  // nor NaN
            }
        }
    }

    void run(Memory& memory) {
        const int64 S = job.state_size;
        std::vector<int64> length, at{0};
        int64 longest = 0;
        for (int64 n = 0; n < job.sentences; ++n) {
            length.push_back(job.begin[n + 1] - job.begin[n]);
            at.push_back(at[n] + padded(length[n]));
            longest = std::max(longest, padded(length[n]));
        }
        encode(job, length, at, memory);
        std::vector<Source> source;
        for (const Kept& one : memory.kept) source.push_back({one.key.data(), one.value.data(), nullptr, {}, {}, 0, 1});
        Slots& slots = memory.decoder;
        std::vector<Hypothesis> old;
        Floats new_state, new_past, weights;
        std::vector<int64> old_sentence;
        const int64 together = std::max<int64>(1, TOGETHER / job.beam);
        for (int64 waiting = 0;;) {
            for (; open < together && waiting < job.sentences; ++waiting, ++open) {
                live.emplace_back();
                sentence.push_back(waiting);
                token.push_back(job.eos);
            }
            const int64 rows = int64(token.size());
            if (!rows || *job.stop) break;
            state.resize(rows * S);
            past.resize(rows * longest);
            new_state.resize(rows * S);
            new_past.resize(rows * longest);
            weights.resize(rows * longest);
            slots.lay_out(job.decoder, rows);
            ::run(job.decoder, {{}, rows, slots.place.data(), token.data(), sentence.data(), at.data(), length.data(),
                                source.data(), longest, S, 0, state.data(), new_state.data(), past.data(), new_past.data(),
                                weights.data(), job.sentences});
            const std::vector<Candidate> next = choose(slots.place.back());
            old_sentence.swap(sentence);
            old.swap(live);
            const int64 going_on = int64(next.size());
            live.resize(going_on);
            token.resize(going_on);
            sentence.resize(going_on);
            state.resize(going_on * S);
            past.resize(going_on * longest);
            for (int64 r = 0; r < going_on; ++r) {
                const int64 from = next[r].row;
                token[r] = next[r].token;
                live[r] = old[from];
                live[r].add(token[r], job.scored ? next[r].score : 0);  // a sum of logits would grow, and round them
                sentence[r] = old_sentence[from];
                std::copy_n(new_state.data() + from * S, S, state.data() + r * S);
                std::copy_n(new_past.data() + from * longest, longest, past.data() + r * longest);
            }
        }
        finish();
    }

    // Ends hypotheses, and returns those that go on.
    std::vector<Candidate> choose(const Place& logits) {
        std::vector<Candidate> next;
        const int64 rows = int64(token.size());
        for (int64 first = 0, last; first < rows; first = last) {
            const int64 n = sentence[first], step = int64(live[first].tokens.size());
            best.clear();
            for (last = first; last < rows && sentence[last] == n; ++last)
                extend(last, logits.row(last), size_t(2 * job.beam));
            const size_t begin = next.size();
            for (int64 rank = 0; rank < int64(best.size()); ++rank) {
                const Candidate& c = best[rank];
                if (c.token != job.eos) {
                    if (int64(next.size() - begin) < job.beam) next.push_back(c);
                } else if (rank < job.beam && int64(ended[n].size()) < job.beam) {
                    Hypothesis& one = ended[n].emplace_back(live[c.row]);
                    one.add(job.eos, c.score);
                    one.score /= float(std::pow(step + 1, job.penalty));
                }
            }
            if (int64(ended[n].size()) == job.beam || step == job.max_length) next.resize(begin);
            open -= next.size() == begin;
        }
        return next;
    }

    void finish() {
        for (int64 n = 0; n < job.sentences; ++n) {
            std::stable_sort(ended[n].begin(), ended[n].end(),
                             [](const Hypothesis& a, const Hypothesis& b) { return a.score > b.score; });
            int64 at = n * job.beam;
            for (const Hypothesis& one : ended[n]) {
                job.lengths[at] = int64(one.tokens.size());
                job.scores[at] = one.score;
                std::copy(one.tokens.begin(), one.tokens.end(), job.out + at * (job.max_length + 1));
                std::copy(one.totals.begin(), one.totals.end(), job.totals + at * (job.max_length + 1));
                ++at;
            }
        }
    }
};

// Returns whether there was memory enough.
extern "C" int64 translate(const Job* job) {
    constexpr size_t MOST = 1 << 26;  // numbers that stay, of all threads
    // never destroyed: a thread may be at work when the process ends
    static std::mutex& lock = *new std::mutex;
    static auto& spare = *new std::vector<std::unique_ptr<Memory>>;
    static size_t kept = 0;
    try {
        std::unique_ptr<Memory> memory;
        {
            const std::lock_guard<std::mutex> held(lock);
            if (!spare.empty()) {
                memory = std::move(spare.back());
                spare.pop_back();
                kept -= memory->numbers();
            }
        }
        if (!memory) memory = std::make_unique<Memory>();
        Search(*job).run(*memory);
        const std::lock_guard<std::mutex> held(lock);
        if (const size_t more = memory->numbers(); kept + more <= MOST) {
            spare.push_back(std::move(memory));
            kept += more;
        }
        return 1;
    } catch (const std::exception&) {  // bad_alloc or length_error
        return 0;
    }
}

extern "C" int64 block() { return BLOCK; }
