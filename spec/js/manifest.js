// The manifest (obm-1 clauses 5 and 7): its fields, its names, and the pools and parts that follow from it.

import * as f from "./fields.js";
import { WIDTH } from "./floats.js";
import { canonicalJson, parseJson } from "./json.js";
import { plainSums, readRecord, sameShape, sumCount } from "./records.js";
import { check } from "./refusal.js";

const MANIFEST = [
  "alias", "attach", "backbone", "ext", "kind", "pools", "position", "prefix", "refs", "removed", "requires", "router",
  "task", "tensors",
];
const POOLS = ["digests", "alphas", "frames", "sums"];
const ATTACHMENT = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/;
const EXTENSION = /\.(json|txt|jinja|model|md)$/;
const TASK = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;
const REF = /^obm1-sha256:[0-9a-f]{64}$/;

export function parseManifest(text) {
  const value = parseJson(text);
  const context = { written: false, refCount: 0 };
  check(f.isObject(value), "manifest_field");
  readRequires(value, context); // before any other field (12.2)
  const fields = new f.Fields(value, MANIFEST, context);
  const manifest = { ...readWords(fields), ...readLists(fields), backbone: readBackbone(fields, context) };
  context.refCount = manifest.refs.length;
  manifest.tensors = readTensors(fields, manifest, context);
  manifest.alias.forEach(([, target]) => check(manifest.records.has(target), "manifest_field")); // 5.8
  manifest.fresh = newNames(manifest);
  checkKinship(manifest);
  if (manifest.prefix !== null) checkPrefix(manifest);
  manifest.router = readRouter(fields, manifest, context);
  manifest.pools = readPools(fields, context);
  manifest.parts = listParts(manifest);
  check(manifest.parts.length <= 262144, "limit_exceeded");
  manifest.canonical = !context.written && canonicalJson(value) === text;
  return manifest;
}

function readRequires(value, context) {
  const fields = new f.Fields(value, [...value.keys()], context);
  const requires = fields.optional("requires", f.isListOf(f.isText), []);
  check(requires.every((id) => /^[a-z0-9][a-z0-9_.-]{0,63}$/.test(id)), "manifest_field");
  check(requires.length === 0, "unsupported_feature"); // 1.0 defines none, so their order never comes into question
}

function readWords(fields) {
  const kind = fields.required("kind", f.isText);
  const position = fields.optional("position", f.isText, "none");
  const task = fields.optional("task", f.isText, "");
  check(["task-vector", "rtvq-base", "router"].includes(kind), "manifest_field");
  check(position.length >= 1 && position.length <= 512, "manifest_field");
  check(task === "" || TASK.test(task), "manifest_field");
  const ext = fields.optional("ext", f.isObject, new Map());
  check([...ext.keys()].every((key) => /^[a-z0-9-]+\.[a-z0-9_.-]+$/.test(key)), "manifest_field");
  check(canonicalJson(ext).length <= 65536, "limit_exceeded"); // 3.1
  return { kind, position, task, prefix: readPrefix(fields) };
}

function readPrefix(fields) {
  const value = fields.absent("prefix", f.isObject);
  if (value === null) return null;
  const prefix = new f.Fields(value, ["side", "text"], fields.defaults);
  const [side, text] = [prefix.required("side", f.isText), prefix.required("text", f.isText)];
  check(["tuned", "backbone"].includes(side), "manifest_field");
  check(/^[A-Za-z0-9_.:/+-]{0,511}\.$/.test(text), "manifest_field"); // 5.7
  return { side, text };
}

function readLists(fields) {
  const alias = fields.optional("alias", f.isListOf(f.isPair(f.isText)), []);
  const removed = fields.optional("removed", f.isListOf(f.isText), []);
  const refs = fields.optional("refs", f.isListOf(f.isText), []);
  check(refs.length <= 4, "limit_exceeded");
  check(refs.every((id) => REF.test(id)), "bad_digest");
  f.checkAscending(refs);
  for (const names of [alias.map(([name]) => name), removed]) {
    names.forEach(f.checkName);
    f.checkAscending(names);
  }
  return { alias, removed, refs, attach: readAttachments(fields) };
}

function readAttachments(fields) {
  const values = fields.optional("attach", Array.isArray, []);
  check(values.length <= 64, "limit_exceeded");
  const attach = values.map((value) => {
    const file = new f.Fields(value, ["name", "nbytes"], fields.defaults);
    return { name: file.required("name", f.isText), nbytes: file.required("nbytes", f.isNumber) };
  });
  check(attach.every(({ name }) => ATTACHMENT.test(name) && EXTENSION.test(name)), "bad_name"); // 5.9
  f.checkAscending(attach.map(({ name }) => name));
  check(attach.every(({ nbytes }) => nbytes <= 2 ** 26), "limit_exceeded");
  return attach;
}

function readBackbone(fields, context) {
  const value = fields.required("backbone", f.isObject);
  const backbone = new f.Fields(value, ["architecture", "fingerprint", "n_params", "n_tensors"], context);
  const architecture = backbone.optional("architecture", f.isText, "");
  const fingerprint = backbone.required("fingerprint", f.isText);
  const [params, tensors] = ["n_params", "n_tensors"].map((key) => backbone.required(key, f.isNumber));
  check(/^[A-Za-z0-9_.-]{0,128}$/.test(architecture), "manifest_field"); // 10.2
  f.checkDigest(fingerprint);
  return { architecture, fingerprint, params, tensors };
}

// The records; `manifest.records` has them by name.
function readTensors(fields, manifest, context) {
  const values = fields.required("tensors", Array.isArray);
  const count = values.length + manifest.alias.length + manifest.removed.length;
  check(count <= 65536, "limit_exceeded");
  const tensors = values.map((value) => readRecord(value, context));
  f.checkAscending(tensors.map(({ name }) => name));
  manifest.records = new Map(tensors.map((record) => [record.name, record]));
  const all = [...manifest.records.keys(), ...manifest.alias.map(([name]) => name), ...manifest.removed];
  check(new Set(all).size === count, "duplicate_name"); // 5.3
  return tensors;
}

// Names of tensors that the backbone must not have (5.4, 5.8); a router's tensors are no fine-tune's.
function newNames({ kind, tensors, records, alias }) {
  if (kind === "router") return new Set();
  const aliases = alias.filter(([, target]) => records.get(target).mode === "added").map(([name]) => name);
  return new Set([...tensors.filter(({ mode }) => mode === "added").map(({ name }) => name), ...aliases]);
}

// No counterpart is a new or a removed tensor (5.3).
function checkKinship({ tensors, fresh, removed }) {
  const taken = new Set([...fresh, ...removed]);
  check(tensors.every(({ counterpart }) => !taken.has(counterpart?.name)), "duplicate_name");
}

// The fine-tune has a name for each tensor, and no two of one name (5.7).
function checkPrefix({ records, alias, fresh, prefix: { side, text } }) {
  const kept = [...records.keys(), ...alias.map(([name]) => name)].filter((name) => !fresh.has(name));
  const sound = (name) => name.startsWith(text) && name !== text;
  check(side === "tuned" || kept.every(sound), "manifest_field");
  const called = kept.map((name) => (side === "tuned" ? text + name : name.slice(text.length)));
  check(new Set([...called, ...fresh]).size === kept.length + fresh.size, "duplicate_name");
}

function readRouter(fields, manifest, context) {
  const value = fields.absent("router", f.isObject);
  check((value !== null) === (manifest.kind === "router"), "manifest_field");
  if (value === null) return null;
  const router = new f.Fields(value, ["max_tokens", "routes"], context);
  const routes = router.required("routes", f.isListOf(f.isText));
  check(router.required("max_tokens", f.isNumber) > 0, "manifest_field");
  check(routes.every((route) => TASK.test(route)) && new Set(routes).size === routes.length, "manifest_field");
  const { alias, removed, refs, prefix } = manifest;
  check(alias.length + removed.length + refs.length === 0 && prefix === null, "manifest_field");
  checkRouterTensors(manifest.tensors, routes.length);
  return { routes };
}

// `mean` and `scale` of d elements, then one or two layers that lead from d to the routes (5.10).
function checkRouterTensors(tensors, outputs) {
  const shapes = new Map(tensors.map(({ name, shape }) => [name, shape]));
  const stored = ({ dtype, encoding, mode, shape }) =>
    dtype === "F32" && encoding === "raw" && mode === "added" && !shape.includes(0);
  const layers = shapes.has("1.weight") || shapes.has("1.bias") ? 2 : 1;
  let width = shapes.get("mean")?.[0];
  const expected = [["mean", [width]], ["scale", [width]]];
  for (let layer = 0; layer < layers; layer += 1) {
    const out = layer === layers - 1 ? outputs : shapes.get(`${layer}.bias`)?.[0];
    expected.push([`${layer}.weight`, [out, width]], [`${layer}.bias`, [out]]);
    width = out;
  }
  const fits = expected.every(([name, shape]) => shapes.has(name) && sameShape(shapes.get(name), shape));
  check(fits && tensors.every(stored) && tensors.length === expected.length, "manifest_field");
}

function readPools(fields, context) {
  const values = new f.Fields(fields.optional("pools", f.isObject, new Map()), POOLS, context);
  return new Map([...values.map].map(([name, value]) => {
    const pool = new f.Fields(value, ["nbytes", "sha256"], context);
    const sha256 = pool.required("sha256", f.isText);
    f.checkDigest(sha256);
    return [name, { nbytes: pool.required("nbytes", f.isNumber), sha256 }];
  }));
}

// Name and unpadded size of every part in file order (2.5).
function listParts({ tensors, attach }) {
  const parts = tensors.flatMap(({ name, sizes }) => [...sizes].map(([suffix, n]) => [`${name}#${suffix}`, n]));
  const files = attach.map(({ name, nbytes }) => [`#attach/${name}`, nbytes]);
  return [...poolSizes(tensors, attach), ...parts, ...files].filter(([, nbytes]) => nbytes > 0);
}

// Sizes of the pools as they follow from the records (7.4, 7.5, 8.2, 8.3).
function poolSizes(tensors, attach) {
  let [digests, alphas, frames, sums] = [attach.length, 0, 0, 0];
  for (const record of tensors) {
    digests += (record.mode !== "added") + record.exact + record.sizes.size;
    alphas += record.alphaCount * WIDTH[record.alphaDtype];
    frames += record.frameCount;
    for (const suffix of record.sizes.keys()) sums += sumCount(record, suffix);
  }
  for (const { nbytes } of attach) sums += plainSums(nbytes);
  return [["#digests", digests * 32], ["#alphas", alphas], ["#frames", frames * 36], ["#sums", sums * 32]];
}
