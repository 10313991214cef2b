// The frame of a file (obm-1 clauses 2 and 14.1): header length, fixed prefix, part table, canonical form, file size.

import { viewOf } from "./bytes.js";
import { isObject, isText } from "./fields.js";
import { asciiText, canonicalJson, parseJson } from "./json.js";
import { parseManifest } from "./manifest.js";
import { check } from "./refusal.js";

const START = '{"__metadata__":{"format":"obm","obm_version":"';
const VERSION = /^1\.(0|[1-9][0-9]{0,8})"/;
const LIMIT = 2 ** 26;

const padded = (nbytes) => Math.ceil(nbytes / 64) * 64;

// 8+N of a file of `fileNbytes` that begins with `head`; refuses what is no header as soon as it can (2.2, 2.4, 3.2).
export function headerEnd(head, fileNbytes) {
  check(head.length >= 8, "truncated");
  const length = viewOf(head).getBigUint64(0, true);
  check(length <= LIMIT, "header_too_large");
  const end = 8 + Number(length);
  check(end % 64 === 0 && end > 8 && end <= fileNbytes, "bad_header_length");
  const start = new TextDecoder("latin1").decode(head.subarray(8, Math.min(end, 128)));
  check(start.startsWith(START), "not_obm");
  check(VERSION.test(start.slice(START.length)), "unsupported_version");
  return end;
}

// `bytes` are at least the bytes 0 to 8+N-1 of a file of `fileNbytes`.
export function parseHeader(bytes, fileNbytes) {
  const end = headerEnd(bytes, fileNbytes);
  check(bytes.length >= end, "truncated");
  const text = asciiText(bytes.subarray(8, end));
  const top = parseJson(text.trimEnd());
  const metadata = readMetadata(top);
  const manifest = parseManifest(metadata.get("obm"));
  const parts = placeParts(manifest);
  checkTable(top, parts, manifest);
  check(manifest.canonical && text === headerText(metadata, parts), "not_canonical");
  const last = [...parts.values()].at(-1);
  const wanted = last ? end + last.end : end;
  check(fileNbytes >= wanted, "truncated"); // 2.3
  check(fileNbytes === wanted, "trailing_data");
  return { manifest, parts, end };
}

function readMetadata(top) {
  const metadata = top.get("__metadata__");
  check(isObject(metadata) && [...metadata.keys()].join() === "format,obm_version,obm", "manifest_field"); // 2.4
  check(isText(metadata.get("obm")), "manifest_field");
  return metadata;
}

// Where the manifest puts each part, from the end of the header.
function placeParts({ parts }) {
  let begin = 0;
  return new Map(parts.map(([name, nbytes]) => {
    const part = { nbytes, begin, end: begin + padded(nbytes) };
    begin = part.end;
    return [name, part];
  }));
}

function entryOf({ begin, end }) {
  return new Map([["dtype", "U8"], ["shape", [end - begin]], ["data_offsets", [begin, end]]]);
}

function checkTable(top, parts, { pools }) {
  const names = [...top.keys()].filter((name) => name !== "__metadata__");
  check(names.length === parts.size && [...parts.keys()].every((name, i) => names[i] === name), "part_table"); // 2.6
  for (const [name, part] of parts) {
    check(isObject(top.get(name)) && canonicalJson(top.get(name)) === canonicalJson(entryOf(part)), "part_table");
  }
  for (const name of ["digests", "alphas", "frames", "sums"]) {
    check(pools.get(name)?.nbytes === parts.get(`#${name}`)?.nbytes, "part_table"); // 7.3
  }
}

// The one text of a header with this content, with its padding (2.2, 2.4, 2.5).
function headerText(metadata, parts) {
  const plain = (map) => JSON.stringify(Object.fromEntries(map));
  const entries = [...parts].map(([name, part]) => `,${JSON.stringify(name)}:${plain(entryOf(part))}`);
  const text = `{"__metadata__":${plain(metadata)}${entries.join("")}}`;
  return text.padEnd(padded(8 + text.length) - 8, " ");
}
