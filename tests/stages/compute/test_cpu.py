"""What this CPU can."""

from stages.compute.cpu import ISA_VARIABLE, cpu_flags, flags_text


def test_what_the_cpu_can_is_read_from_linux_and_unknown_elsewhere(tmp_path, monkeypatch):
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    told = tmp_path / "cpuinfo"
    told.write_text("processor: 0\nflags\t\t: fpu avx2 avx512_vnni\nflags\t\t: fpu amx_int8\n")
    assert cpu_flags(told) == {"avx2", "avx512_vnni"}
    assert flags_text(cpu_flags(told)) == "avx2 avx512_vnni"
    monkeypatch.setenv(ISA_VARIABLE, "AVX2")
    assert cpu_flags(told) == {"avx2"}
    told.write_text("flags: avx2 avx512f avx512_vnni avx512_bf16 amx_int8\n")
    assert cpu_flags(told) == {"avx2"}
    monkeypatch.setenv(ISA_VARIABLE, "avx512_core_vnni")
    assert cpu_flags(told) == {"avx2", "avx512f", "avx512_vnni"}
    told.write_text("processor: 0\nFeatures: asimddp\n")  # an ARM
    assert flags_text(cpu_flags(told)) == flags_text(cpu_flags(tmp_path / "none")) == "unknown"
