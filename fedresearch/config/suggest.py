"""Suggests what a mistyped key or option may mean: the same name elsewhere, a synonym, or a similar name."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from omegaconf import Container, OmegaConf

from fedresearch.config.help_text import CONF
from fedresearch.config.options import SECTIONS, our_keys
from fedresearch.dotted_keys import leaves

# Names of our keys and groups in other tools and papers. Of several keys, those that the config has are suggested; an
# option with its key if the config has none.
_KEYS: Mapping[str, Sequence[str]] = {
    "lr": ["optimizer.lr"],
    "learningrate": ["optimizer.lr"],
    "clientlr": ["optimizer.lr"],
    "wd": ["optimizer.weight_decay"],
    "rounds": ["federation.num_rounds"],
    "numserverrounds": ["federation.num_rounds"],
    "communicationrounds": ["federation.num_rounds"],
    "commround": ["federation.num_rounds"],
    "clients": ["federation.num_supernodes"],
    "numclients": ["federation.num_supernodes"],
    "nclients": ["federation.num_supernodes"],
    "numpartitions": ["federation.num_supernodes"],
    "fraction": ["federation.fraction_train"],
    "fractionfit": ["federation.fraction_train"],
    "clientfraction": ["federation.fraction_train"],
    "participation": ["federation.fraction_train"],
    "samplefraction": ["federation.fraction_train"],
    "clientsperround": ["federation.fraction_train"],
    "evalevery": ["federation.evaluate_every"],
    "target": ["federation.target_accuracy"],
    "epoch": ["local.epochs"],
    "numepochs": ["local.epochs"],
    "localepochs": ["local.epochs"],
    "localsteps": ["local.steps"],
    "iterations": ["local.steps"],
    "bs": ["local.batch_size"],
    "batch": ["local.batch_size"],
    "alpha": ["partitioner.alpha", "partitioner=dirichlet partitioner.alpha"],
    "dirichletalpha": ["partitioner.alpha", "partitioner=dirichlet partitioner.alpha"],
    "mu": ["strategy.server.proximal_mu", "strategy.client.mu", "strategy=fedprox strategy.server.proximal_mu"],
    "proximalmu": ["strategy.server.proximal_mu", "strategy=fedprox strategy.server.proximal_mu"],
    "serverlr": ["strategy.server.server_learning_rate", "strategy.server.eta"],
    "serverlearningrate": ["strategy.server.server_learning_rate", "strategy.server.eta"],
    "nummalicious": ["strategy.server.num_malicious_nodes"],
    "path": ["dataset.path", "dataset=mnist dataset.path"],
    "datadir": ["dataset.path", "dataset.root", "dataset=mnist dataset.path"],
    "datapath": ["dataset.path", "dataset.root", "dataset=mnist dataset.path"],
    "valfraction": ["validation.fraction"],
    "randomseed": ["seed"],
    "outputdir": ["hydra.run.dir"],
    "out": ["hydra.run.dir"],
    "savedir": ["hydra.run.dir"],
    "wandb": ["tracker.mode"],
    "data": ["dataset"],
    "partition": ["partitioner"],
    "split": ["partitioner"],
    "net": ["model"],
    "network": ["model"],
    "opt": ["optimizer"],
    "optim": ["optimizer"],
    "scheduler": ["schedule"],
    "algorithm": ["strategy"],
    "algo": ["strategy"],
    "aggregator": ["strategy"],
    "method": ["strategy"],
    "sampler": ["sampling"],
    "backend": ["hardware"],
    "logger": ["tracker"],
}
_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "dataset": {"fmnist": "fashion_mnist", "emnist": "femnist", "leaf": "femnist"},
    "hardware": {
        "cuda": "gpu",
        "multiprocessing": "workers",
        "processes": "workers",
        "parallel": "workers",
        "simulation": "ray",
        "deployment": "superlink",
        "vmap": "batched",
    },
    "model": {"linear": "logistic", "softmax": "logistic", "cnn": "cnn_mcmahan", "rnn": "char_lstm"},
    "partitioner": {"noniid": "dirichlet", "lda": "dirichlet", "classes": "pathological", "writer": "natural_id"},
    "strategy": {"local": "local_only", "fedopt": "fedadam", "median": "fedmedian", "trimmedmean": "fedtrimmedavg"},
    "tracker": {"off": "none", "null": "none", "csv": "none", "tb": "tensorboard"},
}
_NEAR = 0.7  # difflib's ratio; below it, most matches are wrong


def key_to_type(typed: str, value: str, config: Container) -> str:
    """Return what to type for a key that a config does not have; "" if nothing is similar.

    Parameters
    ----------
    typed : str
        The dotted key.
    value : str
        The value that was typed.
    config : Container
        The composed config, or a node of it.
    """
    plain: Any = OmegaConf.to_container(config._get_root(), resolve=False)
    hydra = {"hydra.run.dir": None}
    sections = [key for key in plain if key != "hydra"]
    known = [
        key for key, _ in leaves({key: plain[key] for key in sections}) if not key.rpartition(".")[2].startswith("_")
    ]
    section, _, name = typed.rpartition(".")
    for wanted in (section, ""):
        within = [key for key in known if key.startswith(f"{wanted}.") or not wanted]
        found = _alike(name, within, [] if wanted else [*sections, "schedule"], hydra)
        if found:
            return " or ".join(_word(key, value) for key in found[:2])
        if wanted and (option := _in_an_option(typed, value)).endswith(f" {_word(typed, value)}"):
            return option  # which has this very key
    return _in_an_option(typed, value) or _in_an_option(_near_in_options(section, name), value)


def option_to_type(group: str, typed: str, options: Iterable[str]) -> str:
    """Return the option of a group that a word may mean, as it is typed; "" if none is similar."""
    named = {_plain(option): option for option in options}
    word = _plain(typed)
    meant = _OPTIONS.get(group, {}).get(word)
    if meant in named.values():
        return f"{group}={meant}"
    parts = [name for name in named if word and (word in name or name in word)]
    near = [word] if word in named else parts or get_close_matches(word, named, n=1)
    return f"{group}={named[near[0]]}" if near else ""


def _alike(name: str, keys: Sequence[str], sections: Sequence[str], others: Iterable[str]) -> list[str]:
    """Return the keys that a name may mean, the likeliest first."""
    word = _plain(name)
    synonyms = [key for key in _KEYS.get(word, ()) if key in (*keys, *sections, *others)]
    same = [key for key in (*sections, *keys) if _plain(key.rpartition(".")[2]) == word]
    if synonyms or same:
        return [*dict.fromkeys([*synonyms, *same])]
    by_name: dict[str, str] = {}
    for key in (*sections, *keys):
        by_name.setdefault(_plain(key.rpartition(".")[2]), key)
    return [by_name[near] for near in get_close_matches(word, by_name, n=1, cutoff=_NEAR)]


def _near_in_options(section: str, name: str) -> str:
    """Return the key of some option of a section whose name is near; "" if none is."""
    group = section.partition(".")[0]
    options = [f"{group}/{path.stem}" for path in CONF.glob(f"{group}/[!_]*.yaml")] if group else []
    keys = {key for option in options for key in our_keys(option) if key.startswith(f"{section}.")}
    return next(iter(_alike(name, sorted(keys), [], {})), "")


def _in_an_option(typed: str, value: str) -> str:
    """Return an option that has the key, or a key of the same name or meaning, and that key, as they are typed."""
    name = _plain(typed.rpartition(".")[2])
    synonyms = _KEYS.get(name, ())
    usual = {synonym.partition(" ")[0] for several in _KEYS.values() for synonym in several if " " in synonym}
    found = []
    for path in CONF.glob("*/[!_]*.yaml"):
        group = path.parent.name
        prefix = f"{SECTIONS.get(group, group)}."
        keys = [key for key in our_keys(f"{group}/{path.stem}") if key.startswith(prefix)]
        chosen = f"{group}={path.stem}"
        for key in keys:
            likeness = (key == typed, f"{chosen} {key}" in synonyms, key in synonyms)
            if any(likeness) or _plain(key.rpartition(".")[2]) == name:
                unlike = [not alike for alike in likeness]
                found.append((unlike, chosen not in usual, len(keys), chosen, key))
    if not found:
        return ""
    _, _, _, option, key = min(found)  # of equal matches, the usual option or the smallest
    return f"{option} {_word(key, value)}"


def _word(key: str, value: str) -> str:
    return shlex.quote(f"{key}={value or '...'}") if "." in key else f"{key}={value or 'OPTION'}"


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()
