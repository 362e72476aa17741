"""What the documentation promises: snippets run without a network, links resolve, every page is in the menu."""

from __future__ import annotations

import re
import shutil
import urllib.request
from pathlib import Path

import pytest

from snippets import OUTPUT, Reader, Snippet, assert_alike, block_network, check_unrun, snippets_of
from test_house import ROOMS
from tiny import sound_stock

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
LOG = DOCS / "log.md"
"""Commands of the day they were given."""

PAGES = sorted(page for page in DOCS.rglob("*.md") if page != LOG)
TEXTS = [*PAGES, LOG, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
SNIPPETS = [snippet for page in PAGES for snippet in snippets_of(page)]
UNRUN = [snippet for snippet in SNIPPETS if snippet.noted("not run") is not None]
RUN_PAGES = dict.fromkeys(snippet.page for snippet in SNIPPETS if snippet not in UNRUN)
LANGUAGES = ("python", "shell", "yaml", "json", "text")
KINDS = ("not run", "needs", "run with")


@pytest.fixture(scope="module")
def sample_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample data that index.md creates, and nothing else."""
    folder = tmp_path_factory.mktemp("sample_data")
    (making,) = [snippet for snippet in SNIPPETS if "write_coco" in snippet.code]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        block_network(patch)
        Reader().follow(making)
    return folder


@sound_stock
@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.stem)
def test_the_snippets_of_a_page_run(
    page: Path, sample_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other in a folder with the sample data; what they print is what the page says."""
    monkeypatch.chdir(shutil.copytree(sample_data, tmp_path / "reader"))
    block_network(monkeypatch)
    reader = Reader()
    for snippet in snippets_of(page):
        try:
            reader.follow(snippet)
        except Exception as error:
            raise AssertionError(f"{snippet.where}: {error}") from error


@pytest.mark.parametrize("snippet", UNRUN, ids=lambda snippet: snippet.where)
def test_what_is_not_run_says_why_and_could_be(snippet: Snippet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reason; a test that it names exists; Python compiles and commands have the options that they are given."""
    reason = str(snippet.noted("not run"))
    assert reason
    for test in re.findall(r"tests/[\w/]+\.py", reason):
        assert (ROOT / test).is_file()
    check_unrun(snippet, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_snippet_is_understood(page: Path) -> None:
    """No fence escapes: each is found, in a language that is run or shown; notes are of known kinds."""
    snippets = snippets_of(page)
    assert 2 * len(snippets) == len(re.findall(r"^ *```", page.read_text(), re.MULTILINE))
    for snippet in snippets:
        assert snippet.language in LANGUAGES, snippet.where
        assert not snippet.note or snippet.note.partition(":")[0] in KINDS, snippet.where
        assert snippet.title or snippet.language in ("python", "shell", "json"), snippet.where


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_menu_has_every_page_once() -> None:
    menu = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2])
    assert sorted(menu) == sorted(str(page.relative_to(DOCS)) for page in [*PAGES, LOG])


def test_contributing_lists_the_folders_in_the_order_of_imports() -> None:
    layout = (ROOT / "CONTRIBUTING.md").read_text().partition("## Layout")[2].partition("##")[0]
    assert re.findall(r"^\| `(\w+)` \|", layout, re.MULTILINE) == ROOMS


def test_a_wrong_snippet_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another output, a failing command, a command of nobody, and an option that does not exist."""
    page = tmp_path / "page.md"
    monkeypatch.chdir(tmp_path)

    def follow(text: str) -> None:
        page.write_text(text)
        reader = Reader()
        for snippet in snippets_of(page):
            reader.follow(snippet)

    fence = "```"
    follow(
        f'{fence}python\nprint("found", 0.751, 12)\n{fence}\n\n{fence}text title="{OUTPUT}"\nfound 0.76 11\n{fence}\n'
    )
    with pytest.raises(AssertionError):
        follow(f'{fence}python\nprint("found", 0.7)\n{fence}\n\n{fence}text title="{OUTPUT}"\nfound 0.8\n{fence}\n')
    with pytest.raises(AssertionError):
        follow(f"{fence}shell\nhf-grounding-dino detect none.png --labels a\n{fence}\n")
    with pytest.raises(AssertionError, match="say why"):
        follow(f"{fence}shell\nrm -r photos\n{fence}\n")
    page.write_text(f"<!-- not run: so -->\n{fence}shell\nhf-grounding-dino detect --no-such-option\n{fence}\n")
    with pytest.raises(AssertionError):
        check_unrun(snippets_of(page)[0], monkeypatch)
    with pytest.raises(AssertionError):
        assert_alike("a 3", "b 3")


def test_the_network_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    block_network(monkeypatch)
    with pytest.raises(OSError, match="no network"):
        urllib.request.urlopen("http://127.0.0.1:9/")
