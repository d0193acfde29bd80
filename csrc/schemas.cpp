// Every operator's schema. Only the CPU library compiles this file: a schema may be defined once, and the
// CPU library loads on every build of torch.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(mlaan, m) {
    m.def(
        "sgd_update(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momenta, Tensor(c!)[] twins, "
        "int[] twin_params, float[] twin_keep, float learning_rate, float momentum, bool nesterov, "
        "float weight_decay, float inverse_scale, Tensor(d!)? skipped) -> ()");
}
