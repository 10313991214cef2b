"""The invalid vectors: files with exactly one defect, each with the reason that a reader must give."""

from __future__ import annotations

from vectors_content import backbone_vectors, content_vectors
from vectors_damage import damage_vectors
from vectors_frame import frame_vectors, part_vectors, table_vectors, text_vectors
from vectors_manifest import field_vectors, name_vectors, record_vectors
from vectors_order import order_vectors
from vectors_relations import relation_vectors
from vectors_spoilt import Invalid


def invalid_vectors() -> list[Invalid]:
    """All invalid vectors."""
    makers = (
        frame_vectors,
        text_vectors,
        table_vectors,
        part_vectors,
        field_vectors,
        name_vectors,
        record_vectors,
        content_vectors,
        backbone_vectors,
        relation_vectors,
        order_vectors,
        damage_vectors,
    )
    return [vector for maker in makers for vector in maker()]
