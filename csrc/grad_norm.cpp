// Registers mlaan::grad_norm for the device of this library (MLAAN_DISPATCH_KEY is CPU or CUDA).
#include "grad_norm.h"

#include <torch/csrc/stable/library.h>

#include "multi_tensor_arguments.h"

namespace mlaan {
namespace {

void grad_norm(std::vector<torch::stable::Tensor> grads, double inverse_scale, torch::stable::Tensor norm,
               torch::stable::Tensor finite) {
    const Update update = gather_grads(grads, inverse_scale);
    STD_TORCH_CHECK(norm.scalar_type() == ScalarType::Float && norm.numel() == 1 &&
                        finite.scalar_type() == ScalarType::Bool && finite.numel() == 1 &&
                        norm.device() == grads[0].device() && finite.device() == grads[0].device(),
                    "norm and finite must be one float32 and one bool on the gradients' device");
    launch_grad_norm(update, static_cast<float*>(norm.mutable_data_ptr()),
                     static_cast<bool*>(finite.mutable_data_ptr()));
}

}  // namespace
}  // namespace mlaan

STABLE_TORCH_LIBRARY_IMPL(mlaan, MLAAN_DISPATCH_KEY, m) { m.impl("grad_norm", TORCH_BOX(&mlaan::grad_norm)); }
