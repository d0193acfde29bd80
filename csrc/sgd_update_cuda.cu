// The SGD update on CUDA: the addresses of up to 512 tensors travel in the launch arguments, so a local
// module's update is one kernel, and two with the finite check; both can be captured in a graph.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "sgd_update.h"

namespace mlaan {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

constexpr int kThreads = 256;
constexpr int kChunk = 2048;       // elements per block
constexpr int kCheckBlocks = 512;  // blocks of one finite check; each leaves one verdict

// Tensors of one launch, passed by value: chunk c belongs to the tensor t with first_chunk[t] <= c <
// first_chunk[t + 1], and the twins of t are [first_twin[t], first_twin[t + 1]).
template <typename T, int Tensors, int Twins>
struct Batch {
    static constexpr int max_tensors = Tensors;
    static constexpr int max_twins = Twins;
    T* param[Tensors];
    const void* grad[Tensors];
    T* momentum[Tensors];
    int64_t numel[Tensors];
    T* twin[Twins];
    T keep[Twins];
    T take[Twins];
    int first_chunk[Tensors + 1];
    short first_twin[Tensors + 1];
    int count;
};

// Launch arguments may hold 4 KiB cheaply and 32,764 bytes at most.
template <typename T>
using SmallBatch = Batch<T, 56, 56>;
template <typename T>
using LargeBatch = Batch<T, 512, 512>;
static_assert(sizeof(SmallBatch<double>) <= 4000 && sizeof(LargeBatch<double>) <= 32700);

template <typename T, int Width>
struct alignas(sizeof(T) * Width) Pack {
    T at[Width];
};

template <typename B>
__device__ int tensor_of_chunk(const B& batch, int chunk) {
    int low = 0, high = batch.count - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (batch.first_chunk[middle] <= chunk) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

__device__ bool is_aligned(const void* pointer, int bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <typename T>
__device__ bool is_finite(T value) {
    return isfinite(static_cast<float>(value));
}
template <>
__device__ bool is_finite(double value) {
    return isfinite(value);
}

// Launch 1. verdicts[blockIdx.x] <- 1 if this block saw an inf or NaN, else 0. Slots of their own need no
// clearing beforehand and stay apart when several streams update at once.
template <typename T, typename G, typename B>
__global__ __launch_bounds__(kThreads) void check_kernel(const __grid_constant__ B batch, int* verdicts) {
    constexpr int width = 16 / sizeof(G);
    using GradPack = Pack<G, width>;
    int bad = 0;
    for (int chunk = blockIdx.x; chunk < batch.first_chunk[batch.count]; chunk += gridDim.x) {
        const int t = tensor_of_chunk(batch, chunk);
        const int64_t offset = static_cast<int64_t>(chunk - batch.first_chunk[t]) * kChunk;
        const int count = static_cast<int>(min(static_cast<int64_t>(kChunk), batch.numel[t] - offset));
        const G* grad = static_cast<const G*>(batch.grad[t]) + offset;
        const int packs = is_aligned(grad, sizeof(GradPack)) ? count / width : 0;
        for (int i = threadIdx.x; i < packs; i += kThreads) {
            const GradPack g = reinterpret_cast<const GradPack*>(grad)[i];
#pragma unroll
            for (int e = 0; e < width; ++e) bad |= !is_finite(g.at[e]);
        }
        for (int i = packs * width + threadIdx.x; i < count; i += kThreads) bad |= !is_finite(grad[i]);
    }
    bad = __syncthreads_or(bad);
    if (threadIdx.x == 0) verdicts[blockIdx.x] = bad != 0;
}

// Moves the twins and the parameter for Width elements, starting at element `at` of the tensor.
template <int Width, typename T, typename G, typename B>
__device__ void move(const B& batch, int t, int64_t at, const SgdScalars<T>& s) {
    using TPack = Pack<T, Width>;
    using GradPack = Pack<G, Width>;
    T* const param_at = batch.param[t] + at;
    T* const momentum_at = batch.momentum[t] == nullptr ? nullptr : batch.momentum[t] + at;
    TPack param = *reinterpret_cast<const TPack*>(param_at);
    const GradPack grad = *reinterpret_cast<const GradPack*>(static_cast<const G*>(batch.grad[t]) + at);
    TPack momentum{};
    if (momentum_at != nullptr) momentum = *reinterpret_cast<const TPack*>(momentum_at);

    for (int k = batch.first_twin[t]; k < batch.first_twin[t + 1]; ++k) {
        TPack* const twin_at = reinterpret_cast<TPack*>(batch.twin[k] + at);
        TPack twin = *twin_at;
#pragma unroll
        for (int e = 0; e < Width; ++e) twin.at[e] = batch.keep[k] * twin.at[e] + batch.take[k] * param.at[e];
        *twin_at = twin;
    }
#pragma unroll
    for (int e = 0; e < Width; ++e) {
        const T slope = static_cast<T>(grad.at[e]) * s.inverse_scale + s.weight_decay * param.at[e];
        momentum.at[e] = s.momentum * momentum.at[e] + slope;
        const T step = s.nesterov ? slope + s.momentum * momentum.at[e] : momentum.at[e];
        param.at[e] -= s.learning_rate * step;
    }
    if (momentum_at != nullptr) *reinterpret_cast<TPack*>(momentum_at) = momentum;
    *reinterpret_cast<TPack*>(param_at) = param;
}

// Launch 2: one block per chunk. Every block reads all verdicts (2 KiB, from the L2 cache).
template <typename T, typename G, typename B>
__global__ __launch_bounds__(kThreads) void update_kernel(const __grid_constant__ B batch,
                                                          const SgdScalars<T> scalars, const int* verdicts,
                                                          int verdict_count, int* skipped) {
    if (verdict_count > 0) {
        int bad = 0;
        for (int i = threadIdx.x; i < verdict_count; i += kThreads) bad |= verdicts[i];
        bad = __syncthreads_or(bad);
        if (blockIdx.x == 0 && threadIdx.x == 0) *skipped = bad != 0;
        if (bad) return;
    }
    constexpr int width = 16 / sizeof(T);
    const int t = tensor_of_chunk(batch, blockIdx.x);
    const int64_t offset = static_cast<int64_t>(blockIdx.x - batch.first_chunk[t]) * kChunk;
    const int count = static_cast<int>(min(static_cast<int64_t>(kChunk), batch.numel[t] - offset));

    bool aligned = is_aligned(batch.param[t], 16) && is_aligned(batch.momentum[t], 16) &&
                   is_aligned(batch.grad[t], sizeof(G) * width);
    for (int k = batch.first_twin[t]; k < batch.first_twin[t + 1]; ++k) {
        aligned = aligned && is_aligned(batch.twin[k], 16);
    }
    const int packs = aligned ? count / width : 0;
    for (int i = threadIdx.x; i < packs; i += kThreads) {
        move<width, T, G>(batch, t, offset + i * width, scalars);
    }
    for (int i = packs * width + threadIdx.x; i < count; i += kThreads) {
        move<1, T, G>(batch, t, offset + i, scalars);
    }
}

// Splits the update into as few launches as the capacity of B allows.
template <typename T, typename B>
std::vector<B> split(const SgdUpdate& update) {
    std::vector<B> batches;
    int twins = 0;
    for (const SgdTensor& tensor : update.tensors) {
        STD_TORCH_CHECK(tensor.twin_count <= B::max_twins, "a parameter has ", tensor.twin_count,
                        " twins; one CUDA launch takes ", B::max_twins);
        if (batches.empty() || batches.back().count == B::max_tensors ||
            twins + tensor.twin_count > B::max_twins) {
            batches.emplace_back();  // zero-initialised: first_chunk[0] and first_twin[0] start at 0
            twins = 0;
        }
        B& batch = batches.back();
        const int t = batch.count++;
        batch.param[t] = static_cast<T*>(tensor.param);
        batch.grad[t] = tensor.grad;
        batch.momentum[t] = static_cast<T*>(tensor.momentum);
        batch.numel[t] = tensor.numel;
        for (int64_t k = tensor.first_twin; k < tensor.first_twin + tensor.twin_count; ++k, ++twins) {
            batch.twin[twins] = static_cast<T*>(update.twins[k].data);
            batch.keep[twins] = static_cast<T>(update.twins[k].keep);
            batch.take[twins] = static_cast<T>(1.0 - update.twins[k].keep);
        }
        batch.first_twin[t + 1] = static_cast<short>(twins);
        batch.first_chunk[t + 1] =
            batch.first_chunk[t] + static_cast<int>((tensor.numel + kChunk - 1) / kChunk);
    }
    return batches;
}

template <typename T, typename G, typename B>
void run_batches(const SgdUpdate& update, cudaStream_t stream) {
    const std::vector<B> batches = split<T, B>(update);
    const auto chunks = [](const B& batch) { return batch.first_chunk[batch.count]; };
    const SgdScalars<T> scalars(update);
    torch::stable::Tensor scratch;
    int* verdicts = nullptr;
    int verdict_count = 0;
    if (update.skipped != nullptr) {
        for (const B& batch : batches) verdict_count += std::min(chunks(batch), kCheckBlocks);
        const torch::stable::Device device(torch::headeronly::DeviceType::CUDA, update.device_index);
        scratch = torch::stable::empty({verdict_count}, ScalarType::Int, std::nullopt, device);
        verdicts = static_cast<int*>(scratch.mutable_data_ptr());
        int* next = verdicts;
        for (const B& batch : batches) {
            const int blocks = std::min(chunks(batch), kCheckBlocks);
            check_kernel<T, G, B><<<blocks, kThreads, 0, stream>>>(batch, next);
            STD_CUDA_KERNEL_LAUNCH_CHECK();
            next += blocks;
        }
    }
    for (const B& batch : batches) {
        update_kernel<T, G, B>
            <<<chunks(batch), kThreads, 0, stream>>>(batch, scalars, verdicts, verdict_count, update.skipped);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
}

template <typename T, typename G>
void run(const SgdUpdate& update, cudaStream_t stream) {
    const bool small = update.tensors.size() <= SmallBatch<T>::max_tensors &&
                       update.twins.size() <= SmallBatch<T>::max_twins;
    if (small) {
        run_batches<T, G, SmallBatch<T>>(update, stream);
    } else {
        run_batches<T, G, LargeBatch<T>>(update, stream);
    }
}

}  // namespace

void launch_sgd_update(const SgdUpdate& update) {
    const torch::stable::accelerator::DeviceGuard guard(update.device_index);
    void* handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(update.device_index, &handle));
    const auto stream = static_cast<cudaStream_t>(handle);

    if (update.tensors.empty()) {
        if (update.skipped != nullptr) {
            STD_CUDA_CHECK(cudaMemsetAsync(update.skipped, 0, sizeof(int32_t), stream));
        }
        return;
    }
    const auto is = [&](ScalarType param, ScalarType grad) {
        return update.param_type == param && update.grad_type == grad;
    };
    if (is(ScalarType::Float, ScalarType::Float)) return run<float, float>(update, stream);
    if (is(ScalarType::Float, ScalarType::BFloat16)) return run<float, BFloat16>(update, stream);
    if (is(ScalarType::Float, ScalarType::Half)) return run<float, Half>(update, stream);
    if (is(ScalarType::Double, ScalarType::Double)) return run<double, double>(update, stream);
    STD_TORCH_CHECK(false, "sgd_update has no kernel for these dtypes of params and grads");
}

}  // namespace mlaan
