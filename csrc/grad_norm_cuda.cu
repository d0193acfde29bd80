#include "grad_norm.h"
#include "multi_tensor_cuda.h"

namespace mlaan {
namespace {

// One block adds what the blocks of the first launch left, in a fixed order.
__global__ __launch_bounds__(kThreads) void finish_kernel(const double* sums, const uint8_t* verdicts,
                                                          int count, double inverse_scale, float* norm,
                                                          bool* finite) {
    double sum = 0.0;
    int bad = 0;
    for (int i = threadIdx.x; i < count; i += kThreads) {
        sum += sums[i];
        bad |= verdicts[i];
    }
    const Pair total = block_sum({sum, 0.0});
    bad = __syncthreads_or(bad);
    if (threadIdx.x == 0) {
        *norm = static_cast<float>(inverse_scale * sqrt(total.first));
        *finite = bad == 0;
    }
}

template <typename G, typename B>
void run_batches(const Update& grads, float* norm, bool* finite, cudaStream_t stream) {
    const std::vector<B> batches = split<B>(grads);
    const Scratch<double> scratch(slot_count(batches), grads.device_index);
    int slot = 0;
    for (const B& batch : batches) {
        scan_kernel<G, true, B>
            <<<slots(batch), kThreads, 0, stream>>>(batch, scratch.verdicts + slot, scratch.sums + slot);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
        slot += slots(batch);
    }
    finish_kernel<<<1, kThreads, 0, stream>>>(scratch.sums, scratch.verdicts, slot, grads.dials.inverse_scale,
                                              norm, finite);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

void launch_grad_norm(const Update& grads, float* norm, bool* finite) {
    const CurrentStream current(grads.device_index);
    with_types(grads, [&](auto, auto grad) {
        using G = decltype(grad);
        using Small = Batch<float, 1, kSmallLaunch>;
        using Large = Batch<float, 1, kLargeLaunch>;
        if (fits<Small>(grads)) {
            run_batches<G, Small>(grads, norm, finite, current.stream);
        } else {
            run_batches<G, Large>(grads, norm, finite, current.stream);
        }
    });
}

}  // namespace mlaan
