"""Which handler answers which path of the API."""

from __future__ import annotations

from starlette.routing import Route

from obm_registry.server.api import lineage, people, upkeep

_V1 = "/api/v1"
_REPOSITORY = f"{_V1}/repositories/{{name:path}}"
_NAMESPACE = f"{_V1}/namespaces/{{namespace:path}}"

API_ROUTES = [
    Route(f"{_V1}/backbones", lineage.backbones, methods=["GET"]),
    Route(f"{_V1}/backbones/{{fingerprint}}", lineage.backbone, methods=["GET"]),
    Route(f"{_V1}/backbones/{{fingerprint}}/check", lineage.check_backbone, methods=["POST"]),
    Route(f"{_V1}/backbones/{{fingerprint}}/experts", lineage.backbone_experts, methods=["GET"]),
    Route(f"{_V1}/search", lineage.found, methods=["GET"]),
    Route(f"{_REPOSITORY}/experts", lineage.repository_experts, methods=["GET"]),
    Route(f"{_REPOSITORY}/tags/{{tag}}/history", lineage.tag_history, methods=["GET"]),
    Route(f"{_REPOSITORY}/manifests/{{digest}}/yank", lineage.yank, methods=["PUT"]),
    Route(f"{_REPOSITORY}/manifests/{{digest}}/yank", lineage.unyank, methods=["DELETE"]),
    Route(f"{_V1}/whoami", people.whoami, methods=["GET"]),
    Route(f"{_V1}/tokens", people.tokens, methods=["GET"]),
    Route(f"{_V1}/tokens", people.make_token, methods=["POST"]),
    Route(f"{_V1}/tokens/{{id}}", people.revoke_token, methods=["DELETE"]),
    Route(f"{_NAMESPACE}/members", people.members, methods=["GET"]),
    Route(f"{_NAMESPACE}/members/{{principal}}", people.set_member, methods=["PUT"]),
    Route(f"{_NAMESPACE}/members/{{principal}}", people.remove_member, methods=["DELETE"]),
    Route(_NAMESPACE, people.rules, methods=["GET"]),
    Route(_NAMESPACE, people.set_rules, methods=["PUT"]),
    Route(f"{_V1}/audit", upkeep.audit, methods=["GET"]),
    Route(f"{_V1}/admin/gc", upkeep.gc, methods=["POST"]),
    Route(f"{_V1}/admin/fsck", upkeep.fsck, methods=["POST"]),
    Route("/healthz/live", upkeep.live, methods=["GET"]),
    Route("/healthz/ready", upkeep.ready, methods=["GET"]),
    Route("/openapi.json", upkeep.openapi, methods=["GET"]),
]
