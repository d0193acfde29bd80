"""The published figures once more, typed apart from configs/paper/published.toml: top-1 error in percent."""

from itertools import product

_INFOPRO = {
    "cifar10/resnet32": {
        "end_to_end": (7.37,),
        "dgl": (8.69, 11.48, 14.17, 16.21),
        "infopro_softmax": (8.13, 8.64, 11.40, 14.23),
        "infopro_contrastive": (7.76, 8.58, 11.13, 12.75),
    },
    "cifar10/resnet110": {
        "end_to_end": (6.50,),
        "dgl": (7.70, 10.50, 12.46, 13.80),
        "infopro_softmax": (7.01, 7.96, 9.40, 10.78),
        "infopro_contrastive": (6.42, 7.30, 8.93, 9.90),
    },
    "svhn/resnet110": {
        "end_to_end": (3.07,),
        "dgl": (3.61, 4.97, 5.35, 5.55),
        "infopro_contrastive": (3.15, 3.28, 3.62, 3.91),
    },
    "stl10/resnet110": {
        "end_to_end": (22.27,),
        "dgl": (24.96, 26.77, 27.33, 27.73),
        "infopro_softmax": (21.02, 21.28, 23.60, 26.05),
    },
}

OWN = {
    **{
        f"{net}_k{k}_{method}": error
        for net, methods in _INFOPRO.items()
        for method, errors in methods.items()
        for k, error in zip((1,) if method == "end_to_end" else (2, 4, 8, 16), errors, strict=True)
    },
    **{f"cifar10/resnet110_k{k}_infopro_balanced": e for k, e in {2: 6.41, 3: 6.74, 4: 6.93}.items()},
    "imagenet/resnet101_k1_end_to_end": 22.03,
    "imagenet/resnet101_k2_infopro_balanced": 21.85,
    "imagenet/resnet152_k1_end_to_end": 21.60,
    "imagenet/resnet152_k2_infopro_balanced": 21.45,
    "imagenet/resnext101_32x8d_k1_end_to_end": 20.64,
    "imagenet/resnext101_32x8d_k2_infopro_balanced": 20.35,
}
"""From the methods' own repositories."""

SECONDARY = {
    "cifar10/resnet32_k1_end_to_end_400_epochs": 6.37,
    "cifar10/resnet110_k1_end_to_end_400_epochs": 5.42,
    "cifar10/resnet32_k8_dgl_man": 8.42,
    "cifar10/resnet32_k16_dgl_man": 9.11,
    "cifar10/resnet110_k32_dgl_man": 9.65,
    "cifar10/resnet110_k55_dgl_man": 9.73,
    "cifar10/resnet32_k16_dgl_hpff": 8.94,
    "cifar10/resnet110_k55_dgl_hpff": 8.74,
    "cifar10/resnet110_k55_auglocal": 100 - 93.96,
    "imagenet/resnet101_k34_auglocal": 100 - 76.70,
    "imagenet/resnet101_k4_infopro_man": 21.73,
    "imagenet/resnet101_k4_infopro_hpff": 21.14,
    "imagenet/resnet101_k4_infopro": 22.81,
}

MEMORY = {
    "cifar10/resnet110_k1_end_to_end": 9.40,
    "cifar10/resnet110_k2_infopro_balanced": 5.38,
    "cifar10/resnet110_k3_infopro_balanced": 4.22,
    "cifar10/resnet110_k4_infopro_balanced": 3.52,
    "imagenet/resnet101_k1_end_to_end": 19.71,
    "imagenet/resnet101_k2_infopro_balanced": 12.06,
    "imagenet/resnet152_k1_end_to_end": 26.29,
    "imagenet/resnet152_k2_infopro_balanced": 15.53,
    "imagenet/resnext101_32x8d_k1_end_to_end": 19.22,
    "imagenet/resnext101_32x8d_k2_infopro_balanced": 11.55,
}
"""GB at the peak of training."""

_SMALL = (("resnet32", 8), ("resnet32", 16), ("resnet110", 32), ("resnet110", 55))
_LARGE = (("resnet34", 16), ("resnet101", 34), ("resnet152", 51))
MLAAN = {
    f"{data}/{net}_k{k}_{base}mlaan"
    for data, nets in {"cifar10": _SMALL, "stl10": _SMALL, "svhn": _SMALL, "imagenet": _LARGE}.items()
    for (net, k), base in product(nets, ("", "dgl_", "predsim_", "infopro_", "auglocal_"))
}
"""MLAAN's grid, which has no figures here."""
