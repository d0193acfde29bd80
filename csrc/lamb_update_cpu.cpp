#include "lamb_update.h"
#include "multi_tensor_cpu.h"

namespace mlaan {

void launch(const Update& update, const Lamb<double>& rule) { run_update<Lamb>(update, rule); }

}  // namespace mlaan
