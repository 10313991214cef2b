// Strict JSON of obm-1 clause 4: objects become Maps, which keep the order and every key of the text.

import { check } from "./refusal.js";

const DEPTH = 12; // 3.1
const SEPARATORS = 2097152; // 3.1
const WORD = /[-+.\w]+/y;
const PLAIN_NUMBER = /^(0|[1-9][0-9]{0,15})$/;
const ESCAPED = { '"': '"', "\\": "\\", "/": "/", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t" };

class Parser {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.separators = 0;
  }

  document() {
    const value = this.value(0);
    check(this.peek() === undefined, "json_syntax");
    return value;
  }

  // Spaces are not canonical; they are found when the canonical text is compared (14.1).
  peek() {
    while (this.text[this.at] === " ") this.at += 1;
    return this.text[this.at];
  }

  expect(char) {
    check(this.peek() === char, "json_syntax");
    this.at += 1;
    if (",[{".includes(char)) {
      this.separators += 1;
      check(this.separators <= SEPARATORS, "limit_exceeded");
    }
  }

  value(depth) {
    const char = this.peek();
    if (char === '"') return this.string();
    if (char === "{" || char === "[") {
      check(depth < DEPTH, "json_depth");
      return char === "{" ? this.object(depth + 1) : this.array(depth + 1);
    }
    return this.word();
  }

  // A number, true or false (4.1).
  word() {
    WORD.lastIndex = this.at;
    const word = WORD.exec(this.text)?.[0] ?? "";
    this.at += word.length;
    if (word === "true" || word === "false") return word === "true";
    check(/^[-0-9]/.test(word), "json_syntax");
    check(PLAIN_NUMBER.test(word) && Number.isSafeInteger(Number(word)), "json_number");
    return Number(word);
  }

  string() {
    this.expect('"');
    const pieces = [];
    for (let start = this.at; ; start = this.at) {
      while (this.at < this.text.length && this.text[this.at] !== '"' && this.text[this.at] !== "\\") this.at += 1;
      check(this.at < this.text.length, "json_syntax");
      pieces.push(this.text.slice(start, this.at));
      this.at += 1;
      if (this.text[this.at - 1] === '"') return pieces.join("");
      pieces.push(this.escape());
    }
  }

  escape() {
    const char = this.text[this.at];
    let meant = Object.hasOwn(ESCAPED, char) ? ESCAPED[char] : undefined;
    this.at += 1;
    if (char === "u") {
      const digits = this.text.slice(this.at, this.at + 4);
      check(/^[0-9a-fA-F]{4}$/.test(digits), "json_syntax");
      meant = String.fromCharCode(parseInt(digits, 16));
      this.at += 4;
    }
    check(meant !== undefined, "json_syntax");
    check(meant >= " " && meant <= "~", "bad_encoding_of_text");
    return meant;
  }

  array(depth) {
    const items = [];
    this.expect("[");
    if (this.peek() !== "]") {
      items.push(this.value(depth));
      while (this.peek() === ",") {
        this.expect(",");
        items.push(this.value(depth));
      }
    }
    this.expect("]");
    return items;
  }

  object(depth) {
    const fields = new Map();
    this.expect("{");
    if (this.peek() !== "}") {
      this.field(fields, depth);
      while (this.peek() === ",") {
        this.expect(",");
        this.field(fields, depth);
      }
    }
    this.expect("}");
    return fields;
  }

  field(fields, depth) {
    check(this.peek() === '"', "json_syntax");
    const key = this.string();
    check(!fields.has(key), "json_duplicate_key");
    this.expect(":");
    fields.set(key, this.value(depth));
  }
}

export function parseJson(text) {
  return new Parser(text).document();
}

// The one text of a content, with sorted keys (4.1); JSON.stringify escapes printable ASCII as the clause does.
export function canonicalJson(value) {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(",")}]`;
  if (!(value instanceof Map)) return JSON.stringify(value);
  const keys = [...value.keys()].sort();
  return `{${keys.map((key) => `${JSON.stringify(key)}:${canonicalJson(value.get(key))}`).join(",")}}`;
}

// Bytes of printable ASCII as text (4.1).
export function asciiText(bytes) {
  check(bytes.every((byte) => byte >= 0x20 && byte <= 0x7e), "bad_encoding_of_text");
  return new TextDecoder().decode(bytes);
}
