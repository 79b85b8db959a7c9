"""Files that would run code or pass for markup: never unpickled, and shown as what they are."""

from __future__ import annotations

import ast
import json
import pickle
import re
import shlex
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import bad_files
import pytest

from verify.commands.cli import main
from verify.report.documents.reading import document_of

PACKAGE = Path(__file__).parents[2] / "verify"
# What turns bytes into calls. The one that is there reads what this run's own processes send each other over a socket
# pair, or over gloo between launched processes; no user's file reaches either.
LOADERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
# torch.distributed pickles what these exchange. One fault does so on purpose, between the ranks that it breaks; the
# families of vllm-omni send the seed that upstream gave a request, between the ranks of one run.
OBJECTS = {
    *("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"),
    *("send_object_list", "recv_object_list"),
}
ALLOWED = {
    ("ranks/local/wire.py", "pickle"),
    ("faults/exchanges.py", "dist.broadcast_object_list"),
    ("targets/vllm_omni/families/target.py", "dist.broadcast_object_list"),
}


def dotted(node: ast.expr) -> str:
    """``a.b.c`` for a name with its attributes. Of what is no name, as in ``f().b``, only the attributes: ``.b``."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def test_nothing_but_the_private_socket_is_unpickled() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            called = dotted(node.func) if isinstance(node, ast.Call) else ""
            place = str(path.relative_to(PACKAGE))
            found |= {(place, name) for name in names if name.split(".")[0] in LOADERS}
            loads = called in ("torch.load", "numpy.load", "np.load", "eval", "exec")
            found |= {(place, called)} if loads or called.split(".")[-1] in OBJECTS else set()
    assert found == ALLOWED


def test_the_trap_that_the_table_sets_does_spring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(bad_files.BOMB)
    assert (tmp_path / "sprung").is_dir()


@pytest.mark.parametrize("command", ["report x", "fuzz --replay x", "run --loop ./x.py:loop", "run --target ./x.py:T"])
def test_a_pickle_named_anywhere_is_refused(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x", "x.py"):
        (tmp_path / name).write_bytes(bad_files.BOMB)
    assert main(command.split()) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert not (tmp_path / "sprung").exists()


NAME = "<img src=x onerror=alert(1)>|`*_[x](y) \x1b[31m"
SAID = "<script>alert(2)</script>|```\\n`"
BODY = "if group.rank == 1: raise ValueError({said!r})\n    return " + bad_files.ALL


class Tags(HTMLParser):
    """How many elements of each kind a page has, every attribute that a browser would run, and the page's scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.scripts: list[str] = []
        self.handlers: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += tag != "wbr" or bool(attrs)  # Where a long name may break: that depends on the name.
        self.handlers |= {name for name, value in attrs if name.startswith("on") or "javascript:" in (value or "")}

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts.append(data)


FENCE = re.compile(r"^(`{3,})text\n.*?^\1$", re.M | re.S)


def tags_of_markdown(text: str) -> list[str]:
    """What Markdown takes for tags of HTML: outside of blocks and spans of code, and not escaped."""
    outside = re.sub(r"(?<!\\)(`+)[^\n]*?\1", "", FENCE.sub("", text))
    return re.findall(r"(?<!\\)<[^>\n]*", outside)


def reports_of_a_harmless_loop(folder: Path) -> tuple[str, str]:
    """The page and the summary of a loop that fails in the same way, with a name and a message of plain words."""
    loop, html, markdown = (folder / f"plain.{kind}" for kind in ("py", "html", "md"))
    loop.write_text(bad_files.HEAD + BODY.format(said="said"))
    outputs = ["--html", str(html), "--markdown", str(markdown)]
    assert main(["run", "--loop", f"{loop}:loop", *shlex.split(bad_files.SHORT), *outputs]) == 3
    return html.read_text(), markdown.read_text()


def test_a_loop_that_looks_like_markup_is_text_in_every_report(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loop = tmp_path / f"{NAME}.py"
    loop.write_text(bad_files.HEAD + BODY.format(said=SAID))
    html, markdown, document = (tmp_path / f"out.{kind}" for kind in ("html", "md", "json"))
    outputs = ["--html", str(html), "--markdown", str(markdown), "--json", str(document)]
    assert main(["run", "--loop", f"{loop}:loop", *shlex.split(bad_files.SHORT), *outputs]) == 3
    shown = capfd.readouterr().out
    assert "\x1b" not in shown
    assert SAID in shown
    plain_html, plain_markdown = reports_of_a_harmless_loop(tmp_path)
    page, plain = Tags(html.read_text()), Tags(plain_html)
    assert (page.tags, page.scripts) == (plain.tags, plain.scripts)
    assert "img" not in page.tags
    assert not page.handlers
    text = markdown.read_text()
    assert "\x1b" not in text
    assert tags_of_markdown(text) == tags_of_markdown(plain_markdown)
    inside = "".join(match[0] for match in FENCE.finditer(text))
    assert SAID in inside
    held = json.loads(document.read_text())
    document_of(held)
    assert SAID in held["failure"]["ranks"][0]["what"]
