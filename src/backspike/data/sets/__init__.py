"""All data sets, in the order of the list."""

from . import cifar, digits, heidelberg, mnist, sequential
from .dvs128_gesture import DVS128_GESTURE
from .dvs_cifar10 import DVS_CIFAR10
from .imagenet import IMAGENET
from .n_caltech101 import N_CALTECH101
from .nmnist import NMNIST
from .spoken_digits import SPOKEN_DIGITS
from .yinyang import YINYANG

SETS = (
    digits.DIGITS,
    digits.DIGITS_DVS,
    mnist.MNIST,
    mnist.FASHION_MNIST,
    cifar.CIFAR10,
    cifar.CIFAR100,
    NMNIST,
    DVS_CIFAR10,
    N_CALTECH101,
    DVS128_GESTURE,
    heidelberg.SHD,
    heidelberg.SSC,
    IMAGENET,
    mnist.MNIST_DVS,
    cifar.CIFAR10_DVS_SIMULATED,
    sequential.SMNIST,
    sequential.PSMNIST,
    sequential.SCIFAR10,
    YINYANG,
    SPOKEN_DIGITS,
)
