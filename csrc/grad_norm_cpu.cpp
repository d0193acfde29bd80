#include "grad_norm.h"
#include "multi_tensor_cpu.h"

namespace mlaan {

void launch_grad_norm(const Update& grads, float* norm, bool* finite) {
    with_types(grads, [&](auto, auto grad) {
        using G = decltype(grad);
        std::vector<double> sums(chunk_count(grads));
        std::atomic<bool> all{true};
        for_each_chunk(grads, [&](const Chunk& chunk) {
            const G* at = static_cast<const G*>(grads.tensors[chunk.tensor].grad) + chunk.offset;
            if (!all_finite(at, chunk.count)) all = false;
            sums[chunk.index] = sum_of_squares(at, chunk.count);
        });
        double sum = 0.0;
        for (const double part : sums) sum += part;
        *norm = static_cast<float>(grads.dials.inverse_scale * std::sqrt(sum));
        *finite = all;
    });
}

}  // namespace mlaan
