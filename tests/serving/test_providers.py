"""What ONNX Runtime is asked for. What it makes of it is only seen on a device: tests/cuda."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ConfigError, build
from serving.config import CudaSettings, RuntimeSettings, Settings, TensorrtSettings
from serving.errors import ModelRefused
from serving.inference import runtime
from serving.inference.providers import CPU, CUDA, TENSORRT, Versions, chain, engine_folder
from tests.serving.bundles import digits_graph

HERE = Versions("NVIDIA H100 80GB HBM3 sm90", "10.9.0", "13.0", "1.31.1")
GPU_WHEEL = (TENSORRT, CUDA, CPU)


def settings(**values: Any) -> RuntimeSettings:
    return build(RuntimeSettings, values, "runtime")


def test_every_setting_reaches_the_provider() -> None:
    cuda = CudaSettings(gpu_mem_limit=1 << 30, use_tf32=True, cudnn_conv_algo_search="HEURISTIC")
    given = RuntimeSettings(provider="prefer", device=3, cuda=cuda)
    ((first, options), (last, none)) = chain(given, GPU_WHEEL, "", HERE)
    assert (first, last, none) == (CUDA, CPU, {})
    assert options == {
        "device_id": "3",
        "gpu_mem_limit": str(1 << 30),
        "arena_extend_strategy": "kNextPowerOfTwo",
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "do_copy_in_default_stream": "1",
        "use_tf32": "1",
        "prefer_nhwc": "0",
        "enable_cuda_graph": "0",
    }
    ours = {"io_binding", "bound_shapes"}
    assert set(CudaSettings.model_fields) - ours == set(options) - {"device_id"}


def test_what_was_proven_holds_by_default() -> None:
    """TF32 and half precision answer differently from what parity was certified for."""
    assert not Settings().runtime.cuda.use_tf32 and not Settings().runtime.tensorrt.fp16
    assert Settings().runtime.cuda.do_copy_in_default_stream


def test_policies_against_what_a_wheel_was_built_with() -> None:
    cuda = chain(settings(provider="require"), GPU_WHEEL, "", HERE)
    assert [name for name, _ in cuda] == [CUDA, CPU]
    both = chain(settings(provider="require", tensorrt={"enabled": True}), GPU_WHEEL, "", HERE)
    assert [name for name, _ in both] == [TENSORRT, CUDA, CPU]
    assert chain(settings(), GPU_WHEEL, "", HERE) == [(CPU, {})]


def test_policies_on_this_wheel() -> None:
    """No provider list of ours: the real one of the wheel without CUDA."""
    here = runtime.onnxruntime.get_available_providers()
    assert CUDA not in here
    model = digits_graph().SerializeToString()
    for tensorrt in (False, True):
        asked = {"tensorrt": {"enabled": tensorrt}}
        with pytest.raises(ModelRefused, match=r"is required .*built without (CUDA|TensorRT)"):
            runtime.open_session(model, settings(provider="require", **asked))
        fell = runtime.open_session(model, settings(provider="prefer", **asked)).placement
        assert fell.fell_back and fell.provider == CPU
        assert fell.wanted == (TENSORRT if tensorrt else CUDA)
        content = runtime.open_session(model, settings(**asked)).placement
        assert not content.fell_back and content.provider == CPU and content.nodes == {}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"cuda": {"gpu_mem_limits": 1 << 30}}, "unknown key, did you mean 'gpu_mem_limit'"),
        ({"cuda": {"gpu_mem_limit": 1000}}, "greater than or equal to 1048576"),
        ({"cuda": {"cudnn_conv_algo_search": "FAST"}}, "'EXHAUSTIVE'"),
        ({"cuda": {"use_tf32": 1}}, "bool"),
        ({"cuda": {"enable_cuda_graph": True}}, "wants cuda.io_binding and buckets"),
        ({"tensorrt": {"builder_optimization_level": 6}}, "less than or equal to 5"),
        ({"tensorrt": {"trt_fp16_enable": True}}, "unknown key"),
        ({"device": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        settings(**values)


# Engines: a wrong one loaded is a crash or a wrong answer, so its folder says all it is tied to


def test_engines_lie_by_digest_device_and_versions() -> None:
    found = engine_folder(Path("/var/engines"), "ab" * 32, HERE)
    assert found == Path(
        "/var/engines/NVIDIA_H100_80GB_HBM3_sm90-trt10.9.0-cuda13.0-ort1.31.1/abababababababab"
    )
    other = [
        engine_folder(Path("/var/engines"), "ac" * 32, HERE),
        *(
            engine_folder(Path("/var/engines"), "ab" * 32, Versions(**(vars(HERE) | {key: "9"})))
            for key in vars(HERE)
        ),
    ]
    assert len({found, *other}) == 6


def test_no_name_leaves_the_folder() -> None:
    evil = Versions("../../etc", "1/2", "\0", "ü")
    found = engine_folder(Path("/var/engines"), "..", evil)
    assert len(found.relative_to("/var/engines").parts) == 2
    assert not {"/", "\0", "ü"} & set("".join(found.relative_to("/var/engines").parts))


@pytest.mark.parametrize("key", sorted(vars(HERE)))
def test_engines_are_not_kept_without_their_whole_key(key: str) -> None:
    with pytest.raises(ModelRefused, match=f"unknown: {key}"):
        engine_folder(Path("/var/engines"), "ab" * 32, Versions(**(vars(HERE) | {key: ""})))


def test_engine_and_timing_caches_of_tensorrt() -> None:
    kept = TensorrtSettings(enabled=True, cache="/var/engines", fp16=True)
    given = RuntimeSettings(provider="require", tensorrt=kept)
    options = dict(chain(given, GPU_WHEEL, "ab" * 32, HERE))[TENSORRT]
    folder = engine_folder(Path("/var/engines"), "ab" * 32, HERE)
    assert options["trt_engine_cache_path"] == str(folder)
    assert options["trt_timing_cache_path"] == str(folder.parent / "timings")
    assert options["trt_fp16_enable"] == "1" and options["trt_engine_cache_enable"] == "1"
    without = given.model_copy(update={"tensorrt": TensorrtSettings(enabled=True)})
    assert not [key for key in dict(chain(without, GPU_WHEEL, "", HERE))[TENSORRT] if "path" in key]


def test_this_machine_says_what_it_has() -> None:
    """Asked of the driver and the installed packages; empty is what engines refuse above."""
    asked = settings(tensorrt={"cache": "/var/engines"})
    assert runtime.machine(asked).onnxruntime == runtime.onnxruntime.__version__
    assert runtime.machine(settings()) == Versions("", "", "", "")
