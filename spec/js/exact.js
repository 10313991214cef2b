// Content of exact records, bit for bit, for a run of elements (obm-1 clauses 5.5, 6.6, 6.8, 6.9).

import { concat, viewOf } from "./bytes.js";
import { rawBytes, sparseEntries } from "./encodings.js";
import { WIDTH } from "./floats.js";
import { CUT } from "./frames.js";

const EXPONENT = { F16: [10, 31], BF16: [7, 255], F32: [23, 255] }; // 6.9

// Bytes of the elements [from, to) of what the encoding covers; null where they take backbone bytes and there are none.
export async function coveredBytes(expert, record, base, from, to) {
  if (record.encoding === "raw") return rawBytes(expert, record, from, to);
  const rebuild = record.encoding === "sparse" ? replaced : moved;
  return rebuild(expert, record, base, from, to);
}

async function replaced(expert, record, base, from, to) {
  const { places, bytes } = await sparseEntries(expert, record, from, to);
  if (base === null) return null;
  const width = WIDTH[record.dtype];
  const out = concat([base.subarray(from * width, to * width)]);
  places.forEach((place, i) => {
    if (place >= from && place < to) out.set(bytes.subarray(i * width, (i + 1) * width), (place - from) * width);
  });
  return out;
}

async function moved(expert, record, base, from, to) {
  const width = WIDTH[record.dtype];
  const cuts = await expert.cuts(record, from * width, to * width);
  if (base === null) return null;
  const start = Math.floor((from * width) / CUT) * CUT;
  const whole = concat(cuts.map((cut, i) => {
    const at = start + i * CUT;
    return movedCut(record, cut, base.subarray(at, at + cut.length));
  }));
  return whole.subarray(from * width - start, to * width - start);
}

function movedCut(record, cut, base) {
  const width = WIDTH[record.dtype];
  const [numbers, words] = [wordsOf(cut, width), wordsOf(base, width)];
  const order = record.bucket ? bucketOrder(words, record.dtype) : null;
  const out = new Uint8Array(cut.length);
  const target = wordsOf(out, width);
  for (let i = 0; i < words.length; i += 1) {
    const at = order ? order[i] : i;
    target.set(at, moveWord(words.get(at), numbers.get(i), width * 8));
  }
  return out;
}

function wordsOf(bytes, width) {
  const view = viewOf(bytes);
  return {
    length: bytes.length / width,
    get: (i) => (width === 2 ? view.getUint16(i * 2, true) : view.getUint32(i * 4, true)),
    set: (i, word) => (width === 2 ? view.setUint16(i * 2, word, true) : view.setUint32(i * 4, word, true)),
  };
}

// The word whose ord() is that of `word` plus the number that `zigzag` stands for.
function moveWord(word, zigzag, bits) {
  const [size, top] = [2 ** bits, 2 ** (bits - 1)];
  const number = zigzag % 2 ? -(zigzag + 1) / 2 : zigzag / 2;
  const order = word < top ? word + top : size - 1 - word;
  const sum = (order + number + size) % size;
  return sum >= top ? sum - top : size - 1 - sum;
}

// Places of a cut's elements, stably sorted by the exponent of the backbone's.
function bucketOrder(words, dtype) {
  const [shift, mask] = EXPONENT[dtype];
  const exponent = Uint8Array.from({ length: words.length }, (_, i) => (words.get(i) >>> shift) & mask);
  return Uint32Array.from(exponent.keys()).sort((a, b) => exponent[a] - exponent[b] || a - b);
}
