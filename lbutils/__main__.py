"""Check the environment: `python -m lbutils` prints its versions, or how to mend it."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

_MEND = (
    "python -m pip uninstall -y torch torchvision && "
    "python -m pip install --no-deps -r requirements.lock"
)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(missing)"


def diagnose() -> str | None:
    """One line that says what is broken and how to mend it; None when all is well.

    torchvision's compiled operators load only beside the torch build that they were made for.
    A CPU-only torch beside a CUDA torchvision fails with "operator torchvision::nms does not
    exist", and takes open_clip with it.
    """
    try:
        torch = import_module("torch")
        nms = import_module("torchvision.ops").nms
        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed: run `make env`, or {_MEND.split(' && ')[1]}"
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        pair = f"torch {_version('torch')} and torchvision {_version('torchvision')}"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return f"{pair} do not work together ({reason}); in this environment run: {_MEND}"
    try:
        import_module("open_clip")
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed: run `make env`, or {_MEND.split(' && ')[1]}"
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return f"open_clip does not load ({error}): python -m pip install -r requirements.lock"
    return None


def main() -> int:
    """Exit status: 0 when torch, torchvision and open_clip load together, else 1."""
    problem = diagnose()
    if problem:
        print(problem, file=sys.stderr)
        return 1
    packages = ("torch", "torchvision", "open-clip-torch", "numpy", "polars")
    found = ", ".join(f"{package} {_version(package)}" for package in packages)
    print(f"environment ready: Python {sys.version.split()[0]}, {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
