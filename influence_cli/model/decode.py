"""One payload as the values that a model is fed with, before they are a tensor."""

from __future__ import annotations

from typing import Any

from influence_cli.data.kinds.protocol import Decoded, Payload


def decode(payload: Payload, spec: Any) -> Decoded:
    """A row's values as ``spec`` (a ``ModelSpec``) takes them: pixels u8 [C, H, W], features f32 [d].

    Raises:
        ValueError: it cannot be decoded, or does not fit; callers add the row's name.
    """
    return spec.payload_kind.decode(payload, spec)
