"""Which weights move in which Update."""

from collections.abc import Mapping, Sequence

from torch import nn

from mlaan.errors import UserError
from mlaan.learning import Supervision
from mlaan.plan.graph import head_homes


def update_groups(
    modules: Sequence[nn.Module], supervision: Supervision, names: Mapping[nn.Parameter, str]
) -> list[list[nn.Parameter]]:
    """For each module the weights of its Update: its own, and the trained ones of the heads that end there.

    Args:
        names: a name for every weight, for the message.

    Raises:
        UserError: a weight is in two of them; one would move it before the other's gradient is there.
    """
    home = head_homes(supervision)
    group_of: dict[nn.Parameter, int] = {}
    for i, module in enumerate(modules):
        heads = [head for head in supervision.heads if home[id(head)] == i]
        trained = (weight for head in heads for weight in head.parameters() if weight.requires_grad)
        for weight in (*module.parameters(), *trained):
            if group_of.setdefault(weight, i) != i:
                raise UserError(
                    f"weight {names[weight]} is shared by modules {group_of[weight]} and {i}: choose cuts that "
                    "keep it in one module, or give each module a weight of its own"
                )
    return [[weight for weight, group in group_of.items() if group == i] for i in range(len(modules))]
