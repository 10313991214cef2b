// What the commands print of a file: its id and the digests of every tensor, or the reason of its refusal (node only).

import { readFile } from "node:fs/promises";

import { hex, sha256 } from "./bytes.js";
import { BytesSource, Refused, checkBackbone, decodeValues, openExpert, readBackbone, rebuildTensor } from "./obm.js";

async function readExpert(path) {
  const expert = await openExpert(new BytesSource(await readFile(path)));
  await expert.verify();
  return expert;
}

async function digestOf(array) {
  return array && hex(await sha256(array));
}

async function describe(path, basePath, refPaths) {
  const expert = await readExpert(path);
  const shared = await Promise.all(refPaths.map(readExpert));
  const refs = new Map(shared.map((ref) => [ref.id, ref]));
  const backbone = basePath ? readBackbone(await readFile(basePath)) : new Map();
  if (basePath) await checkBackbone(expert, backbone);
  const tensors = {};
  for (const [name, { dtype, shape, counterpart }] of expert.records) {
    const known = { base: (counterpart && backbone.get(counterpart.name)?.bytes) ?? null, refs };
    const values = await digestOf(await decodeValues(expert, name, known));
    const rebuilt = await digestOf(await rebuildTensor(expert, name, known));
    tensors[name] = { dtype, shape, f32_sha256: values, out_sha256: rebuilt };
  }
  return { id: expert.id, tensors };
}

// `{ id, tensors }` or `{ reason }`.
export async function reportOn(path, basePath = null, refPaths = []) {
  try {
    return await describe(path, basePath, refPaths);
  } catch (error) {
    if (error instanceof Refused) return { reason: error.reason };
    throw error;
  }
}
