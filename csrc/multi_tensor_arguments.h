// The signature that the operators of all rules share: schemas.cpp has it as text.
#pragma once

#include <optional>
#include <utility>

#include "multi_tensor.h"

namespace mlaan {

struct UpdateArguments {
    std::vector<torch::stable::Tensor> params, grads, masters, states[2], twins;
    std::vector<int64_t> twin_params;
    std::vector<double> twin_keep;
    std::vector<int64_t> excluded;  // 0 or 1 per parameter; empty: none
    double learning_rate, step, inverse_scale;
    std::optional<torch::stable::Tensor> learning_rate_dial, step_dial, grad_scale, finite, skipped;
    bool check_finite;
};

// Checks everything that the launchers rely on, before anything is written. The Python faces word the same
// findings for people.
Update gather(const UpdateArguments& arguments, int state_count, bool uses_states);

// For the norm alone: rows that have nothing but a gradient.
Update gather_grads(const std::vector<torch::stable::Tensor>& grads, double inverse_scale);

// The operator of a rule; its own numbers come last.
template <template <typename> class Rule, typename... Numbers>
void update_operator(std::vector<torch::stable::Tensor> params, std::vector<torch::stable::Tensor> grads,
                     std::vector<torch::stable::Tensor> masters, std::vector<torch::stable::Tensor> first,
                     std::vector<torch::stable::Tensor> second, std::vector<torch::stable::Tensor> twins,
                     std::vector<int64_t> twin_params, std::vector<double> twin_keep,
                     std::vector<int64_t> excluded, double learning_rate,
                     std::optional<torch::stable::Tensor> learning_rate_dial, double step,
                     std::optional<torch::stable::Tensor> step_dial, double inverse_scale,
                     std::optional<torch::stable::Tensor> grad_scale, bool check_finite,
                     std::optional<torch::stable::Tensor> finite,
                     std::optional<torch::stable::Tensor> skipped, Numbers... numbers) {
    const Rule<double> rule(numbers...);
    const UpdateArguments arguments{std::move(params),
                                    std::move(grads),
                                    std::move(masters),
                                    {std::move(first), std::move(second)},
                                    std::move(twins),
                                    std::move(twin_params),
                                    std::move(twin_keep),
                                    std::move(excluded),
                                    learning_rate,
                                    step,
                                    inverse_scale,
                                    learning_rate_dial,
                                    step_dial,
                                    grad_scale,
                                    finite,
                                    skipped,
                                    check_finite};
    Update update = gather(arguments, Rule<double>::kStates, rule.uses_states());
    update.dials.beta1 = rule.beta1();
    update.dials.beta2 = rule.beta2();
    launch(update, rule);
}

}  // namespace mlaan
