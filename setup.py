"""Packages, found rather than listed; everything else is in pyproject.toml.

``solver/`` and ``models/`` stand at the top of the repository and are installed as
``upscale_opt.solver`` and ``upscale_opt.models``. What only tests and benchmarks use stays out.
"""

from setuptools import find_packages, setup

PLACES = {
    "upscale_opt": "upscale_opt",
    "upscale_opt.solver": "solver",
    "upscale_opt.models": "models",
}
NOT_SHIPPED = ("solver.brute_force", "models.generated", "models.instances")


def packages() -> list[str]:
    """All packages under the names they are installed by."""
    found = [name for place in PLACES.values() for name in (place, *inside(place))]
    shipped = [name for name in found if name not in NOT_SHIPPED]
    return sorted(
        name if name.startswith("upscale_opt") else f"upscale_opt.{name}" for name in shipped
    )


def inside(place: str) -> list[str]:
    """The packages below a folder."""
    return [f"{place}.{name}" for name in find_packages(place)]


setup(packages=packages(), package_dir=PLACES)
