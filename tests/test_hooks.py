"""A strategy as the loop calls it: its draws, the order of its messages, whom it waits for, and what it may return."""

import os
import random
import textwrap

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg, FedXgbCyclic, Strategy

from fedresearch.errors import InputError
from fedresearch.federation.cohort_grid import CohortGrid
from fedresearch.federation.generators import restored_generators, seeded_generators
from fedresearch.federation.hooks import Hooks, disable_waiting, nested_strategies
from fedresearch.hardware.in_process import InProcessGrid
from tests import warm
from tests.conftest import ROOT
from tests.directories import conduct, killed, outcome, rows_of

HOOKS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")


def draws():
    return random.random(), np.random.random(), torch.rand(1).item()


class Drawing(Strategy):
    """Draws in each hook from each global generator, and keeps what it drew."""

    def __init__(self):
        self.drawn = {}

    def _draw(self, hook, server_round, returned):
        self.drawn[hook, server_round] = draws()
        return returned

    def configure_train(self, server_round, arrays, config, grid):
        yield from self._draw("configure_train", server_round, ())  # as the loop iterates, not when it calls

    def aggregate_train(self, server_round, replies):
        return self._draw("aggregate_train", server_round, (None, None))

    def configure_evaluate(self, server_round, arrays, config, grid):
        return self._draw("configure_evaluate", server_round, ())

    def aggregate_evaluate(self, server_round, replies):
        return self._draw("aggregate_evaluate", server_round, None)

    def summary(self):
        """Say nothing."""


def cohort(num_supernodes=9, partition_ids=range(9)):
    return CohortGrid(InProcessGrid(ClientApp(), num_supernodes), [*partition_ids])


def call(strategy, hook, server_round, seed=0, grid=None):
    arguments = ([],) if hook.startswith("aggregate") else (ArrayRecord(), ConfigRecord(), grid or cohort())
    return getattr(Hooks(strategy, seed), hook)(server_round, *arguments)


def all_draws(places, seed=0):
    strategy = Drawing()
    for hook, server_round in places:
        call(strategy, hook, server_round, seed)
    return strategy.drawn


def test_draws_follow_from_the_seed_the_hook_and_the_round_alone():
    places = [(hook, server_round) for server_round in (1, 2, 3) for hook in HOOKS]
    drawn = all_draws(places)
    draws()
    assert all_draws(reversed(places[5:])) == {place: drawn[place] for place in places[5:]}  # as after a resume
    others = [*drawn.values(), *all_draws(places, seed=1).values()]
    assert all(len({each[i] for each in others}) == 24 for i in range(3))


def test_the_generators_are_put_back():
    for reset in (lambda: None, lambda: call(Drawing(), "aggregate_train", 1)):
        random.seed(7), np.random.seed(7), torch.manual_seed(7)
        reset()
        first = draws()
        random.seed(7), np.random.seed(7), torch.manual_seed(7)
        assert first == draws()
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with pytest.raises(ZeroDivisionError), seeded_generators(3):
        draws()[0] / 0
    with restored_generators(), seeded_generators(3):
        first, second = draws(), draws()
    with restored_generators(), seeded_generators(3):
        assert draws() == first
        with seeded_generators(4):
            draws()
        assert draws() == second
    assert state == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


class Numbering(FedAvg):
    """Uses the order of the messages that Flower's hook returns."""

    def configure_train(self, server_round, arrays, config, grid):
        self.seen = [message.metadata.dst_node_id for message in super().configure_train(1, arrays, config, grid)]
        return []


def test_a_strategy_finds_its_messages_in_partition_order():
    """Flower permutes the nodes: of nine, in one of 9! cases into this order."""
    for server_round in (1, 2):
        strategy = Numbering()
        call(strategy, "configure_train", server_round)
        assert strategy.seen == [*range(2, 11)]
    for hook in ("configure_train", "configure_evaluate"):
        messages = call(FedAvg(), hook, 1, grid=cohort(9, [2, 5, 7]))
        assert [message.metadata.dst_node_id - 2 for message in messages] == [2, 5, 7]


class Noting(FedAvg):
    """Draws where it makes its messages to all."""

    def _construct_messages(self, *arguments):
        self.drawn = draws()
        return super()._construct_messages(*arguments)


def test_a_fedavg_that_draws_while_it_makes_its_messages_draws_the_same_again():
    strategies = Noting(), Noting()
    for strategy in strategies:
        call(strategy, "configure_train", 1)
    assert strategies[0].drawn == strategies[1].drawn


def test_a_strategy_that_draws_a_part_of_the_cohort_draws_from_its_own_generator():
    """A fair draw of three of nine: each in a third of the rounds, within 4.5 standard deviations."""
    strategy, grid = FedAvg(fraction_train=0.34), cohort()
    rounds = [call(strategy, "configure_train", server_round, grid=grid) for server_round in [*range(1, 401), 7]]
    *chosen, again = [[message.metadata.dst_node_id for message in messages] for messages in rounds]
    assert chosen[6] == again
    assert all(nodes == sorted(set(nodes)) and len(nodes) == 3 for nodes in chosen)
    counts = np.bincount(np.concatenate(chosen), minlength=11)[2:]
    assert np.abs(counts - 400 / 3).max() < 4.5 * np.sqrt(400 * 1 / 3 * 2 / 3)


@pytest.mark.parametrize(
    "strategy",
    [
        FedAvg(min_train_nodes=99, min_evaluate_nodes=99, min_available_nodes=99),
        DifferentialPrivacyServerSideFixedClipping(FedAvg(min_available_nodes=7), 1.0, 1.0, 5),
        FedXgbCyclic(),
    ],
)
@pytest.mark.timeout(20)
def test_nothing_waits_for_nodes_that_do_not_exist(strategy):
    for hook in ("configure_train", "configure_evaluate"):
        messages = call(strategy, hook, 1, grid=cohort(9, [4]))
        assert [message.metadata.dst_node_id for message in messages] == [6]


def test_a_strategy_and_what_it_wraps_wait_for_nobody():
    """So that one which counts the nodes itself does not wait either."""
    inner = FedAvg(min_available_nodes=7)
    outer = DifferentialPrivacyServerSideFixedClipping(inner, 1.0, 1.0, 5)
    disable_waiting(outer)
    assert [*nested_strategies(outer)] == [outer, inner]
    assert (inner.min_train_nodes, inner.min_evaluate_nodes, inner.min_available_nodes) == (1, 1, 1)


class Returning(Drawing):
    """Returns what it is made with."""

    def __init__(self, returned):
        super().__init__()
        self.returned = returned

    def _draw(self, hook, server_round, returned):
        return self.returned


@pytest.mark.parametrize(
    ("hook", "returned", "said"),
    [
        ("configure_evaluate", None, "configure_evaluate must return messages, got NoneType"),
        ("configure_evaluate", "ab", "configure_evaluate must return messages, got str"),
        (
            "aggregate_train",
            None,
            "aggregate_train must return an ArrayRecord or None, and a MetricRecord or None, got",
        ),
        ("aggregate_train", ({}, MetricRecord()), "aggregate_train must return an ArrayRecord or None, and a Metric"),
        ("aggregate_evaluate", {"loss": 1.0}, "aggregate_evaluate must return a MetricRecord or None, got dict"),
    ],
)
def test_what_a_hook_may_not_return_is_refused(hook, returned, said):
    with pytest.raises(InputError, match=said):
        call(Returning(returned), hook, 1)


def test_a_message_beyond_the_cohort_is_refused():
    grid = cohort(9, [4])
    messages = FedAvg().configure_evaluate(1, ArrayRecord(), ConfigRecord(), cohort(9, [3, 4]))
    with pytest.raises(InputError, match=r"configure_evaluate addresses node 5, which is not in this round's cohort"):
        call(Returning(messages), "configure_evaluate", 1, grid=grid)


@pytest.fixture(scope="module")
def restless(tmp_path_factory):
    """Return a folder with a strategy that draws from everything at every time, and uses the messages' order."""
    folder = tmp_path_factory.mktemp("restless")
    (folder / "strategy").mkdir()
    (folder / "strategy" / "restless.yaml").write_text(
        "defaults: [_cohort, _self_]\nserver: {_target_: restless_strategy.Restless}\n"
    )
    (folder / "restless_strategy.py").write_text(
        textwrap.dedent(
            """
            import random
            import numpy as np
            import torch
            from flwr.app import MetricRecord
            from flwr.serverapp.strategy import FedAvg
            from fedresearch.federation.records import array_record, values

            def draw():
                return random.random() + np.random.random() + torch.rand(1).item()

            class Restless(FedAvg):
                def __init__(self, **options):
                    super().__init__(**options)
                    self.scale = 1e-3 * draw()

                def configure_train(self, server_round, arrays, config, grid):
                    messages = list(super().configure_train(server_round, arrays, config, grid))
                    self.place = {message.metadata.dst_node_id: i for i, message in enumerate(messages)}
                    self.noise = draw()
                    return messages

                def aggregate_train(self, server_round, replies):
                    mean, metrics = super().aggregate_train(server_round, replies)
                    nodes = [reply.metadata.src_node_id for reply in replies]
                    order = sum(self.place[node] * (i + 1) for i, node in enumerate(nodes))
                    far = self.scale * (draw() + self.noise + order)
                    return array_record({name: x + far for name, x in values(mean).items()}), metrics

                def aggregate_evaluate(self, server_round, replies):
                    return MetricRecord({"drawn": draw()})
            """
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture(scope="module")
def undisturbed(restless, tmp_path_factory):
    return conduct(tmp_path_factory.mktemp("undisturbed") / "run", "strategy=restless", config_dir=restless)


def test_a_strategy_that_draws_has_the_same_bits_each_time(tmp_path, restless, undisturbed):
    draws()
    assert outcome(conduct(tmp_path / "run", "strategy=restless", config_dir=restless)) == outcome(undisturbed)
    other = conduct(tmp_path / "other", "strategy=restless", "seed=1", config_dir=restless)
    drawn = [row["clients/drawn"] for row in rows_of(undisturbed)[1:] + rows_of(other)[1:]]
    assert len(set(drawn)) == 8


@pytest.mark.parametrize("checkpoint", [0, 2])
def test_a_strategy_that_draws_is_resumed_to_the_same_bits(tmp_path, restless, undisturbed, checkpoint):
    resumed = killed(undisturbed, tmp_path / "resumed", checkpoint=checkpoint, row=3)
    draws()
    conduct(resumed, "strategy=restless", config_dir=restless)
    assert outcome(resumed) == outcome(undisturbed)


@pytest.mark.slow
def test_a_strategy_that_draws_has_the_same_bits_on_workers(tmp_path, restless, undisturbed):
    elsewhere = conduct(tmp_path / "run", "strategy=restless", "hardware=workers", config_dir=restless)
    assert outcome(elsewhere) == outcome(undisturbed)


@pytest.mark.slow
def test_a_run_of_a_strategy_that_draws_is_reproduced(tmp_path, restless):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, restless))), "WARM_RERUN": "1"}
    options = ["model=logistic", "federation.num_rounds=2", "local.epochs=1", "hydra.run.dir=run", "tracker=none"]
    typed = ["--config-dir", restless, "strategy=restless", *options]
    done = warm.python("-m", "fedresearch.main", *typed, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    done = warm.python("-m", "fedresearch.main", "reproduce", "run", cwd=tmp_path, env=env)
    assert done.stdout.splitlines()[-1] == "identical through round 2", done.stderr
    assert done.returncode == 0


@pytest.fixture
def unseeded(tmp_path, monkeypatch):
    """Return a folder with a dataset, a model and a sampling scheme that draw from all global generators."""
    options = {
        "dataset": "declares: {input: vector, input_shape: [4], num_classes: 2, columns: [label]}",
        "model": "width: 3",
        "sampling": "",
    }
    for group, keys in options.items():
        (tmp_path / group).mkdir()
        (tmp_path / group / "unseeded.yaml").write_text(f"_target_: unseeded_parts.{group}\n{keys}\n")
    (tmp_path / "unseeded_parts.py").write_text(
        textwrap.dedent(
            """
            import random
            import numpy as np
            import torch
            from torch.nn.functional import dropout
            from fedresearch.data.source import Samples, Source

            def draw():
                return random.random() + np.random.random() + torch.rand(1).item()

            def dataset():
                x, y = torch.randn(120, 4) + draw(), torch.randint(0, 2, (120,))
                return Source(train=Samples(x[:100], y[:100]), test=Samples(x[100:], y[100:]))

            class model(torch.nn.Module):
                def __init__(self, input_shape, num_classes, width):
                    super().__init__()
                    weights = np.random.normal(size=(width, 4)) + random.random()
                    self.first = torch.nn.Parameter(torch.tensor(weights, dtype=torch.float32))
                    self.last = torch.nn.Linear(width, num_classes)

                def forward(self, x):
                    return self.last(dropout(x @ self.first.T)) + draw()  # dropout in evaluation too

            def sampling(*, sizes, eligible, cohort_size, server_round, seed):
                return random.sample(eligible, cohort_size)
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_parts_that_draw_have_the_same_bits_each_time(run, unseeded):
    parts = ["dataset=unseeded", "model=unseeded", "sampling=unseeded", "partitioner=iid", "federation.num_rounds=2"]
    parts += ["federation.num_supernodes=6", "local.epochs=1"]
    first = run(*parts, config_dir=unseeded).numbers()
    draws()
    assert run(*parts, config_dir=unseeded).numbers() == first
    other = run(*parts, "seed=1", config_dir=unseeded).numbers()
    for key in ("train/loss", "eval/loss", "clients/loss_mean", "model/sha256"):
        assert len({row[key] for row in first + other}) == 4, key
