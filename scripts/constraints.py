"""Print the pins of everything that `limbeck[dev]` needs, as installed here: `make constraints`."""

from __future__ import annotations

import sys
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = "limbeck"
HEADER = "# Exact versions that the tests ran with; `make constraints` writes this file."


def closure(name: str, extras: frozenset[str]) -> set[str]:
    """Return the canonical names of all installed packages that `name[extras]` needs, itself included."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(canonicalize_name(name), extras)]
    while waiting:
        package, wanted = waiting.pop()
        if (package, wanted) in seen:
            continue
        seen.add((package, wanted))
        for line in metadata.requires(package) or []:
            need = Requirement(line)
            chosen = [{"extra": extra} for extra in ("", *sorted(wanted))]
            if need.marker is None or any(need.marker.evaluate(e) for e in chosen):
                waiting.append((canonicalize_name(need.name), frozenset(need.extras)))
    return {package for package, _ in seen}


def main() -> int:
    """Write the pins to stdout; a local suffix such as torch's `+cpu` is dropped."""
    names = sorted(closure(ROOT, frozenset({"dev"})) - {ROOT})
    pins = [f"{name}=={metadata.version(name).split('+')[0]}" for name in names]
    sys.stdout.write("\n".join([HEADER, *pins]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
