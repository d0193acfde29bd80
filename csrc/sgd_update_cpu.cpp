#include "multi_tensor_cpu.h"
#include "sgd_update.h"

namespace mlaan {

void launch(const Update& update, const Sgd<double>& rule) { run_update<Sgd>(update, rule); }

}  // namespace mlaan
