"""Small image sets for the demo, the tests and the benchmarks, and larger ones by name. Nothing here downloads anything unasked."""

from fxprune.data.augment import Augmentation as Augmentation
from fxprune.data.cifar import cifar10_jpeg as cifar10_jpeg
from fxprune.data.digits import digits as digits
from fxprune.data.mnist import mnist as mnist
from fxprune.data.named import Images as Images
from fxprune.data.named import load as load
from fxprune.data.split import Split as Split
