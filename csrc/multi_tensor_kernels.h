// The kernels of an update; a rule (see multi_tensor.h) says what happens to an element.
#pragma once

#include "multi_tensor_scan.h"

namespace mlaan {
namespace {

// The numbers of Width elements that a rule works on, in registers.
template <int Width, typename Rule, typename G, typename B>
struct Elements {
    using T = typename Rule::Number;
    Pack<T, Width> weight;
    Pack<G, Width> grad;
    Pack<T, Width> state[Rule::kStates];

    __device__ Elements(const B& batch, int t, int64_t at) {
        weight = *reinterpret_cast<const Pack<T, Width>*>(batch.weight[t] + at);
        grad = *reinterpret_cast<const Pack<G, Width>*>(static_cast<const G*>(batch.grad[t]) + at);
#pragma unroll
        for (int s = 0; s < Rule::kStates; ++s) {
            state[s] = {};
            if (batch.state[s][t] != nullptr) {
                state[s] = *reinterpret_cast<const Pack<T, Width>*>(batch.state[s][t] + at);
            }
        }
    }
};

// Whether the tensor may be read and written in packs of `width` elements.
template <int width, typename G, int States, typename B>
__device__ bool allows_packs(const B& batch, int t) {
    using T = typename B::T;
    bool aligned = is_aligned(batch.weight[t], sizeof(T) * width) &&
                   is_aligned(batch.rounded[t], sizeof(BFloat16) * width) &&
                   is_aligned(batch.grad[t], sizeof(G) * width);
    for (int s = 0; s < States; ++s) aligned = aligned && is_aligned(batch.state[s][t], sizeof(T) * width);
    for (int k = batch.first_twin[t]; k < batch.first_twin[t + 1]; ++k) {
        aligned = aligned && is_aligned(batch.twin[k], sizeof(T) * width);
    }
    return aligned;
}

// Before the update of a rule with norms: per block the squares of the weights and of what the rule measures,
// and on the way the verdict on the gradients.
template <typename Rule, typename G, typename B>
__global__ __launch_bounds__(kThreads) void norm_kernel(const __grid_constant__ B batch, const Rule rule,
                                                        const Dials dials, uint8_t* verdicts, Pair* sums) {
    using T = typename Rule::Number;
    constexpr int width = 16 / sizeof(T);
    __shared__ Now<T> now;
    if (threadIdx.x == 0) now = resolve<T>(dials);
    __syncthreads();
    const int t = tensor_of(batch.first_slot, batch.count, blockIdx.x);
    const int stride = batch.first_slot[t + 1] - batch.first_slot[t];
    const bool aligned = allows_packs<width, G, Rule::kStates>(batch, t);
    const Share<T> share{T(1), batch.excluded[t] ? T(0) : rule.weight_decay};
    int bad = 0;
    Pair sum{0.0, 0.0};
    const auto look = [&](auto& elements) {
        constexpr int count = sizeof(elements.weight.at) / sizeof(T);
#pragma unroll
        for (int e = 0; e < count; ++e) {
            T states[Rule::kStates];
#pragma unroll
            for (int s = 0; s < Rule::kStates; ++s) states[s] = elements.state[s].at[e];
            bad |= !is_finite(elements.grad.at[e]);
            const double weight = elements.weight.at[e];
            const double measured = rule.measured(
                now, share, static_cast<T>(elements.grad.at[e]) * now.factor, elements.weight.at[e], states);
            sum.first += weight * weight;
            sum.second += measured * measured;
        }
    };
    for (int chunk = blockIdx.x - batch.first_slot[t]; chunk < chunks_of(batch, t); chunk += stride) {
        const int64_t offset = static_cast<int64_t>(chunk) * kChunk;
        const int count = count_of(batch, t, chunk);
        const int packs = aligned ? count / width : 0;
        for (int i = threadIdx.x; i < packs; i += kThreads) {
            const Elements<width, Rule, G, B> elements(batch, t, offset + i * width);
            look(elements);
        }
        for (int i = packs * width + threadIdx.x; i < count; i += kThreads) {
            const Elements<1, Rule, G, B> elements(batch, t, offset + i);
            look(elements);
        }
    }
    bad = __syncthreads_or(bad);
    const Pair total = block_sum(sum);
    if (threadIdx.x == 0) {
        verdicts[blockIdx.x] = bad != 0;
        sums[blockIdx.x] = total;
    }
}

// Moves the twins and the weight for Width elements, starting at element `at` of the tensor.
template <int Width, typename G, typename Rule, typename B>
__device__ void move(const B& batch, int t, int64_t at, const Rule& rule,
                     const Now<typename Rule::Number>& now, const Share<typename Rule::Number>& share) {
    using T = typename Rule::Number;
    using TPack = Pack<T, Width>;
    Elements<Width, Rule, G, B> elements(batch, t, at);

    for (int k = batch.first_twin[t]; k < batch.first_twin[t + 1]; ++k) {
        TPack* const twin_at = reinterpret_cast<TPack*>(batch.twin[k] + at);
        TPack twin = *twin_at;
#pragma unroll
        for (int e = 0; e < Width; ++e) {
            twin.at[e] = batch.keep[k] * twin.at[e] + batch.take[k] * elements.weight.at[e];
        }
        *twin_at = twin;
    }
#pragma unroll
    for (int e = 0; e < Width; ++e) {
        T states[Rule::kStates];
#pragma unroll
        for (int s = 0; s < Rule::kStates; ++s) states[s] = elements.state[s].at[e];
        rule.move(now, share, static_cast<T>(elements.grad.at[e]) * now.factor, elements.weight.at[e],
                  states);
#pragma unroll
        for (int s = 0; s < Rule::kStates; ++s) elements.state[s].at[e] = states[s];
    }
#pragma unroll
    for (int s = 0; s < Rule::kStates; ++s) {
        if (batch.state[s][t] != nullptr) {
            *reinterpret_cast<TPack*>(batch.state[s][t] + at) = elements.state[s];
        }
    }
    *reinterpret_cast<TPack*>(batch.weight[t] + at) = elements.weight;
    if (batch.rounded[t] != nullptr) {
        Pack<BFloat16, Width> rounded;
#pragma unroll
        for (int e = 0; e < Width; ++e) {
            rounded.at[e] = static_cast<BFloat16>(static_cast<float>(elements.weight.at[e]));
        }
        *reinterpret_cast<Pack<BFloat16, Width>*>(batch.rounded[t] + at) = rounded;
    }
}

// What an update kernel learns from the launch before it, and whom it tells.
struct Findings {
    const bool* finite;       // of the caller; nullptr: true
    const uint8_t* verdicts;  // of all batches
    int verdict_count;        // 0: no check
    const Pair* sums;         // of this batch; nullptr: no norms
    int32_t* skipped;
};

// One block per chunk. Every block reads all verdicts (about a KiB) and the sums of its tensor (up to 4 KiB),
// from the L2 cache.
template <typename Rule, typename G, typename B>
__global__ __launch_bounds__(kThreads) void update_kernel(const __grid_constant__ B batch, const Rule rule,
                                                          const Dials dials, const Findings findings) {
    using T = typename Rule::Number;
    __shared__ Now<T> now;
    if (threadIdx.x == 0) now = resolve<T>(dials);
    int bad = findings.finite != nullptr && !*findings.finite;
    for (int i = threadIdx.x; i < findings.verdict_count; i += kThreads) bad |= findings.verdicts[i];
    bad = __syncthreads_or(bad);
    if (findings.skipped != nullptr && blockIdx.x == 0 && threadIdx.x == 0) *findings.skipped = bad != 0;
    if (bad) return;

    const int t = tensor_of(batch.first_chunk, batch.count, blockIdx.x);
    Share<T> share{T(1), batch.excluded[t] ? T(0) : rule.weight_decay};
    if constexpr (Rule::kNorms) {
        Pair sum{0.0, 0.0};
        for (int i = batch.first_slot[t] + threadIdx.x; i < batch.first_slot[t + 1]; i += kThreads) {
            sum.first += findings.sums[i].first;
            sum.second += findings.sums[i].second;
        }
        sum = block_sum(sum);
        if (!batch.excluded[t]) share.ratio = rule.ratio(sqrt(sum.first), sqrt(sum.second));
    }
    constexpr int width = 16 / sizeof(T);
    const int chunk = blockIdx.x - batch.first_chunk[t];
    const int64_t offset = static_cast<int64_t>(chunk) * kChunk;
    const int count = count_of(batch, t, chunk);
    const int packs = allows_packs<width, G, Rule::kStates>(batch, t) ? count / width : 0;
    for (int i = threadIdx.x; i < packs; i += kThreads) {
        move<width, G>(batch, t, offset + i * width, rule, now, share);
    }
    for (int i = packs * width + threadIdx.x; i < count; i += kThreads) {
        move<1, G>(batch, t, offset + i, rule, now, share);
    }
}

// For an update of nothing: only the caller's finding is left to tell.
template <typename Flag>
__global__ void tell_kernel(const bool* finite, Flag* skipped) {
    *skipped = finite != nullptr && !*finite;
}

}  // namespace
}  // namespace mlaan
