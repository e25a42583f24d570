"""R7: utility and fairness together, on sentences with a planted bias (Figure 3, reduced)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.reproduction.commands import Commands, control_of, words
from tests.reproduction.datasets import WORDS, biased_sentences
from tests.reproduction.page import BLUE, GREEN, GREY, ORANGE, RED, Page, edits_table, mean, table
from tests.reproduction.parts import Part

TITLE = "joint trims for utility and fairness on texts"
PAPER = "Yang et al., arXiv:2405.17490, Figure 3 (RoBERTa on GLUE, a scatter without numbers; here planted bias)"
CAPTION = (
    "Test accuracy and flips of joint trims, mean over seeds; the cross is the model without edits, grey "
    "dots are random trims."
)
METHODS = ("ip", "ip-ensemble", "ekfac", "datainf")
COLOURS: dict[str, str] = dict(
    zip((*METHODS, "loss", "no edit"), (BLUE, GREEN, RED, "#cc79a7", ORANGE, "black"), strict=True)
)
RECIPE = ("--model", "hf:bert", "--epochs", 6, "--lr", 0.002, "--flips", "words")
MEASURES = {"accuracy": True, "fair_score": False}


def parts(sizes: dict[str, Any]) -> list[Part]:
    """A part a seed."""
    return [Part("R7", f"seed {s}", measure, {"seed": s, "bias": sizes["bias"]}) for s in range(sizes["seeds"])]


def missing() -> str | None:
    """Why it cannot run, where it cannot."""
    try:
        import transformers  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        return "it needs the extra text"
    return None


def encoder(run: Commands, seed: int) -> None:
    """A BERT of two layers and width 64 with weights of a seed and a tokenizer of whole words, saved as ``bert``."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made = Tokenizer(models.WordLevel({w: k for k, w in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    made.pre_tokenizer, made.normalizer = pre_tokenizers.Whitespace(), normalizers.Lowercase()  # type: ignore[assignment]
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # type: ignore[assignment]
    tokens: Any = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=32, model_input_names=["input_ids", "attention_mask"],
        unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
    )  # fmt: skip
    tokens.save_pretrained(run.folder / "bert")
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(special) + len(WORDS), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=32, pad_token_id=0, num_labels=2,  # pyright: ignore[reportCallIssue]
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(run.folder / "bert")


def measure(run: Commands, seed: int, bias: int) -> dict[str, Any]:
    """Trims of 5 % by utility, by fairness and by both, for every method; by loss and at random."""
    biased_sentences(run.folder / "t.parquet", seed, bias / 100)
    if not (run.folder / "bert").exists():
        encoder(run, seed)
    run("manifest", "t.parquet", "--text", "text", "--id", "id", "-o", "m.parquet")
    recipe = (*RECIPE, "--seed", seed)
    run("retrain", "m.parquet", *recipe, "-o", "RUN")
    asked = ("--objective", "utility", "--objective", "flip-fairness", "--seed", seed)
    arms: dict[str, Any] = {}
    for m in METHODS:
        both = ("--method", m, "--method", "loss") if m == METHODS[0] else ("--method", m)
        run.scores("m.parquet", "--checkpoint", "RUN", *both, *asked, output=f"{m}.parquet")
        prefix = f"score_{m}_" if len(both) > 2 else "score_"
        by = (*words("--by", [f"{prefix}utility", f"{prefix}flip-fairness"]), "--combine", "ranksum")
        found = run.arms("m.parquet", *recipe, "--scores", f"{m}.parquet", *by, "--budget", "5%", "-o", "RUN")
        for name, arm in found.items():
            plain = name.removeprefix(f"{m}_")
            arms[name if name == "no edit" else f"{m}, {plain}"] = arm
    by_loss = ("--by", "score_loss", "--budget", "5%")
    arms |= run.arms("m.parquet", *recipe, "--scores", f"{METHODS[0]}.parquet", *by_loss, "-o", "RUN")
    return {"arms": arms}


def page(found: dict[str, Any], sizes: dict[str, Any]) -> Page:
    """Every trim beside controls, by accuracy and by how often predictions flip."""
    of = [f["arms"] for f in found.values()]
    named = {f"`{m}`, {c}": f"{m}, {c} trim 5%" for m in METHODS for c in ("utility", "flip-fairness", "ranksum")}
    named["`loss`"] = "loss trim 5%"
    trims = edits_table(of, named, MEASURES)
    claims = table(
        ("method", "seeds in which the joint trim is no worse in both and better in one", "a random trim of its size"),
        [(f"`{m}`", *(f"{sum(improves(a, n(a, m)) for a in of)} of {len(of)}" for n in (joint, random_of)))
         for m in METHODS],
    )  # fmt: skip
    body = f"""
400 sentences on films; the class is whether a good word is in them, and {sizes["bias"]} % of the train sentences
that name a woman and have a good word are labelled as if they had a bad one. A
BERT of two layers, width 64. `fair_score` is the share of
test
sentences whose prediction flips where words for men and women are swapped, so lower is better. `ranksum` is the joint
ranking. Intervals are 95 % over {len(of)} seeds, differences in points.

Without edits {mean([a["no edit"]["accuracy"] for a in of], 100)} % are right and
{mean([a["no edit"]["fair_score"] for a in of], 100)} % flip: what is left to improve.

{trims}

{claims}

The paper says that most methods improve both and that its ensemble does on all three tasks; it shows neither random
trims nor loss.
"""
    return Page(body, lambda figure: draw(figure, of), CAPTION, (6, 4))


def joint(arms: dict[str, Any], method: str) -> str:
    """The arm of a method's joint trim."""
    return f"{method}, ranksum trim 5%"


def random_of(arms: dict[str, Any], method: str) -> str:
    """The random trim that controls it."""
    return control_of(arms, joint(arms, method))


def improves(arms: dict[str, Any], name: str) -> bool:
    """Whether an arm is at least as good as no edit in both measures and better in one."""
    gains = [(arms[name][m] - arms["no edit"][m]) * (1 if higher else -1) for m, higher in MEASURES.items()]
    return min(gains) >= 0 and max(gains) > 0


def draw(figure: Any, of: list[Any]) -> None:
    """Accuracy to the right, fairness upwards."""
    axes = figure.subplots()
    points = {m: joint(of[0], m) for m in METHODS} | {"loss": "loss trim 5%", "no edit": "no edit"}
    for m in METHODS:
        axes.scatter(*place(of, random_of(of[0], m)), s=14, color=GREY)
    for called, arm in points.items():
        x, y = place(of, arm)
        axes.scatter(x, y, s=60 if called == "no edit" else 40, marker="x" if called == "no edit" else "o",
                     color=COLOURS[called], label=called)  # fmt: skip
    x, y = place(of, "no edit")
    axes.axvline(x, color="black", linewidth=0.5)
    axes.axhline(y, color="black", linewidth=0.5)
    axes.invert_yaxis()
    axes.set(xlabel="test accuracy, %", ylabel="flipped predictions, % (up is fairer)")
    axes.legend(fontsize=8)


def place(of: list[Any], name: str) -> tuple[float, float]:
    """Mean accuracy and flips of an arm, in %."""
    a, b = (100 * float(np.mean([arms[name][m] for arms in of])) for m in MEASURES)
    return a, b
