// The SGD update on the CPU: one parallel loop over the elements of all tensors together, so that hundreds
// of tiny BatchNorm tensors cost one fork and every thread gets the same share.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <type_traits>

#include "sgd_update.h"

// One source, three instruction sets: the loader of the system picks the widest that the processor has.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define MLAAN_SIMD_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MLAAN_SIMD_CLONES
#endif
#define MLAAN_INLINE inline __attribute__((always_inline))

namespace mlaan {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

constexpr int64_t kGrain = 32768;  // elements per thread below which a fork costs more than it saves
constexpr int64_t kBlock = 256;    // elements between the twin and the update: their streams keep step

template <typename T>
MLAAN_SIMD_CLONES void move_twin(T* __restrict__ twin, const T* __restrict__ param, int64_t count, T keep,
                                 T take) {
    for (int64_t i = 0; i < count; ++i) twin[i] = keep * twin[i] + take * param[i];
}

template <typename T, typename G>
MLAAN_INLINE T slope(T param, G grad, const SgdScalars<T>& s) {
    return static_cast<T>(grad) * s.inverse_scale + s.weight_decay * param;
}

template <typename T, typename G>
MLAAN_SIMD_CLONES void move_param(T* __restrict__ param, const G* __restrict__ grad, T* __restrict__ momentum,
                                  int64_t count, const SgdScalars<T> s) {
    if (momentum == nullptr) {
        for (int64_t i = 0; i < count; ++i) param[i] -= s.learning_rate * slope(param[i], grad[i], s);
    } else if (s.nesterov) {
        for (int64_t i = 0; i < count; ++i) {
            const T d = slope(param[i], grad[i], s);
            const T m = s.momentum * momentum[i] + d;
            momentum[i] = m;
            param[i] -= s.learning_rate * (d + s.momentum * m);
        }
    } else {
        for (int64_t i = 0; i < count; ++i) {
            const T m = s.momentum * momentum[i] + slope(param[i], grad[i], s);
            momentum[i] = m;
            param[i] -= s.learning_rate * m;
        }
    }
}

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

// Calls work(tensor, offset, count) for blocks that cover all elements, from several threads.
template <typename Work>
void for_each_block(const SgdUpdate& update, const Work& work) {
    std::vector<int64_t> ends;  // of each tensor, counted over the elements of all
    ends.reserve(update.tensors.size());
    int64_t total = 0;
    for (const SgdTensor& tensor : update.tensors) ends.push_back(total += tensor.numel);

    torch::stable::parallel_for(0, total, kGrain, [&](int64_t begin, int64_t end) {
        size_t index = std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin();
        while (begin < end) {
            const SgdTensor& tensor = update.tensors[index];
            const int64_t offset = begin - (ends[index] - tensor.numel);
            const int64_t count = std::min({kBlock, ends[index] - begin, end - begin});
            work(tensor, offset, count);
            begin += count;
            if (begin == ends[index]) ++index;
        }
    });
}

template <typename T, typename G>
void run(const SgdUpdate& update) {
    if (update.skipped != nullptr) {
        std::atomic<bool> finite{true};
        for_each_block(update, [&](const SgdTensor& tensor, int64_t offset, int64_t count) {
            if (!all_finite(static_cast<const G*>(tensor.grad) + offset, count)) finite = false;
        });
        *update.skipped = finite ? 0 : 1;
        if (!finite) return;
    }
    const SgdScalars<T> scalars(update);
    for_each_block(update, [&](const SgdTensor& tensor, int64_t offset, int64_t count) {
        T* param = static_cast<T*>(tensor.param) + offset;
        for (int64_t k = tensor.first_twin; k < tensor.first_twin + tensor.twin_count; ++k) {
            const SgdTwin& twin = update.twins[k];
            move_twin<T>(static_cast<T*>(twin.data) + offset, param, count, static_cast<T>(twin.keep),
                         static_cast<T>(1.0 - twin.keep));
        }
        T* momentum = tensor.momentum == nullptr ? nullptr : static_cast<T*>(tensor.momentum) + offset;
        move_param<T, G>(param, static_cast<const G*>(tensor.grad) + offset, momentum, count, scalars);
    });
}

}  // namespace

void launch_sgd_update(const SgdUpdate& update) {
    const auto is = [&](ScalarType param, ScalarType grad) {
        return update.param_type == param && update.grad_type == grad;
    };
    if (is(ScalarType::Float, ScalarType::Float)) return run<float, float>(update);
    if (is(ScalarType::Float, ScalarType::BFloat16)) return run<float, BFloat16>(update);
    if (is(ScalarType::Float, ScalarType::Half)) return run<float, Half>(update);
    if (is(ScalarType::Double, ScalarType::Double)) return run<double, double>(update);
    STD_TORCH_CHECK(false, "sgd_update has no kernel for these dtypes of params and grads");
}

}  // namespace mlaan
