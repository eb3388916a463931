"""``deploy``: the network as it runs in production.

1. The program is captured by symbolic tracing (a ``GraphModule`` is taken as it is), in evaluation mode, with weights of its own; the given
   model is only read. Numbers too small for a normal floating-point number (denormals), which slow processors down, become zero among parameters
   and buffers, once all is folded. The candidate *as given* is untouched: it has those of the model.
2. Candidates, each made from the one before: *as given*; *folded* (constants.py, clean.py, fold.py); *in place* and *channels last* (layout.py).
3. A candidate is dropped, with the reason, if it fails on the example inputs or if an output differs from the given model's by more
   than ``tolerance`` of the output's largest value (for float16 and bfloat16: 32 steps of the dtype).
4. The rest are timed in turns on the example inputs (timing.py). What is returned is the fastest, which is the untouched copy if none beats it.
5. A model that cannot be traced, or that changes its buffers when it is called, comes back as an untouched copy in evaluation mode (of its own
   class, if it is no ``GraphModule``), with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.capture.clone import clone, walk
from fxprune.capture.inputs import Inputs, given, infer
from fxprune.capture.tracer import trace
from fxprune.errors import BudgetError, CaptureError, InputError
from fxprune.inference.clean import remove_dead, remove_identities
from fxprune.inference.constants import fold_constants, settle_flags
from fxprune.inference.fold import Folded, fold_affine
from fxprune.inference.layout import Facts, channels_last, in_place
from fxprune.inference.observe import difference, facts_of, flushed, line, outputs
from fxprune.provenance.fallback import accepts
from fxprune.provenance.interpret import evaluation_clone
from fxprune.rewrite.module import SlimModule
from fxprune.timing import interleaved, typical

RECORD, ATTRIBUTE = "fxprune_deployment", "_fxprune_deployment"
TOLERANCE = 1e-5
STEPS = 32
GIVEN, FOLDED, IN_PLACE, LAST = "as given", "folded", "in place", "channels last"
FORMS = (GIVEN, FOLDED, IN_PLACE, LAST)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One form of the network.

    Attributes:
        name: "as given", "folded", "in place" or "channels last".
        seconds: of one call on the example inputs; NaN where it was not timed.
        error: largest difference to the given model, relative to the largest output.
        dropped: why it was not considered; "" if it was.
    """

    name: str
    seconds: float = math.nan
    error: float = math.nan
    dropped: str = ""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What ``deploy`` did.

    Attributes:
        chosen: name of the candidate that was returned.
        candidates: all of them.
        folded: names of the nodes that went into the layer before them.
        left: norms that stay, with the reason.
        removed: names of the nodes that compute nothing at inference.
        reason: why nothing could be folded at all; "" otherwise.
    """

    chosen: str
    candidates: tuple[Candidate, ...]
    folded: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    reason: str = ""

    def __deepcopy__(self, _memo: object) -> Deployment:
        return self  # immutable


@torch.no_grad()
def deploy(
    model: nn.Module, example_inputs: Any = None, *, seconds: float = 2.0, tolerance: float = TOLERANCE, form: str = ""
) -> nn.Module:
    """The network for inference: the same outputs, never slower than what was given.

    Args:
        model: a slim model, or any module; only read.
        example_inputs: as for ``analyze``. Times are those of these inputs, so give the batch size that will be used; other sizes work too.
        seconds: how long candidates are timed altogether. With 0 nothing is timed, and the folded form is returned: for ``torch.compile`` and
            exporters, which choose layouts of their own.
        tolerance: largest difference of an output, relative to its largest value.
        form: "as given", "folded", "in place" or "channels last": that candidate, untimed; the one before it where the network has none.

    Returns:
        A module in evaluation mode whose parameters need no gradients; ``deployment_of`` tells what was done. It carries no plan: save
        the slim model, and deploy it again after loading.

    Raises:
        BudgetError: ``seconds`` or ``tolerance`` is no number from 0 on, or an unknown form.
        InputError: the model fails on the example inputs, or none can be inferred.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}.", got=type(model).__name__)
    numbers: tuple[tuple[str, Any], ...] = (("seconds", seconds), ("tolerance", tolerance))
    for name, value in numbers:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise BudgetError(f"{name} must be a number that is not negative, got {value!r}.", node=name, got=value)
    if form not in ("", *FORMS):
        raise BudgetError(f"form must be one of {', '.join(map(repr, FORMS))}, got {form!r}.", node="form", got=form)
    inputs = given(example_inputs) if example_inputs is not None else infer(model, lambda candidate: _works(model, candidate))
    kept = untouched(model)
    if form == GIVEN:
        return _told(kept, Deployment(GIVEN, (Candidate(GIVEN, error=0.0),), reason="asked for as given"))
    expected = outputs(kept, inputs, of="the model")
    changed = _changed(kept, model)
    if changed:
        reason = f"the model changes its buffer {changed!r} when it is called"
        return _told(untouched(model), Deployment(GIVEN, (Candidate(GIVEN, error=0.0),), reason=reason))
    try:
        captured = trace(model, None, inputs)
    except CaptureError as error:
        return _told(kept, Deployment(GIVEN, (Candidate(GIVEN, error=0.0),), reason=str(error)))
    root, graph = evaluation_clone(captured.root, _own), _copied(captured.graph)
    try:
        settle_flags(graph, root)
        facts = facts_of(SlimModule(root, _copied(graph), captured.name), inputs)
    except Exception as error:  # noqa: BLE001 - whatever the program raises, the model itself runs
        return _told(kept, Deployment(GIVEN, (Candidate(GIVEN, error=0.0),), reason=line(error)))
    made: list[tuple[str, nn.Module]] = [(GIVEN, kept)]
    folded, removed = _fold(graph, root, facts)
    made.append((FOLDED, SlimModule(root, graph, captured.name)))
    graph = _copied(graph)
    if form != FOLDED and in_place(graph, root, facts):
        made.append((IN_PLACE, SlimModule(evaluation_clone(root, _shared), graph, captured.name)))
    root, graph = evaluation_clone(root, _shared), _copied(graph)
    if form in ("", LAST) and channels_last(graph, root):
        made.append((LAST, SlimModule(root, graph, captured.name)))
    made = made[:: len(made) - 1] if form else made
    chosen, module, candidates = _fastest(made, inputs, expected, 0.0 if form else seconds, tolerance, form or FOLDED)
    return _told(module, Deployment(chosen, candidates, folded.nodes, folded.left, removed))


def deployment_of(module: nn.Module) -> Deployment:
    """What ``deploy`` did to make this module.

    Raises:
        InputError: the module was not made by ``deploy``.
    """
    found = module.meta.get(RECORD) if isinstance(module, fx.GraphModule) else module.__dict__.get(ATTRIBUTE)
    if not isinstance(found, Deployment):
        raise InputError(f"this {type(module).__name__} was not made by fxprune.deploy.", got=type(module).__name__)
    return found


def _fold(graph: fx.Graph, root: nn.Module, facts: Facts) -> tuple[Folded, tuple[str, ...]]:
    removed = remove_identities(graph, root)
    fold_constants(graph, root)
    ranks = {name: len(shape) for name, (shape, _) in facts.items()}
    folded = fold_affine(graph, root, ranks)
    remove_dead(graph, root)
    for tensor in (*root.parameters(), *root.buffers()):
        tensor.data = flushed(tensor.data)
    graph.lint()
    return folded, removed


def _fastest(
    made: list[tuple[str, Any]], inputs: Inputs, expected: list[Tensor], seconds: float, tolerance: float, form: str
) -> tuple[str, nn.Module, tuple[Candidate, ...]]:
    """Clauses 3 and 4."""
    found: dict[str, Candidate] = {}
    modules: dict[str, nn.Module] = {}
    for name, module in made:
        try:
            error = difference(outputs(module, inputs, of=name), expected)
        except InputError as failure:
            found[name] = Candidate(name, dropped=str(failure))
            continue
        limit = max(tolerance, *(_limit(tensor, tolerance) for tensor in expected)) if expected else tolerance
        if error > limit:
            found[name] = Candidate(name, error=error, dropped=f"outputs differ by {error:.2g}, more than {limit:.2g}")
            continue
        found[name], modules[name] = Candidate(name, error=error), module
    device = next((tensor.device for tensor in expected), torch.device("cpu"))
    if seconds:
        own = [inputs.map(torch.clone) for _ in modules]  # a model may write into what it is given
        calls = [partial(module, *given.args, **given.kwargs) for module, given in zip(modules.values(), own, strict=True)]
        times = interleaved(calls, device, seconds)
        for name, seen in zip(modules, times, strict=True):
            found[name] = Candidate(name, typical(seen), found[name].error)
        chosen = min(modules, key=lambda name: (found[name].seconds, list(modules).index(name)))
    else:
        chosen = [name for name in FORMS[: FORMS.index(form) + 1] if name in modules][-1]
    return chosen, modules[chosen], tuple(found.values())


def _limit(tensor: Tensor, tolerance: float) -> float:
    small = tensor.dtype in (torch.float16, torch.bfloat16)
    return STEPS * torch.finfo(tensor.dtype).eps if small else tolerance


def _own(_name: str, tensor: Tensor) -> Tensor:
    new = tensor.detach().clone()
    return nn.Parameter(new, requires_grad=False) if isinstance(tensor, nn.Parameter) else new


def _shared(_name: str, tensor: Tensor) -> Tensor:
    return tensor


def untouched(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode with tensors of its own."""
    if isinstance(model, fx.GraphModule):
        return SlimModule(evaluation_clone(model, _own), _copied(model.graph), type(model).__name__)
    new = clone(model, _own)
    for _, module in walk(new):
        module.__dict__["training"] = False
    return new


def _copied(graph: fx.Graph) -> fx.Graph:
    new = fx.Graph()
    new.set_codegen(graph._codegen)
    output = new.graph_copy(graph, {}, return_output_node=True)
    if output is not None:
        value: Any = output
        new.output(value[0], getattr(value[1], "type", None))
    for mine, theirs in zip(new.nodes, graph.nodes, strict=True):
        mine.name = theirs.name
        mine.meta = dict(theirs.meta)
    return new


def _changed(called: nn.Module, model: nn.Module) -> str:
    """The first buffer that a call changes; "" if there is none."""
    before = dict(model.named_buffers())
    pairs = ((name, buffer, before[name]) for name, buffer in called.named_buffers() if name in before)
    return next((name for name, new, old in pairs if not torch.equal(new.nan_to_num(), old.nan_to_num())), "")


def _works(model: nn.Module, candidate: Inputs) -> Exception | None:
    return None if accepts(model, candidate) else InputError("the model fails on it")


def _told(module: nn.Module, deployment: Deployment) -> nn.Module:
    if isinstance(module, fx.GraphModule):
        module.meta[RECORD] = deployment
    else:
        module.__dict__[ATTRIBUTE] = deployment
    return module
