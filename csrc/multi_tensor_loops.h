// The loops of updates on the CPU over the elements of one chunk.
#pragma once

#include <algorithm>
#include <cstring>

#include "multi_tensor.h"

// One source, three instruction sets: the loader of the system picks the widest that the processor has.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define MLAAN_SIMD_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MLAAN_SIMD_CLONES
#endif

namespace mlaan {
namespace {

// A number is inf or NaN when every bit of its exponent is set.
template <typename G>
struct Bits;
template <>
struct Bits<double> {
    using Word = uint64_t;
    static constexpr Word exponent = 0x7ff0000000000000;
};
template <>
struct Bits<float> {
    using Word = uint32_t;
    static constexpr Word exponent = 0x7f800000;
};
template <>
struct Bits<BFloat16> {
    using Word = uint16_t;
    static constexpr Word exponent = 0x7f80;
};
template <>
struct Bits<Half> {
    using Word = uint16_t;
    static constexpr Word exponent = 0x7c00;
};

template <typename G>
MLAAN_SIMD_CLONES bool all_finite(const G* grad, int64_t count) {
    using Word = typename Bits<G>::Word;
    Word largest = 0;
    for (int64_t i = 0; i < count; ++i) {
        Word word;
        std::memcpy(&word, grad + i, sizeof word);
        largest = std::max(largest, static_cast<Word>(word & Bits<G>::exponent));
    }
    return largest != Bits<G>::exponent;
}

// kLanes sums side by side, which a compiler may keep in registers of any width.
template <typename N>
MLAAN_SIMD_CLONES double sum_of_squares(const N* numbers, int64_t count) {
    constexpr int64_t kLanes = 8;
    typedef double Lanes __attribute__((vector_size(kLanes * sizeof(double))));
    Lanes sums{};
    const int64_t whole = count / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) {
        Lanes values;
        for (int64_t lane = 0; lane < kLanes; ++lane) values[lane] = static_cast<double>(numbers[i + lane]);
        sums += values * values;
    }
    double sum = 0.0;
    for (int64_t i = whole; i < count; ++i) {
        sum += static_cast<double>(numbers[i]) * static_cast<double>(numbers[i]);
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) sum += sums[lane];
    return sum;
}

template <typename T>
MLAAN_SIMD_CLONES void move_twin(T* __restrict__ twin, const T* __restrict__ weight, int64_t count, T keep,
                                 T take) {
    for (int64_t i = 0; i < count; ++i) twin[i] = keep * twin[i] + take * weight[i];
}

template <typename T>
MLAAN_SIMD_CLONES void round_weights(BFloat16* __restrict__ rounded, const T* __restrict__ weight,
                                     int64_t count) {
    for (int64_t i = 0; i < count; ++i) rounded[i] = static_cast<BFloat16>(static_cast<float>(weight[i]));
}

// One element's states in registers; `Used` of them have memory, the others are zero.
template <int Used, int Count, typename T>
inline __attribute__((always_inline)) void load_states(T (&states)[Count], const T* first, const T* second,
                                                       int64_t i) {
    if constexpr (Used > 0) states[0] = first[i];
    if constexpr (Used > 1) states[1] = second[i];
}

template <int Used, typename Rule, typename T, typename G>
MLAAN_SIMD_CLONES void move_weights(T* __restrict__ weight, const G* __restrict__ grad, T* __restrict__ first,
                                    T* __restrict__ second, int64_t count, const Now<T> now,
                                    const Share<T> share, const Rule rule) {
    for (int64_t i = 0; i < count; ++i) {
        T states[Rule::kStates] = {};
        load_states<Used>(states, first, second, i);
        T moved = weight[i];
        rule.move(now, share, static_cast<T>(grad[i]) * now.factor, moved, states);
        weight[i] = moved;
        if constexpr (Used > 0) first[i] = states[0];
        if constexpr (Used > 1) second[i] = states[1];
    }
}

template <int Used, typename Rule, typename T, typename G>
MLAAN_SIMD_CLONES void measure(T* __restrict__ result, const T* __restrict__ weight,
                               const G* __restrict__ grad, const T* __restrict__ first,
                               const T* __restrict__ second, int64_t count, const Now<T> now,
                               const Share<T> share, const Rule rule) {
    for (int64_t i = 0; i < count; ++i) {
        T states[Rule::kStates] = {};
        load_states<Used>(states, first, second, i);
        result[i] = rule.measured(now, share, static_cast<T>(grad[i]) * now.factor, weight[i], states);
    }
}

}  // namespace
}  // namespace mlaan
