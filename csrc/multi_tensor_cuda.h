// Updates on CUDA: a local module's update is one kernel, and two with the finite check or the norms; all can
// be captured in a graph.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include "multi_tensor_kernels.h"

namespace mlaan {
namespace {

// Memory on the device for one Sum and one verdict per slot.
template <typename Sum>
struct Scratch {
    Scratch(int count, int32_t device_index)
        : memory(torch::stable::empty(
              {static_cast<int64_t>(count) * static_cast<int64_t>(sizeof(Sum) + 1)}, ScalarType::Byte,
              std::nullopt, torch::stable::Device(torch::headeronly::DeviceType::CUDA, device_index))),
          sums(static_cast<Sum*>(memory.mutable_data_ptr())),
          verdicts(reinterpret_cast<uint8_t*>(sums + count)) {}
    torch::stable::Tensor memory;
    Sum* sums;
    uint8_t* verdicts;
};

// The device of the tensors made current, and its stream.
struct CurrentStream {
    explicit CurrentStream(int32_t device_index) : guard(device_index) {
        void* handle = nullptr;
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &handle));
        stream = static_cast<cudaStream_t>(handle);
    }
    torch::stable::accelerator::DeviceGuard guard;
    cudaStream_t stream;
};

template <typename G, typename B, typename Rule>
void run_batches(const Update& update, const Rule& rule, cudaStream_t stream) {
    static_assert(sizeof(Rule) + sizeof(Dials) + sizeof(Findings) + 32 <= kOtherArguments);
    const std::vector<B> batches = split<B>(update);
    const bool scans = Rule::kNorms || update.check_finite;
    const Scratch<Pair> scratch(scans ? slot_count(batches) : 0, update.device_index);
    int slot = 0;
    if (scans) {
        for (const B& batch : batches) {
            if constexpr (Rule::kNorms) {
                norm_kernel<Rule, G, B><<<slots(batch), kThreads, 0, stream>>>(
                    batch, rule, update.dials, scratch.verdicts + slot, scratch.sums + slot);
            } else {
                scan_kernel<G, false, B>
                    <<<slots(batch), kThreads, 0, stream>>>(batch, scratch.verdicts + slot, nullptr);
            }
            STD_CUDA_KERNEL_LAUNCH_CHECK();
            slot += slots(batch);
        }
    }
    const int verdict_count = update.check_finite ? slot : 0;
    slot = 0;
    for (const B& batch : batches) {
        const Pair* const sums = Rule::kNorms ? scratch.sums + slot : nullptr;
        const Findings findings{update.finite, scratch.verdicts, verdict_count, sums, update.skipped};
        update_kernel<Rule, G, B>
            <<<chunks(batch), kThreads, 0, stream>>>(batch, rule, update.dials, findings);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
        slot += slots(batch);
    }
}

template <template <typename> class Rule>
void run_update(const Update& update, const Rule<double>& rule) {
    const CurrentStream current(update.device_index);
    if (update.tensors.empty()) {
        if (update.skipped != nullptr) {
            tell_kernel<<<1, 1, 0, current.stream>>>(update.finite, update.skipped);
            STD_CUDA_KERNEL_LAUNCH_CHECK();
        }
        return;
    }
    with_types(update, [&](auto number, auto grad) {
        using T = decltype(number);
        using G = decltype(grad);
        using Small = Batch<T, Rule<T>::kStates, kSmallLaunch>;
        using Large = Batch<T, Rule<T>::kStates, kLargeLaunch>;
        static_assert(sizeof(Small) + kOtherArguments <= kSmallLaunch);
        static_assert(sizeof(Large) + kOtherArguments <= kLargeLaunch);
        if (fits<Small>(update)) {
            run_batches<G, Small>(update, rule.template to<T>(), current.stream);
        } else {
            run_batches<G, Large>(update, rule.template to<T>(), current.stream);
        }
    });
}

}  // namespace
}  // namespace mlaan
