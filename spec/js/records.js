// Tensor records of the manifest (obm-1 clauses 5.2 to 5.6): shapes, modes, counterparts, sizes of parts.

import { Fields, checkName, isListOf, isNumber, isObject, isText } from "./fields.js";
import { FLOATS, WIDTH } from "./floats.js";
import { CUT } from "./frames.js";
import { readParams } from "./params.js";
import { check } from "./refusal.js";

const RECORD = ["base", "dtype", "encoding", "mode", "name", "params", "shape"];
const MODES = {
  zero: ["delta"], raw: ["delta", "replace", "added"], sign1: ["delta"], tern1: ["delta"], affine: ["delta"],
  rtvq: ["delta"], sparse: ["delta", "replace"], xdelta: ["delta"],
};
const HOLLOW = ["zero", "raw", "sparse"]; // encodings of tensors without elements (6.1)
export const RUN = 2 ** 20;

export const sizeOf = (shape) => shape.reduce((product, dimension) => product * dimension, 1);
export const sameShape = (a, b) => a.length === b.length && a.every((dimension, i) => dimension === b[i]);

export function readRecord(value, context) {
  const fields = new Fields(value, RECORD, context);
  const record = { ...readTensor(fields), framed: false, alphaDtype: "F16", alphaCount: 0, sizes: [] };
  record.encoding = fields.required("encoding", isText);
  record.mode = fields.optional("mode", isText, "delta");
  const allowed = Object.hasOwn(MODES, record.encoding) && MODES[record.encoding].includes(record.mode);
  check(allowed, "unknown_encoding"); // 5.4
  record.counterpart = readCounterpart(record, fields, context);
  record.exact = record.mode !== "delta" || record.encoding === "xdelta"; // 5.5
  record.covered = coveredShape(record);
  record.numel = sizeOf(record.covered);
  checkKinship(record);
  readParams(record, fields.optional("params", isObject, new Map()), context);
  record.sizes.push(["tail", (sizeOf(record.shape) - record.numel) * WIDTH[record.dtype]]); // 5.6
  record.sizes = new Map(record.sizes.filter(([, nbytes]) => nbytes > 0)); // 2.3
  record.frameCount = record.framed ? Math.ceil((record.numel * WIDTH[record.valueDtype]) / CUT) : 0;
  return record;
}

function readTensor(fields) {
  const name = fields.required("name", isText);
  checkName(name);
  return { name, dtype: readDtype(fields.required("dtype", isText)), shape: readShape(fields) };
}

function readDtype(dtype) {
  check(Object.hasOwn(WIDTH, dtype), "manifest_field");
  return dtype;
}

function readShape(fields) {
  const shape = fields.required("shape", isListOf(isNumber));
  check(shape.length <= 8, "limit_exceeded"); // 3.1
  check(sizeOf(shape.map((dimension) => dimension || 1)) < 2 ** 53, "bad_shape");
  return shape;
}

// What the record says of its counterpart in the backbone; null in mode `added` (5.4).
function readCounterpart(record, fields, context) {
  const { name, dtype, shape } = record;
  const value = fields.optional("base", isObject, new Map());
  if (record.mode === "added") {
    check(!fields.has("base"), "manifest_field");
    return null;
  }
  const base = new Fields(value, ["dtype", "name", "shape"], context);
  const counterpart = { shape };
  counterpart.name = base.optional("name", isText, name);
  counterpart.dtype = base.optional("dtype", isText, dtype);
  if (base.has("shape")) {
    counterpart.shape = readShape(base);
    base.optional("shape", isListOf(isNumber), shape);
  }
  checkName(counterpart.name);
  readDtype(counterpart.dtype);
  return counterpart;
}

function coveredShape({ mode, shape, counterpart }) {
  if (mode !== "delta" || sameShape(shape, counterpart.shape)) return shape;
  const base = counterpart.shape; // 5.6
  const grown = shape.length > 0 && base.length === shape.length && base[0] < shape[0];
  check(grown && sameShape(base.slice(1), shape.slice(1)), "bad_shape");
  return base;
}

// Dtypes and shapes that the encoding takes (5.5, 5.6, 6.1, 6.9).
function checkKinship(record) {
  const { encoding, mode, dtype, shape, counterpart } = record;
  check(record.numel > 0 || HOLLOW.includes(encoding), "bad_shape");
  if (mode === "added" || (encoding === "raw" && mode === "replace")) return;
  if (mode === "replace") check(sameShape(shape, counterpart.shape), "bad_shape");
  if (record.exact) check(dtype === counterpart.dtype, "bad_params");
  const float = FLOATS.includes(dtype) && FLOATS.includes(counterpart.dtype);
  check(float || mode === "replace" || isKept(record), "bad_params");
}

// A zero record that is the backbone's tensor, bit for bit (5.5).
export function isKept({ encoding, dtype, shape, counterpart }) {
  return encoding === "zero" && dtype === counterpart.dtype && sameShape(shape, counterpart.shape);
}

// How many sums a part has that is not framed (8.3).
export function plainSums(nbytes) {
  return nbytes > 8 * RUN ? Math.ceil(nbytes / RUN) : 0;
}

export function sumCount(record, suffix) {
  return record.framed && suffix === "data" ? 0 : plainSums(record.sizes.get(suffix));
}
