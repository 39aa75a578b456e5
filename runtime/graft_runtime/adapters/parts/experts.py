"""LoRA on the experts of a mixture: a low rank for each expert of a stacked parameter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from graft_runtime.adapters.deltas import LowRank, ModuleDelta
from graft_runtime.adapters.layout import EXPERTS, BaseLayout, ExpertsShape
from graft_runtime.adapters.parts.low_rank import LinearLowRank
from graft_runtime.adapters.parts.part import Part, Source, integers
from graft_runtime.adapters.remap import current
from graft_runtime.contract.facts import DeltaKind


@dataclass(frozen=True)
class StackedLowRank(Part):
    """What PEFT saves for one of `target_parameters` (tuners/lora/layer.py, ParamWrapper).

    A is [experts · r, in], the expert in the slow axis; B is [out, r · experts], the expert in the fast one. PEFT takes
    the last axis of the parameter for `in`, unless the module says that it keeps its weights transposed; files of some
    families have A and B the other way round, which their shapes tell.

    Attributes:
        parameter: of the module.
        scale: alpha/r or alpha/√r.
        expert_rank: r.
    """

    parameter: str
    scale: float
    expert_rank: int

    kinds: ClassVar = (EXPERTS,)

    @property
    def rank(self) -> int:
        return self.expert_rank

    @property
    def file_rank(self) -> int:
        """Return the rank of one expert."""
        return self.expert_rank

    @property
    def deltas(self) -> frozenset[DeltaKind]:
        return frozenset({DeltaKind.EXPERTS})

    def faults(self) -> Iterable[str]:
        if set(self.tensors) != {"lora_A", "lora_B"}:
            return [f"{self.path}.{self.parameter}: {', '.join(self.tensors)}, expected lora_A and lora_B"]
        a, b = self.tensors["lora_A"].shape, self.tensors["lora_B"].shape
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or 0 in (*a, *b) or a[0] % self.expert_rank:
            expected = f"(experts · {self.expert_rank}, in) and (out, {self.expert_rank} · experts)"
            return [f"{self.path}.{self.parameter}: lora_A {a} and lora_B {b}, expected {expected}"]
        return integers(self.path, self.tensors)

    def misfits(self, layout: BaseLayout) -> Iterable[str]:
        shape = layout.experts[self.path]
        if self.parameter not in shape.parameters:
            return [f"{self.path}.{self.parameter}: the model has {', '.join(shape.parameters)}"]
        columns = shape.experts * self.expert_rank
        inputs, outputs = shape.parameters[self.parameter]
        a, b = self.tensors["lora_A"].shape, self.tensors["lora_B"].shape
        if (a, b) in (((columns, inputs), (outputs, columns)), ((columns, outputs), (inputs, columns))):
            return []
        needed = f"{(columns, inputs)} and {(outputs, columns)}"
        return [f"{self.path}.{self.parameter}: adapter {a} and {b}, model needs {needed}"]

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        shape = source.layout.experts[self.path]
        a = source.tensor("lora_A")
        b = source.tensor("lora_B") * self.scale
        a = a.view(shape.experts, self.expert_rank, a.shape[1])
        b = b.view(b.shape[0], self.expert_rank, shape.experts).permute(2, 1, 0).contiguous()
        if not _along_inputs(a.shape[2], b.shape[2], shape, self.parameter):
            a, b = b, a
        return {self.path: ModuleDelta(experts={self.parameter: LowRank(a, b)})}


def _along_inputs(a: int, b: int, shape: ExpertsShape, parameter: str) -> bool:
    """Tell whether A lies along the inputs.

    A square parameter tells nothing: then the module's own orientation does.
    """
    return (a, b) == shape.parameters[parameter]


GATE, GATED, ALL = "gate", "gated", "all"
"""Which outputs of a stacked parameter a projection makes."""


@dataclass(frozen=True)
class Projection:
    """LoRA on one projection of one expert."""

    expert: int
    outputs: str
    """GATE, GATED or ALL."""
    a: str
    b: str
    """Roles of its tensors."""
    scale: float


@dataclass(frozen=True)
class PerExpertLowRank(Part):
    """LoRA expert by expert, as files from before Transformers stacked them hold it; a projection may be left out.

    Attributes:
        parameter: of the module, which stacks these projections.
        projections: of the experts.
    """

    parameter: str
    projections: tuple[Projection, ...]

    kinds: ClassVar = (EXPERTS,)

    @property
    def rank(self) -> int:
        """Return the highest rank, doubled for gate and gated outputs: they have an A each, one after the other."""
        highest = max(self.tensors[projection.a].shape[0] for projection in self.projections)
        return highest * (1 if self.projections[0].outputs == ALL else 2)

    @property
    def deltas(self) -> frozenset[DeltaKind]:
        return frozenset({DeltaKind.EXPERTS})

    def misfits(self, layout: BaseLayout) -> Iterable[str]:
        shape = layout.experts[self.path]
        inputs, every = shape.parameters[self.parameter]
        for projection in self.projections:
            outputs = every if projection.outputs == ALL else every // 2
            a, b = self.tensors[projection.a].shape, self.tensors[projection.b].shape
            if projection.expert >= shape.experts:
                yield f"{self.path}.{projection.expert}: the model has {shape.experts} experts"
            elif (a, b) != ((a[0], inputs), (outputs, a[0])):
                where = f"{self.path}.{projection.expert} ({self.parameter}, {projection.outputs})"
                yield f"{where}: adapter {a} and {b}, model needs {(a[0], inputs)} and {(outputs, a[0])}"

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        import torch  # noqa: PLC0415 - the process that only checks adapters has none

        shape = source.layout.experts[self.path]
        inputs, outputs = shape.parameters[self.parameter]
        first = source.tensor(self.projections[0].a)
        a, b = (torch.zeros(shape.experts, self.rank, size, device=first.device) for size in (inputs, outputs))
        for projection in self.projections:
            own_a, own_b = source.tensor(projection.a), source.tensor(projection.b) * projection.scale
            start = self.rank // 2 if projection.outputs == GATED else 0
            rows = slice(start, start + own_a.shape[0])
            a[projection.expert, rows] = own_a
            b[projection.expert, rows, _columns(projection.outputs, outputs, shape)] = own_b.T
        return {self.path: ModuleDelta(experts={self.parameter: LowRank(a, b)})}


def _columns(which: str, outputs: int, shape: ExpertsShape) -> slice:
    if which == ALL:
        return slice(None)
    half = 0 if which == GATE else 1
    return slice(half, None, 2) if shape.interleaved else slice(half * outputs // 2, (half + 1) * outputs // 2)


_OLD = re.compile(
    r"(?P<path>.+\.experts)\."
    r"(?:(?P<expert>\d{1,6})\.(?P<name>w1|w2|w3|gate_proj|up_proj|down_proj)"
    r"|(?P<whole>gate_up_projs|down_projs)\.(?P<of>\d{1,6}))"
)
"""A projection of one expert, as Mixtral and as the others called it, and as Unsloth does where it trains in 4 bits."""
_OUTPUTS = {"w1": GATE, "gate_proj": GATE, "w3": GATED, "up_proj": GATED}


def stacked(parts: Sequence[Part], layout: BaseLayout) -> list[Part]:
    """Return the parts, those of single experts gathered where the base stacks experts, the others as they are."""
    rest: list[Part] = []
    found: dict[tuple[str, str], list[tuple[LinearLowRank, Projection]]] = {}
    for part in parts:
        match = _OLD.fullmatch(part.path)
        path = current(match["path"].replace("block_sparse_moe", "mlp"), layout) if match else ""
        if match is None or path not in layout.experts or not isinstance(part, LinearLowRank) or not part.plain:
            rest.append(part)
            continue
        name, expert = match["name"] or match["whole"], match["expert"] or match["of"]
        parameters = layout.experts[path].parameters
        outputs = _OUTPUTS.get(name, ALL) if "gate_up_proj" in parameters else ALL
        parameter = next(each for each in parameters if ("down" in each) == (name in ("w2", "down_proj", "down_projs")))
        roles = [f"{expert}.{name}.{role}" for role in "AB"]
        projection = Projection(int(expert), outputs, roles[0], roles[1], part.scale)
        found.setdefault((path, parameter), []).append((part, projection))
    for (path, parameter), group in found.items():
        tensors = {
            role: part.tensors[kind]
            for part, projection in group
            for role, kind in ((projection.a, "lora_A"), (projection.b, "lora_B"))
        }
        rest.append(PerExpertLowRank(path, tensors, parameter, tuple(projection for _, projection in group)))
    return rest
