// The rule of mlaan::sgd_update. The maths is in kernels/mlaan_kernels/sgd_update/README.md.
#pragma once

#include "multi_tensor.h"

namespace mlaan {

template <typename T>
struct Sgd {
    using Number = T;
    static constexpr int kStates = 1;
    static constexpr bool kNorms = false;
    T momentum, weight_decay;
    bool nesterov;

    Sgd(T momentum, bool nesterov, T weight_decay)
        : momentum(momentum), weight_decay(weight_decay), nesterov(nesterov) {}

    double beta1() const { return 0.0; }
    double beta2() const { return 0.0; }
    bool uses_states() const { return momentum != T(0); }
    template <typename S>
    Sgd<S> to() const {
        return {static_cast<S>(momentum), nesterov, static_cast<S>(weight_decay)};
    }

    MLAAN_BOTH void move(const Now<T>& now, const Share<T>& share, T grad, T& weight, T (&states)[1]) const {
        const T slope = grad + share.weight_decay * weight;
        states[0] = momentum * states[0] + slope;
        const T step = nesterov ? slope + momentum * states[0] : states[0];
        weight -= now.learning_rate * step;
    }
};

// Each library links the launcher of its device. The work goes to the device's current stream.
void launch(const Update& update, const Sgd<double>& rule);

}  // namespace mlaan
