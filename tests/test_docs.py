"""What the pages of documentation promise: their snippets run without a network, their links lead somewhere."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from snippets import OUTPUT, Reader, Snippet, assert_alike, block_network, check_unrun, snippets_of
from tiny import sound_stock

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
LOG = DOCS / "log.md"
"""Commands of the day they were given."""

ALL_PAGES = [*sorted(DOCS.glob("*.md")), *sorted((DOCS / "reference").glob("*.md"))]
PAGES = [page for page in ALL_PAGES if page != LOG]
SNIPPETS = [snippet for page in PAGES for snippet in snippets_of(page)]
UNRUN = [snippet for snippet in SNIPPETS if snippet.noted("not run") is not None]
LANGUAGES = ("python", "shell", "yaml", "json", "text")
KINDS = ("not run", "needs", "run with", "by itself")


def named(snippet: Snippet) -> str:
    return snippet.where


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures that index.md makes, and nothing else."""
    folder = tmp_path_factory.mktemp("trial")
    (making,) = [snippet for snippet in SNIPPETS if "write_coco" in snippet.code]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        block_network(patch)
        Reader().follow(making)
    return folder


@sound_stock
@pytest.mark.parametrize("page", dict.fromkeys(one.page for one in SNIPPETS), ids=lambda page: page.stem)
def test_the_snippets_of_a_page_run(page: Path, trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other in a folder with the trial pictures; what they print is what the page says."""
    folder = shutil.copytree(trial, tmp_path / "reader")
    monkeypatch.chdir(folder)
    block_network(monkeypatch)
    reader = Reader()
    for snippet in snippets_of(page):
        try:
            reader.follow(snippet)
        except Exception as error:
            raise AssertionError(f"{snippet.where}: {error}") from error


@pytest.mark.parametrize("snippet", UNRUN, ids=named)
def test_what_is_not_run_says_why_and_could_be(snippet: Snippet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reason; a test that it names exists; Python compiles and commands have the options that they are given."""
    reason = str(snippet.noted("not run"))
    assert reason
    for test in re.findall(r"tests/[\w/]+\.py", reason):
        assert (ROOT / test).is_file()
    check_unrun(snippet, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_snippet_is_understood(page: Path) -> None:
    """No fence escapes: each is found, in a language that is run or shown; a note is one of three kinds."""
    snippets = snippets_of(page)
    assert 2 * len(snippets) == len(re.findall(r"^ *```", page.read_text(), re.MULTILINE))
    for snippet in snippets:
        assert snippet.language in LANGUAGES, snippet.where
        assert not snippet.note or snippet.note.partition(":")[0] in KINDS, snippet.where
        assert snippet.title or snippet.language in ("python", "shell", "json"), snippet.where


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_menu_has_every_page_once() -> None:
    """Each page is in the menu, and the menu has no others."""
    menu = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2])
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert sorted(menu) == sorted(there)


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
    import urllib.request

    block_network(monkeypatch)
    with pytest.raises(OSError, match="no network"):
        urllib.request.urlopen("http://127.0.0.1:9/")
