"""Names and checksums: sha256 of files and of what JSON can hold."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgenb.errors import MgenbError

CHECKSUM = "sha256"


def key_of(value: Any) -> str:
    """Return 20 hex digits that name a JSON value (the order of its keys does not matter)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]


def file_hash(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object as it is read again, with a checksum of it, which `unsealed` checks."""
    read_again = json.loads(json.dumps(value))
    return {**read_again, CHECKSUM: key_of(read_again)}


def unsealed(value: Any, where: str) -> dict[str, Any]:
    """Return what was `sealed`, without its checksum; MgenbError names `where` it stands if it was changed since."""
    bare = dict(value) if isinstance(value, dict) else {}
    if bare.pop(CHECKSUM, "") != key_of(bare):
        raise MgenbError(f"{where} was changed after it was written (its checksum says so): delete it, make it again")
    return bare
