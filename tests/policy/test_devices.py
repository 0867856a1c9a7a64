"""What the processor can compute in."""

from __future__ import annotations

import pytest
import torch

from flowchunk.policy.devices import lacks_bfloat16

CPU, GPU = torch.device("cpu"), torch.device("cuda")
AMX, AVX2 = {"avx512_bf16": False, "amx_bf16": True}, {"avx512_bf16": False, "amx_bf16": False}


@pytest.mark.parametrize(("capabilities", "expected"), [(AMX, False), (AVX2, True), ({"sve": True}, False)])
def test_a_processor_without_instructions_for_bfloat16_is_known(
    capabilities: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert lacks_bfloat16(CPU) == expected
    assert not lacks_bfloat16(GPU)


def test_without_an_answer_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not lacks_bfloat16(CPU)
