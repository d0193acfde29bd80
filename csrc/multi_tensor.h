// What every update of many tensors at once shares: the lists that the checks hand to the launchers, the
// numbers that may live on the device, and what a rule (Sgd, AdamW, Lars, Lamb) has to look like.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <vector>

// Rules are compiled for both devices; on the CPU their loops are compiled once per instruction set, which
// takes in only what is inlined.
#if defined(__CUDACC__)
#define MLAAN_BOTH __host__ __device__ __forceinline__
#else
#define MLAAN_BOTH inline __attribute__((always_inline))
#endif

namespace mlaan {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

constexpr int kChunk = 2048;  // elements of one tensor that are worked on, and summed, together

// One parameter. Every pointer walks the same dense block of memory, in the same order of elements.
struct TensorRow {
    void* weight;   // the master where there is one, else the parameter
    void* rounded;  // the bfloat16 parameter of a master; else nullptr
    const void* grad;
    void* states[2];  // nullptr where the rule keeps none
    int64_t numel;    // > 0
    int64_t first_twin;
    int64_t twin_count;  // its twins are [first_twin, first_twin + twin_count) of Update::twins
    bool excluded;       // from the weight decay and the trust ratio
};

struct TwinRow {
    void* data;
    double keep;  // the twin's own weight; the parameter gets 1 - keep
};

// A number of the launch, or one that the device reads when the update runs.
struct Dial {
    double value;
    const float* device;

    MLAAN_BOTH double read() const { return device == nullptr ? value : static_cast<double>(*device); }
};

struct Dials {
    Dial learning_rate;
    Dial step;  // of the bias corrections, counting from 1
    double beta1, beta2;
    double inverse_scale;
    const float* grad_scale;  // nullptr: 1
};

// The dials as an update uses them, in the precision of the weights.
template <typename T>
struct Now {
    T learning_rate;
    T factor;  // of the gradients
    T correction1;
    T root_correction2;
};

template <typename T>
MLAAN_BOTH Now<T> resolve(const Dials& dials) {
    const double step = dials.beta2 == 0.0 && dials.beta1 == 0.0 ? 1.0 : dials.step.read();
    const T scale = dials.grad_scale == nullptr ? T(1) : static_cast<T>(*dials.grad_scale);
    return {static_cast<T>(dials.learning_rate.read()), static_cast<T>(dials.inverse_scale) * scale,
            dials.beta1 == 0.0 ? T(1) : static_cast<T>(1.0 - std::pow(dials.beta1, step)),
            dials.beta2 == 0.0 ? T(1) : static_cast<T>(std::sqrt(1.0 - std::pow(dials.beta2, step)))};
}

// What differs from tensor to tensor.
template <typename T>
struct Share {
    T ratio;
    T weight_decay;
};

// A rule is a struct template over the type T of the weights (float or double) with
//   kStates                                       states per element: 1 or 2
//   kNorms                                        whether it wants a trust ratio per tensor
//   weight_decay, beta1(), beta2()                0 where there is none
//   uses_states()                                 false if these numbers leave the states alone
//   to<S>()                                       the same rule over S
//   move(now, share, grad, weight, states)        the update of one element; `grad` is unscaled
// and with kNorms
//   measured(now, share, grad, weight, states)    the number whose norm stands under that of the weight
//   ratio(weight_norm, measured_norm)
// An excluded tensor gets ratio 1 and decay 0.

struct Update {
    std::vector<TensorRow> tensors;
    std::vector<TwinRow> twins;
    ScalarType type;  // of weights (masters), states and twins
    ScalarType grad_type;
    Dials dials;
    bool check_finite;
    const bool* finite;  // nullptr, or on the device: false skips the update
    int32_t* skipped;    // on the device; nullptr: nobody asks
    int32_t device_index;
    std::vector<torch::stable::Tensor> copies;  // gradients that had to be laid out anew
};

// Calls function(T{}, G{}) with the types of weights and gradients.
template <typename Function>
void with_types(const Update& update, const Function& function) {
    const auto is = [&](ScalarType type, ScalarType grad) {
        return update.type == type && update.grad_type == grad;
    };
    if (is(ScalarType::Float, ScalarType::Float)) return function(float{}, float{});
    if (is(ScalarType::Float, ScalarType::BFloat16)) return function(float{}, BFloat16{});
    if (is(ScalarType::Float, ScalarType::Half)) return function(float{}, Half{});
    if (is(ScalarType::Double, ScalarType::Double)) return function(double{}, double{});
    STD_TORCH_CHECK(false, "there is no kernel for these dtypes of params and grads");
}

}  // namespace mlaan
