#include "adamw_update.h"
#include "multi_tensor_cuda.h"

namespace mlaan {

void launch(const Update& update, const AdamW<double>& rule) { run_update<AdamW>(update, rule); }

}  // namespace mlaan
