"""Which backbone an expert has: one value of its configuration, ``kind``."""

from typing import Annotated, Any

import pydantic

from experts.backbone.dcn import DCNv2
from experts.backbone.dhen import DHEN
from experts.backbone.gesr import GESR
from experts.backbone.plain import Plain

Backbone = Plain | DCNv2 | DHEN | GESR
"""Maps :class:`experts.backbone.parts.Parts` to float ``[C, backbone.width]``."""


def _kind(value: Any) -> str:
    """``mlp`` where a mapping does not say."""
    return value.get("kind", "mlp") if isinstance(value, dict) else getattr(value, "kind", "")


BackboneConfig = Annotated[
    Annotated[Plain.Config, pydantic.Tag("mlp")]
    | Annotated[DCNv2.Config, pydantic.Tag("dcn")]
    | Annotated[DHEN.Config, pydantic.Tag("dhen")]
    | Annotated[GESR.Config, pydantic.Tag("gesr")],
    pydantic.Discriminator(
        _kind,
        custom_error_type="backbone_kind",
        custom_error_message="kind must be one of mlp, dcn, dhen, gesr. Example: {kind: dcn, crosses: 2}",
    ),
]
"""All have ``hidden``, the widths of the tower that ends them: an arm is widened there."""
