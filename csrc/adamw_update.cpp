// Registers mlaan::adamw_update for the device of this library (MLAAN_DISPATCH_KEY is CPU or CUDA).
#include "adamw_update.h"

#include <torch/csrc/stable/library.h>

#include "multi_tensor_arguments.h"

namespace mlaan {
namespace {

constexpr auto kOperator = &update_operator<AdamW, double, double, double, double>;

}  // namespace
}  // namespace mlaan

STABLE_TORCH_LIBRARY_IMPL(mlaan, MLAAN_DISPATCH_KEY, m) {
    m.impl("adamw_update", TORCH_BOX(mlaan::kOperator));
}
