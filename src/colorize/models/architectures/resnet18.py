"""Autoencoder whose encoder is the beginning of ResNet-18: document 004.

"Image Colorization using Convolutional Autoencoder", Hossain, section 3.1, after Melas-Kyriazi's "Image
Colorization with Convolutional Neural Networks", 2018. Encoder: the first 6 children of ResNet-18 (conv1,
bn1, relu, maxpool, layer1, layer2: 128 channels at an eighth of the size), with a first convolution for one
channel. Decoder: "the same type of convolutional layers but in reverse, with upsampling"; ours has the
channels of Melas-Kyriazi. Learning rate, batch, epochs and sizes are the document's. It gives neither loss
nor optimizer nor last activation: ours are those of the regression head and Adam. It replaces weights trained
on Places365 by "the default ResNet", without saying whether that was trained on ImageNet. So `weights`, a
path or URL with `sha256`, is optional, and everything is trained.
"""

from collections import OrderedDict

from torch import nn

from colorize.models.base import Colorizer, Setup
from colorize.models.blocks import kaiming_, upsampling_decoder
from colorize.models.heads import Head
from colorize.models.resnet import WIDTHS, Trunk, load_torchvision_


class Model(Colorizer):
    net: nn.Sequential

    def __init__(self, head: Head, setup: Setup, weights: str = "", sha256: str = "") -> None:
        super().__init__(head, setup)
        trunk, decoder = Trunk(2), upsampling_decoder(WIDTHS[1], head.channels, batch_norm=True)
        self.net = nn.Sequential(OrderedDict(encoder=trunk, decoder=decoder))
        kaiming_(self.net)
        if setup.pretrained is not None:
            load_torchvision_(trunk, setup.pretrained, weights)
            self.pretrained = ("net.encoder",)
