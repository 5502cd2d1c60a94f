"""Loads the dataset, and selects the rows of each client."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedresearch.config.schema import Config
from fedresearch.data.partition import columns, import_flower_datasets, partition_rows, split_validation
from fedresearch.data.partition_cache import CachedRows
from fedresearch.data.source import Rows, Samples, Source, check_source
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
    rows = _rows(config, builder, source.train)

    def validation_seed(partition_id: int) -> int:
        fixed = config.validation.seed
        return derive_seed(config.seed, "validation", partition_id) if fixed is None else fixed

    splits = [split_validation(r, config.validation.fraction, validation_seed(i)) for i, r in enumerate(rows)]
    train, validation = zip(*splits, strict=True)
    return train, validation


def _rows(config: Config, builder: Builder, samples: Samples) -> Sequence[Rows]:
    """Return the rows of each client; those that Flower Datasets alone makes of plain values are cached."""
    options = dict(config.partitioner)
    has_seed = "seed" in options  # an option with a seed, of ours or the user's, is seeded and shuffled by it
    seed = options.pop("seed", None)
    seed = derive_seed(config.seed, "partition") if seed is None else seed
    num_supernodes = config.federation.num_supernodes
    arguments = {"options": options, "seed": seed if has_seed else None, "num_supernodes": num_supernodes}
    cached = CachedRows(config.cache_dir, arguments, samples)
    if known := cached.read():
        return known

    import_flower_datasets()
    from flwr_datasets.partitioner import Partitioner  # takes seconds; known rows do not need it

    make = builder.partial("partitioner", options)
    # A callable without a signature is rejected here, and one that does not return a Partitioner below.
    parameters = builder.build("partitioner", inspect.signature, inspect.Signature, obj=make.func).parameters
    given: dict[str, Any] = {"seed": seed} if has_seed and "seed" in parameters else {}
    if "num_classes" in parameters and "num_classes" not in options:
        given["num_classes"] = len(np.unique(columns(samples)[options["partition_by"]]))
    with seeded_generators(seed):
        partitioner = builder.build("partitioner", make, Partitioner, **given)
        rows = partition_rows(
            samples, partitioner, num_supernodes=num_supernodes, shuffle_seed=seed if has_seed else None
        )
    # Other code, also a function among the arguments, may change without a new version.
    is_of_flower = make.func is type(partitioner) and make.func.__module__.startswith("flwr_datasets.")
    if is_of_flower and str(options).count("'_target_'") == 1:
        cached.write(rows)
    return rows
