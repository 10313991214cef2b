// Fields of manifest objects (obm-1 clauses 4.2, 5.1): types, defaults, grammars; notes a default that was written.

import { canonicalJson } from "./json.js";
import { check } from "./refusal.js";

export const isText = (value) => typeof value === "string";
export const isNumber = (value) => typeof value === "number";
export const isFlag = (value) => typeof value === "boolean";
export const isObject = (value) => value instanceof Map;
export const isListOf = (isItem) => (value) => Array.isArray(value) && value.every(isItem);
export const isPair = (isItem) => (value) => isListOf(isItem)(value) && value.length === 2;

const NAME = /^[A-Za-z0-9_.:/+-]{1,512}$/;

export class Fields {
  // `defaults.written` becomes true where a field has its default: not canonical, but reported in its turn (14.1).
  constructor(value, known, defaults) {
    check(isObject(value), "manifest_field");
    check([...value.keys()].every((key) => known.includes(key)), "manifest_field");
    this.map = value;
    this.defaults = defaults;
  }

  has(key) {
    return this.map.has(key);
  }

  required(key, isType) {
    check(this.has(key) && isType(this.map.get(key)), "manifest_field");
    return this.map.get(key);
  }

  optional(key, isType, fallback) {
    if (!this.has(key)) return fallback;
    const value = this.required(key, isType);
    if (canonicalJson(value) === canonicalJson(fallback)) this.defaults.written = true;
    return value;
  }

  // A field without a default that may be absent.
  absent(key, isType) {
    return this.has(key) ? this.required(key, isType) : null;
  }
}

export function checkName(name) {
  const sound = NAME.test(name) && name !== "__metadata__"; // 5.3
  check(sound && !name.split("/").some((segment) => ["", ".", ".."].includes(segment)), "bad_name");
}

export function checkAscending(names) {
  check(names.every((name, i) => i === 0 || names[i - 1] < name), "duplicate_name");
}

export function checkDigest(text) {
  check(/^[0-9a-f]{64}$/.test(text), "bad_digest");
}
