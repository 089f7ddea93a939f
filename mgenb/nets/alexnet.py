"""AlexNet for 32 x 32 images: five convolutions and a single linear layer, without dropout."""

from torch import nn

from mgenb.nets.layers import chain, draw_he


def alexnet(channels: int, classes: int) -> nn.Module:
    """Return AlexNet (Krizhevsky et al. 2012) with the widths of its 2014 one-tower version and one linear layer."""
    net = chain(
        conv1=nn.Conv2d(channels, 64, 11, stride=4, padding=5),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(64, 192, 5, padding=2),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        conv3=nn.Conv2d(192, 384, 3, padding=1),
        relu3=nn.ReLU(),
        conv4=nn.Conv2d(384, 256, 3, padding=1),
        relu4=nn.ReLU(),
        conv5=nn.Conv2d(256, 256, 3, padding=1),
        relu5=nn.ReLU(),
        pool3=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc=nn.Linear(256, classes),
    )
    # fan_out, as in VGG, leaves little of the signal after a stem of stride 4: SGD then hardly starts
    draw_he(net, "fan_in")
    return net
