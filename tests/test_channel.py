"""What updates pass through: each stage by its equation, and whole runs on every hardware."""

import random
import textwrap

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from fedresearch.channel.clip import Clip
from fedresearch.channel.noise import Noise
from fedresearch.channel.quantise import Quantise
from fedresearch.channel.stage import ChannelStage, Encoded, RowStage, Where
from fedresearch.channel.topk import TopK
from fedresearch.errors import InputError
from fedresearch.experiment.checkpoints import refuse_unsupported_state
from fedresearch.experiment.experiment import Experiment
from fedresearch.federation.channel import Channel
from fedresearch.federation.records import ARRAYS, array_record
from fedresearch.local.train import LocalTrainer
from fedresearch.runs.record import read_record
from tests.directories import conduct, killed, outcome
from tests.test_docs import files

HERE = Where(1, 0)
# Every stage, on a strategy with records of its own that pass unchanged.
ALL = ["strategy=scaffold", "channel=[clip,topk,noise,quantise]", "channel.clip.max_norm=0.7"]
SMALL = ["federation.num_supernodes=6", "federation.num_rounds=3", "local.epochs=1", "model.widths=[8]"]


def exchanged(stage, update, state=()):
    """Return what a stage's server half makes of its client half's result, and that result."""
    encoded = stage.encode(update, HERE, dict(state))
    (decoded,) = stage.decode([Encoded(encoded.update, encoded.extra)], [HERE])
    return decoded, encoded


def test_clip_scales_to_the_norm_and_leaves_what_is_shorter():
    update = torch.tensor([3.0, -4.0])  # of norm 5
    assert exchanged(Clip(2.5), update)[0].tolist() == [1.5, -2.0]
    assert exchanged(Clip(5.0), update)[0].tolist() == [3.0, -4.0]
    assert exchanged(Clip(1.0), torch.zeros(2))[0].tolist() == [0.0, 0.0]


def test_clip_scales_what_has_a_square_beyond_float32():
    clipped, _ = exchanged(Clip(1.0), torch.tensor([3e30, -4e30]))
    np.testing.assert_allclose(clipped, [0.6, -0.8], rtol=1e-6)


def test_topk_sends_the_largest_and_keeps_the_rest_for_the_next_round():
    stage = TopK(0.4)  # 2 of 5
    decoded, encoded = exchanged(stage, torch.tensor([1.0, -5.0, 2.0, 3.0, 0.5]))
    assert decoded.tolist() == [0, -5, 0, 3, 0]
    assert encoded.update.tolist() == [-5, 3]  # and no more travels
    assert encoded.state["error"].tolist() == [1, 0, 2, 0, 0.5]
    decoded, encoded = exchanged(stage, torch.tensor([0.0, 0.0, 2.0, 1.0, 1.0]), encoded.state)
    assert decoded.tolist() == [0, 0, 4, 0, 1.5]
    assert encoded.state["error"].tolist() == [1, 0, 0, 1, 0]


def test_noise_has_its_standard_deviation():
    torch.manual_seed(0)
    noise = exchanged(Noise(0.5), torch.ones(100_000))[0] - 1
    assert abs(float(noise.mean())) < 4 * 0.5 / 100_000**0.5
    assert float(noise.std()) == pytest.approx(0.5, rel=4 / (2 * 100_000) ** 0.5)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_quantise_is_unbiased_and_takes_its_bits(bits):
    torch.manual_seed(0)
    update = torch.tensor([-1.0, -0.3, 0.0, 0.1, 0.77, 1.0, 0.2])
    step, repeats = 2 / (2**bits - 1), 4000
    decoded, encoded = exchanged(Quantise(bits), update)
    assert encoded.update.nbytes == -(-len(update) * bits // 8)
    whole = torch.stack([exchanged(Quantise(bits), update)[0] for _ in range(repeats)])
    levels = (whole + 1) / step
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert ((whole - update).abs() <= step + 1e-6).all()
    # A rounding has a variance of at most step^2 / 4.
    assert ((whole.mean(0) - update).abs() < 4 * step / 2 / repeats**0.5 + 1e-6).all()
    assert decoded[0] == -1
    assert decoded[5] == pytest.approx(1)


def test_quantise_leaves_equal_entries_and_hides_no_nan():
    assert exchanged(Quantise(8), torch.full((3,), 0.25))[0].tolist() == [0.25] * 3
    assert exchanged(Quantise(8), torch.tensor([1.0, torch.nan]))[0].isnan().all()
    assert not exchanged(Quantise(8), torch.tensor([1.0, torch.inf]))[0].isfinite().all()


def one_client(run, *overrides, config_dir=None):
    """Run one round of one client with one step, and return the result and the parameters' change as a vector."""
    options = ["federation.fraction_train=0.1", "federation.num_rounds=1", "federation.evaluate_every=1", "seed=3"]
    result = run(*options, "dtype=float64", "model=logistic", *overrides, config_dir=config_dir)
    start = result.experiment.initial_arrays
    return result, np.concatenate([(result.arrays[k] - start[k].numpy()).ravel() for k in sorted(start)])


def test_a_model_arrives_as_the_received_one_plus_the_decoded_update(run):
    _, update = one_client(run)
    norm = np.linalg.norm(update)
    clipped, changed = one_client(run, "channel=clip", f"channel.clip.max_norm={norm / 2}")
    np.testing.assert_allclose(changed, update / 2, rtol=1e-9)
    assert clipped.rows[0]["update/norm"] == pytest.approx(norm / 2)
    _, sparse = one_client(run, "channel=topk", "channel.topk.share=0.1")
    largest = np.sort(np.argsort(np.abs(update))[-65:])  # of 64 * 10 + 10
    np.testing.assert_array_equal(np.flatnonzero(sparse), largest)
    np.testing.assert_allclose(sparse[largest], update[largest], rtol=1e-9)


def test_the_order_of_stages_counts(run, compose):
    from fedresearch.config import digest

    _, update = one_client(run)
    options = ["channel.clip.max_norm=0.01", "channel.topk.share=0.1"]
    _, last = one_client(run, "channel=[topk,clip]", *options)
    _, first = one_client(run, "channel=[clip,topk]", *options)
    assert np.linalg.norm(last) == pytest.approx(0.01)
    assert np.linalg.norm(first) < 0.01 * 0.99 < 0.01 < np.linalg.norm(update)
    orders = [compose(f"channel={order}")[0] for order in ("[topk,clip]", "[clip,topk]")]
    assert len({digest(config) for config in orders}) == 2


def test_bytes_are_those_that_travel(run):
    plain, _ = one_client(run)
    sparse, _ = one_client(run, "channel=topk", "channel.topk.share=0.1")
    small, _ = one_client(run, "channel=[topk,quantise]", "channel.topk.share=0.1", "channel.quantise.bits=4")
    up = [result.rows[0]["comm/bytes_up"] for result in (plain, sparse, small)]
    assert up[0] - 650 * 8 < 1000  # names, headers and metrics
    assert up[1] - 65 * (8 + 4) < 1500
    assert up[2] - 65 * 4 - 33 < 2000
    assert len({result.rows[0]["comm/bytes_down"] for result in (plain, sparse, small)}) == 1


def test_workers_give_the_same_bits(run):
    assert run(*SMALL, *ALL, "hardware=workers").numbers() == run(*SMALL, *ALL).numbers()


@pytest.mark.parametrize("fails", [False, True])
def test_rows_pass_as_messages_do(run, monkeypatch, fails):
    """The same numbers, bytes among them, and states, also if a client fails."""
    train = LocalTrainer.__call__

    def failing(trainer, task):
        if fails and task.partition_id == 2:
            raise ArithmeticError("not today")
        return train(trainer, task)

    monkeypatch.setattr(LocalTrainer, "__call__", failing)
    options = [*SMALL, *ALL, "federation.fraction_train=1", "federation.max_failures=1", "hardware=cpu"]
    rows = run(*options)
    monkeypatch.setattr(Channel, "takes_rows", False)
    messages = run(*options)
    assert rows.numbers() == messages.numbers()
    kept, other = rows.experiment.grid.states, messages.experiment.grid.states
    assert [*kept] == [*other]
    assert len(kept) == 6 - fails
    for node_id, state in kept.items():
        assert {*state} == {*other[node_id]}
        assert "channel/topk" in state
        for key, record in state.array_records.items():
            for name, array in record.items():
                np.testing.assert_array_equal(other[node_id][key][name].numpy(), array.numpy())


class Alternating(RowStage):
    """Sends the sum of two rounds in every second one, in which it keeps nothing."""

    def encode_rows(self, updates, states, generators):
        if "waits" in states[0]:
            return Encoded(updates + torch.stack([state["waits"] for state in states]))
        return Encoded(torch.zeros_like(updates), state={"waits": updates})


class Careless(RowStage):
    def encode_rows(self, updates, states, generators):
        return Encoded(updates + torch.randn_like(updates))


class CarelessServer(Careless):
    def encode_rows(self, updates, states, generators):
        return Encoded(updates)

    def decode_rows(self, replies):
        return replies.update + np.random.rand()


def through(compose, stage, *overrides):
    """Return a run's rows through a stage."""
    experiment = Experiment(*compose(*SMALL, *overrides, "hardware=cpu", "federation.fraction_train=1"))
    channel = Channel({"own": stage}, experiment.channel._first, 0)
    experiment.new_channel = lambda: channel
    rows = []
    loop = experiment.round_loop(lambda row, _: rows.append(row), lambda *_: None)
    with experiment.grid as grid:
        loop.run(grid, experiment.initial_arrays)
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def test_a_stage_that_keeps_nothing_in_a_round_finds_nothing_in_the_next(compose, monkeypatch):
    rows = through(compose, Alternating())
    monkeypatch.setattr(Channel, "takes_rows", False)
    assert rows == through(compose, Alternating())
    assert [row["update/norm"] > 1e-3 for row in rows[1:]] == [False, True, False]


@pytest.mark.parametrize(("stage", "of"), [(Careless(), "torch"), (CarelessServer(), "NumPy")])
def test_rows_are_not_changed_by_what_nobody_has_seeded(compose, stage, of):
    with pytest.raises(InputError, match=f"^channel=own: it draws from the global generator of {of} while it passes"):
        through(compose, stage)


class Doubled(Clip):
    def encode(self, update, where, state):
        return super().encode(update * 2, where, state)


class Halved(Clip):
    def decode(self, replies, where):
        return [reply.update / 2 for reply in replies]


@pytest.mark.parametrize(("stage", "passes"), [(Clip, True), (Doubled, False), (Halved, False), (ChannelStage, False)])
def test_rows_pass_only_stages_that_do_nothing_else_with_one_update(stage, passes):
    made = stage(1.0) if issubclass(stage, Clip) else stage()
    assert Channel({"clip": Clip(1.0), "own": made}).takes_rows is passes


def test_batched_gives_the_same_up_to_rounding(run):
    # One that amplifies no rounding: an entry that is one of the largest or not, or rounded up or down, would differ.
    options = [*SMALL, "strategy=scaffold", "channel=[clip,noise]", "channel.clip.max_norm=0.7", "dtype=float64"]
    here, there = run(*options), run(*options, "hardware=batched", "hardware.compile=false")
    for name, array in here.arrays.items():
        np.testing.assert_allclose(there.arrays[name], array, rtol=1e-9, atol=1e-12)


OF_TESTS = {
    "mine.py": """
        import torch
        from torch import nn
        from fedresearch.channel.stage import ChannelStage, Encoded

        class Spy(ChannelStage):
            '''Fails or spoils the updates of partitions; counts the rounds on both sides.'''

            def __init__(self, fails=(), spoils=(), returns=None):
                self.fails, self.spoils, self.returns, self.seen = fails, spoils, returns, []

            def encode(self, update, where, state):
                if where.partition_id in self.fails:
                    raise ValueError("told to")
                if where.partition_id in self.spoils:
                    update = update * torch.nan
                rounds = state.get("rounds", torch.tensor(0)) + 1
                return Encoded(update, {"n": torch.tensor(len(update))}, {"rounds": rounds})

            def decode(self, replies, where):
                self.seen.append([(*at, int(reply.extra["n"])) for reply, at in zip(replies, where)])
                updates = super().decode(replies, where)
                return updates if self.returns is None else eval(self.returns)

        class Smoothed(ChannelStage):
            '''Adds half of the last round's mean update, which the server keeps.'''

            def decode(self, replies, where):
                updates = [reply.update + 0.5 * getattr(self, "mean", 0) for reply in replies]
                self.mean = torch.stack(updates).mean(0)
                return updates

        class Tied(nn.Module):
            def __init__(self, input_shape, num_classes):
                super().__init__()
                self.a = nn.Linear(64, 64)
                self.b = nn.Linear(64, 64)
                self.b.weight = self.a.weight
                self.norm = nn.BatchNorm1d(64)
                self.register_buffer("update", torch.tensor(0))
                self.head = nn.Linear(64, num_classes)

            def forward(self, x):
                return self.head(self.norm(self.b(self.a(x.flatten(1)).relu())))
        """,
    "channel/spy.yaml": "spy: {_target_: mine.Spy}",
    "channel/smoothed.yaml": "smoothed: {_target_: mine.Smoothed}",
    "channel/flat.yaml": "_target_: mine.Smoothed",
    "model/tied.yaml": "_target_: mine.Tied",
}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Return a folder of options with stages that watch, fail and keep a state on the server."""
    folder = tmp_path_factory.mktemp("own")
    for path, content in OF_TESTS.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(textwrap.dedent(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


SPY = ["federation.num_supernodes=4", "federation.num_rounds=2", "federation.fraction_train=1", "channel=spy"]


def test_a_client_that_fails_is_left_out_and_keeps_its_state(run, own):
    result = run(*SPY, "+channel.spy.fails=[2]", "federation.max_failures=1", config_dir=own)
    seen = result.experiment.channel.stages["spy"].seen
    size = sum(p.numel() for p in result.experiment.model.parameters())
    assert seen == [[(n, i, size) for i in (0, 1, 3)] for n in (1, 2)]
    assert [row["clients/failed"] for row in result.rows] == [1, 1]
    rounds = {node: int(s["channel/spy"]["rounds"].numpy()) for node, s in result.experiment.grid.states.items()}
    assert [*rounds.values()] == [2, 2, 2]


def test_an_update_that_is_not_finite_is_dropped_and_its_client_keeps_its_state(run, own):
    result = run(*SPY, "+channel.spy.spoils=[1]", "federation.nonfinite=drop", config_dir=own)
    assert [row["clients/dropped"] for row in result.rows] == [1, 1]
    assert len(result.experiment.grid.states) == 3
    diverging = ["optimizer.lr=1e30", "federation.nonfinite=keep", "channel=[topk,quantise]"]
    assert not run(*SPY, *diverging, config_dir=own).experiment.grid.states  # each update is, from the first one


@pytest.mark.parametrize(
    ("returns", "said"),
    [
        ("updates[1:]", "channel.spy: decode must return 4 updates, got 3"),
        ("None", "channel.spy: decode must return tensors, got NoneType"),
        ("[u.numpy() for u in updates]", "channel.spy: decode must return tensors, got ndarray"),
        (
            "[u * 1j for u in updates]",
            "the reply of partition 0 must have layers.1.weight of real numbers, got complex64",
        ),
        (
            "[u[1:] for u in updates]",
            r"the channel's first stage must decode an update of shape \(\d+,\), got \(\d+,\)",
        ),
    ],
)
def test_what_decode_returns_is_checked(run, own, returns, said):
    with pytest.raises(InputError, match=said):
        run(*SPY, f'+channel.spy.returns="{returns}"', config_dir=own)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, r"^channel.mine: encode must return an Encoded, got NoneType$"),
        (torch.zeros(2), r"^channel.mine: encode must return an Encoded, got Tensor$"),
        (Encoded(np.zeros(2)), r"^channel.mine: encode must return tensors, got ndarray$"),
        (Encoded(torch.zeros(2), {"norm": 1.0}), r"^channel.mine: encode must return tensors, got float$"),
        (Encoded(torch.zeros(2), {}, {"rounds": 1}), r"^channel.mine: encode must return tensors, got int$"),
    ],
)
def test_what_encode_returns_is_checked(returned, said):
    class Mine(ChannelStage):
        def encode(self, update, where, state):
            return returned

    content = RecordDict({ARRAYS: array_record({"w": np.ones(2)})})
    with pytest.raises(InputError, match=said):
        Channel({"mine": Mine()}, {"w": "w"}).encode(content, {"w": torch.zeros(2)}, HERE, {})


@pytest.mark.parametrize(
    "stage", [Clip(1.0), TopK(0.1), Noise(1.0), Quantise(4)], ids=lambda stage: type(stage).__name__
)
def test_a_stage_of_ours_refuses_what_quantise_sends(stage):
    said = rf"^{type(stage).__name__} needs an update in floating point, got torch.uint8; put it before the stage that "
    with pytest.raises(InputError, match=said):
        stage.encode(Quantise(8).encode(torch.arange(3.0), HERE, {}).update, HERE, {})


def test_buffers_are_sent_as_they_are_and_a_tied_parameter_passes_once(run, own):
    options = ["model=tied", *SPY, "federation.num_rounds=1", "local.batch_size=0"]
    plain, noisy = (run(*options, f"channel={c}", config_dir=own) for c in ("[]", "[spy,noise]"))
    assert noisy.experiment.channel.stages["spy"].seen[0][0][2] == 64 * 64 + 2 * 64 + 2 * 64 + 650
    np.testing.assert_array_equal(noisy.arrays["a.weight"], noisy.arrays["b.weight"])
    assert (noisy.arrays["a.weight"] != plain.arrays["a.weight"]).any()
    for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "update"):
        np.testing.assert_array_equal(noisy.arrays[name], plain.arrays[name])


def test_what_stays_on_a_client_passes_nothing(run, own):
    result = run(*SPY, "strategy=fedper", config_dir=own)
    assert result.experiment.channel.stages["spy"].seen[0][0][2] == 64 * 200 + 200  # without the head
    own_models = ["strategy=local_only", *SPY, "federation.num_rounds=1"]
    plain, through = (run(*own_models, f"channel={c}", config_dir=own) for c in ("[]", "spy"))
    assert not through.experiment.channel.stages["spy"].seen
    assert plain.numbers() == through.numbers()


def test_the_attack_of_the_docs_replaces_the_attackers_updates():
    """It sends the mean minus z standard deviations of all updates (Baruch et al. 2019, arXiv:1902.06635)."""
    code = {}
    exec(dict(files("docs/extending.md"))["little_is_enough.py"], code)
    replies = [Encoded(torch.tensor([x, 1.0])) for x in (1.0, 2.0, 6.0)]  # of mean 3 and variance (4 + 1 + 9) / 3
    where = [Where(1, partition_id) for partition_id in (0, 4, 5)]
    decoded = torch.stack([*code["LittleIsEnough"]([4, 9], z=1.5).decode(replies, where)])
    expected = [[1, 1], [3 - 1.5 * (14 / 3) ** 0.5, 1], [6, 1]]
    np.testing.assert_allclose(decoded, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ALL,
        ["channel=[smoothed,topk]", "model=tied", "local.batch_size=0", "strategy=fedadam"],
        ["channel=[noise,topk]", "hardware=batched", "hardware.compile=false"],
        ["channel=[topk]", "strategy=fedper"],
    ],
    ids=" ".join,
)
def test_a_run_resumes_to_the_same_bits(tmp_path, own, overrides):
    undisturbed = conduct(tmp_path / "whole", *overrides, config_dir=own)
    resumed = killed(undisturbed, tmp_path / "resumed", checkpoint=2)
    conduct(resumed, *overrides, config_dir=own)
    assert outcome(resumed) == outcome(undisturbed)
    assert read_record(resumed)["resumed"][-1]["after_round"] == 2


def test_a_state_that_a_checkpoint_cannot_hold_is_rejected(compose, own):
    experiment = Experiment(*compose("channel=smoothed", config_dir=own))
    experiment.channel.stages["smoothed"].mean = random.Random(0)
    with pytest.raises(InputError, match=r"^channel.smoothed.mean is a Random \(draw from the global generators"):
        refuse_unsupported_state(experiment)


class Part:
    def __init__(self, owner):
        self.owner = owner


def test_a_part_that_holds_its_owner_is_rejected(compose, own):
    experiment = Experiment(*compose("channel=smoothed", config_dir=own))
    stage = experiment.channel.stages["smoothed"]
    stage.part = Part(stage)
    said = "channel.smoothed.part.owner is an object of which it is a part, which a checkpoint cannot hold"
    with pytest.raises(InputError, match=f"^{said}"):
        refuse_unsupported_state(experiment)


def test_an_option_that_is_not_nested_below_its_name_is_rejected(compose, own):
    with pytest.raises(InputError, match=r"the YAML of an option NAME begins with NAME: and has its keys below"):
        compose("channel=flat", config_dir=own)
