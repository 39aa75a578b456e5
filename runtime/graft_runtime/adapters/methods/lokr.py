"""LoKr: the Kronecker product of two matrices, each whole or of a low rank."""

from __future__ import annotations

from graft_runtime.adapters.methods.lycoris import Lycoris
from graft_runtime.adapters.parts.part import Part, Roles
from graft_runtime.adapters.parts.products import Kronecker

ROLES = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")


class LoKr(Lycoris):
    """The recipe of one LoKr adapter."""

    method = "LOKR"
    title = "LoKr"
    roles = {f".{role}": role for role in ROLES}  # noqa: RUF012
    options = Lycoris.options | {"decompose_both", "decompose_factor", "rank_dropout_scale"}

    def part(self, path: str, roles: Roles) -> Part:
        return Kronecker(path, roles, self.scale_of(path))
