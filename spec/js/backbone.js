// The dense checkpoint that an expert belongs to, and the checks of obm-1 clauses 10.3 and 10.4.

import { hex, sameBytes, sha256, viewOf } from "./bytes.js";
import { sameShape, sizeOf } from "./records.js";
import { check } from "./refusal.js";

// Tensors of a safetensors file in memory: name -> { dtype, shape, bytes }.
export function readBackbone(file) {
  const end = 8 + Number(viewOf(file).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, end)));
  delete header.__metadata__;
  return new Map(Object.entries(header).map(([name, { dtype, shape, data_offsets: [begin, stop] }]) => {
    return [name, { dtype, shape, bytes: file.subarray(end + begin, end + stop) }];
  }));
}

export async function checkBackbone(expert, backbone) {
  const { tensors, alias, removed, kind, fresh } = expert.manifest;
  check([...fresh].every((name) => !backbone.has(name)), "base_tensor"); // 5.4, 5.8
  const kin = tensors.filter(({ mode }) => mode !== "added").map((record) => [record.counterpart.name, record]);
  const tied = alias.filter(([name]) => !fresh.has(name));
  const aliases = tied.map(([name, target]) => [name, expert.records.get(target)]);
  for (const [name, record] of [...kin, ...aliases]) await checkTensor(expert, record, backbone.get(name));
  check(removed.every((name) => backbone.has(name)), "base_tensor"); // 10.4
  const known = new Set([...[...kin, ...aliases].map(([name]) => name), ...removed]);
  check(kind !== "task-vector" || [...backbone.keys()].every((name) => known.has(name)), "backbone_mismatch");
  await checkWhole(expert.manifest.backbone, backbone);
}

// The fingerprint and the counts of the whole (10.1, 10.5).
async function checkWhole({ fingerprint, params, tensors }, backbone) {
  const lines = [];
  for (const name of [...backbone.keys()].sort()) {
    const { dtype, shape, bytes } = backbone.get(name);
    lines.push(`${[name, dtype, shape.join(), hex(await sha256(bytes))].join("\0")}\n`);
  }
  const found = hex(await sha256(new TextEncoder().encode(lines.join(""))));
  const elements = [...backbone.values()].reduce((sum, { shape }) => sum + sizeOf(shape), 0);
  check(found === fingerprint && elements === params && backbone.size === tensors, "backbone_mismatch");
}

async function checkTensor(expert, record, tensor) {
  const { dtype, shape } = record.counterpart; // 10.3
  check(tensor && tensor.dtype === dtype && sameShape(tensor.shape, shape), "base_tensor");
  check(sameBytes(await sha256(tensor.bytes), await expert.baseDigest(record)), "base_digest");
}
