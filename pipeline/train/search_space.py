"""The search space of a sweep: which settings it changes, and between which values; all is checked before the first trial."""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import BaseTrial

from pipeline.config import Config, Way
from pipeline.errors import ConfigError

_KINDS = ("choices", "uniform", "log_uniform", "integers")
_SECTIONS = ("model", "preprocessing", "train")
_FIXED = (
    *("train.seed", "train.seeds", "train.folds", "train.threads", "train.cache_features"),
    *("train.device", "train.precision", "train.workers"),
)
_EXAMPLE = "train.finetune.learning_rate: {log_uniform: [0.0001, 0.01]}"


@dataclass(frozen=True, slots=True)
class Dimension:
    """One setting that a sweep changes.

    Parameters
    ----------
    key
        The dotted key; that of a section if several settings change together.
    kind
        `choices`, `uniform`, `log_uniform` or `integers`.
    values
        The choices, or the lowest and the highest value; both can be drawn.
    """

    key: str
    kind: str
    values: tuple[Any, ...]

    def suggest(self, trial: BaseTrial) -> Any:
        """Draw a value for a trial."""
        if self.kind == "choices":
            names = {_name(value): value for value in self.values}
            return names[trial.suggest_categorical(self.key, list(names))]
        low, high = self.values
        if self.kind == "integers":
            return trial.suggest_int(self.key, low, high)
        return trial.suggest_float(self.key, low, high, log=self.kind == "log_uniform")


class SearchSpace:
    """The settings that a sweep changes.

    Parameters
    ----------
    source
        A YAML file, or what it holds: for each dotted key `{choices: [...]}` (or just the list), `{uniform: [low, high]}`,
        `{log_uniform: [low, high]}` or `{integers: [low, high]}`. A choice may be a mapping of several settings of a section.
    config
        The configuration that is changed.

    Raises
    ------
    ConfigError
        With one sentence for each fault.
    """

    def __init__(self, source: Path | str | Mapping[str, Any], config: Config) -> None:
        self._config = config
        self.dimensions: list[Dimension] = []
        faults: list[str] = []
        for key, text in (source if isinstance(source, Mapping) else _read_yaml(Path(source))).items():
            try:
                dimension = _dimension(str(key), text)
                self._check(dimension)
            except ConfigError as error:
                faults += error.faults
            else:
                self.dimensions.append(dimension)
        if not self.dimensions and not faults:
            faults.append(f"The search space is empty. Name the settings to change, for example `{_EXAMPLE}`.")
        if faults:
            raise ConfigError(faults)

    def __str__(self) -> str:
        return json.dumps({one.key: {one.kind: one.values} for one in self.dimensions}, sort_keys=True)

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Draw the values of a trial, by dotted key."""
        return {one.key: one.suggest(trial) for one in self.dimensions}

    def configuration(self, values: Mapping[str, Any]) -> Config:
        """Return the configuration with these values.

        Raises
        ------
        ConfigError
            If they do not go together.
        """
        return one_network(self._config.changed(values))

    def _check(self, dimension: Dimension) -> None:
        """Raise if a value cannot be set; what only goes wrong together with others is found in the trial."""
        key, unknown, wrong, compared = dimension.key, list[str](), list[str](), set[str]()
        for value in dimension.values:
            try:
                compared.add(compared_by(self._config.changed({key: value})))
            except ConfigError as error:
                unknown += [one for one in error.faults if "is not a setting" in one]
                wrong += [one for one in error.faults if one.startswith(key)]
        if not unknown and (key.split(".")[0] not in _SECTIONS or key in _FIXED):
            wrong = [
                f"{key} is not for a search: it does not change what a network learns, or what trials are compared by. "
                f"A sweep searches settings of {', '.join(_SECTIONS[:-1])} and {_SECTIONS[-1]}."
            ]
        if unknown or wrong:
            raise ConfigError(list(dict.fromkeys(unknown or wrong)))
        if len(compared) > 1:
            raise ConfigError(
                [
                    f"{key}: trials would be compared by different figures, {' and '.join(sorted(compared))}. Run a sweep for "
                    "each value, or set train.finetune.monitor=tune_auroc, which compares all but the way probe."
                ]
            )


def compared_by(config: Config) -> str:
    """Return the name of the figure by which trials are compared; equal names mean comparable figures."""
    if config.train.way is Way.PROBE:
        return f"the loss of the head under imbalance={config.train.imbalance}"
    if config.train.finetune.monitor == "tune_auroc":
        return "the AUROC of the tune split"
    return f"the tune loss under imbalance={config.train.imbalance}"


def one_network(config: Config) -> Config:
    """Return a configuration that trains one network; raise a ConfigError if it trains several."""
    if len(config.networks()) > 1 or config.train.folds > 1:
        raise ConfigError(
            [
                "A sweep searches the settings of one network. Leave out ensemble.members, train.seeds and train.folds, and "
                "add them to the best configuration afterwards."
            ]
        )
    return config


def _dimension(key: str, text: Any) -> Dimension:
    """Return what one line of the space says."""
    if isinstance(text, list):
        text = {"choices": text}
    if not isinstance(text, Mapping) or len(text) != 1 or (kind := str(next(iter(text))).replace("-", "_")) not in _KINDS:
        near = [
            match
            for word in (text if isinstance(text, Mapping) else ())
            for match in difflib.get_close_matches(str(word), _KINDS, n=1)
        ]
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError([f"{key}: needs one of {', '.join(_KINDS)}, as in `{_EXAMPLE}`. Got {text!r} instead.{hint}"])
    (values,) = text.values()
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ConfigError([f"{key}: {kind} must be a list. Got {values!r} instead."])
    if kind == "choices":
        if len({_name(value) for value in values}) < max(2, len(values)):
            raise ConfigError([f"{key}: choices must be two different values or more. Got {values!r} instead."])
        return Dimension(key, kind, tuple(values))
    numbers = tuple(map(_number, values))
    if len(numbers) != 2 or not numbers[0] < numbers[1]:  # nan, if it is no number, is not less
        raise ConfigError([f"{key}: {kind} must be two numbers, the lower one first. Got {values!r} instead."])
    if kind == "log_uniform" and numbers[0] <= 0:
        raise ConfigError([f"{key}: log_uniform must start above zero. Got {values!r} instead."])
    if kind == "integers":
        if not all(number.is_integer() for number in numbers):
            raise ConfigError([f"{key}: integers must be two whole numbers. Got {values!r} instead."])
        return Dimension(key, kind, tuple(map(int, numbers)))
    return Dimension(key, kind, numbers)


def _number(value: Any) -> float:
    """Return a number, nan if it is none; YAML reads 1e-4, which has no point, as text."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _name(value: Any) -> Any:
    """Return a choice as Optuna keeps it: texts, numbers and truth values as they are, others as JSON."""
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value, sort_keys=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_bytes().decode("utf-8", errors="replace"))
    except OSError:
        raise ConfigError([f"There is no search space {path.name}. Give a YAML file with lines like `{_EXAMPLE}`."]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError([f"{path.name} is not valid YAML{f' at line {mark.line + 1}' if mark else ''}."]) from None
    if not isinstance(values, dict):
        raise ConfigError([f"{path.name} must hold a line for each setting to change, for example `{_EXAMPLE}`."])
    return values
