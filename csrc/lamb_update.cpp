// Registers mlaan::lamb_update for the device of this library (MLAAN_DISPATCH_KEY is CPU or CUDA).
#include "lamb_update.h"

#include <torch/csrc/stable/library.h>

#include "multi_tensor_arguments.h"

namespace mlaan {
namespace {

constexpr auto kOperator = &update_operator<Lamb, double, double, double, double>;

}  // namespace
}  // namespace mlaan

STABLE_TORCH_LIBRARY_IMPL(mlaan, MLAAN_DISPATCH_KEY, m) {
    m.impl("lamb_update", TORCH_BOX(mlaan::kOperator));
}
