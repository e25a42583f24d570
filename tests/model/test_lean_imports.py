"""A command imports neither torch's compiler nor its sharded tensors, and whoever needs them has the true ones.

python -m pytest tests/model/test_lean_imports.py
"""

from __future__ import annotations

from pathlib import Path

from tests.cases import run_python

START = """
import sys
import torch
from influence_cli.memory import give_back_freed_memory
from influence_cli.model.lean_imports import import_timm, look_up_dtensor
COMMAND
"""
A_COMMAND, A_PROGRAM = START.replace("COMMAND", "give_back_freed_memory()"), START.replace("COMMAND", "")


def test_a_command_builds_a_model_of_timm_without_torchs_compiler_and_its_first_dual_without_sharded_tensors(
    tmp_path: Path,
) -> None:
    ran = run_python(
        A_COMMAND + "timm = import_timm(); model = timm.create_model('test_resnet', num_classes=3)\n"
        "print(tuple(model.eval()(torch.zeros(1, 3, 32, 32)).shape), 'torch._dynamo' in sys.modules)\n"
        "look_up_dtensor()\n"
        "from influence_cli.engines.dual.dual import leaf, tangents_of\n"
        "import influence_cli.engines.dual\n"
        "x = torch.nn.functional.linear(leaf(torch.ones(1, 2)), leaf(torch.ones(3, 2), (torch.ones(3, 2),)))\n"
        "print(x.value.tolist(), [t.tolist() for t in tangents_of(x)], 'sympy' in sys.modules)\n"
        "from torch.distributed.tensor import DTensor\n"
        "print(DTensor.__module__)",
        cwd=tmp_path,
    )
    expected = "(1, 3) False\n[[2.0, 2.0, 2.0]] [[[2.0, 2.0, 2.0]]] False\ntorch.distributed.tensor\n"
    assert (ran.code, ran.text) == (0, expected), ran.err


def test_what_was_put_off_is_imported_when_it_is_called(tmp_path: Path) -> None:
    ran = run_python(
        A_COMMAND + "import_timm(); from torchvision.ops import roi_align as _; import torchvision\n"
        "there = sys.modules['torchvision.ops.roi_align'].is_compile_supported('cpu')\n"
        "from torch._dynamo.utils import is_compile_supported as true\n"
        "print(there == true('cpu'), type(sys.modules['torch._dynamo']).__name__)\n"
        "from timm.models.naflexvit import NaFlexRopeIterator\n"
        "print(torch.compile(lambda x: x + 1, backend='eager')(torch.zeros(2)).tolist())",
        cwd=tmp_path,
    )
    assert (ran.code, ran.text) == (0, "True module\n[1.0, 1.0]\n"), ran.err


def test_a_function_that_is_not_to_be_compiled_runs_with_the_compiler_and_without(tmp_path: Path) -> None:
    ran = run_python(
        A_COMMAND + "from influence_cli.model import lean_imports\n"
        "with lean_imports._compiler_put_off():\n"
        "    plus = torch.compiler.disable(lambda x: x + 1)\n"
        "    times = torch.compiler.disable(reason='why')(lambda x: 2 * x)\n"
        "print(plus(1), times(2), 'torch._dynamo' in sys.modules)\n"
        "import torch._dynamo\n"
        "print(plus(1), times(2))",
        cwd=tmp_path,
    )
    assert (ran.code, ran.text) == (0, "2 4 False\n2 4\n"), ran.err


def test_a_program_that_calls_us_has_its_imports_as_they_are(tmp_path: Path) -> None:
    """It has not said, by giving freed memory back, that the process is a command's: nothing is put off."""
    ran = run_python(
        A_PROGRAM + "import_timm(); print('torch._dynamo' in sys.modules); look_up_dtensor()\n"
        "print(sys.modules['torch.distributed.tensor'].DTensor.__module__)",
        cwd=tmp_path,
    )
    assert (ran.code, ran.text) == (0, "True\ntorch.distributed.tensor\n"), ran.err
