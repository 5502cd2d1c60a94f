"""Every option of every group is composed, checked and built, so every option has a test."""

from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

import pytest
import torch

from fedresearch import config
from fedresearch.config.schema import LISTS
from tests import directories

CONF = Path(__file__).parents[1] / "conf"
GROUPS = (
    "dataset",
    "partitioner",
    "model",
    "optimizer",
    "schedule",
    "strategy",
    "sampling",
    "evaluate_sampling",
    "availability",
    "transform",
    "channel",
    "metrics",
    "hardware",
    "tracker",
    "experiment",
    "tune",
)

# An option of one of these groups changes nothing that an option of another one needs, so one run shows several.
TOGETHER = (
    *("optimizer", "schedule", "sampling", "evaluate_sampling", "availability", "transform", "channel", "metrics"),
    "tracker",
)

# The other overrides that an option needs; the rest work with the defaults.
WITH = {
    "dataset=diabetes": ["partitioner=iid"],
    "dataset=shakespeare": ["model=char_lstm"],
    "partitioner=natural_id": ["dataset=fcube"],
    "partitioner=grouped_natural_id": ["dataset=fcube"],
    "partitioner=exponential": ["federation.num_supernodes=5"],
    "partitioner=file": [f"partitioner.path={Path(__file__).parent / 'partition.json'}"],
    "model=char_lstm": ["dataset=shakespeare"],
    "experiment=mcmahan2017_table1_2nn": ["partitioner=iid", "federation.fraction_train=0.1"],
    "model=cnn_mcmahan": ["dataset=mnist"],
    "model=lenet": ["dataset=cifar10"],
    "model=resnet18": ["dataset=cifar10"],
    "hardware=gpu": [] if torch.cuda.is_available() else ["hardware.device=cpu"],
    "strategy=fedbn": ["model=resnet18", "model.norm=batch", "local.batch_size=0"],
}
# test_hub.py tests their loading, with fixtures that look like the Hub.
FROM_THE_HUB = {"mnist", "fashion_mnist", "cifar10", "cifar100", "femnist", "shakespeare"}


# Trackers whose packages are extras that the tests need not have.
NOT_INSTALLED = {name for name in ("mlflow", "trackio") if find_spec(name) is None}


def options(group):
    return sorted({path.stem for path in (CONF / group).glob("[!_]*.yaml")} - NOT_INSTALLED)


ALL = [{group: option} for group in GROUPS if group not in TOGETHER for option in options(group)]
ALL += [
    {group: option for group, option in zip(TOGETHER, each, strict=True) if option}
    for each in zip_longest(*map(options, TOGETHER))
]


def test_the_groups_are_the_folders():
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == set(GROUPS)


@pytest.mark.parametrize("chosen", ALL, ids=lambda chosen: ",".join(f"{group}={chosen[group]}" for group in chosen))
def test_every_option_composes_is_checked_and_built(compose, chosen, tmp_path):
    from fedresearch.config.input_shape import input_shape
    from fedresearch.experiment.builder import Builder
    from fedresearch.experiment.experiment import Experiment
    from fedresearch.experiment.model import build_model
    from fedresearch.experiment.preparation import prepare
    from fedresearch.superlink.connection import SuperLink

    words = [f"{group}={option}" for group, option in chosen.items()]
    config, choices = compose(*words, *WITH.get(words[0], []), f"cache_dir={tmp_path}")
    for group, option in chosen.items():
        assert choices[group] == (f"[{option}]" if group in LISTS else option)
    experiment = Experiment(config, choices)
    declares = config.dataset["declares"]
    model = build_model(config, choices)
    kind = torch.int64 if declares["input"] == "tokens" else torch.float32
    outputs = model(torch.zeros(2, *input_shape(config), dtype=kind))
    assert outputs.shape == (2, declares["num_classes"])
    assert experiment.strategy.summary
    assert experiment.tracker.log
    if choices["hardware"] == "superlink":  # not a Grid: tests/test_superlink.py
        assert Builder(choices).build("hardware", config.hardware, SuperLink, num_supernodes=2)
    elif choices["dataset"] not in FROM_THE_HUB:
        prepare(experiment)
        assert list(experiment.grid.get_node_ids())
        assert all(len(rows) for rows in experiment.data.train)


@pytest.mark.parametrize(
    "words",
    [
        ("strategy=scaffold", "channel=[topk,noise]", "+model.extra={a: 1}", "strategy.client._target_=mine.Update"),
        ("experiment=li2020_fedprox_synthetic", "dataset={alpha: 0}", "local={epochs: 2}", "++dataset.alpha=1"),
        ("partitioner=iid", "partitioner.alpha=.3"),
        ("seed=1,2",),
        ("model=null", "seed=1"),
        ("~strategy",),
        ("model=mine", "model.width=3", "seed=1"),
        ("model=mine", "strategy=fedprox"),
        ("local.epochs=0", "+federation.unknown=1"),
    ],
)
def test_what_tests_compose_is_what_the_command_line_composes(words, tmp_path):
    """They compose the options once and set the values, also where the options are the user's; tests/directories.py."""
    folders = [tmp_path] * ("model=mine" in words)

    def composed(compose):
        try:
            return compose()
        except Exception as error:
            return type(error), str(error)

    (tmp_path / "model").mkdir()
    for width in [1, 2] if folders else [1]:
        (tmp_path / "model" / "mine.yaml").write_text(f"{{_target_: mine.Model, width: {width}}}")
        by_tests = composed(lambda: directories.compose(*words, config_dir=folders[0] if folders else None))
        assert by_tests == composed(lambda: config.compose(CONF, words, folders)[:2])


def test_a_dataset_that_differs_from_its_declaration_is_rejected(compose):
    from fedresearch.errors import InputError
    from fedresearch.experiment.experiment import Experiment

    experiment = Experiment(*compose("dataset.declares.input_shape=[1,8,9]"))
    with pytest.raises(InputError, match=r"dataset=digits: train holds inputs of shape \[1, 8, 8\], but dataset\.decl"):
        _ = experiment.data


def test_a_dataset_without_a_declaration_is_rejected(compose, tmp_path):
    from fedresearch.errors import InputError

    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text("_target_: mine.load\ndeclares: {input: image, num_classes: 2}")
    with pytest.raises(InputError, match=r"dataset\.declares\.input_shape is missing; its option's YAML must give it"):
        compose("dataset=mine", config_dir=tmp_path)


def test_images_smaller_than_usual_for_a_model_cause_a_warning(compose):
    from fedresearch.experiment.advice import _unusual_model

    (line,) = _unusual_model(*compose("model=resnet18", "dataset=digits"))
    assert line.startswith("model=resnet18 is made for images of 32 x 32 pixels or more, and dataset=digits has 8 x 8")
    for other in (("model=resnet18", "dataset=cifar10"), ("model=mlp",), ("model=mlp", "dataset=fcube")):
        assert not [*_unusual_model(*compose(*other))]
