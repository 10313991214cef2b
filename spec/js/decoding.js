// Task vector values and rebuilt tensors, whole or by rows (obm-1 clause 9).

import { concat, sameBytes, sha256 } from "./bytes.js";
import { DECODERS } from "./encodings.js";
import { coveredBytes } from "./exact.js";
import { FLOATS, WIDTH, checkFinite, checkFiniteBytes, fromFloat32, toFloat32 } from "./floats.js";
import { isKept, sameShape, sizeOf } from "./records.js";
import { check } from "./refusal.js";

const LARGEST = 2 ** 28; // elements decoded in one call; a larger tensor is asked for by rows (3.3)

// Elements [from, to) of the tensor, and how far the encoding covers them.
function spanOf(record, rows) {
  const all = sizeOf(record.shape);
  const inner = sizeOf(record.shape.slice(1));
  const [from, to] = rows ? rows.map((row) => row * inner) : [0, all];
  if (!(from >= 0 && from <= to && to <= all)) throw new RangeError(`rows ${rows} of ${record.name}`);
  check(to - from <= LARGEST, "limit_exceeded");
  return { from, to, split: Math.max(from, Math.min(to, record.numel)), whole: from === 0 && to === all };
}

async function tailBytes(expert, record, { split, to }) {
  if (to === split) return new Uint8Array(0);
  const width = WIDTH[record.dtype];
  const bytes = await expert.range(record, "tail", (split - record.numel) * width, (to - record.numel) * width);
  return checkFiniteBytes(bytes, record.dtype);
}

async function coveredValues(expert, record, { from, split }, refs) {
  const to = Math.min(split, record.numel);
  const values = await DECODERS[record.encoding](expert, record, Math.min(from, to), to, refs);
  return values && checkFinite(values);
}

async function exactBytes(expert, record, base, span) {
  const to = Math.min(span.split, record.numel);
  const covered = await coveredBytes(expert, record, base, Math.min(span.from, to), to);
  const tail = await tailBytes(expert, record, span);
  if (covered === null) return null;
  const bytes = concat([covered, tail]);
  if (span.whole) check(sameBytes(await sha256(bytes), await expert.outDigest(record)), "output_digest"); // 9.4
  return bytes;
}

// The backbone's values of the elements that the encoding covers.
function baseValues({ counterpart }, base, { from, split }) {
  const width = WIDTH[counterpart.dtype];
  return toFloat32(base.subarray(from * width, split * width), counterpart.dtype);
}

// d of 9.2 in float32; null where it takes the backbone's tensor `base` or a reference, or is not defined.
export async function decodeValues(expert, name, { base = null, refs = new Map(), rows = null } = {}) {
  const record = expert.records.get(name);
  const span = spanOf(record, rows);
  if (record.exact) return exactValues(record, await exactBytes(expert, record, base, span), base, span);
  const tail = await tailBytes(expert, record, span);
  const values = await coveredValues(expert, record, span, refs);
  if (values === null || tail.length === 0) return values;
  const all = new Float32Array(span.to - span.from);
  all.set(values);
  all.set(toFloat32(tail, record.dtype), values.length);
  return all;
}

function exactValues(record, bytes, base, span) {
  if (bytes === null || !FLOATS.includes(record.dtype)) return null;
  const values = toFloat32(bytes, record.dtype);
  if (record.mode === "added") return values;
  const { dtype, shape } = record.counterpart;
  if (base === null || !FLOATS.includes(dtype) || !sameShape(shape, record.covered)) return null;
  baseValues(record, base, span).forEach((value, i) => {
    values[i] = Math.fround(values[i] - value);
  });
  return checkFinite(values); // 9.2
}

// The rebuilt bytes of 9.3; null where they take the backbone's tensor `base` or a reference.
export async function rebuildTensor(expert, name, { base = null, refs = new Map(), rows = null } = {}) {
  const record = expert.records.get(name);
  const span = spanOf(record, rows);
  if (record.exact) return exactBytes(expert, record, base, span);
  if (isKept(record)) return base && base.subarray(span.from * WIDTH[record.dtype], span.to * WIDTH[record.dtype]);
  const tail = await tailBytes(expert, record, span);
  const values = await coveredValues(expert, record, span, refs);
  if (values === null || base === null) return null;
  const sums = baseValues(record, base, span).map((value, i) => Math.fround(value + values[i]));
  return concat([fromFloat32(checkFinite(sums), record.dtype), tail]);
}
