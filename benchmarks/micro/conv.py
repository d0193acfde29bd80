"""The 1x1 convolution's rows: BatchNorm and ReLU before it, sums for the BatchNorm behind it, and both gradients."""

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.micro.harness import Case, Draw, Tensors
from mlaan_kernels.conv1x1 import conv1x1_forward, conv1x1_input_grad, conv1x1_weight_grad
from mlaan_kernels.norm import Norm

HALF = torch.bfloat16


def conv1x1(shape: tuple[int, int, int, int], out_channels: int, stride: int = 1, compiled: bool = False) -> Case:
    """The convolution with its neighbours' work, beside cuDNN's without: "plain".

    Forward: x, y. Backward: dy for either gradient, x for either, and dx; the weights and their gradient are small.
    Only what the stride leaves of x counts for the products and the weight's gradient.
    """
    images, channels, height, width = shape
    pixels = images * height * width
    kept = images * -(-height // stride) * -(-width // stride)

    def inputs(draw: Draw) -> Tensors:
        return {
            "x": draw.normal(*shape, dtype=HALF),
            "weight": draw.normal(out_channels, channels, 1, 1, dtype=HALF) / channels**0.5,
            "scale": draw.normal(channels) / 4 + 1,
            "bias": draw.normal(channels) / 4,
        }

    def reference(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = torch.zeros_like(bias), torch.ones_like(bias)
        z = F.relu(F.batch_norm(x, mean, variance, scale, bias, eps=1e-12))
        y = F.conv2d(z, weight, stride=stride)
        variance, mean = torch.var_mean(y.detach().float(), (0, 2, 3))
        return y, mean, variance

    def plain(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, stride=stride)

    class Fused:
        def __init__(self, inputs: Tensors) -> None:
            self.x, self.weight = inputs["x"], inputs["weight"]
            ones = torch.ones(1, channels, device=self.x.device)
            self.norm = Norm(torch.zeros_like(ones), ones, inputs["scale"][None], inputs["bias"])
            self.dy = Draw(self.x.device, 1).normal(*self.forward()["result 0"].shape, dtype=HALF)

        def forward(self) -> Tensors:
            y, partials = conv1x1_forward(self.x, self.weight, self.norm, stride=stride, statistics=True)
            assert partials is not None
            return {"result 0": y, "sums": partials.sums}

        def backward(self, results: Tensors) -> Tensors:
            dz, sums = conv1x1_input_grad(self.dy, self.weight, self.x.shape, self.x, self.norm, stride=stride)
            dweight = conv1x1_weight_grad(self.dy, self.x, self.norm, stride=stride)
            assert sums is not None
            return {"dz": dz, "gradient of bias": sums[0, 0, 0], "gradient of weight": dweight}

    small = 2 * channels * out_channels
    read, written = 2 * (pixels if stride == 1 else kept) * channels, 2 * kept * out_channels
    forward = read + written + small
    backward = 2 * written + 2 * pixels * channels * 2 + read + 2 * small + small
    product = 2 * kept * channels * out_channels
    return Case(
        "conv1x1",
        f"{'x'.join(map(str, shape))}-{out_channels}" + (f"-stride{stride}" if stride > 1 else ""),
        inputs,
        reference,
        Fused,
        ("x", "weight", "scale", "bias"),
        {"forward": forward, "backward": backward, "both": forward + backward},
        {"forward": product, "backward": 2 * product, "both": 3 * product},
        others={"plain": plain},
        fused_is_work=True,
        compiled=compiled,
    )
