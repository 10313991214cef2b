// Task vector values of the approximate encodings (obm-1 clause 6) for a run of elements, in float32 arithmetic.

import { viewOf } from "./bytes.js";
import { WIDTH, checkFinite, checkFiniteBytes, toFloat32 } from "./floats.js";
import { CUT } from "./frames.js";
import { SPARSE_BLOCK } from "./params.js";
import { sameShape } from "./records.js";
import { check } from "./refusal.js";

// Each gives the values of the elements [from, to) of what the encoding covers; `rtvq` null without its reference.
export const DECODERS = {
  zero: async (expert, record, from, to) => new Float32Array(to - from),
  raw: async (expert, record, from, to) => toFloat32(await rawBytes(expert, record, from, to), record.valueDtype),
  sign1: decodeSigns,
  tern1: decodeTernary,
  affine: decodeAffine,
  rtvq: decodeOffset,
  sparse: decodeSparse,
};

// Stored elements of `raw`.
export async function rawBytes(expert, record, from, to) {
  const width = WIDTH[record.valueDtype];
  const bytes = record.framed
    ? await framedBytes(expert, record, from * width, to * width)
    : await expert.range(record, "data", from * width, to * width);
  return checkFiniteBytes(bytes, record.valueDtype);
}

async function framedBytes(expert, record, start, stop) {
  const bytes = new Uint8Array(stop - start);
  const first = Math.floor(start / CUT);
  (await expert.cuts(record, start, stop)).forEach((cut, i) => {
    const at = (first + i) * CUT;
    const piece = cut.subarray(Math.max(0, start - at), Math.max(0, stop - at));
    bytes.set(piece, Math.max(0, at - start));
  });
  return bytes;
}

// Codes of `bits` bits of the elements [from, to) of a part that holds the matrix view (6.1, 6.2).
async function readCodes(expert, record, suffix, bits, from, to) {
  const { cols } = record;
  const stride = Math.ceil((cols * bits) / 8);
  const [first, last] = [Math.floor(from / cols), Math.ceil(to / cols)];
  const bytes = await expert.range(record, suffix, first * stride, last * stride);
  const used = (cols * bits) % 8;
  for (let end = stride; used > 0 && end <= bytes.length; end += stride) {
    check(bytes[end - 1] >> used === 0, "pad_bits_set");
  }
  return Uint8Array.from({ length: to - from }, (_, i) => {
    const row = Math.floor((from + i) / cols);
    const bit = (from + i - row * cols) * bits;
    const at = (row - first) * stride + Math.floor(bit / 8);
    return ((bytes[at] | (bytes[at + 1] << 8)) >> (bit % 8)) & (2 ** bits - 1);
  });
}

async function readAlphas(expert, record) {
  const alphas = await expert.alphas(record);
  check(alphas.every((alpha) => Number.isFinite(alpha) && !(alpha < 0) && !Object.is(alpha, -0)), "bad_alpha"); // 6.3
  return alphas;
}

// Which alpha of a plane an element of the matrix view has (6.3).
function alphaIndex({ alpha, cols, group, blocks, rows }) {
  if (alpha === "matrix") return () => 0;
  if (alpha === "row") return (element) => Math.floor(element / cols);
  if (alpha === "block") {
    const block = blockOfRow(blocks, rows);
    return (element) => block[Math.floor(element / cols)];
  }
  const perRow = Math.ceil(cols / group);
  return (element) => Math.floor(element / cols) * perRow + Math.floor((element % cols) / group);
}

function blockOfRow(blocks, rows) {
  const blockOf = new Uint32Array(rows);
  let [row, block] = [0, 0];
  for (const [count, height] of blocks) {
    for (let i = 0; i < count; i += 1) {
      blockOf.fill(block, row, row + height);
      row += height;
      block += 1;
    }
  }
  return blockOf;
}

async function decodeSigns(expert, record, from, to) {
  const alphas = await readAlphas(expert, record);
  const indexOf = alphaIndex(record);
  const perPlane = record.alphaCount / record.planes;
  const values = new Float32Array(to - from);
  for (let plane = 0; plane < record.planes; plane += 1) {
    const bits = await readCodes(expert, record, `bits${plane}`, 1, from, to);
    bits.forEach((bit, i) => {
      const alpha = alphas[plane * perPlane + indexOf(from + i)];
      check(alpha > 0 || bit === 1, "bad_plane");
      values[i] = Math.fround(values[i] + (bit ? alpha : -alpha));
    });
  }
  return values;
}

async function decodeTernary(expert, record, from, to) {
  const alphas = await readAlphas(expert, record);
  const indexOf = alphaIndex(record);
  const bits = await readCodes(expert, record, "bits0", 1, from, to);
  const mask = await readCodes(expert, record, "mask", 1, from, to);
  return Float32Array.from(bits, (bit, i) => {
    if (!mask[i]) {
      check(!bit, "bad_plane");
      return 0;
    }
    const alpha = alphas[indexOf(from + i)];
    check(alpha > 0, "bad_plane");
    return bit ? alpha : -alpha;
  });
}

async function decodeAffine(expert, record, from, to) {
  const [scale, zero] = await expert.alphas(record);
  check(Number.isFinite(scale) && scale > 0 && Number.isFinite(zero), "bad_code"); // 6.6
  const codes = await readCodes(expert, record, "codes", record.bits, from, to);
  return Float32Array.from(codes, (code) => Math.fround(Math.fround(code - zero) / scale));
}

async function decodeOffset(expert, record, from, to, refs) {
  const values = checkFinite(await decodeAffine(expert, record, from, to));
  const ref = refs.get(expert.manifest.refs[record.ref]);
  if (!ref) return null;
  const target = ref.records.get(record.name);
  const fingerprints = [expert, ref].map(({ manifest }) => manifest.backbone.fingerprint);
  check(ref.manifest.kind === "rtvq-base" && fingerprints[0] === fingerprints[1], "bad_reference"); // 6.7
  check(target && ["affine", "zero"].includes(target.encoding), "bad_reference");
  check(sameShape(target.covered, record.covered), "bad_reference");
  const shared = checkFinite(await DECODERS[target.encoding](ref, target, from, to));
  return values.map((value, i) => Math.fround(value + shared[i]));
}

async function decodeSparse(expert, record, from, to) {
  const { places, bytes } = await sparseEntries(expert, record, from, to);
  const listed = toFloat32(bytes, record.valueDtype);
  const values = new Float32Array(to - from);
  places.forEach((place, i) => {
    if (place >= from && place < to) values[place - from] = listed[i];
  });
  return values;
}

// Flat places and stored values of the listed elements in the blocks that hold [from, to) (6.8).
export async function sparseEntries(expert, record, from, to) {
  if (record.nnz === 0) return { places: [], bytes: new Uint8Array(0) };
  const counts = await readCounts(expert, record);
  const [first, last] = [Math.floor(from / SPARSE_BLOCK), Math.ceil(to / SPARSE_BLOCK)];
  const start = counts.slice(0, first).reduce((a, b) => a + b, 0);
  const stop = counts.slice(first, last).reduce((a, b) => a + b, start);
  const index = viewOf(await expert.range(record, "index", start * 2, stop * 2));
  const places = [];
  for (let block = first; block < last; block += 1) {
    const size = Math.min(SPARSE_BLOCK, record.numel - block * SPARSE_BLOCK);
    for (let i = 0, before = -1; i < counts[block]; i += 1) {
      const place = index.getUint16(places.length * 2, true);
      check(place > before && place < size, "bad_index");
      places.push(block * SPARSE_BLOCK + place);
      before = place;
    }
  }
  const width = WIDTH[record.valueDtype];
  const bytes = await expert.range(record, "values", start * width, stop * width);
  return { places, bytes: checkFiniteBytes(bytes, record.valueDtype) };
}

async function readCounts(expert, record) {
  const view = viewOf(await expert.range(record, "counts", 0, record.sizes.get("counts")));
  const counts = Array.from({ length: view.byteLength / 4 }, (_, i) => view.getUint32(i * 4, true));
  check(counts.every((count) => count <= SPARSE_BLOCK), "bad_index");
  check(counts.reduce((a, b) => a + b, 0) === record.nnz, "bad_index");
  return counts;
}
