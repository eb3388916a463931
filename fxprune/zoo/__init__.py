"""The networks of the papers, written to be read, traced and pruned.

Every network has an attribute ``input_size``, the channels, height and width of one image, and can be traced by ``torch.fx``
with a batch size that stays open.
"""

from fxprune.zoo.densenet import DenseNet as DenseNet
from fxprune.zoo.densenet import densenet40 as densenet40
from fxprune.zoo.lenet import MLP as MLP
from fxprune.zoo.lenet import LeNet5 as LeNet5
from fxprune.zoo.lenet import lenet5 as lenet5
from fxprune.zoo.lenet import lenet300 as lenet300
from fxprune.zoo.lenet import mlp as mlp
from fxprune.zoo.preresnet import PreActResNet as PreActResNet
from fxprune.zoo.preresnet import preresnet as preresnet
from fxprune.zoo.preresnet import resnet164 as resnet164
from fxprune.zoo.resnet import ResNet as ResNet
from fxprune.zoo.resnet import resnet20 as resnet20
from fxprune.zoo.resnet import resnet32 as resnet32
from fxprune.zoo.resnet import resnet44 as resnet44
from fxprune.zoo.resnet import resnet56 as resnet56
from fxprune.zoo.resnet import resnet110 as resnet110
from fxprune.zoo.vgg import VGG as VGG
from fxprune.zoo.vgg import tiny_vgg as tiny_vgg
from fxprune.zoo.vgg import vgg11_bn as vgg11_bn
from fxprune.zoo.vgg import vgg13_bn as vgg13_bn
from fxprune.zoo.vgg import vgg16_bn as vgg16_bn
from fxprune.zoo.vgg import vgg19_bn as vgg19_bn
from fxprune.zoo.vgg import vgg_bn as vgg_bn
from fxprune.zoo.weights import load_pretrained as load_pretrained
