"""What may be written and what may leave: one rule for secrets, one for what else is private.

Secrets (by the name of their key, or because an environment variable of such a name holds them) are written nowhere.
What leaves the machine, to a tracker, holds no path, no user and no environment either.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

REMOVED_PATH = "<path>"
REMOVED_RESOLVER = "<resolver>"

MASK = "***"
_SECRET = re.compile(
    r"(^|_)(token|secrets?|password|passwd|passphrase|pwd|credentials?|apikey|key|auth|authorization|login)(_|$)"
)
_IDENTITY = re.compile(r"(^|_)(keys|user|username|email)(_|$)")
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s:]+:[^/@\s]+(?=@)")  # user:password@
_INTERPOLATION = re.compile(r"(?<!\\)\$\{")
_KEY_INSIDE = re.compile(r"[{,]\s*([\w.-]+)\s*:")
_SHORTEST_SECRET = 8  # characters; a shorter value of a variable would be found in any text
_PLACE = re.compile(r"(^|_)(path|paths|root|dir|folder|file|cwd|home|host|hostname|command|argv)(_|$)")
_RESOLVER = re.compile(r"\$\{(?!oc\.(?:select|dict\.keys|dict\.values):)[^}$]*:")
_ABSOLUTE = re.compile(r"(?:^|(?<=[\s=:,;'\"(\[]))(?:~|[A-Za-z]:\\|/)[^\s'\",;)\]]+")


def scrubbed(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """`config` as plain values, node interpolations resolved, without what must not be tracked.

    Left out: keys that name a secret or a place on this machine (`api_key`, `password`, `paths`, `data.root`, ...).
    Replaced: what a resolver such as `${oc.env:...}` would fetch (also where another node points at it), and absolute
    paths inside any text.
    """
    raw = OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else config
    inert = OmegaConf.create(_walk(raw, _cut_resolvers))
    return _walk(OmegaConf.to_container(inert, resolve=True), scrub_text)


def scrub_text(text: str) -> str:
    """`text` without secrets, every absolute path in it replaced."""
    return _ABSOLUTE.sub(REMOVED_PATH, without_secrets(text))


def is_secret(key: str) -> bool:
    """Whether a key's name says that its value is nobody else's business: `api_key`, `wandbToken`, `my_password`."""
    return bool(_SECRET.search(_words(key)))


def without_secrets(node: Any, key: str = "") -> Any:
    """Plain containers or text with secrets masked.

    What comes from the environment stays the text `${oc.env:NAME}`, escaped so that nobody resolves it.
    """
    return _masked(node, key, _secret_values())


def _masked(node: Any, key: str, held: list[str]) -> Any:
    """`held`: values that are secret wherever they stand."""
    if isinstance(node, Mapping):
        return {name: _masked(value, str(name), held) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [_masked(value, key, held) for value in node]
    if node is not None and is_secret(key):
        return MASK
    if not isinstance(node, str):
        return node
    for value in held:
        node = node.replace(value, MASK)
    node = _IN_ADDRESS.sub(MASK, node)
    return _INTERPOLATION.sub(r"\\${", node) if "oc.env" in node else node


def without_secret_argument(argument: str) -> str:
    """A `key=value` of a command line, masked where the key or the value is secret."""
    key = secret_option(argument)
    return f"{key}={MASK}" if key else without_secrets(argument)


def secret_option(argument: str) -> str | None:
    """The key of a `key=value` of a command line whose name says that its value is a secret.

    Keys inside the value count, too: `logger.tags={api_token: ...}`.
    """
    key, sign, value = argument.partition("=")
    if not sign:
        return None
    last = re.split(r"[.@/]", key)[-1].lstrip("+~-")
    return key if any(map(is_secret, [last, *_KEY_INSIDE.findall(value)])) else None


def _secret_values() -> list[str]:
    """What environment variables with a secret's name hold."""
    held = [value for name, value in os.environ.items() if is_secret(name.lower())]
    return [value for value in held if len(value) >= _SHORTEST_SECRET and not value.startswith(("/", "~"))]


def _cut_resolvers(text: str) -> str:
    return REMOVED_RESOLVER if _RESOLVER.search(text) else text


def _walk(node: Any, rewrite) -> Any:
    if isinstance(node, Mapping):
        return {key: _walk(value, rewrite) for key, value in node.items() if not _is_private(str(key))}
    if isinstance(node, list | tuple):
        return [_walk(value, rewrite) for value in node]
    return rewrite(node) if isinstance(node, str) else node


def _is_private(key: str) -> bool:
    words = _words(key)
    return bool(_SECRET.search(words) or _IDENTITY.search(words) or _PLACE.search(words))


def _words(key: str) -> str:
    """`myApiKey` and `my-api-key` as `my_api_key`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower().replace("-", "_")
