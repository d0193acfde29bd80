// The rule of mlaan::adamw_update. The maths is in kernels/mlaan_kernels/adamw_update/README.md.
#pragma once

#include "adam_moments.h"

namespace mlaan {

template <typename T>
struct AdamW {
    using Number = T;
    static constexpr int kStates = 2;
    static constexpr bool kNorms = false;
    AdamMoments<T> moments;
    T weight_decay;

    AdamW(const AdamMoments<T>& moments, T weight_decay) : moments(moments), weight_decay(weight_decay) {}
    AdamW(double beta1, double beta2, double epsilon, double weight_decay)
        : AdamW(AdamMoments<T>::of(beta1, beta2, epsilon), static_cast<T>(weight_decay)) {}

    double beta1() const { return moments.keep1; }
    double beta2() const { return moments.keep2; }
    bool uses_states() const { return true; }
    template <typename S>
    AdamW<S> to() const {
        return {moments.template to<S>(), static_cast<S>(weight_decay)};
    }

    MLAAN_BOTH void move(const Now<T>& now, const Share<T>& share, T grad, T& weight, T (&states)[2]) const {
        const T direction = moments.direction(now, grad, states);
        weight -= now.learning_rate * share.weight_decay * weight;
        weight -= now.learning_rate * direction;
    }
};

void launch(const Update& update, const AdamW<double>& rule);

}  // namespace mlaan
