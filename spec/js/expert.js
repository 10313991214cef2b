// One open file: reads its parts from a source, each checked against its digest and padding before use (clause 7).

import { concat, hex, sameBytes, sha256, viewOf } from "./bytes.js";
import { WIDTH, toFloat32 } from "./floats.js";
import { CUT, decodeFrame, unshuffle } from "./frames.js";
import { headerEnd, parseHeader } from "./header.js";
import { RUN, plainSums, sumCount } from "./records.js";
import { check } from "./refusal.js";

const FIRST_READ = 65536; // 3.2

// Opens a file; with `expectedId` only the one that it names.
export async function openExpert(source, { expectedId = null, firstRead = FIRST_READ } = {}) {
  const first = await source.head(firstRead);
  const end = headerEnd(first.bytes, first.fileNbytes);
  const rest = first.bytes.length < end ? await source.read(first.bytes.length, end) : new Uint8Array(0);
  const head = concat([first.bytes.subarray(0, end), rest]);
  const id = `obm1-sha256:${hex(await sha256(head))}`; // 7.1
  check(expectedId === null || id === expectedId, "artifact_id"); // before any of it is parsed (14.2)
  return new Expert(source, parseHeader(head, first.fileNbytes), id);
}

class Expert {
  constructor(source, { manifest, parts, end }, id) {
    this.source = source;
    this.manifest = manifest;
    this.parts = parts;
    this.end = end;
    this.id = id;
    this.records = new Map(manifest.tensors.map((record) => [record.name, record]));
    this.pools = new Map();
    this.places = placePools(manifest);
  }

  // The bytes of a pool, read once.
  async pool(name) {
    if (!this.parts.has(`#${name}`)) return new Uint8Array(0);
    if (!this.pools.has(name)) {
      this.pools.set(name, await this.readPadded(`#${name}`, this.manifest.pools.get(name).sha256));
    }
    return this.pools.get(name);
  }

  async digest(key) {
    const at = this.places.digests.get(key) * 32;
    return (await this.pool("digests")).subarray(at, at + 32);
  }

  baseDigest(record) {
    return this.digest(`base ${record.name}`);
  }

  outDigest(record) {
    return this.digest(`out ${record.name}`);
  }

  async readPadded(name, digest) {
    const { nbytes, begin, end } = this.parts.get(name) ?? { nbytes: 0, begin: 0, end: 0 };
    const bytes = await this.source.read(this.end + begin, this.end + end);
    check(hex(await sha256(bytes.subarray(0, nbytes))) === digest, "part_digest");
    check(bytes.subarray(nbytes).every((byte) => byte === 0), "pad_not_zero"); // 2.3
    return bytes.subarray(0, nbytes);
  }

  // A part of a tensor or an attachment (which may be empty, and so no part) by its name in the header.
  async namedPart(name) {
    return this.readPadded(name, hex(await this.digest(name)));
  }

  part(record, suffix) {
    return this.namedPart(`${record.name}#${suffix}`);
  }

  attachment(name) {
    return this.namedPart(`#attach/${name}`);
  }

  // The bytes [start, stop) of a part; only the runs that hold them are read where it has sums (8.3).
  async range(record, suffix, start, stop) {
    if (!record.sizes.has(suffix)) return new Uint8Array(0);
    if (sumCount(record, suffix) === 0) return (await this.part(record, suffix)).subarray(start, stop);
    const [first, last] = [Math.floor(start / RUN), Math.ceil(stop / RUN)];
    const runs = [];
    for (let run = first; run < last; run += 1) runs.push(await this.run(`${record.name}#${suffix}`, run));
    return concat(runs).subarray(start - first * RUN, stop - first * RUN);
  }

  async run(name, index) {
    const { begin, nbytes } = this.parts.get(name);
    const at = this.end + begin;
    const bytes = await this.source.read(at + index * RUN, at + Math.min((index + 1) * RUN, nbytes));
    const sum = (this.places.sums.get(name) + index) * 32;
    check(sameBytes(await sha256(bytes), (await this.pool("sums")).subarray(sum, sum + 32)), "part_digest");
    return bytes;
  }

  // The alphas of a record (7.5), as float32.
  async alphas(record) {
    const at = this.places.alphas.get(record.name);
    const bytes = (await this.pool("alphas")).subarray(at, at + record.alphaCount * WIDTH[record.alphaDtype]);
    return toFloat32(bytes, record.alphaDtype);
  }

  // The uncompressed cuts that hold the bytes [start, stop), from the start of the first of them (8.2).
  async cuts(record, start, stop) {
    const total = record.numel * WIDTH[record.valueDtype];
    const frames = await this.frames(record);
    const part = await this.part(record, "data");
    const cuts = [];
    for (let i = Math.floor(start / CUT); i < Math.ceil(stop / CUT); i += 1) {
      const frame = part.subarray(frames[i].begin, frames[i].end);
      check(sameBytes(await sha256(frame), frames[i].sha256), "frame_digest");
      const wanted = Math.min(CUT, total - i * CUT);
      check(frame.length <= wanted + 65536, "bad_frame");
      cuts.push(unshuffle(decodeFrame(frame, wanted), WIDTH[record.valueDtype]));
    }
    return cuts;
  }

  async frames(record) {
    const at = this.places.frames.get(record.name) * 36;
    const bytes = (await this.pool("frames")).subarray(at, at + record.frameCount * 36);
    let end = 0;
    const frames = Array.from({ length: record.frameCount }, (_, i) => {
      const begin = end;
      end += viewOf(bytes).getUint32(i * 36, true);
      return { begin, end, sha256: bytes.subarray(i * 36 + 4, (i + 1) * 36) };
    });
    check(end === record.sizes.get("data"), "bad_frame");
    return frames;
  }

  // Reads every byte: digests, padding, sums (14.2).
  async verify() {
    for (const name of this.manifest.pools.keys()) await this.pool(name);
    for (const record of this.records.values()) {
      for (const suffix of record.sizes.keys()) {
        await this.verifyPart(`${record.name}#${suffix}`, sumCount(record, suffix));
      }
    }
    for (const { name, nbytes } of this.manifest.attach) {
      await this.verifyPart(`#attach/${name}`, plainSums(nbytes));
    }
  }

  async verifyPart(name, sums) {
    await this.namedPart(name);
    for (let index = 0; index < sums; index += 1) await this.run(name, index);
  }
}

// Where each thing lies in its pool: digests, sums and frames by number, alphas by byte (7.4, 7.5, 8.2, 8.3).
function placePools({ tensors, attach }) {
  const places = { digests: new Map(), alphas: new Map(), frames: new Map(), sums: new Map() };
  let [alphas, frames, sums] = [0, 0, 0];
  const addDigest = (key) => places.digests.set(key, places.digests.size);
  for (const record of tensors) {
    if (record.mode !== "added") addDigest(`base ${record.name}`);
    if (record.exact) addDigest(`out ${record.name}`);
    for (const suffix of record.sizes.keys()) {
      const name = `${record.name}#${suffix}`;
      addDigest(name);
      places.sums.set(name, sums);
      sums += sumCount(record, suffix);
    }
    places.alphas.set(record.name, alphas);
    places.frames.set(record.name, frames);
    alphas += record.alphaCount * WIDTH[record.alphaDtype];
    frames += record.frameCount;
  }
  for (const { name, nbytes } of attach) {
    addDigest(`#attach/${name}`);
    places.sums.set(`#attach/${name}`, sums);
    sums += plainSums(nbytes);
  }
  return places;
}
