"""A command imports neither torch's compiler nor its sharded tensors, and whoever needs them has the true ones.

python -m pytest tests/model/test_lean_imports.py
"""

from __future__ import annotations

import os

import pytest

from tests.cases import Ran, run_python

# Importing torch takes longer than what follows it: the programs are forks of one process that has done no more.
START = """
import os
import sys
import torch
from influence_cli import memory
from influence_cli.model.lean_imports import import_timm, look_up_dtensor

programs = sys.argv[1:]
for k in range(0, len(programs), 2):
    name, code = programs[k : k + 2]
    if (pid := os.fork()) == 0:
        try:
            os.dup2(os.open(name + ".out", os.O_WRONLY | os.O_CREAT), 1)
            os.dup2(os.open(name + ".err", os.O_WRONLY | os.O_CREAT), 2)
            exec(code, globals())
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        finally:
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
A_COMMAND = "memory.give_back_freed_memory()\n"
PROGRAMS = {
    "timm": A_COMMAND + """
timm = import_timm()
model = timm.create_model('test_resnet', num_classes=3)
print(tuple(model.eval()(torch.zeros(1, 3, 32, 32)).shape), 'torch._dynamo' in sys.modules)
look_up_dtensor()
from influence_cli.engines.dual.dual import leaf, tangents_of
import influence_cli.engines.dual
x = torch.nn.functional.linear(leaf(torch.ones(1, 2)), leaf(torch.ones(3, 2), (torch.ones(3, 2),)))
print(x.value.tolist(), [t.tolist() for t in tangents_of(x)], 'sympy' in sys.modules)
from torch.distributed.tensor import DTensor
print(DTensor.__module__)
""",
    "put off": A_COMMAND + """
import_timm()
from torchvision.ops import roi_align as _
import torchvision
there = sys.modules['torchvision.ops.roi_align'].is_compile_supported('cpu')
from torch._dynamo.utils import is_compile_supported as true
print(there == true('cpu'), type(sys.modules['torch._dynamo']).__name__)
from timm.models.naflexvit import NaFlexRopeIterator
print(torch.compile(lambda x: x + 1, backend='eager')(torch.zeros(2)).tolist())
""",
    "with and without": A_COMMAND
    + """
from influence_cli.model import lean_imports
from influence_cli.model.train.recipe import Recipe
from influence_cli.model.train.sgd import _optimizer
from torch.func import grad, jacrev, vmap

def cubes():
    one = vmap(jacrev(grad(lambda x: (x ** 3).sum())))(torch.tensor([[2.0], [3.0]]))
    return one.flatten().tolist()

with lean_imports.compiler_put_off():
    plus = torch.compiler.disable(lambda x: x + 1)
    times = torch.compiler.disable(reason='why')(lambda x: 2 * x)
print(plus(1), times(2), 'torch._dynamo' in sys.modules)
for optimizer in ('sgd', 'adamw'):
    model = torch.nn.Linear(2, 1)
    made = _optimizer(model, Recipe(optimizer=optimizer, lr=0.5, weight_decay=0.0))
    for _ in range(2):
        made.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        before = model.bias.item()
        with lean_imports.compiler_put_off():
            made.step()
        print(before > model.bias.item(), end=' ')
print('torch._dynamo' in sys.modules)
with lean_imports.compiler_put_off():
    print(cubes(), type(sys.modules['torch._dynamo']).__name__)
print('torch._dynamo' in sys.modules)
import torch._dynamo
print(plus(1), times(2))
made.step()
made.zero_grad()
print([p.grad for p in model.parameters()])
print(cubes())
""",
    "a program": """
import_timm()
print('torch._dynamo' in sys.modules)
look_up_dtensor()
print(sys.modules['torch.distributed.tensor'].DTensor.__module__)
""",
}  # fmt: skip

if not hasattr(os, "fork"):  # pragma: no cover
    pytest.skip("forks", allow_module_level=True)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """How each program ended, and what it said."""
    here = tmp_path_factory.mktemp("programs")
    given = [text for program in PROGRAMS.items() for text in program]
    whole = run_python(START, *given, cwd=here)
    assert whole.code == 0, whole.err
    return {
        name: Ran(int(code), (here / f"{name}.out").read_bytes(), (here / f"{name}.err").read_text())
        for name, code in zip(PROGRAMS, whole.text.split(), strict=True)
    }


def test_a_command_builds_a_model_of_timm_without_torchs_compiler_and_its_first_dual_without_sharded_tensors(
    ran: dict[str, Ran],
) -> None:
    expected = "(1, 3) False\n[[2.0, 2.0, 2.0]] [[[2.0, 2.0, 2.0]]] False\ntorch.distributed.tensor\n"
    assert (ran["timm"].code, ran["timm"].text) == (0, expected), ran["timm"].err


def test_what_was_put_off_is_imported_when_it_is_called(ran: dict[str, Ran]) -> None:
    assert (ran["put off"].code, ran["put off"].text) == (0, "True module\n[1.0, 1.0]\n"), ran["put off"].err


def test_marked_functions_optimizers_and_gradients_do_without_torchs_compiler_and_are_the_same_beside_it(
    ran: dict[str, Ran],
) -> None:
    found = ran["with and without"]
    without = ["2 4 False", "True True True True False", "[12.0, 18.0] _Later", "False"]
    assert (found.code, found.text.splitlines()) == (0, [*without, "2 4", "[None, None]", "[12.0, 18.0]"]), found.err


def test_a_program_that_calls_us_has_its_imports_as_they_are(ran: dict[str, Ran]) -> None:
    """It has not said, by giving freed memory back, that the process is a command's: nothing is put off."""
    found = ran["a program"]
    assert (found.code, found.text) == (0, "True\ntorch.distributed.tensor\n"), found.err
