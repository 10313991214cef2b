// Where the bytes of a file come from: memory, or HTTP range requests. Both have `head` and `read`.

import { check } from "./refusal.js";

export class BytesSource {
  constructor(bytes) {
    this.bytes = bytes;
  }

  // The first `nbytes` bytes, or all, and the size of the whole.
  async head(nbytes) {
    return { bytes: this.bytes.subarray(0, nbytes), fileNbytes: this.bytes.length };
  }

  async read(begin, end) {
    return this.bytes.subarray(begin, end);
  }
}

export class HttpSource {
  // `fetch` is not taken as it is: a browser's does not run as a method of something else.
  constructor(url, fetchRange = (...request) => fetch(...request)) {
    this.url = url;
    this.fetchRange = fetchRange;
  }

  async head(nbytes) {
    const response = await this.request(0, nbytes);
    const total = Number(response.headers.get("Content-Range")?.split("/")[1]);
    if (!Number.isSafeInteger(total)) throw new Error(`${this.url}: no size in Content-Range`);
    const empty = response.status === 416; // no range of an empty file can be satisfied
    return { bytes: empty ? new Uint8Array(0) : await bodyOf(response, Math.min(nbytes, total)), fileNbytes: total };
  }

  async read(begin, end) {
    return begin < end ? bodyOf(await this.request(begin, end), end - begin) : new Uint8Array(0);
  }

  async request(begin, end) {
    const response = await this.fetchRange(this.url, { headers: { Range: `bytes=${begin}-${end - 1}` } });
    if (response.status !== 206 && !(response.status === 416 && begin === 0)) {
      throw new Error(`${this.url}: status ${response.status} to a range request`);
    }
    return response;
  }
}

async function bodyOf(response, nbytes) {
  const bytes = new Uint8Array(await response.arrayBuffer());
  check(bytes.length === nbytes, "truncated");
  return bytes;
}
