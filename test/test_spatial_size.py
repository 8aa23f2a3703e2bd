"""What is counted without computing is what is computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_reasoner import write_tiny_reasoner
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from policies.measuring.counting import count
from policies.measuring.spatial_size import count_questions, count_reading
from policies.spatial.reasoner import ASSISTANT, SYSTEM, SpatialReasoner, load_reasoner


def test_products_and_the_memory_alive_at_once_are_counted() -> None:
    a, b = torch.empty(8, 16, device="meta"), torch.empty(16, 32, device="meta")

    def run() -> torch.Tensor:
        product = a @ b  # 1024 bytes
        larger = torch.cat([product, product])  # 2048 more
        del product
        return larger[:1].clone()  # 128 more, after 1024 have gone

    counted = count(run)
    assert counted.flops == 2 * 8 * 16 * 32
    assert (counted.peak_gb, counted.kept_gb) == (3072e-9, 128e-9)


def test_attention_is_counted_without_its_scores() -> None:
    q = torch.empty(1, 2, 1000, 16, device="meta")
    counted = count(lambda: torch.nn.functional.scaled_dot_product_attention(q, q[:, :1], q[:, :1]))
    assert counted.flops == 2 * 2 * 2 * 1000 * 1000 * 16
    assert counted.peak_gb < 1000 * 1000 * 4e-9


@pytest.fixture
def reasoner(tmp_path: Path) -> SpatialReasoner:
    return load_reasoner(write_tiny_reasoner(tmp_path / "checkpoint"), dtype=torch.float32, pixels=None)


def test_the_count_of_a_question_is_that_of_the_real_one(reasoner: SpatialReasoner) -> None:
    seen = [reasoner.see(np.full((90, 120, 3), value, np.uint8)) for value in (10, 90, 200)]
    encode = reasoner.tokenizer.encode
    system = len(encode(SYSTEM, add_special_tokens=False).ids)
    question = len(encode("w1 w2 w3" + ASSISTANT, add_special_tokens=False).ids)
    computed: list[int] = []
    for _ in range(2):
        # As plain products: torch does not count the CPU's fused kernel.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
            reasoner.ask(seen, "w1 w2 w3", max_tokens=1)
        computed.append(flops.get_total_flops())
    reasoner.model.to("meta")
    counted = count_questions(reasoner, len(seen[0].tokens), 3, system, question)
    assert [counted.first_flops, counted.second_flops] == computed
    whole = count_reading(reasoner, 0, system + 3 * (len(seen[0].tokens) + 2) + question, answers=True)
    assert whole.flops > counted.first_flops, "read in one piece, every token would be compared with those after it too"
