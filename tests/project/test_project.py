"""The project's own promises: one dependency list, pins, environment.yml, Makefile, layout,
licence.

Reads files only. Catches what breaks a fresh clone: a dependency without a pin, an environment.yml
that has drifted, a module that has outgrown its size, a path of one machine in a tracked file.
"""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, BUILD = PYPROJECT["project"], PYPROJECT["build-system"]
PINS = dict(
    line.lower().replace("_", "-").split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


def requirements() -> list[Requirement]:
    """Every direct dependency, extras included, the package's own extras left out."""
    listed = [
        *PROJECT["dependencies"],
        *(r for group in PROJECT["optional-dependencies"].values() for r in group),
    ]
    return [Requirement(text) for text in listed if not text.startswith("plantlib")]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda r: r.name)
def test_every_dependency_is_pinned_and_the_pin_is_allowed(requirement):
    assert requirement.specifier.contains(Version(PINS[requirement.name.lower()]))


def test_environment_yml_installs_the_one_dependency_list():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    torch = next(text for text in PROJECT["dependencies"] if text.startswith("torch"))
    assert pip == ["-c constraints.txt", torch, "-e .[all]"]
    python = next(item for item in environment["dependencies"] if str(item).startswith("python="))
    assert PROJECT["requires-python"].startswith(">=" + python.split("=")[1])


def test_make_alone_prints_help_and_the_makefile_stays_short():
    printed = subprocess.run(
        ["make", "-C", str(ROOT)], capture_output=True, text=True, check=True
    ).stdout
    for target in ("reproduce", "test", "lab", "run", "bench", "figures"):
        assert re.search(rf"^{target}\s", printed, re.M), target
    assert len((ROOT / "Makefile").read_text().splitlines()) <= 60


def test_binder_installs_the_pins_of_the_makefile():
    script, makefile = (ROOT / "binder" / "postBuild").read_text(), (ROOT / "Makefile").read_text()
    pins = set(re.findall(r"[\w-]+==[\w.]+", makefile))
    assert len(pins) >= 3 and set(re.findall(r"[\w-]+==[\w.]+", script)) == pins
    assert subprocess.run(["bash", "-n", str(ROOT / "binder" / "postBuild")]).returncode == 0
    assert (ROOT / "binder" / "postBuild").stat().st_mode & 0o100, "Binder runs it as a program"
    python = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text())["dependencies"][0]
    assert PROJECT["requires-python"].startswith(">=" + python.split("=")[1])


def test_citation_and_changelog_know_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(citation)
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    heads = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert heads[0] == "Unreleased" and heads[1] == PROJECT["version"]
    import plantlib

    assert plantlib.__version__ == PROJECT["version"]


def tracked() -> list[Path]:
    names = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True
    ).stdout
    return [ROOT / name for name in names.splitlines() if (ROOT / name).is_file()]


def test_modules_keep_their_size():
    sizes = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for package in ("plantlib", "companion")
        for path in (ROOT / package).rglob("*.py")
    }
    assert {name: n for name, n in sizes.items() if n > 500} == {}


# every module of plantlib in a process that can import none of these
ALONE = """
import importlib, pkgutil, sys

EXPERIMENTS = {"companion", "papermill", "seaborn", "omikuji", "dask", "distributed", "napkinxc"}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in EXPERIMENTS:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import plantlib
for module in pkgutil.walk_packages(plantlib.__path__, "plantlib."):
    if module.name not in sys.argv[1:]:
        importlib.import_module(module.name)
"""


def test_plantlib_works_without_the_experiments():
    kernels = []  # of Triton, an optional package
    if importlib.util.find_spec("triton") is None:
        names = ("cooccurrence", "label_attention", "label_attention_tiles", "listwise")
        kernels = [f"plantlib.kernels.{name}" for name in names]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *kernels], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_tests_mirror_the_rooms():
    rooms = {path.parent.name for path in (ROOT / "plantlib").glob("*/__init__.py")}
    tested = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    beside = {"benchmarks", "companion", "data_scripts", "project"}
    assert tested - beside == rooms


def test_imports_of_plantlib_stand_at_the_top():
    """Only lazy `__init__`s, the command line and kernels of optional packages import later."""
    later = []
    for path in (ROOT / "plantlib").rglob("*.py"):
        if path.name == "__init__.py" or path.parent.name == "cli":
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node not in tree.body:
                if (node.module or "").split(".")[0] in ("plantlib", "companion"):
                    later += [f"{path.name}: {node.module}.{name.name}" for name in node.names]
    optional = {"cooccurrence", "label_attention", "listwise"}
    assert [name for name in later if name.rpartition(".")[2] not in optional] == []


def test_no_tracked_file_is_large_or_names_a_machine():
    # the pattern is put together so that this file does not match itself
    machine = re.compile("|".join(f"/{folder}/" for folder in ("work", "root", "tmp/dev")))
    for path in tracked():
        assert path.stat().st_size <= 2**20, f"{path.name} is over 1 MiB"
        if path.suffix in {
            ".py",
            ".md",
            ".ipynb",
            ".json",
            ".yml",
            ".yaml",
            ".toml",
            ".csv",
            ".txt",
        }:
            found = machine.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path.name} names {found and found[0]}"


def test_importing_the_package_loads_no_framework():
    code = (
        "import sys, plantlib; sys.exit(any(m in sys.modules for m in ('torch', 'transformers',"
        " 'pandas')))"
    )
    import sys

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_conda_recipe_asks_for_what_the_package_asks_for():
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text())
    assert recipe["context"]["version"] == PROJECT["version"]
    assert recipe["about"]["license"] == PROJECT["license"]
    (script,) = recipe["build"]["python"]["entry_points"]
    assert script == f"plant = {PROJECT['scripts']['plant']}"
    of_pip = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    of_pip = {{"torch": "pytorch"}.get(name, name): rule for name, rule in of_pip.items()}
    asked = [Requirement(text.replace(" ", "", 1)) for text in recipe["requirements"]["run"]]
    of_conda = {r.name: r.specifier for r in asked}
    assert str(of_conda.pop("python")) == str(
        Requirement(f"x{PROJECT['requires-python']}").specifier
    )
    assert of_conda == of_pip
    # what builds it, its licence and what is tried after it is installed
    host = {r.name for r in map(Requirement, BUILD["requires"])} | {"python", "pip"}
    built = [Requirement(text.replace(" ", "", 1)) for text in recipe["requirements"]["host"]]
    assert {r.name for r in built} == host
    (setuptools,) = (r for r in built if r.name == "setuptools")
    assert [str(setuptools)] == BUILD["requires"]
    assert (ROOT / recipe["about"]["license_file"]).is_file()
    imports = [
        name for test in recipe["tests"] if "python" in test for name in test["python"]["imports"]
    ]
    assert imports and all(importlib.util.find_spec(name) for name in imports)


def test_the_conda_recipe_is_one_to_its_builder():
    """Schema and version rules as rattler-build reads them; no channel is asked, so nothing is
    solved. `pip install --no-deps py-rattler-build` brings the reader."""
    rattler_build = pytest.importorskip("rattler_build", reason="no py-rattler-build")
    text = (ROOT / "conda" / "recipe.yaml").read_text()
    (variant,) = rattler_build.Stage0Recipe.from_yaml(text).render()
    package = variant.recipe.to_dict()
    assert package["package"] == {"name": "plantlib", "version": PROJECT["version"]}
    assert package["build"]["noarch"] == "python"
    for wrong in (("noarch:", "noarc:"), (">=2.0,<3", ">=>2.0,<3")):
        with pytest.raises(rattler_build.RecipeParseError):
            rattler_build.Stage0Recipe.from_yaml(text.replace(*wrong))


def test_the_core_is_small():
    names = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert len(names) <= 16
    assert not names & {"jupyterlab", "seaborn", "matplotlib", "dask", "sphinx", "datasets", "onnx"}
