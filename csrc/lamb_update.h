// The rule of mlaan::lamb_update. The maths is in kernels/mlaan_kernels/lamb_update/README.md.
#pragma once

#include "adam_moments.h"

namespace mlaan {

template <typename T>
struct Lamb {
    using Number = T;
    static constexpr int kStates = 2;
    static constexpr bool kNorms = true;
    AdamMoments<T> moments;
    T weight_decay;

    Lamb(const AdamMoments<T>& moments, T weight_decay) : moments(moments), weight_decay(weight_decay) {}
    Lamb(double beta1, double beta2, double epsilon, double weight_decay)
        : Lamb(AdamMoments<T>::of(beta1, beta2, epsilon), static_cast<T>(weight_decay)) {}

    double beta1() const { return moments.keep1; }
    double beta2() const { return moments.keep2; }
    bool uses_states() const { return true; }
    template <typename S>
    Lamb<S> to() const {
        return {moments.template to<S>(), static_cast<S>(weight_decay)};
    }

    // The states here are a copy: only move() keeps what it makes of them.
    MLAAN_BOTH T measured(const Now<T>& now, const Share<T>& share, T grad, T weight, T (&states)[2]) const {
        return moments.direction(now, grad, states) + share.weight_decay * weight;
    }
    MLAAN_BOTH T ratio(double weight_norm, double step_norm) const {
        return weight_norm > 0.0 && step_norm > 0.0 ? static_cast<T>(weight_norm / step_norm) : T(1);
    }
    MLAAN_BOTH void move(const Now<T>& now, const Share<T>& share, T grad, T& weight, T (&states)[2]) const {
        weight -= now.learning_rate * share.ratio * measured(now, share, grad, weight, states);
    }
};

void launch(const Update& update, const Lamb<double>& rule);

}  // namespace mlaan
