"""The spec of a language model that is trained from nothing: its tokenizer is learned from the train texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from influence_cli.errors import UsageError
from influence_cli.model.byte_pairs import BEGIN, BytePairs, digest, learn
from influence_cli.model.spec import NEXT_TOKEN, ModelSpec
from influence_cli.model.text_input import TextInput

if TYPE_CHECKING:
    from influence_cli.data.manifest import Manifest, Rows
    from influence_cli.settings import Inputs

VOCABULARY = 1024  # tokens, fewer where the texts have no more pairs: a third of the bytes of English in number


def new_gpt(inputs: Inputs, manifest: Manifest) -> ModelSpec:
    """The spec of ``gpt:LAYERSxWIDTH`` for a manifest of texts.

    It takes as many tokens as the longest text of the manifest has, or as --max-length says, and then cuts longer ones.

    Raises:
        UsageError: a checkpoint that does not say its tokenizer, or a length that leaves nothing to predict.
        ModelError: the name says no sizes.
    """
    from influence_cli.model.gpt import sizes

    if inputs.checkpoint is not None:
        what = f"a checkpoint of {inputs.model} is used with the tokenizer that it was trained with, and says none"
        raise UsageError(what, where=inputs.checkpoint, fix="give the run folder of `retrain`")
    layers, width = sizes(inputs.model or "")
    if inputs.max_length is not None and inputs.max_length < 2:
        raise UsageError("--max-length 1 leaves no token to predict", fix="pass 2 or more")
    merges = learn(_texts(manifest.rows("train")), VOCABULARY)
    pairs = BytePairs(merges)
    longest = max(2, max(len(pairs.encode(text)) for text in _texts(manifest.all_rows())))
    length = inputs.max_length or longest
    text = TextInput(
        digest(merges), length, max(longest, length), BEGIN, pairs.size, types=False, texts=1, merges=merges,
        asked=inputs.max_length is not None,
    )  # fmt: skip
    return ModelSpec(
        f"gpt:{layers}x{width}", 1, manifest.payload_kind.input_name, (length,), text=text, loss=NEXT_TOKEN
    )


def _texts(rows: Rows) -> list[str]:
    return [payload for _, payload in rows.manifest.payloads(rows.index)]
