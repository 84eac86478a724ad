import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluate.figures import plots
from pipeline.predictions import Task
from tests.builders import make_sample

ROOT = Path(__file__).parents[1]
NAMES = ["roc.png", "pr.png", "reliability.png", "decision_curve.png", "confusion.png", "most_probable.png"]


def ink(content):
    """The part of a picture that is not white."""
    return np.mean(np.asarray(Image.open(io.BytesIO(content)).convert("L")) < 250)


@pytest.mark.parametrize("task", [Task.MULTICLASS, Task.MULTILABEL])
def test_plots_are_pictures_with_something_on_them(task):
    found = plots(make_sample(task=task))
    assert list(found) == (NAMES if task is Task.MULTICLASS else NAMES[:-1])
    for name, content in found.items():
        picture = Image.open(io.BytesIO(content))
        assert picture.format == "PNG"
        assert min(picture.size) >= 400, name
        assert 0.01 < ink(content) < 0.8, name


def test_many_labels_and_undefined_curves_are_drawn():
    labels = tuple(f"Label number {number}" for number in range(14))
    targets = make_sample(labels=labels).targets.copy()
    targets[:, 13], targets[:, 12] = 0, np.nan
    found = plots(make_sample(labels=labels, targets=targets, task=Task.MULTILABEL))
    assert all(ink(content) > 0.01 for content in found.values())


def test_the_plots_show_the_sample():
    one, other = (plots(make_sample(seed=seed)) for seed in (0, 1))
    assert all(one[name] != other[name] for name in NAMES)


def test_plots_leave_matplotlibs_global_state_alone():
    code = (
        "import sys; from tests.builders import make_sample; from pipeline.evaluate.figures import plots; "
        "assert 'matplotlib' not in sys.modules; plots(make_sample()); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"
