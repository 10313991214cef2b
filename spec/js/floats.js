// Element types of obm-1 clause 1.2 and their exact or RNE conversion to and from float32.

import { viewOf } from "./bytes.js";
import { check } from "./refusal.js";

export const WIDTH = {
  BOOL: 1, U8: 1, I8: 1, F8_E4M3: 1, F8_E5M2: 1, U16: 2, I16: 2, F16: 2, BF16: 2, U32: 4, I32: 4, F32: 4, U64: 8,
  I64: 8, F64: 8,
};
export const FLOATS = ["F16", "BF16", "F32"];

const scratch = new DataView(new ArrayBuffer(4));

function fromBits(bits) {
  scratch.setUint32(0, bits);
  return scratch.getFloat32(0);
}

function toBits(value) {
  scratch.setFloat32(0, value);
  return scratch.getUint32(0);
}

function halfToFloat(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1024 + fraction) * 2 ** (exponent - 25);
}

// Drops `shift` low bits, to nearest, ties to even.
function roundOff(bits, shift) {
  const kept = Math.floor(bits / 2 ** shift);
  const rest = bits - kept * 2 ** shift;
  const half = 2 ** (shift - 1);
  return kept + (rest > half || (rest === half && kept % 2 === 1) ? 1 : 0);
}

function floatToHalf(value) {
  const bits = toBits(value);
  const sign = (bits >>> 16) & 0x8000;
  const exponent = ((bits >>> 23) & 255) - 112;
  const fraction = bits & 0x7fffff;
  if (exponent >= 31) return sign | 0x7c00;
  if (exponent > 0) return sign | roundOff(exponent * 0x800000 + fraction, 13); // a carry goes into the exponent
  return exponent < -11 ? sign : sign | roundOff(0x800000 + fraction, 14 - exponent);
}

const READ = {
  F16: (view, at) => halfToFloat(view.getUint16(at, true)),
  BF16: (view, at) => fromBits(view.getUint16(at, true) * 0x10000),
  F32: (view, at) => view.getFloat32(at, true),
};
const WRITE = {
  F16: (view, at, value) => view.setUint16(at, floatToHalf(value), true),
  BF16: (view, at, value) => view.setUint16(at, roundOff(toBits(value), 16), true),
  F32: (view, at, value) => view.setFloat32(at, value, true),
};

// Little-endian bytes of F16, BF16 or F32 as float32 values.
export function toFloat32(bytes, dtype) {
  const width = WIDTH[dtype];
  const view = viewOf(bytes);
  return Float32Array.from({ length: bytes.length / width }, (_, i) => READ[dtype](view, i * width));
}

// Finite float32 values as little-endian bytes; a value that rounds to infinity is refused (9.3).
export function fromFloat32(values, dtype) {
  const width = WIDTH[dtype];
  const bytes = new Uint8Array(values.length * width);
  const view = viewOf(bytes);
  values.forEach((value, i) => WRITE[dtype](view, i * width, value));
  checkFiniteBytes(bytes, dtype);
  return bytes;
}

export function checkFinite(values) {
  check(values.every(Number.isFinite), "not_finite");
  return values;
}

// Stored values in a float dtype are finite (9.4).
export function checkFiniteBytes(bytes, dtype) {
  if (FLOATS.includes(dtype)) checkFinite(toFloat32(bytes, dtype));
  return bytes;
}
