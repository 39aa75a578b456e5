"""LoHa: the elementwise product of two low ranks, which is one of rank r²."""

from __future__ import annotations

from graft_runtime.adapters.methods.lycoris import Lycoris
from graft_runtime.adapters.parts.part import Part, Roles
from graft_runtime.adapters.parts.products import Hadamard


class LoHa(Lycoris):
    """The recipe of one LoHa adapter."""

    method = "LOHA"
    title = "LoHa"
    roles = {f".{role}": role for role in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")}  # noqa: RUF012

    def part(self, path: str, roles: Roles) -> Part:
        return Hadamard(path, roles, self.scale_of(path))
