"""Find or build the deformable-attention kernel in `csrc`, once for each device type; remember what came of it.

Nothing is compiled at import. The first call for a device type loads the compiled file from the cache
(`TORCH_EXTENSIONS_DIR`, or torch's own default) or builds it there, which takes some seconds; without a compiler the
plain PyTorch definition serves instead. What is loaded runs: so a file is loaded only if nobody else can have written
it, and if it has the size and hash that its build noted beside it.

`HF_GROUNDING_DINO_KERNEL` is read at that moment: "auto" (default), "off", or "required", which raises instead of
falling back.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from ..utils.atomic import flush_to_disk

DeviceType = Literal["cpu", "cuda"]
MODE_VARIABLE = "HF_GROUNDING_DINO_KERNEL"
MODES = ("auto", "off", "required")
SOURCES = Path(__file__).parent / "csrc"
_COMPILER_PACKAGES = ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt")
# What torch itself found the processor to offer; the file in the cache must run on every machine that shares it.
VECTOR_FLAGS = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"),
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
}

logger = logging.getLogger(__name__)


class KernelStatus(NamedTuple):
    """Which implementation serves a device type ("kernel" or "reference"), and why."""

    implementation: Literal["kernel", "reference"]
    reason: str


class BuildSpec(NamedTuple):
    """What a compiled file depends on: its source and the flags of each tool."""

    source: Path
    compiler_flags: tuple[str, ...]
    cuda_flags: tuple[str, ...]
    linker_flags: tuple[str, ...]

    @property
    def file(self) -> str:
        """The name of the compiled file."""
        return f"{self.source.stem}.so"

    @property
    def key(self) -> str:
        """The same for everything that gives the same file."""
        parts = [torch.__version__, platform.machine(), sys.platform, *map(str, self[1:])]
        parts += [path.read_text() for path in sorted(SOURCES.iterdir()) if path.suffix in (".h", self.source.suffix)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


_lock = threading.RLock()
_decided: dict[str, KernelStatus] = {}


def kernel_status() -> dict[DeviceType, KernelStatus]:
    """Which implementation of deformable attention serves each device type, and why; decides where it is undecided.

    Raises:
        ValueError: `HF_GROUNDING_DINO_KERNEL` is none of auto, off, required.
        RuntimeError: it is "required", and the kernel of the CPU, or of a CUDA device that is there, cannot be built.
    """
    return {"cpu": _status("cpu"), "cuda": _status("cuda")}


# Decided at the latest while a graph is traced, of which it is then a part.
@torch.compiler.assume_constant_result
def kernel_serves(device_type: str) -> bool:
    """Whether the kernel serves tensors of a device type; decided once, then remembered.

    Raises:
        ValueError, RuntimeError: see `kernel_status`.
    """
    return _status(device_type).implementation == "kernel"


def forget_decisions() -> None:
    """Decide anew at the next call, as after a change of the environment. What is loaded stays loaded."""
    with _lock:
        _decided.clear()


def _status(device_type: str) -> KernelStatus:
    if device_type not in _decided:
        with _lock:
            if device_type not in _decided:
                _decided[device_type] = _decide(device_type)
    return _decided[device_type]


def _capabilities() -> list[tuple[int, int]]:
    """Of all devices, each once: the decision is one for them all."""
    return sorted({torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())})


def _decide(device_type: str) -> KernelStatus:
    mode = os.environ.get(MODE_VARIABLE, "auto")
    if mode not in MODES:
        raise ValueError(f"{MODE_VARIABLE} is {mode!r}; it can be {', '.join(MODES)}.")
    if mode == "off":
        return KernelStatus("reference", f"{MODE_VARIABLE} is off")
    if device_type not in ("cpu", "cuda"):
        return KernelStatus("reference", f"there is no kernel for {device_type}")
    if device_type == "cuda" and not torch.cuda.is_available():
        return KernelStatus("reference", "there is no CUDA device")
    try:
        if not SOURCES.is_dir():  # remote code, of which transformers copies Python alone
            raise RuntimeError("this copy of the code has no kernel; `pip install hf-grounding-dino` brings it")
        spec = cpu_build() if device_type == "cpu" else cuda_build(_capabilities())
        return KernelStatus("kernel", _load(spec))
    except Exception as error:  # whatever a tool chain may raise, the plain definition still serves
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = next((line for line in lines if "error:" in line), lines[0])
        if mode == "required":
            what = f"The deformable-attention kernel for {device_type} cannot be built: {reason}"
            raise RuntimeError("\n".join([what, *(lines if len(lines) > 1 else [])])) from error
        logger.info("The kernel for %s cannot be built", device_type, exc_info=True)
        warnings.warn(
            f"Deformable attention on {device_type} runs as plain PyTorch, which is slower: {reason}"
            f" ({MODE_VARIABLE}=required shows the compiler's log, {MODE_VARIABLE}=off is silent.)",
            RuntimeWarning,
            stacklevel=2,
        )
        return KernelStatus("reference", reason)


def cpu_build() -> BuildSpec:
    """For the processor of this machine."""
    vector = VECTOR_FLAGS.get(torch.backends.cpu.get_cpu_capability(), ()) if platform.machine() == "x86_64" else ()
    threads = ("-fopenmp",) if sys.platform == "linux" else ()
    # Without the last flag the compiler must not turn comparisons of samples into vector code.
    flags = ("-O3", *threads, *vector, "-fno-trapping-math")
    return BuildSpec(SOURCES / "deformable_attention_cpu.cpp", flags, (), threads)


def cuda_build(capabilities: Sequence[tuple[int, int]]) -> BuildSpec:
    """For devices of the given compute capabilities, (major, minor) each."""
    targets = (f"-gencode=arch=compute_{major}{minor},code=sm_{major}{minor}" for major, minor in capabilities)
    flags = ("-O3", "--expt-relaxed-constexpr", *targets)
    return BuildSpec(SOURCES / "deformable_attention_cuda.cu", ("-O3",), flags, ())


def build(spec: BuildSpec, folder: Path) -> Path:
    """Compile into `folder`, load the operators, and return the compiled file.

    Raises:
        RuntimeError: no compiler, or its log.
    """
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise RuntimeError(f"there is no C++ compiler ({compiler})")
    toolkit = _cuda_toolkit() if spec.cuda_flags else None
    with _quiet(), _ninja_on_path():
        # Imported here because it looks for tool chains, and says so, while it is imported.
        from torch.utils import cpp_extension

        include, link = [], []
        if toolkit is not None:
            cpp_extension.CUDA_HOME = str(toolkit)
            include, link = _pip_headers(toolkit), _link_runtime(toolkit, folder)
        logger.info("Building %s; this happens once", spec.file)
        cpp_extension.load(
            name=spec.source.stem,
            sources=[str(spec.source)],
            extra_cflags=list(spec.compiler_flags),
            extra_cuda_cflags=list(spec.cuda_flags),
            extra_ldflags=[*spec.linker_flags, *link],
            extra_include_paths=include,
            build_directory=str(folder),
            with_cuda=toolkit is not None,
            is_python_module=False,
        )
    return folder / spec.file


def _load(spec: BuildSpec) -> str:
    """Load the compiled file, built first where it is not whole in the cache; returns where it came from."""
    root = _cache_root()
    from_cache = root / spec.key / spec.file
    if _is_whole(from_cache):
        torch.ops.load_library(str(from_cache))
        return f"loaded from {from_cache}"
    try:
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        _refuse_what_others_write(root)
        workplace = tempfile.TemporaryDirectory(dir=root)
    except OSError as error:
        with tempfile.TemporaryDirectory() as folder:
            build(spec, Path(folder))
        return _for_this_process_alone(error)
    with workplace as folder:
        built = build(spec, Path(folder))
        try:
            _put_in_place(built, from_cache)
        except OSError as error:
            return _for_this_process_alone(error)
    return f"built in {from_cache}"


def _for_this_process_alone(error: OSError) -> str:
    reason = f"because the cache cannot be used ({error})"
    warnings.warn(f"Deformable attention is compiled anew in each process, {reason}", RuntimeWarning, stacklevel=2)
    return f"built for this process alone, {reason}"


def _put_in_place(built: Path, from_cache: Path) -> None:
    """Move a file into the cache with its record, both at once and whole.

    Of two processes that build at once, or one that is killed or loses power, nothing half made is left.
    """
    ready = built.parent / "ready"
    ready.mkdir(mode=0o755)
    file = ready / built.name
    os.replace(built, file)
    file.chmod(0o755)
    _record_of(file).write_text(_size_and_hash(file))
    _record_of(file).chmod(0o644)
    for path in (file, _record_of(file), ready):
        flush_to_disk(path)
    if _is_whole(from_cache):
        return  # another process was faster, and a third may be about to load its file
    with contextlib.suppress(FileNotFoundError):
        from_cache.parent.rename(built.parent / "old")
    with contextlib.suppress(OSError):  # as above, in between
        ready.rename(from_cache.parent)


def _is_whole(file: Path) -> bool:
    """Whether a file in the cache is as it was built, and written by nobody else."""
    try:
        for path in (file.parent.parent, file.parent, file, _record_of(file)):
            _refuse_what_others_write(path)
        whole = _record_of(file).read_text() == _size_and_hash(file)
    except (OSError, UnicodeDecodeError) as error:
        logger.info("Not loaded from the cache: %s", error)
        return False
    if not whole:
        logger.info("Not loaded from the cache: %s is damaged", file)
    return whole


def _refuse_what_others_write(path: Path) -> None:
    """Raise PermissionError for what belongs to others than this user and the superuser, or is writable by others."""
    if os.name != "posix":
        return
    status = path.lstat()
    if status.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"{path} belongs to another user")
    if stat.S_IMODE(status.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} can be written by others: `chmod go-w` it")


def _record_of(file: Path) -> Path:
    return file.with_suffix(".sha256")


def _size_and_hash(file: Path) -> str:
    content = file.read_bytes()
    return f"{len(content)} {hashlib.sha256(content).hexdigest()}\n"


def _cache_root() -> Path:
    # As torch.utils.cpp_extension has it, which takes a second to import.
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    return Path(chosen or Path.home() / ".cache" / "torch_extensions") / "hf_grounding_dino"


def _cuda_toolkit() -> Path:
    """The toolkit: `CUDA_HOME`, or that of the nvcc on the path, or the one in pip packages."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home and (Path(home) / "bin" / "nvcc").exists():
        return Path(home)
    if nvcc := shutil.which("nvcc"):
        # It may be a script or a link that stands outside the toolkit, so it is asked itself.
        dry_run = subprocess.run([nvcc, "--dryrun", "-c", "none.cu"], capture_output=True, text=True, check=False)
        if top := re.search(r"TOP=(\S+)", dry_run.stderr):
            return Path(top[1]).resolve()
    for package in _nvidia_packages():
        if (package / "bin" / "nvcc").exists():
            return package
    # Of different versions the compiler's parts, each in a package of its own, do not understand each other.
    parts = " ".join(f"'{name}=={torch.version.cuda}.*'" for name in _COMPILER_PACKAGES)
    raise RuntimeError(f"there is no nvcc: install the CUDA toolkit, or `pip install {parts}`")


def _nvidia_packages() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    return sorted(package for root in roots for package in root.iterdir() if package.is_dir())


def _pip_headers(toolkit: Path) -> list[str]:
    """The headers in pip packages, for a toolkit without its own; two versions of them do not go together."""
    if (toolkit / "include" / "cuda_runtime.h").exists():
        return []
    return [str(package / "include") for package in _nvidia_packages() if (package / "include").is_dir()]


def _link_runtime(toolkit: Path, folder: Path) -> list[str]:
    """Let `-lcudart` find the runtime that torch brings, whose file name ends in its version."""
    if any(toolkit.glob("lib*/libcudart.so")):
        return []
    for package in _nvidia_packages():
        for runtime in package.glob("lib*/libcudart.so.*"):
            (folder / "libcudart.so").symlink_to(runtime)
            return [f"-L{folder}"]
    return []


@contextlib.contextmanager
def _ninja_on_path() -> Iterator[None]:
    """Find the ninja that pip installed beside this Python, also when the environment is not activated."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the remarks of torch's builder to itself; a failure comes as an error."""
    builder = logging.getLogger("torch.utils.cpp_extension")
    before = builder.level
    builder.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        builder.setLevel(before)
