"""No quick way is taken around a method of the user's own, wherever it is: in a class, or on an object alone."""

import pytest
from flwr.serverapp.strategy import FedAvg

from fedresearch.channel.clip import Clip
from fedresearch.experiment.experiment import Experiment
from fedresearch.federation.averaging import mean_by, sends_to_all
from fedresearch.federation.channel import Channel
from fedresearch.federation.dense_clients import chain_of_clients
from fedresearch.inherited import inherits
from fedresearch.local.update import LocalUpdate


def wrapped(made, method):
    """Return an object with a method of its own around that of its class."""
    inner = getattr(made, method)
    setattr(made, method, lambda *arguments, **options: inner(*arguments, **options))
    return made


def test_methods_of_an_object_its_class_and_a_base():
    class Own(LocalUpdate):
        def begin(self, start):
            return {}

    assert inherits(Own(), LocalUpdate, "term", "end")
    assert not inherits(Own(), LocalUpdate, "term", "begin")
    assert not inherits(wrapped(Own(), "term"), LocalUpdate, "term")


class First(FedAvg):
    def _check_and_log_replies(self, replies, is_train, validate=True):
        return super()._check_and_log_replies(replies[:1], is_train, validate)


def test_a_mean_is_flowers_alone():
    assert mean_by(FedAvg(weighted_by_key="n")) == "n"
    assert mean_by(First(weighted_by_key="n")) is None
    assert mean_by(wrapped(FedAvg(weighted_by_key="n"), "aggregate_train")) is None


def test_messages_to_all_are_flowers_alone():
    assert sends_to_all(FedAvg(fraction_train=1))
    assert not sends_to_all(wrapped(FedAvg(fraction_train=1), "configure_train"))


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_a_stage_with_a_method_of_its_own_gets_messages(method):
    assert not Channel({"clip": wrapped(Clip(1.0), method)}).takes_rows


@pytest.mark.parametrize("method", ["objective", "correct"])
def test_the_kernel_trains_no_update_with_a_method_of_its_own(compose, method):
    clients = Experiment(*compose("model=logistic")).client_app
    assert chain_of_clients(clients)
    wrapped(clients.update, method)
    assert chain_of_clients(clients) is None
