"""How many clients train in a round, and how many the strategy's rule needs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedresearch.config.schema import Config


def cohort_size(num_supernodes: int, fraction: float) -> int:
    """Return a fraction of the clients as a number: rounded down, as in Flower, but at least one.

    The small addition keeps 0.29 * 100 at 29; as floats it is 28.999...
    """
    return max(1, int(num_supernodes * fraction + 1e-9))


def shortages(strategy: Mapping[str, Any], num_clients: int) -> Iterator[tuple[str, str]]:
    """Yield why a strategy's rule needs more clients, and an override that would help ("" if none would).

    An option's YAML declares what its rule needs. ``min_cohort`` [a, b]: it scores clients against each other, each of
    them once, and needs at least ``a * num_malicious_nodes + b``. ``trim``: it cuts ``int(trim * clients)`` values at
    each end, which must not be 0 unless ``trim`` is.

    Parameters
    ----------
    strategy : mapping
        The config's section.
    num_clients : int
        How many clients train in a round, or how many replies count; each client counts once.
    """
    server, trim = strategy["server"], strategy.get("trim", 0)
    share = "strategy.server.beta" if server.get("beta") == trim else "strategy.trim"
    if "min_cohort" in strategy:
        factor, least = strategy["min_cohort"]
        malicious = server.get("num_malicious_nodes", 0)
        needed = factor * malicious + least
        if num_clients < needed:
            fitting = (num_clients - least) // factor if factor else -1
            yield (
                f"strategy.server.num_malicious_nodes={malicious} needs {factor} * {malicious} + {least} = {needed} "
                "clients",
                f"strategy.server.num_malicious_nodes={fitting}" if fitting >= 0 else "",
            )
    selected = server.get("num_nodes_to_select", 0)
    if selected > num_clients:
        yield (
            f"strategy.server.num_nodes_to_select={selected} needs {selected} clients",
            f"strategy.server.num_nodes_to_select={max(num_clients, 1)}",
        )
    if trim and not int(trim * num_clients):
        needed = math.ceil(min(1 / trim, 1e18))
        needed += not int(trim * needed)
        least = math.ceil(100 / num_clients) / 100 if num_clients else 1.0
        yield f"{share}={trim} needs {needed} clients to cut one at each end", f"{share}={least}" * (least < 0.5)


def unprotected(strategy: Mapping[str, Any], option: str | None) -> Iterator[str]:
    """Yield a line if a rule against malicious clients is set to expect none."""
    if strategy["server"].get("num_malicious_nodes") == 0:
        yield (
            f"strategy={option} with strategy.server.num_malicious_nodes=0 does not protect against malicious clients; "
            "try strategy.server.num_malicious_nodes=1"
        )


def check_cohort(config: Config, fixed: Sequence[int] | None) -> Iterator[str]:
    """Yield a line if a round has too few clients for the strategy's rule, as far as is known without the data.

    Parameters
    ----------
    config : Config
        The experiment.
    fixed : sequence of int or None
        The partition ids of ``sampling=fixed``; None: another sampling.
    """
    federation, strategy = config.federation, config.strategy
    more = "federation.fraction_train=1"
    if strategy["pooled"]:
        num_clients, which, more = 1, "strategy.pooled", "strategy.pooled=false"
    elif fixed is not None:
        num_clients, which = len(set(fixed)), "sampling.partition_ids"
        more = "more partition ids"
    elif federation.num_supernodes is not None:
        num_clients = cohort_size(federation.num_supernodes, federation.fraction_train)
        which = "federation.fraction_train of federation.num_supernodes"
        if any(shortages(strategy, federation.num_supernodes)):
            more = "a larger federation.num_supernodes"
    else:
        return
    for needed, instead in shortages(strategy, num_clients):
        ways = " or ".join(filter(None, (instead, more)))
        yield f"{needed}, got {num_clients} in a round ({which}); try {ways}"
