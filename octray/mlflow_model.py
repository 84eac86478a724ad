"""What `mlflow.pyfunc.load_model` runs for a registered bundle: paths or arrays in, a table of probabilities and states out.

MLflow keeps a copy of this file beside the bundle ("models from code") and runs it, so nothing is pickled. It needs octray.
"""

import hashlib
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from octray import Frame, FramePrediction, Predictor, UnreadableError, discover, load_bundle, score_study
from pipeline.frames import InstanceKey, Quarantined


class BundleModel(PythonModel):
    """A bundle as MLflow's generic model."""

    def load_context(self, context: Any) -> None:
        """Load the bundle, whose files lie beside this one."""
        self._predictor = Predictor(load_bundle(context.artifacts["bundle"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score files or arrays.

        Parameters
        ----------
        model_input
            With a column `path`, of files, archives or folders on this machine, or a column `pixels`, of grey arrays of shape
            (rows, columns) from 0 (black) to 1 (white).

        Returns
        -------
        pandas.DataFrame
            One row for each frame, and for each file or frame that is not used: `row` (of the input), `source`, `frame_number`,
            `reason` (why it is not used; otherwise empty), and for each label `probability.LABEL` and `state.LABEL`.
        """
        if not {"path", "pixels"} & set(model_input.columns):
            raise ValueError("Give a DataFrame with a column path or pixels.")
        rows: list[dict[str, Any]] = []
        for number, asked in enumerate(model_input.to_dict("records")):
            if isinstance(asked.get("path"), str):
                found = score_study(discover(asked["path"]), self._predictor)
                rows += [_row(number, one) for one in found if isinstance(one, FramePrediction | Quarantined)]
            else:
                rows.append(_row(number, self._of_pixels(asked.get("pixels"), number)))
        labels = self._predictor.manifest.labels
        answers = [f"{kind}.{label}" for label in labels for kind in ("probability", "state")]
        return pd.DataFrame(rows, columns=["row", "source", "frame_number", "reason", *answers])

    def _of_pixels(self, values: Any, number: int) -> FramePrediction | Quarantined:
        pixels = np.array([*values] if isinstance(values, list | np.ndarray) else [], np.float32)
        if pixels.ndim != 2 or not pixels.size or not ((pixels >= 0) & (pixels <= 1)).all():
            raise ValueError(
                f"Row {number} needs a path, or pixels of shape (rows, columns) from 0 to 1. Got the shape {pixels.shape} "
                "instead."
            )
        sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
        frame = Frame(pixels, InstanceKey("", "", "", 1), f"row {number}", sha256)
        try:
            (result,) = self._predictor.predict([frame], heatmaps=False)
        except UnreadableError as error:
            return Quarantined(frame.source, error.reason, str(error), 1)
        return result


def _row(number: int, found: FramePrediction | Quarantined) -> dict[str, Any]:
    if isinstance(found, Quarantined):
        return {"row": number, "source": found.source, "frame_number": found.frame_number, "reason": found.reason}
    row: dict[str, Any] = {"row": number, "source": found.source, "frame_number": found.key.frame_number, "reason": ""}
    for one in found.predictions:
        row |= {f"probability.{one.label}": one.probability, f"state.{one.label}": str(one.state)}
    return row


set_model(BundleModel())
