// The rule of mlaan::lars_update. The maths is in kernels/mlaan_kernels/lars_update/README.md.
#pragma once

#include "multi_tensor.h"

namespace mlaan {

template <typename T>
struct Lars {
    using Number = T;
    static constexpr int kStates = 1;
    static constexpr bool kNorms = true;
    T momentum, weight_decay, trust;

    Lars(T momentum, T weight_decay, T trust)
        : momentum(momentum), weight_decay(weight_decay), trust(trust) {}

    double beta1() const { return 0.0; }
    double beta2() const { return 0.0; }
    bool uses_states() const { return momentum != T(0); }
    template <typename S>
    Lars<S> to() const {
        return {static_cast<S>(momentum), static_cast<S>(weight_decay), static_cast<S>(trust)};
    }

    MLAAN_BOTH T measured(const Now<T>&, const Share<T>&, T grad, T, T (&)[1]) const { return grad; }
    MLAAN_BOTH T ratio(double weight_norm, double grad_norm) const {
        if (!(weight_norm > 0.0 && grad_norm > 0.0)) return T(1);
        return static_cast<T>(trust * weight_norm / (grad_norm + weight_decay * weight_norm));
    }
    MLAAN_BOTH void move(const Now<T>& now, const Share<T>& share, T grad, T& weight, T (&states)[1]) const {
        const T slope = grad + share.weight_decay * weight;
        states[0] = momentum * states[0] + now.learning_rate * share.ratio * slope;
        weight -= states[0];
    }
};

void launch(const Update& update, const Lars<double>& rule);

}  // namespace mlaan
