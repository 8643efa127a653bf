"""One line on the state of a run, in a terminal or a notebook."""

from __future__ import annotations

import math
import sys

from tqdm import tqdm

from semaug.training.record import Record


class Progress:
    """One line on the state of a run: tqdm's bar in a terminal, one plain-text output in a notebook.

    tqdm's notebook bar is a widget, of which a saved notebook keeps nothing readable; its text bar leaves every state
    it ever had. A display handle is updated in place: JupyterLab shows it move, a saved notebook shows its last state.
    """

    def __init__(self, label: str, epochs: int, done: int, enabled: bool, shows: str = "train_loss") -> None:
        self.label, self.epochs, self.handle, self.bar, self.shows = label, epochs, None, None, shows
        if enabled and _in_kernel():
            from IPython.display import display

            self.handle = display({"text/plain": f"{label}: starting"}, raw=True, display_id=True)
        elif enabled:
            # silent where nobody watches: a log file wants no bar
            self.bar = tqdm(total=epochs, initial=done, desc=label, unit="epoch", disable=None)

    def update(self, record: Record, done: int) -> None:
        """Show the state after an epoch, and the result after the last."""
        loss = record.curves[self.shows][-1] if record.curves.get(self.shows) else math.nan
        if self.handle is not None:
            filled = round(20 * done / self.epochs)
            result = "".join(
                f", {name.replace('_', ' ')} {value:.3f}" for name, value in record.metrics.items() if "acc" in name
            )
            bar = f"{'█' * filled}{'·' * (20 - filled)} epoch {done}/{self.epochs}"
            text = f"{self.label}: {bar}, {record.seconds:.0f} s, {self.shows.replace('_', ' ')} {loss:.3f}{result}"
            self.handle.update({"text/plain": text}, raw=True)
        elif self.bar is not None:
            self.bar.set_postfix(
                {"loss": f"{loss:.3f}", **{k: f"{v:.3f}" for k, v in record.metrics.items()}}, refresh=False
            )
            self.bar.update(done - self.bar.n)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()


def _in_kernel() -> bool:
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None
