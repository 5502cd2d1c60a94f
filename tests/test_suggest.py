"""The suggestion for a mistyped key or option composes."""

import shlex

import pytest
from hydra.errors import HydraException

from fedresearch.config import explain

SLIPS = {
    "lr=0.1": "optimizer.lr=0.1",
    "LR=0.1": "optimizer.lr=0.1",
    "learning_rate=0.1": "optimizer.lr=0.1",
    "optimizer.LR=0.1": "optimizer.lr=0.1",
    "Optimizer.lr=0.1": "optimizer.lr=0.1",
    "rounds=5": "federation.num_rounds=5",
    "federation.num_round=3": "federation.num_rounds=3",
    "epochs=2": "local.epochs=2",
    "batch_size=32": "local.batch_size=32",
    "batch-size=32": "local.batch_size=32",
    "alpha=0.1": "partitioner.alpha=0.1",
    "partitioner.alpah=1": "partitioner.alpha=1",
    "partitioner=iid alpha=0.1": "partitioner=dirichlet partitioner.alpha=0.1",
    "mu=0.1": "strategy=fedprox strategy.server.proximal_mu=0.1",
    "strategy.mu=0.1": "strategy=fedprox strategy.server.proximal_mu=0.1",
    "strategy.server.proximal_mu=0.1": "strategy=fedprox strategy.server.proximal_mu=0.1",
    "strategy.client.mu=1": "strategy=moon strategy.client.mu=1",
    "strategy=fednova mu=0.1": "strategy.server.proximal_mu=0.1",
    "num_clients=10": "federation.num_supernodes=10",
    "clients_per_round=0.2": "federation.fraction_train=0.2",
    "fraction=0.2": "federation.fraction_train=0.2 or validation.fraction=0.2",
    "device=cuda": "hardware=gpu hardware.device=cuda",
    "gamma=0.5": "schedule=step optimizer.schedule.gamma=0.5",
    "norm=batch": "model=resnet18 model.norm=batch",
    "partitioner=file partitioner.partition_by=label": "partitioner=dirichlet partitioner.partition_by=label",
    "optimizer=adam strategy=fedavgm optimizer.momentum=0.5": "optimizer=sgd optimizer.momentum=0.5",
    "'channel=[topk'": "'channel=[topk]'",
    "'optimizer.lr=0.1]'": "'optimizer.lr=[0.1]', or for one text optimizer.lr='\"0.1]\"'",
    "algorithm=scaffold": "strategy=scaffold",
    "strateggy=fedavg": "strategy=fedavg",
    "dataset=CIFAR10": "dataset=cifar10",
    "dataset=fashion-mnist": "dataset=fashion_mnist",
    "model=cnn": "model=cnn_mcmahan",
    "model=resnet": "model=resnet18",
    "optimizer=SGD": "optimizer=sgd",
    "hardware=cuda": "hardware=gpu",
    "partitioner=dir": "partitioner=dirichlet",
    "partitioner=non-iid": "partitioner=dirichlet",
    "strategy=fedavgg": "strategy=fedavg",
    "strategy=FedProx": "strategy=fedprox",
}


def refused(compose, words):
    with pytest.raises(HydraException) as raised:
        compose(*shlex.split(words))
    return str(explain(raised.value))


@pytest.mark.parametrize(("typed", "meant"), SLIPS.items(), ids=SLIPS)
def test_a_slip_gets_what_to_type(compose, typed, meant):
    assert refused(compose, typed).split("; ")[1] == f"try {meant}"


@pytest.mark.parametrize(
    "typed",
    ["alpha=0.1", "partitioner=iid alpha=0.1", "mu=0.1", "gamma=0.5", "Optimizer.lr=0.1", "model=cnn dataset=mnist"],
)
def test_suggestions_compose(compose, typed):
    *kept, _ = shlex.split(typed)
    suggested = refused(compose, typed).split("; ")[1].removeprefix("try ")
    compose(*shlex.split(suggested), "dataset=mnist") if typed.startswith("model") else compose(
        *[word for word in kept if word.partition("=")[0] not in suggested], *shlex.split(suggested)
    )


def test_an_unknown_key_without_a_similar_one_gets_no_suggestion(compose):
    assert "try" not in refused(compose, "zzz=1")
    assert "try" not in refused(compose, "optimizer=zzz")


@pytest.mark.parametrize(
    ("typed", "listed"),
    {
        "strategy=krum strategy.zzz=1": "strategy has buffers, client, pooled, server, weighted_by",
        "strategy=fedtrimmedavg strategy.zzz=1": "strategy has buffers, client, pooled, server, weighted_by",
        "model=resnet18 model.zzz=1": "model has groups, norm",
        "hardware.zzz=1": "hardware has no keys",
        "dataset.zzz=1": "dataset has no keys",
        "dataset.declares.zzz=1": "dataset.declares has columns, input, input_shape, label, num_classes",
    }.items(),
)
def test_what_options_declare_is_not_listed_among_their_keys(compose, typed, listed):
    assert refused(compose, typed).split("; ")[-1] == listed


@pytest.mark.parametrize(
    ("typed", "line"),
    {
        "experiment=sub/li2022_fcube": "experiment=sub/li2022_fcube does not exist; try experiment=li2022_fcube; ",
        "tune=sub/x": "tune=sub/x does not exist; tune may be lr",
        "model=sub/mlp": "model=sub/mlp does not exist; try model=mlp; ",
        "'channel={topk'": "cannot read 'channel={topk'; see --help for the options of channel",
    }.items(),
)
def test_what_is_not_the_name_of_an_option_is_shown_as_it_was_typed(compose, typed, line):
    assert refused(compose, typed).startswith(line)


@pytest.mark.parametrize("extra", ["optuna", "joblib"])
def test_a_plugin_of_hydra_that_is_not_installed_names_the_extra(extra):
    from hydra.errors import MissingConfigException

    group = {"optuna": "sweeper", "joblib": "launcher"}[extra]
    error = MissingConfigException("no such", f"hydra/{group}/{extra}", ["basic"])
    assert str(explain(error)).endswith(
        f"needs a package that is not installed; try pip install 'fedresearch[{extra}]'"
    )
