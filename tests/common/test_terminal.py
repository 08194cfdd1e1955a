"""Lines and bars on a terminal, and what --quiet leaves of them."""

import io

from common import terminal


class Terminal(io.StringIO):
    """A screen: bars are drawn where they find one."""

    def isatty(self):
        return True


def make_screen(monkeypatch):
    """Standard output and standard error of a terminal, from now on."""
    screen = Terminal(), Terminal()
    monkeypatch.setattr("sys.stdout", screen[0])
    monkeypatch.setattr("sys.stderr", screen[1])
    return screen


def show(monkeypatch, quiet):
    """A bar, a line and a warning."""
    monkeypatch.setattr(terminal, "quiet", quiet)
    assert list(terminal.progress([1, 2], "counting")) == [1, 2]
    terminal.print_status("a line")
    terminal.warn("something\nodd")


def test_a_bar_a_line_and_a_warning(monkeypatch):
    screen = make_screen(monkeypatch)
    show(monkeypatch, quiet=False)
    assert screen[0].getvalue() == "a line\n"
    assert "counting" in screen[1].getvalue()
    assert screen[1].getvalue().endswith("warning: something odd\n")


def test_quiet_leaves_the_warning(monkeypatch):
    screen = make_screen(monkeypatch)
    show(monkeypatch, quiet=True)
    assert screen[0].getvalue() == "" and screen[1].getvalue() == "warning: something odd\n"


def test_where_there_is_no_terminal_there_is_no_bar(monkeypatch, capsys):
    show(monkeypatch, quiet=False)
    output = capsys.readouterr()
    assert output.out == "a line\n" and output.err == "warning: something odd\n"
