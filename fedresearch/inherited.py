"""Whether an object does what a class that it extends does."""


def inherits(owner: object, base: type, *methods: str) -> bool:
    """Return whether these methods of an object are those of a base class: neither it nor its class has its own."""
    return all(getattr(getattr(owner, name), "__func__", None) is getattr(base, name) for name in methods)
