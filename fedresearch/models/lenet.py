"""The CNN of Flower's PyTorch tutorial, from PyTorch's "60 Minute Blitz", which is similar to LeNet-5."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class LeNet(nn.Module):
    """Two unpadded 5 x 5 convolutions (6, 16 channels), each with ReLU and 2 x 2 max pooling; 120 and 84 units; output.

    For 32 x 32 colour images the layers have the tutorial's names and order, and so its initial weights for a seed.

    Parameters
    ----------
    input_shape : tuple of int
        Channels, height and width of an image, at least 16 x 16 pixels.
    num_classes : int
        Number of outputs.

    Raises
    ------
    ValueError
        If the input is not an image of this size.
    """

    memory_format = torch.channels_last
    """Images in this format train faster on a CPU."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < 16:
            raise ValueError(
                "LeNet needs images (channels, height, width) of at least 16 x 16 pixels, "
                f"got input_shape={tuple(input_shape)}"
            )
        channels, *sides = input_shape
        # A convolution takes 4 from a side, a pooling halves it: 32 -> 28 -> 14 -> 10 -> 5.
        height, width = (((side - 4) // 2 - 4) // 2 for side in sides)
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * height * width, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of shape ``(n, num_classes)`` for images of shape ``(n, *input_shape)``."""
        # The tutorial pools what ReLU returns: the same values and gradients, for four times as many ReLUs.
        x = functional.relu(functional.max_pool2d(self.conv1(x), 2))
        x = functional.relu(functional.max_pool2d(self.conv2(x), 2))
        x = functional.relu(self.fc1(x.flatten(1)))
        x = functional.relu(self.fc2(x))
        logits: Tensor = self.fc3(x)
        return logits
