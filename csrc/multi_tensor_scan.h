// What the kernels of all updates use, and the one that looks at gradients alone.
#pragma once

#include "multi_tensor_batch.h"

namespace mlaan {
namespace {

constexpr int kThreads = 256;

template <typename T, int Width>
struct alignas(sizeof(T) * Width) Pack {
    T at[Width];
};

struct Pair {
    double first, second;
};

__device__ inline bool is_aligned(const void* pointer, int bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <typename T>
__device__ bool is_finite(T value) {
    return isfinite(static_cast<float>(value));
}
template <>
__device__ inline bool is_finite(double value) {
    return isfinite(value);
}

// The sum over all threads of the block, the same in each, in a fixed order. Once per kernel.
__device__ inline Pair block_sum(Pair sum) {
    __shared__ Pair warps[kThreads / 32];
    for (int distance = 16; distance > 0; distance /= 2) {
        sum.first += __shfl_xor_sync(0xffffffffu, sum.first, distance);
        sum.second += __shfl_xor_sync(0xffffffffu, sum.second, distance);
    }
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = {0.0, 0.0};
    for (const Pair& warp : warps) {
        sum.first += warp.first;
        sum.second += warp.second;
    }
    return sum;
}

// Reads all gradients. Block b writes to verdicts[b] whether it saw an inf or NaN, and with Sum to sums[b]
// the sum of its squares. Slots of their own need no clearing beforehand and stay apart when several streams
// update at once.
template <typename G, bool Sum, typename B>
__global__ __launch_bounds__(kThreads) void scan_kernel(const __grid_constant__ B batch, uint8_t* verdicts,
                                                        double* sums) {
    constexpr int width = 16 / sizeof(G);
    using GradPack = Pack<G, width>;
    const int t = tensor_of(batch.first_slot, batch.count, blockIdx.x);
    const int stride = batch.first_slot[t + 1] - batch.first_slot[t];
    int bad = 0;
    double sum = 0.0;
    const auto look = [&](G value) {
        bad |= !is_finite(value);
        if constexpr (Sum) sum += static_cast<double>(value) * static_cast<double>(value);
    };
    for (int chunk = blockIdx.x - batch.first_slot[t]; chunk < chunks_of(batch, t); chunk += stride) {
        const G* grad = static_cast<const G*>(batch.grad[t]) + static_cast<int64_t>(chunk) * kChunk;
        const int count = count_of(batch, t, chunk);
        const int packs = is_aligned(grad, sizeof(GradPack)) ? count / width : 0;
        for (int i = threadIdx.x; i < packs; i += kThreads) {
            const GradPack pack = reinterpret_cast<const GradPack*>(grad)[i];
#pragma unroll
            for (int e = 0; e < width; ++e) look(pack.at[e]);
        }
        for (int i = packs * width + threadIdx.x; i < count; i += kThreads) look(grad[i]);
    }
    bad = __syncthreads_or(bad);
    if (threadIdx.x == 0) verdicts[blockIdx.x] = bad != 0;
    if constexpr (Sum) {
        const Pair total = block_sum({sum, 0.0});
        if (threadIdx.x == 0) sums[blockIdx.x] = total.first;
    }
}

}  // namespace
}  // namespace mlaan
