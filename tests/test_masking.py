"""Secrets never get into a record: from the command, the config, a patch, and others' repositories."""

import subprocess

import pytest

from fedresearch import config
from fedresearch.errors import InputError
from fedresearch.masking import masked, masked_patch, masked_tree, masked_words
from fedresearch.runs.provenance import _checkout, provenance

SECRET = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"


@pytest.mark.parametrize(
    "words",
    [
        [f"tracker.api_key={SECRET}"],
        [f"+tracker.wandb_api_key={SECRET}"],
        [f"++dataset.token='{SECRET}'"],
        [f"dataset.password=two words {SECRET}"],
        [f"tracker={{api_key: {SECRET}, project: x}}"],
        [f"tracker={{token:{SECRET}}}"],
        [f"--api-key={SECRET}"],
        ["--api-key", SECRET],
        ["--hf-token", SECRET, "seed=1"],
        [f"env.AWS_SECRET_ACCESS_KEY={SECRET}"],
        [f"dataset.url=https://me:{SECRET}@example.org/x"],
        [f"dataset.url=https://example.org/x?access_token={SECRET}&y=1"],
        [f"x=sk-{SECRET}"],
        [f"name=hf_{SECRET}"],
        [f"x=ghp_{SECRET}"],
        [f"dataset.url=https://:{SECRET}@example.org/x"],
        [f"dataset.url=https://{SECRET}@example.org/x"],
        [f"dataset.url=https://me:p@ss{SECRET}@example.org/x"],
        [f"GITHUB_TOKEN={SECRET}"],
        [f"tracker.wandb_token={SECRET}"],
        [f"tracker.api_keys=[{SECRET}]"],
        [f"DB_PASS={SECRET}"],
        [f"x=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{SECRET}"],
        [f"Authorization: Bearer {SECRET}"],
        [f"x=wandb_v1_{SECRET}"],
    ],
)
def test_a_secret_among_words_is_masked(words):
    kept = masked_words(words)
    assert len(kept) == len(words)
    assert SECRET not in " ".join(kept)
    assert "***" in " ".join(kept)
    assert [word.partition("=")[0] for word in words if "=" in word] == [w.partition("=")[0] for w in kept if "=" in w]


@pytest.mark.parametrize(
    "word",
    [
        "dataset.declares.input=tokens",
        "model.num_tokens=90",
        "model.pad_token=0",
        "model.tokenizer=bpe",
        "partitioner.partition_by=label",
        "tracker.api_key=${oc.env:KEY}",
        "hydra.run.dir=outputs/token",
        "seed=0,1,2",
        "dataset.url=https://example.org/a:b",
        "git=0123456789abcdef0123456789abcdef01234567",
    ],
)
def test_other_words_stay(word):
    assert masked_words([word]) == [word]


def test_a_config_keeps_all_but_its_secrets():
    tree = {"tracker": {"api_key": SECRET, "token": "", "tags": [f"hf_{SECRET}", "a"]}, "seed": 1, "token": None}
    expected = {"tracker": {"api_key": "***", "token": "", "tags": ["***", "a"]}, "seed": 1, "token": None}
    assert masked_tree(tree) == expected


def test_an_error_keeps_its_other_words():
    assert masked(f"HTTPError: 401 for https://x.org/?token={SECRET}") == "HTTPError: 401 for https://x.org/?token=***"


def test_a_patch_keeps_its_code():
    code = "+token = line.split()\n+key = make(api_key=os.environ['KEY'])\n"
    pem = "+-----BEGIN RSA PRIVATE KEY-----\n+{0}\n-{0}\n+-----END RSA PRIVATE KEY-----\n"
    patch = f'{code}+API_KEY = "{SECRET}"\n{pem.format(SECRET)}'
    assert masked_patch(patch) == f'{code}+API_KEY = "***"\n{pem.format("***")}'


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Return a repository with changes to a source and to a file of secrets, as the working directory."""
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("x = 1\n")
    (tmp_path / "below").mkdir()
    for name in (".env", "below/.env.local", "key.pem"):
        (tmp_path / name).write_text("A=0\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    (tmp_path / "code.py").write_text("x = 2\n")
    for name in (".env", "below/.env.local", "key.pem"):
        (tmp_path / name).write_text(f"A={SECRET}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_of_secrets_are_named_in_the_patch_and_not_in_it(repository):
    fields, patches = provenance(["python", f"tracker.api_key={SECRET}"])
    assert fields["command"] == "python 'tracker.api_key=***'"
    first, *rest = patches["working_directory"].splitlines()
    assert first == "Left out, for they may hold secrets: .env, below/.env.local, key.pem"
    assert rest[0] == "diff --git a/code.py b/code.py"
    assert SECRET not in patches["working_directory"]
    (repository / "patch").write_text(patches["working_directory"])
    git(repository, "checkout", "code.py")
    git(repository, "apply", "patch")
    assert (repository / "code.py").read_text() == "x = 2\n"


def test_programs_that_a_repository_names_are_not_run(repository, monkeypatch):
    (repository / ".gitattributes").write_text("*.py diff=own\n")
    for key in ("core.fsmonitor", "diff.external", "diff.own.command", "diff.own.textconv", "core.pager"):
        git(repository, "config", key, f"touch {repository}/ran; true")
    hook = repository / ".git" / "hooks" / "post-index-change"
    hook.write_text(f"#!/bin/sh\ntouch {repository}/ran\n")
    hook.chmod(0o755)
    state, patch = _checkout(repository, ".")
    assert "+x = 2" in patch
    assert state["dirty"]
    assert not (repository / "ran").exists()


def test_another_users_repository_gives_its_commit_without_running_filters(repository, monkeypatch, caplog):
    git(repository, "config", "filter.own.clean", f"touch {repository}/ran; cat")
    (repository / ".gitattributes").write_text("*.py filter=own\n")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    commit = (repository / ".git" / "refs" / "heads").glob("*").__next__().read_text().strip()
    assert _checkout(repository, ".") == ({"commit": commit, "dirty": None, "diff_sha256": None}, "")
    (line,) = [record.getMessage() for record in caplog.records]
    assert "belongs to another user" in line
    assert "safe.directory" in line
    assert not (repository / "ran").exists()


def test_a_secret_that_was_typed_must_be_typed_again():
    words = ["seed=1", "dataset.token=***"]
    with pytest.raises(InputError, match=r"^dataset.token held a secret, and secrets are not recorded; type it again$"):
        config.merge_overrides(words, [])
    assert config.merge_overrides(words, ["dataset.token=x"]) == ["seed=1", "dataset.token=x"]
