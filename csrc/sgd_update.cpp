// Checks the arguments of mlaan::sgd_update, gathers their pointers and registers the operator for the
// device of this library (MLAAN_DISPATCH_KEY is CPU or CUDA).
#include "sgd_update.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>

namespace mlaan {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// True if the elements fill one block of memory without gaps or overlaps, in whatever order.
bool is_dense(const Tensor& tensor) {
    if (tensor.is_contiguous()) return true;
    const auto sizes = tensor.sizes();
    const auto strides = tensor.strides();
    std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size)
    for (size_t d = 0; d < sizes.size(); ++d) {
        if (sizes[d] != 1) dims.emplace_back(strides[d], sizes[d]);
    }
    std::sort(dims.begin(), dims.end());
    int64_t expected = 1;
    for (const auto& [stride, size] : dims) {
        if (stride != expected) return false;
        expected *= size;
    }
    return true;
}

bool same_shape(const Tensor& a, const Tensor& b) {
    const auto left = a.sizes();
    const auto right = b.sizes();
    return left.size() == right.size() && std::equal(left.begin(), left.end(), right.begin());
}

// For tensors of one shape: equal strides, where the stride of a dimension of size one means nothing.
bool same_layout(const Tensor& a, const Tensor& b) {
    if (a.is_contiguous() && b.is_contiguous()) return true;
    const auto sizes = a.sizes();
    const auto left = a.strides();
    const auto right = b.strides();
    for (size_t d = 0; d < sizes.size(); ++d) {
        if (sizes[d] != 1 && left[d] != right[d]) return false;
    }
    return true;
}

Tensor with_layout_of(const Tensor& param, const Tensor& grad) {
    int32_t dtype = 0, device_type = 0, device_index = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(grad.get(), &dtype));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(grad.get(), &device_type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(grad.get(), &device_index));
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(param.dim(), param.sizes().data(), param.strides().data(),
                                                    dtype, device_type, device_index, &handle));
    Tensor copy(handle);
    torch::stable::copy_(copy, grad);
    return copy;
}

// Everything the launchers rely on; the Python face words the same findings for people.
struct Judge {
    ScalarType param_type;
    ScalarType grad_type;
    torch::stable::Device device;

    void param(const Tensor& tensor, size_t index) const {
        STD_TORCH_CHECK(tensor.scalar_type() == param_type && tensor.device() == device && is_dense(tensor),
                        "params[", index, "]: dtype or device unlike params[0], or not dense");
    }
    void grad(const Tensor& tensor, const Tensor& param, size_t index) const {
        STD_TORCH_CHECK(
            tensor.scalar_type() == grad_type && tensor.device() == device && same_shape(tensor, param),
            "grads[", index, "]: dtype unlike grads[0], or device or shape unlike its parameter");
    }
    void partner(const Tensor& tensor, const Tensor& param, const char* name, size_t index) const {
        STD_TORCH_CHECK(tensor.scalar_type() == param_type && tensor.device() == device &&
                            same_shape(tensor, param) && same_layout(tensor, param),
                        name, "[", index, "]: dtype, device, shape or strides unlike its parameter");
    }
};

void sgd_update(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> momenta,
                std::vector<Tensor> twins, std::vector<int64_t> twin_params, std::vector<double> twin_keep,
                double learning_rate, double momentum, bool nesterov, double weight_decay,
                double inverse_scale, std::optional<Tensor> skipped) {
    const bool has_momentum = momentum != 0.0;
    STD_TORCH_CHECK(!params.empty() && grads.size() == params.size(), "params and grads differ in length");
    STD_TORCH_CHECK(momenta.size() == params.size() || (momenta.empty() && !has_momentum),
                    "params and momenta differ in length");
    STD_TORCH_CHECK(twin_params.size() == twins.size() && twin_keep.size() == twins.size(),
                    "twins, twin_params and twin_keep differ in length");

    const Judge judge{params[0].scalar_type(), grads[0].scalar_type(), params[0].device()};
    std::vector<int64_t> twin_counts(params.size(), 0);
    for (size_t k = 0; k < twins.size(); ++k) {
        const int64_t param = twin_params[k];
        STD_TORCH_CHECK(0 <= param && param < static_cast<int64_t>(params.size()), "twins[", k,
                        "].param is no index into params");
        STD_TORCH_CHECK(twin_keep[k] >= 0.0 && twin_keep[k] <= 1.0, "twins[", k, "].keep is not in [0, 1]");
        judge.partner(twins[k], params[param], "twins", k);
        ++twin_counts[param];
    }

    SgdUpdate update{{},
                     {},
                     judge.param_type,
                     judge.grad_type,
                     learning_rate,
                     momentum,
                     weight_decay,
                     inverse_scale,
                     nesterov,
                     nullptr,
                     params[0].get_device_index()};
    if (skipped) {
        STD_TORCH_CHECK(skipped->scalar_type() == ScalarType::Int && skipped->numel() == 1 &&
                            skipped->device() == judge.device,
                        "skipped must be one int32 on the parameters' device");
        update.skipped = static_cast<int32_t*>(skipped->mutable_data_ptr());
    }

    std::vector<Tensor> copies;  // keeps re-laid gradients alive until the launch
    std::vector<int64_t> next_twin(params.size(), 0);
    int64_t twin_total = 0;
    update.tensors.reserve(params.size());
    for (size_t p = 0; p < params.size(); ++p) {
        judge.param(params[p], p);
        judge.grad(grads[p], params[p], p);
        if (!momenta.empty()) judge.partner(momenta[p], params[p], "momenta", p);
        next_twin[p] = twin_total;
        const int64_t numel = params[p].numel();
        if (numel > 0) {
            const bool fits = same_layout(grads[p], params[p]);
            const Tensor& grad = fits ? grads[p] : copies.emplace_back(with_layout_of(params[p], grads[p]));
            update.tensors.push_back({params[p].mutable_data_ptr(), grad.const_data_ptr(),
                                      has_momentum ? momenta[p].mutable_data_ptr() : nullptr, numel,
                                      twin_total, twin_counts[p]});
        }
        twin_total += twin_counts[p];
    }
    update.twins.resize(twins.size());
    for (size_t k = 0; k < twins.size(); ++k) {  // the twins of one parameter side by side
        update.twins[next_twin[twin_params[k]]++] = {twins[k].mutable_data_ptr(), twin_keep[k]};
    }
    launch_sgd_update(update);
}

}  // namespace
}  // namespace mlaan

STABLE_TORCH_LIBRARY_IMPL(mlaan, MLAAN_DISPATCH_KEY, m) {
    m.impl("sgd_update", TORCH_BOX(&mlaan::sgd_update));
}
