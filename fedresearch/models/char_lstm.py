"""The next-character LSTM of the FedAvg paper (McMahan et al. 2017, arXiv:1602.05629, section 3)."""

from torch import Tensor, nn


class CharLSTM(nn.Module):
    """Embedding of 8, two LSTM layers of 256 units, and a linear output at the last position.

    PyTorch's LSTM supports ``torch.func.functional_call`` and ``grad``, but not ``vmap``.

    Parameters
    ----------
    input_shape : tuple of int
        One entry: the number of characters from which the next one is predicted (80 in the paper).
    num_classes : int
        Size of the vocabulary, of the input and of the output.

    Raises
    ------
    ValueError
        If the input is not a sequence.
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise ValueError(f"CharLSTM needs sequences (length,), got input_shape={tuple(input_shape)}")
        self.embedding = nn.Embedding(num_classes, 8)
        self.lstm = nn.LSTM(8, 256, num_layers=2, batch_first=True)
        self.output = nn.Linear(256, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of shape ``(n, num_classes)`` for int64 characters of shape ``(n, length)``."""
        states, _ = self.lstm(self.embedding(x))
        logits: Tensor = self.output(states[:, -1])
        return logits
