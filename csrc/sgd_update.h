// The SGD update of a list of parameters with their EMA twins: what the checks hand to the launchers.
// The maths is in kernels/mlaan_kernels/sgd_update/README.md.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <vector>

namespace mlaan {

// One parameter. Every pointer walks the same dense block of memory, in the same order of elements.
struct SgdTensor {
    void* param;
    const void* grad;
    void* momentum;      // nullptr when the momentum is zero
    int64_t numel;       // > 0
    int64_t first_twin;  // its twins are [first_twin, first_twin + twin_count) of SgdUpdate::twins
    int64_t twin_count;
};

struct SgdTwin {
    void* data;
    double keep;  // the twin's own weight; the parameter gets 1 - keep
};

struct SgdUpdate {
    std::vector<SgdTensor> tensors;
    std::vector<SgdTwin> twins;
    torch::headeronly::ScalarType param_type;  // of parameters, momenta and twins
    torch::headeronly::ScalarType grad_type;
    double learning_rate;
    double momentum;
    double weight_decay;
    double inverse_scale;
    bool nesterov;
    int32_t* skipped;  // on the device; nullptr: no finite check
    int32_t device_index;
};

// The update's numbers in the precision of the parameters.
template <typename T>
struct SgdScalars {
    explicit SgdScalars(const SgdUpdate& update)
        : learning_rate(static_cast<T>(update.learning_rate)),
          momentum(static_cast<T>(update.momentum)),
          weight_decay(static_cast<T>(update.weight_decay)),
          inverse_scale(static_cast<T>(update.inverse_scale)),
          nesterov(update.nesterov) {}
    T learning_rate, momentum, weight_decay, inverse_scale;
    bool nesterov;
};

// Each library links the one launcher of its device. The work goes to the device's current stream.
void launch_sgd_update(const SgdUpdate& update);

}  // namespace mlaan
