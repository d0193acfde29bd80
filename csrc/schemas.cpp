// Every operator's schema. Only the CPU library compiles this file: a schema may be defined once, and the
// CPU library loads on every build of torch.
#include <torch/csrc/stable/library.h>

#include <string>

namespace {

// What update_operator in multi_tensor_arguments.h takes, before the rule's own numbers.
const std::string kUpdate =
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] masters, Tensor(c!)[] first_states, "
    "Tensor(d!)[] second_states, Tensor(e!)[] twins, int[] twin_params, float[] twin_keep, int[] excluded, "
    "float learning_rate, Tensor? learning_rate_dial, float step, Tensor? step_dial, float inverse_scale, "
    "Tensor? grad_scale, bool check_finite, Tensor? finite, Tensor(f!)? skipped, ";

}  // namespace

STABLE_TORCH_LIBRARY(mlaan, m) {
    m.def(("sgd_update" + kUpdate + "float momentum, bool nesterov, float weight_decay) -> ()").c_str());
    m.def(("adamw_update" + kUpdate + "float beta1, float beta2, float epsilon, float weight_decay) -> ()")
              .c_str());
    m.def(("lars_update" + kUpdate + "float momentum, float weight_decay, float trust) -> ()").c_str());
    m.def(("lamb_update" + kUpdate + "float beta1, float beta2, float epsilon, float weight_decay) -> ()")
              .c_str());
    m.def("grad_norm(Tensor[] grads, float inverse_scale, Tensor(a!) norm, Tensor(b!) finite) -> ()");
}
