"""Small image sets for the demo, the tests and the benchmarks. Nothing here downloads anything."""

from fxprune.data.cifar import cifar10_jpeg as cifar10_jpeg
from fxprune.data.digits import digits as digits
from fxprune.data.mnist import mnist as mnist
from fxprune.data.split import Split as Split
