"""The models: sizes against the papers' arithmetic, and what the executors need of every one."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from fedresearch.models.char_lstm import CharLSTM
from fedresearch.models.cnn_mcmahan import McMahanCNN
from fedresearch.models.lenet import LeNet
from fedresearch.models.logistic import Logistic
from fedresearch.models.mlp import MLP
from fedresearch.models.resnet import ResNet18

CONF = Path(__file__).parents[1] / "conf" / "model"


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def linear(num_in: int, num_out: int) -> int:
    return num_in * num_out + num_out


def convolution(num_in: int, num_out: int, side: int) -> int:
    return side * side * num_in * num_out + num_out


EVERY = [
    pytest.param(lambda: Logistic((1, 8, 8), 10), (1, 8, 8), 10, id="logistic"),
    pytest.param(lambda: MLP((60,), 10, widths=[7, 5]), (60,), 10, id="mlp"),
    pytest.param(lambda: McMahanCNN((3, 9, 14), 4), (3, 9, 14), 4, id="cnn_mcmahan"),
    pytest.param(lambda: LeNet((1, 28, 17), 3), (1, 28, 17), 3, id="lenet"),
    pytest.param(lambda: ResNet18((1, 8, 8), 10), (1, 8, 8), 10, id="resnet18-group"),
    pytest.param(lambda: ResNet18((3, 32, 32), 5, norm="batch"), (3, 32, 32), 5, id="resnet18-batch"),
    pytest.param(lambda: CharLSTM((80,), 70), (80,), 70, id="char_lstm"),
]


def inputs(shape: tuple[int, ...], num_classes: int, n: int, model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if isinstance(model, CharLSTM):
        return torch.randint(num_classes, (n, *shape), generator=generator)
    return torch.randn(n, *shape, generator=generator, dtype=next(model.parameters()).dtype)


@pytest.mark.parametrize(("build", "shape", "num_classes"), EVERY)
def test_logits_in_float64_and_a_gradient_for_every_parameter(build, shape, num_classes):
    model = build().double()
    logits = model(inputs(shape, num_classes, 6, model))
    assert logits.shape == (6, num_classes)
    assert logits.dtype == torch.float64
    functional.cross_entropy(logits, torch.arange(6) % num_classes).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("build", "shape", "num_classes"), EVERY)
def test_forward_draws_nothing_and_leaves_its_input_alone(build, shape, num_classes):
    model = build()
    x = inputs(shape, num_classes, 3, model)
    before, state = x.clone(), torch.get_rng_state()
    model(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, before)


@pytest.mark.parametrize(("build", "shape", "num_classes"), EVERY)
def test_functional_call_uses_the_parameters_that_it_is_given(build, shape, num_classes):
    model, other = build(), build()
    x = inputs(shape, num_classes, 3, model)
    state = {name: tensor.detach().clone() for name, tensor in other.state_dict().items()}
    assert torch.equal(functional_call(model, state, (x,)), other(x))


@pytest.mark.parametrize(
    ("build", "shape", "num_classes"), [p for p in EVERY if p.id not in ("resnet18-batch", "char_lstm")]
)
def test_vmap_over_stacked_parameters_is_a_loop_over_models(build, shape, num_classes):
    models = [build().double() for _ in range(3)]
    x = torch.stack([inputs(shape, num_classes, 4, model) * k for k, model in enumerate(models, 1)])
    parameters, buffers = stack_module_state(models)

    def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(models[0], (parameters, buffers), (x,))

    batched = vmap(call)(parameters, buffers, x)
    torch.testing.assert_close(
        batched, torch.stack([m(xs) for m, xs in zip(models, x, strict=True)]), rtol=0, atol=1e-10
    )


def test_logistic_is_affine():
    model = Logistic((2, 3), 4)
    x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), x.reshape(5, 6) @ model.linear.weight.T + model.linear.bias)
    assert count(model) == 6 * 4 + 4


def test_2nn_has_the_papers_number_of_parameters():
    options = yaml.safe_load((CONF / "mlp_2nn.yaml").read_text())
    model = MLP((1, 28, 28), 10, widths=options["widths"])
    assert count(model) == linear(784, 200) + linear(200, 200) + linear(200, 10) == 199_210


def test_mlp_is_its_formula():
    model = MLP((3,), 2, widths=[4])
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    w1, b1, w2, b2 = model.parameters()
    torch.testing.assert_close(model(x), (x @ w1.T + b1).clamp(min=0) @ w2.T + b2)


def test_cnn_has_the_papers_number_of_parameters():
    counts = convolution(1, 32, 5) + convolution(32, 64, 5) + linear(7 * 7 * 64, 512) + linear(512, 10)
    assert count(McMahanCNN((1, 28, 28), 10)) == counts == 1_663_370


class Net(nn.Module):
    """The tutorial's network as its text gives it: layers, names and order."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        for convolution in (self.conv1, self.conv2):
            x = self.pool(convolution(x).relu())
        return self.fc3(self.fc2(self.fc1(x.reshape(-1, 400)).relu()).relu())


def test_lenet_is_the_tutorials_network_down_to_the_initial_weights():
    with torch.random.fork_rng():
        torch.manual_seed(42)
        theirs = Net()
        torch.manual_seed(42)
        ours = LeNet((3, 32, 32), 10)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_resnet18_parameters_and_buffers():
    # Convolutions without bias, two numbers per normalised channel; a stage after the first halves the image and
    # has a 1 x 1 shortcut. Batch and group normalisation have as many parameters.
    counts = 3 * 3 * 3 * 64 + 2 * 64 + linear(512, 100)
    num_in = 64
    for channels in (64, 128, 256, 512):
        counts += 9 * num_in * channels + 3 * 9 * channels * channels + 4 * 2 * channels
        counts += (num_in * channels + 2 * channels) if num_in != channels else 0
        num_in = channels
    group, batch = ResNet18((3, 32, 32), 100), ResNet18((3, 32, 32), 100, norm="batch")
    assert count(group) == count(batch) == counts
    assert not list(group.buffers())
    assert {m.num_groups for m in group.modules() if isinstance(m, nn.GroupNorm)} == {2}
    # 17 normalised 3 x 3 convolutions (one in the stem, 4 x 4 in the stages) and 3 normalised shortcuts
    integers = [name for name, buffer in batch.named_buffers() if buffer.dtype == torch.int64]
    assert len(integers) == 17 + 3
    assert all(name.endswith("num_batches_tracked") for name in integers)


def test_resnet18_keeps_the_resolution_in_its_stem():
    stem = {}
    model = ResNet18((3, 32, 32), 10)
    model.layer1.register_forward_hook(lambda module, args, output: stem.update(shape=tuple(output.shape)))
    model(torch.zeros(2, 3, 32, 32))
    assert stem["shape"] == (2, 64, 32, 32)


def test_char_lstm_parameters():
    # An LSTM layer has four gates, each with input weights, recurrent weights and (in PyTorch) two biases.
    counts = 90 * 8 + 4 * 256 * (8 + 256 + 2) + 4 * 256 * (256 + 256 + 2) + linear(256, 90)
    assert count(CharLSTM((80,), 90)) == counts


def test_char_lstm_predicts_from_every_position():
    model = CharLSTM((80,), 30)
    x = torch.zeros(1, 80, dtype=torch.int64)
    for position in (0, 40, 79):
        changed = x.clone()
        changed[0, position] = 1
        assert not torch.equal(model(x), model(changed)), position


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: McMahanCNN((60,), 10),
            "McMahanCNN needs images (channels, height, width) of at least 4 x 4 pixels, got input_shape=(60,)",
        ),
        (
            lambda: McMahanCNN((1, 3, 8), 10),
            "McMahanCNN needs images (channels, height, width) of at least 4 x 4 pixels, got input_shape=(1, 3, 8)",
        ),
        (
            lambda: LeNet((1, 8, 8), 10),
            "LeNet needs images (channels, height, width) of at least 16 x 16 pixels, got input_shape=(1, 8, 8)",
        ),
        (lambda: ResNet18((60,), 10), "ResNet18 needs images (channels, height, width), got input_shape=(60,)"),
        (
            lambda: ResNet18((3, 32, 32), 10, norm="layer"),
            "norm must be group or batch, got layer; try model.norm=group",
        ),
        (
            lambda: ResNet18((3, 32, 32), 10, groups=3),
            "groups must divide 64, the channels of the first layer, got 3; try model.groups=2",
        ),
        (lambda: CharLSTM((1, 28, 28), 10), "CharLSTM needs sequences (length,), got input_shape=(1, 28, 28)"),
    ],
)
def test_a_shape_that_cannot_work(build, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build()


@pytest.mark.parametrize(("name", "model"), [("cnn_mcmahan", McMahanCNN), ("lenet", LeNet)])
def test_min_side_is_the_smallest_that_works(name, model):
    side = yaml.safe_load((CONF / f"{name}.yaml").read_text())["requires"]["min_side"]
    assert model((1, side, side + 1), 10)(torch.zeros(2, 1, side, side + 1)).shape == (2, 10)
    with pytest.raises(ValueError, match=f"at least {side} x {side}"):
        model((1, side - 1, side), 10)


def test_a_models_own_tensors_are_double_with_float64_and_its_weights_those_of_float32(run, tmp_path, monkeypatch):
    """The tensor is neither a parameter nor a buffer, so that Module.double() does not reach it."""
    (tmp_path / "mixing.py").write_text(
        "import torch\n\n\nclass Mixing(torch.nn.Linear):\n"
        "    def __init__(self, input_shape, num_classes):\n"
        "        super().__init__(64, num_classes)\n        self.mix = torch.eye(64).roll(1, 0)\n\n"
        "    def forward(self, x):\n        return super().forward(x.flatten(1) @ self.mix)\n"
    )
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/mixing.yaml").write_text("_target_: mixing.Mixing\n")
    monkeypatch.syspath_prepend(tmp_path)
    options = ["model=mixing", "federation.num_rounds=1", "local.epochs=1"]
    single, double = (run(*options, *more, config_dir=tmp_path / "conf") for more in ([], ["dtype=float64"]))
    first, exact = (one.experiment.initial_arrays["weight"].numpy() for one in (single, double))
    assert (first.dtype, exact.dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(first, exact)
    np.testing.assert_allclose(double.arrays["weight"], single.arrays["weight"], atol=1e-5)
