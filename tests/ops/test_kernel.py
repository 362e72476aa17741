"""Laws 20 to 22: the kernel equals the plain definition, writes every cell, and its build is optional and safe."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hf_grounding_dino
from hf_grounding_dino import kernel_status, multi_scale_deformable_attention
from hf_grounding_dino.assets import DEMO_IMAGE, NANO
from hf_grounding_dino.cli.main import main
from hf_grounding_dino.ops import kernel
from hf_grounding_dino.ops.deformable_attention import multi_scale_deformable_attention_reference
from training.runs import write_recipe

SHAPES = [(5, 7), (3, 4), (1, 2)]
TOKENS = sum(h * w for h, w in SHAPES)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def nan_in_fresh_memory() -> Iterator[None]:
    """Law 21: what nobody wrote shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Decisions are forgotten before and after."""
    kernel.forget_decisions()
    yield monkeypatch
    monkeypatch.undo()
    kernel.forget_decisions()


def inputs(
    width: int, dtype: torch.dtype = torch.float32, device: str = "cpu", queries: int = 11, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations (some outside, near and far) and weights for two images, three heads and four points."""
    generator = torch.Generator().manual_seed(seed)
    exact = torch.promote_types(dtype, torch.float32)
    value = torch.randn(2, TOKENS, 3, width, generator=generator, dtype=torch.float64).to(dtype)
    locations = torch.rand(2, queries, 3, len(SHAPES), 4, 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3
    if queries:
        locations[0, 0] *= 100
    weights = torch.rand(2, queries, 3, len(SHAPES) * 4, generator=generator, dtype=torch.float64).softmax(-1)
    weights = weights.unflatten(-1, (len(SHAPES), 4))
    return value.to(device), locations.to(device, exact), weights.to(device, exact)


def with_gradients(function: Any, tensors: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    value, locations, weights = (t.detach().clone().requires_grad_() for t in tensors)
    output = function(value, SHAPES, locations, weights)
    pull = torch.linspace(-1, 1, output.numel(), device=output.device).view(output.shape).to(output.dtype)
    output.backward(pull)
    return [output.detach(), *(t.grad for t in (value, locations, weights) if t.grad is not None)]


@needs_compiler
def test_the_kernel_serves_the_cpu_here() -> None:
    assert kernel_status()["cpu"].implementation == "kernel", kernel_status()["cpu"].reason


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", [1, 16, 30, 32, 64, 71])
def test_equal_to_the_definition_with_every_gradient(width: int, device: str) -> None:
    tensors = inputs(width, device=device)
    fast = with_gradients(multi_scale_deformable_attention, tensors)
    plain = with_gradients(multi_scale_deformable_attention_reference, tensors)
    assert len(fast) == 4
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_values_are_summed_in_float32(dtype: torch.dtype, device: str) -> None:
    tensors = inputs(32, dtype, device)
    fast = with_gradients(multi_scale_deformable_attention, tensors)
    exact = with_gradients(multi_scale_deformable_attention_reference, (tensors[0].double(), *tensors[1:]))
    assert fast[0].dtype == fast[1].dtype == dtype
    for a, b in zip(fast, exact, strict=True):
        # One rounding to the type of `value`, none on the way; the pull itself is rounded to it, too.
        torch.testing.assert_close(a.double(), b.double(), rtol=2 * torch.finfo(dtype).eps, atol=0.02)


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck(device: str) -> None:
    value, locations, weights = (t.requires_grad_() for t in inputs(3, torch.float64, device, queries=2))
    assert torch.autograd.gradcheck(
        lambda *t: multi_scale_deformable_attention(t[0], SHAPES, t[1], t[2]), (value, locations, weights)
    )


@needs_compiler
def test_opcheck() -> None:
    assert kernel.kernel_serves("cpu")
    value, locations, weights = (t.requires_grad_() for t in inputs(8))
    sides = [side for shape in SHAPES for side in shape]
    torch.library.opcheck(torch.ops.hf_grounding_dino.deformable_attention, (value, sides, locations, weights))
    backward = torch.ops.hf_grounding_dino.deformable_attention_backward
    pull = torch.randn(2, 11, 24)
    torch.library.opcheck(backward, (pull, value.detach(), sides, locations.detach(), weights.detach()))


def test_compiles_into_one_graph() -> None:
    tensors = inputs(8)
    compiled = torch.compile(multi_scale_deformable_attention, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        with_gradients(compiled, tensors), with_gradients(multi_scale_deformable_attention, tensors), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_without_a_query_the_result_is_empty(device: str) -> None:
    output, of_value, *_ = with_gradients(multi_scale_deformable_attention, inputs(8, queries=0, device=device))
    assert output.shape == (2, 0, 24)
    assert not of_value.any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("function", [multi_scale_deformable_attention, multi_scale_deformable_attention_reference])
@pytest.mark.parametrize("place", [torch.nan, -torch.inf, 1e30, -3.0])
def test_a_location_that_is_nowhere_gives_zero(function: Any, place: float, device: str) -> None:
    value, locations, weights = inputs(8, device=device)
    locations[0, 3] = place
    locations[1, 4, ..., 0] = place
    output, *gradients = with_gradients(function, (value, locations, weights))
    assert not output[0, 3].any()
    assert not output[1, 4].any()
    assert all(t.isfinite().all() for t in gradients)


@pytest.mark.parametrize("function", [multi_scale_deformable_attention, multi_scale_deformable_attention_reference])
def test_cells_that_no_sample_touches_do_not_matter(function: Any) -> None:
    """At the left edge between rows 2 and 3 a sample reads their first cells, with half the weight; NaN stays away."""
    value = torch.full((1, 35, 1, 4), torch.nan)
    value[0, [2 * 7, 3 * 7]] = 1.0
    location = torch.tensor([0.0, 2.75 / 5]).view(1, 1, 1, 1, 1, 2)
    output = function(value, [(5, 7)], location, torch.ones(1, 1, 1, 1, 1))
    torch.testing.assert_close(output, torch.full((1, 1, 4), 0.5))


@pytest.mark.parametrize("device", DEVICES)
def test_memory_layout_does_not_matter(device: str) -> None:
    value, locations, weights = inputs(8, device=device)
    wanted = multi_scale_deformable_attention(value, SHAPES, locations, weights)
    fortran = [
        t.permute(*reversed(range(t.ndim))).contiguous().permute(*reversed(range(t.ndim)))
        for t in (value, locations, weights)
    ]
    torch.testing.assert_close(multi_scale_deformable_attention(fortran[0], SHAPES, *fortran[1:]), wanted)
    padded = torch.cat([value, value], 1)[:, :TOKENS]
    torch.testing.assert_close(multi_scale_deformable_attention(padded, SHAPES, locations, weights), wanted)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"value": torch.ones(2, TOKENS, 3, 8, dtype=torch.long)}, "`value`.*int64"),
        ({"value": torch.ones(2, TOKENS, 24)}, "`value`"),
        ({"spatial_shapes": [(5, 7), (3, 4), (1, 1)]}, f"`spatial_shapes`.*{TOKENS}"),
        ({"spatial_shapes": [(5, 7), (3, 4), (0, 2)]}, "`spatial_shapes`.*empty"),
        ({"sampling_locations": torch.ones(2, 11, 3, 3, 4, 2, dtype=torch.int)}, "`sampling_locations`.*int32"),
        ({"sampling_locations": torch.ones(2, 11, 3, 2, 4, 2)}, "`sampling_locations`"),
        ({"sampling_locations": torch.ones(2, 11, 3, 3, 5, 2)}, "`sampling_locations`.*`attention_weights`"),
        ({"attention_weights": torch.ones(2, 10, 3, 3, 4)}, "`attention_weights`"),
        ({"attention_weights": torch.ones(2, 11, 3, 3, 4, dtype=torch.bool)}, "`attention_weights`.*bool"),
    ],
)
def test_malformed_arguments_are_named(changed: dict[str, Any], words: str) -> None:
    value, locations, weights = inputs(8)
    arguments = {
        "value": value,
        "spatial_shapes": SHAPES,
        "sampling_locations": locations,
        "attention_weights": weights,
    }
    with pytest.raises(ValueError, match=words):
        multi_scale_deformable_attention(**(arguments | changed))


# --- the build ---------------------------------------------------------------------------------------------------

DETECT = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    from hf_grounding_dino import kernel_status, multi_scale_deformable_attention
    for _ in range(2):
        output = multi_scale_deformable_attention(
            torch.ones(1, 4, 1, 2), [(2, 2)], torch.full((1, 1, 1, 1, 1, 2), 0.5), torch.ones(1, 1, 1, 1, 1)
        )
    assert output.tolist() == [[[1.0, 1.0]]], output
    print(kernel_status()["cpu"].implementation, "|", kernel_status()["cpu"].reason)
    print("warnings", sum("eformable" in str(w.message) for w in caught))
"""


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", DETECT]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


def test_importing_builds_nothing(tmp_path: Path) -> None:
    code = "import hf_grounding_dino.ops.deformable_attention, sys; print('torch.utils.cpp_extension' in sys.modules)"
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "False"
    assert not list(tmp_path.iterdir())


def called(times: int = 2) -> list[str]:
    """What is said while the operator, which must serve, is called."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(times):
            value, locations, weights = inputs(8, seed=seed)
            output = multi_scale_deformable_attention(value, SHAPES, locations, weights)
            wanted = multi_scale_deformable_attention_reference(value, SHAPES, locations, weights)
            torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-5)
    return [str(one.message) for one in caught if one.category is RuntimeWarning]


@pytest.fixture
def broken_compiler(tmp_path: Path) -> str:
    file = tmp_path / "broken-c++"
    file.write_text('#!/bin/sh\n[ "$1" = --version ] && exit\necho "fatal error: no such luck" >&2\nexit 1\n')
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize("compiler", ["no-such-compiler", "broken-c++"])
def test_without_a_compiler_it_works_and_says_so_once(
    undecided: pytest.MonkeyPatch, tmp_path: Path, broken_compiler: str, compiler: str
) -> None:
    """Decided once, whatever the number of calls; `required` raises with the compiler's words, `off` is silent."""
    words = "there is no C++ compiler (no-such-compiler)" if compiler == "no-such-compiler" else "no such luck"
    undecided.setenv("CXX", compiler if compiler == "no-such-compiler" else broken_compiler)
    undecided.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    undecided.delenv("HF_GROUNDING_DINO_KERNEL", raising=False)
    (said,) = called()
    assert words in said and "HF_GROUNDING_DINO_KERNEL=required" in said
    status = kernel_status()["cpu"]
    assert status.implementation == "reference" and words in status.reason
    kernel.forget_decisions()
    undecided.setenv("HF_GROUNDING_DINO_KERNEL", "required")
    with pytest.raises(RuntimeError, match=re.escape(words)):
        kernel_status()


def test_modes(undecided: pytest.MonkeyPatch, tmp_path: Path) -> None:
    undecided.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    undecided.setenv("HF_GROUNDING_DINO_KERNEL", "off")
    assert called() == [] and kernel_status()["cpu"] == ("reference", "HF_GROUNDING_DINO_KERNEL is off")
    assert not list(tmp_path.iterdir())
    kernel.forget_decisions()
    undecided.setenv("HF_GROUNDING_DINO_KERNEL", "sometimes")
    with pytest.raises(ValueError, match="HF_GROUNDING_DINO_KERNEL is 'sometimes'; it can be auto, off, required"):
        kernel_status()


@needs_compiler
def test_two_processes_at_once_and_a_broken_toolkit(tmp_path: Path) -> None:
    """Both build, or one finds what the other built; a third only loads; a fourth, where it is cut short, does not."""
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path), "CUDA_HOME": "/no/such/toolkit"}
    command = [sys.executable, "-c", DETECT]
    both = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
        )
        for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert out.startswith("kernel | ") and "warnings 0" in out, out + err
    third = run(**environment)
    assert third.stdout.startswith("kernel | loaded from"), third.stdout
    files = {path.name: path for path in tmp_path.rglob("*") if path.is_file()}
    assert sorted(files) == ["deformable_attention_cpu.sha256", "deformable_attention_cpu.so"]
    os.truncate(files["deformable_attention_cpu.so"], 20_000)  # whose loading would end the process
    fourth = run(**environment, CXX="no-such-compiler")
    assert fourth.stdout.startswith("reference | there is no C++ compiler"), fourth.stdout + fourth.stderr


class Cache:
    """A cache for whose file a build writes 1,000 bytes; what is loaded from it is kept."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.loaded: list[bytes] = []
        self.patch = patch
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
        patch.delenv("HF_GROUNDING_DINO_KERNEL", raising=False)
        patch.setattr(kernel, "build", self.build)
        patch.setattr(torch.ops, "load_library", lambda path: self.loaded.append(Path(path).read_bytes()))
        self.root = folder / "hf_grounding_dino"

    def build(self, spec: kernel.BuildSpec, folder: Path) -> Path:
        file = folder / spec.file
        file.write_bytes(bytes(1000))
        return file

    @property
    def file(self) -> Path:
        (file,) = self.root.glob("*/*.so")
        return file

    def decide(self) -> str:
        kernel.forget_decisions()
        status = kernel_status()["cpu"]
        assert status.implementation == "kernel"
        return status.reason

    def give_away(self, path: Path) -> None:
        """To another user than this one and the superuser."""
        if os.geteuid() == 0:
            os.chown(path, 12345, -1)
        else:
            other = os.geteuid() + 1
            self.patch.setattr(os, "geteuid", lambda: other)


@pytest.fixture
def cache(undecided: pytest.MonkeyPatch, tmp_path: Path) -> Cache:
    return Cache(undecided, tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: os.truncate(file, 999),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\1" * 1000),
        lambda file: file.with_suffix(".sha256").unlink(),
        lambda file: file.with_suffix(".sha256").write_bytes(b"\xff"),
        lambda file: file.unlink(),
    ],
    ids=["cut", "empty", "garbage", "no record", "garbage for a record", "record alone"],
)
def test_what_is_damaged_is_not_loaded_but_built_anew(cache: Cache, damage: Any) -> None:
    assert cache.decide().startswith("built in")
    damage(cache.file)
    assert cache.decide().startswith("built in")
    assert cache.loaded == []
    assert cache.decide() == f"loaded from {cache.file}"
    assert cache.loaded == [bytes(1000)]


@pytest.mark.skipif(os.name != "posix", reason="no owners and modes")
@pytest.mark.parametrize("mode", [0o020, 0o002, None], ids=["group", "all", "owner"])
@pytest.mark.parametrize("levels", [0, 1, 2], ids=["file", "folder", "cache"])
def test_what_others_can_write_is_not_loaded(cache: Cache, mode: int | None, levels: int) -> None:
    """A file, or the folder of one, is built anew; in a cache nothing can be kept, which is said."""
    cache.decide()
    path = [cache.file, cache.file.parent, cache.root][levels]
    if mode is None:
        cache.give_away(path)
    else:
        path.chmod(path.stat().st_mode | mode)
    kept = levels == 2 or (mode is None and os.geteuid() != 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert cache.decide().startswith("built for this process alone" if kept else "built in")
    assert cache.loaded == []
    said = "belongs to another user" if mode is None else "can be written by others"
    assert [said in str(one.message) for one in caught] == [True] * kept


def test_a_cache_that_cannot_be_written_still_gives_a_kernel(cache: Cache, tmp_path: Path) -> None:
    """A file stands where the folder should be, which stops the superuser, too."""
    cache.root.write_text("")
    with pytest.warns(RuntimeWarning, match="compiled anew in each process"):
        assert cache.decide().startswith("built for this process alone")


def test_the_mask_of_new_files_does_not_open_the_cache_to_others(cache: Cache) -> None:
    before = os.umask(0)
    try:
        cache.decide()
    finally:
        os.umask(before)
    assert cache.decide().startswith("loaded from")


def test_all_is_on_the_disk_before_it_has_its_name(cache: Cache) -> None:
    """So that no loss of power leaves a file that is there in part."""
    events: list[str] = []
    rename = Path.rename
    cache.patch.setattr(kernel, "flush_to_disk", lambda path: events.append(path.name))
    cache.patch.setattr(Path, "rename", lambda path, to: (events.append("rename"), rename(path, to))[1])
    cache.decide()
    assert sorted(events[:3]) == ["deformable_attention_cpu.sha256", "deformable_attention_cpu.so", "ready"]
    assert set(events[3:]) == {"rename"}


# --- at the command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "mode", "words"),
    [
        ("detect", "on", "HF_GROUNDING_DINO_KERNEL is 'on'; it can be auto, off, required."),
        ("train", "required", "kernel for cpu cannot be built: there is no C++ compiler (no-such-compiler)"),
        ("annotate", "auto", "there is no C++ compiler (no-such-compiler)"),
    ],
)
def test_a_command_says_it_on_one_line(
    undecided: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    command: str, mode: str, words: str,
) -> None:  # fmt: skip
    """Why it cannot run, or why it is slow."""
    undecided.setenv("CXX", "no-such-compiler")
    undecided.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    undecided.setenv("HF_GROUNDING_DINO_KERNEL", mode)
    output = ["--output", str(tmp_path / "out")]
    arguments = {
        "detect": ["detect", "--demo", *output],
        "train": ["train", str(write_recipe(tmp_path, max_steps=1))],
        "annotate": ["annotate", "--images", str(DEMO_IMAGE), "--labels", "ring", "--model", str(NANO), *output],
    }
    capsys.readouterr()
    assert main(arguments[command]) == (0 if mode == "auto" else 2)
    said = [line for line in capsys.readouterr().err.splitlines() if mode != "auto" or "plain PyTorch" in line]
    assert len(said) == 1 and said[0].startswith("hf-grounding-dino: ") and words in said[0]


def test_a_missing_cuda_device_is_the_reason(undecided: pytest.MonkeyPatch) -> None:
    undecided.setattr(torch.cuda, "is_available", lambda: False)
    assert kernel_status()["cuda"] == ("reference", "there is no CUDA device")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_the_cuda_kernel_compiles_and_registers_itself(tmp_path: Path) -> None:
    """For Ampere and Hopper; it needs no device."""
    code = (
        "import sys; from pathlib import Path; from hf_grounding_dino.ops import kernel, deformable_attention\n"
        "import torch\n"
        "kernel.build(kernel.cuda_build([(8, 0), (9, 0)]), Path(sys.argv[1]))\n"
        "for name in ('deformable_attention', 'deformable_attention_backward'):\n"
        "    print(torch._C._dispatch_has_kernel_for_dispatch_key(f'hf_grounding_dino::{name}', 'CUDA'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True"]


def test_the_sources_use_nothing_that_torch_has_removed() -> None:
    for source in (Path(hf_grounding_dino.__file__).parent / "ops/csrc").iterdir():
        assert not re.search(r"\.type\(\)|\.data<|AT_CHECK|THC", source.read_text()), source.name
