"""The shape of a model's inputs, as the dataset and the transforms declare it."""

from collections.abc import Iterator

from fedresearch.config.schema import Config


def input_shape(config: Config) -> list[int]:
    """Return the shape of one of the model's inputs."""
    return shapes(config)[-1]


def shapes(config: Config) -> list[list[int]]:
    """Return the shape of a sample before each transform, and after the last one."""
    found = [list(config.dataset["declares"]["input_shape"])]
    for node in config.transform.values():
        declared = node.get("declares", {}).get("input_shape") or found[-1]
        found.append([old if new is None else new for old, new in zip(found[-1], declared, strict=True)])
    return found


def check_shapes(config: Config) -> Iterator[str]:
    """Yield a line for each transform that declares something else than a shape of the dataset's dimensions."""
    shape = config.dataset["declares"]["input_shape"]
    example = str([None] * len(shape)).replace("None", "null")
    for name, node in config.transform.items():
        declares = node.get("declares", {"input_shape": shape})
        declared = declares.get("input_shape") if isinstance(declares, dict) and len(declares) == 1 else None
        sizes = declared if isinstance(declared, list) else []
        if len(sizes) != len(shape) or any(one is not None and not (type(one) is int and one > 0) for one in sizes):
            yield (
                f"transform.{name}.declares must be an input_shape of {len(shape)} integers >= 1, with null for each "
                f"that stays, got {declares}; its option's YAML must give it, such as {{input_shape: {example}}}"
            )
