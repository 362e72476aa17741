"""Run transformers' own common tests on the classes of this package, and say what came of each.

The common test classes are in the source distribution of transformers on the package index, in the version that is
installed; `--sdist FILE` takes one that is there already. What this package does otherwise by intention is listed, with
the reason, in tests/upstream/differences.yaml; any other failure, and anything listed that passes, is an error.

    python scripts/upstream_tests.py [--sdist FILE] [-k EXPRESSION] [-n PROCESSES]

Needs the extras of `pip install '.[test]'` and `parameterized`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT / "tests" / "upstream"
DIFFERENCES = CASES / "differences.yaml"

# What the common tests import beside transformers is not distributed; none of it concerns a detector.
STUBS = {
    "tests/exporters/test_export.py": "class ExportTesterMixin: pass\n",
    "tests/generation/test_utils.py": "class GenerationTesterMixin: pass\n",
    "tests/utils/test_configuration_utils.py": (
        "config_common_kwargs = {'return_dict': False, 'output_hidden_states': True, 'output_attentions': True}\n"
    ),
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url, *args, **kwargs): return url\n",
}


class Result(NamedTuple):
    """One test: "passed", "failed" or "skipped", and what was said."""

    name: str
    outcome: str
    message: str


def download(folder: Path) -> Path:
    """The source distribution of the installed transformers, from the package index."""
    version = importlib.metadata.version("transformers")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--no-binary", ":all:", "--dest", folder, f"transformers=={version}"], check=True)
    return next(folder.glob("*.tar.gz"))


def lay_out(sdist: Path, folder: Path) -> None:
    """Unpack the common tests into `folder`, with ours beside them."""
    with tarfile.open(sdist) as archive:
        tests = [member for member in archive.getmembers() if "/tests/" in member.name and "/src/" not in member.name]
        archive.extractall(folder / "sdist", members=tests, filter="data")
    (unpacked,) = (folder / "sdist").iterdir()
    shutil.move(unpacked / "tests", folder / "tests")
    for name, text in STUBS.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    cases = folder / "tests" / "cases"
    cases.mkdir()
    for file in CASES.glob("*_cases.py"):
        shutil.copy(file, cases)
    for package in {file.parent for file in (folder / "tests").rglob("*.py")}:
        (package / "__init__.py").touch()


def run(folder: Path, options: Sequence[str]) -> list[Result]:
    """Run the cases under `folder` and read what came of them."""
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "--rootdir", "."]
    command += ["-o", "python_files=*_cases.py", "-o", "python_classes=", f"--junitxml={report}", "--tb=short"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([*command, *options, "tests/cases"], cwd=folder, check=False, env=environment)
    if not report.exists():
        raise SystemExit("pytest made no report")
    return [_result(case) for case in ElementTree.parse(report).iter("testcase")]


def _result(case: ElementTree.Element) -> Result:
    name = f"{case.get('classname', '').split('.')[-1]}::{case.get('name')}"
    for kind, outcome in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        found = case.find(kind)
        if found is not None:
            return Result(name, outcome, (found.get("message") or "").split("\n")[0])
    return Result(name, "passed", "")


def reason(result: Result, differences: Mapping[str, str]) -> str | None:
    """Why this test is listed as a difference; names there may hold a `*`."""
    name = result.name.split("::")[-1]
    return next((text for pattern, text in differences.items() if fnmatch(name, pattern)), None)


def judge(results: Sequence[Result], differences: Mapping[str, str]) -> list[str]:
    """What is not as listed: failures without a reason, and listed tests that pass."""
    wrong = []
    for result in results:
        listed = reason(result, differences) is not None
        if result.outcome == "failed" and not listed:
            wrong.append(f"{result.name} failed: {result.message}")
        if result.outcome == "passed" and listed:
            wrong.append(f"{result.name} passes, though it is listed as a difference")
    return wrong


def table(results: Sequence[Result], differences: Mapping[str, str]) -> str:
    """A row for each class, then the reasons of what differs."""
    lines = [f"{'':24}{'passed':>8}{'differs':>9}{'failed':>8}{'skipped':>9}"]
    for owner in sorted({result.name.split("::")[0] for result in results}):
        own = [result for result in results if result.name.startswith(f"{owner}::")]
        count = Counter(result.outcome for result in own)
        differs = sum(r.outcome == "failed" and reason(r, differences) is not None for r in own)
        row = (count["passed"], differs, count["failed"] - differs, count["skipped"])
        lines.append(f"{owner:24}{row[0]:8}{row[1]:9}{row[2]:8}{row[3]:9}")
    failed = [result for result in results if result.outcome == "failed"]
    used = dict.fromkeys(text for result in failed if (text := reason(result, differences)))
    lines += [f"differs: {name}: {text}" for name, text in differences.items() if text in used]
    return "\n".join(lines)


def main() -> int:
    """Download, run, compare with the list; 1 where something is not as listed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdist", type=Path, help="the .tar.gz of transformers; by default it is downloaded")
    parser.add_argument("-k", dest="keyword", help="run only the tests that match, as in pytest")
    parser.add_argument("-n", dest="processes", help="how many processes, as in pytest-xdist")
    parser.add_argument("--keep", type=Path, help="lay the tests out in this folder and leave them there")
    arguments = parser.parse_args()
    options = [*(["-k", arguments.keyword] if arguments.keyword else [])]
    options += ["-n", arguments.processes] if arguments.processes else []
    differences: dict[str, str] = yaml.safe_load(DIFFERENCES.read_text()) or {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary) / "work").resolve()
        folder.mkdir(parents=True)
        lay_out((arguments.sdist or download(Path(temporary))).resolve(), folder)
        results = run(folder, options)
    wrong = judge(results, differences)
    sys.stdout.write("\n".join([table(results, differences), *(wrong or ["All as listed."]), ""]))
    return 1 if wrong or not results else 0


if __name__ == "__main__":
    raise SystemExit(main())
