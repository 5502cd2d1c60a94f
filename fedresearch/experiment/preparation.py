"""Builds everything that can fail before the run starts."""

from collections.abc import Sequence
from numbers import Real

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.rehearsal import rehearse

# Cohorts are sampled in advance for at most this number of rounds.
_ROUNDS_AHEAD = 1000


def prepare(experiment: Experiment) -> None:
    """Build every part of an experiment and let a client take a step.

    Raises
    ------
    InputError
        If a part cannot be built as configured, or a client cannot take part.
    """
    # The initial arrays before anything trains: the clients use the same instance of the model.
    _ = experiment.initial_arrays, experiment.data, experiment.strategy, experiment.grid, experiment.tracker
    for server_round in range(1, experiment.config.federation.num_rounds + 1):
        experiment.learning_rate(server_round)
    _refuse_drawn_shares(experiment)
    experiment.builder.build("evaluate_sampling", experiment.evaluate_cohort, Sequence, server_round=1)
    _refuse_small_cohorts(experiment)
    if experiment.config.strategy["pooled"] and experiment.client_app.has_own_model:
        raise InputError(
            f"strategy={experiment.choices['strategy']} trains a model for each client, and strategy.pooled=true "
            "leaves one client with all data; try strategy.pooled=false"
        )
    # The optimizer's arguments are checked here, and not by the first client.
    parameter, lr = Parameter(torch.zeros(1)), experiment.config.optimizer["lr"]
    experiment.builder.build("optimizer", experiment.optimizer, Optimizer, params=[parameter], lr=lr)
    rehearse(experiment)
    _ = experiment.measured  # each metric is called once


def _refuse_drawn_shares(experiment: Experiment) -> None:
    """Reject an availability that is not a function: the server and the client must get the same share."""
    for server_round in range(1, 11):  # those of `sampling_sha256`
        experiment.available(server_round)
    for partition_id in range(experiment.training_data.num_partitions):
        first, second = (
            experiment.builder.build(
                "availability", experiment.availability, Real, server_round=1, partition_id=partition_id
            )
            for _ in range(2)
        )
        if first != second:
            raise InputError(
                f"availability={experiment.choices['availability']} must return the same for the same arguments, got "
                f"{first} and {second} for partition {partition_id} in round 1; try random.Random(seed)"
            )


def _refuse_small_cohorts(experiment: Experiment) -> None:
    """Reject an experiment with a cohort smaller than the strategy's rule needs.

    The round loop checks the replies of rounds after the first thousand in the same way.
    """
    if not experiment.shortages(0) or not experiment.num_clients:
        return
    for server_round in range(1, min(experiment.config.federation.num_rounds, _ROUNDS_AHEAD) + 1):
        num_clients = len(set(experiment.sampled(server_round)))
        for needed, instead in experiment.shortages(num_clients) if num_clients else ():
            which = f"the {num_clients} that train in round {server_round}, of {experiment.num_clients} with samples"
            raise InputError(f"{needed}, got {which}; try {instead or 'more clients a round'}")
