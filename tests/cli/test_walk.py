"""A walk through every verb with good and bad words: a code, a message, never a traceback."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import TOKEN, served
from metanet.cli.app import app
from metanet.cli.examples import EXAMPLES
from typer.main import get_command
from typer.testing import CliRunner
from walk_world import GOOD, bad_values, verbs, world

from metanet.errors import MetanetError
from metanet.tasks.optimize.meta import Training

# The client's own way to upload a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
VERBS = verbs()
ROOT = get_command(app)


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The world of good calls, with a Hub on loopback."""
    folder = tmp_path_factory.mktemp("walk")
    with pytest.MonkeyPatch.context() as patch, served(patch, folder / "cache") as hub:
        made = world(folder)
        patch.setenv("HF_TOKEN", TOKEN)
        hub.add("org/zoo", {p.relative_to(made["small"]).as_posix(): p.read_bytes()
                            for p in sorted(Path(made["small"]).rglob("*")) if p.is_file()})
        yield made


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return bad_values(tmp_path_factory.mktemp("bad"))


@pytest.fixture(autouse=True)
def _built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner would build all commands anew for each of two thousand calls."""
    monkeypatch.setattr("typer.testing._get_command", lambda _: ROOT)


def call(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit code and all that was written; an exception that nobody caught is raised."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(app, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise AssertionError(f"{words} ended in {done.exception!r}") from done.exception
    return done.exit_code, done.output


def clean(text: str) -> None:
    """No traceback, no call for a bug report, nothing that moves a cursor or turns a line."""
    assert "Traceback" not in text and "bug in metanet" not in text, text
    odd = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n"}
    assert not odd, (odd, text)


def words_of(verb: str, at: dict[str, str], out: Path) -> list[str]:
    return GOOD[verb].format(out=out / "made", **at).split()


def test_every_verb_has_a_good_call() -> None:
    assert set(VERBS) <= set(GOOD)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "bench"])
def test_good(verb: str, at: dict[str, str], tmp_path: Path,
              monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(verb, at, tmp_path)
    code, text = call([*(() if verb == "demo" else verb.split()), *words], tmp_path, monkeypatch)
    assert code in ((0, 1) if verb == "doctor" else (0,)), text
    clean(text)


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = call([*verb.split(), "--help"], tmp_path, monkeypatch)
    assert code == 0
    assert f"metanet {verb}" in text.partition("Usage:")[2].partition("\n")[2], "no example"
    clean(text)


@pytest.mark.parametrize("verb", VERBS)
def test_usage(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, too much, unknown and unfinished options, words where numbers belong."""
    command, first = VERBS[verb], verb.split()
    needed = [p for p in command.params if p.required]
    if needed:
        code, text = call(first, tmp_path, monkeypatch)
        assert code == 2, text
        clean(text)
    for tail in (["--no-such-option"], ["--\x1b[31mred\u202e"], ["-Z\x07"], ["x"] * 40):
        code, text = call([*first, *tail], tmp_path, monkeypatch)
        assert code in (2, 3), text
        clean(text)
    for option in command.params:
        if option.param_type_name != "option" or getattr(option, "is_flag", False):
            continue
        code, text = call([*first, option.opts[0]], tmp_path, monkeypatch)
        assert code == 2, text
        clean(text)


def swaps(words: list[str]) -> Iterator[int]:
    """Places of words that are values: neither options nor flags."""
    yield from (i for i, word in enumerate(words) if not word.startswith("-"))


def trips(verb: str, at: dict[str, str], bad: dict[str, str], folder: Path, every: bool
          ) -> Iterator[list[str]]:
    """A good call with one word replaced: each word by each bad value, or by two in turn."""
    names = list(bad)
    first = sum(map(ord, verb))
    places = [i for i, word in enumerate(GOOD[verb].split()) if not word.startswith("-")]
    for turn, place in enumerate(places):
        chosen = names if every else [names[(first + 2 * turn + k) % len(names)] for k in (0, 1)]
        for name in chosen:
            words = words_of(verb, at, folder / f"{place}-{name}")
            yield [*verb.split(), *words[:place], bad[name], *words[place + 1:]]


def walk(verb: str, at: dict[str, str], bad: dict[str, str], folder: Path,
         monkeypatch: pytest.MonkeyPatch, every: bool) -> None:
    fell = []
    for words in trips(verb, at, bad, folder, every):
        try:
            code, text = call(words, folder / "here", monkeypatch)
            assert code in (0, 1, 2, 3, 4), (code, text)
            clean(text)
        except AssertionError as error:
            fell.append(f"{words}: {error!s:.500}")
    assert not fell, "\n".join(fell)


BUSY = [verb for verb in VERBS if GOOD[verb] and verb != "demo"]  # which its own tests walk


@pytest.fixture
def _no_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad word in one place leaves the good ones in the others: what takes minutes is left out
    here, and done by the good calls."""
    def refuse(*_: object, **__: object) -> None:
        raise MetanetError("not in this test")

    train = Training.run
    monkeypatch.setattr(Training, "run", lambda self, limit, say: train(self, 0.0, say))
    monkeypatch.setattr("metanet.tasks.optimize.bench.trial", refuse)
    monkeypatch.setattr("metanet.tasks.predict.bench._zoo", refuse)


@pytest.mark.usefixtures("_no_long_work")
@pytest.mark.parametrize("verb", BUSY)
def test_bad_words(verb: str, at: dict[str, str], bad: dict[str, str], tmp_path: Path,
                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Each word of a good call in turn becomes a bad one."""
    walk(verb, at, bad, tmp_path, monkeypatch, every=False)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_long_work")
@pytest.mark.parametrize("verb", BUSY)
def test_all_bad_words(verb: str, at: dict[str, str], bad: dict[str, str], tmp_path: Path,
                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Each word in turn becomes each bad one: 1,300 calls."""
    walk(verb, at, bad, tmp_path, monkeypatch, every=True)


@pytest.mark.parametrize("verb", sorted(set(EXAMPLES) & set(VERBS)))
def test_examples_fit_their_verb(verb: str) -> None:
    """Each example parses, and is of this verb."""
    for line in EXAMPLES[verb]:
        words = shlex.split(line)
        assert " ".join(words[:1 + verb.count(" ") + 1]) == f"metanet {verb}"
        VERBS[verb].make_context(verb, words[2 + verb.count(" "):])


def test_alone_it_shows_where_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = call([], tmp_path, monkeypatch)
    assert code == 0 and "metanet demo" in text
    for line in text.splitlines():
        if line.startswith("  metanet "):
            assert any(line.split("metanet ")[1].startswith(verb) for verb in VERBS), line


@pytest.mark.parametrize(("words", "meant"), [
    (["inspct", "x"], "inspect"), (["zoo", "qurey", "x"], "query"),
    (["inspect", "x", "--arhc", "mlp"], "--arch"),
    (["zoo", "build", "inr-digit", "-o", "z"], "inr-digits"),
    (["inspect", "{mlp}", "--arch", "resnet20cifar"], "resnet20-cifar"),
    (["explain", "{mlp}", "0.wieght", "0", "--arch", "mlp"], "0.weight"),
    (["merge", "{mlp}", "{twin}", "--plan", "--method", "linaer"], "linear"),
])
def test_did_you_mean(words: list[str], meant: str, at: dict[str, str], tmp_path: Path,
                      monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = call([word.format(**at) for word in words], tmp_path, monkeypatch)
    assert code in (2, 3)
    assert meant in text, text
    clean(text)
