"""A model's inputs, made of a client's samples batch by batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_map

from fedresearch.local.generators import seeded_for_client
from fedresearch.local.mixing import Targets, mixed, split
from fedresearch.local.objective import Prepare, unchanged
from fedresearch.local.transforms import Transform
from fedresearch.local.update import Tensors

# Samples that are made at once, at least one batch: few calls, and little memory for the floats made of bytes.
_AT_ONCE = 1024


@dataclass(frozen=True)
class Inputs:
    """Makes a model's inputs of samples.

    Attributes
    ----------
    normalise : callable
        Makes the model's inputs of the transformed samples, at the end.
    transforms : sequence of Transform
        The transforms, in their order.
    """

    normalise: Prepare = unchanged
    transforms: Sequence[Transform] = ()

    def prepare(self, samples: Tensor) -> Tensor:
        """Return the inputs for an evaluation: only fixed transforms change the samples."""
        for transform in self.transforms:
            if transform.is_fixed:
                samples = transform.apply(samples.clone(), {})  # which it may change in place
        return self.normalise(samples)

    def split(
        self, samples: Tensor, targets: Tensor, batch_size: int, generator: Generator
    ) -> Iterator[tuple[Tensor, Targets]]:
        """Yield an epoch's batches for its samples and targets, which are in the epoch's order."""
        drawn = self.draw(samples.shape, batch_size, generator)
        num = batch_size * max(1, _AT_ONCE // batch_size)
        for start in range(0, len(samples), num):
            rows = slice(start, start + num)
            numbers = [{name: tensor[rows].to(samples.device) for name, tensor in each.items()} for each in drawn]
            # A full batch is a view of the client's samples, which a transform may change in place.
            own = samples[rows].clone() if self.transforms else samples[rows]
            made, of_made = self.make(own, targets[rows], numbers)
            yield from zip(made.split(batch_size), split(of_made, batch_size), strict=True)

    def draw(self, shape: Sequence[int], batch_size: int, generator: Generator) -> list[Tensors]:
        """Return each transform's random numbers for an epoch's samples, tensors ``(n, ...)`` by name.

        The generator also seeds the global ones, from which a transform may draw too.
        """
        if not self.transforms:
            return []
        drawn = []
        num_samples, *rest = shape
        sizes = [min(batch_size, num_samples - start) for start in range(0, num_samples, batch_size)]
        with seeded_for_client(torch.device("cpu"), int(torch.randint(2**63 - 1, (), generator=generator))):
            for transform in self.transforms:
                if transform.mixes:
                    batches = [_draw_mixing(transform, (size, *rest), generator) for size in sizes]
                    drawn.append(tree_map(lambda *tensors: torch.cat(tensors), *batches))
                else:
                    drawn.append(transform.draw((num_samples, *rest), generator))
                rest = transform.shape(rest)
        return drawn

    def make(self, samples: Tensor, targets: Tensor, drawn: Sequence[Tensors]) -> tuple[Tensor, Targets]:
        """Return the inputs and targets for samples, their targets and the transforms' random numbers."""
        of_made: Targets = targets
        for transform, numbers in zip(self.transforms, drawn, strict=True):
            if transform.mixes:
                of_made = mixed(of_made, numbers)
            samples = transform.apply(samples, numbers)
        return self.normalise(samples), of_made


def _draw_mixing(transform: Transform, shape: Sequence[int], generator: Generator) -> dict[str, Tensor]:
    """Return the random numbers for one batch, with how far behind each sample its partner is."""
    order = torch.randperm(shape[0], generator=generator)
    return {**transform.draw(shape, generator), "offset": order - torch.arange(shape[0])}
