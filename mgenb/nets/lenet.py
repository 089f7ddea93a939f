"""LeNet-5 with three convolutions of 6, 16 and 120 maps (MGE Fig. 7 shows its third convolutional layer)."""

from torch import nn

from mgenb.nets.layers import chain


def lenet(channels: int, classes: int) -> nn.Module:
    """Return LeNet-5 (LeCun et al. 1998) with ReLU and max pooling, for 32 x 32 inputs."""
    return chain(
        conv1=nn.Conv2d(channels, 6, 5),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(6, 16, 5),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        conv3=nn.Conv2d(16, 120, 5),
        relu3=nn.ReLU(),
        flatten=nn.Flatten(),
        fc1=nn.Linear(120, 84),
        relu4=nn.ReLU(),
        fc2=nn.Linear(84, classes),
    )
