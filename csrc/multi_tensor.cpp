// Checks the arguments of an update and gathers their addresses; compiled into each library.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <utility>

#include "multi_tensor_arguments.h"

namespace mlaan {
namespace {

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

// A copy of `tensor` with these strides.
Tensor laid_out(const Tensor& tensor, const int64_t* strides) {
    int32_t dtype = 0, device_type = 0, device_index = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &device_type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &device_index));
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(tensor.dim(), tensor.sizes().data(), strides, dtype,
                                                    device_type, device_index, &handle));
    Tensor copy(handle);
    torch::stable::copy_(copy, tensor);
    return copy;
}

Tensor made_contiguous(const Tensor& tensor) {
    const auto sizes = tensor.sizes();
    std::vector<int64_t> strides(sizes.size(), 1);
    for (size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * sizes[d];
    return laid_out(tensor, strides.data());
}

struct Judge {
    ScalarType param_type;
    ScalarType grad_type;
    ScalarType type;  // of masters, states and twins
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
        STD_TORCH_CHECK(tensor.scalar_type() == type && tensor.device() == device &&
                            same_shape(tensor, param) && same_layout(tensor, param),
                        name, "[", index, "]: dtype, device, shape or strides unlike its parameter");
    }
    template <typename Number>
    Number* one(const std::optional<Tensor>& tensor, ScalarType number_type, const char* name) const {
        if (!tensor) return nullptr;
        STD_TORCH_CHECK(
            tensor->scalar_type() == number_type && tensor->numel() == 1 && tensor->device() == device, name,
            ": wrong dtype or device, or not one element");
        return static_cast<Number*>(tensor->mutable_data_ptr());
    }
};

}  // namespace

Update gather(const UpdateArguments& a, int state_count, bool uses_states) {
    const auto& params = a.params;
    const size_t count = params.size();
    const bool has_masters = !a.masters.empty();
    STD_TORCH_CHECK(count > 0 && a.grads.size() == count, "params and grads differ in length");
    STD_TORCH_CHECK(!has_masters || a.masters.size() == count, "params and masters differ in length");
    STD_TORCH_CHECK(a.excluded.empty() || a.excluded.size() == count, "params and excluded differ in length");
    for (int s = 0; s < 2; ++s) {
        STD_TORCH_CHECK(
            a.states[s].size() == (s < state_count ? count : 0) || (a.states[s].empty() && !uses_states),
            "params and states differ in length");
    }
    STD_TORCH_CHECK(a.twin_params.size() == a.twins.size() && a.twin_keep.size() == a.twins.size(),
                    "twins, twin_params and twin_keep differ in length");

    const ScalarType param_type = params[0].scalar_type();
    STD_TORCH_CHECK(!has_masters || param_type == ScalarType::BFloat16, "only bfloat16 params have masters");
    const Judge judge{param_type, a.grads[0].scalar_type(), has_masters ? ScalarType::Float : param_type,
                      params[0].device()};
    Update update{};
    update.type = judge.type;
    update.grad_type = judge.grad_type;
    update.device_index = params[0].get_device_index();
    update.dials.learning_rate = {a.learning_rate,
                                  judge.one<float>(a.learning_rate_dial, ScalarType::Float, "learning_rate")};
    update.dials.step = {a.step, judge.one<float>(a.step_dial, ScalarType::Float, "step")};
    update.dials.inverse_scale = a.inverse_scale;
    update.dials.grad_scale = judge.one<float>(a.grad_scale, ScalarType::Float, "grad_scale");
    update.check_finite = a.check_finite;
    update.finite = judge.one<bool>(a.finite, ScalarType::Bool, "finite");
    update.skipped = judge.one<int32_t>(a.skipped, ScalarType::Int, "skipped");

    std::vector<int64_t> twin_counts(count, 0);
    for (size_t k = 0; k < a.twins.size(); ++k) {
        const int64_t param = a.twin_params[k];
        STD_TORCH_CHECK(0 <= param && param < static_cast<int64_t>(count), "twins[", k,
                        "].param is no index into params");
        STD_TORCH_CHECK(a.twin_keep[k] >= 0.0 && a.twin_keep[k] <= 1.0, "twins[", k,
                        "].keep is not in [0, 1]");
        judge.partner(a.twins[k], params[param], "twins", k);
        ++twin_counts[param];
    }
    std::vector<int64_t> next_twin(count, 0);
    int64_t twin_total = 0;
    update.tensors.reserve(count);
    for (size_t p = 0; p < count; ++p) {
        judge.param(params[p], p);
        judge.grad(a.grads[p], params[p], p);
        if (has_masters) judge.partner(a.masters[p], params[p], "masters", p);
        for (const auto& states : a.states) {
            if (!states.empty()) judge.partner(states[p], params[p], "states", p);
        }
        next_twin[p] = twin_total;
        if (params[p].numel() > 0) {
            const bool fits = same_layout(a.grads[p], params[p]);
            const Tensor& grad =
                fits ? a.grads[p]
                     : update.copies.emplace_back(laid_out(a.grads[p], params[p].strides().data()));
            void* const param = params[p].mutable_data_ptr();
            TensorRow row{has_masters ? a.masters[p].mutable_data_ptr() : param,
                          has_masters ? param : nullptr,
                          grad.const_data_ptr(),
                          {nullptr, nullptr},
                          params[p].numel(),
                          twin_total,
                          twin_counts[p],
                          !a.excluded.empty() && a.excluded[p] != 0};
            for (int s = 0; s < state_count && uses_states; ++s) {
                row.states[s] = a.states[s][p].mutable_data_ptr();
            }
            update.tensors.push_back(row);
        }
        twin_total += twin_counts[p];
    }
    update.twins.resize(a.twins.size());
    for (size_t k = 0; k < a.twins.size(); ++k) {  // the twins of one parameter side by side
        update.twins[next_twin[a.twin_params[k]]++] = {a.twins[k].mutable_data_ptr(), a.twin_keep[k]};
    }
    return update;
}

Update gather_grads(const std::vector<Tensor>& grads, double inverse_scale) {
    STD_TORCH_CHECK(!grads.empty(), "grads is empty");
    Update update{};
    update.grad_type = grads[0].scalar_type();
    update.type = update.grad_type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    update.device_index = grads[0].get_device_index();
    update.dials.inverse_scale = inverse_scale;
    for (size_t index = 0; index < grads.size(); ++index) {
        STD_TORCH_CHECK(
            grads[index].scalar_type() == update.grad_type && grads[index].device() == grads[0].device(),
            "grads[", index, "]: dtype or device unlike grads[0]");
        if (grads[index].numel() == 0) continue;
        const Tensor& grad =
            is_dense(grads[index]) ? grads[index] : update.copies.emplace_back(made_contiguous(grads[index]));
        TensorRow row{};
        row.grad = grad.const_data_ptr();
        row.numel = grad.numel();
        update.tensors.push_back(row);
    }
    return update;
}

}  // namespace mlaan
