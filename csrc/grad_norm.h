// The Euclidean norm of all gradients together.
#pragma once

#include "multi_tensor.h"

namespace mlaan {

// Reads the gradients of `grads`; writes one float and one bool on their device.
void launch_grad_norm(const Update& grads, float* norm, bool* finite);

}  // namespace mlaan
