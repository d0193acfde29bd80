#include "multi_tensor_cuda.h"
#include "sgd_update.h"

namespace mlaan {

void launch(const Update& update, const Sgd<double>& rule) { run_update<Sgd>(update, rule); }

}  // namespace mlaan
