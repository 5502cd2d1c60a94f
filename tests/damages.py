"""Damages of a run's directory: of its files' bytes and kinds, and of what a record says that is whole by its hash."""

import copy
import hashlib
import json
import os
import random
import socket

LONG = "x" * 300
ODD = [
    None,
    True,
    0,
    -1,
    2**70,
    1e308,
    "",
    LONG,
    "\x1b[31m\a",
    "\ud800",
    "a\nb\r\u2028c",
    "=1+1",
    "</td><script>",
    "](javascript:1)",
    "../../../../etc/passwd",
    "%s{0}$x_&#",
    [],
    [[[]]],
    [None],
    {},
    {"": {"": []}},
    {LONG: [LONG]},
    {"a.b": 1, "a": {"b": 2}},
]


def contents():
    """Yield what may be in a file's place as bytes, and how."""
    nested = '{"a":' * 100_000
    yield from {
        "empty": b"",
        "zeros": bytes(10_000),
        "null": b"null\n",
        "list": b"[]\n",
        "text": b'"x"\n',
        "section": b"{}\n",
        "brackets": b"[" * 100_000,
        "nested": nested.encode(),
        "digits": b"1" * 5000,
        "huge": b'{"round": 1' + b"0" * 5000 + b"}\n",
        "nan": b'{"round": NaN, "format": 1}\n',
        "infinity": b'{"round": 1, "x": 1e999}\n',
        "latin": b'{"format": 1, "x": "\xe9"}\n',
        "utf16": '{"format": 1}'.encode("utf-16"),
        "bom": b'\xef\xbb\xbf{"format": 1}\n',
        "line": b"a" * 2_000_000,
        "crlf": b"\r\n" * 1000,
        "many": b"{}\n" * 200_000,
        "wide": b'{"round": 1' + b"".join(b', "k%d": 1' % n for n in range(50_000)) + b"}\n",
    }.items()


def places_of(name):
    """Yield what may be in a file's place that is no file, or no readable one, and how."""

    def special(make):
        return lambda path: (path.unlink(missing_ok=True), make(path))

    def sock(path):
        with socket.socket(socket.AF_UNIX) as end:
            here = os.getcwd()  # noqa: PTH109  # its path may be too long for a socket
            os.chdir(path.parent)
            end.bind(path.name)
            os.chdir(here)

    yield "fifo", special(os.mkfifo)
    yield "socket", special(sock)
    yield "directory", special(lambda path: path.mkdir())
    for target in (
        "/dev/zero",
        "/dev/urandom",
        "/dev/null",
        "/proc/self/mem",
        "nowhere",
        name,
        "/proc/kmsg",
        "/etc/passwd",
    ):
        yield f"link to {target}", special(lambda path, target=target: path.symlink_to(target))
    yield "sparse", special(lambda path: (path.touch(), os.truncate(path, 10**12)))
    yield "closed", lambda path: path.exists() and path.chmod(0)
    yield "missing", lambda path: path.unlink(missing_ok=True)


def edits():
    """Yield damages of bytes, as functions of a content."""
    draw = random.Random(0)
    for number in range(12):
        where, bit = draw.random(), draw.randrange(8)
        yield (
            f"flip {number}",
            lambda c, w=where, b=bit: (at := int(w * len(c)), c[:at] + bytes([c[at] ^ 1 << b]) + c[at + 1 :])[1],
        )
    for share in (0.01, 0.3, 0.7, 0.99):
        yield f"cut {share}", lambda c, s=share: c[: int(s * len(c))]
    yield "doubled", lambda c: c + c


def rewritten(directory, change):
    """Change a record, and let its hash be right."""
    path = directory / "run.json"
    fields = json.loads(path.read_text())
    change(fields)
    fields.pop("sha256", None)
    inner = {name: value for name, value in fields.items() if name != "format"}
    fields["sha256"] = hashlib.sha256(json.dumps(inner, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(fields))


def rowed(directory, change):
    """Change the last row, and let the record pin it."""
    path = directory / "metrics.jsonl"
    *first, last = [json.loads(line) for line in path.read_text().splitlines()]
    content = "".join(json.dumps(row) + "\n" for row in [*first, change(last)]).encode()
    path.write_bytes(content)
    rewritten(directory, lambda fields: fields.update(metrics_sha256=hashlib.sha256(content).hexdigest()))


FILES = (
    "run.json",
    "metrics.jsonl",
    "model.safetensors",
    "clients.safetensors",
    "best.safetensors",
    "checkpoints/round_000002.safetensors",
    "partition.csv",
    "failures.jsonl",
    "refused.txt",
    ".lock",
)
FIELDS = [
    "status",
    "config",
    "choices",
    "overrides",
    "config_dirs",
    "command",
    "digest",
    "cell",
    "partition_sha256",
    "own_models",
    "personal",
    "metrics_sha256",
    "versions",
    "git",
    "python",
    "processor",
    "working_directory",
    "id",
    "started",
    "ended",
    "resumed",
    "result",
    "error",
    "name",
    "data",
    "num_parameters",
    "format",
]
SECTIONS = [
    "seed",
    "federation",
    "federation.num_rounds",
    "federation.target_accuracy",
    "hardware",
    "strategy",
    "strategy.pooled",
    "strategy.buffers",
    "model",
    "model.widths",
    "model._target_",
    "dataset",
    "dataset.declares",
    "partitioner",
    "optimizer.lr",
    "optimizer.schedule",
    "checkpoint",
    "tracker",
    "dtype",
]
COLUMNS = [
    "round",
    "eval/accuracy",
    "personal/accuracy",
    "comm/bytes_up_total",
    "local/steps",
    "time/total_s",
    "model/sha256",
    "own",
]


def at(tree, key, value):
    *sections, last = key.split(".")
    for name in sections:
        tree = tree.setdefault(name, {})
    tree[last] = value


def damages():
    """Return all damages by name: functions of a run's directory."""
    found = {}
    for name in FILES:
        for how, content in contents():
            found[f"{name}: {how}"] = lambda d, n=name, c=content: (d / n).write_bytes(c)
        for how, make in places_of(name):
            found[f"{name}: {how}"] = lambda d, n=name, m=make: m(d / n)
        if name not in ("failures.jsonl", "refused.txt", ".lock"):
            for how, edit in edits():
                found[f"{name}: {how}"] = lambda d, n=name, e=edit: (d / n).write_bytes(e((d / n).read_bytes()))
    for key in FIELDS:
        found[f"no {key}"] = lambda d, k=key: rewritten(d, lambda fields: fields.pop(k, None))
        for number, value in enumerate(ODD):
            found[f"{key}: odd {number}"] = lambda d, k=key, v=value: rewritten(
                d, lambda fields: fields.update({k: copy.deepcopy(v)})
            )
    for key in SECTIONS:
        for number, value in enumerate(ODD):
            found[f"config.{key}: odd {number}"] = lambda d, k=key, v=value: rewritten(
                d, lambda f: at(f["config"], k, copy.deepcopy(v))
            )
    for number, value in enumerate(ODD):
        for key in (
            "choices.strategy",
            "choices.experiment",
            "versions.torch",
            "git.fedresearch",
            "result.round",
            "config.own",
        ):
            found[f"{key}: odd {number}"] = lambda d, k=key, v=value: rewritten(d, lambda f: at(f, k, copy.deepcopy(v)))
        texts = value if isinstance(value, str) else f"a={json.dumps(value)}"
        for key in ("config_dirs", "overrides", "personal"):
            found[f"{key}: text {number}"] = lambda d, k=key, t=texts: rewritten(d, lambda f: f.update({k: [t]}))
        for key in COLUMNS:
            found[f"row {key}: odd {number}"] = lambda d, k=key, v=value: rowed(d, lambda row: {**row, k: v})
    for number, name in enumerate([LONG, "\x1b[31m", "a\nb", "../x", "eval/\ud800", "", "=1", "<b>", "x/y" * 100]):
        found[f"name {number} in config"] = lambda d, n=name: rewritten(
            d, lambda f: f["config"].update({n: 1, "a": {n: 0.5}})
        )
        found[f"name {number} in choices"] = lambda d, n=name: rewritten(d, lambda f: f["choices"].update({n: n}))
        found[f"name {number} in a row"] = lambda d, n=name: rowed(d, lambda row: {**row, n: 0.5})
        found[f"name {number} at the top"] = lambda d, n=name: rewritten(d, lambda f: f.update({n: n}))
    return found


def without_a_size(archive: bytes) -> bytes:
    """Set the size of an ``.npz`` file's last array to 0: NumPy reads nothing then, and compares no checksum."""
    at = archive.rindex(b"PK\1\2") + 20  # in the archive's directory: the compressed size, and the size
    return archive[:at] + bytes(8) + archive[at + 8 :]
