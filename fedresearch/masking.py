"""Masks secrets in records: passwords, keys and tokens, found by their usual names and forms."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"

_NAME = (
    r"(?:[\w-]*[_-])?(?:api[_-]?keys?|login[_-]?key|access[_-]?key(?:[_-]?id)?|secret(?:[_-]?(?:access[_-]?)?key)?|private[_-]?key"
    r"|passw(?:or)?d|pwd|(?:db|ftp|smtp|proxy|user)[_-]pass|passphrase|credentials?|(?:auth|access|api|bearer|bot|git|github"
    r"|gitlab|gh|hf|hub|huggingface|login|refresh|session|security|slack|user|wandb)[_-]?token)"
    r"|token"  # only as the whole name: pad_token and num_tokens are about text
)
# Environment variables that only processes that need them get: more than is masked. PWD is the working directory.
_OF_A_VARIABLE = re.compile(
    rf"(?:^|_)(?:(?:API)?KEYS?|TOKENS?|SECRETS?|CREDENTIALS?|AUTH)(?:_|$)|PASSWORD|PASSWD|^(?!PWD$)(?:{_NAME})$",
    re.IGNORECASE,
)
_IS_NAME = re.compile(rf"(?:{_NAME})", re.IGNORECASE)
# A name and its value: as an override, in a printed section, in the query of a URL, as JSON.
_ASSIGNED = re.compile(
    rf"((?<![\w-])(?:{_NAME})['\"]?\s*[=:]\s*)(?!\$\{{)('[^']*'|\"[^\"]*\"|[^\s,;&{{}}\[\]'\"]+)", re.IGNORECASE
)
# In code, a literal value; a computed one is not a secret.
_LITERAL = re.compile(rf"((?<![\w-])(?:{_NAME})['\"]?\s*[=:]\s*)(['\"])[^'\"\s]{{8,}}\2", re.IGNORECASE)
_FORMS = re.compile(
    r"\b(?:sk-[\w-]{20,}|hf_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|AKIA[0-9A-Z]{16}"
    r"|xox[abprs]-[\w-]{10,}|wandb_v1_\w{20,}|AIza[\w-]{30,})"
    r"|(?<=://)[^\s/?#'\"]+(?=@)"  # in a URL, whose password may contain @
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}"  # a JSON Web Token
    r"|(?<=\bBearer )[\w.~+/=-]{16,}"
)
_PEM = re.compile(
    r"(-----BEGIN [A-Z ]*PRIVATE KEY-----\n)(.*?)(^.?-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL | re.MULTILINE
)


def without_secrets(environment: Mapping[str, str], keep: Sequence[str] = ()) -> dict[str, str]:
    """Return the variables whose names are not those of keys, tokens or passwords."""
    return {name: value for name, value in environment.items() if name in keep or not _OF_A_VARIABLE.search(name)}


def masked(text: str) -> str:
    """Return a text with ``***`` for each secret in it."""
    return _FORMS.sub(MASK, _ASSIGNED.sub(rf"\g<1>{MASK}", text))


def masked_words(words: Sequence[str]) -> list[str]:
    """Return the words of a command with ``***`` for each secret, also for the word after a flag like ``--api-key``."""
    behind = [False, *(word.startswith("-") and bool(_IS_NAME.fullmatch(word.lstrip("-"))) for word in words)]
    return [MASK if after else _masked_word(word) for word, after in zip(words, behind, strict=False)]


def _masked_word(word: str) -> str:
    key, is_assigned, value = word.partition("=")
    is_secret = is_assigned and _IS_NAME.fullmatch(key.lstrip("+~-").rpartition(".")[2])
    return f"{key}={MASK}" if is_secret and "${" not in value else masked(word)


def masked_tree(tree: Any) -> Any:
    """Return nested values with ``***`` for each text that is a secret by its form or its name."""
    if isinstance(tree, Mapping):
        return {
            name: MASK if isinstance(value, str) and value and _IS_NAME.fullmatch(str(name)) else masked_tree(value)
            for name, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return type(tree)(map(masked_tree, tree))
    return _FORMS.sub(MASK, tree) if isinstance(tree, str) else tree


def masked_patch(patch: str) -> str:
    """Return a patch with ``***`` for each literal secret; the rest is unchanged, so that the patch applies."""
    return _FORMS.sub(MASK, _LITERAL.sub(rf"\1\2{MASK}\2", _PEM.sub(_without_key, patch)))


def _without_key(found: re.Match[str]) -> str:
    """Return a masked PEM key with the same number of lines, each with its patch mark."""
    head, body, foot = found.groups()
    return head + re.sub(r"(?m)^(.?).+$", rf"\1{MASK}", body) + foot
