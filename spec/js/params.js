// Parameters of the encodings (obm-1 clauses 6.1 to 6.9) and the parts that follow from them.

import { Fields, isFlag, isListOf, isNumber, isPair, isText } from "./fields.js";
import { FLOATS, WIDTH } from "./floats.js";
import { check } from "./refusal.js";

export const SPARSE_BLOCK = 65536;
const ALPHA = ["alpha", "alpha_dtype", "blocks", "gain", "group", "rows", "rule"];
const KNOWN = {
  zero: [],
  raw: ["value_dtype", "zstd_nbytes"],
  sign1: [...ALPHA, "planes"],
  tern1: ALPHA,
  affine: ["bits", "rows"],
  rtvq: ["bits", "ref", "rows"],
  sparse: ["nnz", "value_dtype"],
  xdelta: ["bucket", "zstd_nbytes"],
};

// Reads `params` into the record (`numel`, `covered`, `mode`, `encoding`, `dtype` stand already).
export function readParams(record, value, context) {
  const fields = new Fields(value, KNOWN[record.encoding], context);
  if (KNOWN[record.encoding].includes("rows")) readMatrix(record, fields);
  const read = { zero: () => {}, raw: readRaw, sparse: readSparse, xdelta: readXdelta };
  const common = { sign1: readSigns, tern1: readSigns, affine: readCodes, rtvq: readCodes };
  ({ ...read, ...common })[record.encoding](record, fields, context);
}

function readMatrix(record, fields) {
  const shape = record.covered;
  const fallback = shape.length < 2 ? 1 : shape[0];
  record.rows = fields.optional("rows", isNumber, fallback);
  const products = shape.map((_, i) => shape.slice(0, i + 1).reduce((a, b) => a * b));
  check([1, ...products].includes(record.rows) && record.rows > 0, "bad_params"); // 6.1
  record.cols = record.numel / record.rows;
}

function readSigns(record, fields) {
  record.alpha = fields.optional("alpha", isText, "matrix");
  record.alphaDtype = fields.optional("alpha_dtype", isText, "F16");
  record.group = fields.absent("group", isNumber);
  record.blocks = fields.absent("blocks", isListOf(isPair(isNumber)));
  record.planes = fields.optional("planes", isNumber, 1);
  const rule = fields.optional("rule", isText, "mean");
  const gain = fields.optional("gain", isText, "1");
  check(["matrix", "row", "group", "block"].includes(record.alpha), "bad_params");
  check(["F16", "F32"].includes(record.alphaDtype), "bad_params");
  check((record.group !== null) === (record.alpha === "group"), "bad_params");
  check((record.blocks !== null) === (record.alpha === "block"), "bad_params");
  check(record.planes >= 1 && record.planes <= 4, "bad_params");
  check(["mean", "rms", "proj"].includes(rule) && /^[0-9]{1,4}(\.[0-9]{1,9})?$/.test(gain), "bad_params"); // 6.4
  record.alphaCount = countAlphas(record) * record.planes;
  const nbytes = record.rows * Math.ceil(record.cols / 8); // 6.2
  for (let plane = 0; plane < record.planes; plane += 1) record.sizes.push([`bits${plane}`, nbytes]);
  if (record.encoding === "tern1") record.sizes.push(["mask", nbytes]);
}

function countAlphas(record) {
  if (record.alpha === "matrix") return 1;
  if (record.alpha === "row") return record.rows;
  if (record.alpha === "block") return countBlocks(record);
  check(record.group > 0 && record.group % 64 === 0, "bad_params"); // 6.3
  return record.rows * Math.ceil(record.cols / record.group);
}

function countBlocks({ blocks, rows }) {
  let [count, sum] = [0, 0];
  blocks.forEach(([times, height], i) => {
    check(times > 0 && height > 0 && (i === 0 || blocks[i - 1][1] !== height), "bad_params");
    sum += times * height;
    count += times;
  });
  check(sum === rows, "bad_params"); // rows is below 2^53, so no sum that was rounded is equal
  return count;
}

function readCodes(record, fields, context) {
  record.bits = fields.required("bits", isNumber);
  check([2, 3, 4, 8].includes(record.bits), "bad_params");
  if (record.encoding === "rtvq") {
    record.ref = fields.optional("ref", isNumber, 0);
    check(record.ref < context.refCount, "bad_params");
  }
  [record.alphaDtype, record.alphaCount] = ["F32", 2]; // 6.6
  record.sizes.push(["codes", record.rows * Math.ceil((record.cols * record.bits) / 8)]);
}

function readFramed(record, zstdNbytes) {
  check(zstdNbytes > 0 && record.numel > 0, "bad_params");
  record.framed = true;
  record.sizes.push(["data", zstdNbytes]);
}

// The dtype of stored values; outside delta it is the record's, and no parameter (6.5).
function readValueDtype(record, fields, fallback) {
  record.valueDtype = record.dtype;
  if (record.mode === "delta") record.valueDtype = fields.optional("value_dtype", isText, fallback);
  else check(!fields.has("value_dtype"), "manifest_field");
  check(record.mode !== "delta" || FLOATS.includes(record.valueDtype), "bad_params");
}

function readRaw(record, fields) {
  readValueDtype(record, fields, record.dtype);
  if (fields.has("zstd_nbytes")) readFramed(record, fields.required("zstd_nbytes", isNumber));
  else record.sizes.push(["data", record.numel * WIDTH[record.valueDtype]]);
}

function readSparse(record, fields) {
  readValueDtype(record, fields, "F32");
  record.nnz = fields.required("nnz", isNumber);
  check(record.nnz <= record.numel, "bad_params");
  if (record.nnz === 0) return; // 6.8
  record.sizes.push(["counts", Math.ceil(record.numel / SPARSE_BLOCK) * 4], ["index", record.nnz * 2]);
  record.sizes.push(["values", record.nnz * WIDTH[record.valueDtype]]);
}

function readXdelta(record, fields) {
  record.valueDtype = record.dtype;
  record.bucket = fields.optional("bucket", isFlag, false);
  readFramed(record, fields.required("zstd_nbytes", isNumber));
}
