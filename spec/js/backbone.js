// The dense checkpoint that an expert belongs to, and the checks of obm-1 clauses 10.3 and 10.4.

import { sameBytes, sha256, viewOf } from "./bytes.js";
import { sameShape } from "./records.js";
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
  const { tensors, alias, removed, kind } = expert.manifest;
  const counterparts = new Set();
  for (const record of tensors.filter(({ mode }) => mode !== "added")) {
    counterparts.add(record.counterpart.name);
    await checkTensor(expert, record, backbone.get(record.counterpart.name));
  }
  for (const [name, target] of alias) {
    counterparts.add(name);
    const record = expert.records.get(target);
    if (record.mode === "added") check(!backbone.has(name), "base_tensor"); // 5.8
    else await checkTensor(expert, record, backbone.get(name));
  }
  check(removed.every((name) => backbone.has(name)), "base_tensor"); // 10.4
  const known = new Set([...counterparts, ...removed]);
  check(kind === "router" || [...backbone.keys()].every((name) => known.has(name)), "backbone_mismatch");
}

async function checkTensor(expert, record, tensor) {
  const { dtype, shape } = record.counterpart; // 10.3
  check(tensor && tensor.dtype === dtype && sameShape(tensor.shape, shape), "base_tensor");
  check(sameBytes(await sha256(tensor.bytes), await expert.baseDigest(record)), "base_digest");
}
