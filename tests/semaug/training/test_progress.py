"""The line on the state of a run: what a notebook shows after each epoch, and where there is a kernel."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

import throwaway
from semaug.training import loop as training, progress
from semaug.training.recipe import Recipe


class Output:
    """Keeps what a notebook's output would show, one state after another."""

    def __init__(self, data, raw, display_id):
        assert raw
        assert display_id
        self.states = [data["text/plain"]]

    def update(self, data, raw):
        assert raw
        self.states.append(data["text/plain"])


def test_a_notebook_shows_one_output_that_ends_with_the_accuracy(monkeypatch):
    outputs = []

    def display(data, **options):
        outputs.append(Output(data, **options))
        return outputs[-1]

    monkeypatch.setattr(progress, "_in_kernel", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    record = training.fit(throwaway.build("CrossEntropy"), throwaway.data(), Recipe(epochs=4, batch_size=32))
    ((first, *states),) = (output.states for output in outputs)
    assert first.endswith(": starting")
    label = first.removesuffix(": starting")
    losses = record.curves["train_loss"]
    for done, (state, loss) in enumerate(zip(states, losses, strict=False), start=1):
        assert state.startswith(f"{label}: {'█' * 5 * done}{'·' * (20 - 5 * done)} epoch {done}/4, ")
        assert f"s, train loss {loss:.3f}" in state
    assert f", test accuracy {record.metrics['test_accuracy']:.3f}" in states[-1]
    assert "accuracy" not in states[0]


@pytest.mark.parametrize(
    ("shell", "expected"), [(None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=object()), True)]
)
def test_a_terminal_of_ipython_is_no_kernel(monkeypatch, shell, expected):
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    assert progress._in_kernel() == expected
    monkeypatch.delitem(sys.modules, "IPython")
    assert not progress._in_kernel(), "where nobody imported IPython there is none"
    assert "IPython" not in sys.modules
