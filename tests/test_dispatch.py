"""Which backend serves a call, why, and what is said where none can."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import fastinfluence as fi
from fastinfluence import dispatch, info
from fastinfluence.errors import DeviceError, FastInfluenceError, ParameterError

BOTH = ("cpu", "cuda")


@pytest.fixture(autouse=True)
def _forget():
    """What was found out once is found out anew, before and after."""
    for cached in (dispatch.cuda_problem, dispatch._say_once):
        cached.cache_clear()
    yield
    for cached in (dispatch.cuda_problem, dispatch._say_once):
        cached.cache_clear()


def machine(patch, *, installed=True, problem=None, simulated=False, loads=True):
    """A machine with, or without, numba-cuda, a driver, a GPU."""
    patch.setattr(dispatch, "find_spec", lambda name: object() if installed else None)
    jit = SimpleNamespace(
        SIMULATED=simulated, driver_problem=lambda: problem, device_name=lambda: "a GPU, 80 GiB"
    )
    import fastinfluence.kernels.cuda as package

    patch.setitem(sys.modules, "fastinfluence.kernels.cuda.jit", jit if loads else None)
    patch.setattr(package, "jit", jit, raising=False)
    if not loads:
        patch.delattr(package, "jit")


def test_a_gpu_serves_what_it_has_kernels_for(monkeypatch):
    machine(monkeypatch)
    assert dispatch.choose("auto", BOTH) == ("cuda", "a GPU, 80 GiB")
    assert dispatch.choose("cuda", BOTH) == ("cuda", "asked for")
    assert dispatch.choose("cpu", BOTH) == ("cpu", "asked for")
    assert dispatch.choose("auto")[0] == "cpu"
    with pytest.raises(ParameterError, match="no cuda kernels for this, only for cpu"):
        dispatch.choose("cuda")


def test_without_numba_cuda(monkeypatch, caplog):
    machine(monkeypatch, installed=False)
    with caplog.at_level(logging.INFO, logger="fastinfluence"):
        for _ in range(3):
            backend, reason = dispatch.choose("auto", BOTH)
    assert backend == "cpu"
    assert "pip install 'fastinfluence[cuda13]'" in reason
    assert [record.getMessage() for record in caplog.records] == [
        f"kernels run on the CPU: {reason}"
    ]
    with pytest.raises(DeviceError, match=r"device='cuda' cannot be used: numba-cuda is not inst"):
        dispatch.choose("cuda", BOTH)


def test_where_numba_cuda_cannot_be_loaded(monkeypatch):
    machine(monkeypatch, loads=False)
    assert dispatch.choose("auto", BOTH)[0] == "cpu"
    with pytest.raises(DeviceError, match="cannot be loaded"):
        dispatch.choose("cuda", BOTH)


@pytest.mark.parametrize("problem", ["no NVIDIA driver was found", "the driver knows CUDA 12.4"])
def test_without_a_driver_that_will_do(monkeypatch, problem):
    machine(monkeypatch, problem=problem)
    assert dispatch.choose("auto", BOTH) == ("cpu", problem)
    with pytest.raises(DeviceError, match=problem):
        dispatch.choose("cuda", BOTH)


def test_the_simulator_is_never_chosen_unasked(monkeypatch):
    machine(monkeypatch, simulated=True)
    assert dispatch.choose("auto", BOTH)[0] == "cpu"
    assert dispatch.choose("cuda", BOTH)[0] == "cuda"


def test_torch_that_is_not_there(monkeypatch):
    machine(monkeypatch, installed=False)
    with pytest.raises(DeviceError, match=r"pip install 'fastinfluence\[torch\]'"):
        dispatch.choose("torch:cpu", ("cpu", "torch"))


def test_devices_of_torch():
    pytest.importorskip("torch")
    assert dispatch.choose("torch:cpu", ("cpu", "torch")) == ("torch:cpu", "asked for")
    with pytest.raises(DeviceError, match=r"torch .* has no such device"):
        dispatch.choose("torch:abacus", ("cpu", "torch"))


@pytest.mark.parametrize("device", ["tpu", "cuda:0", "torch", "", "cpu:1"])
def test_devices_that_are_not_known(device):
    with pytest.raises(ParameterError, match="use 'auto', 'cpu', 'cuda' or 'torch:<device>'"):
        dispatch.choose(device, ("cpu", "cuda", "torch"))


def test_errors_of_devices_are_caught_as_ours_and_as_pythons():
    for ours, built_in in ((DeviceError, RuntimeError), (fi.errors.DeviceMemoryError, MemoryError)):
        assert issubclass(ours, DeviceError)
        assert issubclass(ours, FastInfluenceError)
        assert issubclass(ours, built_in)


def test_info_says_what_was_chosen_and_why(monkeypatch):
    machine(monkeypatch)
    facts = info.machine()
    assert facts["gpu"] == facts["backend_reason"] == "a GPU, 80 GiB"
    assert facts["backend"] == "cuda"
    dispatch.cuda_problem.cache_clear()
    machine(monkeypatch, problem="no NVIDIA driver was found")
    facts = info.machine()
    assert facts["gpu"] is None
    assert (facts["backend"], facts["backend_reason"]) == ("cpu", "no NVIDIA driver was found")
    assert "no NVIDIA driver was found" in info.as_text(facts)
    json.dumps(facts)


@pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is not installed"
)
class TestDriver:
    """The driver and the toolkit that the kernels are compiled with."""

    NO_DRIVER = "Error at driver init: \n\nCUDA driver library cannot be found.\nInstall it.\n:"

    def asked(
        self, patch, *, driver=(13, 0), toolkit=(13, 0), there=True, error=None, pid=None, runs=None
    ):
        from fastinfluence.kernels.cuda import jit

        def answer(given):
            if isinstance(given, Exception):
                raise given
            return given

        of_numba = SimpleNamespace(driver=SimpleNamespace(driver=SimpleNamespace(pid=pid)))
        stand_in = SimpleNamespace(
            is_available=lambda: there, cuda_error=lambda: error, cudadrv=of_numba
        )
        patch.setattr(jit, "cuda", stand_in)
        patch.setattr(jit, "driver_version", lambda: driver)
        patch.setattr(jit, "toolkit_version", lambda: answer(toolkit))
        patch.setattr(jit, "_run_a_kernel", lambda: answer(runs))
        return jit.driver_problem()

    def test_no_driver(self, monkeypatch):
        found = self.asked(monkeypatch, there=False, error=self.NO_DRIVER)
        assert found == (
            "no NVIDIA GPU with a driver was found (CUDA driver library cannot be found): install "
            "NVIDIA's driver for the GPU"
        )

    def test_older_than_the_toolkit(self, monkeypatch):
        found = self.asked(monkeypatch, driver=(12, 4), toolkit=(13, 0))
        assert "knows CUDA 12.4, the toolkit installed is 13.0" in found
        assert "fastinfluence[cuda12]" in found

    @pytest.mark.parametrize("driver", [(13, 0), (13, 2), (14, 0)])
    def test_new_enough(self, monkeypatch, driver):
        assert self.asked(monkeypatch, driver=driver, toolkit=(13, 2), pid=os.getpid()) is None

    def test_no_compiler(self, monkeypatch):
        found = self.asked(monkeypatch, there=False)
        assert found.startswith("libNVVM, which compiles kernels, was not found: pip install")
        found = self.asked(monkeypatch, toolkit=RuntimeError("Failed to dlopen libnvrtc.so.13"))
        assert found.startswith("NVRTC, which kernels need, was not found (Failed to dlopen libnv")

    def test_kernels_that_do_not_run(self, monkeypatch):
        """For whatever reason: another's GPU, one the compiler does not know, a driver too old."""
        refused = DeviceError("kernel look_for_nan failed: CUDA_ERROR_UNSUPPORTED_PTX_VERSION")
        found = self.asked(monkeypatch, driver=(13, 2), runs=refused)
        assert found == f"kernels do not run on the GPU: {refused}"
        found = self.asked(monkeypatch, toolkit=(13, 5), runs=refused)
        assert found == (
            f"kernels do not run on the GPU: {refused}; the NVIDIA driver knows CUDA 13.0, the "
            "toolkit installed is 13.5: pip install 'cuda-toolkit==13.0.*', or update the driver"
        )

    def test_a_process_that_was_forked_off_one_with_cuda(self, monkeypatch):
        found = self.asked(monkeypatch, pid=os.getpid() + 1)
        assert "before this process was forked: start processes with 'spawn'" in found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_forked_process_asks_anew():
    script = """
import os
from fastinfluence import dispatch

dispatch.find_spec = lambda name: None
dispatch.cuda_problem()
assert dispatch.cuda_problem.cache_info().currsize == 1
child = os.fork()
if child == 0:
    os._exit(dispatch.cuda_problem.cache_info().currsize)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_memory_of_the_cpu_is_where_arrays_are_already():
    memory = dispatch.memory("cpu")
    given = np.arange(4.0), (np.ones(2, np.int32), None, 3)
    assert memory.put(given) is given
    assert memory.fetch(given) is given
    other = memory.copied(given)
    other[0][:] = 7
    assert given[0].tolist() == [0, 1, 2, 3]
    assert other[1][1:] == (None, 3)
    zeros = memory.zeros((3, 5), np.float32)
    assert zeros.ctypes.data % 64 == 0
    assert not zeros.any()
    memory.store(zeros, np.full((3, 5), 2, np.float32))
    assert (zeros == 2).all()
