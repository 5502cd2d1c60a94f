"""ResNet-18 for small images: torchvision's, with the stem that is usual for CIFAR."""

from functools import partial

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet


class ResNet18(ResNet):  # type: ignore[misc]  # torchvision has no types
    """ResNet-18 (He et al. 2016, arXiv:1512.03385) with a 3 x 3 stem of stride 1 and no max pooling.

    Parameters
    ----------
    input_shape : tuple of int
        Channels, height and width of an image.
    num_classes : int
        Number of outputs.
    norm : {"group", "batch"}
        Group normalisation has no running statistics, which clients with different data cannot share (Hsieh et al.
        2020, arXiv:1910.00189). Batch normalisation has them as buffers, one of them an integer.
    groups : int
        Groups of channels in each group normalisation, a divisor of 64; two in Reddi et al. 2021 (arXiv:2003.00295,
        appendix C.1). Batch normalisation ignores it.

    Raises
    ------
    ValueError
        If the input is not an image, or if the normalisation is unknown.
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, *, norm: str = "group", groups: int = 2) -> None:
        if len(input_shape) != 3:
            raise ValueError(f"ResNet18 needs images (channels, height, width), got input_shape={tuple(input_shape)}")
        if norm not in ("group", "batch"):
            raise ValueError(f"norm must be group or batch, got {norm}; try model.norm=group")
        if norm == "group" and (groups < 1 or 64 % groups):
            raise ValueError(
                f"groups must divide 64, the channels of the first layer, got {groups}; try model.groups=2"
            )
        norm_layer = partial(nn.GroupNorm, groups) if norm == "group" else nn.BatchNorm2d
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=num_classes, norm_layer=norm_layer)
        self.conv1 = nn.Conv2d(input_shape[0], 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")  # like the other convolutions
        self.maxpool = nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # torch.func does not support in-place writes
