// `node cli.js FILE [BASE [REF ...]]` prints a report as JSON; exit 0, 4 if refused, 1 if it needs zstd.

import { NeedsZstd } from "./obm.js";
import { reportOn } from "./report.js";

const [path, basePath, ...refPaths] = process.argv.slice(2);
try {
  const report = await reportOn(path, basePath, refPaths);
  console.log(JSON.stringify(report));
  process.exitCode = report.reason ? 4 : 0;
} catch (error) {
  if (!(error instanceof NeedsZstd)) throw error;
  console.error(error.message);
  process.exitCode = 1;
}
