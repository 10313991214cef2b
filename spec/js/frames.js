// Cuts of framed parts (obm-1 clause 8.2): zstd frames (RFC 8878) of raw and RLE blocks, and the shuffle of bytes.

import { concat, viewOf } from "./bytes.js";
import { NeedsZstd, check } from "./refusal.js";

export const CUT = 2 ** 21;
const WINDOW = 2 ** 23;
const BLOCK = 2 ** 17;
const MAGIC = 0xfd2fb528;

function readContentSize(view, at, nbytes) {
  check(at + nbytes <= view.byteLength, "bad_frame");
  if (nbytes === 1) return view.getUint8(at);
  if (nbytes === 2) return view.getUint16(at, true) + 256;
  return nbytes === 4 ? view.getUint32(at, true) : Number(view.getBigUint64(at, true));
}

// Checks the frame header and gives the place of the first block and the largest size of one.
function readFrameHeader(view, wanted) {
  check(view.byteLength > 6 && view.getUint32(0, true) === MAGIC, "bad_frame");
  const flags = view.getUint8(4);
  const single = (flags >> 5) & 1;
  const sizeNbytes = [single, 2, 4, 8][flags >> 6];
  check((flags & 0b1111) === 0 && sizeNbytes > 0, "bad_frame"); // reserved, checksum, dictionary
  let window = wanted;
  if (!single) {
    const byte = view.getUint8(5);
    window = 2 ** (10 + (byte >> 3)) * (1 + (byte & 7) / 8);
  }
  check(window <= WINDOW, "bad_frame");
  const at = single ? 5 : 6;
  check(readContentSize(view, at, sizeNbytes) === wanted, "bad_frame");
  return { at: at + sizeNbytes, largest: Math.min(window, BLOCK) };
}

function readBlock(frame, at, largest) {
  check(at + 3 <= frame.length, "bad_frame");
  const head = frame[at] + frame[at + 1] * 256 + frame[at + 2] * 65536;
  const [type, size] = [(head >> 1) & 3, head >> 3];
  check(type !== 3 && size <= largest, "bad_frame");
  if (type === 2) throw new NeedsZstd();
  const end = at + 3 + (type === 0 ? size : 1);
  check(end <= frame.length, "bad_frame");
  const content = type === 0 ? frame.subarray(at + 3, end) : new Uint8Array(size).fill(frame[at + 3]);
  return { content, end, last: (head & 1) === 1 };
}

// The `wanted` bytes of one frame.
export function decodeFrame(frame, wanted) {
  const { at, largest } = readFrameHeader(viewOf(frame), wanted);
  const contents = [];
  let [block, size] = [{ end: at, last: false }, 0];
  while (!block.last) {
    block = readBlock(frame, block.end, largest);
    contents.push(block.content);
    size += block.content.length;
    check(size <= wanted, "bad_frame");
  }
  check(size === wanted && block.end === frame.length, "bad_frame");
  return concat(contents);
}

// All byte 0, then all byte 1, ... back to elements of `width` bytes.
export function unshuffle(bytes, width) {
  const count = bytes.length / width;
  const out = new Uint8Array(bytes.length);
  for (let k = 0; k < width; k += 1) {
    for (let i = 0; i < count; i += 1) out[i * width + k] = bytes[k * count + i];
  }
  return out;
}
