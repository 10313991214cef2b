// The page `page.html?file=URL&tensor=NAME[&rows=A-B]`: shows what a file says of itself and one tensor, as JSON.

import { hex, sha256 } from "./bytes.js";
import { HttpSource, Refused, decodeValues, openExpert } from "./obm.js";

const SMALL_READ = 64; // the length of the header, and the prefix: its rest is asked for when it is known

async function describe(parameters) {
  const expert = await openExpert(new HttpSource(parameters.get("file")), { firstRead: SMALL_READ });
  const name = parameters.get("tensor");
  const { dtype, shape, encoding } = expert.records.get(name);
  const rows = parameters.get("rows")?.split("-").map(Number) ?? null;
  const values = await decodeValues(expert, name, { rows });
  return { id: expert.id, tensor: name, dtype, shape, encoding, f32_sha256: values && hex(await sha256(values)) };
}

async function report() {
  try {
    return await describe(new URLSearchParams(window.location.search));
  } catch (error) {
    return error instanceof Refused ? { reason: error.reason } : { error: error.message };
  }
}

document.querySelector("#report").textContent = JSON.stringify(await report());
