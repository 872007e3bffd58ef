"""The recipes of this package: one file per paper, and small ones.

Each is a function that returns a `Recipe`. `NAMES` lists them all, with the accuracies that the
papers report and that were measured here.
"""

from __future__ import annotations

from ..errors import RecipeError, nearest
from . import li2024, wang2023, yang2020
from .bittar2022 import shd, ssc
from .li2024 import (
    ablated,
    cifar10,
    cifar10_crop_flip,
    cifar100,
    cifar100_resnet18,
    dvs128_gesture,
    dvs_cifar10,
    dvs_cifar10_resnet18,
    imagenet,
    n_caltech101,
    n_caltech101_resnet18,
)
from .park2023 import cifar10_resnet20, cifar10_resnet32, cifar10_vgg16
from .recipe import Recipe, from_source
from .sequences import (
    psmnist,
    psmnist_rows,
    scifar10,
    smnist,
    smnist_pixels,
    spoken_digits,
    yinyang,
)
from .shipped import GRADES, Reported, Shipped
from .small import (
    cifar10_10min,
    cifar10_30min,
    cifar10_60min,
    cifar10_small,
    digits,
    digits_dvs,
    mnist,
)
from .source import Source, is_file
from .wang2023 import cifar10_resnet19, cifar100_resnet19
from .yang2020 import cifar10_tsbp, mnist_tsbp, nmnist_tsbp

NAMES = {
    "digits": Shipped(digits, here="99.35 ± 0.16 %, 3 seeds, 5 s each"),
    "digits-dvs": Shipped(digits_dvs, here="98.33 ± 0.28 %, 3 seeds, 17-20 s each"),
    "mnist": Shipped(mnist, here="99.32 ± 0.04 %, 3 seeds, 2.5-2.7 min each"),
    "cifar10-small": Shipped(
        cifar10_small, here="76.7 % after 10 min (benchmarks/cifar_race.py), 1 seed"
    ),
    "cifar10-10min": Shipped(
        cifar10_10min, here="81.45 ± 0.29 %, 3 seeds, 5.0-7.1 min each (Zen 3)"
    ),
    "cifar10-30min": Shipped(cifar10_30min, here="85.14 ± 0.35 %, 3 seeds, 23-27 min (Zen 3)"),
    "cifar10-60min": Shipped(cifar10_60min, here="86.78 ± 0.21 %, 3 seeds, 46-49 min each (Zen 3)"),
    "cifar10": Shipped(cifar10, li2024.reported(95.40, 0.12)),
    "cifar10-crop-flip": Shipped(cifar10_crop_flip, li2024.reported(94.30, 0.22)),
    "cifar100": Shipped(cifar100, li2024.reported(77.48, 0.14)),
    "imagenet": Shipped(imagenet, li2024.reported(67.46)),
    "dvs-cifar10": Shipped(dvs_cifar10, li2024.reported(83.97, 0.12)),
    "dvs-cifar10-baseline": Shipped(ablated(dvs_cifar10, "baseline"), li2024.reported(82.70)),
    "dvs-cifar10-two": Shipped(ablated(dvs_cifar10, "two"), li2024.reported(83.20)),
    "dvs-cifar10-msg": Shipped(ablated(dvs_cifar10, "msg"), li2024.reported(83.30)),
    "dvs-cifar10-resnet18": Shipped(dvs_cifar10_resnet18, li2024.reported(79.35, 0.34)),
    "dvs-cifar10-resnet18-baseline": Shipped(
        ablated(dvs_cifar10_resnet18, "baseline"), li2024.reported(72.90)
    ),
    "dvs-cifar10-resnet18-two": Shipped(
        ablated(dvs_cifar10_resnet18, "two"), li2024.reported(74.40)
    ),
    "dvs-cifar10-resnet18-msg": Shipped(
        ablated(dvs_cifar10_resnet18, "msg"), li2024.reported(78.30)
    ),
    "n-caltech101": Shipped(n_caltech101, li2024.reported(77.70, 0.15)),
    "n-caltech101-resnet18": Shipped(n_caltech101_resnet18, li2024.reported(70.81, 0.31)),
    "cifar100-resnet18": Shipped(cifar100_resnet18, li2024.reported(69.21)),
    "cifar100-resnet18-baseline": Shipped(
        ablated(cifar100_resnet18, "baseline"), li2024.reported(68.79)
    ),
    "cifar100-resnet18-two": Shipped(ablated(cifar100_resnet18, "two"), li2024.reported(68.98)),
    "cifar100-resnet18-msg": Shipped(ablated(cifar100_resnet18, "msg"), li2024.reported(69.08)),
    "dvs128-gesture": Shipped(dvs128_gesture),
    "nmnist-tsbp": Shipped(nmnist_tsbp, yang2020.reported(99.29)),
    "mnist-tsbp": Shipped(mnist_tsbp, yang2020.reported(99.49)),
    "cifar10-tsbp": Shipped(cifar10_tsbp, yang2020.reported(88.96)),
    "cifar10-resnet19": Shipped(cifar10_resnet19, wang2023.reported(95.35)),
    "cifar100-resnet19": Shipped(cifar100_resnet19, wang2023.reported(75.98)),
    "cifar10-vgg16": Shipped(cifar10_vgg16),
    "cifar10-resnet20": Shipped(cifar10_resnet20),
    "cifar10-resnet32": Shipped(cifar10_resnet32),
    "shd": Shipped(shd),
    "ssc": Shipped(ssc),
    "smnist": Shipped(smnist),
    "smnist-pixels": Shipped(smnist_pixels),
    "psmnist": Shipped(psmnist),
    "psmnist-rows": Shipped(psmnist_rows, here="95.5 ± 0.1 %, 3 seeds"),
    "scifar10": Shipped(scifar10, here="52.3 ± 0.4 %, 3 seeds"),
    "yinyang": Shipped(yinyang, here="97.2 ± 0.3 %, 3 seeds"),
    "spoken-digits": Shipped(spoken_digits, here="81.2 ± 3.7 % on another speaker, 3 seeds"),
}
__all__ = ["GRADES", "NAMES", "Reported", "Shipped", "find", "from_file", "get", "is_file"]


def get(name: str) -> Recipe:
    """The recipe with this name. Raises RecipeError, with similar names, if there is none."""
    if name not in NAMES:
        raise RecipeError(f"unknown recipe {name!r}{nearest(name, NAMES)}")
    return NAMES[name].make()


def find(word: str) -> Recipe:
    """The recipe with this name, or that of a Python file, as "mine.py:recipe".

    Raises RecipeError.
    """
    return from_file(word) if is_file(word) else get(word)


def from_file(word: str) -> Recipe:
    """The recipe that a function in your own Python file returns: "mine.py:recipe".

    The recipe may hold functions and classes of the file. Imports the file, which runs its code.
    Without a function's name, the function is `recipe`. Raises RecipeError.
    """
    return from_source(Source.read(word))
