import pytest
import torch

from data_cache.errors import SettingError
from stages.compute.cpu import ISA_VARIABLE
from stages.compute.devices import autocast, resolve_device, resolve_precision, synchronize

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("there", "expected"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_the_gpu_where_there_is_one(monkeypatch, there, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert resolve_device("auto") == torch.device(expected)
    assert resolve_device("cpu") == CPU


def test_a_gpu_that_is_not_there_is_an_error_with_a_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match="torch sees no GPU; use device = 'auto'"):
        resolve_device("cuda")


def test_unknown_names_are_errors_that_list_the_known_ones():
    with pytest.raises(SettingError, match="device: expected one of auto, cpu, cuda, got 'gpu'"):
        resolve_device("gpu")
    with pytest.raises(SettingError, match="precision: expected one of auto, fp32, bf16, fp16, got 'fp8'"):
        resolve_precision("fp8", CPU)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_precision_on_a_gpu_is_bf16_from_ampere_on(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", CUDA) == expected


@pytest.mark.parametrize(("amx", "avx512", "expected"), [(0, 0, "fp32"), (1, 0, "bf16"), (0, 1, "bf16")])
def test_auto_precision_on_a_cpu_is_bf16_where_it_multiplies_bf16(monkeypatch, amx, avx512, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512))
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    assert resolve_precision("auto", CPU) == expected
    monkeypatch.setenv(ISA_VARIABLE, "avx2")  # the kernels for bf16 are then not there
    assert resolve_precision("auto", CPU) == "fp32"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_named_precision_is_kept(precision):
    assert resolve_precision(precision, CPU) == precision


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_computes_in_the_precision_it_is_told(precision, dtype):
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_only_a_gpu_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    synchronize(CPU)
    assert waited == []
    synchronize(CUDA)
    assert waited == [CUDA]
