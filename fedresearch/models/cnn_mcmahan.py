"""The CNN of the FedAvg paper (McMahan et al. 2017, arXiv:1602.05629, section 3)."""

import torch
from torch import Tensor, nn


class McMahanCNN(nn.Module):
    """Two 5 x 5 convolutions (32, 64 channels; padded), each with ReLU and 2 x 2 max pooling; 512 units; output.

    The padding follows from the paper's number of parameters, 1,663,370 for MNIST; its text does not mention it.

    Parameters
    ----------
    input_shape : tuple of int
        Channels, height and width of an image, at least 4 x 4 pixels.
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
        if len(input_shape) != 3 or min(input_shape[1:]) < 4:
            raise ValueError(
                "McMahanCNN needs images (channels, height, width) of at least 4 x 4 pixels, "
                f"got input_shape={tuple(input_shape)}"
            )
        channels, height, width = input_shape
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (height // 4) * (width // 4), 512),
            nn.ReLU(),
            nn.Linear(512, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of shape ``(n, num_classes)`` for images of shape ``(n, *input_shape)``."""
        logits: Tensor = self.layers(x)
        return logits
