// Updates on the CPU: one parallel loop over the chunks of all tensors together, so that hundreds of tiny
// BatchNorm tensors cost one fork. Sums go chunk by chunk in a fixed order: their value doesn't depend on the
// number of threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "multi_tensor_loops.h"

namespace mlaan {
namespace {

constexpr int64_t kGrain = 16;   // chunks per thread below which a fork costs more than it saves
constexpr int64_t kBlock = 256;  // elements between the twin and the update: their streams keep step

struct Chunk {
    size_t tensor;
    int64_t index;  // among the chunks of all tensors
    int64_t offset;
    int64_t count;
};

inline int64_t chunk_count(const TensorRow& tensor) { return (tensor.numel + kChunk - 1) / kChunk; }

inline int64_t chunk_count(const Update& update) {
    int64_t total = 0;
    for (const TensorRow& tensor : update.tensors) total += chunk_count(tensor);
    return total;
}

// Calls work(chunk) for all chunks, from several threads.
template <typename Work>
void for_each_chunk(const Update& update, const Work& work) {
    std::vector<int64_t> ends;  // of each tensor, counted over the chunks of all
    ends.reserve(update.tensors.size());
    int64_t total = 0;
    for (const TensorRow& tensor : update.tensors) ends.push_back(total += chunk_count(tensor));

    torch::stable::parallel_for(0, total, kGrain, [&](int64_t begin, int64_t end) {
        size_t tensor = std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin();
        for (; begin < end; ++begin) {
            if (begin == ends[tensor]) ++tensor;
            const TensorRow& row = update.tensors[tensor];
            const int64_t offset = (begin - (ends[tensor] - chunk_count(row))) * kChunk;
            work(Chunk{tensor, begin, offset, std::min<int64_t>(kChunk, row.numel - offset)});
        }
    });
}

// One update of the rule R in the types T and G.
template <typename Rule, typename G>
class CpuUpdate {
    using T = typename Rule::Number;

 public:
    CpuUpdate(const Update& update, const Rule& rule)
        : update_(update), rule_(rule), now_(resolve<T>(update.dials)), shares_(update.tensors.size()) {}

    bool finite() const {
        std::atomic<bool> finite{update_.finite == nullptr || *update_.finite};
        if (update_.check_finite) {
            for_each_chunk(update_, [&](const Chunk& chunk) {
                if (!all_finite(at<const G>(row(chunk).grad, chunk.offset), chunk.count)) finite = false;
            });
        }
        return finite;
    }

    template <int Used>
    void run() {
        for (size_t t = 0; t < shares_.size(); ++t) {
            shares_[t] = {T(1), update_.tensors[t].excluded ? T(0) : rule_.weight_decay};
        }
        if constexpr (Rule::kNorms) find_ratios<Used>();
        for_each_chunk(update_, [&](const Chunk& chunk) {
            for (int64_t done = 0; done < chunk.count; done += kBlock) {
                move<Used>(chunk, chunk.offset + done, std::min(kBlock, chunk.count - done));
            }
        });
    }

 private:
    template <typename N, typename Pointer>
    static N* at(Pointer* memory, int64_t offset) {
        return memory == nullptr ? nullptr : static_cast<N*>(memory) + offset;
    }
    const TensorRow& row(const Chunk& chunk) const { return update_.tensors[chunk.tensor]; }

    template <int Used>
    void find_ratios() {
        struct Sums {
            double weight, measured;
        };
        std::vector<Sums> sums(chunk_count(update_));
        for_each_chunk(update_, [&](const Chunk& chunk) {
            const TensorRow& tensor = row(chunk);
            if (tensor.excluded) return;
            T measured[kChunk];
            const T* weight = at<T>(tensor.weight, chunk.offset);
            measure<Used, Rule, T, G>(measured, weight, at<const G>(tensor.grad, chunk.offset),
                                      at<T>(tensor.states[0], chunk.offset),
                                      at<T>(tensor.states[1], chunk.offset), chunk.count, now_,
                                      shares_[chunk.tensor], rule_);
            sums[chunk.index] = {sum_of_squares(weight, chunk.count), sum_of_squares(measured, chunk.count)};
        });
        size_t index = 0;
        for (size_t t = 0; t < shares_.size(); ++t) {
            Sums total{0.0, 0.0};
            for (const size_t end = index + chunk_count(update_.tensors[t]); index < end; ++index) {
                total.weight += sums[index].weight;
                total.measured += sums[index].measured;
            }
            if (update_.tensors[t].excluded) continue;
            shares_[t].ratio = rule_.ratio(std::sqrt(total.weight), std::sqrt(total.measured));
        }
    }

    template <int Used>
    void move(const Chunk& chunk, int64_t offset, int64_t count) const {
        const TensorRow& tensor = row(chunk);
        T* weight = at<T>(tensor.weight, offset);
        for (int64_t k = tensor.first_twin; k < tensor.first_twin + tensor.twin_count; ++k) {
            const TwinRow& twin = update_.twins[k];
            move_twin<T>(at<T>(twin.data, offset), weight, count, static_cast<T>(twin.keep),
                         static_cast<T>(1.0 - twin.keep));
        }
        move_weights<Used, Rule, T, G>(weight, at<const G>(tensor.grad, offset),
                                       at<T>(tensor.states[0], offset), at<T>(tensor.states[1], offset),
                                       count, now_, shares_[chunk.tensor], rule_);
        if (tensor.rounded != nullptr) {
            round_weights<T>(at<BFloat16>(tensor.rounded, offset), weight, count);
        }
    }

    const Update& update_;
    const Rule rule_;
    const Now<T> now_;
    std::vector<Share<T>> shares_;
};

template <template <typename> class Rule>
void run_update(const Update& update, const Rule<double>& rule) {
    with_types(update, [&](auto number, auto grad) {
        using T = decltype(number);
        CpuUpdate<Rule<T>, decltype(grad)> run(update, rule.template to<T>());
        const bool finite = run.finite();
        if (update.skipped != nullptr) *update.skipped = finite ? 0 : 1;
        if (!finite) return;
        if (rule.uses_states()) {
            run.template run<Rule<T>::kStates>();
        } else {
            run.template run<0>();
        }
    });
}

}  // namespace
}  // namespace mlaan
