// Registers mlaan::lars_update for the device of this library (MLAAN_DISPATCH_KEY is CPU or CUDA).
#include "lars_update.h"

#include <torch/csrc/stable/library.h>

#include "multi_tensor_arguments.h"

namespace mlaan {
namespace {

constexpr auto kOperator = &update_operator<Lars, double, double, double>;

}  // namespace
}  // namespace mlaan

STABLE_TORCH_LIBRARY_IMPL(mlaan, MLAAN_DISPATCH_KEY, m) {
    m.impl("lars_update", TORCH_BOX(mlaan::kOperator));
}
