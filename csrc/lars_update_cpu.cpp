#include "lars_update.h"
#include "multi_tensor_cpu.h"

namespace mlaan {

void launch(const Update& update, const Lars<double>& rule) { run_update<Lars>(update, rule); }

}  // namespace mlaan
