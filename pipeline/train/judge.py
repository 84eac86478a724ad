"""What a trained network is worth: calibrated on one split, measured on another, by the graph that scores."""

from dataclasses import dataclass

import numpy as np

from pipeline.config import Config
from pipeline.evaluate.calibration import fit_temperature, probabilities
from pipeline.evaluate.metrics import Evaluation, Sample, evaluate
from pipeline.evaluate.operating_point import choose_operating_points
from pipeline.evaluate.report import plots
from pipeline.model.engine import Engine
from pipeline.records import FloatArray, OperatingPoint, Split
from pipeline.train.material import Material


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What was fitted on the calibration split and measured on the test split.

    Parameters
    ----------
    temperature
        Of the calibrated probabilities.
    points
        One operating point for each label.
    evaluation
        None where there is no test split.
    plots
        File names and PNG images.
    """

    temperature: float
    points: tuple[OperatingPoint, ...]
    evaluation: Evaluation | None
    plots: dict[str, bytes]

    def figures(self) -> dict[str, float]:
        """Return the test figures as `test_<metric>` and `test_<label>_<metric>`; what is not defined is left out."""
        if self.evaluation is None:
            return {}
        found = {f"test_{name}": estimate.value for name, estimate in self.evaluation.macro.items()}
        found |= {f"test_argmax_{name}": estimate.value for name, estimate in self.evaluation.argmax.items()}
        for label in self.evaluation.labels:
            found |= {f"test_{label.label}_{name}": estimate.value for name, estimate in label.metrics.items()}
        return {name: value for name, value in found.items() if np.isfinite(value)}


def judge(config: Config, material: Material, graph: bytes, pixels: FloatArray) -> Verdict:
    """Fit temperature and operating points on the calibration split, and measure on the test split.

    Parameters
    ----------
    config
        Activation, criterion and number of resamples.
    material
        Targets, patients and splits.
    graph
        The exported network.
    pixels
        All frames on the network's grid, float32 of shape (n, 1, size, size) in [0, 1].

    Raises
    ------
    InputError
        Where the calibration split lacks positives or negatives of a label.
    """
    engine, activation = Engine(graph, config.train.threads), config.model.activation
    calibration, test = material.rows(Split.CALIBRATION), material.rows(Split.TEST)
    logits = engine.logits(pixels[row] for row in calibration)
    truth = material.targets[calibration]
    temperature = fit_temperature(logits, truth, activation)
    chances = probabilities(logits, activation, temperature)
    points = choose_operating_points(chances, truth, material.labels, config.evaluate.criterion)
    if not len(test):
        return Verdict(temperature, points, None, {})
    sample = Sample(
        logits=engine.logits(pixels[row] for row in test),
        targets=material.targets[test],
        groups=material.patients(test),
        labels=material.labels,
        activation=activation,
        temperature=temperature,
        operating_points=points,
    )
    return Verdict(temperature, points, evaluate(sample, config.evaluate.bootstrap, config.train.seed), plots(sample))
