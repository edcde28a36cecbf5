// How a thread goes through the steps: the rows of the tensors, and the loop over them.
#pragma once

// A thread's lanes in a tensor, row by row.
template <class T>
struct Rows {
    T* row;
    int64 stride;  // bytes to the next one

    DEVICE T* next() {
        T* now = row;
        row = moved(row, stride);
        return now;
    }
};

// A tensor that steps read. Of numbers below 4 bytes the word is copied that holds them.
template <class T>
struct Source {
    Rows<const T> rows;
    unsigned keep;        // 0: what is read there counts as 0
    unsigned bits, more;  // where in its word the next number to be taken begins, and how much further the one after it

    DEVICE Source() {}
    DEVICE Source(const Rows<const T>& rows, bool counts = true)
        : rows(rows),
          keep(counts ? ~0u : 0),
          bits(8 * unsigned((unsigned long long)rows.row)),
          more(8 * unsigned(rows.stride)) {}

    // Puts a number below 4 bytes at the begin of its word.
    template <class P>
    DEVICE void settle(P& pack) {
        if (sizeof(pack.v) >= 4) return;
        pack.word = rotated(pack.word, bits) & keep;
        bits += more;
    }
};

// The padding mask of EVERY steps. Without one a step of a single lane has a sixth less to do.
struct Masks {
#if PAD
    Pack<uint8, 1> pad[EVERY];

    DEVICE bool padded(int k) const { return pad[k].raw(0); }
    template <class Act>
    DEVICE void mask(Act act, int k, Source<uint8>& from) {
        act(k, from, pad[k]);
    }
#else
    DEVICE bool padded(int) const { return false; }
    template <class Act>
    DEVICE void mask(Act, int, Source<uint8>&) {}
#endif
};

template <class R>
struct Steps {
    R of[EVERY];
};

struct State {
    Pack<state_t> c;
};

// What EVERY steps read, in the order in which they are worked on, of each an R of Packs.
template <class R>
struct alignas(16) Reads : Steps<R>, Masks {};

// The same, and a state that is saved once for all of them.
template <class R>
struct alignas(16) ReadsWithState : Steps<R>, State, Masks {};

#define FOR_EACH_STEP(k, steps) \
    UNROLL                      \
    for (int k = 0; k < EVERY; ++k) if (k < (steps))

// Runs count steps, EVERY at once, work(reads, steps) with T for the reads. each(reads, act) does act(k, source, pack) for
// all that they read, with k for the step that wants it.
#ifdef WIDE

template <class T>
const T* zero(const T*) {  // a row of one number
    static const T number = T();
    return &number;
}

template <class T, class Each, class Work>
DEVICE void pipeline(count_t count, Each each, Work work) {
    for (; count > 0; count -= EVERY) {
        const int steps = EVERY == 1 || count >= EVERY ? EVERY : int(count);
        T in;
        each(in, [&](int k, auto& source, auto& pack) {
            if (k < steps) pack.load(source.keep ? source.rows.next() : zero(pack.from));
        });
        work(in, steps);
    }
}

#else

// Here a batch of AHEAD steps is worked on while the next is on its way; then the one after that is asked for.
template <class T, class Each, class Work>
DEVICE void pipeline(count_t count, Each each, Work work) {
    static_assert(AHEAD % EVERY == 0, "EVERY steps are taken at once");
    const int slots = AHEAD / EVERY;
    Ring<T, slots> ring;
    T places;              // only to tell where in it a pack is
    count_t left = count;  // to be asked for
    const auto place = [&](auto& pack) { return int((const uint8*)&pack - (const uint8*)&places); };
    const auto ask = [&]() {
        UNROLL
        for (int i = 0; i < slots; ++i)
            each(places, [&](int k, auto& source, auto& pack) {
                ring.template copy<sizeof(pack.v)>(i, place(pack), source.rows.next(), EVERY * i + k < left);
            });
        left -= AHEAD;
        ring.end_batch();
    };
    const auto take = [&](int i, int steps) {
        T in = ring.take(i);
        each(in, [](int, auto& source, auto& pack) { source.settle(pack); });
        work(in, steps);
    };
    UNROLL
    for (int half = 0; half < 2; ++half) {
        ask();
        ring.turn();
    }
    for (; count >= AHEAD; count -= AHEAD) {
        ring.wait_for_all_but_newest();
        UNROLL
        for (int i = 0; i < slots; ++i) take(i, EVERY);
        ask();
        ring.turn();
    }
    ring.wait_for_all_but_newest();
    UNROLL
    for (int i = 0; i < slots; ++i)
        if (EVERY * i < count) take(i, count - EVERY * i < EVERY ? int(count - EVERY * i) : EVERY);
}

#endif
