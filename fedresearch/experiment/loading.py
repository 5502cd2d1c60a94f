"""Loads the dataset, and selects the rows of each client."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedresearch.config.schema import Config
from fedresearch.data.partition import columns, import_flower_datasets, partition_rows, split_validation
from fedresearch.data.source import Rows, Source, check_source
from fedresearch.experiment.builder import Builder
from fedresearch.federation.generators import seeded_generators
from fedresearch.seeding import derive_seed


def load_source(config: Config, choices: Mapping[str, str | None], builder: Builder) -> Source:
    """Return the dataset, checked against what its YAML declares.

    Raises
    ------
    InputError
        If loading fails, or the dataset differs from its declaration.
    """
    with seeded_generators(derive_seed(config.seed, "dataset")):
        source = builder.build("dataset", config.dataset, Source)
    check_source(source, config.dataset["declares"], str(choices["dataset"]))
    return source


def partition(config: Config, builder: Builder, source: Source) -> tuple[Sequence[Rows], Sequence[Rows]]:
    """Return the rows that each client trains on and validates on, in partition order.

    Raises
    ------
    InputError
        If the partitioner cannot be built, or does not divide the dataset into ``federation.num_supernodes``.
    """
    import_flower_datasets()
    from flwr_datasets.partitioner import Partitioner  # takes seconds; a client with known rows does not need it

    options = dict(config.partitioner)
    has_seed = "seed" in options  # an option with a seed, of ours or the user's, is seeded and shuffled by it
    seed = options.pop("seed", None)
    seed = derive_seed(config.seed, "partition") if seed is None else seed
    make = builder.partial("partitioner", options)
    # A callable without a signature is rejected here, and one that does not return a Partitioner below.
    arguments = builder.build("partitioner", inspect.signature, inspect.Signature, obj=make.func).parameters
    given: dict[str, Any] = {"seed": seed} if has_seed and "seed" in arguments else {}
    if "num_classes" in arguments and "num_classes" not in options:
        given["num_classes"] = len(np.unique(columns(source.train)[options["partition_by"]]))
    with seeded_generators(seed):
        rows = partition_rows(
            source.train,
            builder.build("partitioner", make, Partitioner, **given),
            num_supernodes=config.federation.num_supernodes,
            shuffle_seed=seed if has_seed else None,
        )

    def validation_seed(partition_id: int) -> int:
        fixed = config.validation.seed
        return derive_seed(config.seed, "validation", partition_id) if fixed is None else fixed

    splits = [split_validation(r, config.validation.fraction, validation_seed(i)) for i, r in enumerate(rows)]
    train, validation = zip(*splits, strict=True)
    return train, validation
