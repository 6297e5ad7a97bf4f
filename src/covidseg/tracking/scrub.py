"""What of a configuration may leave the machine: what made the run, but no secret, no path, no environment."""

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

REMOVED_PATH = "<path>"
REMOVED_RESOLVER = "<resolver>"

_SECRET = re.compile(
    r"token|secret|passw|passphrase|credential|api_?key|(^|_)(key|keys|auth|login|user|username|email)(_|$)"
)
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
    """`text` with every absolute path in it replaced."""
    return _ABSOLUTE.sub(REMOVED_PATH, text)


def _cut_resolvers(text: str) -> str:
    return REMOVED_RESOLVER if _RESOLVER.search(text) else text


def _walk(node: Any, rewrite) -> Any:
    if isinstance(node, Mapping):
        return {key: _walk(value, rewrite) for key, value in node.items() if not _is_private(str(key))}
    if isinstance(node, list | tuple):
        return [_walk(value, rewrite) for value in node]
    return rewrite(node) if isinstance(node, str) else node


def _is_private(key: str) -> bool:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower().replace("-", "_")
    return bool(_SECRET.search(words) or _PLACE.search(words))
