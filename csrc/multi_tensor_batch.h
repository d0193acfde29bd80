// How hundreds of tensors reach a CUDA kernel: their addresses travel in its launch arguments.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "multi_tensor.h"

namespace mlaan {
namespace {

constexpr int kScanBlocks = 1024;     // about so many blocks read the gradients of one launch beforehand
constexpr int kSlotsOfATensor = 256;  // at most so many of them one tensor

// Launch arguments may hold 4 KiB cheaply and 32,764 bytes at most.
constexpr int kSmallLaunch = 3900;
constexpr int kLargeLaunch = 32700;
constexpr int kOtherArguments = 256;  // of a launch, beside its batch

// Tensors of one launch, passed by value. Tensor t is the chunks [first_chunk[t], first_chunk[t + 1]), its
// last chunk has last_count[t] elements, and its twins are [first_twin[t], first_twin[t + 1]). In a scan, the
// blocks [first_slot[t], first_slot[t + 1]) share its chunks, and each leaves its findings in its slot.
template <typename Weight, int States, int Bytes>
struct Batch {
    using T = Weight;
    static constexpr int bytes_of_tensor = (3 + States) * 8 + 2 * 4 + 2 * 2 + 1;
    static constexpr int bytes_of_twin = 8 + 2 * sizeof(T);
    static constexpr int capacity = (Bytes - kOtherArguments - 64) / (bytes_of_tensor + bytes_of_twin);

    T* weight[capacity];
    BFloat16* rounded[capacity];
    const void* grad[capacity];
    T* state[States][capacity];
    T* twin[capacity];
    T keep[capacity];
    T take[capacity];
    int first_chunk[capacity + 1];
    int first_slot[capacity + 1];
    short first_twin[capacity + 1];
    short last_count[capacity];
    bool excluded[capacity];
    int count;
};

// Which tensor the chunk or slot `index` belongs to: the last t with first[t] <= index.
__device__ inline int tensor_of(const int* first, int count, int index) {
    int low = 0, high = count - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (first[middle] <= index) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

template <typename B>
__device__ int chunks_of(const B& batch, int t) {
    return batch.first_chunk[t + 1] - batch.first_chunk[t];
}

template <typename B>
__device__ int count_of(const B& batch, int t, int chunk) {
    return chunk + 1 == chunks_of(batch, t) ? batch.last_count[t] : kChunk;
}

template <typename B>
int chunks(const B& batch) {
    return batch.first_chunk[batch.count];
}

template <typename B>
int slots(const B& batch) {
    return batch.first_slot[batch.count];
}

template <typename B>
int slot_count(const std::vector<B>& batches) {
    int total = 0;
    for (const B& batch : batches) total += slots(batch);
    return total;
}

template <typename B>
bool fits(const Update& update) {
    return update.tensors.size() <= B::capacity && update.twins.size() <= B::capacity;
}

// Shares kScanBlocks blocks out over the tensors of the batch, by their size.
template <typename B>
void share_slots(B& batch) {
    for (int t = 0; t < batch.count; ++t) {
        const int64_t own = batch.first_chunk[t + 1] - batch.first_chunk[t];
        const int64_t fair = (own * kScanBlocks + chunks(batch) - 1) / chunks(batch);
        batch.first_slot[t + 1] =
            batch.first_slot[t] + static_cast<int>(std::min({own, fair, int64_t{kSlotsOfATensor}}));
    }
}

// Splits the update into as few launches as the capacity of B allows.
template <typename B>
std::vector<B> split(const Update& update) {
    using T = typename B::T;
    std::vector<B> batches;
    int twins = 0;
    for (const TensorRow& tensor : update.tensors) {
        STD_TORCH_CHECK(tensor.twin_count <= B::capacity, "a parameter has ", tensor.twin_count,
                        " twins; one CUDA launch takes ", B::capacity);
        if (batches.empty() || batches.back().count == B::capacity ||
            twins + tensor.twin_count > B::capacity) {
            batches.emplace_back();  // zero-initialised: first_chunk[0] and its like start at 0
            twins = 0;
        }
        B& batch = batches.back();
        const int t = batch.count++;
        const int64_t own = (tensor.numel + kChunk - 1) / kChunk;
        batch.weight[t] = static_cast<T*>(tensor.weight);
        batch.rounded[t] = static_cast<BFloat16*>(tensor.rounded);
        batch.grad[t] = tensor.grad;
        for (size_t s = 0; s < std::size(batch.state); ++s)
            batch.state[s][t] = static_cast<T*>(tensor.states[s]);
        for (int64_t k = tensor.first_twin; k < tensor.first_twin + tensor.twin_count; ++k, ++twins) {
            batch.twin[twins] = static_cast<T*>(update.twins[k].data);
            batch.keep[twins] = static_cast<T>(update.twins[k].keep);
            batch.take[twins] = static_cast<T>(1.0 - update.twins[k].keep);
        }
        batch.first_twin[t + 1] = static_cast<short>(twins);
        batch.first_chunk[t + 1] = batch.first_chunk[t] + static_cast<int>(own);
        batch.last_count[t] = static_cast<short>(tensor.numel - (own - 1) * kChunk);
        batch.excluded[t] = tensor.excluded;
    }
    for (B& batch : batches) share_slots(batch);
    return batches;
}

}  // namespace
}  // namespace mlaan
