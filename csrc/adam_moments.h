// The two moments and the direction that AdamW and LAMB take from them.
#pragma once

#include "multi_tensor.h"

namespace mlaan {

template <typename T>
struct AdamMoments {
    T keep1, take1, keep2, take2, epsilon;

    static AdamMoments of(double beta1, double beta2, double epsilon) {
        return {static_cast<T>(beta1), static_cast<T>(1.0 - beta1), static_cast<T>(beta2),
                static_cast<T>(1.0 - beta2), static_cast<T>(epsilon)};
    }
    template <typename S>
    AdamMoments<S> to() const {
        return {static_cast<S>(keep1), static_cast<S>(take1), static_cast<S>(keep2), static_cast<S>(take2),
                static_cast<S>(epsilon)};
    }

    // Moves the moments and returns the corrected first over the root of the corrected second.
    MLAAN_BOTH T direction(const Now<T>& now, T grad, T (&states)[2]) const {
        states[0] = keep1 * states[0] + take1 * grad;
        states[1] = keep2 * states[1] + take2 * grad * grad;
        const T root = std::sqrt(states[1]) / now.root_correction2;
        return states[0] / now.correction1 / (root + epsilon);
    }
};

}  // namespace mlaan
