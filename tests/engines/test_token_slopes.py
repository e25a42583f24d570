"""Gradient times embedding of the tokens of a text, against the loss itself as one token's embedding grows.

python -m pytest tests/engines/test_token_slopes.py
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from influence_cli.data.kinds.text import MASK, TOKENS
from influence_cli.engines.token_slopes import loss_by_token
from influence_cli.model.losses import CROSS_ENTROPY
from influence_cli.model.named_tensors import NamedTensors
from influence_cli.model.transformers_model import with_plain_call
from tests.texts import classifier

SPEC: Any = None  # only named in messages


@pytest.mark.parametrize("kind", ["bert", "gpt2", "albert"])
def test_values_are_the_slopes_of_the_loss_as_an_embedding_grows(kind: str) -> None:
    own = classifier(kind).double()
    ids, mask = torch.tensor([[2, 9, 14, 7, 3], [2, 11, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    labels = torch.tensor([1, 0])

    def loss(row: int, token: int, size: float) -> float:
        """The loss of a row alone, the embedding of one of its tokens ``size`` times what it is."""
        some = int(mask[row].sum())
        scale = torch.ones(1, some, 1, dtype=torch.float64)
        scale[0, token] = size
        hook = own.get_input_embeddings().register_forward_hook(lambda _m, _a, out: out * scale)
        try:
            with torch.no_grad():
                logits = own(input_ids=ids[row : row + 1, :some], attention_mask=mask[row : row + 1, :some]).logits
        finally:
            hook.remove()
        return float(F.cross_entropy(logits, labels[row : row + 1]))

    step = 1e-5
    expected = torch.zeros(2, 5, dtype=torch.float64)
    for row in range(2):
        for token in range(int(mask[row].sum())):
            expected[row, token] = (loss(row, token, 1 + step) - loss(row, token, 1 - step)) / (2 * step)
    assert expected.abs().max() > 1e-3
    model = with_plain_call(classifier(kind)).double()
    found = loss_by_token(model, SPEC, NamedTensors({TOKENS: ids, MASK: mask}), labels, CROSS_ENTROPY)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    assert (found[1, 3:] == 0).all()
