"""A model's inputs, made of a client's samples batch by batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from fedresearch.local.objective import Prepare, unchanged
from fedresearch.local.transforms import Transform
from fedresearch.local.update import Tensors

# Samples that are made at once, at least one batch: few calls, and little memory for the floats made of bytes.
_AT_ONCE = 1024


@dataclass(frozen=True)
class Inputs:
    """Makes inputs for the training.

    Attributes
    ----------
    prepare : callable
        Makes the model's inputs of samples, at the end.
    transforms : sequence of Transform
        The transforms of the samples before it, in their order.
    """

    prepare: Prepare = unchanged
    transforms: Sequence[Transform] = ()

    def split(self, samples: Tensor, batch_size: int, generator: Generator) -> Iterator[Tensor]:
        """Yield the inputs of an epoch's batches for its samples, which are in the epoch's order."""
        drawn = self.draw(samples.shape, generator)
        num = batch_size * max(1, _AT_ONCE // batch_size)
        for start in range(0, len(samples), num):
            rows = slice(start, start + num)
            numbers = [{name: tensor[rows].to(samples.device) for name, tensor in each.items()} for each in drawn]
            # A full batch is a view of the client's samples, which a transform may change in place.
            own = samples[rows].clone() if self.transforms else samples[rows]
            yield from self.make(own, numbers).split(batch_size)

    def draw(self, shape: Sequence[int], generator: Generator) -> list[Tensors]:
        """Return each transform's random numbers for samples of a shape."""
        return [transform.draw(shape, generator) for transform in self.transforms]

    def make(self, samples: Tensor, drawn: Sequence[Tensors]) -> Tensor:
        """Return the inputs for samples and the transforms' random numbers."""
        for transform, numbers in zip(self.transforms, drawn, strict=True):
            samples = transform.apply(samples, numbers)
        return self.prepare(samples)
