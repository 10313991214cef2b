// A reader of `.obm` files for node and browsers, written from obm-1.md: what other modules may import.

export { checkBackbone, readBackbone } from "./backbone.js";
export { decodeValues, rebuildTensor } from "./decoding.js";
export { openExpert } from "./expert.js";
export { parseHeader } from "./header.js";
export { NeedsZstd, Refused } from "./refusal.js";
export { BytesSource, HttpSource } from "./sources.js";
