"""Lines and bars."""

import io
import logging

import pytest
from rich.console import Console
from rich.progress import Progress

from axfold import console
from axfold.errors import InputError
from axfold.progress import FeaturesMade, Step


def step(block: int = 12, remaining: float | None = 200.0) -> Step:
    return Step(number=2, passes=4, stage="Evoformer", block=block, blocks=48, share=0.4, remaining=remaining)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "about 0 s left"), (89, "about 89 s left"), (200, "about 3 min left"), (9000, "about 2.5 h left")],
)
def test_what_is_left(seconds, text):
    assert console.left(seconds) == text


def test_a_step_in_words():
    assert console.describe(step()) == "pass 2/4, Evoformer 12/48, about 3 min left"
    assert console.describe(step(remaining=None)) == "pass 2/4, Evoformer 12/48"


def test_columns_are_aligned():
    assert console.columns([("a", "b"), ("long", "c")]) == "a     b\nlong  c"


def test_without_a_terminal_a_line_comes_now_and_then(capsys):
    now = 0.0
    with console.display() as display:
        assert type(display) is console.Plain
    display = console.Plain(lambda: now)
    display.begin("protein model_1")
    for now in (1.0, 29.0, 31.0, 32.0, 62.0):  # noqa: B007
        display.event(step())
    display.event(FeaturesMade(seconds=1.0))
    display.end()
    line = "protein model_1: pass 2/4, Evoformer 12/48, about 3 min left"
    assert capsys.readouterr().out.splitlines() == ["protein model_1", line, line]


def test_warnings_go_to_stderr(capsys):
    console.Plain().warning("beware")
    assert capsys.readouterr() == ("", "beware\n")


def test_on_a_terminal_a_bar_moves():
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, width=80)
    with Progress(*console.bar_columns(), console=terminal, auto_refresh=False, expand=True) as bar:
        display = console.Live(bar)
        display.step(step())  # nothing has begun
        display.begin("protein [model_1]" + " of a long name" * 9)
        display.step(step())
        bar.refresh()
        display.line("recycle=0 [done]")
        display.warning("beware [of] this")
        assert bar.tasks[0].percentage == pytest.approx(40)
        display.begin("another")
        assert [task.description for task in bar.tasks] == ["another"]
        display.end()
        display.end()
        assert not bar.tasks
    shown = stream.getvalue()
    for text in (
        "protein [model_1]",
        "pass 2/4, Evoformer 12/48, about 3 min left",
        "recycle=0 [done]",
        "beware [of] this",
    ):
        assert text in shown


def test_a_terminal_is_recognised(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with console.display() as display:
        assert isinstance(display, console.Live)


def test_log_lines_go_to_the_file_and_the_user(tmp_path, capsys):
    path = tmp_path / "log.txt"
    logger = logging.getLogger("axfold.somewhere")
    before = logging.getLogger("axfold").level, list(logging.getLogger("axfold").handlers)
    for text in ("first", "second"):
        with console.logged(path, console.Plain()):
            logger.info("%s run", text)
            logger.warning("%s warning", text)
            logger.debug("%s traceback", text)
    out, err = capsys.readouterr()
    assert out.splitlines() == ["first run", "second run"]
    assert err.splitlines() == ["warning: first warning", "warning: second warning"]
    lines = path.read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines[:3]] == ["first run", "first warning", "first traceback"]
    assert len(lines) == 6
    assert (logging.getLogger("axfold").level, list(logging.getLogger("axfold").handlers)) == before


def test_a_log_that_cannot_be_written(tmp_path):
    (tmp_path / "log.txt").mkdir()
    with (
        pytest.raises(InputError, match=r"log\.txt: can't be written"),
        console.logged(tmp_path / "log.txt", console.Plain()),
    ):
        pass


def test_bytes_are_shown_with_what_is_left(monkeypatch):
    now = 0.0
    shown = []
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    display = console.Plain(lambda: 0.0)
    display.progress = lambda share, state: shown.append((share, state))
    show = console.bytes_shown(display)
    show("download", 2 * 10**9, 10 * 10**9)  # was there before
    now = 10.0
    show("download", 4 * 10**9, 10 * 10**9)
    assert shown == [(0.2, "download 2.00 of 10.00 GB"), (0.4, "download 4.00 of 10.00 GB, about 30 s left")]
