// `node run_vectors.js FOLDER` reads every conformance vector of a folder and prints one JSON line for each.

import { readFile, readdir } from "node:fs/promises";
import { join } from "node:path";

import { NeedsZstd } from "./obm.js";
import { reportOn } from "./report.js";

const root = process.argv[2];

async function readVector(folder, name) {
  const { base, refs = [] } = JSON.parse(await readFile(join(root, folder, `${name}.json`), "utf8"));
  const paths = refs.map((ref) => join(root, ref));
  try {
    return await reportOn(join(root, folder, `${name}.obm`), base && join(root, base), paths);
  } catch (error) {
    return { [error instanceof NeedsZstd ? "needs" : "crash"]: error.message };
  }
}

for (const folder of ["valid", "invalid"]) {
  const files = await readdir(join(root, folder));
  for (const file of files.filter((entry) => entry.endsWith(".json")).sort()) {
    const name = file.slice(0, -".json".length);
    console.log(JSON.stringify({ folder, name, report: await readVector(folder, name) }));
  }
}
