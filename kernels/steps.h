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

// What a step reads: an R of Packs, and the padding mask.
template <class R>
struct alignas(16) Reads {
    R of;
    Pack<uint8, 1> pad;
};

// Runs count steps, step(reads), with Reads<R>; each(reads, act) does act(source, pack) for all that a step reads.
#ifdef WIDE

template <class T>
const T* zero(const T*) {  // a row of one number
    static const T number = T();
    return &number;
}

template <class R, class Each, class Step>
DEVICE void pipeline(count_t count, Each each, Step step) {
    for (count_t i = 0; i < count; ++i) {
        Reads<R> in;
        each(in, [](auto& source, auto& pack) { pack.load(source.keep ? source.rows.next() : zero(pack.from)); });
        step(in);
    }
}

#else

// Here a batch of AHEAD steps is worked on while the next is on its way; then the one after that is asked for.
template <class R, class Each, class Step>
DEVICE void pipeline(count_t count, Each each, Step step) {
    Ring<Reads<R>, AHEAD> ring;
    Reads<R> places;       // only to tell where in it a pack is
    count_t left = count;  // to be asked for
    const auto place = [&](auto& pack) { return int((const uint8*)&pack - (const uint8*)&places); };
    const auto ask = [&]() {
        UNROLL
        for (int i = 0; i < AHEAD; ++i)
            each(places, [&](auto& source, auto& pack) {
                ring.template copy<sizeof(pack.v)>(i, place(pack), source.rows.next(), i < left);
            });
        left -= AHEAD;
        ring.end_batch();
    };
    const auto work = [&](int i) {
        Reads<R> in = ring.take(i);
        each(in, [](auto& source, auto& pack) { source.settle(pack); });
        step(in);
    };
    UNROLL
    for (int half = 0; half < 2; ++half) {
        ask();
        ring.turn();
    }
    for (; count >= AHEAD; count -= AHEAD) {
        ring.wait_for_all_but_newest();
        UNROLL
        for (int i = 0; i < AHEAD; ++i) work(i);
        ask();
        ring.turn();
    }
    ring.wait_for_all_but_newest();
    UNROLL
    for (int i = 0; i < AHEAD - 1; ++i)
        if (i < count) work(i);
}

#endif
