"""The layers of fastdecode: no import goes up, and no files import each other in a circle."""

from pathlib import Path

import pytest
from import_rules import Package, problems, read_imports

ROOT = Path(__file__).resolve().parents[1]

FASTDECODE = Package(
    "fastdecode",
    {"fastdecode": ROOT / "fastdecode", "fastdecode.triton_kernels": ROOT / "triton_kernels"},
    layers=(
        ("__main__", "generation", "cli", "jobs", "ray", "serve", "bench", "environment"),
        ("engine",),
        ("models",),
        ("guidance", "grammar", "layout", "schedule", "token_rules", "vocabulary"),
        ("decoder",),
        ("kv",),
        ("ops",),
        ("triton_kernels", "_C", "build_info", "extras", "versions", "wording"),
    ),
    facade_by=("__main__", "generation", "cli", "jobs", "ray", "serve", "bench", "environment"),
    compiled=("fastdecode._C",),
)


def test_imports_of_fastdecode_go_down_and_never_in_a_circle():
    found = [problem.message for problem in problems(FASTDECODE)]
    assert not found, "\n".join(found)


def test_the_imports_of_fastdecode_are_found():
    pairs = {(found.importer, found.target) for found in read_imports(FASTDECODE)}
    assert pairs > {
        ("fastdecode.cli.main", "fastdecode.bench.sample"),  # inside a function
        ("fastdecode.ops.sample.triton", "fastdecode.triton_kernels.sample"),  # whose source is elsewhere
        ("fastdecode.ops.backends", "fastdecode._C"),  # compiled
        ("fastdecode.decoder.decoder", "fastdecode.ops"),  # through the facade
        ("fastdecode.engine.runner", "fastdecode.decoder"),  # run before fastdecode.decoder.cuda_graph
    }


def made_up(folder: Path, **texts: str) -> Package:
    """A package `shop` of two layers, `front` above `store`; ``texts``: of its files, named with `__` for a slash."""
    for name, text in texts.items():
        file = folder / "shop" / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        for package in list(file.parents)[: name.count("__") + 1]:
            (package / "__init__.py").touch()
    return Package("shop", {"shop": folder / "shop"}, layers=(("front",), ("store",)), facade_by=("front",))


UPWARD = {
    "plain": "import shop.front.till",
    "from a file": "from shop.front.till import price",
    "of a file": "from shop.front import till",
    "of a package": "from shop.front import price",
    "relative": "from ..front.till import price",
    "in a function": "def sell():\n    from shop.front import till",
    "for types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from shop.front.till import price",
    "by its name": "import importlib\nimportlib.import_module('shop.front.till')",
}


@pytest.mark.parametrize("text", UPWARD.values(), ids=UPWARD.keys())
def test_an_import_that_goes_up_is_found(tmp_path, text):
    package = made_up(tmp_path, front__till="price = 1", store__shelf=text)
    (tmp_path / "shop" / "front" / "__init__.py").write_text("price = 2")
    found = problems(package)
    assert found
    assert {problem.files for problem in found} == {("shop.store.shelf",)}
    line = text.count("\n") + 1
    assert f"{tmp_path / 'shop' / 'store' / 'shelf.py'}:{line} imports shop.front" in found[0].message
    assert "no import goes up, and front is above store" in found[0].message
    assert "Right would be to move what both need to store or below" in found[0].message


def test_what_goes_down_is_no_problem(tmp_path):
    text = "from shop.store import shelf\nfrom shop import opened, store\nimport shop.store.cellar"
    package = made_up(tmp_path, front__till=text, store__shelf="from . import cellar", store__cellar="import math")
    assert problems(package) == []


def test_a_circle_of_two_is_found(tmp_path):
    files = {"store__shelf": "import os\nfrom shop.store import cellar", "store__cellar": "from .shelf import book"}
    [problem] = problems(made_up(tmp_path, **files))
    assert set(problem.files) == {"shop.store.shelf", "shop.store.cellar"}
    assert f"{tmp_path / 'shop' / 'store' / 'shelf.py'}:2 imports shop.store.cellar" in problem.message
    assert f"{tmp_path / 'shop' / 'store' / 'cellar.py'}:1 imports shop.store.shelf" in problem.message
    assert "Right would be to move what they share" in problem.message


def test_a_circle_of_four_with_lazy_imports_is_found(tmp_path):
    [problem] = problems(
        made_up(
            tmp_path,
            store__a="from shop.store.b import x",
            store__b="def f():\n    from shop.store.c import x",
            store__c="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from shop.store.d import x",
            store__d="import shop.store.a",
            store__e="import shop.store.a",
        )
    )
    assert problem.files == ("shop.store.a", "shop.store.b", "shop.store.c", "shop.store.d")


def test_a_circle_through_the_file_of_a_package_is_found(tmp_path):
    package = made_up(
        tmp_path, store__box__lid="from shop.store.shelf import x", store__shelf="import shop.store.box.key"
    )
    (tmp_path / "shop" / "store" / "box" / "key.py").touch()
    assert problems(package) == []
    (tmp_path / "shop" / "store" / "box" / "__init__.py").write_text("from shop.store.box.lid import x")
    [problem] = problems(package)
    assert set(problem.files) == {"shop.store.box", "shop.store.box.lid", "shop.store.shelf"}


def test_names_of_the_facade_are_for_those_on_top(tmp_path):
    package = made_up(tmp_path, front__till="from shop import opened", store__shelf="from shop import opened")
    [problem] = problems(package)
    assert problem.files == ("shop.store.shelf",)
    assert "only front may import names from shop/__init__.py" in problem.message


def test_a_room_without_a_layer_is_found(tmp_path):
    [problem] = problems(made_up(tmp_path, garden="import math"))
    assert problem.message == "shop/garden is in no layer: LAYERS must name it"


def test_an_import_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"shelf\.py:1 imports shop\.attic, which does not exist"):
        problems(made_up(tmp_path, store__shelf="import shop.attic"))
