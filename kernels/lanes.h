// How a thread holds its lanes' values. A GPU's thread loads VEC values into registers, by accesses of up to 16 bytes. A
// CPU's thread (WIDE) has up to VEC lanes and reads and writes where they are, in loops that the compiler vectorises.
#pragma once

#ifdef WIDE

template <class T, int LANES = 0>
struct Pack {
    const T* from;

    Pack() {}
    Pack(const T* p) { load(p); }
    void load(const T* p) { from = p; }
    T raw(int j) const { return from[j]; }
    state_t operator[](int j) const { return state_t(from[j]); }
};

template <class T>
struct Store {
    T* to;

    Store(T* p) : to(p) {}
    void set(int j, state_t x) { to[j] = T(x); }
    void flush() {}
};

#else

template <class T, int LANES = VEC>
struct alignas(sizeof(T) * LANES < 16 ? sizeof(T) * LANES : 16) Vector {
    T lane[LANES];
};

template <class T, int LANES = VEC>
struct Pack {
    union {
        Vector<T, LANES> v;
        unsigned word;
    };

    DEVICE Pack() {}
    DEVICE Pack(const T* p) { load(p); }
    DEVICE void load(const T* p) { v = *(const Vector<T, LANES>*)p; }
    DEVICE T raw(int j) const { return v.lane[j]; }
    DEVICE state_t operator[](int j) const { return state_t(v.lane[j]); }
};

template <class T>
struct Store {
    Vector<T> v;
    T* to;

    DEVICE Store(T* p) : to(p) {}
    DEVICE void set(int j, state_t x) { v.lane[j] = T(x); }
    DEVICE void flush() { write(to, v); }
};

#endif

DEVICE void fill(state_t* lane, const state_t* from, int64 at, int lanes, int otherwise) {
    if (from) {
        const Pack<state_t> p(from + at);
        FOR_EACH_LANE(j, lanes) lane[j] = p[j];
    } else {
        FOR_EACH_LANE(j, lanes) lane[j] = state_t(otherwise);
    }
}

DEVICE void spill(state_t* to, const state_t* lane, int lanes) {
    Store<state_t> out(to);
    FOR_EACH_LANE(j, lanes) out.set(j, lane[j]);
    out.flush();
}
