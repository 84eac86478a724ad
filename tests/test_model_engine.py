"""The engine against the ONNX reference implementation, and its refusals."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.external_data_helper import convert_model_to_external_data
from onnx.reference import ReferenceEvaluator

from pipeline.errors import BundleError, InputError, is_lack_of_memory
from pipeline.model.engine import A_CORE, Engine
from tests.builders import make_graph


def make_input(count: int = 3, size: int = 32) -> np.ndarray:
    return np.random.default_rng(1).random((count, 1, size, size), dtype=np.float32)


def test_it_computes_what_the_onnx_reference_computes() -> None:
    pixels = make_input()
    logits, features = Engine(make_graph()).run(pixels)
    expected_logits, expected_features = ReferenceEvaluator(make_graph()).run(None, {"pixels": pixels})
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
    np.testing.assert_allclose(features, expected_features, atol=1e-5)


def test_a_frame_gets_the_same_bits_in_every_batch_and_with_any_number_of_threads() -> None:
    pixels = make_input(16)
    together = Engine(make_graph(), threads=2).run(pixels)
    alone = Engine(make_graph(), threads=1)
    for index in range(16):
        logits, features = alone.run(pixels[index : index + 1])
        assert logits[0].tobytes() == together[0][index].tobytes()
        assert features[0].tobytes() == together[1][index].tobytes()


def test_it_knows_the_size_of_its_input() -> None:
    assert Engine(make_graph(size=64)).size == 64


def test_no_memory_for_the_network_is_no_fault_of_the_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Exception during loading: std::bad_alloc")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(InputError, match=r"^There is too little memory\. Give octray more"):
        Engine(make_graph())


def test_what_the_runtime_and_torch_raise_without_memory_is_known_as_such() -> None:
    most, count = 10**15, helper.make_tensor_value_info("n", TensorProto.INT64, [1])
    zeros = helper.make_tensor_value_info("zeros", TensorProto.FLOAT, [None])
    graph = helper.make_graph([helper.make_node("ConstantOfShape", ["n"], ["zeros"])], "g", [count], [zeros])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="bfc_arena") as of_the_runtime:
        session.run(None, {"n": np.array([most])})
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(most)
    assert is_lack_of_memory(of_the_runtime.value)
    assert is_lack_of_memory(of_torch.value)


def test_bytes_that_are_not_onnx_are_refused() -> None:
    with pytest.raises(BundleError, match=r"cannot be loaded: .*Train the bundle again\."):
        Engine(b"not a graph")


@pytest.mark.parametrize("location", ["weights.bin", "absolute", "../weights.bin"])
def test_weights_outside_the_graph_are_refused(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    model = onnx.load_from_string(make_graph())
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, folder / "model.onnx")
    (tmp_path / "weights.bin").write_bytes((folder / "weights.bin").read_bytes())
    external = onnx.load_from_string((folder / "model.onnx").read_bytes())
    for tensor in external.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(folder / "weights.bin") if location == "absolute" else location
    monkeypatch.chdir(folder)
    with pytest.raises(BundleError, match="cannot be loaded"):
        Engine(external.SerializeToString())


def test_a_graph_with_other_inputs_or_outputs_is_refused() -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["scores"])],
        "other",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(BundleError, match=r"must take pixels .* Got image \('batch', 3\) -> scores \('batch', 3\) instead"):
        Engine(model.SerializeToString())


def test_a_graph_with_a_fixed_batch_is_refused() -> None:
    model = onnx.load_from_string(make_graph())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(BundleError, match="must take pixels"):
        Engine(model.SerializeToString())


def test_logits_that_are_not_numbers_are_refused() -> None:
    pixels = make_input()
    pixels[0, 0, 0, 0] = np.nan
    with pytest.raises(BundleError, match="not numbers"):
        Engine(make_graph()).run(pixels)


def test_it_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    Engine(make_graph()).run(make_input())
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_many_frames_give_the_logits_of_each() -> None:
    engine = Engine(make_graph())
    frames = np.random.default_rng(0).random((2 * engine.frames_at_once + 1, 1, 32, 32), dtype=np.float32)
    np.testing.assert_array_equal(engine.logits(iter(frames)), engine.run(frames)[0])


@pytest.mark.parametrize(("threads", "cores", "calls"), [(1, 4, 4), (1, 1, 1), (2, 4, 2), (4, 2, 1), (0, 4, 1)])
def test_calls_at_a_time_keep_the_cores_at_work(threads: int, cores: int, calls: int) -> None:
    assert Engine(make_graph(), threads).calls(cores) == calls


def test_the_engine_has_as_many_threads_as_the_process_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime alone would take one for each core of the machine."""

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    engines, added = [], []
    for cores in ("1", "3"):
        monkeypatch.setenv("OCTRAY_CORES", cores)
        before = threads()
        engines.append(Engine(make_graph()))
        added.append(threads() - before)
    assert added == [0, 2]  # the thread that calls is one of them
    assert [engine.frames_at_once for engine in engines] == [A_CORE, 3 * A_CORE]
